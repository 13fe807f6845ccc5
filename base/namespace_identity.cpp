#include "base/namespace_identity.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

namespace portway {

std::string to_string(const NamespaceIdentity& identity) {
  if (identity.is_nodes_own()) return "";
  return fmt::format("{}:{}:{}", identity.cookie, identity.device, identity.inode);
}

std::optional<NamespaceIdentity> parse_namespace_identity(std::string_view text) {
  if (text.empty()) return NamespaceIdentity{};
  NamespaceIdentity identity;
  const char* const end = text.data() + text.size();
  const char* next = text.data();
  const std::array numbers = {&identity.cookie, &identity.device, &identity.inode};
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const auto [stop, error] = std::from_chars(next, end, *numbers[i]);
    const bool last = i + 1 == numbers.size();
    if (error != std::errc{} || (last ? stop != end : stop == end || *stop != ':')) return std::nullopt;
    next = stop + 1;
  }
  if (identity.is_nodes_own()) return std::nullopt;
  return identity;
}

}  // namespace portway

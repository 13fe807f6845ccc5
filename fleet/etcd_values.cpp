#include "fleet/etcd_values.h"

#include <array>
#include <stdexcept>

namespace portway {
namespace {

constexpr auto kErrorKindNames = std::to_array<std::string_view>({
    "unreachable",
    "timeout",
    "unknown_outcome",
    "unauthenticated",
    "permission_denied",
    "lease_not_found",
    "compacted",
    "too_large",
    "no_space",
    "wrong_cluster",
    "bad_answer",
    "refused",
    "closed",
});
static_assert(kErrorKindNames.size() == kEtcdErrorKinds, "every kind has its name, in the same order");

}  // namespace

std::string_view to_string(EtcdErrorKind kind) {
  return kErrorKindNames[static_cast<std::size_t>(kind)];
}

void throw_exception_from_error(const EtcdError& error, const boost::source_location& where) {
  throw std::logic_error(std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                         ": unexpected " + std::string(to_string(error.kind)) + ": " + error.detail);
}

EtcdKeys EtcdKeys::with_prefix(std::string_view prefix) {
  const std::string zero(1, '\0');
  EtcdKeys keys{.key = std::string(prefix), .range_end = std::string(prefix)};
  // The first key behind all of them: the last byte that can be greater is.
  while (!keys.range_end.empty() && keys.range_end.back() == '\xff') keys.range_end.pop_back();
  if (keys.range_end.empty()) {
    keys.range_end = zero;
  } else {
    keys.range_end.back() = static_cast<char>(keys.range_end.back() + 1);
  }
  if (keys.key.empty()) keys.key = zero;  // etcd has no empty key
  return keys;
}

std::optional<EtcdRange> next_page(const EtcdRange& asked, const EtcdRangeAnswer& answer) {
  if (!answer.more || answer.kvs.empty()) return std::nullopt;
  EtcdRange next = asked;
  next.keys.key = answer.kvs.back().key + '\0';  // the first key behind it
  if (next.revision == 0) next.revision = answer.header.revision;
  return next;
}

}  // namespace portway

#include "network/vsock_handshake.h"

#include <fmt/format.h>

#include <algorithm>

namespace portway {
namespace {

constexpr std::string_view kOk = "OK ";
constexpr std::size_t kDigitsMax = kVsockAnswerMax - kOk.size() - 1;

}  // namespace

std::string vsock_request(std::uint32_t port) {
  return fmt::format("CONNECT {}\n", port);
}

VsockAnswer parse_vsock_answer(std::string_view received, std::size_t& size) {
  const std::string_view start = received.substr(0, kOk.size());
  if (start != kOk.substr(0, start.size())) return VsockAnswer::kWrong;
  if (received.size() <= kOk.size()) return VsockAnswer::kIncomplete;
  const std::string_view rest = received.substr(kOk.size());
  const auto is_digit = [](char c) { return '0' <= c && c <= '9'; };
  const auto digits =
      static_cast<std::size_t>(std::find_if_not(rest.begin(), rest.end(), is_digit) - rest.begin());
  if (digits > kDigitsMax) return VsockAnswer::kWrong;
  if (digits == rest.size()) return VsockAnswer::kIncomplete;
  if (digits == 0 || rest[digits] != '\n') return VsockAnswer::kWrong;
  size = kOk.size() + digits + 1;
  return VsockAnswer::kAccepted;
}

}  // namespace portway

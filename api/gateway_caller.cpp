#include "api/gateway_caller.h"

#include <algorithm>
#include <utility>

#include "api/caller_header.h"

namespace portway {
namespace {

constexpr std::string_view kHeaderName = "Portway-Caller";

/// Empty: the client is none.
std::string gateway_of(const Request& request, const KeyRing& keys) {
  if (request.certificate_names == nullptr) return {};
  const auto found = std::ranges::find_first_of(*request.certificate_names, keys.gateways());
  return found == request.certificate_names->end() ? std::string() : *found;
}

}  // namespace

std::optional<Result<Principal>> caller_by_gateway(const Request& request, const KeyRing& keys) {
  if (!request.headers.contains(kCallerHeader)) return std::nullopt;
  std::string gateway = gateway_of(request, keys);
  if (gateway.empty()) {
    return Error{
        ErrorCode::kForbidden,
        "Only a gateway may send Portway-Caller: its name is in fleet.gateways of this node, and it has "
        "shown a certificate of that name to a listener with a client_ca. Others leave the header out.",
        std::string(kHeaderName)};
  }
  auto caller = parse_caller_header(request.header(kCallerHeader));
  if (!caller) {
    return Error{
        ErrorCode::kMalformedRequest,
        "This Portway-Caller names no caller; the gateway must be of a version that fits this node's.",
        std::string(kHeaderName)};
  }
  caller->via = std::move(gateway);
  return std::move(*caller);
}

}  // namespace portway

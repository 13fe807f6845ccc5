// Looking into a forward: why clients do not get through (check), and its packets (capture).

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/capture.h"
#include "api/check.h"
#include "api/resources.h"
#include "control/policy.h"
#include "network/socket_target.h"

namespace portway {
namespace {

const auto kClient = text_parameter("client");
const auto kSeconds = integer_parameter<std::int64_t>("seconds", 10, 1, 60);
const auto kMaxBytes = integer_parameter<std::size_t>("max_bytes", 1'000'000, 1000, 16 * 1024 * 1024);

StreamSubject subject_of(const Instance& instance, std::int32_t tap_index = 0) {
  return {.instance_id = instance.id, .session_id = instance.session_id, .tap_index = tap_index};
}

Result<Response> check(const ApiContext& api, const Call& call) {
  api.control.look_at_addresses();
  const auto found = api.control.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  const Instance& instance = **api.control.find_instance(call.caller, call.path[0]);  // its forward was found
  CheckSubject subject{.forward = *found,
                       .instance = instance,
                       .tap_state = api.control.tap_state(instance),
                       .tap_fault = api.control.tap_fault(instance),
                       .client = std::nullopt};
  // If it is not open, the fault of the tap says so.
  if (auto netns = api.control.netns_of(instance)) subject.netns = std::move(*netns);
  // Not before the forward is found: what is not there is 404, whatever is asked of it.
  if (const std::string client = call.query[kClient].value_or(""); !client.empty()) {
    const auto address = parse_address(client);
    if (!address) {
      return Error{ErrorCode::kInvalidRequest, "client must be an IPv4 or IPv6 address.", "client"};
    }
    subject.client = *address;
  }
  if (const Target& target = found->forward.target; !target.is_tcp()) {
    const std::vector<std::string>& directories = api.control.config().guests.socket_directories;
    const auto below = check_socket_directory(target, directories);
    subject.socket = below ? Result<SocketTarget>(socket_target(target, directories)) : below.error();
  }
  subject.refusing = api.control.refuses(found->forward.id, subject.client);
  return stream_response(
      api, {.caller = call.caller, .subject = subject_of(instance), .kind = StreamKind::kCheck},
      [&] { return check_forward(api.context, subject); }, "application/json");
}

Result<Response> capture(const ApiContext& api, const Call& call) {
  const auto found = api.control.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  if (!found->forward.target.is_tcp()) {
    return Error{ErrorCode::kInvalidRequest,
                 "This forward leads to a Unix socket: there are no packets between node and guest. "
                 "GET .../check tries the socket.",
                 "target"};
  }
  const Instance& instance = **api.control.find_instance(call.caller, call.path[0]);  // its forward was found
  const std::string what =
      fmt::format("capture of forward {} of instance {} by key {}, request {}", call.path[1], call.path[0],
                  to_string(call.caller.key_id), call.request.id);
  const auto guests = [&control = api.control, id = instance.id, port = found->forward.guest_port] {
    std::vector<Endpoint> endpoints;
    for (const IpAddress& address : guest_addresses(*control.registry().find_instance(id)))
      endpoints.emplace_back(address, port);
    return endpoints;
  };
  auto place = api.control.capture_place(instance);
  if (!place) return place.error();
  const CaptureOptions options{.tap = std::string(place->name),
                               .link = place->link,
                               .netns = std::move(place->netns),
                               .guests = guests,
                               .duration = std::chrono::seconds(call.query[kSeconds]),
                               .max_bytes = call.query[kMaxBytes]};
  const auto log_end = [what](const std::string& summary) { spdlog::info("{}: {}", what, summary); };
  auto response = stream_response(
      api,
      {.caller = call.caller, .subject = subject_of(instance, options.link), .kind = StreamKind::kCapture},
      [&] { return start_capture(api.context, options, log_end); }, "application/vnd.tcpdump.pcap");
  if (!response) return response.error();
  spdlog::info("{}: begins", what);
  response->headers.emplace_back("Cache-Control", "no-store");
  return response;
}

}  // namespace

std::vector<NodeRoute> diagnosis_routes() {
  constexpr std::string_view kCheck = "/instances/{id}/port-forwards/{forward_id}/check";
  constexpr std::string_view kCapture = "/instances/{id}/port-forwards/{forward_id}/capture";
  return {
      {"GET", kCheck, Access::kTenant, {kClient}, check, kHighCost},
      {"POST", kCapture, Access::kAdmin, {kSeconds, kMaxBytes}, capture, kHighCost},
  };
}

}  // namespace portway

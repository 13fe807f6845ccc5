// /instances: what runs on the node, as its orchestrator registers it.

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/instance_page.h"
#include "api/json.h"
#include "api/json_fields.h"
#include "api/preconditions.h"
#include "api/resources.h"
#include "api/selector.h"
#include "network/open_beneath.h"

namespace portway {
namespace {

using boost::asio::awaitable;

const auto kSession = uuid_parameter("session_id", "must be the UUID of a session.");

/// The fields `guest_address` and `guest_addresses` of a request: one of them, or both if they agree, as in
/// an answer.
Result<void> take_guest_addresses(Instance& asked, const std::optional<std::string>& address,
                                  const std::vector<IpAddress>& addresses) {
  if (!address) return set_guest_addresses(asked, addresses);
  const auto parsed = parse_address(*address);
  if (!parsed) {
    return Error{ErrorCode::kInvalidAddress,
                 fmt::format("guest_address {} must be an IPv4 or IPv6 address.", in_quotes(*address)),
                 "guest_address"};
  }
  if (addresses.empty()) return set_guest_addresses(asked, std::span(&*parsed, 1));
  if (std::ranges::find(addresses, *parsed) == addresses.end()) {
    return Error{ErrorCode::kInvalidAddress,
                 fmt::format("guest_address {} is not one of guest_addresses; leave it out, or add it there.",
                             in_quotes(*address)),
                 "guest_address"};
  }
  return set_guest_addresses(asked, addresses);
}

/// Where the guest is, and what is watched.
void take_place(Instance& asked, JsonFields& fields) {
  const auto take = [&](std::string_view name, std::string_view without) {
    auto text = fields.string_or_none(name);
    if (text && text->empty()) {
      fields.refuse(name, fmt::format("{} must not be empty; leave it out for {}.", name, without));
    }
    return std::move(text).value_or("");
  };
  asked.tap = take("tap", "a machine of which vmm_pid alone is watched");
  asked.device = take("device", "the tap");
  // One spelling of a path: they are compared as text.
  asked.netns = normal_path(take("netns", "the node's own network namespace"));
  asked.tap_netns = normal_path(take("tap_netns", "the namespace of the guest"));
  if (asked.device == asked.tap && tap_netns_of(asked) == asked.netns) asked.device.clear();
}

Response one_instance(const ApiContext& api, unsigned status, const Instance& instance) {
  Response response = json_response(status, {{"instance", to_json(api.control.status_of(instance))}});
  response.headers.emplace_back("ETag", etag_of(instance));
  return response;
}

Result<Response> get_instance(const ApiContext& api, const Call& call) {
  const auto instance = api.control.find_instance(call.caller, call.path[0]);
  if (!instance) return instance.error();
  return with_event_id(api, one_instance(api, 200, **instance));
}

awaitable<Result<Response>> put_instance(const ApiContext& api, const Call& call) {
  JsonFields fields(call.request);
  Instance asked;
  asked.id = call.path[0];
  const std::vector<IpAddress> addresses = fields.addresses("guest_addresses", 2);
  const std::optional<std::string> address =
      addresses.empty() ? fields.string("guest_address") : fields.string_or_none("guest_address");
  take_place(asked, fields);
  asked.owner = fields.string("owner");
  asked.profile = fields.string_or("profile", "default");
  if (const auto pid = fields.integer_or_none("vmm_pid", 1, INT32_MAX))
    asked.vmm_pid = static_cast<std::int32_t>(*pid);
  asked.target = fields.target("target", false).value_or(Target());
  patch(asked.metadata, fields.strings("metadata", false));
  if (auto error = fields.finish()) co_return *error;
  if (auto taken = take_guest_addresses(asked, address, addresses); !taken) co_return taken.error();
  const auto precondition = instance_precondition(call, call.query[kSession]);
  if (!precondition) co_return precondition.error();
  const auto put = co_await api.control.put_instance(std::move(asked), *precondition, actor_of(call.caller));
  if (!put) {
    Error error = put.error();
    if (error.field == "guest_address" && !addresses.empty()) error.field = "guest_addresses";
    co_return error;
  }
  Response response = one_instance(api, put->created ? 201 : 200, put->instance);
  if (put->created) response.headers.emplace_back("Location", "/instances/" + put->instance.id);
  co_return response;
}

/// A field of a PATCH; nullopt if it is not given, or null.
std::optional<IpAddress> read_address(JsonFields& fields, std::string_view name) {
  const std::optional<std::string> text = fields.string_or_none(name);
  if (!text) return std::nullopt;
  const auto address = parse_address(*text);
  if (!address) {
    fields.refuse(name, fmt::format("{} {} must be an IPv4 or IPv6 address.", name, in_quotes(*text)),
                  ErrorCode::kInvalidAddress);
    return std::nullopt;
  }
  return *address;
}

awaitable<Result<Response>> change_instance(const ApiContext& api, const Call& call) {
  if (const auto found = api.control.find_instance(call.caller, call.path[0]); !found)
    co_return found.error();
  JsonFields fields(call.request);
  InstanceChange change;
  GuestAddressChange& addresses = change.addresses;
  addresses.guest_address = read_address(fields, "guest_address");
  if (fields.given("guest_address") && !addresses.guest_address) {
    fields.refuse("guest_address", "guest_address cannot be null: a guest has at least one address.");
  }
  if (fields.given("guest_address_v6")) addresses.guest_address_v6 = read_address(fields, "guest_address_v6");
  if (fields.given("owner")) change.owner = fields.string("owner");
  if (fields.given("profile")) change.profile = fields.string("profile");
  if (fields.given("vmm_pid")) {
    const auto pid = fields.integer_or_none("vmm_pid", 1, INT32_MAX);
    change.vmm_pid.emplace();
    if (pid) change.vmm_pid->emplace(static_cast<std::int32_t>(*pid));
  }
  change.metadata = fields.strings("metadata", true);
  if (auto error = fields.finish()) co_return *error;
  const auto precondition = instance_precondition(call, call.query[kSession]);
  if (!precondition) co_return precondition.error();
  const auto changed =
      co_await api.control.change_instance(call.path[0], change, *precondition, actor_of(call.caller));
  if (!changed) {
    Error error = changed.error();
    if (error.field == "guest_address" && !addresses.guest_address) error.field = "guest_address_v6";
    co_return error;
  }
  co_return one_instance(api, 200, *changed);
}

Result<Response> list_instances(const ApiContext& api, const Call& call) {
  const auto entry = [&](const Instance& each) { return to_json(api.control.status_of(each)); };
  return with_event_id(api, json_response(200, instance_page(api, call, "instances", entry)));
}

awaitable<Result<Response>> stop_instance(const ApiContext& api, const Call& call) {
  const auto precondition = instance_precondition(call, call.query[kSession]);
  if (!precondition) co_return precondition.error();
  if (auto stopped = co_await api.control.stop_instance(call.path[0], *precondition, actor_of(call.caller));
      !stopped)
    co_return stopped.error();
  co_return get_instance(api, call);
}

awaitable<Result<Response>> delete_instance(const ApiContext& api, const Call& call) {
  const auto precondition = instance_precondition(call, call.query[kSession]);
  if (!precondition) co_return precondition.error();
  if (auto deleted = co_await api.control.delete_instance(call.path[0], *precondition, actor_of(call.caller));
      !deleted)
    co_return deleted.error();
  co_return no_content();
}

}  // namespace

std::vector<NodeRoute> instance_routes() {
  return {
      {"GET", "/instances", Access::kTenant, {kMetadata, kPageLimit, kInstanceCursor}, list_instances},
      {"GET", "/instances/{id}", Access::kTenant, {}, get_instance},
      {"PUT", "/instances/{id}", Access::kAdmin, {kSession}, put_instance},
      {"PATCH", "/instances/{id}", Access::kAdmin, {kSession}, change_instance},
      {"DELETE", "/instances/{id}", Access::kAdmin, {kSession}, delete_instance},
      {"POST", "/instances/{id}/stop", Access::kAdmin, {kSession}, stop_instance},
  };
}

}  // namespace portway

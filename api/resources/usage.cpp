// What instances carry and have carried: for bills, and for those who stop machines that are idle.

#include <boost/json.hpp>
#include <string_view>

#include "api/answers.h"
#include "api/instance_page.h"
#include "api/json.h"
#include "api/resources.h"
#include "api/selector.h"

namespace portway {
namespace {

boost::json::object activity_of(const ApiContext& api, const Instance& instance) {
  return activity_json(instance, api.control.is_ending(instance), api.control.usage_of(instance));
}

Result<Response> get_activity(const ApiContext& api, const Call& call) {
  const auto instance = api.control.find_instance(call.caller, call.path[0]);
  if (!instance) return instance.error();
  return json_response(200, {{"activity", activity_of(api, **instance)}});
}

Result<Response> list_usage(const ApiContext& api, const Call& call) {
  return json_response(
      200, instance_page(api, call, "usage", [&](const Instance& each) { return activity_of(api, each); }));
}

}  // namespace

std::vector<NodeRoute> usage_routes() {
  return {
      {"GET", "/instances/{id}/activity", Access::kTenant, {}, get_activity},
      {"GET", "/usage", Access::kTenant, {kMetadata, kPageLimit, kInstanceCursor}, list_usage},
  };
}

}  // namespace portway

// How each resource is written as JSON. The order of the members is part of the contract.
#pragma once

#include <boost/json/object.hpp>
#include <string_view>

#include "control/auth.h"
#include "control/status.h"
#include "proxy/live_connection.h"

namespace portway {

boost::json::object to_json(const ForwardStatus& status);
boost::json::object to_json(const InstanceStatus& status);
/// Without what changes with each connection, or with each forward of the instance.
boost::json::object lasting_json(const ForwardStatus& status);
boost::json::object lasting_json(const InstanceStatus& status);
/// What an instance carries, and what it has carried. `ending`: as InstanceStatus::ending.
boost::json::object activity_json(const Instance& instance, bool ending, const UsageStatus& usage);
boost::json::object to_json(const KeyStatus& status);
boost::json::object to_json(const LiveConnection& connection);
/// Without the limits that are not set.
boost::json::object profile_json(std::string_view name, const Profile& profile, bool is_fleets);

/// Adds the limits that are set.
void add_limits(boost::json::object& out, const TrafficLimits& limits);

/// What a request can set, for an entity tag.
boost::json::object settings_of(const Forward& forward);
boost::json::object settings_of(const Instance& instance);

}  // namespace portway

// How each resource is written as JSON. The order of the members is part of the contract.
#pragma once

#include <boost/json/object.hpp>

#include "control/status.h"
#include "control/store.h"
#include "proxy/live_connection.h"

namespace portway {

boost::json::object to_json(const ForwardStatus& status);
boost::json::object to_json(const InstanceStatus& status);
boost::json::object to_json(const ApiKey& key);
boost::json::object to_json(const LiveConnection& connection);

}  // namespace portway

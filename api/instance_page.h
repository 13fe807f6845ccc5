// A page of the instances that the caller sees, by id.
//
// Control thread.
#pragma once

#include <boost/json/object.hpp>
#include <functional>
#include <string>

#include "api/query.h"
#include "api/resources.h"

namespace portway {

extern const Parameter<std::string> kInstanceCursor;

/// {"next_cursor", `name`: [...]}, as the query's kMetadata, kPageLimit and kInstanceCursor ask for it.
boost::json::object instance_page(const ApiContext& api, const Call& call, const std::string& name,
                                  const std::function<boost::json::object(const Instance&)>& entry);

}  // namespace portway

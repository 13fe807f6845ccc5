// The API keys and profiles that a fleet has in common, as they are in etcd (fleet/fleet_keys.h). It is here
// because JsonFields is: a record is read as strictly as a request.
//
// A member that is not known may be a restriction, so a record with one cannot be read, and a key that cannot
// be read is not valid: update the nodes before a gateway that writes more.
#pragma once

#include <string>
#include <string_view>

#include "api/json_fields.h"
#include "base/error.h"
#include "base/forward.h"
#include "control/store.h"

namespace portway {

// A record is without its name, which is in etcd's key: a key's id, a profile's name. An error names the
// member, if it is about one.

/// Without when it was used last.
std::string to_record(const ApiKey& key);
Result<ApiKey> parse_api_key_record(std::string_view id, std::string_view json);

std::string to_record(const Profile& profile);
Result<Profile> parse_profile_record(std::string_view name, std::string_view json);

/// kInvalidRequest of "name".
Result<void> check_profile_name(std::string_view name);

/// The members of a profile, which may be left out: then they are as a profile of the configuration has them.
Profile read_profile(JsonFields& fields);

}  // namespace portway

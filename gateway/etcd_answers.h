// What an error of etcd is for whoever has asked the gateway.
#pragma once

#include <string_view>

#include "base/error.h"
#include "fleet/etcd_values.h"

namespace portway {

/// kStoreUnavailable. `what` was to be done: "key ID was to be deleted".
Error unavailable(const EtcdError& error, std::string_view what);

}  // namespace portway

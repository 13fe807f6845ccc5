// The configuration of one of our daemons: from its file, the environment and its command line; and what it
// says of etcd.
#pragma once

#include <span>
#include <string>

#include "base/error.h"
#include "config/config.h"
#include "fleet/etcd_options.h"

namespace portway {

/// Reads everything now. `path`: empty for the defaults; `settings`: "table.key=value". kInvalidConfig.
Result<Config> read_config(const std::string& path, std::span<const std::string> settings);

/// How to reach etcd, with the password out of its file, which is read now. kInvalidConfig.
Result<EtcdOptions> read_etcd_options(const Config::Fleet& fleet);

}  // namespace portway

// Checks the files and directories that a configuration names, without changing anything: a fault found here
// would otherwise stop the next start.
#pragma once

#include <string>
#include <vector>

#include "config/config.h"

namespace portway {

/// kInvalidConfig if the daemon would not start: the detail names the key, the file and the remedy, the field
/// is the key. Else warnings about what may be a mistake: a directory that the user of this process, who need
/// not be the daemon's, cannot write, or one that something may still create.
Result<std::vector<std::string>> check_config_files(const Config& config);

}  // namespace portway

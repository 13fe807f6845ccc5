// portway node backup: the daemon's store as a file.
#pragma once

#include "client/command.h"

namespace portway {

/// FILE stays what it was until the new backup is complete and on disk; of an incomplete one nothing stays.
/// The file is readable by its owner only.
Outcome<void> run_backup(const Invocation& invocation, Console& console);

}  // namespace portway

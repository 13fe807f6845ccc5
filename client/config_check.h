// `portway config check FILE`: checks the file as portwayd does at start.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_config_check(const Invocation& invocation, Console& console);

}  // namespace portway

// `portway config check FILE`: what portwayd would say to the file.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_config_check(const Invocation& invocation, Console& console);

}  // namespace portway

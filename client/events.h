// `portway events`: follows the node's events and reconnects after a lost connection.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_events(const Invocation& invocation, Console& console);

}  // namespace portway

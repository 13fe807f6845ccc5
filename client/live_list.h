// Listings of instances and forwards: once, or with --watch again whenever an event says that something has
// changed.
#pragma once

#include "client/command.h"

namespace portway {

/// The command's list. With --watch, a list that follows the node's events until it is interrupted: it is
/// printed when it has changed, on a terminal in place of the one before. After a lost connection or a
/// restart of the daemon it goes on.
Outcome<void> run_list(const Invocation& invocation, Console& console);

}  // namespace portway

// `portway node upgrade`: has the daemon replaced by the binary that is installed now, and waits until the
// new process serves or the old one continues.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_upgrade(const Invocation& invocation, Console& console);

}  // namespace portway

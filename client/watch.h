// `portway forwards watch`: lists an instance's forwards at regular intervals, by default every two
// seconds. It polls instead of following events because traffic counters change without an event.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_watch(const Invocation& invocation, Console& console);

}  // namespace portway

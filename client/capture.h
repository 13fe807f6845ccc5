// `portway forwards capture`: the packets of one forward, as a pcap file.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_capture(const Invocation& invocation, Console& console);

}  // namespace portway

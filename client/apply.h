// `portway apply`: makes the forwards of instances what a file says.
#pragma once

#include "client/command.h"

namespace portway {

/// The file is {"instances": {"vm-1": {"port_forwards": [{"guest_port": 3000, "label": "web"}]}}}; the
/// entries are those of PUT /instances/{id}/port-forwards. Each instance is changed as a whole or not at all.
/// One that cannot be does not keep the others from it, and makes the command fail.
Outcome<void> run_apply(const Invocation& invocation, Console& console);

}  // namespace portway

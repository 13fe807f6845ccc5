// portway healthcheck: does the daemon answer? For Docker's HEALTHCHECK and Kubernetes' exec probes.
#pragma once

#include "client/command.h"

namespace portway {

/// Without a key. Every failure is Exit::kRefused, 1: Docker reserves the other codes.
Outcome<void> run_healthcheck(const Invocation& invocation, Console& console);

}  // namespace portway

// `portway version`: the client's version and, where one answers, the server's.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_version(const Invocation& invocation, Console& console);

}  // namespace portway

// `portway version`: the client's version and, if the server answers, the server's version.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_version(const Invocation& invocation, Console& console);

}  // namespace portway

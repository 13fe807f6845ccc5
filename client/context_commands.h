// `portway context`: which servers have a name, and which one is in use.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_context_list(const Invocation& invocation, Console& console);
Outcome<void> run_context_use(const Invocation& invocation, Console& console);
Outcome<void> run_context_show(const Invocation& invocation, Console& console);

}  // namespace portway

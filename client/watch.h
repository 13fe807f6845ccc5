// `portway forwards watch`: lists an instance's forwards again and again, every two seconds unless told
// otherwise. It asks instead of following events because what a forward carries changes without one.
#pragma once

#include "client/command.h"

namespace portway {

Outcome<void> run_watch(const Invocation& invocation, Console& console);

}  // namespace portway

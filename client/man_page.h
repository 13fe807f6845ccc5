// Manual pages, generated from the table of commands and the table of configuration keys when Portway is
// built. portwayd(8) is written by hand: portwayd.8.
#pragma once

#include <string>

#include "client/command.h"

namespace portway {

/// portway(1), in troff's man macros.
std::string client_man_page();
/// portway.toml(5).
std::string config_man_page();

Outcome<void> run_man_page(const Invocation& invocation, Console& console);

}  // namespace portway

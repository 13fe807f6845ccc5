// From words to an invocation: the command line, checked against the table of commands.
#pragma once

#include <optional>
#include <span>

#include "client/command.h"

namespace portway {

struct Parsed {
  std::optional<Invocation> invocation;  // nothing: help or an error was printed,
  Exit exit = Exit::kDone;               // and this is the exit code
};

/// `words` without the program's name.
Parsed parse_command_line(std::span<const std::string> words, const Environment& environment,
                          Console& console);

/// The whole program: parses, runs the command, tells a failure on `err`. Returns the exit code.
int run_client(std::span<const std::string> words, const Environment& environment, Console& console);

}  // namespace portway

// Parses the command line into an invocation, checked against the table of commands.
#pragma once

#include <optional>
#include <span>

#include "client/command.h"

namespace portway {

struct Parsed {
  /// Empty if help or an error was printed; then `exit` is the exit code.
  std::optional<Invocation> invocation;
  Exit exit = Exit::kDone;
};

/// `words` without the program's name.
Parsed parse_command_line(std::span<const std::string> words, const Environment& environment,
                          Console& console);

/// The whole program: parses, runs the command and reports a failure on `err`. Returns the exit code.
int run_client(std::span<const std::string> words, const Environment& environment, Console& console);

}  // namespace portway

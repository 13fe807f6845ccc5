// Completion scripts for shells, generated from the table of commands.
#pragma once

#include <string>
#include <string_view>

#include "client/command.h"

namespace portway {

/// `shell` is bash, zsh or fish.
std::string completion_script(std::string_view shell);

/// Prints ids for a completion, one per line, at most 200, from the server that the environment names, within
/// three seconds. Prints nothing, not even an error, if they are not available.
Outcome<void> run_complete_ids(const Invocation& invocation, Console& console);

Outcome<void> run_completion(const Invocation& invocation, Console& console);

}  // namespace portway

// Completion scripts for shells, made from the table of commands.
#pragma once

#include <string>
#include <string_view>

#include "client/command.h"

namespace portway {

/// `shell` is bash, zsh or fish.
std::string completion_script(std::string_view shell);

Outcome<void> run_completion(const Invocation& invocation, Console& console);

}  // namespace portway

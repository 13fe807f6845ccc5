// Completion scripts for shells, made from the table of commands.
#pragma once

#include <string>
#include <string_view>

#include "client/command.h"

namespace portway {

/// `shell` is bash, zsh or fish.
std::string completion_script(std::string_view shell);

/// Ids for a completion: a line each, 200 at most, from the server that the environment names, within three
/// seconds. Nothing, and no word, where they cannot be had.
Outcome<void> run_complete_ids(const Invocation& invocation, Console& console);

Outcome<void> run_completion(const Invocation& invocation, Console& console);

}  // namespace portway

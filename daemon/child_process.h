// Starts and ends processes of this program.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace portway {

/// Of a process; empty if it has ended or cannot be seen.
std::vector<std::string> command_line_of(pid_t process);

/// The file that this process was started from, which may have been replaced since. If it was started by the
/// path of a link, as to the file of a version, it is the link: that may lead elsewhere by now. Call it at
/// the start.
std::string installed_program();

/// Starts it with these arguments, the first of which is its name, and without blocked signals. `alone`: it
/// gets no descriptors but the standard streams. 0, with an errno in `error`, if that cannot be.
pid_t start_process(const std::string& program, std::vector<std::string> arguments, bool alone, int& error);

/// Of a child of this process.
void end_process(pid_t process);

}  // namespace portway

// The API key: from a file or the environment, never from the command line, which every process can read.
#pragma once

#include <string>

#include "client/command.h"

namespace portway {

struct Credentials {
  std::string key;      // empty when none was given: some answers need none
  std::string warning;  // what is unwise about where it is; empty when nothing
};

/// From the file of --key-file (or PORTWAY_API_KEY_FILE), else from PORTWAY_API_KEY. kUsage when the file
/// cannot be read or holds no key.
Outcome<Credentials> read_credentials(const Arguments& arguments, const Environment& environment);

}  // namespace portway

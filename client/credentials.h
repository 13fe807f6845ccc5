// The API key: from a file or the environment, never from the command line, which every process can read.
#pragma once

#include <string>

#include "client/command.h"

namespace portway {

struct Credentials {
  std::string key;      // empty if none was given: some requests need none
  std::string warning;  // why its place is insecure; empty if it is not
};

/// From the file of --key-file (or PORTWAY_API_KEY_FILE), else from PORTWAY_API_KEY. kUsage if the file
/// cannot be read or does not hold a key.
Outcome<Credentials> read_credentials(const Arguments& arguments, const Environment& environment);

}  // namespace portway

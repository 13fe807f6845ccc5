// portway, the command-line client. commands.cpp lists its commands.
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <iostream>

#include "client/command_line.h"

namespace {

portway::Environment read_environment() {
  portway::Environment environment;
  for (char** entry = ::environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::size_t equals = text.find('=');
    if (equals == std::string_view::npos) continue;
    environment.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return environment;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  portway::Console console{.out = std::cout, .err = std::cerr, .terminal = ::isatty(STDOUT_FILENO) == 1};
  try {
    return portway::run_client(words, read_environment(), console);
  } catch (const std::exception& error) {
    std::cerr << "portway: internal error: " << error.what() << "\n";
    return static_cast<int>(portway::Exit::kRefused);
  }
}

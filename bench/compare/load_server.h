// The guest's side of the load: one thread with a sink, a source and an echo.
#pragma once

#include <cstdint>

namespace portway::bench {

struct ServerPorts {
  std::uint16_t sink = 7000;
  std::uint16_t source = 7001;
  std::uint16_t echo = 7002;
};

/// Prints "ready" when it listens; runs until it is killed.
[[noreturn]] void serve(const ServerPorts& ports);

}  // namespace portway::bench

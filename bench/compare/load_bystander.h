// A bystander and its disturbances: the load of isolation.py, one thread each.
#pragma once

#include <cstdint>
#include <string>

namespace portway::bench {

struct BystanderOptions {
  std::string target;  // "198.18.0.1:8000"
  std::uint32_t connections = 4;
  double interval_s = 0.001;
  double seconds = 3;
  int watch = -1;  // a processor beside this thread's; -1: none
};

/// Exchanges a message on each connection, prints "ready", then sends 64 bytes each interval, on one
/// connection after the other, whether or not the echoes before have come. An echo's time counts from when
/// its message was due: one stall delays all messages that fall into it. Prints a JSON object, with how late
/// our own thread was.
void run_bystander(const BystanderOptions& options);

struct ChurnOptions {
  std::string target;  // "198.18.0.1:8000" or "[fd00::1]:8000"
  std::string source =
      "0.0.0.0";  // the first address to connect from, with IPv4; 0.0.0.0: the kernel's choice
  std::uint32_t sources = 1;
  std::uint32_t connections = 64;
};

/// Makes connections and closes them at once, in several sequences in parallel, until standard input ends.
/// Prints a JSON object.
void run_churn(const ChurnOptions& options);

struct HoldOptions {
  std::string target;
  std::string source = "0.0.0.0";
  std::uint32_t sources = 1;
  std::uint32_t connections = 1;
};

/// Opens the connections, prints "ready", and closes all when standard input ends. Reads nothing.
void run_hold(const HoldOptions& options);

}  // namespace portway::bench

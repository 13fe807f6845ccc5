// The client's side of the load, one thread. Each function makes its connections, warms up, measures for a
// while and prints one JSON object with what it did in that while and the processor time that passed.
#pragma once

#include <netinet/in.h>
#include <sys/types.h>

#include <cstddef>
#include <string>
#include <vector>

namespace portway::bench {

struct ClientOptions {
  sockaddr_in target{};
  std::string source = "0.0.0.0";  // the first of the addresses to connect from; 0.0.0.0: the kernel's choice
  std::uint32_t sources = 1;       // how many addresses follow on it
  std::uint32_t connections = 1;
  std::uint32_t message_bytes = 64;
  double warm_up_s = 0.3;
  double seconds = 2;
  std::vector<pid_t> subject;  // whose processor time is told
};

/// Downloads from a source, or uploads to a sink, on all connections as fast as it goes.
void run_bulk(const ClientOptions& options, bool upload);
/// Each connection sends a message, waits for all of its echo, sends the next.
void run_ping(const ClientOptions& options);
/// Each connection sends one message, reads the echo, closes; another one takes its place.
void run_close(const ClientOptions& options);
/// Opens the connections, exchanges one message on each, prints, then holds them until standard input ends.
void run_idle(const ClientOptions& options);

}  // namespace portway::bench

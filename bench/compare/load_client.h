// The client's side of the load, one thread (two if a bulk stream runs beside messages).
//
// All targets of a comparison are loaded by one process, in turn, for a slice of some tens of milliseconds
// each, over and over: a machine whose speed changes from second to second does so for all of them.
// Between two slices of a target nothing is under way.
#pragma once

#include <netinet/in.h>
#include <sys/types.h>

#include <cstddef>
#include <string>
#include <vector>

namespace portway::bench {

struct Target {
  sockaddr_in address{};
  std::string source = "0.0.0.0";  // the first of the addresses to connect from; 0.0.0.0: the kernel's choice
  std::vector<pid_t> subject;      // whose processor time is reported
};

/// "ADDRESS:PORT[,SOURCE[,PID...]]".
Target parse_target(const std::string& text);

struct ClientOptions {
  std::vector<Target> targets;
  std::vector<sockaddr_in> beside;  // of kMix: where each target's bulk stream comes from
  std::uint32_t sources = 1;        // how many addresses follow on a target's source
  std::uint32_t connections = 1;
  std::uint32_t message_bytes = 64;
  std::uint32_t slices = 40;
  double slice_s = 0.05;
  double lead_in_s =
      0.015;  // of a slice, before it counts: what the one before has left behind, and the start
};

enum class Mode {
  kDownload,  // from a source, on all connections as fast as it goes
  kUpload,    // to a sink
  kPing,      // each connection sends a message, waits for all of its echo, sends the next
  kClose,     // each connection sends one message, reads the echo, closes; another one takes its place
  kMix,       // kPing, and one download beside it
};

/// Prints a JSON array: for each target what was done in its slices and the processor time that passed, or an
/// error.
void run_in_turn(const ClientOptions& options, Mode mode);
/// Opens the connections to the first target, exchanges one message on each, prints, then holds them until
/// standard input ends.
void run_idle(const ClientOptions& options);

}  // namespace portway::bench

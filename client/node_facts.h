// The input of doctor's checks: one node, as seen in its files, its daemon and a few system calls. Tests
// build their own.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/capabilities.h"
#include "client/failure.h"
#include "config/config.h"

namespace portway {

/// A process whose privileges and limits are checked: a running daemon, or this process if none runs.
struct Subject {
  pid_t pid = 0;  // 0: this process
  uid_t uid = 0;
  std::vector<gid_t> groups;
  std::uint64_t capabilities = 0;     // the effective ones
  std::uint64_t descriptors_max = 0;  // RLIMIT_NOFILE: the daemon's own, or what it may raise itself to

  bool is_daemon() const { return pid != 0; }
  bool has(Capability capability) const { return (capabilities & bit_of(capability)) != 0; }
};

struct TapUser {
  std::string instance;
  std::string tap;
  std::string device = {};   // what leads to the guest, if not the tap
  std::string address = {};  // the guest's first one
};

/// What the daemon reported.
struct ApiFacts {
  std::string server;           // its URL
  std::optional<Failure> down;  // why it did not answer, or is not ready
  std::string version;          // empty if not reported
  std::string io_backend;       // empty if not reported
  std::string io_backend_reason;
  bool source_guard = false;       // guests cannot use each other's source addresses
  std::optional<Failure> refused;  // why it did not list the instances
  std::vector<TapUser> running;    // taps of the running instances, in the node's own network namespace
  std::vector<std::string> in_namespaces = {};  // running instances with a network namespace of their own
};

enum class LinkState : std::uint8_t { kMissing, kNoCarrier, kCarrier };

/// The network device's state, from the kernel (SIOCGIFFLAGS, netdevice(7)); a device that is down has no
/// carrier.
LinkState link_state(const std::string& device);

/// One node.
struct NodeFacts {
  std::filesystem::path root = "/";  // holds proc
  std::string config_file;
  bool config_found = false;
  std::optional<Error> config_error;
  Config config;                  // the defaults if the file is missing or invalid
  std::vector<Subject> subjects;  // at least one; all daemons are checked against this configuration
  ApiFacts api;
  std::function<Result<void>()> try_io_uring;
  std::function<Result<std::vector<IpAddress>>()> host_addresses;
  std::function<LinkState(const std::string& device)> link;

  /// The content of a file below root, without its trailing newline; nothing if it cannot be read.
  std::optional<std::string> text(const std::string& path) const;
  /// The first number in the file.
  std::optional<std::int64_t> number(const std::string& path) const;
  /// number("proc/sys/" + name) with dots replaced by slashes.
  std::optional<std::int64_t> sysctl(std::string name) const;
};

/// The running daemons in /proc below `root`, sorted by process id, or this process if there is none.
std::vector<Subject> find_subjects(const std::filesystem::path& root);

}  // namespace portway

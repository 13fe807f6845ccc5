// The daemon under test: portwayd in the host's namespace, with a directory of its own that outlives
// restarts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "tests/e2e/guest_network.h"
#include "tests/metrics/text_format.h"
#include "tests/support/http_client.h"
#include "tests/support/process.h"

namespace portway::test {

struct DaemonOptions {
  std::string io_backend = "auto";
  unsigned connect_timeout_ms = 5000;
  bool deny_io_uring = false;
  bool deny_pidfd = false;
  bool hide_proc = false;
  bool no_capabilities = false;
  std::string proxy = {};              // more lines of [proxy]
  bool access_log = false;             // to access.log in its directory
  std::uint64_t store_disk_bytes = 0;  // the size of a small disk for the store; 0: none
};

/// A forward as the API answered it.
struct CreatedForward {
  std::string id;
  std::string instance_id;
  std::uint16_t host_port = 0;
};

class Daemon {
 public:
  static constexpr const char* kHostname = "compute-1.test";

  /// Starts it and waits until it is ready.
  Daemon(const GuestNetwork& network, const DaemonOptions& options);
  ~Daemon();

  Process& process() { return *process_; }
  /// Where its config and its admin key are.
  const std::filesystem::path& directory() const { return directory_; }
  /// Its guests.netns_directories.
  std::filesystem::path netns_directory() const { return directory_ / "netns"; }
  /// Where its store is, as this test can reach it.
  std::filesystem::path store_directory() const;

  /// Ends it with a signal and returns how it ended; nullopt if it did not end.
  std::optional<int> stop(int signal);
  void start();
  /// start() with these from now on.
  void start(const DaemonOptions& options);
  /// SIGUSR2: another process is the daemon when this returns.
  void upgrade();
  /// Rewrites its configuration with these lines in place of [profiles]; SIGHUP makes it read that.
  void write_config(const std::string& profiles);

  /// A request of the API, with the admin key unless another is given.
  HttpResponse api(const std::string& method, const std::string& target, const std::string& body = "",
                   const std::string& key = "");

  /// Registers an instance behind the tap, as the node's orchestrator does. Fails the test if refused.
  void put_instance(const std::string& id, const std::string& guest_address = kGuestAddress,
                    const std::string& tap = kTap);
  /// Creates a forward as the product's page shows. Fails the test if refused.
  CreatedForward create_forward(const std::string& instance_id, std::uint16_t guest_port,
                                const std::string& source_mode = "auto");

  ParsedText metrics();
  /// Scrapes /metrics until the series has the value; false after ten seconds.
  bool wait_for_metric(const std::string& name, const SampleLabels& labels, double value);

 private:
  const GuestNetwork& network_;
  DaemonOptions options_;
  std::filesystem::path directory_;
  std::unique_ptr<Process> process_;
};

}  // namespace portway::test

// The daemon: owns the parts that main started, connects them, and runs them until a signal stops them.
// Control thread only.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/dispatch.h"
#include "api/http/answer_budget.h"
#include "api/resources.h"
#include "config/config.h"
#include "control/access_log.h"
#include "control/audit_log.h"
#include "control/control.h"
#include "control/node_faults.h"
#include "control/node_process.h"
#include "control/recent_closes.h"
#include "control/store.h"
#include "daemon/arguments.h"
#include "daemon/fleet_member.h"
#include "daemon/network_parts.h"
#include "daemon/succession.h"
#include "daemon/upgrade.h"
#include "daemon/watchdog.h"
#include "handover/keeper.h"
#include "lifecycle/session_watch.h"
#include "metrics/exporter.h"
#include "metrics/node_numbers.h"
#include "process/daemon_log.h"
#include "process/every.h"
#include "process/servers.h"
#include "process/signals.h"
#include "proxy/device_requests.h"
#include "proxy/proxy.h"

namespace portway {

class Daemon final : public NodeProcess {
 public:
  /// The parts that work without a control plane. Each outlives those after it.
  struct Parts {
    UnconfinedThread& unconfined;
    PassedSockets passed_sockets;
    std::unique_ptr<boost::asio::io_context> context;
    std::unique_ptr<Store> store;
    StartedReturnPath return_path;
    std::unique_ptr<ClientRefusals> client_refusals;  // may be null
    std::unique_ptr<DeviceRequests> device_requests;
    std::unique_ptr<Proxy> proxy;
    std::unique_ptr<SessionWatch> watch;
  };
  /// `config` outlives it; other parts may refer to it, too. So does `keeper`, which may be null.
  Daemon(Config& config, const Arguments& arguments, DaemonLog& log, Keeper* keeper, Parts parts);

  /// Restores the state from the store, and its forwards are served. An error is the reason to exit. Then
  /// everything of `succession` is served or gone. What else cannot start is a fault of the node: retry().
  Result<void> start(Succession& succession);

  /// Until a signal stops it.
  void run();

  ProcessStatus process_status() const override;
  Result<void> start_upgrade() override;

 private:
  void add_servers();
  std::uint64_t open_connections() const;
  void open_logs();
  void load_admin_key();
  ServerOptions server_options(const ListenAddress& listen, std::function<bool()> allows_guests);
  void end_succession(Succession& succession);
  void log_start() const;
  void stop();

  void on_stop_signal(int signal, const SignalSender& sender);
  void on_reload_signal(const SignalSender& sender);
  void on_upgrade_signal(const SignalSender& sender);
  void audit_signal(int signal, const SignalSender& sender, const Result<void>& done);
  void audit(const AuditEntry& entry);
  void on_reopen_signal();
  void prepare_upgrade(std::function<void()> then);
  void on_upgrade_failure(const std::string& why);
  Error hand_over(const Fd& successor, pid_t process);
  [[noreturn]] void leave(pid_t successor);
  Result<void> reload();

  void retry();
  void look_at_store();
  void look_after_keeper();
  void drain_closes();
  void stop_if_idle();

  void notify_systemd(const std::string& state);
  std::string status_text() const;
  void report_status();

  Config& config_;  // all parts refer to it; SIGHUP changes its live keys
  const Arguments arguments_;
  DaemonLog& log_;
  Keeper* const keeper_;
  Parts parts_;
  ApiStats stats_;
  const Timestamp began_ = now();
  HandoverStats handover_;
  std::string upgrade_failure_;
  // Of all servers.
  AnswerBudget answers_;
  AnswerBudget bodies_;
  NodeFaults faults_;
  EventHub events_;
  // Null: not configured, or it cannot be opened.
  std::unique_ptr<AccessLog> access_log_;
  std::unique_ptr<AuditLog> audit_log_;
  RecentCloses recent_closes_{config_.log.recent_connections};
  Control control_;
  FleetMember fleet_;
  NodeNumbersOf node_numbers_;
  Exporter exporter_;
  const ApiContext api_context_;
  Dispatcher api_;
  // They go first: what their clients still read comes from the above.
  Servers servers_;

  Signals signals_;
  Upgrade upgrade_;
  std::optional<Every> retries_;
  std::optional<Every> closes_;
  std::optional<Every> idle_check_;
  std::optional<Watchdog> watchdog_;
  std::chrono::steady_clock::time_point drain_deadline_;
  // How long requests may take that are under way when the daemon stops.
  std::chrono::milliseconds last_answers_{1000};
  // State not yet sent to systemd; empty: none.
  std::string pending_state_;
  std::string status_;  // STATUS=, as it was sent last
};

}  // namespace portway

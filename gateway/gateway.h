// The gateway's process: owns its parts, connects them, and runs them until a signal stops it. Without a
// state of its own: what it knows is in etcd and on the nodes. One thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "api/dispatch.h"
#include "api/http/answer_budget.h"
#include "config/config.h"
#include "control/audit_log.h"
#include "control/node_faults.h"
#include "gateway/arguments.h"
#include "gateway/context.h"
#include "gateway/shared_keys.h"
#include "gateway/shared_profiles.h"
#include "process/daemon_log.h"
#include "process/every.h"
#include "process/servers.h"
#include "process/signals.h"

namespace portway {

/// How it proves to nodes who it is, and checks who they are.
HttpTls node_tls_of(const Config::Gateway& config);

class Gateway {
 public:
  /// `config` and `log` outlive it.
  Gateway(Config& config, GatewayArguments arguments, DaemonLog& log, PassedSockets passed);
  ~Gateway();

  /// Follows the fleet, and listens. kInvalidConfig. A listener that cannot start is a fault and tried again.
  Result<void> start();

  /// Until a signal stops it.
  void run();

 private:
  void add_servers();
  Result<void> load_admin_key();
  std::string scrape() const;
  void on_reload();
  void retry();
  void look_at_fleet();
  void stop();

  Config& config_;
  const GatewayArguments arguments_;
  DaemonLog& log_;
  boost::asio::io_context context_{1};
  ApiStats stats_;
  AnswerBudget answers_;
  AnswerBudget bodies_;
  NodeFaults faults_;
  std::unique_ptr<AuditLog> audit_log_;
  FleetEvents events_;
  std::shared_ptr<Etcd> etcd_;
  std::unique_ptr<FleetFollower> fleet_;
  std::unique_ptr<NodeClient> nodes_;
  const Registry no_instances_;  // streams of a gateway are about none of its own
  std::unique_ptr<EtcdKeyAdmin> keys_;
  Uuid admin_key_id_{};
  std::unique_ptr<SharedProfiles> profiles_;
  std::unique_ptr<Streams> streams_;
  std::optional<GatewayContext> gateway_;
  std::optional<Dispatcher> api_;
  Servers servers_;  // goes first
  Signals signals_;
  std::optional<Every> retries_;
  std::optional<Every> key_ends_;
};

}  // namespace portway

// This node as a member of its fleet: what its publisher tells etcd of it, and what it does when the fleet
// has something to say, also about API keys and profiles (daemon/fleet_settings.h). Control thread only.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "control/control.h"
#include "control/events.h"
#include "control/node_faults.h"
#include "daemon/fleet_settings.h"
#include "fleet/publisher.h"
#include "metrics/node_numbers.h"

namespace portway {

class FleetMember final : private FleetNode {
 public:
  /// All of it outlives the member.
  struct Parts {
    boost::asio::io_context& context;
    const Config& config;
    Control& control;
    NodeFaults& faults;
    std::function<std::uint64_t()> connections;  // that are open
    Timestamp started_at{};
  };
  explicit FleetMember(Parts parts);
  ~FleetMember() override;

  /// Joins the fleet of the configuration, again if it was in one, or leaves it.
  void apply_config();
  /// If it could not join.
  void retry();
  /// Its record goes; what it has published stays. For as long as is_leaving(), etcd is being told.
  void leave();
  bool is_leaving() const { return is_leaving_; }
  /// The node goes down.
  void on_record();

  /// Whether a key that is not known may be one of the fleet's that has not been read yet.
  bool keys_pending() const { return !parts_.config.fleet.etcd.empty() && settings_.keys_pending(); }
  /// nullopt: the node is in no fleet.
  std::optional<FleetNumbers> numbers() const;

 private:
  NodeRecord record() const override;
  std::vector<std::string> instance_ids() const override;
  std::optional<InstanceState> instance(std::string_view id) const override;
  std::string instance_json(std::string_view id) const override;
  std::vector<ForwardId> forward_ids(std::string_view instance_id) const override;
  std::optional<std::string> forward(std::string_view instance_id, const ForwardId& id) const override;
  void on_lost(std::string_view instance_id, const Uuid& session_id, Loss loss) override;

  Result<void> join();
  void forget();
  void follow_events();
  void take(const EventSubscription::Item& item);
  void delete_instance(std::string id, const Uuid& session_id);

  const Parts parts_;
  FleetSettings settings_;
  std::unique_ptr<Publisher> publisher_;  // null: in no fleet
  std::unique_ptr<EventSubscription> events_;
  bool is_leaving_ = false;
  std::shared_ptr<void> following_;  // what was posted to read events looks whether it is this still
  bool is_awake_ = false;            // that was posted
};

}  // namespace portway

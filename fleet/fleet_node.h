// What the fleet needs of a node: the seam between the publisher and the control plane. Control thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/forward.h"

namespace portway {

/// What a node says of itself. All of it is in its record in etcd.
struct NodeRecord {
  std::string address = {};   // URL of its API, for gateways
  std::string hostname = {};  // node.public_hostname
  std::string version = {};
  Timestamp started_at{};  // the process
  bool draining = false;   // it takes nothing new: it is emptied, or goes down
  struct Capacity {
    std::uint32_t connections = 0;
    std::uint32_t host_ports = 0;

    friend bool operator==(const Capacity&, const Capacity&) = default;
  } capacity = {};
  struct Load {
    std::uint64_t instances = 0;
    std::uint64_t forwards = 0;
    std::uint64_t connections = 0;

    friend bool operator==(const Load&, const Load&) = default;
  } load = {};

  friend bool operator==(const NodeRecord&, const NodeRecord&) = default;
};

class FleetNode {
 public:
  virtual ~FleetNode() = default;

  virtual NodeRecord record() const = 0;
  /// The node's clock.
  virtual Timestamp time() const { return now(); }

  struct InstanceState {
    Uuid session_id{};
    bool running = false;
    bool moved = false;  // it has ended because another node has a newer one (Loss::kMoved)
  };
  virtual std::vector<std::string> instance_ids() const = 0;
  /// nullopt: there is none.
  virtual std::optional<InstanceState> instance(std::string_view id) const = 0;
  /// As JSON, of one that there is.
  virtual std::string instance_json(std::string_view id) const = 0;
  virtual std::vector<ForwardId> forward_ids(std::string_view instance_id) const = 0;
  /// As JSON; nullopt: there is none.
  virtual std::optional<std::string> forward(std::string_view instance_id, const ForwardId& id) const = 0;

  /// Nothing happens if the instance has another session by now.
  enum class Loss : std::uint8_t {
    kMoved,    // another node has the instance: the session ends
    kDeleted,  // the instance was deleted while this node was away: it goes
  };
  virtual void on_lost(std::string_view instance_id, const Uuid& session_id, Loss loss) = 0;
};

}  // namespace portway

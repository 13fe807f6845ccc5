// Makes a node known to its fleet by etcd: that it is alive, and what it has.
//
// The node decides what is true. Nothing on it waits for this: while etcd is away, what differs is remembered
// (fleet/publication.h), and written once it is back.
//
// - **Registration.** The node's record is on a lease, which is kept alive at a third of its TTL. If the
// lease
//   is lost (etcd was away for longer, or was restored), the node registers again. If the id is another
//   node's, this one publishes nothing until that one has gone.
// - **Listing.** After each registration, and whenever changes may have been missed, the node reads what etcd
//   has of it, and then follows that by a watch: what somebody else changes there is written again.
// - **Writing.** Each transaction needs the node's own lease on its record, and the claims of its instances
//   (fleet/claim.h).
//
// An etcd that was restored from a backup has a revision that has gone back, or has come further meanwhile.
// So everything is listed again in the one case, and in the other whenever the watch had to be opened again.
// What fails is tried again for ever, 0.2 s to 5 s apart.
//
// Control thread only.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "fleet/etcd_options.h"
#include "fleet/fleet_node.h"

namespace portway {

struct PublisherOptions {
  EtcdOptions etcd;
  std::string prefix = "/portway/";  // of all keys; ends with a slash
  std::string node_id = {};          // is_fleet_id()
  std::string identity = {};         // RegisteredNode::identity
  std::chrono::seconds lease_ttl{12};
  /// A node's record is written for its load alone at most this often.
  std::chrono::milliseconds load_period = std::chrono::seconds(60);
  /// Whether the record is there is looked at this often, and when etcd seems to have gone back.
  std::chrono::milliseconds check_period = std::chrono::minutes(5);
};

enum class FleetFault : std::uint8_t {
  kEtcd,    // it does not do what it is asked to
  kNodeId,  // another node has this one's id
  kTwin,    // another node publishes a session that this one has
  kClock,   // the node's clock is not etcd's
};
inline constexpr std::size_t kFleetFaults = 4;
/// "etcd", "node_id", "twin", "clock".
std::string_view to_string(FleetFault fault);

struct PublisherStats {
  bool registered = false;
  std::size_t pending = 0;           // keys that may differ
  std::uint64_t writes = 0;          // transactions that were carried out
  std::uint64_t writes_failed = 0;   // or perhaps were not
  std::uint64_t claims_refused = 0;  // transactions that found another claim than expected
  std::uint64_t listings = 0;
  std::uint64_t registrations = 0;
  std::uint64_t sessions_lost = 0;  // that ended because their instance is elsewhere, or was deleted there
  std::optional<std::chrono::milliseconds> clock_ahead;  // of the node, of etcd's; to within a second
};

class Publisher {
 public:
  /// `detail`: what is wrong and the remedy; empty: nothing is, any more.
  using Report = std::function<void(FleetFault fault, const std::string& detail)>;

  /// kInvalidConfig. `node` outlives it.
  static Result<std::unique_ptr<Publisher>> create(const boost::asio::any_io_executor& executor,
                                                   PublisherOptions options, FleetNode& node, Report report);
  /// What it has written stays, and its lease ends by itself: whoever comes next finds all as it is.
  ~Publisher();
  Publisher(const Publisher&) = delete;
  Publisher& operator=(const Publisher&) = delete;

  /// The node stops: nothing more is written, and its record goes at once. `done` is called when etcd has
  /// said so, or it cannot be reached; not if the publisher is destroyed before.
  void resign(std::function<void()> done);

  // What has changed on the node. Cheap.
  void on_instance(std::string_view id);
  void on_forward(std::string_view instance_id, const ForwardId& id);
  /// Anything may have.
  void on_anything();
  /// FleetNode::record() has; its load does not count.
  void on_record();

  PublisherStats stats() const;

 private:
  class State;
  explicit Publisher(std::shared_ptr<State> state);

  const std::shared_ptr<State> state_;  // shared with its coroutines
};

}  // namespace portway

// What all nodes of a fleet have published, in the shape that a gateway's answers need. Plain data: it sends
// and reads nothing (fleet/fleet_follower.h does).
//
// Of two nodes that have published one instance, the view shows that of the node with the claim. Values stay
// the text that the node has published, beside what lists select and sort by.
//
// One thread only. Pointers stay valid until the next put(), erase() or become().
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/forward.h"
#include "base/metadata.h"
#include "fleet/claim.h"
#include "fleet/fleet_keys.h"
#include "fleet/node_record.h"

namespace portway {

/// A node that is alive, or that has published something.
struct FleetViewNode {
  std::optional<RegisteredNode> registered = std::nullopt;  // as it was last; nullopt: never seen alive
  bool alive = false;
  std::size_t instances = 0;  // that are shown as its own
  std::size_t keys = 0;       // that it has published
};

struct FleetViewForward {
  std::string json;
  std::string session_id = {};  // of its instance; empty: it has not said
  std::uint16_t guest_port = 0;
  std::uint16_t host_port = 0;
  std::string label = {};
  std::string state = {};
  Metadata metadata = {};
};

/// An instance as the node has published it that has it.
struct FleetViewInstance {
  std::string id;
  std::string node;
  std::string owner;
  std::string session_id = {};
  Metadata metadata = {};
  std::string json;
  std::map<ForwardId, FleetViewForward> forwards = {};
  // Of another session, which may have been another owner's: they are over, and etcd has them still.
  std::map<ForwardId, FleetViewForward> others = {};

  bool empty() const { return json.empty() && forwards.empty() && others.empty(); }
  bool has_session(std::string_view other) const {
    return other.empty() || session_id.empty() || other == session_id;
  }
};

class FleetView {
 public:
  /// A larger value is not understood.
  static constexpr std::size_t kValueMax = std::size_t{64} << 10;

  explicit FleetView(FleetKeys keys) : keys_(std::move(keys)) {}

  /// A key of the fleet is this by now, or is no more. What is no key of the fleet, or has no good value, is
  /// as if it were not there.
  void put(std::string_view key, std::string value);
  void erase(std::string_view key);
  /// Of a key of the fleet's nodes; empty: there is none, or none that was understood. That of a node and of
  /// a claim may be spelt in another way than in etcd.
  std::string value(std::string_view key) const;
  /// Becomes what was listed. What was known of nodes that are lost stays.
  void become(FleetView listed);

  const std::map<std::string, FleetViewNode, std::less<>>& nodes() const { return nodes_; }
  /// nullptr: there is none.
  const FleetViewInstance* find_instance(std::string_view id) const;
  /// At most `limit` by id, those after `after`; of one owner, or of all when absent.
  std::vector<const FleetViewInstance*> instances(std::optional<std::string_view> owner,
                                                  std::string_view after, std::size_t limit) const;
  std::size_t instance_count() const { return shown_.size(); }

  /// All forwards, with their instances.
  using Forwards = std::map<ForwardPosition, const FleetViewInstance*>;
  const Forwards& forwards_by_creation() const { return by_creation_; }
  const Forwards& forwards_by_host_port() const { return by_host_port_; }
  std::size_t forward_count() const { return by_creation_.size(); }
  /// Keys with a value that was not understood.
  std::size_t bad_values() const { return bad_.size(); }

 private:
  /// An instance with all that is known of it.
  struct Entry {
    std::optional<Claim> claim = std::nullopt;
    std::map<std::string, FleetViewInstance, std::less<>> published = {};  // by node
    const FleetViewInstance* shown = nullptr;                              // one of `published`

    bool empty() const { return !claim && published.empty(); }
  };
  using Entries = std::map<std::string, Entry, std::less<>>;

  bool put_value(const FleetKey& key, std::string value);
  bool put_node(const FleetKey& key, std::string_view value);
  bool put_claim(const FleetKey& key, std::string_view value);
  bool put_instance(const FleetKey& key, std::string value);
  bool put_forward(const FleetKey& key, std::string value);
  void erase_value(const FleetKey& key);
  void erase_node(const FleetKey& key);
  void erase_forward(Entries::iterator at, const FleetKey& key);
  bool remove_forward(const Entry& entry, FleetViewInstance& instance, const ForwardId& id);
  void forget_key(std::string_view node_id);
  void list(const FleetViewInstance& instance, const ForwardId& id, const FleetViewForward& forward);
  void unlist(const FleetViewInstance& instance, const ForwardId& id, const FleetViewForward& forward);
  void show(Entries::iterator entry);
  void hide(Entry& entry);
  void settle(Entries::iterator entry);

  FleetKeys keys_;
  std::map<std::string, FleetViewNode, std::less<>> nodes_;
  Entries entries_;
  std::map<std::string, const FleetViewInstance*, std::less<>> shown_;            // by id
  std::map<std::string, std::set<std::string, std::less<>>, std::less<>> owned_;  // ids by owner
  Forwards by_creation_;                                                          // of what is shown
  Forwards by_host_port_;
  std::set<std::string, std::less<>> bad_;
};

}  // namespace portway

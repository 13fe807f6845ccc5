// What a node publishes, what etcd has of it, and which writes make the two agree. It decides; it sends
// nothing (fleet/publisher.h does).
//
// There is no queue of changes: what is kept is which instances and forwards may differ. So memory is bounded
// by what exists, however long etcd is away, and what has changed twice is written once. Of what is in etcd a
// hash is kept, a few bytes for each key.
//
// A transaction writes about several instances. It compares the claim of each (fleet/claim.h) with the
// revision that was read, and reads all of them if one differs; then they are judged anew.
//
// Control thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/forward.h"
#include "fleet/claim.h"
#include "fleet/etcd_values.h"
#include "fleet/fleet_keys.h"
#include "fleet/fleet_node.h"

namespace portway {

class Publication {
 public:
  // Of a transaction. etcd takes 128 operations and 1.5 MiB.
  static constexpr std::size_t kOperationsMax = 100;
  static constexpr std::size_t kInstancesMax = 25;
  static constexpr std::size_t kBytesMax = 512 * 1024;
  // Values that next_batch() compares at a time.
  static constexpr std::size_t kLooksMax = 250;

  struct Parts {
    FleetKeys keys;
    std::string node_id;
    FleetNode& node;
    /// When a session began, by etcd's clock; it may seem to lie in the future, if a clock was set meanwhile.
    std::function<Timestamp(const Uuid& session_id)> began;
    std::function<Timestamp()> now;  // by etcd's clock
  };
  explicit Publication(Parts parts) : parts_(std::move(parts)) {}

  // --- What may differ.

  /// The instance and all of its forwards.
  void mark(std::string_view instance_id);
  void mark(std::string_view instance_id, const ForwardId& id);
  /// All that the node has or etcd is known to have.
  void mark_all();
  /// About how many keys may differ, without those of a batch that was handed out.
  std::size_t pending() const;
  bool has_work() const { return !work_.empty(); }

  // --- What etcd has.

  /// A listing of the node's state begins: what was known of etcd is forgotten.
  void begin_listing();
  /// A key of the listing, or a later change of one.
  void note(const EtcdKeyValue& kv);
  void note_deleted(std::string_view key);

  // --- What to write.

  struct Item {
    std::string instance_id;
    bool whole = false;                         // it is about the instance and all of its forwards
    bool record = false;                        // about the instance
    std::vector<ForwardId> forwards = {};       // about these forwards
    bool removal = false;                       // the node does not have the instance any more
    std::int64_t claim_revision = 0;            // that the claim must have for the item to be written
    std::optional<Claim> claim = std::nullopt;  // that is written
    std::string twin = {};                      // node that must have gone as well; empty: none
  };
  struct Batch {
    EtcdTxn txn;
    std::vector<Item> items = {};
    std::size_t bytes = 0;  // of keys and values

    bool empty() const { return items.empty(); }
  };
  /// The next one; empty if there was nothing to write among what was looked at, which is bounded: pending()
  /// says whether there is more. Sessions that have lost their claims are ended here. `ended`: the lease of
  /// claims of deleted instances; without one such a deletion waits, and needs_lease() is true.
  Batch next_batch(EtcdLease ended);
  bool needs_lease() const { return needs_lease_; }
  void on_answer(const Batch& batch, const EtcdTxnAnswer& answer);
  /// It failed, or whether it was carried out is not known: what it is about is written again. If it, or its
  /// answer, was too large, the next ones are about one instance each for a while.
  void on_failure(const Batch& batch, bool was_too_large = false);

  /// Instances that another living node publishes with the same session, and that node. They are tried again
  /// when they are marked.
  void mark_twins();
  const std::map<std::string, std::string, std::less<>>& twins() const { return twins_; }
  std::uint64_t sessions_lost() const { return sessions_lost_; }

 private:
  struct KnownClaim {
    std::optional<Claim> claim = std::nullopt;  // nullopt: none, or what is there is no claim
    std::int64_t mod_revision = 0;              // 0: there is none
  };
  struct Work {
    bool whole = false;   // the instance and all of its forwards
    bool record = false;  // the instance
    std::set<ForwardId> forwards = {};
  };
  using Known = std::map<std::string, std::uint64_t, std::less<>>;
  static constexpr std::uint64_t kAnother = 0;
  /// A session of an instance that the node has or had.
  struct Held {
    Uuid session_id{};
    Timestamp began{};        // as it was reckoned first, whatever clocks do later
    bool is_dubious = false;  // it seemed to lie in the future
  };

  void add(Batch& batch, const std::string& instance_id, Work work, EtcdLease ended);
  void add_removal(Batch& batch, Item item, EtcdLease ended);
  void add_loss(Batch& batch, Item item, const FleetNode::InstanceState& state,
                const std::optional<Claim>& claim);
  void add_state(Batch& batch, Item item, Work work);
  void add_forwards(Batch& batch, Item& item, std::set<ForwardId> forwards);
  void add_item(Batch& batch, Item item);
  void put_if_it_differs(Batch& batch, std::string key, std::string value);
  void erase_all(Batch& batch, std::string_view node_id, std::string_view instance_id);
  void expect_anything(std::string_view instance_id);
  void mark_again(const Item& item);
  void on_removed(const std::string& instance_id);
  bool has_room(const Batch& batch) const;
  Claim own_claim(const std::string& instance_id, const Uuid& session_id, const std::optional<Claim>& found);
  std::optional<Claim> credible(const std::optional<Claim>& found) const;
  const KnownClaim* known_claim(std::string_view instance_id) const;
  std::vector<std::string> known_keys(std::string_view instance_id) const;
  std::optional<FleetKey> parse_own(std::string_view key) const;

  const Parts parts_;
  std::map<std::string, Work, std::less<>> work_;
  std::string next_;       // instance to look at next, so that each has its turn
  std::size_t looks_ = 0;  // left to this next_batch()
  bool needs_lease_ = false;
  // By key: hashes of the values in etcd, as its watch tells of them; kAnother: they are to be written again.
  Known known_;
  std::map<std::string, KnownClaim, std::less<>> claims_;  // of instances that the node has, as last read
  std::map<std::string, Held, std::less<>> held_;          // since the publication began
  std::map<std::string, std::string, std::less<>> twins_;
  std::size_t instances_max_ = kInstancesMax;  // of the next batch
  std::uint64_t sessions_lost_ = 0;
};

}  // namespace portway

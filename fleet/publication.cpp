#include "fleet/publication.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace portway {
namespace {

// What the date of an answer of etcd does not show.
constexpr std::chrono::seconds kDateNoise(1);

std::uint64_t hash_of(std::string_view value) {
  return std::max<std::uint64_t>(std::hash<std::string_view>()(value), 1);
}

}  // namespace

void Publication::mark(std::string_view instance_id) {
  work_[std::string(instance_id)].whole = true;
}

void Publication::mark(std::string_view instance_id, const ForwardId& id) {
  work_[std::string(instance_id)].forwards.insert(id);
}

void Publication::mark_all() {
  for (const std::string& id : parts_.node.instance_ids()) mark(id);
  for (const auto& [key, hash] : known_) {
    if (const auto parsed = parse_own(key)) mark(parsed->instance_id);
  }
}

/// A key below state/ of this node.
std::optional<FleetKey> Publication::parse_own(std::string_view key) const {
  auto parsed = parts_.keys.parse(key);
  const bool is_state =
      parsed && (parsed->kind == FleetKey::Kind::kInstance || parsed->kind == FleetKey::Kind::kForward);
  if (!is_state || parsed->node != parts_.node_id) return std::nullopt;
  return parsed;
}

std::size_t Publication::pending() const {
  std::size_t pending = 0;
  for (const auto& [id, work] : work_) pending += work.forwards.size() + (work.whole || work.record ? 1 : 0);
  return pending;
}

void Publication::mark_twins() {
  for (const auto& [id, node] : twins_) mark(id);
}

void Publication::begin_listing() {
  known_.clear();
  claims_.clear();
}

void Publication::note(const EtcdKeyValue& kv) {
  const auto parsed = parse_own(kv.key);
  if (!parsed) return;
  known_[kv.key] = hash_of(kv.value);
  if (parsed->kind == FleetKey::Kind::kForward) {
    mark(parsed->instance_id, parsed->forward);
  } else {
    work_[parsed->instance_id].record = true;
  }
}

void Publication::note_deleted(std::string_view key) {
  const auto parsed = parse_own(key);
  if (!parsed) return;
  known_.erase(std::string(key));
  if (parsed->kind == FleetKey::Kind::kForward) return mark(parsed->instance_id, parsed->forward);
  // Whoever has taken the instance deletes this record: the claim must be read again.
  claims_.erase(parsed->instance_id);
  mark(parsed->instance_id);
}

Publication::Batch Publication::next_batch(EtcdLease ended) {
  Batch batch;
  looks_ = kLooksMax;
  needs_lease_ = false;
  for (std::size_t left = work_.size(); left > 0 && has_room(batch); --left) {
    auto at = work_.lower_bound(next_);
    if (at == work_.end()) at = work_.begin();
    if (at == work_.end()) break;
    auto taken = work_.extract(at);
    next_ = taken.key() + '\0';  // the next key in order
    add(batch, taken.key(), std::move(taken.mapped()), ended);
  }
  return batch;
}

void Publication::add(Batch& batch, const std::string& instance_id, Work work, EtcdLease ended) {
  Item item{.instance_id = instance_id, .whole = work.whole, .record = work.record};
  const KnownClaim* known = known_claim(instance_id);
  item.claim_revision = known == nullptr ? 0 : known->mod_revision;
  --looks_;
  const auto state = parts_.node.instance(instance_id);
  if (!state) return add_removal(batch, std::move(item), ended);
  const auto found = known == nullptr ? std::nullopt : credible(known->claim);
  const Claim own = own_claim(instance_id, state->session_id, found);
  // A claim that was not read yet is taken for none. If there is one, the answer has it.
  const ClaimVerdict verdict = judge(own, found);
  if (verdict == ClaimVerdict::kLosing || (state->moved && verdict != ClaimVerdict::kMine)) {
    return add_loss(batch, std::move(item), *state, found);
  }
  if (verdict == ClaimVerdict::kMine) {
    return add_state(batch, std::move(item), std::move(work));
  }
  if (verdict == ClaimVerdict::kTwin) {
    if (!batch.empty()) {  // its comparison must not hold up others
      work_.insert_or_assign(instance_id, std::move(work));
      next_ = instance_id;
      looks_ = 0;
      return;
    }
    item.twin = found->node;
  }
  item.claim = own;
  item.claim->began = held_[instance_id].began;
  item.whole = work.whole = true;
  // Whoever has had it may have deleted what was here.
  if (known != nullptr) expect_anything(instance_id);
  add_state(batch, std::move(item), std::move(work));
}

/// To be judged. A session that seemed to begin in the future, which it cannot have, has nothing against the
/// claim of another node.
Claim Publication::own_claim(const std::string& instance_id, const Uuid& session_id,
                             const std::optional<Claim>& found) {
  Held& held = held_[instance_id];
  if (held.session_id != session_id) {
    const Timestamp latest = parts_.now() + kDateNoise;
    const Timestamp began = parts_.began(session_id);
    held = {.session_id = session_id, .began = std::min(began, latest), .is_dubious = began > latest};
  }
  const bool loses = held.is_dubious && found && found->node != parts_.node_id;
  return {.node = parts_.node_id, .session_id = session_id, .began = loses ? Timestamp() : held.began};
}

/// Who writes a claim reckons by etcd's clock. One of the future is no claim of this program's.
std::optional<Claim> Publication::credible(const std::optional<Claim>& found) const {
  constexpr std::chrono::minutes kTooFar(1);
  return found && found->began > parts_.now() + kTooFar ? std::nullopt : found;
}

/// The node does not have the instance any more.
void Publication::add_removal(Batch& batch, Item item, EtcdLease ended) {
  const std::string& id = item.instance_id;
  const KnownClaim* known = known_claim(id);
  const bool is_mine =
      known != nullptr && known->claim && known->claim->node == parts_.node_id && !known->claim->ended;
  if (!is_mine && known_keys(id).empty()) {
    claims_.erase(id);
    twins_.erase(id);
    held_.erase(id);
    return;
  }
  item.whole = true;
  item.removal = true;
  // Otherwise it may be another machine's that had this id. It finds no claim if it comes back, and keeps
  // what it has.
  const auto held = held_.find(id);
  const bool was_held = is_mine && held != held_.end() && held->second.session_id == known->claim->session_id;
  if (was_held && ended == EtcdLease::kNone) {
    needs_lease_ = true;
    work_[id].whole = true;
    return;
  }
  if (is_mine && !was_held) {
    batch.txn.success.emplace_back(EtcdDelete{.keys = EtcdKeys::one(parts_.keys.claim(id))});
  }
  if (was_held) {
    item.claim = known->claim;
    item.claim->ended = true;
    batch.txn.success.emplace_back(
        EtcdPut{.key = parts_.keys.claim(id), .value = to_json(*item.claim), .lease = ended});
  }
  erase_all(batch, parts_.node_id, id);
  add_item(batch, std::move(item));
}

/// Another session has the claim: this one ends, and what is published of it goes.
void Publication::add_loss(Batch& batch, Item item, const FleetNode::InstanceState& state,
                           const std::optional<Claim>& claim) {
  const std::string id = item.instance_id;
  const bool is_deleted = claim && claim->ended;
  if (state.running) ++sessions_lost_;
  if (state.running || is_deleted) {
    spdlog::warn("instance {}: session {} ends: {} ({})", id, to_string(state.session_id),
                 is_deleted ? "the instance was deleted elsewhere" : "the instance has moved",
                 claim ? to_json(*claim) : "");
    parts_.node.on_lost(id, state.session_id,
                        is_deleted ? FleetNode::Loss::kDeleted : FleetNode::Loss::kMoved);
  }
  twins_.erase(id);
  if (known_keys(id).empty()) return;
  item.whole = true;
  erase_all(batch, parts_.node_id, id);
  add_item(batch, std::move(item));
}

void Publication::add_state(Batch& batch, Item item, Work work) {
  const std::string& id = item.instance_id;
  const std::size_t before = batch.txn.success.size();
  if (item.claim) {
    batch.txn.success.emplace_back(EtcdPut{.key = parts_.keys.claim(id), .value = to_json(*item.claim)});
    const KnownClaim* known = known_claim(id);
    if (known != nullptr && known->claim && known->claim->node != parts_.node_id) {
      erase_all(batch, known->claim->node, id);
    }
  }
  if (work.whole || work.record) {
    put_if_it_differs(batch, parts_.keys.instance(parts_.node_id, id), parts_.node.instance_json(id));
  }
  if (work.whole) {
    for (const ForwardId& forward : parts_.node.forward_ids(id)) work.forwards.insert(forward);
    for (const std::string& key : known_keys(id)) {
      const auto parsed = parse_own(key);
      if (parsed->kind == FleetKey::Kind::kForward) work.forwards.insert(parsed->forward);
    }
  }
  add_forwards(batch, item, std::move(work.forwards));
  if (batch.txn.success.size() != before) add_item(batch, std::move(item));
}

/// As many as there is room for; the rest is for the next batch.
void Publication::add_forwards(Batch& batch, Item& item, std::set<ForwardId> forwards) {
  const std::string& id = item.instance_id;
  while (!forwards.empty() && has_room(batch)) {
    const ForwardId forward = *forwards.begin();
    forwards.erase(forwards.begin());
    item.forwards.push_back(forward);
    --looks_;
    std::string key = parts_.keys.forward(parts_.node_id, id, forward);
    if (auto value = parts_.node.forward(id, forward)) {
      put_if_it_differs(batch, std::move(key), std::move(*value));
    } else if (known_.contains(key)) {
      batch.bytes += key.size();
      batch.txn.success.emplace_back(EtcdDelete{.keys = EtcdKeys::one(std::move(key))});
    }
  }
  if (!forwards.empty()) work_[id].forwards.merge(forwards);
}

void Publication::add_item(Batch& batch, Item item) {
  const std::string claim = parts_.keys.claim(item.instance_id);
  batch.txn.compares.push_back({.key = claim, .number = item.claim_revision});
  if (!item.twin.empty()) {
    batch.txn.compares.push_back({.key = parts_.keys.node(item.twin), .number = 0});
    looks_ = 0;  // nothing else goes with it
  }
  batch.txn.failure.emplace_back(EtcdRange{.keys = EtcdKeys::one(claim)});
  batch.items.push_back(std::move(item));
}

void Publication::put_if_it_differs(Batch& batch, std::string key, std::string value) {
  const auto known = known_.find(key);
  if (known != known_.end() && known->second == hash_of(value)) return;
  batch.bytes += key.size() + value.size();
  batch.txn.success.emplace_back(EtcdPut{.key = std::move(key), .value = std::move(value)});
}

/// All that a node has published about an instance.
void Publication::erase_all(Batch& batch, std::string_view node_id, std::string_view instance_id) {
  batch.txn.success.emplace_back(
      EtcdDelete{.keys = EtcdKeys::one(parts_.keys.instance(node_id, instance_id))});
  batch.txn.success.emplace_back(EtcdDelete{.keys = parts_.keys.forwards(node_id, instance_id)});
}

/// What is known of its records may be out of date: all of them are written.
void Publication::expect_anything(std::string_view instance_id) {
  for (const std::string& key : known_keys(instance_id)) known_[key] = kAnother;
}

void Publication::on_answer(const Batch& batch, const EtcdTxnAnswer& answer) {
  instances_max_ = std::min(2 * instances_max_, kInstancesMax);
  for (std::size_t i = 0; i < batch.items.size(); ++i) {
    const Item& item = batch.items[i];
    const std::string& id = item.instance_id;
    if (answer.succeeded) {
      twins_.erase(id);
      if (item.removal) {
        on_removed(id);
      } else if (item.claim) {
        claims_[id] = {.claim = item.claim, .mod_revision = answer.header.revision};
      }
      continue;
    }
    const auto& kvs = std::get<EtcdRangeAnswer>(answer.answers.at(i)).kvs;
    KnownClaim& known = claims_[id] = {};
    if (!kvs.empty()) {
      known = {.claim = parse_claim(kvs.front().value), .mod_revision = kvs.front().mod_revision};
      if (!known.claim) {
        spdlog::warn("etcd key {} has a value that is no claim; it is taken over if the instance runs here",
                     kvs.front().key);
      }
    }
    if (!item.twin.empty() && known.mod_revision == item.claim_revision) {
      twins_[id] = item.twin;  // that node lives
      work_.erase(id);         // mark_twins() marks all of it
    } else {
      mark_again(item);
    }
  }
}

/// The instance was registered again meanwhile, or is no more.
void Publication::on_removed(const std::string& id) {
  claims_.erase(id);
  if (parts_.node.instance(id)) return;
  held_.erase(id);
  // What was perhaps never in etcd: no event will say that it is gone.
  for (const std::string& key : known_keys(id)) {
    if (known_[key] == kAnother) known_.erase(key);
  }
}

void Publication::on_failure(const Batch& batch, bool was_too_large) {
  if (was_too_large) instances_max_ = 1;
  for (const Item& item : batch.items) {
    // Some of it may be in etcd, and its claim may be another one by now.
    expect_anything(item.instance_id);
    mark_again(item);
    if (!item.claim) continue;
    claims_.erase(item.instance_id);
    // Otherwise a deletion would be forgotten with the claim.
    known_[parts_.keys.instance(parts_.node_id, item.instance_id)] = kAnother;
  }
}

void Publication::mark_again(const Item& item) {
  Work& work = work_[item.instance_id];
  work.whole |= item.whole;
  work.record |= item.record;
  work.forwards.insert(item.forwards.begin(), item.forwards.end());
}

bool Publication::has_room(const Batch& batch) const {
  // An instance may need a few operations before its forwards.
  constexpr std::size_t kOfAnInstance = 4;
  return batch.txn.success.size() + kOfAnInstance <= kOperationsMax && batch.items.size() < instances_max_ &&
         batch.bytes < kBytesMax && looks_ > 0;
}

const Publication::KnownClaim* Publication::known_claim(std::string_view instance_id) const {
  const auto found = claims_.find(instance_id);
  return found == claims_.end() ? nullptr : &found->second;
}

/// Of the instance's records that etcd has.
std::vector<std::string> Publication::known_keys(std::string_view instance_id) const {
  std::vector<std::string> keys;
  std::string record = parts_.keys.instance(parts_.node_id, instance_id);
  if (known_.contains(record)) keys.push_back(std::move(record));
  const EtcdKeys forwards = parts_.keys.forwards(parts_.node_id, instance_id);
  for (auto at = known_.lower_bound(forwards.key); at != known_.end() && at->first < forwards.range_end;
       ++at) {
    keys.push_back(at->first);
  }
  return keys;
}

}  // namespace portway

#include "fleet/fleet_view.h"

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>

namespace portway {
namespace {

/// The owner in an instance's JSON; nullopt: it is no instance.
std::optional<std::string> owner_in(std::string_view json) {
  boost::system::error_code error;
  const auto value = boost::json::parse(json, error);
  if (error || !value.is_object()) return std::nullopt;
  const auto* owner = value.get_object().if_contains("owner");
  if (owner == nullptr || !owner->is_string()) return std::nullopt;
  return std::string(owner->get_string());
}

bool is_json_object(std::string_view json) {
  boost::system::error_code error;
  const auto value = boost::json::parse(json, error);
  return !error && value.is_object();
}

}  // namespace

void FleetView::put(std::string_view key, std::string value) {
  const auto parsed = keys_.parse(key);
  if (!parsed) return;
  if (unlisted_) {
    if (const auto listed = unlisted_->find(key); listed != unlisted_->end()) unlisted_->erase(listed);
  }
  if (put_value(*parsed, std::move(value))) {
    if (const auto bad = bad_.find(key); bad != bad_.end()) bad_.erase(bad);
    return;
  }
  bad_.emplace(key);
  erase_value(*parsed);
}

void FleetView::erase(std::string_view key) {
  if (const auto bad = bad_.find(key); bad != bad_.end()) bad_.erase(bad);
  if (const auto parsed = keys_.parse(key)) erase_value(*parsed);
}

void FleetView::begin_listing() {
  unlisted_.emplace();
  for (const auto& [id, node] : nodes_) {
    if (node.alive) unlisted_->insert(keys_.node(id));
  }
  for (const auto& [id, entry] : entries_) {
    if (entry.claim) unlisted_->insert(keys_.claim(id));
    for (const auto& [node, published] : entry.published) {
      unlisted_->insert(keys_.instance(node, id));
      for (const auto& [forward, json] : published.forwards) {
        unlisted_->insert(keys_.forward(node, id, forward));
      }
    }
  }
  unlisted_->insert(bad_.begin(), bad_.end());
}

void FleetView::end_listing() {
  if (!unlisted_) return;
  const auto gone = std::move(*unlisted_);
  unlisted_.reset();
  for (const std::string& key : gone) erase(key);
}

const FleetViewInstance* FleetView::find_instance(std::string_view id) const {
  const auto found = shown_.find(id);
  return found == shown_.end() ? nullptr : found->second;
}

std::vector<const FleetViewInstance*> FleetView::instances(std::optional<std::string_view> owner,
                                                           std::string_view after, std::size_t limit) const {
  std::vector<const FleetViewInstance*> out;
  if (!owner) {
    for (auto at = shown_.upper_bound(after); at != shown_.end() && out.size() < limit; ++at) {
      out.push_back(at->second);
    }
    return out;
  }
  const auto owned = owned_.find(*owner);
  if (owned == owned_.end()) return out;
  const auto& ids = owned->second;
  for (auto at = ids.upper_bound(after); at != ids.end() && out.size() < limit; ++at) {
    out.push_back(shown_.find(*at)->second);
  }
  return out;
}

/// False: the value is not one of its kind.
bool FleetView::put_value(const FleetKey& key, std::string value) {
  if (key.kind == FleetKey::Kind::kNode) {
    auto registered = parse_registered_node(value);
    if (!registered) return false;
    FleetViewNode& node = nodes_[key.node];
    node.registered = std::move(registered);
    node.alive = true;
    return true;
  }
  if (key.kind == FleetKey::Kind::kClaim) {
    auto claim = parse_claim(value);
    if (!claim) return false;
    const auto entry = entries_.try_emplace(key.instance_id).first;
    hide(entry->second);
    entry->second.claim = std::move(claim);
    settle(entry);
    return true;
  }
  const auto owner = key.kind == FleetKey::Kind::kInstance ? owner_in(value) : std::nullopt;
  const bool is_good = key.kind == FleetKey::Kind::kInstance ? owner.has_value() : is_json_object(value);
  if (!is_good) return false;
  const auto entry = entries_.try_emplace(key.instance_id).first;
  hide(entry->second);
  FleetViewInstance& instance = entry->second.published[key.node];
  FleetViewNode& node = nodes_[key.node];
  const bool is_instance = key.kind == FleetKey::Kind::kInstance;
  if (is_instance ? instance.json.empty() : !instance.forwards.contains(key.forward)) ++node.keys;
  if (is_instance) {
    instance.id = key.instance_id;
    instance.node = key.node;
    instance.owner = *owner;
    instance.json = std::move(value);
  } else {
    instance.forwards[key.forward] = std::move(value);
  }
  settle(entry);
  return true;
}

void FleetView::erase_value(const FleetKey& key) {
  if (key.kind == FleetKey::Kind::kNode) {
    const auto node = nodes_.find(key.node);
    if (node == nodes_.end()) return;
    node->second.alive = false;
    if (node->second.keys == 0) nodes_.erase(node);
    return;
  }
  const auto entry = entries_.find(key.instance_id);
  if (entry == entries_.end()) return;
  hide(entry->second);
  const auto published = entry->second.published.find(key.node);
  if (key.kind == FleetKey::Kind::kClaim) {
    entry->second.claim.reset();
  } else if (published != entry->second.published.end()) {
    FleetViewInstance& instance = published->second;
    const auto node = nodes_.find(key.node);
    if (key.kind == FleetKey::Kind::kInstance) {
      if (!instance.json.empty()) --node->second.keys;
      instance.json.clear();
    } else {
      node->second.keys -= instance.forwards.erase(key.forward);
    }
    if (node->second.keys == 0 && !node->second.alive) nodes_.erase(node);
    if (instance.json.empty() && instance.forwards.empty()) entry->second.published.erase(published);
  }
  settle(entry);
}

/// After a change of the entry, which was hidden.
void FleetView::settle(Entries::iterator entry) {
  if (entry->second.empty()) {
    entries_.erase(entry);
  } else {
    show(entry);
  }
}

/// What the node with the claim has published. Without a claim, what a single node has.
void FleetView::show(Entries::iterator entry) {
  const auto& [claim, published, shown] = entry->second;
  auto found = published.end();
  if (claim && !claim->ended) {
    found = published.find(claim->node);
  } else if (!claim && published.size() == 1) {
    found = published.begin();
  }
  if (found == published.end() || found->second.json.empty()) return;
  const FleetViewInstance& instance = found->second;
  entry->second.shown = &instance;
  shown_[instance.id] = &instance;
  owned_[instance.owner].insert(instance.id);
  forwards_ += instance.forwards.size();
  ++nodes_[instance.node].instances;
}

void FleetView::hide(Entry& entry) {
  if (entry.shown == nullptr) return;
  const FleetViewInstance& instance = *std::exchange(entry.shown, nullptr);
  shown_.erase(instance.id);
  forwards_ -= instance.forwards.size();
  --nodes_[instance.node].instances;
  const auto owned = owned_.find(instance.owner);
  owned->second.erase(instance.id);
  if (owned->second.empty()) owned_.erase(owned);
}

}  // namespace portway

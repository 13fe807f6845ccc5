#include "fleet/fleet_view.h"

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>

namespace portway {
namespace {

std::optional<boost::json::object> object_in(std::string_view json) {
  boost::system::error_code error;
  auto value = boost::json::parse(json, error);
  if (error || !value.is_object()) return std::nullopt;
  return std::move(value.get_object());
}

std::string text_in(const boost::json::object& object, std::string_view name) {
  const auto* value = object.if_contains(name);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

std::uint16_t port_in(const boost::json::object& object, std::string_view name) {
  const auto* value = object.if_contains(name);
  if (value == nullptr || !value->is_int64()) return 0;
  const std::int64_t number = value->get_int64();
  return number > 0 && number <= 65535 ? static_cast<std::uint16_t>(number) : std::uint16_t{0};
}

Metadata metadata_in(const boost::json::object& object) {
  Metadata metadata;
  const auto* value = object.if_contains("metadata");
  if (value == nullptr || !value->is_object()) return metadata;
  for (const auto& [key, each] : value->get_object()) {
    if (each.is_string()) metadata.emplace(key, each.get_string());
  }
  return metadata;
}

/// API keys and profiles are no state of the fleet's nodes.
bool is_shown(FleetKey::Kind kind) {
  return kind != FleetKey::Kind::kApiKey && kind != FleetKey::Kind::kProfile;
}

}  // namespace

void FleetView::put(std::string_view key, std::string value) {
  const auto parsed = keys_.parse(key);
  if (!parsed || !is_shown(parsed->kind)) return;
  if (value.size() <= kValueMax && put_value(*parsed, std::move(value))) {
    if (const auto bad = bad_.find(key); bad != bad_.end()) bad_.erase(bad);
    return;
  }
  bad_.emplace(key);
  erase_value(*parsed);
}

void FleetView::erase(std::string_view key) {
  if (const auto bad = bad_.find(key); bad != bad_.end()) bad_.erase(bad);
  const auto parsed = keys_.parse(key);
  if (parsed && is_shown(parsed->kind)) erase_value(*parsed);
}

std::string FleetView::value(std::string_view key) const {
  const auto parsed = keys_.parse(key);
  if (!parsed || !is_shown(parsed->kind)) return {};
  if (parsed->kind == FleetKey::Kind::kNode) {
    const auto node = nodes_.find(parsed->node);
    return node != nodes_.end() && node->second.alive ? to_json(*node->second.registered) : std::string();
  }
  const auto entry = entries_.find(parsed->instance_id);
  if (entry == entries_.end()) return {};
  if (parsed->kind == FleetKey::Kind::kClaim) {
    return entry->second.claim ? to_json(*entry->second.claim) : std::string();
  }
  const auto published = entry->second.published.find(parsed->node);
  if (published == entry->second.published.end()) return {};
  if (parsed->kind == FleetKey::Kind::kInstance) return published->second.json;
  for (const auto* forwards : {&published->second.forwards, &published->second.others}) {
    if (const auto found = forwards->find(parsed->forward); found != forwards->end())
      return found->second.json;
  }
  return {};
}

void FleetView::become(FleetView listed) {
  for (auto& [id, node] : listed.nodes_) {
    const auto before = nodes_.find(id);
    if (!node.registered && before != nodes_.end()) node.registered = std::move(before->second.registered);
  }
  *this = std::move(listed);
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
  switch (key.kind) {
    case FleetKey::Kind::kNode:
      return put_node(key, value);
    case FleetKey::Kind::kClaim:
      return put_claim(key, value);
    case FleetKey::Kind::kInstance:
      return put_instance(key, std::move(value));
    case FleetKey::Kind::kForward:
      return put_forward(key, std::move(value));
    case FleetKey::Kind::kApiKey:
    case FleetKey::Kind::kProfile:
      break;  // put() leaves them out
  }
  return true;
}

bool FleetView::put_node(const FleetKey& key, std::string_view value) {
  auto registered = parse_registered_node(value);
  if (!registered) return false;
  FleetViewNode& node = nodes_[key.node];
  node.registered = std::move(registered);
  node.alive = true;
  return true;
}

bool FleetView::put_claim(const FleetKey& key, std::string_view value) {
  auto claim = parse_claim(value);
  if (!claim) return false;
  const auto entry = entries_.try_emplace(key.instance_id).first;
  hide(entry->second);
  entry->second.claim = std::move(claim);
  settle(entry);
  return true;
}

bool FleetView::put_instance(const FleetKey& key, std::string value) {
  const auto object = object_in(value);
  if (!object || !object->contains("owner") || !object->at("owner").is_string()) return false;
  const auto entry = entries_.try_emplace(key.instance_id).first;
  hide(entry->second);
  FleetViewInstance& instance = entry->second.published[key.node];
  if (instance.json.empty()) ++nodes_[key.node].keys;
  instance.id = key.instance_id;
  instance.node = key.node;
  instance.owner = text_in(*object, "owner");
  instance.metadata = metadata_in(*object);
  instance.json = std::move(value);
  if (std::string session = text_in(*object, "session_id"); session != instance.session_id) {
    instance.session_id = std::move(session);
    instance.others.merge(instance.forwards);
    for (auto at = instance.others.begin(); at != instance.others.end();) {
      const auto forward = at++;
      if (instance.has_session(forward->second.session_id))
        instance.forwards.insert(instance.others.extract(forward));
    }
  }
  settle(entry);
  return true;
}

bool FleetView::put_forward(const FleetKey& key, std::string value) {
  const auto object = object_in(value);
  if (!object) return false;
  const auto at = entries_.try_emplace(key.instance_id).first;
  Entry& entry = at->second;
  if (!entry.published.contains(key.node)) {  // without a claim, it matters how many nodes have something
    hide(entry);
    entry.published[key.node];
    settle(at);
  }
  FleetViewInstance& instance = entry.published[key.node];
  const bool is_new = !remove_forward(entry, instance, key.forward);
  if (is_new) ++nodes_[key.node].keys;
  FleetViewForward forward{.json = std::move(value),
                           .session_id = text_in(*object, "session_id"),
                           .guest_port = port_in(*object, "guest_port"),
                           .host_port = port_in(*object, "host_port"),
                           .label = text_in(*object, "label"),
                           .state = text_in(*object, "state"),
                           .metadata = metadata_in(*object)};
  const bool is_of_session = instance.has_session(forward.session_id);
  auto& place = is_of_session ? instance.forwards : instance.others;
  const auto put = place.emplace(key.forward, std::move(forward)).first;
  if (entry.shown == &instance && is_of_session) list(instance, key.forward, put->second);
  return true;
}

/// False: there is none.
bool FleetView::remove_forward(const Entry& entry, FleetViewInstance& instance, const ForwardId& id) {
  const auto found = instance.forwards.find(id);
  if (found == instance.forwards.end()) return instance.others.erase(id) != 0;
  if (entry.shown == &instance) unlist(instance, id, found->second);
  instance.forwards.erase(found);
  return true;
}

void FleetView::erase_value(const FleetKey& key) {
  if (key.kind == FleetKey::Kind::kNode) return erase_node(key);
  const auto entry = entries_.find(key.instance_id);
  if (entry == entries_.end()) return;
  if (key.kind == FleetKey::Kind::kForward) {
    return erase_forward(entry, key);
  }
  hide(entry->second);
  const auto published = entry->second.published.find(key.node);
  if (key.kind == FleetKey::Kind::kClaim) {
    entry->second.claim.reset();
  } else if (published != entry->second.published.end()) {
    FleetViewInstance& instance = published->second;
    if (!instance.json.empty()) forget_key(key.node);
    instance.json.clear();
    instance.session_id.clear();
    if (instance.empty()) entry->second.published.erase(published);
  }
  settle(entry);
}

void FleetView::erase_node(const FleetKey& key) {
  const auto node = nodes_.find(key.node);
  if (node == nodes_.end()) return;
  node->second.alive = false;
  if (node->second.keys == 0) nodes_.erase(node);
}

void FleetView::erase_forward(Entries::iterator at, const FleetKey& key) {
  Entry& entry = at->second;
  const auto published = entry.published.find(key.node);
  if (published == entry.published.end()) return;
  FleetViewInstance& instance = published->second;
  if (!remove_forward(entry, instance, key.forward)) return;
  forget_key(key.node);
  if (!instance.empty()) return;
  hide(entry);
  entry.published.erase(published);
  settle(at);
}

void FleetView::forget_key(std::string_view node_id) {
  const auto node = nodes_.find(node_id);
  if (--node->second.keys == 0 && !node->second.alive) nodes_.erase(node);
}

/// An id that another instance has as well, by a node's mistake, stays that one's.
void FleetView::list(const FleetViewInstance& instance, const ForwardId& id,
                     const FleetViewForward& forward) {
  by_creation_.try_emplace({.id = id}, &instance);
  by_host_port_.try_emplace({.host_port = forward.host_port, .id = id}, &instance);
}

void FleetView::unlist(const FleetViewInstance& instance, const ForwardId& id,
                       const FleetViewForward& forward) {
  const auto remove = [&](Forwards& forwards, const ForwardPosition& position) {
    const auto found = forwards.find(position);
    if (found != forwards.end() && found->second == &instance) forwards.erase(found);
  };
  remove(by_creation_, {.id = id});
  remove(by_host_port_, {.host_port = forward.host_port, .id = id});
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
  for (const auto& [id, forward] : instance.forwards) list(instance, id, forward);
  ++nodes_[instance.node].instances;
}

void FleetView::hide(Entry& entry) {
  if (entry.shown == nullptr) return;
  const FleetViewInstance& instance = *std::exchange(entry.shown, nullptr);
  shown_.erase(instance.id);
  for (const auto& [id, forward] : instance.forwards) unlist(instance, id, forward);
  --nodes_[instance.node].instances;
  const auto owned = owned_.find(instance.owner);
  owned->second.erase(instance.id);
  if (owned->second.empty()) owned_.erase(owned);
}

}  // namespace portway

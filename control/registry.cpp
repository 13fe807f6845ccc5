#include "control/registry.h"

#include <cassert>
#include <utility>

namespace portway {

const Instance* Registry::find_instance(std::string_view id) const {
  const auto found = instances_.find(id);
  return found == instances_.end() ? nullptr : &found->second.instance;
}

const Forward* Registry::find_forward(const ForwardId& id) const {
  const auto found = instance_of_.find(id);
  return found == instance_of_.end() ? nullptr : &found->second->forwards.at(id);
}

std::vector<const Instance*> Registry::instances(std::optional<std::string_view> owner,
                                                 std::string_view after, std::size_t limit,
                                                 const std::function<bool(const Instance&)>& admits) const {
  std::vector<const Instance*> page;
  for (auto it = instances_.upper_bound(after); it != instances_.end() && page.size() < limit; ++it) {
    const Instance& instance = it->second.instance;
    if (owner && instance.owner != *owner) continue;
    if (!admits || admits(instance)) page.push_back(&instance);
  }
  return page;
}

std::vector<const Forward*> Registry::forwards(std::string_view instance_id, const ForwardId& after,
                                               std::size_t limit) const {
  std::vector<const Forward*> page;
  const auto found = instances_.find(instance_id);
  if (found == instances_.end()) return page;
  const auto& forwards = found->second.forwards;
  for (auto it = forwards.upper_bound(after); it != forwards.end() && page.size() < limit; ++it) {
    page.push_back(&it->second);
  }
  return page;
}

void Registry::forwards_after(const ForwardPlace& place,
                              const std::function<bool(const Forward&)>& visit) const {
  for (auto entry = instances_.lower_bound(place.instance_id); entry != instances_.end(); ++entry) {
    const auto& forwards = entry->second.forwards;
    auto next = entry->first == place.instance_id ? forwards.upper_bound(place.id) : forwards.begin();
    for (; next != forwards.end(); ++next) {
      if (!visit(next->second)) return;
    }
  }
}

std::size_t Registry::forward_count(std::string_view instance_id) const {
  const auto found = instances_.find(instance_id);
  return found == instances_.end() ? 0 : found->second.forwards.size();
}

const Instance& Registry::put_instance(Instance instance) {
  const auto [place, is_new] = instances_.try_emplace(instance.id);
  Instance& known = place->second.instance;
  if (!is_new) forget_tap(known);
  known = std::move(instance);
  note_tap(known);
  return known;
}

bool Registry::has_tap(std::int32_t link, std::string_view name) const {
  return armed_links_.contains(link) || unarmed_taps_.contains(name) || devices_.contains(name);
}

namespace {

/// The node's interfaces behind which a guest is.
struct LinksOfNode {
  std::int32_t armed_link = 0;       // 0: none
  const std::string* tap = nullptr;  // until it is armed
  const std::string* device = nullptr;
};

LinksOfNode links_of_node(const Instance& instance) {
  LinksOfNode links;
  const bool running = instance.state == InstanceState::kRunning;
  if (tap_netns_of(instance).empty()) {
    links.armed_link = instance.tap_index;
    if (instance.tap_index == 0 && running && !instance.tap.empty()) links.tap = &instance.tap;
  }
  const bool has_device = !instance.device.empty() && instance.device != kByRoute;
  if (running && has_device && instance.netns.empty()) links.device = &instance.device;
  return links;
}

}  // namespace

void Registry::note_tap(const Instance& instance) {
  const LinksOfNode links = links_of_node(instance);
  if (links.armed_link != 0) armed_links_.insert(links.armed_link);
  if (links.tap != nullptr) unarmed_taps_.insert(*links.tap);
  if (links.device != nullptr) devices_.insert(*links.device);
}

void Registry::forget_tap(const Instance& instance) {
  const LinksOfNode links = links_of_node(instance);
  if (links.armed_link != 0) armed_links_.erase(armed_links_.find(links.armed_link));
  if (links.tap != nullptr) unarmed_taps_.erase(unarmed_taps_.find(*links.tap));
  if (links.device != nullptr) devices_.erase(devices_.find(*links.device));
}

std::vector<Forward> Registry::remove_instance(std::string_view id) {
  const auto found = instances_.find(id);
  if (found == instances_.end()) return {};
  std::vector<Forward> removed = take_forwards(found->second);
  forget_tap(found->second.instance);
  instances_.erase(found);
  return removed;
}

const Forward& Registry::update_forward(Forward forward) {
  const auto entry = instance_of_.find(forward.id);
  assert(entry != instance_of_.end() && entry->second->instance.id == forward.instance_id);
  Forward& known = entry->second->forwards.at(forward.id);
  known = std::move(forward);
  return known;
}

const Forward& Registry::add_forward(Forward forward) {
  const auto instance = instances_.find(forward.instance_id);
  assert(instance != instances_.end());
  Entry& entry = instance->second;
  const ForwardId id = forward.id;
  const auto [added, is_new] = entry.forwards.emplace(id, std::move(forward));
  assert(is_new);
  instance_of_.emplace(id, &entry);
  return added->second;
}

std::optional<Forward> Registry::remove_forward(const ForwardId& id) {
  const auto found = instance_of_.find(id);
  if (found == instance_of_.end()) return std::nullopt;
  auto removed = found->second->forwards.extract(id);
  instance_of_.erase(found);
  return std::move(removed.mapped());
}

std::vector<Forward> Registry::remove_forwards(std::string_view instance_id) {
  const auto found = instances_.find(instance_id);
  return found == instances_.end() ? std::vector<Forward>() : take_forwards(found->second);
}

std::vector<Forward> Registry::take_forwards(Entry& entry) {
  std::vector<Forward> taken;
  taken.reserve(entry.forwards.size());
  for (auto& [id, forward] : entry.forwards) {
    instance_of_.erase(id);
    taken.push_back(std::move(forward));
  }
  entry.forwards.clear();
  return taken;
}

}  // namespace portway

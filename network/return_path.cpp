#include "network/return_path.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "network/netlink.h"
#include "network/return_path_checks.h"

namespace portway {
namespace {

const std::string kNoFault;

}  // namespace

Result<std::unique_ptr<ReturnPath>> ReturnPath::start(Kind wanted, const ReturnPathSettings& settings,
                                                      std::unique_ptr<SteerProgram> program) {
  auto lock = take_return_path_lock();
  if (!lock) return lock.error();
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  if (auto done = settings.succeeds ? remove_filters(**netlink) : remove_everything(**netlink); !done)
    return done.error();
  std::string why_rules = "it was asked for";
  if (wanted == Kind::kRules) {
    program.reset();
  } else if (program) {
    why_rules.clear();
  } else {
    auto loaded = SteerProgram::load(std::uint32_t{1} << settings.mark_bit);
    if (!loaded && wanted == Kind::kGuardOnly) return loaded.error();
    if (loaded) {
      program = std::move(*loaded);
      why_rules.clear();
    } else {
      why_rules = loaded.error().detail;
    }
  }
  // With CAP_SYS_ADMIN a program loads that nothing can be attached to without CAP_NET_ADMIN.
  if (const auto tried = try_rules(**netlink, settings.table); !tried) {
    if (program) return tried.error();
    return Error{.code = ErrorCode::kResourceExhausted, .detail = why_rules};
  }
  const Kind kind = program ? wanted : Kind::kRules;
  std::unique_ptr<ReturnPath> path(
      new ReturnPath(std::move(*lock), kind, settings, std::move(program), std::move(why_rules)));
  const auto own = path->sites_.try_emplace(0, kind, settings, path->program_.get(), std::move(*netlink));
  if (auto done = own.first->second.prepare(); !done) return done.error();
  return path;
}

void ReturnPath::end_succession() {
  settings_.succeeds = false;
  for (auto& [space, site] : sites_) site.end_succession();
}

void ReturnPath::remove_all_left() {
  const auto lock = take_return_path_lock();
  if (!lock) return;  // another one's
  if (const auto netlink = Netlink::open()) (void)remove_everything(**netlink);
}

Result<void> ReturnPath::hold_again() {
  auto lock = take_return_path_lock();
  if (!lock) return lock.error();
  lock_ = std::move(*lock);
  return {};
}

/// Of a namespace; it gets one with its first guest.
std::uint32_t ReturnPath::space_of(const NetworkNamespace::Ptr& netns) {
  if (!netns) return 0;
  const auto [known, added] = spaces_.try_emplace(netns.get(), last_space_ + 1);
  if (added) {
    ++last_space_;
    sites_.try_emplace(last_space_, kind_, settings_, program_.get(), netns, last_space_);
  }
  return known->second;
}

Way ReturnPath::add(const GuestPlace& place, const std::vector<IpAddress>& addresses) {
  const Way way{.link = place.link, .generation = ++generations_, .space = space_of(place.netns)};
  sites_.at(way.space).add(place, way.generation, addresses);
  return way;
}

bool ReturnPath::is_bridge_port(const GuestPlace& place) {
  std::optional<Result<InNamespace>> inside;
  if (place.netns && !inside.emplace(place.netns->enter())) return false;
  const auto netlink = Netlink::open();
  return netlink && find_bridge(**netlink, place.link, place.bridge);
}

Way ReturnPath::change_addresses(const Way& way, const std::vector<IpAddress>& addresses) {
  ReturnPathSite* site = find(way);
  if (site == nullptr || site->change_addresses(way.link, way.generation, addresses)) return way;
  return add(site->place_of(way.link), addresses);
}

const ReturnPathSite* ReturnPath::find(const Way& way) const {
  const auto site = sites_.find(way.space);
  return site == sites_.end() ? nullptr : &site->second;
}

ReturnPathSite* ReturnPath::find(const Way& way) {
  return const_cast<ReturnPathSite*>(std::as_const(*this).find(way));
}

const std::string& ReturnPath::fault(const Way& way) const {
  const ReturnPathSite* site = find(way);
  return site == nullptr ? kNoFault : site->fault(way.link, way.generation);
}

const std::string& ReturnPath::fault(const Way& way, const IpAddress& address) const {
  const ReturnPathSite* site = find(way);
  return site == nullptr ? kNoFault : site->fault(way.link, way.generation, address);
}

void ReturnPath::remove(const Way& way) {
  ReturnPathSite* site = find(way);
  if (site == nullptr) return;
  site->remove(way.link, way.generation);
  if (way.space == 0 || !site->empty()) return;
  spaces_.erase(site->netns().get());
  sites_.erase(way.space);
}

Result<void> ReturnPath::remove_leftovers(const NetworkNamespace::Ptr& netns) const {
  if (spaces_.contains(netns.get())) return {};
  const auto inside = netns->enter();
  if (!inside) return inside.error();
  const auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  return remove_everything(**netlink);
}

Result<void> ReturnPath::add_port(const Way& way, std::uint16_t guest_port) {
  ReturnPathSite* site = find(way);
  return site == nullptr ? Result<void>() : site->add_port(way.link, way.generation, guest_port);
}

void ReturnPath::remove_port(const Way& way, std::uint16_t guest_port) {
  if (ReturnPathSite* site = find(way)) site->remove_port(way.link, way.generation, guest_port);
}

std::size_t ReturnPath::guests() const {
  std::size_t count = 0;
  for (const auto& [space, site] : sites_) count += site.size();
  return count;
}

std::vector<ReturnPath::Change> ReturnPath::repair(std::size_t links_max) {
  std::set<GuestLink> changed;
  bool node_checked = false;
  for (std::size_t left = std::min(links_max, guests()); left > 0;) {
    auto site = sites_.lower_bound(repaired_.space);
    if (site == sites_.end()) site = sites_.begin();
    if (site->first != repaired_.space) repaired_ = {.space = site->first, .index = 0};
    node_checked = node_checked || site->first == 0;
    left -= site->second.repair(repaired_.index, left, changed);
    if (left > 0) repaired_ = {.space = site->first + 1, .index = 0};
  }
  if (!node_checked) {
    int none = 0;
    sites_.at(0).repair(none, 0, changed);
  }
  std::vector<Change> changes;
  for (const GuestLink& link : changed) {
    const Way way{.link = link.index,
                  .generation = sites_.at(link.space).generation_of(link.index),
                  .space = link.space};
    changes.push_back({way, fault(way)});
  }
  return changes;
}

}  // namespace portway

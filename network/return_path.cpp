#include "network/return_path.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <utility>

#include "network/policy_routing.h"
#include "network/steer.h"
#include "network/traffic_control.h"

namespace portway {
namespace {

constexpr std::uint32_t kTable = 5210;
constexpr std::array kRules = {
    MarkRule{.preference = 5210, .mark = kSteerMark, .table = RT_TABLE_MAIN, .node_only = true},
    MarkRule{.preference = 5211, .mark = kSteerMark, .table = kTable, .node_only = false},
};
constexpr std::array kFamilies = {AF_INET, AF_INET6};

/// The route of a family and all rules of ours, also those that a predecessor made otherwise.
Result<void> remove_from_node(Netlink& netlink, int family) {
  auto rules = our_rules(netlink, family);
  if (!rules) return rules.error();
  for (const MarkRule& rule : *rules) {
    if (auto done = delete_rule(netlink, family, rule); !done) return done.error();
  }
  auto has_route = has_local_default(netlink, family, kTable);
  if (!has_route) return has_route.error();
  if (!*has_route) return {};
  return delete_local_default(netlink, family, kTable);
}

Result<void> remove_our_filters(Netlink& netlink, int link) {
  auto filters = our_filters(netlink, link);
  if (!filters) return filters.error();
  for (const OurFilter& filter : *filters) {
    if (auto done = delete_filter(netlink, link, filter); !done) return done.error();
  }
  return {};
}

/// What a predecessor left that did not end by itself.
Result<void> remove_everything(Netlink& netlink) {
  for (const int family : kFamilies) {
    if (auto done = remove_from_node(netlink, family); !done) return done.error();
  }
  auto links = links_with_hook(netlink);
  if (!links) return links.error();
  for (const int link : *links) {
    if (auto done = remove_our_filters(netlink, link); !done) return done.error();
  }
  return {};
}

Result<void> add_to_node(Netlink& netlink, int family) {
  // The route first: a rule to an empty table falls through to the next rule.
  if (auto done = add_local_default(netlink, family, kTable); !done) return done.error();
  for (const MarkRule& rule : kRules) {
    if (auto done = add_rule(netlink, family, rule); !done) return done.error();
  }
  return {};
}

Error missing(std::string_view what) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format(
              "return path: {} is not there after it was made; something else on this node removes or "
              "holds it (protocol 210, table 5210 and tc filter portway_steer are Portway's)",
              what)};
}

}  // namespace

Result<std::unique_ptr<ReturnPath>> ReturnPath::start() {
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  if (auto done = remove_everything(**netlink); !done) return done.error();
  auto program = SteerProgram::load();
  if (!program) return program.error();
  return std::unique_ptr<ReturnPath>(new ReturnPath(std::move(*netlink), std::move(*program)));
}

ReturnPath::ReturnPath(std::unique_ptr<Netlink> netlink, std::unique_ptr<SteerProgram> program)
    : netlink_(std::move(netlink)), program_(std::move(program)) {}

ReturnPath::~ReturnPath() {
  while (!families_.empty()) remove(families_.begin()->first);
}

Result<void> ReturnPath::add(int link, const IpAddress& guest) {
  const int family = guest.is_v4() ? AF_INET : AF_INET6;
  if (const auto known = families_.find(link); known != families_.end()) {
    // The same link with all in place takes the address. Otherwise the interface index was given to another
    // link, or somebody cleared the tap.
    if (known->second == family && verify(link, family)) return program_->set_guest(link, guest);
    remove(link);
  }
  families_.emplace(link, family);
  auto done = make(link, guest);
  if (done) done = verify(link, family);
  if (!done) remove(link);
  return done;
}

Result<void> ReturnPath::make(int link, const IpAddress& guest) {
  if (auto done = add_to_node(*netlink_, guest.is_v4() ? AF_INET : AF_INET6); !done) return done.error();
  if (auto done = program_->set_guest(link, guest); !done) return done.error();
  return add_filter(*netlink_, link, program_->fd());
}

void ReturnPath::remove(int link) {
  const auto known = families_.find(link);
  if (known == families_.end()) return;
  const int family = known->second;
  families_.erase(known);
  program_->remove_guest(link);
  // What cannot be removed now, for want of memory, does nothing without the guest in the map, and is removed
  // by the next start.
  (void)remove_our_filters(*netlink_, link);
  if (guests_of(family) == 0) (void)remove_from_node(*netlink_, family);
}

std::size_t ReturnPath::guests_of(int family) const {
  return static_cast<std::size_t>(
      std::ranges::count_if(families_, [family](const auto& entry) { return entry.second == family; }));
}

Result<void> ReturnPath::verify(int link, int family) const {
  auto rules = our_rules(*netlink_, family);
  if (!rules) return rules.error();
  for (const MarkRule& rule : kRules) {
    if (std::ranges::find(*rules, rule) == rules->end()) {
      return missing(fmt::format("rule {}", rule.preference));
    }
  }
  auto has_route = has_local_default(*netlink_, family, kTable);
  if (!has_route) return has_route.error();
  if (!*has_route) return missing("the route of table 5210");
  auto filters = our_filters(*netlink_, link);
  if (!filters) return filters.error();
  const bool attached = std::ranges::any_of(
      *filters, [this](const OurFilter& filter) { return filter.program == program_->id(); });
  if (!attached) return missing(fmt::format("the filter on link {}", link));
  return {};
}

}  // namespace portway

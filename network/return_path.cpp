#include "network/return_path.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <set>
#include <string_view>
#include <utility>

#include "network/policy_routing.h"
#include "network/return_path_checks.h"
#include "network/syn_filter.h"
#include "network/traffic_control.h"

namespace portway {
namespace {

std::uint32_t mark_of(const ReturnPathSettings& settings) {
  return std::uint32_t{1} << settings.mark_bit;
}

std::array<RoutingRule, 2> mark_rules(const ReturnPathSettings& settings) {
  const std::uint32_t mark = mark_of(settings);
  return {
      RoutingRule{.preference = settings.rule_preference - 1,
                  .table = RT_TABLE_MAIN,
                  .interface = "lo",
                  .mark = mark},
      RoutingRule{.preference = settings.rule_preference, .table = settings.table, .mark = mark},
  };
}
const std::string kNoFault;

int family_of(const IpAddress& address) {
  return address.is_v4() ? AF_INET : AF_INET6;
}

RoutingRule port_rule(const ReturnPathSettings& settings, const std::string& tap, const IpAddress& guest,
                      std::uint16_t port) {
  return {.preference = settings.rule_preference,
          .table = settings.table,
          .interface = tap,
          .source = guest,
          .source_port = port};
}

std::string to_text(const RoutingRule& rule) {
  if (rule.source_port == 0) return fmt::format("rule {}", rule.preference);
  return fmt::format("the rule for port {} of {}", rule.source_port, rule.interface);
}

Error missing(std::string_view what, std::uint32_t table) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format(
              "return path: {} is not there after it was made; something else on this node removes or "
              "holds it (protocol 210, table {} and the program and tc filter portway_steer are Portway's)",
              what, table)};
}

bool same_code(const std::vector<sock_filter>& a, const std::vector<sock_filter>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(sock_filter)) == 0;
}

/// A guest's answer to a client; `mark`: as the program has marked it.
InputPacket answer_of(int link, const IpAddress& guest, std::uint16_t port, std::uint32_t mark) {
  return {.link = link,
          .source = guest,
          .destination = guest.is_v4() ? kAnyClientV4 : kAnyClientV6,
          .mark = mark,
          .source_port = port};
}

}  // namespace

bool ReturnPath::Guest::has(int family) const {
  return std::ranges::any_of(addresses,
                             [family](const IpAddress& address) { return family_of(address) == family; });
}

const std::string& ReturnPath::Guest::fault() const {
  const auto found = std::ranges::find_if(faults, [](const std::string& fault) { return !fault.empty(); });
  return found == faults.end() ? kNoFault : *found;
}

Result<std::unique_ptr<ReturnPath>> ReturnPath::start(Kind wanted, const ReturnPathSettings& settings) {
  auto lock = take_return_path_lock();
  if (!lock) return lock.error();
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  if (auto done = remove_everything(**netlink); !done) return done.error();
  ReturnPathSettings resolved = settings;
  if (settings.rule_preference == 0) {
    const auto preference = choose_preference(**netlink);
    if (!preference) return preference.error();
    resolved.rule_preference = *preference;
  }
  std::unique_ptr<SteerProgram> program;
  std::string why_rules = "it was asked for";
  if (wanted != Kind::kRules) {
    auto loaded = SteerProgram::load(mark_of(settings));
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
  if (kind == Kind::kProgram) {
    if (auto done = check_mark(**netlink, settings.mark_bit); !done) return done.error();
  }
  std::string why_no_v6;
  if (kind != Kind::kGuardOnly) {
    if (auto tried = try_transparent(kAnyClientV4); !tried) return tried.error();
    if (auto tried = try_transparent(kAnyClientV6); !tried) why_no_v6 = tried.error().detail;
  }
  return std::unique_ptr<ReturnPath>(new ReturnPath(std::move(*lock), std::move(*netlink), resolved, kind,
                                                    std::move(program), std::move(why_rules),
                                                    std::move(why_no_v6)));
}

ReturnPath::ReturnPath(Fd lock, std::unique_ptr<Netlink> netlink, const ReturnPathSettings& settings,
                       Kind kind, std::unique_ptr<SteerProgram> program, std::string why_rules,
                       std::string why_no_v6)
    : lock_(std::move(lock)),
      netlink_(std::move(netlink)),
      settings_(settings),
      kind_(kind),
      program_(std::move(program)),
      why_rules_(std::move(why_rules)),
      why_no_v6_(std::move(why_no_v6)) {}

ReturnPath::~ReturnPath() {
  while (!guests_.empty()) take_down(guests_.begin()->first);
}

const ReturnPath::Guest* ReturnPath::find(const Way& way) const {
  const auto guest = guests_.find(way.link);
  return guest != guests_.end() && guest->second.generation == way.generation ? &guest->second : nullptr;
}

ReturnPath::Guest* ReturnPath::find(const Way& way) {
  return const_cast<Guest*>(std::as_const(*this).find(way));
}

Way ReturnPath::add(int link, const std::vector<IpAddress>& addresses) {
  Guest guest{.generation = ++generations_, .addresses = addresses};
  // A guest's program stays on its tap: without it, answers to what is still open would reach the real
  // client.
  if (const auto known = guests_.find(link); known != guests_.end()) {
    const bool same_families = std::ranges::all_of(
        kFamilies, [&](int family) { return known->second.has(family) == guest.has(family); });
    if (!program_ || !same_families) take_down(link);
  }
  Guest& added = guests_[link] = std::move(guest);
  set_up(link, added);
  return {link, added.generation};
}

void ReturnPath::set_up(int link, Guest& guest) {
  guest.faults.clear();
  const auto linked = make_link(link, guest);
  for (const IpAddress& address : guest.addresses) {
    auto done = linked;
    if (done) done = make_node(family_of(address));
    if (done) done = verify_node(family_of(address));
    if (done) done = verify_link(link, guest, address);
    guest.faults.push_back(done ? "" : done.error().detail);
  }
}

Way ReturnPath::change_addresses(const Way& way, const std::vector<IpAddress>& addresses) {
  Guest* guest = find(way);
  if (guest == nullptr) return way;
  const std::size_t others = ports() - guest->ports.size() * guest->addresses.size();
  if (others + guest->ports.size() * addresses.size() > kPortsMax) return add(way.link, addresses);
  const Guest former = *guest;
  guest->addresses = addresses;
  set_up(way.link, *guest);
  // Only now: what both have is there all the time.
  for (const IpAddress& address : former.addresses) {
    if (std::ranges::find(addresses, address) != addresses.end()) continue;
    for (const RoutingRule& rule : port_rules(former, address))
      (void)delete_rule(*netlink_, family_of(address), rule);
  }
  leave_node(former);
  return way;
}

const std::string& ReturnPath::fault(const Way& way) const {
  const Guest* guest = find(way);
  return guest == nullptr ? kNoFault : guest->fault();
}

const std::string& ReturnPath::fault(const Way& way, const IpAddress& address) const {
  const Guest* guest = find(way);
  if (guest == nullptr) return kNoFault;
  const auto known = std::ranges::find(guest->addresses, address);
  return known == guest->addresses.end()
             ? kNoFault
             : guest->faults[static_cast<std::size_t>(known - guest->addresses.begin())];
}

/// What is there already is fine.
Result<void> ReturnPath::make_node(int family) {
  if (kind_ == Kind::kGuardOnly) return {};
  // The route first: a rule to an empty table falls through to the next rule.
  auto done = add_local_default(*netlink_, family, settings_.table);
  if (kind_ == Kind::kRules) return done;
  for (const RoutingRule& rule : mark_rules(settings_)) {
    if (done) done = add_rule(*netlink_, family, rule);
  }
  return done;
}

Result<void> ReturnPath::make_link(int link, Guest& guest) {
  if (program_) return attach(link, guest);
  auto done = name_rules(link, guest);
  if (done) done = set_syn_filter(link, guest);  // before the rules whose gap it closes
  if (done) done = add_port_rules(guest);
  return done;
}

/// What is there already is fine.
Result<void> ReturnPath::add_port_rules(const Guest& guest) {
  for (const IpAddress& address : guest.addresses) {
    for (const RoutingRule& rule : port_rules(guest, address)) {
      if (auto done = add_rule(*netlink_, family_of(address), rule); !done) return done;
    }
  }
  return {};
}

Result<void> ReturnPath::attach(int link, const Guest& guest) {
  if (auto done = check_ethernet(*netlink_, link); !done) return done;
  if (auto done = program_->set_guest(link, guest.addresses, kind_ == Kind::kProgram); !done)
    return done.error();
  auto attached = is_attached(link);
  if (!attached) return attached.error();
  if (*attached || program_->attach(link)) return {};
  return add_filter(*netlink_, link, program_->fd());
}

/// Rules follow an interface's name: when it is renamed they lead nothing back, and the next one of the old
/// name would inherit them.
Result<void> ReturnPath::name_rules(int link, Guest& guest) {
  const std::string name = name_of(*netlink_, link);
  if (name.empty()) return no_such_link(link);
  if (name == guest.tap) return {};
  delete_port_rules(guest);
  guest.tap = name;
  return add_port_rules(guest);
}

/// No rule is there without it.
Result<void> ReturnPath::set_syn_filter(int link, const Guest& guest) {
  return guest.ports.empty() ? remove_our_filters(*netlink_, link)
                             : set_classic_filter(*netlink_, link, syn_filter_of(guest));
}

std::vector<sock_filter> ReturnPath::syn_filter_of(const Guest& guest) {
  std::vector<std::uint16_t> ports;
  for (const auto& [port, count] : guest.ports) ports.push_back(port);
  return make_syn_filter(ports);
}

void ReturnPath::delete_port_rules(const Guest& guest) {
  for (const IpAddress& address : guest.addresses) {
    for (const RoutingRule& rule : port_rules(guest, address))
      (void)delete_rule(*netlink_, family_of(address), rule);
  }
}

std::vector<RoutingRule> ReturnPath::port_rules(const Guest& guest, const IpAddress& address) const {
  std::vector<RoutingRule> rules;
  for (const auto& [port, count] : guest.ports)
    rules.push_back(port_rule(settings_, guest.tap, address, port));
  return rules;
}

Result<bool> ReturnPath::is_attached(int link) const {
  if (program_->is_attached(link)) return true;
  auto filters = our_filters(*netlink_, link);
  if (!filters) return filters.error();
  return std::ranges::any_of(*filters,
                             [this](const OurFilter& filter) { return filter.program == program_->id(); });
}

void ReturnPath::remove(const Way& way) {
  if (find(way) != nullptr) take_down(way.link);
}

void ReturnPath::take_down(int link) {
  const auto guest = guests_.extract(link);
  if (guest.empty()) return;
  if (program_) {
    program_->remove_guest(link);
    program_->detach(link);
  }
  delete_port_rules(guest.mapped());
  // What cannot be removed now, for want of memory, is removed by the next start. The program does nothing
  // without the guest in its map.
  if (program_ || !guest.mapped().ports.empty()) (void)remove_our_filters(*netlink_, link);
  leave_node(guest.mapped());
}

/// Removes what the node had for families that only this guest used.
void ReturnPath::leave_node(const Guest& former) {
  if (kind_ == Kind::kGuardOnly) return;
  for (const int family : kFamilies) {
    if (former.has(family) && guests_of(family) == 0)
      (void)remove_from_node(*netlink_, family, settings_.table);
  }
}

Result<void> ReturnPath::add_port(const Way& way, std::uint16_t guest_port) {
  Guest* guest = find(way);
  if (program_ || guest == nullptr) return {};
  if (const auto known = guest->ports.find(guest_port); known != guest->ports.end()) {
    ++known->second;
    return {};
  }
  if (ports() + guest->addresses.size() > kPortsMax) {
    return Error{.code = ErrorCode::kResourceExhausted,
                 .detail = fmt::format(
                     "return path: there are {} rules, one for each forwarded port of a guest's address, "
                     "which is as many as can be; give Portway CAP_BPF, it then needs none",
                     kPortsMax)};
  }
  auto done = name_rules(way.link, *guest);
  if (!done) return done;
  guest->ports.emplace(guest_port, 1);
  done = set_syn_filter(way.link, *guest);
  for (const IpAddress& address : guest->addresses) {
    if (done)
      done = add_rule(*netlink_, family_of(address), port_rule(settings_, guest->tap, address, guest_port));
    // Of two addresses, one whose way is blocked already does not cost the other one its answers.
    const bool blocked = guest->addresses.size() > 1 && !fault(way, address).empty();
    if (done && !blocked)
      done =
          check_delivery(*netlink_, settings_.rule_preference, answer_of(way.link, address, guest_port, 0));
  }
  if (!done) forget_port(way.link, *guest, guest_port);
  return done;
}

void ReturnPath::remove_port(const Way& way, std::uint16_t guest_port) {
  Guest* guest = find(way);
  if (program_ || guest == nullptr) return;
  const auto known = guest->ports.find(guest_port);
  if (known == guest->ports.end() || --known->second > 0) return;
  forget_port(way.link, *guest, guest_port);
}

void ReturnPath::forget_port(int link, Guest& guest, std::uint16_t guest_port) {
  for (const IpAddress& address : guest.addresses) {
    (void)delete_rule(*netlink_, family_of(address), port_rule(settings_, guest.tap, address, guest_port));
  }
  guest.ports.erase(guest_port);
  (void)set_syn_filter(link, guest);
}

std::vector<ReturnPath::Change> ReturnPath::repair(std::size_t links_max) {
  std::set<int> changed;
  const auto note = [&changed](int link, Guest& guest, std::size_t address, const Result<void>& done) {
    std::string fault = done ? "" : done.error().detail;
    if (fault.empty() != guest.faults[address].empty()) changed.insert(link);
    guest.faults[address] = std::move(fault);
  };
  std::map<int, Result<void>> node;
  for (const int family : kFamilies) {
    const Result<void>& done = node.emplace(family, repair_node(family)).first->second;
    if (done) continue;
    for (auto& [link, guest] : guests_) {
      for (std::size_t i = 0; i < guest.addresses.size(); ++i) {
        if (family_of(guest.addresses[i]) == family) note(link, guest, i, done);
      }
    }
  }
  for (std::size_t count = 0; count < std::min(links_max, guests_.size()); ++count) {
    auto next = guests_.upper_bound(repaired_);
    if (next == guests_.end()) next = guests_.begin();
    auto& [link, guest] = *next;
    repaired_ = link;
    for (std::size_t i = 0; i < guest.addresses.size(); ++i) {
      if (node.at(family_of(guest.addresses[i])))
        note(link, guest, i, repair_link(link, guest, guest.addresses[i]));
    }
  }
  std::vector<Change> changes;
  for (const int link : changed) {
    const Guest& guest = guests_.at(link);
    changes.push_back({{link, guest.generation}, guest.fault()});
  }
  return changes;
}

/// For the answers of one of the guest's addresses.
Result<void> ReturnPath::repair_link(int link, Guest& guest, const IpAddress& address) {
  if (verify_link(link, guest, address)) return {};
  if (auto done = make_link(link, guest); !done) return done;
  return verify_link(link, guest, address);
}

Result<void> ReturnPath::repair_node(int family) {
  if (guests_of(family) == 0 || verify_node(family)) return {};
  if (auto done = make_node(family); !done) return done;
  return verify_node(family);
}

std::size_t ReturnPath::guests_of(int family) const {
  return static_cast<std::size_t>(
      std::ranges::count_if(guests_, [family](const auto& entry) { return entry.second.has(family); }));
}

std::size_t ReturnPath::ports() const {
  std::size_t count = 0;
  for (const auto& [link, guest] : guests_) count += guest.ports.size() * guest.addresses.size();
  return count;
}

Result<void> ReturnPath::verify_node(int family) const {
  if (kind_ == Kind::kGuardOnly) return {};
  if (family == AF_INET6 && !why_no_v6_.empty()) {
    return Error{.code = ErrorCode::kResourceExhausted, .detail = why_no_v6_};
  }
  auto has_route = has_local_default(*netlink_, family, settings_.table);
  if (!has_route) return has_route.error();
  if (!*has_route) return missing(fmt::format("the route of table {}", settings_.table), settings_.table);
  if (kind_ == Kind::kRules) return {};
  auto rules = our_rules(*netlink_, family);
  if (!rules) return rules.error();
  for (const RoutingRule& wanted : mark_rules(settings_)) {
    if (std::ranges::find(*rules, wanted) == rules->end()) return missing(to_text(wanted), settings_.table);
  }
  return {};
}

/// For the answers of one of the guest's addresses.
Result<void> ReturnPath::verify_link(int link, const Guest& guest, const IpAddress& address) const {
  if (program_) {
    auto attached = is_attached(link);
    if (!attached) return attached.error();
    if (!*attached) return missing(fmt::format("the program on link {}", link), settings_.table);
  } else {
    if (name_of(*netlink_, link) != guest.tap) return no_such_link(link);  // under that name
    auto filters = our_filters(*netlink_, link);
    if (!filters) return filters.error();
    if (!guest.ports.empty() &&
        (filters->empty() || !same_code(filters->front().code, syn_filter_of(guest)))) {
      return missing(fmt::format("the filter on link {}", link), settings_.table);
    }
    auto rules = our_rules(*netlink_, family_of(address));
    if (!rules) return rules.error();
    for (const RoutingRule& wanted : port_rules(guest, address)) {
      if (std::ranges::find(*rules, wanted) == rules->end()) return missing(to_text(wanted), settings_.table);
    }
  }
  return verify_routes(link, guest, address);
}

/// The kernel is asked what it would do with the guest's answers: what is ours may be there, and something
/// else come before it.
Result<void> ReturnPath::verify_routes(int link, const Guest& guest, const IpAddress& address) const {
  if (kind_ == Kind::kGuardOnly) return {};
  if (kind_ == Kind::kProgram)
    return check_delivery(*netlink_, settings_.rule_preference,
                          answer_of(link, address, 0, mark_of(settings_)));
  for (const auto& [port, count] : guest.ports) {
    if (auto done = check_delivery(*netlink_, settings_.rule_preference, answer_of(link, address, port, 0));
        !done)
      return done;
  }
  return {};
}

}  // namespace portway

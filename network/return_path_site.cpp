#include "network/return_path_site.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>

#include "network/return_path_checks.h"
#include "network/syn_filter.h"
#include "network/traffic_control.h"

namespace portway {
namespace {

const std::string kNothingWrong;

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

std::vector<sock_filter> syn_filter_of(const std::map<std::uint16_t, std::size_t>& ports) {
  std::vector<std::uint16_t> numbers;
  numbers.reserve(ports.size());
  for (const auto& [port, count] : ports) numbers.push_back(port);
  return make_syn_filter(numbers);
}

}  // namespace

// --- The namespace.

ReturnPathSite::ReturnPathSite(ReturnPathKind kind, const ReturnPathSettings& settings, SteerProgram* program,
                               std::unique_ptr<Netlink> netlink)
    : kind_(kind),
      settings_(settings),
      wanted_preference_(settings.rule_preference),
      program_(program),
      netlink_(std::move(netlink)) {}

ReturnPathSite::ReturnPathSite(ReturnPathKind kind, const ReturnPathSettings& settings, SteerProgram* program,
                               NetworkNamespace::Ptr netns, std::uint32_t space)
    : kind_(kind),
      settings_(settings),
      wanted_preference_(settings.rule_preference),
      program_(program),
      netns_(std::move(netns)),
      space_(space) {}

ReturnPathSite::~ReturnPathSite() {
  while (!guests_.empty()) take_down(guests_.begin()->first);
}

void ReturnPathSite::end_succession() {
  settings_.succeeds = false;
  if (!prepared_) return;
  (void)inside([this](Netlink& netlink) {
    for (const int family : kFamilies) remove_others(netlink, family);
    return Result<void>();
  });
}

/// What is ours, and neither a guest's here nor common to them.
void ReturnPathSite::remove_others(Netlink& netlink, int family) {
  std::vector<RoutingRule> rules;
  std::vector<LocalDefault> routes;
  const bool has_return_path = kind_ != ReturnPathKind::kGuardOnly;
  if (guests_of(family) > 0 && kind_ == ReturnPathKind::kProgram)
    std::ranges::copy(mark_rules(settings_), std::back_inserter(rules));
  if (guests_of(family) > 0 && has_return_path && is_own()) routes.push_back({.table = settings_.table});
  for (const auto& [link, guest] : guests_) {
    if (has_return_path && !is_own()) routes.push_back({.table = settings_.table, .link = link});
    for (const IpAddress& address : guest.addresses) {
      if (program_ == nullptr && family_of(address) == family)
        std::ranges::copy(port_rules(guest, address), std::back_inserter(rules));
    }
  }
  if (const auto all = our_rules(netlink, family)) {
    for (const RoutingRule& each : *all) {
      if (std::ranges::find(rules, each) == rules.end()) (void)delete_rule(netlink, family, each);
    }
  }
  if (const auto all = our_local_defaults(netlink, family)) {
    for (const LocalDefault& each : *all) {
      if (std::ranges::find(routes, each) == routes.end()) (void)delete_local_default(netlink, family, each);
    }
  }
}

/// `use` in the namespace, once that is prepared. Without `use`, only that.
Result<void> ReturnPathSite::inside(const Use& use) {
  if (is_own()) return use_prepared(*netlink_, use);
  const auto entered = netns_->enter();
  if (!entered) {
    return Error{.code = ErrorCode::kResourceExhausted, .detail = "return path: " + entered.error().detail};
  }
  const auto netlink = Netlink::open();  // closed before this thread leaves
  return here(netlink ? use_prepared(**netlink, use) : Result<void>(netlink.error()));
}

/// An error says where to look.
Result<void> ReturnPathSite::here(const Result<void>& done) const {
  if (done || is_own()) return done;
  return Error{.code = done.error().code,
               .detail = done.error().detail + " (in the guest's network namespace)"};
}

Result<void> ReturnPathSite::use_prepared(Netlink& netlink, const Use& use) {
  if (!prepared_) {
    if (auto done = settings_.succeeds ? remove_filters(netlink) : remove_everything(netlink); !done)
      return done;
    if (auto done = learn(netlink); !done) return done;
    prepared_ = true;
  }
  return use ? use(netlink) : Result<void>();
}

Result<void> ReturnPathSite::learn(Netlink& netlink) {
  if (wanted_preference_ == 0) {
    const auto preference = choose_preference(netlink);
    if (!preference) return preference.error();
    settings_.rule_preference = *preference;
  }
  if (kind_ == ReturnPathKind::kProgram) {
    if (auto done = check_mark(netlink, settings_.mark_bit); !done) return done;
  }
  why_no_v6_.clear();
  if (kind_ == ReturnPathKind::kGuardOnly) return {};
  if (auto tried = try_transparent(kAnyClientV4); !tried) return tried;
  if (auto tried = try_transparent(kAnyClientV6); !tried) why_no_v6_ = tried.error().detail;
  return {};
}

// --- Its guests.

bool ReturnPathSite::Guest::has(int family) const {
  return std::ranges::any_of(addresses,
                             [family](const IpAddress& address) { return family_of(address) == family; });
}

const std::string& ReturnPathSite::Guest::fault() const {
  const auto found = std::ranges::find_if(faults, [](const std::string& fault) { return !fault.empty(); });
  return found == faults.end() ? kNothingWrong : *found;
}

const ReturnPathSite::Guest* ReturnPathSite::find(int link, std::uint64_t generation) const {
  const auto guest = guests_.find(link);
  return guest != guests_.end() && guest->second.generation == generation ? &guest->second : nullptr;
}

ReturnPathSite::Guest* ReturnPathSite::find(int link, std::uint64_t generation) {
  return const_cast<Guest*>(std::as_const(*this).find(link, generation));
}

const std::string& ReturnPathSite::fault(int link, std::uint64_t generation) const {
  const Guest* guest = find(link, generation);
  return guest == nullptr ? kNothingWrong : guest->fault();
}

const std::string& ReturnPathSite::fault(int link, std::uint64_t generation, const IpAddress& address) const {
  const Guest* guest = find(link, generation);
  if (guest == nullptr) return kNothingWrong;
  const auto known = std::ranges::find(guest->addresses, address);
  return known == guest->addresses.end()
             ? kNothingWrong
             : guest->faults[static_cast<std::size_t>(known - guest->addresses.begin())];
}

void ReturnPathSite::add(const GuestPlace& place, std::uint64_t generation,
                         const std::vector<IpAddress>& addresses) {
  const int link = place.link;
  Guest guest{.generation = generation, .addresses = addresses, .bridge = place.bridge};
  // A guest's program stays on its tap: without it, answers to what is still open would reach the real
  // client.
  if (const auto known = guests_.find(link); known != guests_.end()) {
    const bool same_families = std::ranges::all_of(
        kFamilies, [&](int family) { return known->second.has(family) == guest.has(family); });
    if (program_ != nullptr && same_families && known->second.bridge == guest.bridge) {
      guest.input = known->second.input;
    } else {
      take_down(link);
    }
  }
  Guest& added = guests_[link] = std::move(guest);
  const auto entered = inside([&](Netlink& netlink) -> Result<void> {
    set_up(netlink, link, added);
    return {};
  });
  if (!entered) added.faults.assign(addresses.size(), entered.error().detail);
}

void ReturnPathSite::set_up(Netlink& netlink, int link, Guest& guest) {
  guest.faults.clear();
  const auto linked = make_link(netlink, link, guest);
  for (const IpAddress& address : guest.addresses) {
    auto done = linked;
    if (done) done = make_common(netlink, family_of(address));
    if (done) done = verify_common(netlink, family_of(address));
    if (done) done = verify_link(netlink, link, guest, address);
    guest.faults.push_back(done ? "" : here(done).error().detail);
  }
}

bool ReturnPathSite::change_addresses(int link, std::uint64_t generation,
                                      const std::vector<IpAddress>& addresses) {
  Guest* guest = find(link, generation);
  if (guest == nullptr) return true;
  const std::size_t others = ports() - guest->ports.size() * guest->addresses.size();
  if (others + guest->ports.size() * addresses.size() > kPortsMax) return false;
  const auto entered = inside([&](Netlink& netlink) -> Result<void> {
    change_addresses(netlink, link, *guest, addresses);
    return {};
  });
  if (entered) return true;
  guest->addresses = addresses;
  guest->faults.assign(addresses.size(), entered.error().detail);
  prepared_ = false;  // as in take_down()
  return true;
}

void ReturnPathSite::change_addresses(Netlink& netlink, int link, Guest& guest,
                                      const std::vector<IpAddress>& addresses) {
  const Guest former = guest;
  guest.addresses = addresses;
  set_up(netlink, link, guest);
  // Only now: what both have is there all the time.
  for (const IpAddress& address : former.addresses) {
    if (std::ranges::find(addresses, address) != addresses.end()) continue;
    for (const RoutingRule& rule : port_rules(former, address))
      (void)delete_rule(netlink, family_of(address), rule);
  }
  leave_families(netlink, link, former);
}

/// What is there already is fine.
Result<void> ReturnPathSite::make_common(Netlink& netlink, int family) {
  if (kind_ == ReturnPathKind::kGuardOnly) return {};
  // The route first: a rule to an empty table falls through to the next rule.
  Result<void> done;
  if (is_own()) done = add_local_default(netlink, family, {.table = settings_.table});
  if (kind_ == ReturnPathKind::kRules) return done;
  for (const RoutingRule& rule : mark_rules(settings_)) {
    if (done) done = add_rule(netlink, family, rule);
  }
  return done;
}

Result<void> ReturnPathSite::make_link(Netlink& netlink, int link, Guest& guest) {
  if (auto done = follow_input(netlink, link, guest); !done) return done;
  if (program_ != nullptr) {
    auto done = attach(netlink, link, guest);
    return done ? add_routes(netlink, link, guest) : done;
  }
  auto done = name_rules(netlink, link, guest);
  if (done) done = add_routes(netlink, link, guest);
  if (done) done = set_syn_filter(netlink, link, guest);  // before the rules whose gap it closes
  if (done) done = add_port_rules(netlink, guest);
  return done;
}

Result<void> ReturnPathSite::add_routes(Netlink& netlink, int link, const Guest& guest) {
  if (is_own() || kind_ == ReturnPathKind::kGuardOnly) return {};
  Result<void> done;
  for (const IpAddress& address : guest.addresses) {
    if (done) done = add_local_default(netlink, family_of(address), {.table = settings_.table, .link = link});
  }
  return done;
}

/// What is there already is fine.
Result<void> ReturnPathSite::add_port_rules(Netlink& netlink, const Guest& guest) {
  for (const IpAddress& address : guest.addresses) {
    for (const RoutingRule& rule : port_rules(guest, address)) {
      if (auto done = add_rule(netlink, family_of(address), rule); !done) return done;
    }
  }
  return {};
}

/// The link by which the guest's packets come into the stack.
Result<int> ReturnPathSite::find_input(Netlink& netlink, int link, const Guest& guest) const {
  return guest.bridge.empty() ? Result<int>(link) : find_bridge(netlink, link, guest.bridge);
}

/// A bridge may be created again.
Result<void> ReturnPathSite::follow_input(Netlink& netlink, int link, Guest& guest) {
  const auto input = find_input(netlink, link, guest);
  if (!input) return input.error();
  const int former = std::exchange(guest.input, *input);
  if (program_ != nullptr && former != 0 && !is_used(former)) forget_program(&netlink, former);
  return {};
}

/// Besides its own link.
bool ReturnPathSite::steers_on(int link, const Guest& guest) const {
  return guest.input != link && kind_ == ReturnPathKind::kProgram;
}

Result<void> ReturnPathSite::attach(Netlink& netlink, int link, const Guest& guest) {
  if (auto done = check_ethernet(netlink, link); !done) return done;
  const int bridge = steers_on(link, guest) ? guest.input : 0;
  if (auto done = program_->set_guest(key(link), guest.addresses, kind_ == ReturnPathKind::kProgram, bridge);
      !done)
    return done.error();
  auto done = attach_to(netlink, link);
  if (done && bridge != 0) done = attach_to(netlink, bridge);
  return done;
}

Result<void> ReturnPathSite::attach_to(Netlink& netlink, int link) {
  auto attached = is_attached(netlink, link);
  if (!attached) return attached.error();
  if (*attached) return {};
  const auto program = program_->make_attachable(key(link));
  if (!program) return program.error();
  if (program_->attach(key(link), *program)) return {};
  filters_[link] = program->id;
  return add_filter(netlink, link, program->fd.get());
}

Result<bool> ReturnPathSite::is_attached(Netlink& netlink, int link) const {
  if (program_->is_attached(key(link))) return true;
  const auto known = filters_.find(link);
  if (known == filters_.end()) return false;
  auto filters = our_filters(netlink, link);
  if (!filters) return filters.error();
  return std::ranges::find(*filters, known->second, &OurFilter::program) != filters->end();
}

bool ReturnPathSite::is_used(int input) const {
  return std::ranges::any_of(
      guests_, [input](const auto& entry) { return entry.first == input || entry.second.input == input; });
}

/// Rules follow an interface's name: when it is renamed they lead nothing back, and the next one of the old
/// name would inherit them.
Result<void> ReturnPathSite::name_rules(Netlink& netlink, int link, Guest& guest) {
  if (auto done = follow_input(netlink, link, guest); !done) return done;
  const std::string name = name_of(netlink, guest.input);
  if (name.empty()) return no_such_link(guest.input);
  if (name == guest.tap) return {};
  delete_port_rules(netlink, guest);
  guest.tap = name;
  return add_port_rules(netlink, guest);
}

/// No rule is there without it.
Result<void> ReturnPathSite::set_syn_filter(Netlink& netlink, int link, const Guest& guest) {
  return guest.ports.empty() ? remove_our_filters(netlink, link)
                             : set_classic_filter(netlink, link, syn_filter_of(guest.ports));
}

void ReturnPathSite::delete_port_rules(Netlink& netlink, const Guest& guest) {
  for (const IpAddress& address : guest.addresses) {
    for (const RoutingRule& rule : port_rules(guest, address))
      (void)delete_rule(netlink, family_of(address), rule);
  }
}

std::vector<RoutingRule> ReturnPathSite::port_rules(const Guest& guest, const IpAddress& address) const {
  std::vector<RoutingRule> rules;
  for (const auto& [port, count] : guest.ports)
    rules.push_back(port_rule(settings_, guest.tap, address, port));
  return rules;
}

void ReturnPathSite::remove(int link, std::uint64_t generation) {
  if (find(link, generation) != nullptr) take_down(link);
}

void ReturnPathSite::take_down(int link) {
  const auto done = inside([&](Netlink& netlink) -> Result<void> {
    take_down(netlink, link);
    return {};
  });
  if (done) return;
  // For want of descriptors, say. The next call that comes in removes everything, and puts back what the
  // other guests need.
  prepared_ = false;
  const auto guest = guests_.extract(link);
  if (program_ == nullptr) return;
  program_->remove_guest(key(link));
  forget_program(nullptr, link);
  if (!is_used(guest.mapped().input)) forget_program(nullptr, guest.mapped().input);
}

void ReturnPathSite::take_down(Netlink& netlink, int link) {
  const auto guest = guests_.extract(link);
  const int input = guest.mapped().input;
  if (program_ != nullptr) {
    // What cannot be removed now, for want of memory, is removed by the next start. The program does nothing
    // without the guest in its map.
    program_->remove_guest(key(link));
    forget_program(&netlink, link);
    if (!is_used(input)) forget_program(&netlink, input);
  }
  delete_port_rules(netlink, guest.mapped());
  if (!guest.mapped().ports.empty()) (void)remove_our_filters(netlink, link);
  leave_families(netlink, link, guest.mapped());
}

void ReturnPathSite::forget_program(Netlink* netlink, int link) {
  program_->detach(key(link));
  if (filters_.erase(link) > 0 && netlink != nullptr) (void)remove_our_filters(*netlink, link);
}

/// Removes what there was for families that only this guest used, and its own routes.
void ReturnPathSite::leave_families(Netlink& netlink, int link, const Guest& former) {
  if (kind_ == ReturnPathKind::kGuardOnly) return;
  const auto present = guests_.find(link);
  for (const int family : kFamilies) {
    if (!former.has(family)) continue;
    const bool last = guests_of(family) == 0;
    const bool left = present == guests_.end() || !present->second.has(family);
    if (last) (void)remove_our_rules(netlink, family);
    if (is_own() ? last : left) {
      (void)delete_local_default(netlink, family,
                                 {.table = settings_.table, .link = is_own() ? kLoopbackLink : link});
    }
  }
}

Result<void> ReturnPathSite::add_port(int link, std::uint64_t generation, std::uint16_t guest_port) {
  Guest* guest = find(link, generation);
  if (program_ != nullptr || guest == nullptr) return {};
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
  return inside([&](Netlink& netlink) { return add_port(netlink, link, *guest, guest_port); });
}

Result<void> ReturnPathSite::add_port(Netlink& netlink, int link, Guest& guest, std::uint16_t guest_port) {
  auto done = name_rules(netlink, link, guest);
  if (!done) return done;
  guest.ports.emplace(guest_port, 1);
  done = set_syn_filter(netlink, link, guest);
  for (const IpAddress& address : guest.addresses) {
    if (done)
      done = add_rule(netlink, family_of(address), port_rule(settings_, guest.tap, address, guest_port));
    // Of two addresses, one whose way is blocked already does not cost the other one its answers.
    const bool blocked = guest.addresses.size() > 1 && !fault(link, guest.generation, address).empty();
    if (done && !blocked)
      done =
          check_delivery(netlink, settings_.rule_preference, answer_of(guest.input, address, guest_port, 0));
  }
  if (!done) forget_port(netlink, link, guest, guest_port);
  return done;
}

void ReturnPathSite::remove_port(int link, std::uint64_t generation, std::uint16_t guest_port) {
  Guest* guest = find(link, generation);
  if (program_ != nullptr || guest == nullptr) return;
  const auto known = guest->ports.find(guest_port);
  if (known == guest->ports.end() || --known->second > 0) return;
  const auto done = inside([&](Netlink& netlink) -> Result<void> {
    forget_port(netlink, link, *guest, guest_port);
    return {};
  });
  if (done) return;
  guest->ports.erase(known);
  prepared_ = false;  // as in take_down()
}

void ReturnPathSite::forget_port(Netlink& netlink, int link, Guest& guest, std::uint16_t guest_port) {
  for (const IpAddress& address : guest.addresses) {
    (void)delete_rule(netlink, family_of(address), port_rule(settings_, guest.tap, address, guest_port));
  }
  guest.ports.erase(guest_port);
  (void)set_syn_filter(netlink, link, guest);
}

// --- Checks.

std::size_t ReturnPathSite::repair(int& after, std::size_t links_max, std::set<GuestLink>& changed) {
  std::size_t count = 0;
  const auto entered = inside([&](Netlink& netlink) -> Result<void> {
    std::map<int, Result<void>> common;
    for (const int family : kFamilies) {
      const Result<void>& done = common.emplace(family, repair_common(netlink, family)).first->second;
      if (done) continue;
      for (auto& [link, guest] : guests_) {
        for (std::size_t i = 0; i < guest.addresses.size(); ++i) {
          if (family_of(guest.addresses[i]) == family) note(link, guest, i, here(done), changed);
        }
      }
    }
    for (auto next = guests_.upper_bound(after); next != guests_.end() && count < links_max;
         ++next, ++count) {
      auto& [link, guest] = *next;
      after = link;
      for (std::size_t i = 0; i < guest.addresses.size(); ++i) {
        if (common.at(family_of(guest.addresses[i])))
          note(link, guest, i, here(repair_link(netlink, link, guest, guest.addresses[i])), changed);
      }
    }
    return {};
  });
  if (entered) return count;
  for (auto& [link, guest] : guests_) {
    for (std::size_t i = 0; i < guest.addresses.size(); ++i) note(link, guest, i, entered, changed);
    if (link > after) ++count;
  }
  if (!guests_.empty()) after = guests_.rbegin()->first;
  return std::min(count, links_max);
}

void ReturnPathSite::note(int link, Guest& guest, std::size_t address, const Result<void>& done,
                          std::set<GuestLink>& changed) const {
  std::string fault = done ? "" : done.error().detail;
  if (fault.empty() != guest.faults[address].empty()) changed.insert(key(link));
  guest.faults[address] = std::move(fault);
}

/// For the answers of one of the guest's addresses.
Result<void> ReturnPathSite::repair_link(Netlink& netlink, int link, Guest& guest, const IpAddress& address) {
  if (verify_link(netlink, link, guest, address)) return {};
  if (auto done = make_link(netlink, link, guest); !done) return done;
  return verify_link(netlink, link, guest, address);
}

Result<void> ReturnPathSite::repair_common(Netlink& netlink, int family) {
  if (guests_of(family) == 0 || verify_common(netlink, family)) return {};
  if (auto done = make_common(netlink, family); !done) return done;
  return verify_common(netlink, family);
}

std::size_t ReturnPathSite::guests_of(int family) const {
  return static_cast<std::size_t>(
      std::ranges::count_if(guests_, [family](const auto& entry) { return entry.second.has(family); }));
}

std::size_t ReturnPathSite::ports() const {
  std::size_t count = 0;
  for (const auto& [link, guest] : guests_) count += guest.ports.size() * guest.addresses.size();
  return count;
}

/// What all guests of the family share.
Result<void> ReturnPathSite::verify_common(Netlink& netlink, int family) const {
  if (kind_ == ReturnPathKind::kGuardOnly) return {};
  if (family == AF_INET6 && !why_no_v6_.empty()) {
    return Error{.code = ErrorCode::kResourceExhausted, .detail = why_no_v6_};
  }
  if (is_own()) {
    auto has_route = has_local_default(netlink, family, {.table = settings_.table});
    if (!has_route) return has_route.error();
    if (!*has_route) return missing(fmt::format("the route of table {}", settings_.table), settings_.table);
  }
  if (kind_ == ReturnPathKind::kRules) return {};
  auto rules = our_rules(netlink, family);
  if (!rules) return rules.error();
  for (const RoutingRule& wanted : mark_rules(settings_)) {
    if (std::ranges::find(*rules, wanted) == rules->end()) return missing(to_text(wanted), settings_.table);
  }
  return {};
}

/// For the answers of one of the guest's addresses.
Result<void> ReturnPathSite::verify_link(Netlink& netlink, int link, const Guest& guest,
                                         const IpAddress& address) const {
  const auto input = find_input(netlink, link, guest);
  if (!input) return input.error();
  if (*input != guest.input) return no_such_link(guest.input);
  if (program_ != nullptr) {
    for (const int each : {link, guest.input}) {
      if (each != link && !steers_on(link, guest)) continue;
      auto attached = is_attached(netlink, each);
      if (!attached) return attached.error();
      if (!*attached) return missing(fmt::format("the program on link {}", each), settings_.table);
    }
  } else if (auto done = verify_rules(netlink, link, guest, address); !done) {
    return done;
  }
  if (kind_ == ReturnPathKind::kGuardOnly) return {};
  if (!is_own()) {
    auto has_route = has_local_default(netlink, family_of(address), {.table = settings_.table, .link = link});
    if (!has_route) return has_route.error();
    if (!*has_route) return missing(fmt::format("the route of table {}", settings_.table), settings_.table);
  }
  return verify_delivery(netlink, guest, address);
}

Result<void> ReturnPathSite::verify_rules(Netlink& netlink, int link, const Guest& guest,
                                          const IpAddress& address) const {
  if (name_of(netlink, guest.input) != guest.tap) return no_such_link(guest.input);  // under that name
  auto filters = our_filters(netlink, link);
  if (!filters) return filters.error();
  if (!guest.ports.empty() &&
      (filters->empty() || !same_code(filters->front().code, syn_filter_of(guest.ports)))) {
    return missing(fmt::format("the filter on link {}", link), settings_.table);
  }
  auto rules = our_rules(netlink, family_of(address));
  if (!rules) return rules.error();
  for (const RoutingRule& wanted : port_rules(guest, address)) {
    if (std::ranges::find(*rules, wanted) == rules->end()) return missing(to_text(wanted), settings_.table);
  }
  return {};
}

/// The kernel is asked what it would do with the guest's answers: what is ours may be there, and something
/// else come before it.
Result<void> ReturnPathSite::verify_delivery(Netlink& netlink, const Guest& guest,
                                             const IpAddress& address) const {
  if (kind_ == ReturnPathKind::kProgram)
    return check_delivery(netlink, settings_.rule_preference,
                          answer_of(guest.input, address, 0, mark_of(settings_)));
  for (const auto& [port, count] : guest.ports) {
    if (auto done =
            check_delivery(netlink, settings_.rule_preference, answer_of(guest.input, address, port, 0));
        !done)
      return done;
  }
  return {};
}

}  // namespace portway

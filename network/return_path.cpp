#include "network/return_path.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <set>
#include <string_view>
#include <utility>

#include "network/policy_routing.h"
#include "network/syn_filter.h"
#include "network/traffic_control.h"

namespace portway {
namespace {

// Used unless another program's rules come earlier. Outside of 5210 to 5290: Tailscale deletes rules there,
// whoever made them.
constexpr std::uint32_t kUsualPreference = 5108;
// An abstract Unix socket's name is one network namespace's.
constexpr std::string_view kLockName{"\0portway/return-path", 20};

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
constexpr std::array kFamilies = {AF_INET, AF_INET6};
const std::string kNoFault;

int family_of(const IpAddress& address) {
  return address.is_v4() ? AF_INET : AF_INET6;
}

/// All of ours, also those that a predecessor made otherwise.
Result<void> remove_rules(Netlink& netlink, int family) {
  auto rules = our_rules(netlink, family);
  if (!rules) return rules.error();
  for (const RoutingRule& rule : *rules) {
    if (auto done = delete_rule(netlink, family, rule); !done) return done.error();
  }
  return {};
}

Result<void> remove_from_node(Netlink& netlink, int family, std::uint32_t table) {
  if (auto done = remove_rules(netlink, family); !done) return done.error();
  auto has_route = has_local_default(netlink, family, table);
  if (!has_route) return has_route.error();
  if (!*has_route) return {};
  return delete_local_default(netlink, family, table);
}

Result<void> remove_our_filters(Netlink& netlink, int link) {
  auto filters = our_filters(netlink, link);
  if (!filters) return filters.error();
  for (const OurFilter& filter : *filters) {
    if (auto done = delete_filter(netlink, link, filter); !done) return done.error();
  }
  return {};
}

/// What a predecessor left that did not end by itself, whatever its settings were.
Result<void> remove_everything(Netlink& netlink) {
  for (const int family : kFamilies) {
    if (auto done = remove_rules(netlink, family); !done) return done.error();
    auto tables = tables_with_local_default(netlink, family);
    if (!tables) return tables.error();
    for (const std::uint32_t table : *tables) {
      if (auto done = delete_local_default(netlink, family, table); !done) return done.error();
    }
  }
  auto links = links_with_hook(netlink);
  if (!links) return links.error();
  for (const int link : *links) {
    if (auto done = remove_our_filters(netlink, link); !done) return done.error();
  }
  return {};
}

/// A preference that comes before all other rules, as does the one below it; if there is none, the usual one.
Result<std::uint32_t> choose_preference(Netlink& netlink) {
  std::uint32_t chosen = kUsualPreference + 1;
  for (const int family : kFamilies) {
    auto others = other_rules(netlink, family);
    if (!others) return others.error();
    for (const RoutingRule& other : *others) {
      if (other.preference > 2) chosen = std::min(chosen, other.preference - 1);
    }
  }
  return chosen;
}

/// Our rule would take the packets that another program marks with our bit.
Result<void> check_mark(Netlink& netlink, const ReturnPathSettings& settings) {
  for (const int family : kFamilies) {
    auto others = other_rules(netlink, family);
    if (!others) return others.error();
    for (const RoutingRule& other : *others) {
      if ((other.mark & mark_of(settings)) == 0) continue;
      return Error{
          .code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("return path: another program's routing rule (preference {}, fwmark "
                                "{:#x}) uses bit {} of the packet mark; set proxy.source_mark_bit to "
                                "one that no rule in `ip rule` has",
                                other.preference, other.mark, settings.mark_bit)};
    }
  }
  return {};
}

/// Reserved for this process for as long as it is open.
Result<Fd> take_lock() {
  Fd lock(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::ranges::copy(kLockName, name.sun_path);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + kLockName.size());
  if (lock && ::bind(lock.get(), reinterpret_cast<const sockaddr*>(&name), size) == 0) return lock;
  return Error{.code = ErrorCode::kResourceExhausted,
               .detail = errno == EADDRINUSE
                             ? "another Portway shows guests their clients' addresses in this network "
                               "namespace; run one only"
                             : fmt::format("return path: the lock of the network namespace: {}",
                                           std::strerror(errno))};
}

RoutingRule port_rule(const ReturnPathSettings& settings, const std::string& tap, const IpAddress& guest,
                      std::uint16_t port) {
  return {.preference = settings.rule_preference,
          .table = settings.table,
          .interface = tap,
          .source = guest,
          .source_port = port};
}

/// Empty when there is none.
std::string name_of(Netlink& netlink, int link) {
  const auto device = find_device(netlink, link);
  return device ? device->name : "";
}

Error no_such_link(int link) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("return path: there is no link {}", link)};
}

std::string to_text(const RoutingRule& rule) {
  if (rule.source_port == 0) return fmt::format("rule {}", rule.preference);
  return fmt::format("the rule for port {} of {}", rule.source_port, rule.interface);
}

// Nobody has these (RFC 5737, RFC 3849): they stand for clients' addresses.
const IpAddress kAnyClientV4 = boost::asio::ip::address_v4(0xc0000201);  // 192.0.2.1
const IpAddress kAnyClientV6 =                                           // 2001:db8::1
    boost::asio::ip::address_v6({0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1});

/// Whether a socket can be bound to an address that is not the node's (ip(7), IP_TRANSPARENT).
Result<void> try_transparent(const IpAddress& client) {
  const bool v4 = client.is_v4();
  const Endpoint address(client, 0);
  constexpr int kOn = 1;
  const Fd socket(::socket(v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const bool done = socket &&
                    ::setsockopt(socket.get(), v4 ? SOL_IP : SOL_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT,
                                 &kOn, sizeof kOn) == 0 &&
                    ::bind(socket.get(), address.data(), static_cast<socklen_t>(address.size())) == 0;
  if (done) return {};
  return Error{
      .code = ErrorCode::kResourceExhausted,
      .detail = fmt::format("return path: no socket can have a client's {} address (IP_TRANSPARENT): "
                            "{}{}",
                            v4 ? "IPv4" : "IPv6", std::strerror(errno),
                            errno == EPERM ? "; it needs CAP_NET_ADMIN or CAP_NET_RAW" : "")};
}

/// The program reads Ethernet frames.
Result<void> check_ethernet(Netlink& netlink, int link) {
  const auto device = find_device(netlink, link);
  if (!device) return no_such_link(link);
  if (device->type == ARPHRD_ETHER) return {};
  return Error{
      .code = ErrorCode::kResourceExhausted,
      .detail = fmt::format("return path: {} is no Ethernet device; give the guest a tap", device->name)};
}

/// Whether the network may be changed at all.
Result<void> try_rules(Netlink& netlink, std::uint32_t table) {
  if (auto done = add_local_default(netlink, AF_INET, table); !done) return done.error();
  return delete_local_default(netlink, AF_INET, table);
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

/// Whether the kernel would deliver such a packet to this node; if not, what stands in the way.
Result<void> deliver(Netlink& netlink, std::uint32_t preference, const InputPacket& packet) {
  const InputRoute route = look_up_input_route(netlink, packet);
  if (route.error == 0 && route.type == RTN_LOCAL) return {};
  const int family = packet.source.is_v4() ? AF_INET : AF_INET6;
  const std::string guest = packet.source.to_string();
  const std::string device = name_of(netlink, packet.link);
  std::string reason =
      route.error != 0 ? std::strerror(route.error) : fmt::format("routing table {} has them", route.table);
  if (family == AF_INET && (route.error == EINVAL || route.error == EXDEV)) {
    reason = fmt::format(
        "the kernel's check of the source address (rp_filter) refuses them where no route leads to {0} over "
        "{1}, "
        "and a blackhole does; give the tap an address in the guest's network, or run: ip route add {0} dev "
        "{1}",
        guest, device);
  }
  std::vector<std::uint32_t> before;
  if (auto others = other_rules(netlink, family)) {
    for (const RoutingRule& other : *others) {
      if (other.preference <= preference) before.push_back(other.preference);
    }
  }
  if (!before.empty()) {
    reason += fmt::format("; routing rules that come before Portway's (preference {}): {}", preference,
                          fmt::join(before, ", "));
  }
  return Error{
      .code = ErrorCode::kResourceExhausted,
      .detail = fmt::format("return path: answers of {} on {} to its clients do not come to the node: {}",
                            guest, device, reason)};
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
  auto lock = take_lock();
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
    if (auto done = check_mark(**netlink, settings); !done) return done.error();
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
  const auto linked = make_link(link, added);
  for (const IpAddress& address : added.addresses) {
    auto done = linked;
    if (done) done = make_node(family_of(address));
    if (done) done = verify_node(family_of(address));
    if (done) done = verify_link(link, added, address);
    added.faults.push_back(done ? "" : done.error().detail);
  }
  return {link, added.generation};
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
  if (kind_ == Kind::kGuardOnly) return;
  for (const int family : kFamilies) {
    if (guest.mapped().has(family) && guests_of(family) == 0)
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
      done = deliver(*netlink_, settings_.rule_preference, answer_of(way.link, address, guest_port, 0));
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
    return deliver(*netlink_, settings_.rule_preference, answer_of(link, address, 0, mark_of(settings_)));
  for (const auto& [port, count] : guest.ports) {
    if (auto done = deliver(*netlink_, settings_.rule_preference, answer_of(link, address, port, 0)); !done)
      return done;
  }
  return {};
}

}  // namespace portway

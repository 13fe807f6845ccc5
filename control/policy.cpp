#include "control/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "network/open_beneath.h"

namespace portway {
namespace {

namespace ip = boost::asio::ip;

constexpr std::size_t kLabelMaxBytes = 63;
constexpr std::size_t kDescriptionMaxBytes = 256;
constexpr std::size_t kInstanceIdMaxBytes = 64;
constexpr std::size_t kTapMaxBytes = 15;  // IFNAMSIZ without the terminator
constexpr std::size_t kOwnerMaxBytes = 128;
constexpr std::size_t kSocketPathMaxBytes = 107;  // sun_path without the terminator
constexpr std::uint16_t kSshPort = 22;
constexpr std::string_view kLinkLocal = "a link-local address";
constexpr std::uint16_t kFirstUnprivilegedPort = 1024;

constexpr auto kRoleNames = std::to_array<std::string_view>({"admin", "tenant"});
static_assert(kRoleNames.size() == static_cast<std::size_t>(Role::kTenant) + 1);
constexpr auto kKeyScopeNames = std::to_array<std::string_view>({"full", "read", "metrics"});
static_assert(kKeyScopeNames.size() == static_cast<std::size_t>(KeyScope::kMetrics) + 1);

bool is_alphanumeric(char c) {
  return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9');
}

bool is_visible_ascii(char c) {
  return '!' <= c && c <= '~';
}

bool is_metadata_key(std::string_view key) {
  const auto is_part = [](char c) {
    return is_alphanumeric(c) || c == '.' || c == '_' || c == '/' || c == '-';
  };
  return !key.empty() && key.size() <= kMetadataKeyMax && std::all_of(key.begin(), key.end(), is_part);
}

/// As the kernel's dev_valid_name() has it, apart from the loopback.
bool is_link_name(std::string_view name) {
  const bool characters = std::all_of(name.begin(), name.end(),
                                      [](char c) { return is_visible_ascii(c) && c != '/' && c != ':'; });
  return !name.empty() && name.size() <= kTapMaxBytes && characters && name != "." && name != ".." &&
         name != "lo";
}

/// Takes one code point off the front of `text`; nothing when that is not UTF-8 as RFC 3629 has it.
std::optional<std::uint32_t> next_code_point(std::string_view& text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  const std::size_t size = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if ((lead & 0xc0) == 0x80 || lead > 0xf4 || text.size() < size) return std::nullopt;
  std::uint32_t value = size == 1 ? lead : lead & (0x7fU >> size);
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return std::nullopt;
    value = value << 6 | (byte(i) & 0x3fU);
  }
  constexpr std::array<std::uint32_t, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};  // less would be overlong
  if (value < kSmallest[size] || value > 0x10ffff || (0xd800 <= value && value <= 0xdfff))
    return std::nullopt;
  text.remove_prefix(size);
  return value;
}

bool is_control(std::uint32_t code_point) {
  return code_point < 0x20 || (0x7f <= code_point && code_point < 0xa0);
}

/// Why no guest can have this address; empty when one can.
std::string_view special_use(const IpAddress& address) {
  if (address.is_unspecified()) return "the unspecified address";
  if (address.is_loopback()) return "a loopback address";
  if (address.is_multicast()) return "a multicast address";
  if (address.is_v6()) return address.to_v6().is_link_local() ? kLinkLocal : "";
  const ip::address_v4 v4 = address.to_v4();
  if (v4 == ip::address_v4::broadcast()) return "the broadcast address";
  if (v4.to_bytes()[0] == 0) return "an address of \"this network\" (0.0.0.0/8)";
  return v4.to_bytes()[0] == 169 && v4.to_bytes()[1] == 254 ? kLinkLocal : "";
}

Error refused_address(const IpAddress& address, const std::string& why) {
  return {ErrorCode::kInvalidAddress, "guest_address " + address.to_string() + " " + why, "guest_address"};
}

Error invalid(std::string field, std::string_view value, std::string_view rule) {
  std::string detail = field + " " + in_quotes(value) + " must be " + std::string(rule) + ".";
  return {ErrorCode::kInvalidRequest, std::move(detail), std::move(field)};
}

Result<void> check_host_port(std::uint16_t host_port, const ForwardLimits& limits) {
  if (limits.role != Role::kAdmin && !limits.profile.allow_host_port) {
    return Error{
        ErrorCode::kForbidden,
        "This instance's profile does not allow to ask for a certain host_port without an admin key; leave "
        "host_port out to get a random one.",
        "host_port"};
  }
  if (!limits.host_ports.contains(host_port)) {
    return Error{ErrorCode::kInvalidPort,
                 "host_port must lie in this node's range " + to_string(limits.host_ports) +
                     "; leave it out to get a random one.",
                 "host_port"};
  }
  return {};
}

/// A family's link-local addresses.
struct LinkLocal {
  std::string_view network;
  IpAddress metadata;  // where clouds have their metadata service: no guest may have it
  IpAddress beyond;    // in every larger network
};

const LinkLocal& link_local_of(const IpAddress& address) {
  static const LinkLocal kV4{"169.254.0.0/16", ip::make_address("169.254.169.254"),
                             ip::make_address("169.255.0.0")};
  static const LinkLocal kV6{"fe80::/10", ip::make_address("fe80::a9fe:a9fe"), ip::make_address("fec0::")};
  return address.is_v4() ? kV4 : kV6;
}

/// A guest may have a link-local address if a network of its own names it.
bool is_named_link_local(const IpAddress& address, std::span<const Cidr> guest_networks) {
  const LinkLocal& all = link_local_of(address);
  return address != all.metadata && std::ranges::any_of(guest_networks, [&](const Cidr& network) {
           return network.contains(address) && !network.contains(all.beyond);
         });
}

}  // namespace

std::string_view to_string(Role role) {
  return kRoleNames[static_cast<std::size_t>(role)];
}

std::optional<Role> parse_role(std::string_view text) {
  const auto* found = std::find(kRoleNames.begin(), kRoleNames.end(), text);
  if (found == kRoleNames.end()) return std::nullopt;
  return static_cast<Role>(found - kRoleNames.begin());
}

std::string_view to_string(KeyScope scope) {
  return kKeyScopeNames[static_cast<std::size_t>(scope)];
}

std::optional<KeyScope> parse_key_scope(std::string_view text) {
  const auto* found = std::find(kKeyScopeNames.begin(), kKeyScopeNames.end(), text);
  if (found == kKeyScopeNames.end()) return std::nullopt;
  return static_cast<KeyScope>(found - kKeyScopeNames.begin());
}

namespace {

Result<void> check_id(std::string field, std::string_view id) {
  const bool characters = std::all_of(
      id.begin(), id.end(), [](char c) { return is_alphanumeric(c) || c == '.' || c == '_' || c == '-'; });
  // "." and ".." would vanish from a URL's path (RFC 3986, section 5.2.4).
  if (id.empty() || id.size() > kInstanceIdMaxBytes || !characters || id == "." || id == "..") {
    return invalid(std::move(field), id,
                   "1-64 characters of A-Z, a-z, 0-9, '.', '_' and '-', and not \".\" or \"..\"");
  }
  return {};
}

Result<void> check_text(std::string_view field, std::string_view text, std::size_t most, ErrorCode code) {
  const std::string name(field);
  if (text.size() > most) {
    return Error{code,
                 name + " has " + std::to_string(text.size()) + " bytes; shorten it to " +
                     std::to_string(most) + " or fewer.",
                 name};
  }
  while (!text.empty()) {
    const auto code_point = next_code_point(text);
    if (!code_point) return Error{code, name + " is not valid UTF-8.", name};
    if (is_control(*code_point)) return Error{code, name + " has a control character; leave it out.", name};
  }
  return {};
}

}  // namespace

Result<void> check_label(std::string_view label) {
  return check_text("label", label, kLabelMaxBytes, ErrorCode::kInvalidLabel);
}

Result<void> check_description(std::string_view description) {
  return check_text("description", description, kDescriptionMaxBytes, ErrorCode::kInvalidRequest);
}

Result<void> check_metadata(const Metadata& metadata) {
  if (metadata.size() > kMetadataMax) {
    return Error{ErrorCode::kInvalidRequest,
                 fmt::format("metadata would have {} entries; leave it at {} or fewer.", metadata.size(),
                             kMetadataMax),
                 "metadata", kMetadataMax, static_cast<std::int64_t>(metadata.size())};
  }
  for (const auto& [key, value] : metadata) {
    if (!is_metadata_key(key)) {
      return Error{ErrorCode::kInvalidRequest,
                   fmt::format("The key {} of metadata must be 1-{} of the characters A-Z a-z 0-9 . _ / -.",
                               in_quotes(key), kMetadataKeyMax),
                   "metadata"};
    }
    auto text = check_text("metadata." + key, value, kMetadataValueMax, ErrorCode::kInvalidRequest);
    if (!text) return text;
  }
  return {};
}

Result<void> check_expiry(const std::optional<Timestamp>& expires_at, Timestamp now) {
  if (!expires_at || *expires_at > now) return {};
  return Error{ErrorCode::kInvalidRequest,
               fmt::format("expires_at must be in the future: it is {} now. To end it now, delete it.",
                           to_rfc3339(now)),
               "expires_at"};
}

Result<void> check_key_reach(Role role, KeyScope scope, std::string_view instance_id) {
  if (scope == KeyScope::kMetrics && role != Role::kAdmin) {
    return Error{ErrorCode::kInvalidRequest, "scope metrics needs role admin: /metrics shows the whole node.",
                 "scope"};
  }
  if (instance_id.empty()) return {};
  if (role == Role::kAdmin) {
    return Error{ErrorCode::kInvalidRequest,
                 "A key of role admin sees every instance: leave instance_id out, or use role tenant.",
                 "instance_id"};
  }
  return check_id("instance_id", instance_id);
}

Result<void> check_forward(const ForwardSpec& spec, const ForwardLimits& limits) {
  if (spec.protocol != "tcp") {
    return Error{ErrorCode::kUnsupportedProtocol,
                 "protocol " + in_quotes(spec.protocol) + " is not supported; use \"tcp\" or leave it out.",
                 "protocol"};
  }
  const bool asks_for_socket = spec.target && !spec.target->is_tcp();
  if (asks_for_socket && limits.role != Role::kAdmin) {
    return Error{ErrorCode::kForbidden,
                 "Only an admin may forward to a socket of the node; leave target out, or ask the operator.",
                 "target"};
  }
  const auto target = target_of(spec, limits.target);
  if (!target) return target.error();
  if (auto checked = check_target(*target); !checked) return checked;
  if (auto below = check_socket_directory(*target, limits.socket_directories); !below) return below;
  if (auto mode = check_target_mode(*target, spec.source_mode); !mode) return mode;
  if (!target->is_tcp() && spec.source_mode != SourceMode::kAuto && limits.role != Role::kAdmin) {
    return Error{ErrorCode::kForbidden,
                 "Only an admin may choose the source_mode of a forward to a socket of the node, where this "
                 "instance's forwards lead; leave it out, or ask the operator.",
                 "source_mode"};
  }
  if (auto label = check_label(spec.label); !label) return label;
  if (auto metadata = check_metadata(spec.metadata); !metadata) return metadata;
  if (spec.guest_port != 0) {
    if (auto port = check_guest_port(spec.guest_port, limits.role); !port) return port;
  }
  if (spec.host_port) {
    if (auto host_port = check_host_port(*spec.host_port, limits); !host_port) return host_port;
  }
  const std::uint32_t quota = limits.profile.max_forwarded_ports;
  if (limits.forwards_now >= quota) {
    return Error{ErrorCode::kQuotaExceeded,
                 "The instance has " + std::to_string(limits.forwards_now) + " of the " +
                     std::to_string(quota) +
                     " port forwards its profile allows; delete one first, or ask for another profile.",
                 "", quota, static_cast<std::int64_t>(limits.forwards_now)};
  }
  if (limits.owner_forwards_max != 0 && limits.owner_forwards_now >= limits.owner_forwards_max) {
    return Error{ErrorCode::kQuotaExceeded,
                 "Owner " + in_quotes(limits.owner) + " has " + std::to_string(limits.owner_forwards_now) +
                     " of the " + std::to_string(limits.owner_forwards_max) +
                     " port forwards that an owner may have over all of its instances "
                     "(owners.max_forwards); delete one first, or ask the operator.",
                 "", static_cast<std::int64_t>(limits.owner_forwards_max),
                 static_cast<std::int64_t>(limits.owner_forwards_now)};
  }
  return {};
}

Result<void> check_guest_port(std::uint16_t port, Role role) {
  if (port == kSshPort) {
    return Error{ErrorCode::kBlockedPort, "Guest port 22 cannot be forwarded; use SSH forwarding instead.",
                 "guest_port"};
  }
  if (port < kFirstUnprivilegedPort && role != Role::kAdmin) {
    return Error{ErrorCode::kPrivilegedPort,
                 "Guest ports below 1024 need an admin key; let the service listen on 1024 or above.",
                 "guest_port"};
  }
  return {};
}

Result<void> check_default_target(const Target& target) {
  Target with_port = target;
  if (target.kind == TargetKind::kFirecrackerVsock && target.port == 0) with_port.port = 1;
  return check_target(with_port);
}

Result<Target> target_of(const ForwardSpec& spec, const Target& of_instance) {
  const auto refused = [](ErrorCode code, std::string detail) {
    return Error{code, std::move(detail), "guest_port"};
  };
  Target target = spec.target.value_or(of_instance);
  const bool has_port = spec.guest_port != 0;
  if (target.is_tcp()) {
    if (has_port) return target;
    return refused(ErrorCode::kInvalidRequest,
                   "guest_port is required: a port the guest listens on, 1-65535.");
  }
  if (spec.target) {
    if (!has_port) return target;
    return refused(ErrorCode::kInvalidPort,
                   "guest_port is a TCP port; leave it out, since target leads to a socket.");
  }
  if (target.kind == TargetKind::kUnix) {
    if (!has_port) return target;
    return refused(
        ErrorCode::kInvalidPort,
        "guest_port has no meaning: this instance's forwards lead to the Unix socket of its target. "
        "Leave it out, or give the forward the target {\"kind\": \"tcp\"}.");
  }
  if (has_port) target.port = spec.guest_port;
  if (target.port != 0) return target;
  return refused(ErrorCode::kInvalidRequest,
                 "guest_port is required: this instance's forwards lead to its guest's vsock, and its target "
                 "names no port.");
}

Result<void> check_target(const Target& target) {
  if (target.is_tcp()) return {};
  const std::string_view path = target.socket;
  const auto refused = [path](std::string_view why) {
    return Error{ErrorCode::kInvalidRequest, "target.socket " + in_quotes(path) + " " + std::string(why),
                 "target.socket"};
  };
  if (!path.starts_with('/')) return refused("must be an absolute path, as in \"/run/firecracker/v.sock\".");
  if (path.size() > kSocketPathMaxBytes) {
    return refused("has " + std::to_string(path.size()) + " bytes; a socket's path has " +
                   std::to_string(kSocketPathMaxBytes) + " at most (unix(7)).");
  }
  if (std::ranges::any_of(path, [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
    return refused("has a control character; leave it out.");
  for (std::size_t at = 1; at <= path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    const std::string_view part = path.substr(at, end - at);
    if (part.empty() || part == "." || part == "..")
      return refused("must have no empty, \".\" or \"..\" component; write the path in full.");
    at = end + 1;
  }
  if (target.kind == TargetKind::kFirecrackerVsock && (target.port == 0 || target.port > kVsockPortMax)) {
    return Error{ErrorCode::kInvalidPort, "target.port must be a port of the guest's vsock, 1-4294967294.",
                 "target.port"};
  }
  return {};
}

Result<void> check_socket_directory(const Target& target, std::span<const std::string> directories) {
  if (target.is_tcp()) return {};
  if (find_beneath(target.socket, directories)) return {};
  std::string names;
  for (const std::string& directory : directories) names += (names.empty() ? "" : ", ") + directory;
  return Error{
      ErrorCode::kInvalidRequest,
      "target.socket " + in_quotes(target.socket) +
          (names.empty() ? " is in no directory for sockets: guests.socket_directories is empty in this "
                           "node's configuration; list the directory there."
                         : " is below none of the directories for sockets (" + names +
                               "); use one of them, or add its directory to guests.socket_directories."),
      "target.socket"};
}

Result<void> check_target_mode(const Target& target, SourceMode wanted) {
  if (target.is_tcp() || wanted != SourceMode::kTransparent) return {};
  return Error{
      ErrorCode::kInvalidRequest,
      "A Unix socket shows its service no client address, so source_mode cannot be transparent; leave "
      "it out, or ask for proxy_v2.",
      "source_mode"};
}

Result<void> check_limits_given(Role role, const LimitSet& given, const LimitSet& admin_limits) {
  const std::vector<std::string_view> names = names_of(given & admin_limits);
  if (role == Role::kAdmin || names.empty()) return {};
  const std::string name(names.front());
  return Error{ErrorCode::kForbidden,
               "An admin has set this forward's " + name +
                   ", and only an admin may change it or take it away; leave it out, or ask the operator.",
               name};
}

Result<void> check_guest_address(const IpAddress& address, std::span<const Cidr> guest_networks,
                                 std::span<const IpAddress> host_addresses) {
  const std::string_view what = special_use(address);
  const bool link_local = what == kLinkLocal;
  if (link_local && !is_named_link_local(address, guest_networks)) {
    const LinkLocal& all = link_local_of(address);
    return refused_address(address, "is " + std::string(what) + "; list its network, inside " +
                                        std::string(all.network) + ", in guests.networks (" +
                                        all.metadata.to_string() + " is never a guest's).");
  }
  if (!what.empty() && !link_local) {
    return refused_address(address, "is " + std::string(what) + "; give the guest's address on its tap.");
  }
  if (std::find(host_addresses.begin(), host_addresses.end(), address) != host_addresses.end()) {
    return refused_address(address, "is this node's own; give the guest's address on its tap.");
  }
  if (guest_networks.empty()) {
    return refused_address(address,
                           "is in no guest network: guests.networks is empty in this node's configuration; "
                           "list the guests' networks there.");
  }
  const bool inside = std::any_of(guest_networks.begin(), guest_networks.end(),
                                  [&](const Cidr& network) { return network.contains(address); });
  if (inside) return {};
  std::string networks;
  for (const Cidr& network : guest_networks) networks += (networks.empty() ? "" : ", ") + network.to_string();
  return refused_address(address, "is in none of the guest networks (" + networks +
                                      "); give an address inside, or add its network to guests.networks.");
}

bool is_guest_address(const IpAddress& address, std::span<const Cidr> guest_networks) {
  return special_use(address) == kLinkLocal ||
         std::any_of(guest_networks.begin(), guest_networks.end(),
                     [&](const Cidr& network) { return network.contains(address); });
}

Result<void> set_guest_addresses(Instance& instance, std::span<const IpAddress> addresses) {
  const auto refused = [](std::string detail) {
    return Error{ErrorCode::kInvalidAddress, std::move(detail), "guest_addresses"};
  };
  if (addresses.empty() || addresses.size() > 2) {
    return refused("guest_addresses must have one address, or one IPv4 and one IPv6 address.");
  }
  const bool v4_first = addresses.front().is_v4();
  if (addresses.size() == 2 && v4_first == addresses.back().is_v4()) {
    return refused(std::string("guest_addresses has two ") + (v4_first ? "IPv4" : "IPv6") + " addresses, " +
                   addresses.front().to_string() + " and " + addresses.back().to_string() +
                   "; give at most one of each family.");
  }
  instance.guest_address = v4_first ? addresses.front() : addresses.back();
  instance.guest_address_v6.reset();
  if (addresses.size() == 2) instance.guest_address_v6 = v4_first ? addresses.back() : addresses.front();
  return {};
}

Result<void> change_guest_addresses(Instance& instance, const GuestAddressChange& change) {
  const auto refused = [](std::string detail, std::string field) {
    return Error{ErrorCode::kInvalidAddress, std::move(detail), std::move(field)};
  };
  if (change.guest_address) instance.guest_address = *change.guest_address;
  if (change.guest_address_v6) instance.guest_address_v6 = *change.guest_address_v6;
  const auto& second = instance.guest_address_v6;
  if (second && second->is_v4()) {
    return refused("guest_address_v6 " + second->to_string() +
                       " is an IPv4 address; give the guest's IPv6 address, or null if it has none.",
                   "guest_address_v6");
  }
  if (second && instance.guest_address.is_v6()) {
    return refused(
        "guest_address " + instance.guest_address.to_string() + " and guest_address_v6 " +
            second->to_string() +
            " are both IPv6; with two addresses, guest_address is the IPv4 one. For a guest with one "
            "address, change guest_address and make guest_address_v6 null.",
        change.guest_address ? "guest_address" : "guest_address_v6");
  }
  return {};
}

Result<void> check_guest_addresses(const Instance& instance, const InstanceLimits& limits) {
  for (const IpAddress& address : guest_addresses(instance)) {
    auto checked = check_guest_address(address, limits.guest_networks, limits.host_addresses);
    if (!checked) return checked;
    if (instance.device == kByRoute && special_use(address) == kLinkLocal) {
      return refused_address(address, "is a link-local address, which no route leads to; name the device.");
    }
  }
  return {};
}

Result<void> check_instance(const Instance& instance, const InstanceLimits& limits) {
  if (auto id = check_instance_id(instance.id); !id) return id;
  if (auto place = check_place(instance); !place) return place;
  if (instance.tap == kByRoute) {  // not in check_place(): such an instance may have been stored
    return Error{
        ErrorCode::kInvalidRequest,
        "tap \"none\" is what device says of guests behind the node's routes, and no tap may have that "
        "name; rename the interface (ip link set none name tap0).",
        "tap"};
  }
  if (auto owner = check_owner(instance.owner); !owner) return owner;
  if (auto target = check_default_target(instance.target); !target) return target;
  if (auto below = check_socket_directory(instance.target, limits.socket_directories); !below) return below;
  if (!limits.profiles.contains(instance.profile)) {
    std::string names;
    for (const auto& [name, profile] : limits.profiles) names += (names.empty() ? "" : ", ") + name;
    return invalid("profile", instance.profile, "one of this node's profiles: " + names);
  }
  if (auto metadata = check_metadata(instance.metadata); !metadata) return metadata;
  if (instance.vmm_pid && *instance.vmm_pid <= 1) {
    return invalid("vmm_pid", std::to_string(*instance.vmm_pid), "the VMM's process id, above 1");
  }
  return check_guest_addresses(instance, limits);
}

Result<void> check_instance_id(std::string_view id) {
  return check_id("id", id);
}

namespace {

Result<void> check_netns(std::string_view field, std::string_view netns, bool has_process) {
  if (netns.empty() || netns.starts_with('/')) return {};
  if (netns != kNetnsOfVmm) {
    return invalid(
        std::string(field), netns,
        field == "netns"
            ? "the path of a network namespace, such as /run/netns/NAME, or \"vmm_pid\" for that of "
              "the process vmm_pid; leave it out for the node's own"
            : "the path of a network namespace, \"vmm_pid\", or \"node\" for the node's own; leave "
              "it out for that of the guest");
  }
  if (has_process) return {};
  return Error{
      ErrorCode::kInvalidRequest,
      fmt::format("{0} \"vmm_pid\" is the network namespace of the process vmm_pid: give vmm_pid too, "
                  "or the path of the namespace.",
                  field),
      std::string(field)};
}

}  // namespace

Result<void> check_place(const Instance& instance) {
  if (!instance.tap.empty()) {
    if (auto tap = check_tap(instance.tap); !tap) return tap;
  }
  if (auto device = check_device(instance.device); !device) return device;
  const bool has_process = instance.vmm_pid.has_value();
  if (auto netns = check_netns("netns", instance.netns, has_process); !netns) return netns;
  if (instance.tap_netns != kNetnsOfNode) {
    if (auto netns = check_netns("tap_netns", instance.tap_netns, has_process); !netns) return netns;
  }
  if (instance.tap.empty()) {
    if (!has_process) {
      return Error{ErrorCode::kInvalidRequest,
                   "Without tap, the session ends with the process vmm_pid: give vmm_pid, or tap.", "tap"};
    }
    if (!instance.tap_netns.empty()) {
      return Error{ErrorCode::kInvalidRequest,
                   "tap_netns is where the tap is: give tap too, or leave it out.", "tap_netns"};
    }
  }
  const bool elsewhere = !instance.tap.empty() && tap_netns_of(instance) != instance.netns;
  if (instance.device.empty() && (instance.tap.empty() || elsewhere)) {
    return Error{ErrorCode::kInvalidRequest,
                 elsewhere
                     ? "The tap is in another network namespace than the guest is reached in: give the "
                       "device that leads to the guest there, or \"none\" to follow the routes."
                     : "Without tap, device must say what leads to the guest: an interface, or \"none\" to "
                       "follow the routes.",
                 "device"};
  }
  return {};
}

Result<void> check_tap(std::string_view tap) {
  if (is_link_name(tap)) return {};
  return invalid("tap", tap, "the name of the guest's tap device, 1-15 characters as \"ip link\" shows it");
}

Result<void> check_device(std::string_view device) {
  if (device.empty() || device == kByRoute || is_link_name(device)) return {};
  return invalid(
      "device", device,
      "the name of the interface that leads to the guest, such as its tap's bridge, or \"none\" to "
      "follow the node's routes");
}

Result<void> check_owner(std::string_view owner) {
  if (owner.empty() || owner.size() > kOwnerMaxBytes ||
      !std::all_of(owner.begin(), owner.end(), is_visible_ascii)) {
    return invalid("owner", owner, "1-128 printable ASCII characters without spaces");
  }
  return {};
}

}  // namespace portway

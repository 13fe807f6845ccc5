// Who may have what: pure checks of a request against role, profile and configuration. They look at nothing
// but their arguments; the control thread calls them before it allocates anything, and holds on to what they
// looked at until the answer is on disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/forward.h"

namespace portway {

/// What a key may do. An admin is the node's orchestrator; a tenant sees its owner's instances only.
enum class Role : std::uint8_t { kAdmin, kTenant };
std::string_view to_string(Role role);
std::optional<Role> parse_role(std::string_view text);

/// What a key may do of that: everything; call what changes nothing (GET); GET /metrics and nothing else.
enum class KeyScope : std::uint8_t { kFull, kRead, kMetrics };
std::string_view to_string(KeyScope scope);
std::optional<KeyScope> parse_key_scope(std::string_view text);

/// How many API keys a node has at most, the admin key file's apart.
inline constexpr std::size_t kApiKeysMax = 1000;

/// What a new forward is checked against.
struct ForwardLimits {
  Role role = Role::kTenant;
  Profile profile;               // of the instance
  std::size_t forwards_now = 0;  // the instance's
  PortRange host_ports;          // the configured range
  std::span<const std::string> socket_directories = {};
  Target target = {};  // the instance's
  std::string_view owner = {};
  std::size_t owner_forwards_max = 0;  // of all its instances; 0: no limit
  std::size_t owner_forwards_now = 0;
};

/// kUnsupportedProtocol, kForbidden (a target asked for by a tenant), kInvalidRequest (of the target),
/// kInvalidPort, kInvalidLabel, kBlockedPort, kPrivilegedPort, kForbidden (a host port asked for by a tenant)
/// or kQuotaExceeded, in this order: what the caller can fix in the request comes first.
Result<void> check_forward(const ForwardSpec& spec, const ForwardLimits& limits);

/// kInvalidRequest or kInvalidPort, with the field: the socket's path is absolute, has at most 107 bytes,
/// none of them a control character, and no empty, "." or ".." component; a vsock has a port.
Result<void> check_target(const Target& target);
/// The same for the target of an instance, whose vsock port may be 0.
Result<void> check_default_target(const Target& target);
/// Where the forward is to lead, if the instance's target is this one: kInvalidRequest or kInvalidPort of
/// "guest_port" if that is missing or has no meaning there.
Result<Target> target_of(const ForwardSpec& spec, const Target& of_instance);
/// And the socket lies below one of the directories: kInvalidRequest of "target.socket".
Result<void> check_socket_directory(const Target& target, std::span<const std::string> directories);
/// kInvalidRequest of "source_mode" if the service behind the target cannot see such an address.
Result<void> check_target_mode(const Target& target, SourceMode wanted);

/// kForbidden, with the first of the limits as the field, when a tenant names one that an admin has set.
Result<void> check_limits_given(Role role, const LimitSet& given, const LimitSet& admin_limits);

/// 0-63 bytes of UTF-8 without control characters, else kInvalidLabel.
Result<void> check_label(std::string_view label);
/// kMetadataMax entries, keys of kMetadataKeyMax characters of [A-Za-z0-9._/-], values of kMetadataValueMax
/// bytes of UTF-8 without control characters, at most; else kInvalidRequest.
Result<void> check_metadata(const Metadata& metadata);
/// kBlockedPort or kPrivilegedPort.
Result<void> check_guest_port(std::uint16_t port, Role role);
/// 0-256 bytes of the same, else kInvalidRequest. `description` is of a key.
Result<void> check_description(std::string_view description);
/// kInvalidRequest of "expires_at" if that is not in the future; nothing in it: no end.
Result<void> check_expiry(const std::optional<Timestamp>& expires_at, Timestamp now);
/// kInvalidRequest, with the field, if a key cannot have these together: an admin's key sees all instances,
/// and only an admin's reads the node's metrics. An empty `instance_id` is none.
Result<void> check_key_reach(Role role, KeyScope scope, std::string_view instance_id);

/// What a registration is checked against.
struct InstanceLimits {
  std::span<const Cidr> guest_networks;
  std::span<const IpAddress> host_addresses;  // local_addresses(), read for this check: they change
  const Profiles& profiles;
  std::span<const std::string> socket_directories = {};
};

/// Gives the instance one address, or one of each family in any order; otherwise kInvalidAddress of
/// "guest_addresses".
Result<void> set_guest_addresses(Instance& instance, std::span<const IpAddress> addresses);

/// Changes those that are given: kInvalidAddress, with the field, if the instance would not have one address,
/// or one of each family, afterwards.
Result<void> change_guest_addresses(Instance& instance, const GuestAddressChange& change);
/// Of each address, what check_instance() has to say.
Result<void> check_guest_addresses(const Instance& instance, const InstanceLimits& limits);

/// kInvalidRequest with the field (id, tap, device, netns, tap_netns, owner, profile, vmm_pid), or
/// kInvalidAddress of "guest_address", whichever of the two it is.
Result<void> check_instance(const Instance& instance, const InstanceLimits& limits);

/// The address must lie in a guest network, and must lead out of this host: not loopback, link-local (unless
/// a network inside 169.254.0.0/16 or fe80::/10 names it), multicast, unspecified, broadcast or one of the
/// host's own, else kInvalidAddress. Forwarding to such an address would open the node itself, or its cloud's
/// metadata service, to the internet.
Result<void> check_guest_address(const IpAddress& address, std::span<const Cidr> guest_networks,
                                 std::span<const IpAddress> host_addresses);

/// Whether a client with this address is a guest as far as the address shows: inside a guest network, or
/// link-local, which a guest is to its node by whatever address it has besides.
bool is_guest_address(const IpAddress& address, std::span<const Cidr> guest_networks);

/// Shapes of names; kInvalidRequest with the field.
Result<void> check_instance_id(std::string_view id);  // 1-64 of [A-Za-z0-9._-], not "." or ".."
Result<void> check_tap(
    std::string_view tap);  // a link's name, as the kernel's dev_valid_name() has it; not "lo"
/// An interface's name as check_tap() has it, kByRoute, or empty (the tap).
Result<void> check_device(std::string_view device);
/// The fields that say where the guest is and what is watched (tap, device, netns, tap_netns), and whether
/// they fit each other and vmm_pid.
Result<void> check_place(const Instance& instance);
Result<void> check_owner(std::string_view owner);  // 1-128 of printable ASCII without spaces

}  // namespace portway

#include "control/policy.h"

#include <gtest/gtest.h>

#include <vector>

namespace portway {
namespace {

const ForwardLimits kTenant = {
    .role = Role::kTenant, .profile = {}, .forwards_now = 0, .host_ports = {20000, 32767}};
const ForwardLimits kAdmin = {
    .role = Role::kAdmin, .profile = {}, .forwards_now = 0, .host_ports = {20000, 32767}};

ForwardSpec spec_for(std::uint16_t guest_port) {
  ForwardSpec spec;
  spec.guest_port = guest_port;
  return spec;
}

template <class Value>
void expect_refused(const Result<Value>& result, ErrorCode code, std::string_view field) {
  ASSERT_FALSE(result);
  EXPECT_EQ(to_string(result.error().code), to_string(code)) << result.error().detail;
  EXPECT_EQ(result.error().field, field) << result.error().detail;
  EXPECT_FALSE(result.error().detail.empty());
}

TEST(ForwardPolicy, ATenantMayForwardAnUnprivilegedPort) {
  EXPECT_TRUE(check_forward(spec_for(3000), kTenant));
  EXPECT_TRUE(check_forward(spec_for(1024), kTenant));
  EXPECT_TRUE(check_forward(spec_for(65535), kTenant));
}

TEST(ForwardPolicy, PrivilegedPortsNeedAnAdmin) {
  for (const std::uint16_t port : {std::uint16_t{1}, std::uint16_t{80}, std::uint16_t{1023}}) {
    expect_refused(check_forward(spec_for(port), kTenant), ErrorCode::kPrivilegedPort, "guest_port");
    EXPECT_TRUE(check_forward(spec_for(port), kAdmin));
  }
}

TEST(ForwardPolicy, Port22IsBlockedForEverybody) {
  expect_refused(check_forward(spec_for(22), kTenant), ErrorCode::kBlockedPort, "guest_port");
  expect_refused(check_forward(spec_for(22), kAdmin), ErrorCode::kBlockedPort, "guest_port");
}

TEST(ForwardPolicy, APortIsRequired) {
  expect_refused(check_forward(spec_for(0), kAdmin), ErrorCode::kInvalidRequest, "guest_port");
}

TEST(ForwardPolicy, OnlyTcpIsSupported) {
  for (const char* protocol : {"udp", "TCP", "tcp ", ""}) {
    ForwardSpec spec = spec_for(3000);
    spec.protocol = protocol;
    expect_refused(check_forward(spec, kAdmin), ErrorCode::kUnsupportedProtocol, "protocol");
  }
}

ForwardSpec spec_for(Target target) {
  ForwardSpec spec;
  spec.target = std::move(target);
  return spec;
}

const std::vector<std::string> kSocketDirectories = {"/run/fc", "/srv/sockets/"};

ForwardLimits admin_with_sockets() {
  ForwardLimits limits = kAdmin;
  limits.socket_directories = kSocketDirectories;
  return limits;
}

TEST(ForwardPolicy, AnAdminMayForwardToASocketBelowOneOfTheDirectories) {
  for (const char* path :
       {"/run/fc/v.sock", "/run/fc/vm-1/v.sock", "/srv/sockets/x", "/run/fc/...", "/run/fc/a b"})
    EXPECT_TRUE(check_forward(spec_for({.kind = TargetKind::kUnix, .socket = path}), admin_with_sockets()))
        << path;
  for (const std::uint32_t port : {1U, 22U, 3000U, 4294967294U}) {
    EXPECT_TRUE(check_forward(
        spec_for({.kind = TargetKind::kFirecrackerVsock, .socket = "/run/fc/v.sock", .port = port}),
        admin_with_sockets()))
        << port;
  }
}

TEST(ForwardPolicy, ATenantMayNotForwardToASocket) {
  ForwardLimits limits = kTenant;
  limits.socket_directories = kSocketDirectories;
  expect_refused(check_forward(spec_for({.kind = TargetKind::kUnix, .socket = "/run/fc/v.sock"}), limits),
                 ErrorCode::kForbidden, "target");
}

TEST(ForwardPolicy, ASocketsPathIsAbsoluteWrittenInFullAndShort) {
  for (const std::string& path :
       {std::string(), std::string("run/fc/v.sock"), std::string("/run/fc/../v.sock"),
        std::string("/run/fc/.."), std::string("/run/fc/./v.sock"), std::string("/run/fc//v.sock"),
        std::string("/run/fc/v.sock/"), std::string("/"), std::string("/run/fc/a\nb"),
        std::string("/run/fc/a\0b", 11), "/run/fc/" + std::string(100, 'x')}) {
    expect_refused(check_forward(spec_for({.kind = TargetKind::kUnix, .socket = path}), admin_with_sockets()),
                   ErrorCode::kInvalidRequest, "target.socket");
  }
  EXPECT_TRUE(check_target({.kind = TargetKind::kUnix, .socket = "/run/fc/" + std::string(99, 'x')}));
}

TEST(ForwardPolicy, ASocketOutsideOfTheDirectoriesIsRefused) {
  for (const char* path : {"/run/fc", "/run/fcx/v.sock", "/run/v.sock", "/srv/sockets"}) {
    expect_refused(check_forward(spec_for({.kind = TargetKind::kUnix, .socket = path}), admin_with_sockets()),
                   ErrorCode::kInvalidRequest, "target.socket");
  }
  const auto refused = check_forward(spec_for({.kind = TargetKind::kUnix, .socket = "/run/fc/x"}), kAdmin);
  expect_refused(refused, ErrorCode::kInvalidRequest, "target.socket");
  EXPECT_NE(refused.error().detail.find("guests.socket_directories is empty"), std::string::npos);
}

TEST(ForwardPolicy, AVsockHasAPort) {
  for (const std::uint32_t port : {0U, 4294967295U}) {
    expect_refused(check_target({.kind = TargetKind::kFirecrackerVsock, .socket = "/run/fc/x", .port = port}),
                   ErrorCode::kInvalidPort, "target.port");
  }
}

TEST(ForwardPolicy, WithoutATargetOfItsOwnTheInstancesApplies) {
  const Target tcp;
  const Target socket{.kind = TargetKind::kUnix, .socket = "/run/fc/agent.sock"};
  const Target vsock{.kind = TargetKind::kFirecrackerVsock, .socket = "/run/fc/v.sock", .port = 5000};
  Target vsock_of_any_port = vsock;
  vsock_of_any_port.port = 0;
  const ForwardSpec none;
  EXPECT_EQ(target_of(spec_for(3000), tcp).value(), tcp);
  EXPECT_EQ(target_of(none, socket).value(), socket);
  EXPECT_EQ(target_of(none, vsock).value(), vsock);
  EXPECT_EQ(target_of(spec_for(3000), vsock).value().port, 3000U);
  EXPECT_EQ(target_of(spec_for(3000), vsock_of_any_port).value().port, 3000U);
  EXPECT_EQ(target_of(spec_for(socket), vsock).value(), socket) << "its own comes first";
  ForwardSpec to_tcp = spec_for(tcp);
  expect_refused(target_of(to_tcp, vsock), ErrorCode::kInvalidRequest, "guest_port");
  to_tcp.guest_port = 3000;
  EXPECT_EQ(target_of(to_tcp, vsock).value(), tcp);
  expect_refused(target_of(none, tcp), ErrorCode::kInvalidRequest, "guest_port");
  expect_refused(target_of(none, vsock_of_any_port), ErrorCode::kInvalidRequest, "guest_port");
  expect_refused(target_of(spec_for(3000), socket), ErrorCode::kInvalidPort, "guest_port");
  ForwardSpec both = spec_for(socket);
  both.guest_port = 3000;
  expect_refused(target_of(both, tcp), ErrorCode::kInvalidPort, "guest_port");
}

TEST(ForwardPolicy, ATenantMayForwardWhereItsInstancesForwardsLead) {
  ForwardLimits limits = kTenant;
  limits.socket_directories = kSocketDirectories;
  limits.target = {.kind = TargetKind::kFirecrackerVsock, .socket = "/run/fc/v.sock"};
  EXPECT_TRUE(check_forward(spec_for(3000), limits));
  expect_refused(check_forward(spec_for(22), limits), ErrorCode::kBlockedPort, "guest_port");
  expect_refused(check_forward(spec_for(80), limits), ErrorCode::kPrivilegedPort, "guest_port");
  expect_refused(check_forward(spec_for(limits.target), limits), ErrorCode::kForbidden, "target");
  for (const SourceMode mode : {SourceMode::kPlain, SourceMode::kProxyV2}) {
    ForwardSpec spec = spec_for(3000);
    spec.source_mode = mode;
    expect_refused(check_forward(spec, limits), ErrorCode::kForbidden, "source_mode");
  }
  limits.socket_directories = {};
  expect_refused(check_forward(spec_for(3000), limits), ErrorCode::kInvalidRequest, "target.socket");
}

TEST(ForwardPolicy, ASocketShowsNoClientAddress) {
  ForwardSpec spec = spec_for({.kind = TargetKind::kUnix, .socket = "/run/fc/x"});
  spec.source_mode = SourceMode::kTransparent;
  expect_refused(check_forward(spec, admin_with_sockets()), ErrorCode::kInvalidRequest, "source_mode");
  spec.source_mode = SourceMode::kProxyV2;
  EXPECT_TRUE(check_forward(spec, admin_with_sockets()));
}

TEST(ForwardPolicy, TheQuotaIsTheProfilesAndTheErrorSaysHowMuchIsUsed) {
  ForwardLimits limits = kTenant;
  limits.profile.max_forwarded_ports = 5;
  limits.forwards_now = 4;
  EXPECT_TRUE(check_forward(spec_for(3000), limits));
  limits.forwards_now = 5;
  const auto refused = check_forward(spec_for(3000), limits);
  expect_refused(refused, ErrorCode::kQuotaExceeded, "");
  EXPECT_EQ(refused.error().limit, 5);
  EXPECT_EQ(refused.error().current, 5);
  limits.role = Role::kAdmin;
  expect_refused(check_forward(spec_for(3000), limits), ErrorCode::kQuotaExceeded, "");
}

TEST(ForwardPolicy, AProfileCanForbidForwards) {
  ForwardLimits limits = kAdmin;
  limits.profile.max_forwarded_ports = 0;
  expect_refused(check_forward(spec_for(3000), limits), ErrorCode::kQuotaExceeded, "");
}

TEST(ForwardPolicy, ACertainHostPortNeedsAnAdminAndLiesInTheRange) {
  ForwardSpec spec = spec_for(3000);
  spec.host_port = 20000;
  expect_refused(check_forward(spec, kTenant), ErrorCode::kForbidden, "host_port");
  EXPECT_TRUE(check_forward(spec, kAdmin));
  for (const std::uint16_t outside :
       {std::uint16_t{0}, std::uint16_t{22}, std::uint16_t{19999}, std::uint16_t{32768}}) {
    spec.host_port = outside;
    expect_refused(check_forward(spec, kAdmin), ErrorCode::kInvalidPort, "host_port");
  }
}

TEST(ForwardPolicy, LabelsAreShortUtf8WithoutControlCharacters) {
  for (const std::string& label :
       {std::string(), std::string("dev-server"), std::string(63, 'x'), std::string("größe"),
        std::string("\xf0\x9f\x9a\x80 launch"), std::string("\xef\xbf\xbd")}) {
    EXPECT_TRUE(check_label(label)) << label;
  }
  for (const std::string& label : {
           std::string(64, 'x'),
           std::string("a\nb"),
           std::string("a\0b", 3),
           std::string("\x7f"),
           std::string("\xc2\x85"),  // NEL, a control character of two bytes
           std::string("\xff"),
           std::string("\x80"),
           std::string("\xc3"),              // cut off
           std::string("\xc0\xaf"),          // overlong '/'
           std::string("\xe0\x80\xaf"),      // overlong '/'
           std::string("\xed\xa0\x80"),      // a surrogate
           std::string("\xf4\x90\x80\x80"),  // above U+10FFFF
           std::string("\xf8\x88\x80\x80\x80"),
       }) {
    expect_refused(check_label(label), ErrorCode::kInvalidLabel, "label");
  }
}

class InstancePolicy : public testing::Test {
 protected:
  InstancePolicy() {
    instance.id = "vm-1";
    instance.guest_address = *parse_address("198.18.0.2");
    instance.tap = "tap0";
    instance.owner = "acme";
  }

  Result<void> check() const { return check_instance(instance, {networks, host_addresses, profiles}); }
  Result<void> check_address(std::string_view text) const {
    return check_guest_address(*parse_address(text), networks, host_addresses);
  }

  Instance instance;
  std::vector<Cidr> networks = {*Cidr::parse("198.18.0.0/15"), *Cidr::parse("fd00::/8")};
  std::vector<IpAddress> host_addresses = {*parse_address("198.18.0.1"), *parse_address("fd00::1")};
  std::map<std::string, Profile, std::less<>> profiles = {{"default", Profile{}}, {"large", Profile{50}}};
};

TEST_F(InstancePolicy, AGuestHasOneAddressOrOneOfEachFamilyInAnyOrder) {
  const IpAddress v4 = *parse_address("198.18.0.3");
  const IpAddress v6 = *parse_address("fd00::3");
  for (const std::vector<IpAddress>& addresses : {std::vector{v4, v6}, std::vector{v6, v4}}) {
    EXPECT_TRUE(set_guest_addresses(instance, addresses));
    EXPECT_EQ(guest_addresses(instance), (std::vector{v4, v6}));
    EXPECT_TRUE(check());
  }
  for (const IpAddress& one : {v4, v6}) {
    EXPECT_TRUE(set_guest_addresses(instance, std::vector{one}));
    EXPECT_EQ(guest_addresses(instance), std::vector{one}) << "and nothing of the two before";
  }
}

TEST_F(InstancePolicy, MoreAddressesAreRefusedAndNothingChanges) {
  const std::vector<IpAddress> before = guest_addresses(instance);
  const auto all = [](std::initializer_list<std::string_view> texts) {
    std::vector<IpAddress> addresses;
    for (const std::string_view text : texts) addresses.push_back(*parse_address(text));
    return addresses;
  };
  for (const auto& addresses : {all({}), all({"198.18.0.3", "198.18.0.4"}), all({"198.18.0.3", "198.18.0.3"}),
                                all({"fd00::3", "fd00::4"}), all({"198.18.0.3", "fd00::3", "fd00::4"})}) {
    expect_refused(set_guest_addresses(instance, addresses), ErrorCode::kInvalidAddress, "guest_addresses");
    EXPECT_EQ(guest_addresses(instance), before);
  }
}

// Such a tap would be taken for the device "none", the node's routes. One that is stored stays valid.
TEST_F(InstancePolicy, NoTapIsCalledNone) {
  instance.tap = "none";
  const auto refused = check();
  expect_refused(refused, ErrorCode::kInvalidRequest, "tap");
  EXPECT_NE(refused.error().detail.find("rename the interface"), std::string::npos) << refused.error().detail;
  EXPECT_TRUE(check_place(instance));
  instance.tap = "tap0";
  instance.device = "none";
  EXPECT_TRUE(check());
}

TEST_F(InstancePolicy, TheSecondAddressIsCheckedLikeTheFirst) {
  for (const std::string_view text : {"2001:db8::1", "fe80::1", "::1", "ff02::1", "::", "fd00::1"}) {
    instance.guest_address_v6 = *parse_address(text);
    expect_refused(check(), ErrorCode::kInvalidAddress, "guest_address");
  }
}

TEST_F(InstancePolicy, AGuestOnItsTapIsFine) {
  EXPECT_TRUE(check());
  EXPECT_TRUE(check_address("fd00::2"));
}

TEST_F(InstancePolicy, TheAddressMustLieInAGuestNetwork) {
  expect_refused(check_address("203.0.113.7"), ErrorCode::kInvalidAddress, "guest_address");
  const auto refused = check_address("2001:db8::7");
  expect_refused(refused, ErrorCode::kInvalidAddress, "guest_address");
  EXPECT_NE(refused.error().detail.find("198.18.0.0/15, fd00::/8"), std::string::npos)
      << refused.error().detail;
}

TEST_F(InstancePolicy, WithoutGuestNetworksNobodyComesInAndTheRemedyIsNamed) {
  networks.clear();
  const auto refused = check();
  expect_refused(refused, ErrorCode::kInvalidAddress, "guest_address");
  EXPECT_NE(refused.error().detail.find("guests.networks"), std::string::npos) << refused.error().detail;
}

TEST_F(InstancePolicy, TheNodesOwnAddressesAreNoGuests) {
  expect_refused(check_address("198.18.0.1"), ErrorCode::kInvalidAddress, "guest_address");
  expect_refused(check_address("fd00::1"), ErrorCode::kInvalidAddress, "guest_address");
}

TEST_F(InstancePolicy, SpecialAddressesAreNoGuestsEvenIfANetworkHoldsThem) {
  networks = {*Cidr::parse("0.0.0.0/0"), *Cidr::parse("::/0")};
  for (const char* text : {"127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "169.254.169.254",
                           "224.0.0.1", "239.255.255.255", "255.255.255.255", "::", "::1", "fe80::1",
                           "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"}) {
    expect_refused(check_address(text), ErrorCode::kInvalidAddress, "guest_address");
  }
}

TEST_F(InstancePolicy, ALinkLocalAddressIsAGuestsOnlyIfANetworkOfItsOwnNamesItAndADeviceBindsIt) {
  networks = {*Cidr::parse("169.254.0.0/16"), *Cidr::parse("fe80::/10")};
  EXPECT_TRUE(check_address("169.254.0.21"));
  EXPECT_TRUE(check_address("169.254.255.254"));
  EXPECT_TRUE(check_address("fe80::1"));
  EXPECT_TRUE(check_address("febf:ffff::1"));
  for (const char* text : {"169.254.169.254", "::ffff:169.254.169.254", "fe80::a9fe:a9fe"})
    expect_refused(check_address(text), ErrorCode::kInvalidAddress, "guest_address");
  networks = {*Cidr::parse("169.254.0.0/24")};
  EXPECT_TRUE(check_address("169.254.0.21"));
  expect_refused(check_address("169.254.1.21"), ErrorCode::kInvalidAddress, "guest_address");
  instance.guest_address = *parse_address("169.254.0.21");
  EXPECT_TRUE(check());
  instance.device = kByRoute;
  expect_refused(check(), ErrorCode::kInvalidAddress, "guest_address");
  instance.device = "br0";
  EXPECT_TRUE(check());
  for (const char* network : {"fe80::/9", "fe00::/8", "::/0"}) {
    networks = {*Cidr::parse(network)};
    const auto refused = check_address("fe80::21");
    expect_refused(refused, ErrorCode::kInvalidAddress, "guest_address");
    EXPECT_NE(refused.error().detail.find("inside fe80::/10"), std::string::npos) << refused.error().detail;
  }
  for (const char* network : {"169.254.0.0/15", "169.252.0.0/14", "0.0.0.0/0"}) {
    networks = {*Cidr::parse(network)};
    expect_refused(check_address("169.254.0.21"), ErrorCode::kInvalidAddress, "guest_address");
  }
}

TEST_F(InstancePolicy, NamesAreChecked) {
  for (const std::string& id :
       {std::string(), std::string(65, 'x'), std::string("a/b"), std::string("a b"), std::string(".."),
        std::string("."), std::string("a\0", 2), std::string("\xc3\xa4")}) {
    instance.id = id;
    expect_refused(check(), ErrorCode::kInvalidRequest, "id");
  }
  instance.id = std::string(60, 'x') + "-._9";
  EXPECT_TRUE(check());

  for (const std::string& tap :
       {std::string(), std::string(16, 'x'), std::string("a/b"), std::string("a:b"), std::string("a b"),
        std::string(".."), std::string("."), std::string("lo"), std::string("tap\n")}) {
    instance.tap = tap;
    expect_refused(check(), ErrorCode::kInvalidRequest, "tap");
  }
  instance.tap = std::string(15, 'x');
  EXPECT_TRUE(check());

  for (const std::string& owner :
       {std::string(), std::string(129, 'x'), std::string("a b"), std::string("a\n")}) {
    instance.owner = owner;
    expect_refused(check(), ErrorCode::kInvalidRequest, "owner");
  }
  instance.owner = "org:acme/team@example.com";
  EXPECT_TRUE(check());
}

TEST_F(InstancePolicy, TheProfileMustExistAndTheErrorListsThem) {
  instance.profile = "large";
  EXPECT_TRUE(check());
  instance.profile = "huge";
  const auto refused = check();
  expect_refused(refused, ErrorCode::kInvalidRequest, "profile");
  EXPECT_NE(refused.error().detail.find("default, large"), std::string::npos) << refused.error().detail;
}

TEST_F(InstancePolicy, TheVmmIsAProcessOfItsOwn) {
  instance.vmm_pid = 4711;
  EXPECT_TRUE(check());
  for (const std::int32_t pid : {-1, 0, 1}) {
    instance.vmm_pid = pid;
    expect_refused(check(), ErrorCode::kInvalidRequest, "vmm_pid");
  }
}

TEST(RoleNames, GoBothWays) {
  EXPECT_EQ(parse_role("admin"), Role::kAdmin);
  EXPECT_EQ(parse_role("tenant"), Role::kTenant);
  EXPECT_EQ(parse_role("Admin"), std::nullopt);
  EXPECT_EQ(to_string(Role::kAdmin), "admin");
  EXPECT_EQ(to_string(Role::kTenant), "tenant");
}

TEST(CheckForward, AProfileMayLetTenantsChooseTheirHostPort) {
  ForwardLimits limits{.role = Role::kTenant, .profile = {}, .forwards_now = 0, .host_ports = {20000, 32767}};
  const ForwardSpec spec{.guest_port = 3000, .label = "", .host_port = 20000};
  EXPECT_EQ(check_forward(spec, limits).error().code, ErrorCode::kForbidden);
  limits.profile.allow_host_port = true;
  EXPECT_TRUE(check_forward(spec, limits));
}

TEST(GuestAddress, IsOneOfAGuestNetworkOrLinkLocal) {
  const std::vector<Cidr> networks = {Cidr::parse("198.18.0.0/15").value(),
                                      Cidr::parse("fd00:19::/64").value()};
  for (const char* guest : {"198.19.255.255", "fd00:19::2", "fe80::1", "febf::1", "169.254.0.1"}) {
    EXPECT_TRUE(is_guest_address(parse_address(guest).value(), networks)) << guest;
  }
  for (const char* other : {"203.0.113.1", "127.0.0.1", "::1", "fd00:20::2", "fec0::1", "169.253.0.1"}) {
    EXPECT_FALSE(is_guest_address(parse_address(other).value(), networks)) << other;
  }
}

}  // namespace
}  // namespace portway

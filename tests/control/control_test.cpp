#include "control/control.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <csignal>
#include <sstream>

#include "tests/control/node.h"
#include "tests/support/process.h"

namespace portway {
namespace {

using test::create_forwards;
using test::Node;

const Principal kAdmin{.key_id = {}, .role = Role::kAdmin, .owner = "admin"};

Result<ForwardStatus> try_create(Node& node, std::uint16_t guest_port, const std::string& instance = "vm-1") {
  const ForwardSpec spec{.guest_port = guest_port, .label = ""};
  auto made = create_forwards(node, kAdmin, instance, {&spec, 1});
  if (!made) return made.error();
  return made->front();
}

ForwardStatus create(Node& node, std::uint16_t guest_port) {
  return try_create(node, guest_port).value();
}

/// The types of the events of a stream so far.
std::vector<std::string> types(BodyStream& stream) {
  std::vector<std::string> found;
  std::istringstream lines(stream.read().value());
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("event: ")) found.push_back(line.substr(7));
  }
  return found;
}

TEST(Control, AForwardIsOpenedTowardsTheGuestBehindItsTap) {
  Node node;
  node.put("vm-1");
  const ForwardStatus status = create(node, 3000);
  ASSERT_EQ(node.dataplane.opened.size(), 1U);
  const auto& [route, port] = node.dataplane.opened.at(status.forward.id);
  EXPECT_EQ(to_string(route.guest.endpoint), "198.19.0.2:3000");
  EXPECT_EQ(route.device, kNoDevice) << "its tap is still to come";
  EXPECT_EQ(port, status.forward.host_port);
}

TEST(Control, APortThatAnotherProgramHasIsPassedOver) {
  Node node("[ports]\nrange = \"20000-20003\"\n");
  node.put("vm-1");
  node.dataplane.taken = {20000, 20001, 20003};
  EXPECT_EQ(create(node, 3000).forward.host_port, 20002);
  const auto none = try_create(node, 3001, "vm-1");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kPortPoolExhausted);
  EXPECT_EQ(node.stats.port_allocation_errors[static_cast<std::size_t>(PortAllocationError::kExhausted)], 1U);
}

TEST(Control, WhatTheStoreRefusesLeavesNothingBehind) {
  Node node;
  node.put("vm-1");
  node.run(node.store().delete_instance("vm-1"))
      .value();  // behind the control plane's back: the next commit must fail
  const auto refused = try_create(node, 3000, "vm-1");
  ASSERT_FALSE(refused);
  EXPECT_EQ(node.dataplane.bound, 1);
  EXPECT_TRUE(node.dataplane.opened.empty());
  EXPECT_EQ(node.control().ports().used(), 0U);
  EXPECT_EQ(node.control().registry().forward_count(), 0U);
}

TEST(Control, WhenDescriptorsRunOutNothingIsPromised) {
  Node node;
  node.put("vm-1");
  node.dataplane.binds_left = 0;
  const auto refused = try_create(node, 3000, "vm-1");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(node.control().ports().used(), 0U);
}

TEST(Control, AfterARestartEveryForwardHasItsIdAndPort) {
  Node node;
  node.put("vm-1");
  const Forward before = create(node, 3000).forward;
  node.restart();
  const auto after = node.control().find_forward(kAdmin, "vm-1", to_string(before.id));
  ASSERT_TRUE(after);
  EXPECT_EQ(after->forward.host_port, before.host_port);
  EXPECT_NE(after->state, ForwardState::kFailed);
  EXPECT_EQ(node.dataplane.opened.at(before.id).second, before.host_port);
  EXPECT_TRUE(node.control().ports().is_used(before.host_port));
}

TEST(Control, ADeletedForwardDoesNotComeBackAndItsPortIsFree) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  node.run(node.control().delete_forward(kAdmin, "vm-1", to_string(forward.id), ClosePolicy::kKeep)).value();
  EXPECT_EQ(node.dataplane.closed.back(), std::pair(forward.id, ClosePolicy::kKeep));
  EXPECT_FALSE(node.control().ports().is_used(forward.host_port));
  node.restart();
  EXPECT_TRUE(node.dataplane.opened.empty());
}

TEST(Control, AForwardWhosePortIsLostIsReportedKeptAndCanBeDeleted) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  node.stop();
  node.dataplane.taken = {forward.host_port};
  node.start();
  const auto failed = node.control().find_forward(kAdmin, "vm-1", to_string(forward.id));
  ASSERT_TRUE(failed);
  EXPECT_NE(failed->reason, "");
  node.run(node.control().delete_forward(kAdmin, "vm-1", to_string(forward.id), ClosePolicy::kKeep)).value();
  EXPECT_EQ(node.control().registry().forward_count(), 0U);
}

// A narrowed guests.networks, an address that the host got meanwhile, or an edited store once exposed the
// node itself.
TEST(Control, ARestoredForwardToAForbiddenAddressIsKeptButNotServed) {
  for (const std::string address : {"10.0.0.1", "127.0.0.1", "169.254.169.254"}) {
    Node node;
    node.put("vm-1");
    node.put("vm-2");
    const Forward forward = create(node, 3000).forward;
    try_create(node, 3000, "vm-2").value();
    Instance moved = *node.control().registry().find_instance("vm-1");
    moved.guest_address = *parse_address(address);
    node.run(node.store().put_instance(moved)).value();
    node.restart();
    EXPECT_FALSE(node.dataplane.opened.contains(forward.id)) << address;
    EXPECT_EQ(node.dataplane.opened.size(), 1U);
    const auto kept = node.control().find_forward(kAdmin, "vm-1", to_string(forward.id));
    ASSERT_TRUE(kept);
    EXPECT_NE(kept->reason.find(address), std::string::npos) << kept->reason;
    EXPECT_TRUE(node.control().ports().is_used(forward.host_port));
  }
}

// The same holds if one of a forward's two addresses leads there.
TEST(Control, ARestoredForwardIsNotServedIfItsGuestsSecondAddressIsForbidden) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  Instance moved = *node.control().registry().find_instance("vm-1");
  moved.guest_address_v6 = *parse_address("2001:db8::1");
  node.run(node.store().put_instance(moved)).value();
  node.restart();
  EXPECT_FALSE(node.dataplane.opened.contains(forward.id));
  EXPECT_NE(node.control().find_forward(kAdmin, "vm-1", to_string(forward.id))->reason.find("2001:db8::1"),
            std::string::npos);
}

TEST(Control, ASecondGuestAddressIsServedKeptAndIdentifiesTheSession) {
  Node node;
  const auto put = [&](const std::string& addresses) {
    const Response response =
        node.call("PUT", "/instances/vm-1",
                  R"({"guest_addresses": [)" + addresses + R"(], "tap": "tap-vm-1", "owner": "alice"})");
    EXPECT_LT(response.status, 300U) << response.body;
    return node.control().registry().find_instance("vm-1")->session_id;
  };
  const Uuid first = put(R"("198.19.0.2")");
  create(node, 3000);
  const Uuid second = put(R"("198.19.0.2", "fd00:19::2")");
  EXPECT_NE(second, first) << "one address more";
  EXPECT_TRUE(node.dataplane.opened.empty());
  const ForwardId id = create(node, 3000).forward.id;
  const auto leads_to_both = [&] {
    const ForwardRoute& route = node.dataplane.opened.at(id).first;
    EXPECT_EQ(route.guest.endpoint, Endpoint(*parse_address("198.19.0.2"), 3000));
    EXPECT_EQ(route.guest.endpoint_v6, Endpoint(*parse_address("fd00:19::2"), 3000));
  };
  leads_to_both();
  EXPECT_EQ(put(R"("fd00:19::2", "198.19.0.2")"), second) << "the order means nothing";
  leads_to_both();
  node.restart();
  leads_to_both();
  EXPECT_EQ(put(R"("198.19.0.2", "fd00:19::2")"), second);
  EXPECT_NE(put(R"("198.19.0.2", "fd00:19::3")"), second);
  const Uuid fourth = put(R"("fd00:19::3")");
  EXPECT_EQ(put(R"("fd00:19::3")"), fourth);
}

std::string guests_of(const ForwardRoute& route) {
  const auto& [first, second] = route.guest;
  return to_string(first) + (second ? " " + to_string(*second) : "");
}

// DHCP may give a guest another address when it resumes.
TEST(Control, ARunningInstancesGuestAddressChangesInPlace) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  const Uuid session = node.control().registry().find_instance("vm-1")->session_id;
  const auto events = node.follow(kAdmin);
  const auto patch = [&](const std::string& body, unsigned status = 200) {
    const Response response = node.call("PATCH", "/instances/vm-1?session_id=" + to_string(session), body);
    EXPECT_EQ(response.status, status) << response.body;
    return Node::json(response);
  };
  const auto guests = [&] { return guests_of(node.dataplane.opened.at(forward.id).first); };
  auto now = patch(R"({"guest_address": "198.19.0.9"})").at("instance").as_object();
  EXPECT_EQ(now.at("guest_address"), "198.19.0.9");
  EXPECT_EQ(now.at("session_id").as_string(), to_string(session));
  EXPECT_EQ(now.at("port_forwards").at("current"), 1);
  EXPECT_EQ(guests(), "198.19.0.9:3000");
  EXPECT_EQ(types(*events), std::vector<std::string>{"instance.updated"});
  // A repeated request is answered alike and changes nothing.
  EXPECT_EQ(patch(R"({"guest_address": "198.19.0.9"})").at("instance"), now);
  EXPECT_TRUE(types(*events).empty());
  // What is not given stays; null removes the second address.
  now = patch(R"({"guest_address_v6": "fd00:19::9"})").at("instance").as_object();
  EXPECT_EQ(now.at("guest_addresses"), (boost::json::array{"198.19.0.9", "fd00:19::9"}));
  EXPECT_EQ(guests(), "198.19.0.9:3000 [fd00:19::9]:3000");
  patch(R"({"guest_address": "198.19.0.8"})");
  EXPECT_EQ(guests(), "198.19.0.8:3000 [fd00:19::9]:3000");
  const auto news = events->read().value();
  EXPECT_NE(news.find(R"("changed":["guest_address_v6"])"), std::string::npos) << news;
  EXPECT_NE(news.find(R"("changed":["guest_address"])"), std::string::npos) << news;
  node.restart();
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->session_id, session);
  EXPECT_EQ(guests(), "198.19.0.8:3000 [fd00:19::9]:3000");
  patch(R"({"guest_address_v6": null})");
  EXPECT_EQ(guests(), "198.19.0.8:3000");
  patch(R"({"guest_address": "fd00:19::9"})");
  EXPECT_EQ(guests(), "[fd00:19::9]:3000");
  patch(R"({"guest_address": "198.19.0.8", "guest_address_v6": "fd00:19::9"})");
  EXPECT_EQ(guests(), "198.19.0.8:3000 [fd00:19::9]:3000");
  EXPECT_EQ(node.control().ports().used(), 1U);
  EXPECT_TRUE(node.dataplane.closed.empty());
  node.restart();
  EXPECT_EQ(guests(), "198.19.0.8:3000 [fd00:19::9]:3000");
  // The orchestrator's next registration is the same machine's if it has the new address.
  const Response put =
      node.call("PUT", "/instances/vm-1",
                R"({"guest_addresses": ["198.19.0.8", "fd00:19::9"], "tap": "tap-vm-1", "owner": "alice"})");
  EXPECT_EQ(Node::json(put).at("instance").at("session_id").as_string(), to_string(session));
}

TEST(Control, AGuestAddressThatAPutWouldRefuseIsRefusedAndNothingChanges) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  const auto events = node.follow(kAdmin);
  const auto patch = [&](const std::string& body, const std::string& target = "vm-1") {
    const Response response = node.call("PATCH", "/instances/" + target, body);
    const auto problem = Node::json(response);
    const auto* field = problem.if_contains("field");
    return std::to_string(response.status) + " " + std::string(problem.at("code").as_string()) +
           (field != nullptr ? " " + std::string(field->as_string()) : "");
  };
  EXPECT_EQ(patch(R"({"guest_address": "10.0.0.1"})"), "422 invalid_address guest_address");
  EXPECT_EQ(patch(R"({"guest_address": "127.0.0.1"})"), "422 invalid_address guest_address");
  EXPECT_EQ(patch(R"({"guest_address": "here"})"), "422 invalid_address guest_address");
  EXPECT_EQ(patch(R"({"guest_address": null})"), "422 invalid_request guest_address");
  EXPECT_EQ(patch(R"({"guest_address_v6": "2001:db8::1"})"), "422 invalid_address guest_address_v6");
  EXPECT_EQ(patch(R"({"guest_address_v6": "198.19.0.9"})"), "422 invalid_address guest_address_v6");
  EXPECT_EQ(patch(R"({"guest_address": "fd00:19::8", "guest_address_v6": "fd00:19::9"})"),
            "422 invalid_address guest_address");
  EXPECT_EQ(patch(R"({"tap": "tap1"})"), "422 unknown_field tap");
  EXPECT_EQ(patch(R"({"guest_address": "198.19.0.9"})", "vm-2"), "404 not_found");
  EXPECT_EQ(patch(R"({"guest_address": "198.19.0.9"})", "vm-1?session_id=" + to_string(make_uuid())),
            "412 session_mismatch session_id");
  EXPECT_EQ(
      node.call("PATCH", "/instances/vm-1", R"({"guest_address": "198.19.0.9"})", node.tenant_key()).status,
      403U);
  EXPECT_EQ(guests_of(node.dataplane.opened.at(forward.id).first), "198.19.0.2:3000");
  EXPECT_TRUE(types(*events).empty());
  node.restart();
  EXPECT_EQ(guests_of(node.dataplane.opened.at(forward.id).first), "198.19.0.2:3000");
  // A stopped instance gets its address with its next session.
  node.run(node.control().stop_instance("vm-1")).value();
  EXPECT_EQ(patch(R"({"guest_address": "198.19.0.9"})"), "409 instance_not_running");
}

TEST(Control, AGuestCannotMoveToAnAddressThatAnotherOneHasBehindTheSameDevice) {
  Node node;
  const auto put = [&](const std::string& id, const std::string& address) {
    const Response response = node.call("PUT", "/instances/" + id,
                                        R"({"guest_address": ")" + address + R"(", "tap": "tap-)" + id +
                                            R"(", "device": "none", "owner": "alice"})");
    EXPECT_EQ(response.status, 201U) << response.body;
  };
  put("vm-1", "198.19.0.2");
  put("vm-2", "198.19.0.3");
  const auto move = [&](const std::string& id, const std::string& address) {
    return node.call("PATCH", "/instances/" + id, R"({"guest_address": ")" + address + R"("})");
  };
  const Response refused = move("vm-1", "198.19.0.3");
  EXPECT_EQ(refused.status, 409U);
  EXPECT_EQ(Node::code(refused), "guest_address_in_use");
  EXPECT_EQ(move("vm-2", "198.19.0.4").status, 200U);
  EXPECT_EQ(move("vm-1", "198.19.0.3").status, 200U) << "it is free now";
  for (int i = 0; i < 10; ++i) EXPECT_EQ(move("vm-1", i % 2 == 0 ? "198.19.0.2" : "198.19.0.3").status, 200U);
  EXPECT_EQ(Node::code(move("vm-2", "198.19.0.3")), "guest_address_in_use");
}

TEST(Control, AChangeOfAddressThatTheDiskDoesNotTakeChangesNothing) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  node.lock_store();
  const Response refused = node.call("PATCH", "/instances/vm-1", R"({"guest_address": "198.19.0.9"})");
  EXPECT_EQ(refused.status, 503U);
  EXPECT_EQ(guests_of(node.dataplane.opened.at(forward.id).first), "198.19.0.2:3000");
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->guest_address, *parse_address("198.19.0.2"));
  node.unlock_store();
  EXPECT_EQ(node.call("PATCH", "/instances/vm-1", R"({"guest_address": "198.19.0.9"})").status, 200U);
  EXPECT_EQ(guests_of(node.dataplane.opened.at(forward.id).first), "198.19.0.9:3000");
}

// Its machine is gone by the time that the disk has taken the change.
TEST(Control, ASessionThatEndsWhileItsNewAddressIsStoredStaysOver) {
  Node node;
  node.put("vm-1");
  create(node, 3000);
  const auto events = node.follow(kAdmin);
  node.while_the_disk_is_waited_for([&] { node.control().end_session("vm-1", SessionEnd::kTapDeleted); });
  const Response late = node.call("PATCH", "/instances/vm-1", R"({"guest_address": "198.19.0.9"})");
  EXPECT_EQ(late.status, 409U);
  EXPECT_EQ(Node::code(late), "instance_not_running");
  node.settle();
  const auto told = types(*events);
  EXPECT_EQ(std::ranges::count(told, "instance.updated"), 0);
  EXPECT_TRUE(node.dataplane.opened.empty());
  node.restart();
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->state, InstanceState::kStopped);
}

// A forward that is not served because of its guest's address is, once the guest has another one.
TEST(Control, AFailedForwardIsServedAtAnAddressThatIsAllowed) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  Instance moved = *node.control().registry().find_instance("vm-1");
  moved.guest_address = *parse_address("10.0.0.1");
  node.run(node.store().put_instance(moved)).value();
  node.restart();
  ASSERT_FALSE(node.dataplane.opened.contains(forward.id));
  EXPECT_EQ(node.call("PATCH", "/instances/vm-1", R"({"guest_address": "198.19.0.9"})").status, 200U);
  ASSERT_TRUE(node.dataplane.opened.contains(forward.id));
  EXPECT_EQ(guests_of(node.dataplane.opened.at(forward.id).first), "198.19.0.9:3000");
}

TEST(Control, ForwardsWithoutATargetLeadWhereTheirInstanceSays) {
  Node node("", nullptr);
  node.config().guests.socket_directories = {"/run/fc"};
  const auto put = [&](const std::string& target) {
    return node.call("PUT", "/instances/vm-1",
                     R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "owner": "alice")" + target + "}");
  };
  const std::string vsock = R"(, "target": {"kind": "firecracker_vsock", "socket": "/run/fc/v.sock"})";
  ASSERT_EQ(put(vsock).status, 201U);
  const auto session = node.control().registry().find_instance("vm-1")->session_id;
  EXPECT_EQ(Node::json(put(vsock)).at("instance").at("target"),
            (boost::json::object{{"kind", "firecracker_vsock"}, {"socket", "/run/fc/v.sock"}}));
  const std::string alice = node.tenant_key("alice");
  const auto forward = [&](const std::string& body, const std::string& key) {
    return node.call("POST", "/instances/vm-1/port-forwards", body, key);
  };
  const Response made = forward(R"({"guest_port": 3000})", alice);
  ASSERT_EQ(made.status, 201U) << made.body;
  const auto of_vsock = Node::json(made).at("port_forward").as_object();
  EXPECT_EQ(of_vsock.at("guest_port"), 0);
  EXPECT_EQ(of_vsock.at("target").at("port"), 3000);
  const ForwardId id = *parse_uuid(of_vsock.at("id").as_string());
  EXPECT_EQ(node.dataplane.opened.at(id).first.socket->port, 3000U);
  EXPECT_EQ(Node::json(forward("{}", alice)).at("field"), "guest_port");
  const Response tcp = forward(R"({"guest_port": 3001, "target": {"kind": "tcp"}})", alice);
  EXPECT_EQ(Node::json(tcp).at("port_forward").at("guest_port"), 3001);
  EXPECT_FALSE(Node::json(tcp).at("port_forward").as_object().contains("target"));
  // Another target changes the session in place, and forwards that are there lead where they did.
  const auto events = node.follow(kAdmin);
  const Response changed = put(R"(, "target": {"kind": "unix", "socket": "/run/fc/agent.sock"})");
  EXPECT_EQ(changed.status, 200U);
  EXPECT_EQ(Node::json(changed).at("instance").at("session_id").as_string(), to_string(session));
  const std::string news = events->read().value();
  EXPECT_NE(news.find(R"("changed":["target"])"), std::string::npos) << news;
  EXPECT_EQ(node.dataplane.opened.at(id).first.socket->port, 3000U);
  EXPECT_EQ(Node::json(forward("{}", alice)).at("port_forward").at("target").at("kind"), "unix");
  EXPECT_EQ(Node::json(forward(R"({"guest_port": 3000})", alice)).at("field"), "guest_port");
  node.restart();
  EXPECT_EQ(node.dataplane.opened.at(id).first.socket->port, 3000U);
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->target.kind, TargetKind::kUnix);
  EXPECT_EQ(put("").status, 200U);
  EXPECT_EQ(Node::json(forward(R"({"guest_port": 3002})", alice)).at("port_forward").at("guest_port"), 3002);
}

TEST(Control, AnInstancesTargetIsCheckedAsAForwards) {
  Node node;
  node.config().guests.socket_directories = {"/run/fc"};
  const auto field = [&](const std::string& target) {
    const Response refused = node.call(
        "PUT", "/instances/vm-1",
        R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "owner": "alice", "target": )" + target + "}");
    EXPECT_EQ(refused.status, 422U) << refused.body;
    return std::string(Node::json(refused).at("field").as_string());
  };
  EXPECT_EQ(field(R"({"kind": "udp"})"), "target.kind");
  EXPECT_EQ(field(R"({"kind": "unix"})"), "target.socket");
  EXPECT_EQ(field(R"({"kind": "unix", "socket": "/run/other.sock"})"), "target.socket");
  EXPECT_EQ(field(R"({"kind": "unix", "socket": "/run/fc/../x"})"), "target.socket");
  EXPECT_EQ(field(R"({"kind": "unix", "socket": "/run/fc/x", "port": 1})"), "target.port");
  EXPECT_EQ(field(R"({"kind": "firecracker_vsock", "socket": "/run/fc/x", "port": 0})"), "target.port");
  EXPECT_EQ(field(R"({"kind": "tcp", "socket": "/run/fc/x"})"), "target.socket");
}

TEST(Control, TheSameRegistrationAgainChangesNothing) {
  Node node;
  node.put("vm-1");
  create(node, 3000);
  const Uuid session = node.control().registry().find_instance("vm-1")->session_id;
  node.put("vm-1");
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->session_id, session);
  EXPECT_EQ(node.dataplane.opened.size(), 1U);
}

// A PUT that changed nothing about the machine silently ended all of its forwards.
TEST(Control, AnotherOwnerOrProfileChangesTheSessionInPlace) {
  Node node("[profiles.small]\nmax_forwarded_ports = 1\n");
  node.put("vm-1");
  create(node, 3000);
  create(node, 3001);
  const Uuid session = node.control().registry().find_instance("vm-1")->session_id;
  const auto events = node.follow(kAdmin);
  const auto alices = node.follow({.key_id = {}, .role = Role::kTenant, .owner = "alice"});
  const auto bobs = node.follow({.key_id = {}, .role = Role::kTenant, .owner = "bob"});
  const std::string alice = node.tenant_key("alice");
  const std::string bob = node.tenant_key("bob");
  const Response changed =
      node.call("PUT", "/instances/vm-1",
                R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "owner": "bob", "profile": "small"})");
  EXPECT_EQ(changed.status, 200U);
  const auto now = Node::json(changed).at("instance").as_object();
  EXPECT_EQ(now.at("session_id").as_string(), to_string(session));
  EXPECT_EQ(now.at("owner"), "bob");
  EXPECT_EQ(now.at("port_forwards").at("current"), 2) << "a smaller quota ends no forward";
  EXPECT_EQ(now.at("port_forwards").at("available"), 0);
  EXPECT_EQ(node.dataplane.opened.size(), 2U);
  EXPECT_TRUE(node.dataplane.ended_sessions.empty());
  EXPECT_EQ(node.dataplane.passed_on, std::vector<Uuid>{session});
  // The new owner gets the forwards, too.
  EXPECT_EQ(types(*events), (std::vector<std::string>{"instance.updated", "instance.updated",
                                                      "forward.updated", "forward.updated"}));
  EXPECT_EQ(types(*alices), std::vector<std::string>{"instance.updated"});
  const std::string bobs_news = bobs->read().value();
  EXPECT_NE(bobs_news.find(R"("owner":"bob","changed":["owner","profile"])"), std::string::npos) << bobs_news;
  EXPECT_EQ(node.call("GET", "/instances/vm-1", "", alice).status, 404U);
  EXPECT_EQ(node.call("GET", "/instances/vm-1/port-forwards", "", bob).status, 200U);
  EXPECT_EQ(try_create(node, 3002).error().code, ErrorCode::kQuotaExceeded);
  node.restart();
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->session_id, session);
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->owner, "bob");
  EXPECT_EQ(node.dataplane.opened.size(), 2U);
  EXPECT_EQ(node.call("PUT", "/instances/vm-1",
                      R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "owner": "bob"})")
                .status,
            200U);
  EXPECT_EQ(node.dataplane.passed_on.size(), 1U) << "another profile is no other owner";
}

TEST(Control, AnotherProcessIsWatchedInPlaceOfTheOneBefore) {
  Node node;
  test::Process first({.command = {"sleep", "1000"}});
  test::Process second({.command = {"sleep", "1000"}});
  const auto put = [&](std::int32_t pid) {
    return node.call("PUT", "/instances/vm-1",
                     R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "owner": "alice", "vmm_pid": )" +
                         std::to_string(pid) + "}");
  };
  const auto end = [](test::Process& process) {
    process.signal(SIGKILL);
    process.wait(std::chrono::seconds(10));
  };
  ASSERT_EQ(put(first.pid()).status, 201U);
  create(node, 3000);
  const Response refused = put(0x3fffffff);
  EXPECT_EQ(refused.status, 422U);
  EXPECT_EQ(Node::json(refused).at("field"), "vmm_pid");
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->vmm_pid, first.pid()) << "nothing was changed";
  EXPECT_EQ(put(second.pid()).status, 200U);
  end(first);
  node.context.poll();
  EXPECT_EQ(node.dataplane.opened.size(), 1U) << "the first is no longer its process";
  node.restart();
  EXPECT_EQ(node.dataplane.opened.size(), 1U);
  end(second);
  while (!node.dataplane.opened.empty()) ASSERT_EQ(node.context.run_one_for(std::chrono::seconds(10)), 1U);
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->ended, SessionEnd::kVmmExited);
}

TEST(Control, AProcessThatEndedBeforeItsSuccessorWasNamedHasEndedTheSession) {
  Node node;
  test::Process first({.command = {"sleep", "1000"}});
  test::Process second({.command = {"sleep", "1000"}});
  const std::string body =
      R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "owner": "alice", "vmm_pid": )";
  ASSERT_EQ(node.call("PUT", "/instances/vm-1", body + std::to_string(first.pid()) + "}").status, 201U);
  const Uuid session = node.control().registry().find_instance("vm-1")->session_id;
  create(node, 3000);
  first.signal(SIGKILL);
  first.wait(std::chrono::seconds(10));
  EXPECT_EQ(node.call("PUT", "/instances/vm-1", body + std::to_string(second.pid()) + "}").status, 200U);
  EXPECT_NE(node.control().registry().find_instance("vm-1")->session_id, session);
  EXPECT_TRUE(node.dataplane.opened.empty());
}

// A delayed stop, DELETE or PUT ended the session of the next machine.
TEST(Control, ARepeatedRequestDoesNotReachTheNextSession) {
  Node node;
  node.put("vm-1");
  const std::string first = to_string(node.control().registry().find_instance("vm-1")->session_id);
  const std::string of_first = "?session_id=" + first;
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop" + of_first).status, 200U);
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop" + of_first).status, 200U) << "again";
  node.put("vm-1");
  const ForwardStatus forward = create(node, 3000);
  const std::string registration = R"({"guest_address": "198.19.0.9", "tap": "tap9", "owner": "alice"})";
  for (const Response& late : {node.call("POST", "/instances/vm-1/stop" + of_first),
                               node.call("DELETE", "/instances/vm-1" + of_first),
                               node.call("PUT", "/instances/vm-1" + of_first, registration)}) {
    EXPECT_EQ(late.status, 412U) << late.body;
    EXPECT_EQ(Node::code(late), "session_mismatch");
  }
  EXPECT_TRUE(node.dataplane.opened.contains(forward.forward.id));

  const std::string second = to_string(node.control().registry().find_instance("vm-1")->session_id);
  EXPECT_EQ(node.call("PUT", "/instances/vm-1?session_id=" + second, registration).status, 200U);
  EXPECT_EQ(node.call("PUT", "/instances/vm-1?session_id=" + second, registration).status, 412U)
      << "it has replaced that one";
  const std::string third = to_string(node.control().registry().find_instance("vm-1")->session_id);
  EXPECT_EQ(node.call("PUT", "/instances/vm-1?session_id=" + third, registration).status, 200U) << "the same";
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1?session_id=" + third).status, 204U);
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1?session_id=" + third).status, 404U);
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop?session_id=" + third).status, 404U);
  EXPECT_EQ(node.call("PUT", "/instances/vm-1?session_id=" + third, registration).status, 412U)
      << "it would be another machine's";
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop?session_id=now").status, 422U);
}

TEST(Control, ANewSessionEndsTheOldOnesForwardsForGood) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  const Response replaced = node.call("PUT", "/instances/vm-1",
                                      R"({"guest_address": "198.19.0.3", "tap": "tap0", "owner": "alice"})");
  EXPECT_EQ(replaced.status, 200U);
  EXPECT_EQ(node.dataplane.closed.back(), std::pair(forward.id, ClosePolicy::kReset));
  node.restart();
  EXPECT_TRUE(node.dataplane.opened.empty());
}

TEST(Control, AStoppedInstanceHasNoForwardsAndTakesNone) {
  Node node;
  node.put("vm-1");
  create(node, 3000);
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop").status, 200U);
  EXPECT_TRUE(node.dataplane.opened.empty());
  const Response refused = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  EXPECT_EQ(refused.status, 409U);
  EXPECT_EQ(Node::code(refused), "instance_not_running");
  node.restart();
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->state, InstanceState::kStopped);
  node.put("vm-1");
  EXPECT_EQ(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 201U);
}

TEST(Control, ADeletedInstanceTakesItsForwardsWithIt) {
  Node node;
  node.put("vm-1");
  create(node, 3000);
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1").status, 204U);
  EXPECT_TRUE(node.dataplane.opened.empty());
  EXPECT_EQ(node.control().ports().used(), 0U);
  node.restart();
  EXPECT_EQ(node.control().registry().instance_count(), 0U);
}

TEST(Control, AMachineThatIsGoneEndsItsSessionAtOnceAndForGood) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  const auto events = node.follow(kAdmin);
  node.control().end_session("vm-1", SessionEnd::kCarrierLost);
  EXPECT_EQ(node.dataplane.closed.back(), std::pair(forward.id, ClosePolicy::kReset));
  EXPECT_TRUE(node.control().ports().is_used(forward.host_port)) << "the store still promises it";
  node.settle();
  EXPECT_EQ(node.control().ports().used(), 0U);
  const auto shown = Node::json(node.call("GET", "/instances/vm-1")).at("instance").as_object();
  EXPECT_EQ(shown.at("state"), "stopped");
  EXPECT_EQ(shown.at("reason"), "carrier_lost");
  EXPECT_EQ(types(*events), std::vector<std::string>{"instance.stopped"});
  node.restart();
  EXPECT_TRUE(node.dataplane.opened.empty());
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->ended, SessionEnd::kCarrierLost);
}

// The disk was full when a machine died: after a restart its forwards led to the tap's next machine.
TEST(Control, AnEndThatTheDiskRefusesIsServedNoMoreAndSavedLater) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  node.lock_store();
  const auto events = node.follow(kAdmin);
  node.control().end_session("vm-1", SessionEnd::kVmmExited);
  EXPECT_TRUE(node.dataplane.opened.empty());
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop").status, 503U);
  EXPECT_EQ(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 409U);
  EXPECT_TRUE(node.control().ports().is_used(forward.host_port)) << "the store still promises it";
  // After a crash nothing would show that it is over: it is not reported before it is on disk.
  const auto shown = Node::json(node.call("GET", "/instances/vm-1")).at("instance").as_object();
  EXPECT_EQ(shown.at("state"), "ending");
  EXPECT_EQ(shown.at("reason"), "vmm_exited");
  EXPECT_TRUE(types(*events).empty());
  node.unlock_store();
  node.control().retry();
  node.settle();
  EXPECT_FALSE(node.control().ports().is_used(forward.host_port));
  EXPECT_EQ(types(*events), std::vector<std::string>{"instance.stopped"});
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop").status, 200U);
  node.restart();
  EXPECT_EQ(node.control().registry().forward_count(), 0U);
}

TEST(Control, ASessionOfAnEarlierBootIsEndedAtStart) {
  Node node;
  node.put("vm-1");
  create(node, 3000);
  Instance before = *node.control().registry().find_instance("vm-1");
  before.boot_id = "4fd4c8d0-0000-0000-0000-000000000000";
  node.run(node.store().put_instance(before)).value();
  node.restart();
  EXPECT_TRUE(node.dataplane.opened.empty());
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->ended, SessionEnd::kNodeRebooted);
  node.settle();
  EXPECT_EQ(node.control().ports().used(), 0U);
}

// docker0 had the index of a tap of the previous boot: the orchestrator, which connects through it, was
// refused.
TEST(Control, InterfacesOfAnEarlierBootAreNoGuests) {
  Node node;
  for (const std::string& id : {std::string("runs"), std::string("stopped"), std::string("this-boot")}) {
    node.put(id);
    if (id != "runs") node.call("POST", "/instances/" + id + "/stop");
    Instance before = *node.control().registry().find_instance(id);
    before.tap_index = 1;
    if (id != "this-boot") before.boot_id = "4fd4c8d0-0000-0000-0000-000000000000";
    node.run(node.store().put_instance(before)).value();
  }
  node.restart();
  const Registry& registry = node.control().registry();
  EXPECT_TRUE(registry.has_tap(1, "")) << "its machine may be there still";
  ASSERT_EQ(node.call("DELETE", "/instances/this-boot").status, 204U);
  EXPECT_FALSE(registry.has_tap(1, ""));
  EXPECT_EQ(registry.find_instance("runs")->ended, SessionEnd::kNodeRebooted);
}

TEST(Control, AProcessThatIsGoneAtStartEndsItsSession) {
  Node node;
  node.put("vm-1");
  create(node, 3000);
  Instance before = *node.control().registry().find_instance("vm-1");
  before.vmm_pid = ::getpid();
  before.vmm_started = 1;  // another process, long ago
  node.run(node.store().put_instance(before)).value();
  node.restart();
  EXPECT_TRUE(node.dataplane.opened.empty());
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->ended, SessionEnd::kVmmExited);
}

TEST(Control, TwoRunningInstancesCannotShareATap) {
  Node node;
  node.put("vm-1");
  const std::string same = R"({"guest_address": "198.19.0.3", "tap": "tap-vm-1", "owner": "bob"})";
  const Response refused = node.call("PUT", "/instances/vm-2", same);
  EXPECT_EQ(refused.status, 409U);
  EXPECT_EQ(Node::code(refused), "tap_in_use");
  node.call("POST", "/instances/vm-1/stop");
  EXPECT_EQ(node.call("PUT", "/instances/vm-2", same).status, 201U);
}

TEST(Control, AGuestAddressIsUniqueBehindItsDeviceAndNotOnTheNode) {
  Node node;
  const auto put = [&node](const std::string& id, const std::string& device, const std::string& addresses) {
    return node.call("PUT", "/instances/" + id,
                     R"({"guest_addresses": [)" + addresses + R"(], "tap": "tap-)" + id +
                         R"(", "device": ")" + device + R"(", "owner": "bob"})");
  };
  EXPECT_EQ(put("vm-1", "none", R"("198.19.0.2", "fd00:19::2")").status, 201U);
  EXPECT_EQ(put("vm-1", "none", R"("198.19.0.2", "fd00:19::2")").status, 200U) << "its own";
  const Response refused = put("vm-2", "none", R"("fd00:19::2")");
  EXPECT_EQ(refused.status, 409U) << "the second one counts, too";
  EXPECT_EQ(Node::code(refused), "guest_address_in_use");
  EXPECT_EQ(put("vm-2", "tap-vm-2", R"("198.19.0.2")").status, 409U) << "the routes may lead to its tap";
  EXPECT_EQ(put("vm-2", "tap-vm-2", R"("198.19.0.4")").status, 201U);
  EXPECT_EQ(put("vm-4", "none", R"("198.19.0.4")").status, 409U) << "the other way round";
  EXPECT_EQ(put("vm-4", "tap-vm-4", R"("198.19.0.4")").status, 201U) << "behind its own tap";
  EXPECT_EQ(put("vm-3", "none", R"("198.19.0.3")").status, 201U);
  EXPECT_EQ(put("vm-3", "none", R"("198.19.0.2")").status, 409U) << "another address is another session";
  node.call("POST", "/instances/vm-1/stop");
  EXPECT_EQ(put("vm-3", "none", R"("198.19.0.2")").status, 200U);
}

TEST(Control, AnotherDeviceIsAnotherSessionAndIsRemembered) {
  Node node;
  const auto put = [&node](const std::string& device) {
    return Node::json(
               node.call("PUT", "/instances/vm-1",
                         R"({"guest_address": "198.19.0.2", "tap": "tap0", "owner": "bob")" + device + "}"))
        .at("instance")
        .as_object();
  };
  const boost::json::object by_route = put(R"(, "device": "none")");
  EXPECT_EQ(by_route.at("device").as_string(), "none");
  node.restart();
  EXPECT_EQ(node.control().registry().find_instance("vm-1")->device, "none");
  EXPECT_EQ(put(R"(, "device": "none")").at("session_id"), by_route.at("session_id"));
  const boost::json::object by_tap = put(R"(, "device": "tap0")");
  EXPECT_FALSE(by_tap.contains("device")) << "that is the default";
  EXPECT_NE(by_tap.at("session_id"), by_route.at("session_id"));
}

TEST(Control, AForwardThatFailedIsServedOnceItsPortIsFree) {
  Node node;
  node.put("vm-1");
  const Forward forward = create(node, 3000).forward;
  node.stop();
  node.dataplane.opened.clear();
  node.dataplane.taken = {forward.host_port};
  node.start();
  const auto events = node.follow(kAdmin);
  node.control().retry();
  EXPECT_TRUE(node.dataplane.opened.empty());
  node.dataplane.taken.clear();
  node.control().retry();
  EXPECT_TRUE(node.dataplane.opened.contains(forward.id));
  EXPECT_NE(node.control().find_forward(kAdmin, "vm-1", to_string(forward.id))->state, ForwardState::kFailed);
  EXPECT_EQ(types(*events), std::vector<std::string>{"forward.listening"});
}

// 252 forwards failed until the next retry, while the API reported no fault: the start was faster than the
// kernel, which releases a killed process's listeners up to 2 s later.
TEST(Control, PortsThatAKilledProcessStillHoldsAreWaitedForWhileTheOthersAreServed) {
  Node node;
  node.put("vm-1");
  const Forward first = create(node, 3000).forward;
  const Forward second = create(node, 3001).forward;
  const Forward third = create(node, 3002).forward;
  node.stop();
  node.dataplane.opened.clear();
  node.dataplane.refusals = {{first.host_port, 5}, {second.host_port, 10}};
  int rounds = 0;
  node.dataplane.on_refusal = [&](std::uint16_t port) {
    if (port == second.host_port && ++rounds == 2) {
      EXPECT_TRUE(node.dataplane.opened.contains(third.id));
    }
  };
  node.start();
  EXPECT_EQ(node.dataplane.opened.size(), 3U);
  EXPECT_EQ(rounds, 10);
  EXPECT_EQ(node.control().forwards_failed(), 0U);
}

TEST(Control, ABatchIsMadeAsAWholeOrNotAtAll) {
  Node node("[ports]\nrange = \"20000-20009\"\n");
  node.put("vm-1");
  node.dataplane.taken = {20003};
  const std::vector<ForwardSpec> specs = {{.guest_port = 3000, .label = ""},
                                          {.guest_port = 3001, .label = ""},
                                          {.guest_port = 3002, .label = "", .host_port = 20003}};
  const auto refused = create_forwards(node, kAdmin, "vm-1", specs);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kHostPortTaken);
  EXPECT_EQ(refused.error().field, "port_forwards[2].host_port");
  EXPECT_TRUE(node.dataplane.opened.empty());
  EXPECT_EQ(node.control().ports().used(), 0U);
  node.dataplane.taken.clear();
  ASSERT_TRUE(create_forwards(node, kAdmin, "vm-1", specs));
  EXPECT_EQ(node.dataplane.opened.size(), 3U);
}

TEST(Control, ABatchBeyondTheQuotaTakesNoPort) {
  Node node;
  node.put("vm-1");
  const std::vector<ForwardSpec> specs(6, {.guest_port = 3000, .label = ""});
  const auto refused = create_forwards(node, kAdmin, "vm-1", specs);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kQuotaExceeded);
  EXPECT_EQ(node.dataplane.bound, 0);
}

TEST(Control, AReloadAppliesLiveKeysAndNamesTheRest) {
  Node node;
  node.put("vm-1");
  Config wanted = node.control().config();
  wanted.profiles["default"].max_forwarded_ports = 1;
  wanted.node.public_hostname = "other.example";
  wanted.proxy.workers = 7;
  EXPECT_EQ(take_live_keys(node.config(), wanted), std::vector<std::string>{"proxy.workers"});
  node.control().apply_config();
  EXPECT_EQ(node.control().config().node.public_hostname, "other.example");
  EXPECT_NE(node.control().config().proxy.workers, 7U);
  create(node, 3000);
  EXPECT_EQ(try_create(node, 3001).error().code, ErrorCode::kQuotaExceeded);
}

TEST(Control, ProfilesOfTheFleetGoBeforeThoseOfTheConfigurationAndOutlastAReload) {
  Node node("[profiles.small]\nmax_forwarded_ports = 1\n");
  const auto profiles = [&] {
    std::map<std::string, std::uint32_t> out;
    for (const auto& [name, profile] : node.control().profiles()) out[name] = profile.max_forwarded_ports;
    return out;
  };
  using Expected = std::map<std::string, std::uint32_t>;
  EXPECT_EQ(profiles(), (Expected{{"default", 5}, {"small", 1}}));
  node.control().set_fleet_profiles(
      {{"small", {.max_forwarded_ports = 2}}, {"large", {.max_forwarded_ports = 9}}});
  const Expected both{{"default", 5}, {"small", 2}, {"large", 9}};
  EXPECT_EQ(profiles(), both);
  const auto put = [&](const std::string& profile) {
    return node.call(
        "PUT", "/instances/vm-1",
        R"({"guest_address": "198.19.0.2", "tap": "tap0", "owner": "alice", "profile": ")" + profile + "\"}");
  };
  EXPECT_EQ(put("large").status, 201U);
  const auto limit = [&] {
    return Node::json(node.call("GET", "/instances/vm-1"))
        .at("instance")
        .at("port_forwards")
        .at("limit")
        .as_int64();
  };
  EXPECT_EQ(limit(), 9);
  Config wanted = node.control().config();
  wanted.profiles["small"].max_forwarded_ports = 4;
  take_live_keys(node.config(), wanted);
  node.control().apply_config();
  EXPECT_EQ(profiles(), both);
  node.control().set_fleet_profiles({});
  EXPECT_EQ(profiles(), (Expected{{"default", 5}, {"small", 4}}));
  EXPECT_EQ(limit(), 5) << "the default's";
  node.control().set_fleet_profiles({{"default", {.max_forwarded_ports = 3}}});
  EXPECT_EQ(limit(), 3);
}

TEST(Control, WhatIsOfAProfileThatIsNotKnownYetIsRefusedForAMoment) {
  Node node;
  node.control().set_fleet_profiles({{"large", {.max_forwarded_ports = 9}}});
  const auto put = [&](const std::string& name) {
    return node.call(
        "PUT", "/instances/" + name,
        R"({"guest_address": "198.19.0.2", "tap": "tap0", "owner": "alice", "profile": "large"})");
  };
  ASSERT_EQ(put("vm-1").status, 201U);
  node.control().set_fleet_profiles({});  // as after a start
  bool pending = true;
  node.control().set_profiles_pending([&] { return pending; });
  const auto create = [&] {
    return node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  };
  for (const Response& refused : {create(), put("vm-1"), put("vm-2")}) {
    EXPECT_EQ(refused.status, 503U) << refused.body;
    EXPECT_EQ(Node::code(refused), "store_unavailable");
  }
  pending = false;  // the fleet has no such profile
  EXPECT_EQ(create().status, 201U) << "the default's";
  EXPECT_EQ(put("vm-2").status, 422U);
  pending = true;
  node.control().set_fleet_profiles({{"large", {.max_forwarded_ports = 9}}});
  EXPECT_EQ(create().status, 201U);
  node.control().set_profiles_pending(nullptr);
}

TEST(Control, TheHostPortOfAForwardThatHasEndedIsKeptFromOtherOwnersForAWhile) {
  Node node;
  node.put("vm-1", "alice");
  node.put("vm-2", "bob");
  const auto ask = [&](const std::string& instance) {
    return node.call("POST", "/instances/" + instance + "/port-forwards",
                     R"({"guest_port": 3000, "host_port": 31000})");
  };
  const std::string path = "/instances/vm-1/port-forwards/" + Node::forward_id(ask("vm-1"));
  EXPECT_EQ(node.call("DELETE", path).status, 204U);
  EXPECT_EQ(node.control().ports().used(), 0U);
  const Response refused = ask("vm-2");
  EXPECT_EQ(refused.status, 409U);
  EXPECT_EQ(Node::code(refused), "host_port_taken");
  EXPECT_NE(refused.body.find("try again in 60 s"), std::string::npos) << refused.body;
  EXPECT_EQ(ask("vm-1").status, 201U) << "its owner may have it";
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1").status, 204U);
  EXPECT_EQ(ask("vm-2").status, 409U) << "whatever has ended it";
  node.config().ports.rest = std::chrono::seconds(0);
  node.put("vm-1", "alice");
  EXPECT_EQ(ask("vm-1").status, 201U);
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop").status, 200U);
  EXPECT_EQ(ask("vm-2").status, 201U);
}

}  // namespace
}  // namespace portway

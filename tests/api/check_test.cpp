// GET .../check with a real guest, in network namespaces: what the guest answers the node and its clients.
#include "api/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/fd.h"
#include "tests/control/node.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using test::NetworkNamespace;
using test::Node;
using test::run_command;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr std::uint16_t kPort = 3000;

/// node (tap-vm-1) -- (eth0) guest, 198.19.0.2, whose default route leads to the node.
class CheckTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(test::why_no_namespaces());
    host_ = std::make_unique<NetworkNamespace>();
    guest_ = std::make_unique<NetworkNamespace>();
    test::connect({*guest_, "eth0", "198.19.0.2/24"}, {*host_, "tap-vm-1", "198.19.0.1/24"});
    guest_->ip("route add default via 198.19.0.1");
  }

  /// The guest's service, without a backlog: it has room for one unaccepted connection.
  Fd serve() const {
    Fd fd;
    guest_->run([&] {
      constexpr int kOn = 1;
      const Endpoint local(boost::asio::ip::make_address("198.19.0.2"), kPort);
      fd.reset(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
      ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &kOn, sizeof kOn);
      ASSERT_EQ(::bind(fd.get(), local.data(), static_cast<socklen_t>(local.size())), 0);
      ASSERT_EQ(::listen(fd.get(), 0), 0);
    });
    return fd;
  }

  void filter(const std::string& rule) const {
    run_command(guest_.get(),
                {"nft",
                 "add table inet f; add chain inet f in { type filter hook input priority 0; }; "
                 "add rule inet f in " +
                     rule});
  }

  /// The reported steps, for a node that has the instance vm-1 with a forward.
  static boost::json::array steps_of(Node& node, const std::string& id, const std::string& query = "") {
    const Response answer = node.call("GET", "/instances/vm-1/port-forwards/" + id + "/check" + query);
    EXPECT_EQ(answer.status, 200U);
    std::string text;
    while ((text = answer.stream->read().value()).empty()) {
      node.context.restart();
      if (node.context.run_one_for(std::chrono::seconds(10)) == 0) return {};
    }
    return boost::json::parse(text).at("check").at("steps").as_array();
  }
  static std::string create_forward(Node& node) {
    const Response made = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
    return std::string(Node::json(made).at("port_forward").at("id").as_string());
  }
  /// The detail of a step that is not ok; empty if it is, or is missing.
  static std::string fault(const boost::json::array& steps, std::string_view name) {
    for (const auto& step : steps) {
      if (step.at("step").as_string() == name && !step.at("ok").as_bool())
        return std::string(step.at("detail").as_string());
    }
    return "";
  }

  struct Found {
    bool ok;
    std::string guest;  // the details of the steps "guest"
  };
  /// Checks on a node whose guests see their clients' addresses.
  Found check(const std::string& query = "", ReturnPath::Kind kind = ReturnPath::Kind::kProgram) const {
    Found found{};
    host_->run([&] {
      const auto path = ReturnPath::start(kind).value();
      Node node("", path.get());
      register_guest(node);
      const Response made = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
      const std::string id(Node::json(made).at("port_forward").at("id").as_string());
      const Response answer = node.call("GET", "/instances/vm-1/port-forwards/" + id + "/check" + query);
      ASSERT_EQ(answer.status, 200U);
      std::string text;
      while ((text = answer.stream->read().value()).empty()) {
        node.context.restart();
        ASSERT_GT(node.context.run_one_for(std::chrono::seconds(10)), 0U);
      }
      const auto result = boost::json::parse(text).at("check").as_object();
      bool guests_ok = true;
      for (const auto& step : result.at("steps").as_array()) {
        if (step.at("step") != "guest") continue;
        guests_ok = guests_ok && step.at("ok").as_bool();
        found.guest += std::string(step.at("detail").as_string()) + "\n";
      }
      ASSERT_NE(found.guest, "") << text;
      found.ok = result.at("ok").as_bool();
      EXPECT_EQ(found.ok, guests_ok);
    });
    return found;
  }

  virtual void register_guest(Node& node) const { node.put("vm-1"); }

  std::unique_ptr<NetworkNamespace> host_;
  std::unique_ptr<NetworkNamespace> guest_;
};

// The check made a whole connection, which took the client's place at a service that accepts once.
TEST_F(CheckTest, AServiceIsFoundAndGetsNoConnection) {
  const Fd service = serve();
  for (int i = 0; i < 3; ++i) {
    const Found found = check();
    EXPECT_TRUE(found.ok) << found.guest;
    EXPECT_THAT(found.guest,
                AllOf(HasSubstr("accepts connections"), HasSubstr("192.0.2.1"), HasSubstr("the node")));
  }
  EXPECT_EQ(::accept4(service.get(), nullptr, nullptr, SOCK_CLOEXEC), -1);
  EXPECT_EQ(errno, EAGAIN);
}

TEST_F(CheckTest, AClosedPortIsClosedToBoth) {
  const Found found = check();
  EXPECT_FALSE(found.ok);
  EXPECT_THAT(found.guest, HasSubstr("nothing listens on 198.19.0.2:3000"));
}

TEST_F(CheckTest, AGuestThatCannotAnswerItsClientsIsReported) {
  const Fd service = serve();
  guest_->ip("route del default");
  const Found found = check();
  EXPECT_FALSE(found.ok);
  EXPECT_THAT(found.guest, AllOf(HasSubstr("answers the node"), HasSubstr("default route")));
  const Found plain = check("", ReturnPath::Kind::kGuardOnly);
  EXPECT_TRUE(plain.ok) << "clients come from the node's address";
  EXPECT_THAT(plain.guest, Not(HasSubstr("192.0.2.1")));
}

TEST_F(CheckTest, AGuestsFilterIsReportedForTheClientInTheRequest) {
  const Fd service = serve();
  filter("ip saddr 203.0.113.9 tcp dport 3000 reject with tcp reset");
  EXPECT_TRUE(check().ok);
  EXPECT_TRUE(check("?client=203.0.113.8").ok);
  const Found refused = check("?client=203.0.113.9");
  EXPECT_FALSE(refused.ok);
  EXPECT_THAT(refused.guest,
              AllOf(HasSubstr("refuses"), HasSubstr("from 203.0.113.9"), HasSubstr("firewall")));
}

TEST_F(CheckTest, AGuestThatAnswersItsClientsOnlyIsWell) {
  const Fd service = serve();
  filter("ip saddr 198.19.0.1 tcp dport 3000 reject with tcp reset");
  const Found found = check();
  EXPECT_TRUE(found.ok);
  EXPECT_THAT(found.guest, HasSubstr("The node's own address gets no such answer"));
}

TEST_F(CheckTest, AGuestThatDropsAllIsSilentToBoth) {
  const Fd service = serve();
  filter("tcp dport 3000 drop");
  const Found found = check();
  EXPECT_FALSE(found.ok);
  EXPECT_THAT(found.guest, AllOf(HasSubstr("does not answer"), HasSubstr("and from the node")));
}

TEST_F(CheckTest, AClientThatIsTheGuestItselfComesFromTheNode) {
  const Fd service = serve();
  const Found found = check("?client=198.19.0.2");
  EXPECT_TRUE(found.ok);
  EXPECT_THAT(found.guest, Not(HasSubstr("from 198.19.0.2")));
}

TEST_F(CheckTest, ATapThatWasRenamedIsFoundByItsIndex) {
  const Fd service = serve();
  host_->run([&] {
    Node node;
    node.put("vm-1");
    const Response made = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
    const std::string id(Node::json(made).at("port_forward").at("id").as_string());
    CheckSubject subject{
        .forward = node.control()
                       .find_forward({.key_id = {}, .role = Role::kAdmin, .owner = "admin"}, "vm-1", id)
                       .value(),
        .instance = *node.control().registry().find_instance("vm-1"),
        .tap_state = TapState::kUp,
        .client = std::nullopt};
    host_->ip("link set tap-vm-1 down");
    host_->ip("link set tap-vm-1 name tap-new");
    host_->ip("link set tap-new up");
    host_->ip("link add tap-vm-1 type veth peer name other");
    const auto stream = check_forward(node.context, subject);
    std::string text;
    while ((text = stream->read().value()).empty()) {
      node.context.restart();
      ASSERT_GT(node.context.run_one_for(std::chrono::seconds(10)), 0U);
    }
    EXPECT_EQ(boost::json::parse(text).at("check").at("ok"), true) << text;
  });
}

/// The guest has fd00:19::2 too, where nothing listens.
class DualStackCheckTest : public CheckTest {
 protected:
  void SetUp() override {
    CheckTest::SetUp();
    if (!host_) return;
    for (const NetworkNamespace* network : {host_.get(), guest_.get()})
      network->set("net/ipv6/conf/all/accept_dad", "0");
    host_->ip("address add fd00:19::1/64 nodad dev tap-vm-1");
    guest_->ip("address add fd00:19::2/64 nodad dev eth0");
    guest_->ip("-6 route add default via fd00:19::1");
  }
  void register_guest(Node& node) const override {
    const Response response = node.call(
        "PUT", "/instances/vm-1",
        R"({"guest_addresses": ["198.19.0.2", "fd00:19::2"], "tap": "tap-vm-1", "owner": "alice"})");
    ASSERT_EQ(response.status, 201U) << response.body;
  }
};

TEST_F(DualStackCheckTest, AServiceThatListensAtOneAddressOnlyIsReportedForClientsOfTheOther) {
  const Fd service = serve();
  const Found both = check();
  EXPECT_FALSE(both.ok);
  EXPECT_THAT(both.guest, AllOf(HasSubstr("accepts connections on 198.19.0.2:3000"), HasSubstr("192.0.2.1"),
                                HasSubstr("nothing listens on [fd00:19::2]:3000"), HasSubstr("2001:db8::1")));
  const Found v4 = check("?client=203.0.113.9");
  EXPECT_TRUE(v4.ok);
  EXPECT_THAT(v4.guest, AllOf(HasSubstr("from 203.0.113.9"), Not(HasSubstr("fd00"))));
  const Found v6 = check("?client=2001:db8::9");
  EXPECT_FALSE(v6.ok);
  EXPECT_THAT(v6.guest, AllOf(HasSubstr("from 2001:db8::9"), Not(HasSubstr("198.19.0.2"))));
}

// The guest was blamed.
TEST_F(CheckTest, TwoGuestsWithOneAddressAreReportedIfTheKernelChecksSourcesStrictly) {
  const Fd service = serve();
  const NetworkNamespace other;
  test::connect({other, "eth0", "198.19.0.2/24"}, {*host_, "tap-other", "198.19.0.1/24"});
  host_->ip("route add 198.19.0.2 dev tap-other");
  for (const auto kind : {ReturnPath::Kind::kProgram, ReturnPath::Kind::kGuardOnly}) {
    for (const char* rp_filter : {"1", "2", "0"}) {
      SCOPED_TRACE(rp_filter);
      for (const char* device : {"all", "tap-vm-1"}) {
        host_->set("net/ipv4/conf/" + std::string(device) + "/rp_filter", rp_filter);
      }
      host_->run([&] {
        const auto path = ReturnPath::start(kind).value();
        Node node("", path.get());
        node.put("vm-1");
        const auto steps = steps_of(node, create_forward(node));
        if (std::string_view(rp_filter) == "1") {
          EXPECT_THAT(fault(steps, "route"),
                      AllOf(HasSubstr("rp_filter"), HasSubstr("leads over tap-other"),
                            HasSubstr("sysctl -w net/ipv4/conf/tap-vm-1/rp_filter=2")));
          // The remedy alone is enough.
          host_->set("net/ipv4/conf/tap-vm-1/rp_filter", "2");
          EXPECT_EQ(fault(steps_of(node, create_forward(node)), "route"), "");
          host_->set("net/ipv4/conf/tap-vm-1/rp_filter", "1");
        } else {
          EXPECT_EQ(fault(steps, "route"), "");
          EXPECT_EQ(fault(steps, "guest"), "");
        }
      });
    }
  }
}

TEST_F(CheckTest, ATapThatIsABridgePortIsRefusedAndReportedWhenItBecomesOne) {
  const Fd service = serve();
  host_->ip("link add br0 type bridge");
  host_->ip("link set br0 up");
  host_->run([&] {
    Node node;
    node.put("vm-1");
    const std::string id = create_forward(node);
    EXPECT_EQ(fault(steps_of(node, id), "tap"), "");
    host_->ip("link set tap-vm-1 master br0");
    node.put("vm-1");  // unchanged: reads what the kernel has reported
    EXPECT_THAT(fault(steps_of(node, id), "tap"), HasSubstr("port of bridge br0"));
    const auto instance = Node::json(node.call("GET", "/instances/vm-1")).at("instance").as_object();
    EXPECT_THAT(std::string(instance.at("tap_fault").as_string()), HasSubstr("nomaster"));

    node.run(node.control().stop_instance("vm-1")).value();
    const Response refused = node.call(
        "PUT", "/instances/vm-1", R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "owner": "alice"})");
    EXPECT_EQ(refused.status, 422U);
    EXPECT_THAT(refused.body, AllOf(HasSubstr(R"("field":"tap")"), HasSubstr("the device br0")));
    host_->ip("link set tap-vm-1 nomaster");
    node.put("vm-1");
    EXPECT_FALSE(
        Node::json(node.call("GET", "/instances/vm-1")).at("instance").as_object().contains("tap_fault"));
  });
}

// A bridge that is missing was reported as the tap's fault, and a guest behind one as one on the tap.
TEST_F(CheckTest, AGuestsDeviceIsAStepOfItsOwn) {
  const Fd service = serve();
  host_->ip("link add br0 type bridge");
  host_->ip("link set tap-vm-1 master br0");
  host_->ip("address flush dev tap-vm-1");
  host_->ip("address add 198.19.0.1/24 dev br0");
  host_->ip("link set br0 up");
  host_->run([&] {
    Node node;
    const auto put = [&] {
      return node
          .call("PUT", "/instances/vm-1",
                R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "device": "br0", "owner": "alice"})")
          .status;
    };
    ASSERT_EQ(put(), 201U);
    const std::string id = create_forward(node);
    auto steps = steps_of(node, id);
    EXPECT_EQ(fault(steps, "tap") + fault(steps, "device") + fault(steps, "guest"), "");
    host_->ip("link del br0");
    ASSERT_EQ(put(), 200U);  // unchanged: reads what the kernel has reported
    steps = steps_of(node, id);
    EXPECT_EQ(fault(steps, "tap"), "") << "the tap is there";
    EXPECT_THAT(fault(steps, "device"), HasSubstr("no interface br0"));
  });
  EXPECT_THAT(
      guest_step({boost::asio::ip::make_address("198.19.0.2"), 3000}, {.node = EHOSTUNREACH, .behind = "br0"})
          .detail,
      HasSubstr("Nothing behind br0 has the address 198.19.0.2"));
}

// The check reported "listening", but at an address at which nobody could reach it.
TEST_F(CheckTest, AnAddressThatTheNodeHasLostIsReported) {
  const Fd service = serve();
  host_->run([&] {
    Node node;
    node.put("vm-1");
    const std::string id = create_forward(node);
    const auto forward = [&] {
      return Node::json(node.call("GET", "/instances/vm-1/port-forwards/" + id))
          .at("port_forward")
          .as_object();
    };
    EXPECT_EQ(fault(steps_of(node, id), "listener"), "");
    EXPECT_EQ(forward().at("state"), "listening");
    node.lost_addresses = node.control().config().node.public_addresses;
    const std::string lost = "does not have " + node.lost_addresses.front().to_string();
    EXPECT_THAT(fault(steps_of(node, id), "listener"), HasSubstr(lost));
    node.control().retry();
    EXPECT_EQ(forward().at("state"), "failed");
    EXPECT_THAT(std::string(forward().at("reason").as_string()), HasSubstr(lost));
    node.lost_addresses.clear();
    EXPECT_EQ(fault(steps_of(node, id), "listener"), "");
    node.control().retry();
    EXPECT_EQ(forward().at("state"), "listening");
  });
}

TEST_F(CheckTest, AForwardThatRefusesItsClientsSaysSo) {
  const Fd service = serve();
  host_->run([&] {
    Node node;
    node.put("vm-1");
    const std::string id = create_forward(node);
    node.dataplane.gated.insert(*parse_uuid(id));
    const auto steps = steps_of(node, id);
    EXPECT_THAT(fault(steps, "listener"), HasSubstr("refuses clients there now"));
    EXPECT_EQ(fault(steps, "guest"), "");
  });
}

// ---- Words for each pair of answers ----

TEST(GuestStep, EachPairOfAnswersIsExplained) {
  const Endpoint guest(boost::asio::ip::make_address("198.19.0.2"), kPort);
  std::set<std::string> different;
  for (const int node : {0, ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETDOWN}) {
    for (const int client : {0, ECONNREFUSED, ETIMEDOUT, EADDRNOTAVAIL}) {
      const CheckStep step =
          guest_step(guest, {.node = node,
                             .client = client,
                             .client_address = boost::asio::ip::make_address("203.0.113.9"),
                             .any_client = false,
                             .after = std::chrono::milliseconds(7)});
      EXPECT_EQ(step.ok, client == 0) << step.detail;
      EXPECT_THAT(step.detail, HasSubstr("198.19.0.2"));
      different.insert(step.detail);
    }
  }
  EXPECT_GE(different.size(), 10U);
}

TEST(GuestStep, WithoutTheRightToProbeNothingIsClaimed) {
  const Endpoint guest(boost::asio::ip::make_address("198.19.0.2"), kPort);
  const CheckStep step = guest_step(guest, {.node = EPERM, .client = std::nullopt});
  EXPECT_TRUE(step.ok);
  EXPECT_THAT(step.detail, HasSubstr("was not probed"));
}

}  // namespace
}  // namespace portway

#include "lifecycle/link_monitor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/net_namespace.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/capabilities.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using test::NetworkNamespace;

class LinkMonitorTest : public testing::Test {
 protected:
  void SetUp() override { PORTWAY_NEEDS(test::why_no_namespaces()); }

  /// Starts a monitor inside the namespace; it stays there.
  void start() {
    network_.emplace();
    network_->ip("link add guest0 type veth peer name guest1");
    network_->ip("link set guest0 up");
    network_->ip("link set guest1 up");
    network_->run([this] {
      monitor_ = LinkMonitor::start(
                     [this](const Link& link, bool gone) {
                       told_.push_back(label(link.netns) + link.name +
                                       (gone           ? " gone"
                                        : link.carrier ? " up"
                                                       : " down"));
                     },
                     [this](NetnsId netns) { told_.push_back(label(netns) + " gone"); },
                     [this](int socket, const void* bytes, std::size_t size) -> ssize_t {
                       const bool refused = refusals_ > 0 || requests_until_refusal_ == 0;
                       if (refusals_ > 0) --refusals_;
                       --requests_until_refusal_;
                       if (!refused) return ::send(socket, bytes, size, 0);
                       errno = ENOMEM;
                       return -1;
                     })
                     .value();
    });
  }

  /// Causes more messages than the socket holds while nothing is read. Deletes the first of the links
  /// again.
  void flood(int deleted = 0) {
    std::string lines;
    for (int i = 0; i < 600; ++i) lines += fmt::format("link add many{} type veth peer name peer{}\n", i, i);
    for (int i = 0; i < deleted; ++i) lines += fmt::format("link del many{}\n", i);
    network_->ip_batch(lines);
  }

  /// Watches the namespace; what is told of it is labelled with the name.
  NetnsId add(const NetworkNamespace& network, const std::string& name) {
    const NetnsId netns = monitor_->add_namespace(network.fd()).value();
    names_[netns] = name;
    return netns;
  }
  std::string label(NetnsId netns) const {
    if (netns == NetnsId::kNode) return "";
    const auto name = names_.find(netns);
    return (name == names_.end() ? "?" : name->second) + ":";
  }

  bool told(const std::string& what) const { return std::ranges::find(told_, what) != told_.end(); }

  void run_until_told(const std::string& what) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!told(what) && std::chrono::steady_clock::now() < deadline) {
      pollfd readable{.fd = monitor_->descriptor(), .events = POLLIN, .revents = 0};
      ::poll(&readable, 1, 100);
      monitor_->read();
    }
    EXPECT_TRUE(told(what)) << "never reported: " << what;
  }
  void run_until_settled() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (monitor_->unsettled() && std::chrono::steady_clock::now() < deadline) {
      pollfd readable{.fd = monitor_->descriptor(), .events = POLLIN, .revents = 0};
      if (::poll(&readable, 1, 100) == 0) monitor_->ask_again();
      monitor_->read();
    }
    EXPECT_FALSE(monitor_->unsettled());
  }

  std::optional<NetworkNamespace> network_;
  std::unique_ptr<LinkMonitor> monitor_;
  std::vector<std::string> told_;
  std::map<NetnsId, std::string> names_;
  int refusals_ = 0;                 // of requests to come
  int requests_until_refusal_ = -1;  // of one; negative: none is refused
};

TEST_F(LinkMonitorTest, KnowsTheLinksThatExistWhenItStartsWithoutReportingThem) {
  start();
  ASSERT_TRUE(monitor_->find("guest0"));
  EXPECT_TRUE(monitor_->find("guest0")->carrier);
  EXPECT_TRUE(monitor_->find("lo"));
  EXPECT_FALSE(monitor_->find("guest7"));
  monitor_->read();
  EXPECT_TRUE(told_.empty());
}

TEST_F(LinkMonitorTest, ReportsWhenACarrierIsLostAndWhenItComesBack) {
  start();
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_FALSE(monitor_->find("guest0")->carrier);
  network_->ip("link set guest1 up");
  run_until_told("guest0 up");
}

TEST_F(LinkMonitorTest, ADeviceMadeAgainUnderTheSameNameIsAnotherDevice) {
  start();
  const int first = monitor_->find("guest0")->index;
  network_->ip("link del guest0");
  run_until_told("guest0 gone");
  EXPECT_FALSE(monitor_->find("guest0"));
  network_->ip("link add guest0 type veth peer name guest1");
  run_until_told("guest0 down");
  EXPECT_NE(monitor_->find("guest0")->index, first);
  EXPECT_FALSE(monitor_->find(first));
}

TEST_F(LinkMonitorTest, ADeviceThatLeavesABridgeIsNotGone) {
  start();
  network_->ip("link add bridge0 type bridge");
  network_->ip("link set guest0 master bridge0");
  network_->ip("link set guest0 nomaster");
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_FALSE(told("guest0 gone"));
  EXPECT_TRUE(monitor_->find("guest0"));
}

TEST_F(LinkMonitorTest, CountsTheCarriersThatWereLost) {
  start();
  const auto before = monitor_->find("guest0")->carrier_downs;
  ASSERT_TRUE(before);
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_EQ(monitor_->find("guest0")->carrier_downs, *before + 1);
}

// The kernel reports a veth's carrier up to a second late.
TEST_F(LinkMonitorTest, KnowsALinkAsItIsNowWhenAsked) {
  start();
  const auto before = *monitor_->find("guest0")->carrier_downs;
  for (std::uint32_t flips = 1; flips <= 3; ++flips) {
    network_->ip("link set guest1 down");
    network_->ip("link set guest1 up");
    monitor_->refresh("guest0");
    EXPECT_EQ(monitor_->find("guest0")->carrier_downs, before + flips);
  }
  monitor_->refresh("guest7");
  monitor_->refresh(std::string(100, 'x'));
  EXPECT_FALSE(monitor_->find("guest7"));
}

// Messages were lost, and the kernel had no memory for the list of links: later changes were never
// noticed.
TEST_F(LinkMonitorTest, AListThatIsRefusedIsAskedForUntilItComes) {
  start();
  refusals_ = 2;
  flood();
  network_->ip("link set guest1 down");
  network_->ip("link del many599");
  monitor_->read();
  EXPECT_TRUE(monitor_->unsettled());
  monitor_->ask_again();
  monitor_->read();
  EXPECT_TRUE(monitor_->unsettled());
  EXPECT_TRUE(monitor_->find("guest0")->carrier) << "as far as anything was reported";
  EXPECT_FALSE(told("guest0 gone"));
  monitor_->ask_again();
  run_until_told("guest0 down");
  run_until_settled();
  EXPECT_FALSE(monitor_->find("many599"));
}

TEST_F(LinkMonitorTest, SeesWhatIsTrueAfterMoreChangesThanItsSocketHolds) {
  start();
  flood(300);
  run_until_told("many599 down");
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  run_until_settled();
  for (int i = 0; i < 600; ++i) {
    EXPECT_EQ(monitor_->find("many" + std::to_string(i)).has_value(), i >= 300) << i;
  }
}

// --- Other namespaces.

/// A guest's namespace: the tap guest0 has index 2 and a carrier while guest1 is up.
class Guest : public NetworkNamespace {
 public:
  Guest() {
    ip_batch(
        "link add guest0 index 2 type veth peer name guest1 index 3\nlink set guest0 up\nlink set guest1 "
        "up\n");
  }
};

/// Ends a namespace, and waits until its id is free.
void end(std::unique_ptr<Guest> guest) {
  const NetworkNamespace witness;
  test::connect({witness, "shows", "198.18.0.1/24"}, {*guest, "to_witness", "198.18.0.2/24"});
  guest.reset();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  bool ended = false;  // its end of the link goes after its id
  while (!ended && std::chrono::steady_clock::now() < deadline) {
    witness.run([&] { ended = ::if_nametoindex("shows") == 0; });
  }
  EXPECT_TRUE(ended);
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

TEST_F(LinkMonitorTest, KnowsTheLinksOfANamespaceOnceItIsAdded) {
  start();
  const Guest guest;
  EXPECT_FALSE(monitor_->unsettled());
  const NetnsId a = add(guest, "a");
  EXPECT_NE(a, NetnsId::kNode);
  ASSERT_TRUE(monitor_->find(a, "guest0"));
  EXPECT_EQ(monitor_->find(a, "guest0")->netns, a);
  EXPECT_EQ(monitor_->find(a, "guest0")->index, 2);
  EXPECT_TRUE(monitor_->find(a, "guest0")->carrier);
  EXPECT_EQ(monitor_->find(a, 2), monitor_->find(a, "guest0"));
  EXPECT_NE(monitor_->find("guest0")->index, 2) << "the node's own";
  EXPECT_EQ(monitor_->find("guest0")->netns, NetnsId::kNode);
  EXPECT_EQ(add(guest, "a"), a) << "again";
  monitor_->read();
  EXPECT_TRUE(told_.empty());
}

TEST_F(LinkMonitorTest, ReportsCarriersInANamespace) {
  start();
  const Guest guest;
  const NetnsId a = add(guest, "a");
  const auto before = *monitor_->find(a, "guest0")->carrier_downs;
  guest.ip("link set guest1 down");
  run_until_told("a:guest0 down");
  EXPECT_FALSE(monitor_->find(a, "guest0")->carrier);
  EXPECT_EQ(monitor_->find(a, "guest0")->carrier_downs, before + 1);
  guest.ip("link set guest1 up");
  run_until_told("a:guest0 up");
  EXPECT_TRUE(monitor_->find("guest0")->carrier);
  EXPECT_FALSE(told("guest0 down"));
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_TRUE(monitor_->find(a, "guest0")->carrier);
}

// The kernel reports a veth's carrier up to a second late.
TEST_F(LinkMonitorTest, KnowsALinkOfANamespaceAsItIsNowWhenAsked) {
  start();
  const Guest guest;
  const NetnsId a = add(guest, "a");
  const auto before = *monitor_->find(a, "guest0")->carrier_downs;
  const auto own = monitor_->find("guest0");
  for (std::uint32_t flips = 1; flips <= 3; ++flips) {
    guest.ip("link set guest1 down");
    guest.ip("link set guest1 up");
    monitor_->refresh(a, "guest0");
    EXPECT_EQ(monitor_->find(a, "guest0")->carrier_downs, before + flips);
  }
  EXPECT_EQ(monitor_->find("guest0"), own);
  monitor_->refresh(a, "guest7");
  monitor_->refresh(NetnsId{12345}, "guest0");
  EXPECT_FALSE(monitor_->find(a, "guest7"));
}

TEST_F(LinkMonitorTest, ReportsDeletedAndRenamedLinksOfANamespace) {
  start();
  const Guest guest;
  const NetnsId a = add(guest, "a");
  guest.ip("link set guest0 down");
  guest.ip("link set guest0 name tap7");
  run_until_told("a:tap7 down");
  EXPECT_FALSE(monitor_->find(a, "guest0"));
  EXPECT_EQ(monitor_->find(a, "tap7")->index, 2);
  guest.ip("link del tap7");
  run_until_told("a:tap7 gone");
  EXPECT_FALSE(monitor_->find(a, 2));
  guest.ip("link add tap7 index 2 type bridge");
  run_until_told("a:tap7 down");
  EXPECT_FALSE(told("guest0 gone"));
}

TEST_F(LinkMonitorTest, ALinkThatMovesLeavesOneNamespaceAndEntersAnother) {
  start();
  const Guest from;
  const NetworkNamespace to;
  const NetnsId a = add(from, "a");
  const NetnsId b = add(to, "b");
  from.ip("link set guest0 netns /proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(to.fd()));
  run_until_told("a:guest0 gone");
  run_until_told("b:guest0 down");
  EXPECT_FALSE(monitor_->find(a, "guest0"));
  EXPECT_TRUE(monitor_->find(b, "guest0"));
  to.ip("link set guest0 netns /proc/" + std::to_string(::getpid()) + "/fd/" +
        std::to_string(network_->fd()) + " name moved");
  run_until_told("b:guest0 gone");
  run_until_told("moved down");
  EXPECT_TRUE(monitor_->find("moved"));
}

TEST_F(LinkMonitorTest, EqualLinksOfTwoNamespacesAreTwo) {
  start();
  const Guest one;
  const Guest other;
  const NetnsId a = add(one, "a");
  const NetnsId b = add(other, "b");
  EXPECT_NE(a, b);
  EXPECT_EQ(monitor_->find(a, "guest0")->index, monitor_->find(b, "guest0")->index);
  one.ip("link set guest1 down");
  run_until_told("a:guest0 down");
  EXPECT_FALSE(told("b:guest0 down"));
  EXPECT_TRUE(monitor_->find(b, 2)->carrier);
  other.ip("link del guest0");
  run_until_told("b:guest0 gone");
  EXPECT_FALSE(told("a:guest0 gone"));
  EXPECT_TRUE(monitor_->find(a, 2));
  EXPECT_FALSE(monitor_->find(b, 2));
}

TEST_F(LinkMonitorTest, ReportsTheEndOfANamespace) {
  start();
  auto guest = std::make_unique<Guest>();
  const Guest other;
  const NetnsId a = add(*guest, "a");
  const NetnsId b = add(other, "b");
  const std::size_t descriptors = open_descriptors();
  guest.reset();
  run_until_told("a: gone");
  EXPECT_EQ(open_descriptors(), descriptors - 1) << "nothing else kept it";
  EXPECT_TRUE(told("a:guest0 gone"));
  EXPECT_TRUE(told("a:lo gone"));
  EXPECT_EQ(told_.back(), "a: gone");
  EXPECT_FALSE(monitor_->find(a, "guest0"));
  EXPECT_TRUE(monitor_->find(b, "guest0"));
  EXPECT_FALSE(told("b: gone"));
  EXPECT_FALSE(monitor_->unsettled());
}

TEST_F(LinkMonitorTest, ForgetsANamespaceThatIsRemoved) {
  start();
  const Guest guest;
  const Guest other;
  const NetnsId a = add(guest, "a");
  const NetnsId b = add(other, "b");
  monitor_->remove_namespace(a);
  monitor_->remove_namespace(a);
  monitor_->remove_namespace(NetnsId::kNode);
  EXPECT_FALSE(monitor_->find(a, "guest0"));
  EXPECT_TRUE(monitor_->find("guest0"));
  monitor_->refresh(a, "guest0");
  EXPECT_FALSE(monitor_->find(a, "guest0")) << "an answer does not bring it back";
  guest.ip("link set guest1 down");
  other.ip("link set guest1 down");
  run_until_told("b:guest0 down");
  EXPECT_FALSE(told("a:guest0 down"));
  monitor_->remove_namespace(b);
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
  EXPECT_EQ(add(guest, "a"), a);
  EXPECT_FALSE(monitor_->find(a, "guest0")->carrier);
  guest.ip("link set guest1 up");
  run_until_told("a:guest0 up");
}

// Others give ids to namespaces too: the kernel for a link between two, and programs.
TEST_F(LinkMonitorTest, ANamespaceThatNobodyAddedIsNotWatched) {
  start();
  const Guest guest;
  const Guest other;
  test::connect({*network_, "to_guest", "198.18.0.1/24"}, {guest, "to_node", "198.18.0.2/24"});
  const NetnsId b = add(other, "b");
  guest.ip("link set guest1 down");
  other.ip("link set guest1 down");
  run_until_told("b:guest0 down");
  EXPECT_FALSE(told("?:guest0 down"));
  const NetnsId a = add(guest, "a");
  EXPECT_NE(a, b);
  EXPECT_TRUE(monitor_->find(a, "to_node")->carrier);
  guest.ip("link set guest1 up");
  run_until_told("a:guest0 up");
}

TEST_F(LinkMonitorTest, TheNodesOwnNamespaceIsNotAdded) {
  start();
  const auto refused = monitor_->add_namespace(network_->fd());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidRequest);
  EXPECT_EQ(refused.error().field, "netns");
  const Fd file(::open("/etc/passwd", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(monitor_->add_namespace(file.get()).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(monitor_->add_namespace(-1).error().code, ErrorCode::kResourceExhausted);
  network_->ip("link set guest1 down");
  run_until_told("guest0 down");
}

TEST_F(LinkMonitorTest, ANamespaceIsNotAddedWithoutTheCapabilities) {
  for (const int capability : {CAP_NET_ADMIN, CAP_NET_BROADCAST}) {
    const NetworkNamespace node;
    const Guest guest;
    std::optional<Error> error;
    node.run([&] {
      test::drop_capabilities({capability});
      const auto monitor = LinkMonitor::start([](const Link&, bool) {}).value();
      const auto added = monitor->add_namespace(guest.fd());
      if (!added) error = added.error();
      EXPECT_TRUE(monitor->find("lo"));
    });
    ASSERT_TRUE(error) << capability;
    EXPECT_EQ(error->code, ErrorCode::kResourceExhausted);
    EXPECT_EQ(error->field, "netns");
    EXPECT_NE(error->detail.find("CAP_NET_ADMIN and CAP_NET_BROADCAST"), std::string::npos) << error->detail;
  }
}

/// From now on the kernel refuses this netlink option to the calling thread.
void refuse_netlink_option(unsigned option) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setsockopt, 0, 5),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SOL_NETLINK, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, option, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{std::size(filter), filter};
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

// The socket went on hearing every container of the node if only one of the two options had been refused.
TEST_F(LinkMonitorTest, ANamespaceThatCannotBeHeardLeavesNothingSwitchedOn) {
  for (const unsigned option : {NETLINK_LISTEN_ALL_NSID, NETLINK_ADD_MEMBERSHIP}) {
    start();
    const Guest guest;
    network_->run([&] {
      refuse_netlink_option(option);
      const auto added = monitor_->add_namespace(guest.fd());
      ASSERT_FALSE(added) << option;
      EXPECT_NE(added.error().detail.find("memory"), std::string::npos) << added.error().detail;
    });
    guest.ip("link add other type veth peer name peer");
    pollfd readable{.fd = monitor_->descriptor(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(::poll(&readable, 1, 0), 0) << option << ": the message of the new link is there";
    EXPECT_TRUE(monitor_->find(add(guest, "a"), "other")) << option;
  }
}

// Every request that adding a namespace takes is refused in turn.
TEST_F(LinkMonitorTest, ANamespaceThatIsRefusedIsAddedLater) {
  start();
  const Guest guest;
  int refused = 0;
  for (;; ++refused) {
    ASSERT_LT(refused, 10);
    requests_until_refusal_ = refused;
    const auto added = monitor_->add_namespace(guest.fd());
    requests_until_refusal_ = -1;
    if (added) break;
    EXPECT_EQ(added.error().code, ErrorCode::kResourceExhausted);
    EXPECT_EQ(added.error().field, "netns");
    EXPECT_FALSE(monitor_->unsettled());
  }
  EXPECT_GE(refused, 2);
  const NetnsId a = add(guest, "a");
  EXPECT_TRUE(monitor_->find(a, "guest0"));
  EXPECT_TRUE(told_.empty());
}

TEST_F(LinkMonitorTest, SeesWhatIsTrueInEveryNamespaceAfterMessagesWereLost) {
  start();
  const Guest one;
  const Guest other;
  auto ends = std::make_unique<Guest>();
  const NetnsId a = add(one, "a");
  const NetnsId b = add(other, "b");
  const NetnsId c = add(*ends, "c");
  flood(300);
  one.ip("link set guest1 down");
  one.ip("link add new0 type bridge");
  other.ip("link del guest0");
  ends.reset();
  run_until_told("many599 down");
  run_until_told("a:guest0 down");
  run_until_told("a:new0 down");
  run_until_told("b:guest0 gone");
  run_until_told("c: gone");
  run_until_settled();
  EXPECT_FALSE(monitor_->find(a, "guest0")->carrier);
  EXPECT_FALSE(monitor_->find(b, "guest0"));
  EXPECT_FALSE(monitor_->find(c, "guest0"));
  EXPECT_FALSE(monitor_->find("many0"));
  other.ip("link add guest0 type bridge");
  run_until_told("b:guest0 down");
}

TEST_F(LinkMonitorTest, AListOfANamespaceThatIsRefusedIsAskedForUntilItComes) {
  start();
  const Guest guest;
  const NetnsId a = add(guest, "a");
  guest.ip("link set guest1 down");
  flood();
  refusals_ = 3;
  monitor_->read();
  EXPECT_TRUE(monitor_->unsettled());
  run_until_settled();
  run_until_told("a:guest0 down");
  EXPECT_EQ(refusals_, 0);
  EXPECT_FALSE(monitor_->find(a, "guest0")->carrier);
  EXPECT_FALSE(told("a: gone"));
}

TEST_F(LinkMonitorTest, ANamespaceCanBeRemovedWhileItIsListed) {
  start();
  const Guest guest;
  const Guest other;
  const NetnsId a = add(guest, "a");
  const NetnsId b = add(other, "b");
  flood();
  monitor_->read();
  monitor_->remove_namespace(a);
  monitor_->remove_namespace(b);
  run_until_settled();
  EXPECT_TRUE(monitor_->find("many599"));
  EXPECT_EQ(add(guest, "a"), a);
  EXPECT_TRUE(monitor_->find(a, "guest0"));
}

// The kernel gives an id to the next namespace as soon as it is free. Nothing of one namespace may pass
// for the other's: both have the same links.
class LinkMonitorIdTest : public LinkMonitorTest, public testing::WithParamInterface<bool> {};

TEST_P(LinkMonitorIdTest, AnIdThatIsUsedAgainIsAnotherNamespace) {
  const bool reads_in_between = GetParam();
  start();
  auto first = std::make_unique<Guest>();
  const NetnsId a = add(*first, "a");
  end(std::move(first));
  if (reads_in_between) run_until_told("a: gone");
  EXPECT_EQ(told("a: gone"), reads_in_between);
  const Guest second;
  ASSERT_EQ(monitor_->add_namespace(second.fd()).value(), a) << "another id: nothing is tested";
  EXPECT_TRUE(told("a: gone"));
  EXPECT_EQ(std::ranges::count(told_, "a:guest0 gone"), 1);
  names_[a] = "b";
  EXPECT_TRUE(monitor_->find(a, "guest0")->carrier);
  second.ip("link set guest1 down");
  run_until_told("b:guest0 down");
  EXPECT_FALSE(told("b: gone"));
}

// The kernel first changes an id, then reports that. In between, the namespace can be added.
TEST_P(LinkMonitorIdTest, ALateMessageAboutAnIdEndsNothing) {
  start();
  const Guest guest;
  const NetnsId a = add(guest, "a");
  sockaddr_nl monitor{};
  socklen_t size = sizeof monitor;
  ASSERT_EQ(::getsockname(monitor_->descriptor(), reinterpret_cast<sockaddr*>(&monitor), &size), 0);
  struct {
    nlmsghdr header;
    rtgenmsg body;
    alignas(NLMSG_ALIGNTO) rtattr attribute;
    NetnsId id;
  } message{};
  message.header.nlmsg_len = sizeof message;
  message.header.nlmsg_type = GetParam() ? RTM_DELNSID : RTM_NEWNSID;
  message.attribute = {RTA_LENGTH(sizeof a), NETNSA_NSID};
  message.id = a;
  network_->run([&] {
    const Fd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    ASSERT_EQ(
        ::sendto(socket.get(), &message, sizeof message, 0, reinterpret_cast<sockaddr*>(&monitor), size),
        static_cast<ssize_t>(sizeof message));
  });
  monitor_->read();
  run_until_settled();
  EXPECT_TRUE(told_.empty());
  guest.ip("link set guest1 down");
  run_until_told("a:guest0 down");
}

INSTANTIATE_TEST_SUITE_P(, LinkMonitorIdTest, testing::Bool(), testing::PrintToStringParamName());

// Each namespace has ids of its own for others, and reports their ends too.
TEST_F(LinkMonitorTest, AnIdThatEndsInAnotherNamespaceIsAnotherId) {
  start();
  const Guest guest;
  const NetnsId a = add(guest, "a");
  {
    const NetworkNamespace short_lived;
    test::connect({guest, "shows", "198.18.0.1/24"}, {short_lived, "peer", "198.18.0.2/24"});
    const std::string ids = test::run_command(&guest, {"ip", "netns", "list-id"});
    ASSERT_NE(ids.find("nsid " + std::to_string(static_cast<int>(a))), std::string::npos) << ids;
  }
  run_until_told("a:shows gone");
  EXPECT_FALSE(told("a: gone"));
  EXPECT_TRUE(monitor_->find(a, "guest0"));
}

// The next namespace got the id from somebody else, and is not watched.
TEST_F(LinkMonitorTest, AnIdThatAnotherNamespaceHasTakenIsNoLongerWatched) {
  start();
  auto first = std::make_unique<Guest>();
  const NetnsId a = add(*first, "a");
  end(std::move(first));
  const Guest second;
  // The kernel gives the other end's namespace an id.
  test::connect({*network_, "to_guest", "198.18.0.1/24"}, {second, "to_node", "198.18.0.2/24"});
  const std::string ids = test::run_command(&*network_, {"ip", "netns", "list-id"});
  ASSERT_NE(ids.find("nsid " + std::to_string(static_cast<int>(a))), std::string::npos) << ids;
  second.ip("link set guest1 down");
  run_until_told("a: gone");
  monitor_->refresh(a, "guest0");
  EXPECT_FALSE(monitor_->find(a, "guest0"));
  EXPECT_FALSE(told("a:guest0 down"));
}

}  // namespace
}  // namespace portway

// The whole data plane on real sockets: several workers, forwards that come and go.
#include "proxy/proxy.h"

#include <gtest/gtest.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

constexpr int kPatienceMs = 10'000;  // only a fault needs it

std::size_t open_descriptors() {
  const auto all = std::filesystem::directory_iterator("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

/// A server that a test accepts from by hand.
class Guest {
 public:
  /// At 127.0.0.`host`; port 0: the kernel chooses one.
  explicit Guest(std::uint32_t host = 1, std::uint16_t port = 0)
      : listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = loopback(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + host);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listener_.get(), 1024), 0);
    ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size);
    endpoint = Endpoint(boost::asio::ip::address_v4(INADDR_LOOPBACK - 1 + host), ntohs(address.sin_port));
  }
  /// nullopt if no connection waits.
  std::optional<Fd> try_accept() const {
    pollfd readable{.fd = listener_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&readable, 1, 0) != 1) return std::nullopt;
    return Fd(::accept(listener_.get(), nullptr, nullptr));
  }
  Fd accept() const {
    pollfd readable{.fd = listener_.get(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(::poll(&readable, 1, kPatienceMs), 1);
    return Fd(::accept(listener_.get(), nullptr, nullptr));
  }

  /// For poll(2): readable if a connection waits.
  int descriptor() const { return listener_.get(); }

  Endpoint endpoint;

 private:
  Fd listener_;
};

/// A client from 127.0.1.`host`; or none, if it was refused: then errno says why. The node may reset a
/// client before its connect(2) has returned, which then reports the reset. That client had been connected,
/// and here it is as well: receive() says "error".
Fd connect_to(std::uint16_t port, std::uint32_t host = 1) {
  Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in from = loopback(0);
  // Not the address that it connects to: from there the kernel may choose the very port, and a closed one
  // would be connected to itself.
  from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 255 + host);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&from), sizeof from), 0);
  const sockaddr_in address = loopback(port);
  const int result = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  return result < 0 && errno != ECONNRESET ? Fd() : std::move(fd);
}

std::string receive(const Fd& fd) {
  pollfd readable{.fd = fd.get(), .events = POLLIN, .revents = 0};
  if (::poll(&readable, 1, kPatienceMs) != 1) return "nothing came";
  std::array<char, 256> buffer;
  const auto got = ::recv(fd.get(), buffer.data(), buffer.size(), 0);
  return got < 0 ? "error" : std::string(buffer.data(), static_cast<std::size_t>(got));
}

class ProxyTest : public testing::TestWithParam<IoBackend> {
 protected:
  void start(unsigned workers, std::chrono::microseconds busy_poll = {},
             Config::Proxy config = {.connections_max = 4096, .instance_share_percent = 100}) {
    config.workers = workers;
    config.busy_poll = busy_poll;
    config.io_backend = GetParam();
    proxy_ = Proxy::start({.connections = {.config = config},
                           .public_addresses = {boost::asio::ip::address_v4::loopback()}})
                 .value();
  }

  /// Serves `upstream` on a port that the kernel chose.
  std::pair<ForwardId, std::uint16_t> open(const Endpoint& upstream, const Uuid& session = {}) {
    return open({.session_id = session, .guest = {.endpoint = upstream}});
  }
  std::pair<ForwardId, std::uint16_t> open(ForwardRoute route) {
    const ForwardId id = route.id = make_uuid();
    BoundPort bound = proxy_->bind(0).value();
    std::vector<Fd> listeners = bound.take_listeners();
    sockaddr_in address{};
    socklen_t size = sizeof address;
    ::getsockname(listeners[0].get(), reinterpret_cast<sockaddr*>(&address), &size);
    const std::uint16_t port = ntohs(address.sin_port);
    proxy_->open(std::move(route), BoundPort(port, std::move(listeners)));
    return {id, port};
  }

  /// Waits until `done`, while the workers continue.
  template <class Done>
  static bool await(Done done) {
    for (int tries = 0; tries < kPatienceMs; ++tries) {
      if (done()) return true;
      ::poll(nullptr, 0, 1);  // what is waited for happens on another thread and has no event of its own
    }
    return false;
  }

  std::unique_ptr<Proxy> proxy_;
};

TEST_P(ProxyTest, TenThousandForwardsOpenServeAndCloseAndLeaveNothing) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  ASSERT_GE(limit.rlim_cur, 11'000U) << "raise RLIMIT_NOFILE";
  start(2);
  const Guest guest;
  const std::size_t before = open_descriptors();
  std::vector<std::pair<ForwardId, std::uint16_t>> forwards;
  for (std::uint16_t port = 10'000; forwards.size() < 10'000 && port < 65'000; ++port) {
    auto bound = proxy_->bind(port);
    if (!bound) continue;  // somebody on this machine has it
    forwards.emplace_back(make_uuid(), port);
    proxy_->open({.id = forwards.back().first, .guest = {.endpoint = guest.endpoint}}, std::move(*bound));
  }
  EXPECT_EQ(proxy_->forward_stats().size(), 10'000U);
  for (std::size_t i = 0; i < forwards.size(); i += 500) {
    const Fd client = connect_to(forwards[i].second);
    const Fd served = guest.accept();
    ASSERT_EQ(::send(served.get(), "hello", 5, 0), 5);
    EXPECT_EQ(receive(client), "hello");
  }
  for (const auto& [id, port] : forwards) proxy_->close(id, ClosePolicy::kReset, CloseHow::kForwardDeleted);
  EXPECT_TRUE(proxy_->forward_stats().empty());
  // What may stay is a pooled pipe a worker.
  const auto expected = [&] {
    std::size_t pipes = 0;
    for (const WorkerCounters* worker : proxy_->node_stats().workers) pipes += worker->pipes_open.get();
    return before + 2 * pipes;
  };
  EXPECT_TRUE(await([&] { return proxy_->idle() && open_descriptors() == expected(); }))
      << open_descriptors() << " descriptors instead of " << expected();
}

TEST_P(ProxyTest, AWorkerThatLooksForEventsServesAndIsAskedAndStopsLikeOneThatSleeps) {
  start(1, std::chrono::milliseconds(500));
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  const Fd client = connect_to(port);
  const Fd served = guest.accept();
  const WorkerCounters& worker = *proxy_->node_stats().workers[0];
  // Round trips are fast, so it soon polls, and meanwhile it answers the control plane.
  for (int i = 0; i < 1000 || worker.busy_poll_ns.get() == 0; ++i) {
    ASSERT_EQ(::send(client.get(), "ping", 4, 0), 4);
    ASSERT_EQ(receive(served), "ping");
    ASSERT_EQ(::send(served.get(), "pong", 4, 0), 4);
    ASSERT_EQ(receive(client), "pong");
    ASSERT_EQ(proxy_->connections(id, 0, 10)->connections.size(), 1u);
  }
  proxy_->stop();
}

TEST_P(ProxyTest, LimitsTurnClientsAwayAndAreCounted) {
  start(2);
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  proxy_->set_limits(id, {.allowed_cidrs = {*Cidr::parse("198.18.0.0/15")}});
  EXPECT_EQ(receive(connect_to(port)), "error") << "a reset, never a clean end";
  proxy_->set_limits(id, {.allowed_cidrs = {}, .max_connections = 1});
  {
    const Fd first = connect_to(port);
    const Fd served = guest.accept();
    EXPECT_EQ(receive(connect_to(port)), "error");
    ASSERT_EQ(::send(served.get(), "still here", 10, 0), 10);
    EXPECT_EQ(receive(first), "still here");
  }
  // Its end makes room.
  EXPECT_TRUE(await([&, id = id] { return proxy_->forward_stats(id)->connections_active == 0; }));
  const Fd next = connect_to(port);
  const Fd served = guest.accept();
  ASSERT_EQ(::send(served.get(), "hello", 5, 0), 5);
  EXPECT_EQ(receive(next), "hello");
  const auto rejected = proxy_->forward_stats(id)->rejected;
  EXPECT_EQ(rejected[static_cast<std::size_t>(RejectReason::kSourceNotAllowed)], 1U);
  EXPECT_EQ(rejected[static_cast<std::size_t>(RejectReason::kForwardConnectionsMax)], 1U);
}

TEST_P(ProxyTest, BytesComeNoFasterThanTheForwardsRate) {
  start(2);
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  proxy_->set_limits(id, {.allowed_cidrs = {}, .max_bytes_per_second = 2'000'000});
  const Fd client = connect_to(port);
  const Fd served = guest.accept();
  constexpr std::size_t kBytes = 1'000'000;
  const auto began = std::chrono::steady_clock::now();
  std::thread sender([&served] {
    const std::string bytes(kBytes, 'x');
    std::size_t sent = 0;
    while (sent < kBytes) {
      const auto more = ::send(served.get(), bytes.data() + sent, kBytes - sent, MSG_NOSIGNAL);
      if (more <= 0) break;
      sent += static_cast<std::size_t>(more);
    }
  });
  std::size_t got = 0;
  while (got < kBytes) {
    const std::string bytes = receive(client);
    ASSERT_EQ(bytes.find_first_not_of('x'), std::string::npos) << bytes;
    got += bytes.size();
  }
  sender.join();
  // Half a second, less what may come at once and what a relay moves before it pays.
  EXPECT_GE(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(350));
  EXPECT_TRUE(await([&, id = id] { return proxy_->forward_stats(id)->sent_bytes == kBytes; }));
}

TEST_P(ProxyTest, AClosedForwardRefusesAtOnceAndItsPortCanBeTakenAtOnce) {
  PORTWAY_NEEDS(test::why_no_namespaces());
  const test::NetworkNamespace alone;  // nobody else takes the port
  alone.run([&] {
    start(2);
    const Guest guest;
    for (int round = 0; round < 20; ++round) {
      const auto [id, port] = open(guest.endpoint);
      proxy_->close(id, ClosePolicy::kKeep, CloseHow::kForwardDeleted);
      EXPECT_FALSE(connect_to(port));
      EXPECT_EQ(errno, ECONNREFUSED);
      EXPECT_TRUE(proxy_->bind(port));
    }
    proxy_.reset();
  });
}

TEST_P(ProxyTest, APortThatIsListenedOnIsTaken) {
  start(1);
  const Guest other;
  const auto taken = proxy_->bind(other.endpoint.port());
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, ErrorCode::kHostPortTaken);
}

TEST_P(ProxyTest, ConnectionsOfOneForwardAreSpreadOverTheWorkers) {
  start(2);
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  std::vector<Fd> ends;
  for (int i = 0; i < 40; ++i) {
    ends.push_back(connect_to(port));
    ends.push_back(guest.accept());
  }
  const auto workers = proxy_->node_stats().workers;
  EXPECT_TRUE(await([&, id = id] { return proxy_->forward_stats(id)->connections_active == 40; }));
  for (const WorkerCounters* worker : workers) EXPECT_EQ(worker->connections_active.get(), 20U);
}

/// Under DNAT nothing can change their order. (Several connections on loopback: each SYN is answered before
/// connect(2) returns, so they reach the node in the order of these calls.)
TEST_P(ProxyTest, AGuestSeesConnectionsInTheOrderInWhichTheyCame) {
  start(3);
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  for (int round = 0; round < 50; ++round) {
    std::vector<Fd> clients;
    for (char name = 'a'; name < 'f'; ++name) {
      clients.push_back(connect_to(port));
      ASSERT_EQ(::send(clients.back().get(), &name, 1, 0), 1);
    }
    std::string order;
    for (std::size_t i = 0; i < clients.size(); ++i) {
      const Fd served = guest.accept();
      char name = 0;
      ASSERT_EQ(::recv(served.get(), &name, 1, 0), 1);
      order.push_back(name);
    }
    ASSERT_EQ(order, "abcde") << "round " << round;
  }
  for (const WorkerCounters* worker : proxy_->node_stats().workers)
    EXPECT_GT(worker->sources[static_cast<std::size_t>(SourcePlan::kPlain)].get(), 0U) << "they are spread";
}

TEST_P(ProxyTest, ConnectionsOfEveryWorkerAreListedInPagesAndEnded) {
  start(2);
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  const auto [other_id, other_port] = open(guest.endpoint);
  std::vector<Fd> ends;
  for (int i = 0; i < 10; ++i) {
    ends.push_back(connect_to(port));
    ends.push_back(guest.accept());
  }
  const Fd other = connect_to(other_port);
  const Fd other_served = guest.accept();
  std::vector<ConnectionId> ids;
  std::set<unsigned> workers;
  for (bool more = true; more;) {
    const ConnectionPage page = proxy_->connections(id, ids.empty() ? 0 : ids.back(), 3).value();
    for (const LiveConnection& connection : page.connections) {
      ids.push_back(connection.id);
      workers.insert(connection.worker);
    }
    more = page.more;
  }
  EXPECT_EQ(ids.size(), 10U);
  EXPECT_TRUE(std::ranges::is_sorted(ids));
  EXPECT_EQ(workers.size(), 2U);
  EXPECT_EQ(proxy_->end_connections(id, ids[4]).value(), 1U);
  EXPECT_EQ(proxy_->end_connections(other_id, ids[5]).value(), 0U) << "it is another forward's";
  EXPECT_EQ(proxy_->end_connections(id, 0).value(), 9U);
  EXPECT_EQ(proxy_->connections(id, 0, 100).value().connections.size(), 0U);
  EXPECT_EQ(proxy_->connections(other_id, 0, 100).value().connections.size(), 1U);

  proxy_->stop();
  std::map<CloseHow, int> hows;
  proxy_->drain_closes([&](CloseRecord&& record) { ++hows[record.cause.how]; });
  EXPECT_EQ(hows, (std::map<CloseHow, int>{{CloseHow::kKilled, 10}, {CloseHow::kShutdown, 1}}));
}

// For the sanitizer: the workers write while the control thread asks and drains.
TEST_P(ProxyTest, RecordsAndListsMayBeReadWhileConnectionsComeAndGo) {
  start(2);
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  constexpr std::size_t kConnections = 300;
  std::thread clients([&, port = port] {
    for (std::size_t i = 0; i < kConnections; ++i) {
      const Fd client = connect_to(port);
      const Fd served = guest.accept();
      EXPECT_EQ(::send(client.get(), "hello", 5, 0), 5);
      EXPECT_EQ(receive(served), "hello");
    }
  });
  std::size_t records = 0;
  std::uint64_t bytes = 0;
  EXPECT_TRUE(await([&, id = id] {
    EXPECT_TRUE(proxy_->connections(id, 0, 10));
    proxy_->drain_closes([&](CloseRecord&& record) {
      ++records;
      bytes += record.received_bytes;
    });
    return records == kConnections;
  }));
  clients.join();
  EXPECT_EQ(bytes, 5 * kConnections);
}

TEST_P(ProxyTest, StoppingEndsWhatIsConnectedWithAReset) {
  start(2);
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  const Fd client = connect_to(port);
  const Fd served = guest.accept();
  proxy_.reset();
  EXPECT_EQ(receive(client), "error");
  EXPECT_EQ(receive(served), "error");
}

TEST_P(ProxyTest, LimitsThatAreSetLaterCountTheConnectionsThatAreThere) {
  start(2);
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  const auto rejected = [&, id = id](RejectReason reason) {
    return proxy_->forward_stats(id)->rejected[static_cast<std::size_t>(reason)];
  };
  std::vector<std::pair<Fd, Fd>> ends;
  for (int i = 0; i < 6; ++i) {
    Fd client = connect_to(port, i < 4 ? 1 : 2);
    ends.emplace_back(std::move(client), guest.accept());
  }
  // The guest sees it before its worker does.
  ASSERT_TRUE(await([&, id = id] { return proxy_->forward_stats(id)->connections_active == 6; }));
  proxy_->set_limits(id, {.allowed_cidrs = {}, .max_connections_per_source = 4});
  EXPECT_TRUE(proxy_->connections(id, 0, 1)) << "answered after the workers have counted";
  EXPECT_EQ(receive(connect_to(port, 1)), "error");
  EXPECT_EQ(rejected(RejectReason::kSourceConnectionsMax), 1u);
  Fd other = connect_to(port, 2);
  ends.emplace_back(std::move(other), guest.accept());

  proxy_->set_limits(id, {.allowed_cidrs = {}, .max_connections = 7});
  EXPECT_EQ(receive(connect_to(port, 3)), "error");
  EXPECT_EQ(rejected(RejectReason::kForwardConnectionsMax), 1u);
  ends.clear();
  EXPECT_TRUE(await([&, id = id] { return proxy_->forward_stats(id)->connections_active == 0; }));
  for (int i = 0; i < 7; ++i) {  // none was counted twice, and none is still counted
    Fd client = connect_to(port);
    ends.emplace_back(std::move(client), guest.accept());
  }
}

// A tenant removes its own limits; those of its instance's profile stay.
TEST_P(ProxyTest, TheProfilesLimitsHoldBesideTheForwardsOwn) {
  start(2);
  const Guest guest;
  const Uuid session = make_uuid();
  const auto [id, port] = open(guest.endpoint, session);
  std::vector<std::pair<Fd, Fd>> ends;
  for (int i = 0; i < 3; ++i) {
    Fd client = connect_to(port);
    ends.emplace_back(std::move(client), guest.accept());
  }
  ASSERT_TRUE(await([&, id = id] { return proxy_->forward_stats(id)->connections_active == 3; }));
  proxy_->set_profile_limits(session, {.allowed_cidrs = {}, .max_connections = 3});
  EXPECT_TRUE(proxy_->connections(id, 0, 1)) << "answered after the workers have counted";
  EXPECT_EQ(receive(connect_to(port)), "error") << "those that are there count";
  proxy_->set_limits(id, {.allowed_cidrs = {}, .max_connections = 100});
  EXPECT_EQ(receive(connect_to(port)), "error");
  proxy_->set_limits(id, {});
  EXPECT_EQ(receive(connect_to(port)), "error");
  // Another forward of the session has them from its beginning.
  const auto [second, second_port] = open(guest.endpoint, session);
  proxy_->set_limits(second, {.allowed_cidrs = {*Cidr::parse("198.18.0.0/15")}});
  EXPECT_EQ(receive(connect_to(second_port)), "error") << "and its own";
  proxy_->set_profile_limits(session, {});
  Fd client = connect_to(port);
  ends.emplace_back(std::move(client), guest.accept());
  const auto rejected = proxy_->forward_stats(id)->rejected;
  EXPECT_EQ(rejected[static_cast<std::size_t>(RejectReason::kForwardConnectionsMax)], 3U);
}

TEST_P(ProxyTest, TheProfilesIdleTimeoutEndsConnectionsThatAreThere) {
  start(2);
  const Guest guest;
  const Uuid session = make_uuid();
  const auto [id, port] = open(guest.endpoint, session);
  const auto [kept, kept_port] = open(guest.endpoint, session);
  const Fd client = connect_to(port);
  const Fd served = guest.accept();
  const Fd of_kept = connect_to(kept_port);
  const Fd served_of_kept = guest.accept();
  proxy_->close(kept, ClosePolicy::kKeep, CloseHow::kForwardDeleted);
  proxy_->set_profile_limits(session, {.allowed_cidrs = {}, .idle_timeout = std::chrono::seconds(1)});
  EXPECT_EQ(receive(client), "error");
  EXPECT_EQ(receive(of_kept), "error") << "its forward is gone";
}

// Two tenants: what one has over its instances takes nothing from the other.
TEST_P(ProxyTest, AnOwnersConnectionsAreCountedOverItsInstances) {
  start(2);
  const Guest guest;
  const Uuid first = make_uuid();
  const auto open_of = [&](const Uuid& session, const std::string& owner) {
    return open({.session_id = session, .guest = {.endpoint = guest.endpoint}, .owner = owner});
  };
  const auto [id, port] = open_of(first, "alice");
  const auto [second_id, second_port] = open_of(make_uuid(), "alice");
  const auto [bobs_id, bobs_port] = open_of(make_uuid(), "bob");
  std::vector<std::pair<Fd, Fd>> ends;
  const auto connect = [&](std::uint16_t to) {
    Fd client = connect_to(to);
    ends.emplace_back(std::move(client), guest.accept());
  };
  connect(port);
  connect(port);
  proxy_->set_owner_connections_max(3);  // those that are there count
  connect(second_port);
  EXPECT_EQ(receive(connect_to(port)), "error");
  EXPECT_EQ(receive(connect_to(second_port)), "error");
  const auto rejected = [&](const ForwardId& of) {
    return proxy_->forward_stats(of)->rejected[static_cast<std::size_t>(RejectReason::kOwnerConnectionsMax)];
  };
  EXPECT_EQ(rejected(id), 1U);
  EXPECT_EQ(rejected(second_id), 1U);
  connect(bobs_port);
  connect(bobs_port);
  // One of alice's instances becomes bob's, and its two connections with it: bob has 4, alice has 1.
  ASSERT_TRUE(await([&, id = id] { return proxy_->forward_stats(id)->connections_active == 2; }));
  proxy_->change_owner(first, "bob");
  EXPECT_TRUE(proxy_->connections(id, 0, 1)) << "answered after the workers have counted";
  EXPECT_EQ(receive(connect_to(bobs_port)), "error");
  EXPECT_EQ(receive(connect_to(port)), "error");
  connect(second_port);
  connect(second_port);
  EXPECT_EQ(receive(connect_to(second_port)), "error");
  EXPECT_EQ(rejected(bobs_id), 1U);
  proxy_->change_owner(first, "alice");
  EXPECT_TRUE(proxy_->connections(id, 0, 1));
  // None is counted twice, and none is still counted.
  ends.clear();
  for (const ForwardId& each : {id, second_id, bobs_id}) {
    EXPECT_TRUE(await([&] { return proxy_->forward_stats(each)->connections_active == 0; }));
  }
  for (int i = 0; i < 3; ++i) connect(i % 2 == 0 ? port : second_port);
  for (int i = 0; i < 3; ++i) connect(bobs_port);
  EXPECT_EQ(receive(connect_to(port)), "error");
}

// --- Connections that are short: 64 of them, 48 for one instance.

class ShortProxyTest : public ProxyTest {
 protected:
  void start() { ProxyTest::start(1, {}, {.connections_max = 64, .instance_share_percent = 75}); }
  /// Both ends of a connection, if the client gets one. From another address each time.
  bool connect(std::uint16_t port, const Guest& guest, std::uint32_t host = 0) {
    Fd client = connect_to(port, host == 0 ? 1 + next_host_++ % 200 : host);
    if (!client) {
      ADD_FAILURE() << "connect: " << std::strerror(errno);
      return false;
    }
    pollfd ends[] = {{.fd = client.get(), .events = POLLIN, .revents = 0},
                     {.fd = guest.descriptor(), .events = POLLIN, .revents = 0}};
    EXPECT_GE(::poll(ends, 2, kPatienceMs), 1);
    if (ends[1].revents == 0) {
      EXPECT_EQ(receive(client), "error") << "a reset, never a clean end";
      return false;
    }
    ends_.emplace_back(std::move(client), guest.accept());
    return true;
  }
  /// The client of a connection ends, and its service never does.
  void half_close(std::size_t i) {
    ::shutdown(ends_[i].first.get(), SHUT_WR);
    ASSERT_EQ(receive(ends_[i].second), "");
  }
  void half_close_last() { half_close(ends_.size() - 1); }
  std::uint64_t active(const ForwardId& id) { return proxy_->forward_stats(id)->connections_active; }
  std::uint64_t rejected(const ForwardId& id, RejectReason reason) {
    return proxy_->forward_stats(id)->rejected[static_cast<std::size_t>(reason)];
  }

  std::uint32_t next_host_ = 0;
  std::vector<std::pair<Fd, Fd>> ends_;
};

TEST_P(ShortProxyTest, OneInstanceCannotTakeEveryConnectionOfTheNode) {
  start();
  const Guest guest;
  const auto [attacked, attacked_port] = open(guest.endpoint, make_uuid());
  const auto [other, other_port] = open(guest.endpoint, make_uuid());
  for (int i = 0; i < 48; ++i) ASSERT_TRUE(connect(attacked_port, guest)) << i;
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(connect(attacked_port, guest));
  EXPECT_EQ(rejected(attacked, RejectReason::kInstanceShare), 10u);
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(connect(other_port, guest)) << "half of the 16 that are kept";
  EXPECT_FALSE(connect(other_port, guest));
}

TEST_P(ShortProxyTest, HalfClosedConnectionsGiveWayTheOldestFirst) {
  start();
  const Guest guest;
  const auto [attacked, attacked_port] = open(guest.endpoint, make_uuid());
  const auto [other, other_port] = open(guest.endpoint, make_uuid());
  for (int i = 0; i < 500; ++i) {
    ASSERT_TRUE(connect(attacked_port, guest)) << i;
    half_close_last();
  }
  EXPECT_EQ(proxy_->forward_stats(attacked)->connections_active, 48u);
  EXPECT_EQ(receive(ends_.front().first), "error") << "it was given to another";
  ASSERT_EQ(::send(ends_.back().second.get(), "late", 4, 0), 4);
  EXPECT_EQ(receive(ends_.back().first), "late");
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(connect(other_port, guest));
  EXPECT_EQ(rejected(attacked, RejectReason::kInstanceShare), 0u);
}

TEST_P(ShortProxyTest, RoomForNewcomersComesFromWhoHasMoreThanWhatIsKeptAndOnlyFromTheSilent) {
  start();
  const Guest guest;
  const auto [attacked, attacked_port] = open(guest.endpoint, make_uuid());
  const auto [light, light_port] = open(guest.endpoint, make_uuid());
  const auto [third, third_port] = open(guest.endpoint, make_uuid());
  ASSERT_TRUE(connect(light_port, guest));  // half-closed, as a download may be, and silent for longest
  half_close(0);
  for (int i = 0; i < 47; ++i) ASSERT_TRUE(connect(attacked_port, guest)) << i;
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(connect(third_port, guest)) << "none of the attacker's gives way";
  for (std::size_t i = 1; i < 48; ++i) half_close(i);
  EXPECT_TRUE(await([&, attacked = attacked, third = third, port = third_port] {
    EXPECT_TRUE(await([&] { return active(third) == 5; })) << "its guest sees it before it is counted";
    ends_.pop_back();
    EXPECT_TRUE(await([&] { return active(third) == 4; }));
    EXPECT_TRUE(connect(port, guest));
    return active(attacked) < 47;
  })) << "they have been silent for a second";
  EXPECT_EQ(active(light), 1u);
  ASSERT_EQ(::send(ends_.front().second.get(), "late", 4, 0), 4);
  EXPECT_EQ(receive(ends_.front().first), "late");
}

TEST_P(ShortProxyTest, AForwardsConnectionsGiveWayToItsOwnAndTheHeaviestOnesToThoseOfItsInstance) {
  start();
  const Guest guest;
  const Uuid session = make_uuid();
  const auto [heavy, heavy_port] = open(guest.endpoint, session);
  const auto [light, light_port] = open(guest.endpoint, session);
  ASSERT_TRUE(connect(light_port, guest));
  half_close(0);
  for (std::size_t i = 1; i < 36; ++i) ASSERT_TRUE(connect(heavy_port, guest)) << i;
  EXPECT_FALSE(connect(heavy_port, guest)) << "a sibling's does not give way";
  EXPECT_EQ(rejected(heavy, RejectReason::kForwardShare), 1u);
  for (std::size_t i = 1; i < 36; ++i) half_close(i);
  ASSERT_TRUE(connect(heavy_port, guest));
  EXPECT_EQ(receive(ends_[1].first), "error");

  // The node has all the connections that instances may have: this instance's forward with most of them
  // gives up one, if that is silent.
  ends_.erase(ends_.begin());
  EXPECT_TRUE(await([&, light = light] { return active(light) == 0; }));
  const auto [other, other_port] = open(guest.endpoint, make_uuid());
  for (std::size_t i = 0; i < 13; ++i) ASSERT_TRUE(connect(other_port, guest)) << i;
  EXPECT_TRUE(await([&, port = light_port] { return connect(port, guest); }))
      << "they have been silent for 1 s";
  EXPECT_TRUE(await([&, heavy = heavy] { return active(heavy) == 34; }));
}

TEST_P(ShortProxyTest, AFloodOfOneForwardEndsNoDownloadOfItsSibling) {
  start();
  const Guest guest;
  const Uuid session = make_uuid();
  const auto [heavy, heavy_port] = open(guest.endpoint, session);
  const auto [light, light_port] = open(guest.endpoint, session);
  const auto [other, other_port] = open(guest.endpoint, make_uuid());
  ASSERT_TRUE(connect(light_port, guest));
  half_close(0);
  for (int i = 0; i < 35; ++i) ASSERT_TRUE(connect(heavy_port, guest)) << i;
  for (int i = 0; i < 12; ++i) ASSERT_TRUE(connect(other_port, guest)) << i;
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(connect(heavy_port, guest)) << i;
  EXPECT_EQ(rejected(heavy, RejectReason::kInstanceShare), 20u);
  ASSERT_EQ(::send(ends_.front().second.get(), "more", 4, MSG_NOSIGNAL), 4);
  EXPECT_EQ(receive(ends_.front().first), "more");
}

TEST_P(ShortProxyTest, NobodyGivesWayToAClientThatIsTurnedAwayAnyway) {
  start();
  const Guest guest;
  const auto [id, port] = open(guest.endpoint, make_uuid());
  open(guest.endpoint, make_uuid());
  for (int i = 0; i < 48; ++i) {
    ASSERT_TRUE(connect(port, guest)) << i;
    half_close_last();
  }
  proxy_->set_limits(id, {.allowed_cidrs = {*Cidr::parse("198.18.0.0/15")}});
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(connect(port, guest));
  EXPECT_EQ(rejected(id, RejectReason::kSourceNotAllowed), 10u);
  EXPECT_EQ(proxy_->forward_stats(id)->connections_active, 48u);
}

TEST_P(ShortProxyTest, ADownloadThatContinuesIsNotEvictedForAnother) {
  start();
  const Guest guest;
  const Uuid session = make_uuid();
  const auto [attacked, port] = open(guest.endpoint, session);
  open(guest.endpoint, session);  // it has a sibling
  ASSERT_TRUE(connect(port, guest, 7));
  half_close(0);
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(connect(port, guest, 66)) << i;
    half_close_last();
    ASSERT_EQ(::send(ends_.front().second.get(), "more", 4, MSG_NOSIGNAL), 4);
    ASSERT_EQ(receive(ends_.front().first), "more") << i;
  }
}

TEST_P(ShortProxyTest, WhoComesInMassesDoesNotUseUpWhatIsKept) {
  start();
  const Guest guest;
  const auto [attacked, attacked_port] = open(guest.endpoint, make_uuid());
  open(guest.endpoint, make_uuid());  // another instance
  for (int i = 0; i < 48; ++i) {
    ASSERT_TRUE(connect(attacked_port, guest)) << i;
    half_close_last();
  }
  for (int i = 0; i < 500; ++i) {
    const Fd client = connect_to(attacked_port, 66);
    ::shutdown(client.get(), SHUT_WR);
  }
  EXPECT_TRUE(await([&, id = attacked] { return proxy_->forward_stats(id)->connections_active <= 48; }));
  EXPECT_EQ(rejected(attacked, RejectReason::kConnectionsMax), 0u);
}

TEST_P(ShortProxyTest, OneForwardCannotTakeItsInstancesConnections) {
  start();
  const Guest guest;
  const Uuid session = make_uuid();
  const auto [attacked, attacked_port] = open(guest.endpoint, session);
  const auto [sibling, sibling_port] = open(guest.endpoint, session);
  for (int i = 0; i < 36; ++i) ASSERT_TRUE(connect(attacked_port, guest)) << i;
  EXPECT_FALSE(connect(attacked_port, guest));
  EXPECT_EQ(rejected(attacked, RejectReason::kForwardShare), 1u);
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(connect(sibling_port, guest));
}

TEST_P(ShortProxyTest, OneClientCannotTakeItsForwardsConnections) {
  start();
  const Guest guest;
  const auto [attacked, port] = open(guest.endpoint, make_uuid());
  for (int i = 0; i < 36; ++i) ASSERT_TRUE(connect(port, guest, 66)) << i;
  EXPECT_FALSE(connect(port, guest, 66));
  EXPECT_EQ(rejected(attacked, RejectReason::kSourceShare), 1u);
  for (int i = 0; i < 12; ++i) EXPECT_TRUE(connect(port, guest, 7));
}

TEST_P(ShortProxyTest, AClientThatHasMostOfAForwardGivesUpItsOwnHalfClosedConnections) {
  start();
  const Guest guest;
  const auto [attacked, port] = open(guest.endpoint, make_uuid());
  ASSERT_TRUE(connect(port, guest, 7));
  half_close(0);  // of all the one that has been half-closed for longest
  for (int i = 0; i < 300; ++i) {
    ASSERT_TRUE(connect(port, guest, 66)) << i;
    half_close_last();
  }
  EXPECT_EQ(rejected(attacked, RejectReason::kSourceShare), 0u);
  EXPECT_EQ(proxy_->forward_stats(attacked)->connections_active, 36u);
  ASSERT_EQ(::send(ends_.front().second.get(), "late", 4, 0), 4);
  EXPECT_EQ(receive(ends_.front().first), "late");
}

INSTANTIATE_TEST_SUITE_P(Backends, ShortProxyTest, testing::Values(IoBackend::kUring, IoBackend::kEpoll),
                         [](const auto& backend) { return std::string(to_string(backend.param)); });

// --- A session's end.

TEST_P(ProxyTest, ASessionsEndTakesTheConnectionsOfForwardsThatWereDeletedBefore) {
  for (const ClosePolicy policy : {ClosePolicy::kKeep, ClosePolicy::kDrain}) {
    start(2);
    const Guest guest;
    const Uuid session = make_uuid();
    const auto [deleted, deleted_port] = open(guest.endpoint, session);
    const auto [other_deleted, other_deleted_port] = open(guest.endpoint, session);
    const auto [open_id, open_port] = open(guest.endpoint, session);
    const auto [neighbour, neighbour_port] = open(guest.endpoint, make_uuid());
    std::vector<std::pair<Fd, Fd>> own;
    for (const std::uint16_t port : {deleted_port, other_deleted_port, open_port}) {
      for (int i = 0; i < 4; ++i) {  // on both workers
        Fd client = connect_to(port);
        own.emplace_back(std::move(client), guest.accept());
      }
    }
    const Fd other = connect_to(neighbour_port);
    const Fd other_served = guest.accept();
    proxy_->close(deleted, policy, CloseHow::kForwardDeleted);
    proxy_->close(other_deleted, policy, CloseHow::kForwardDeleted);
    for (const auto& [client, served] : own) {
      ASSERT_EQ(::send(client.get(), "still", 5, 0), 5);
      ASSERT_EQ(receive(served), "still");
    }

    proxy_->end_session(session, CloseHow::kInstanceStopped);
    for (const auto& [client, served] : own) {
      EXPECT_EQ(receive(client), "error");
      EXPECT_EQ(receive(served), "error");
    }
    EXPECT_FALSE(connect_to(open_port));
    ASSERT_EQ(::send(other.get(), "hello", 5, 0), 5);
    EXPECT_EQ(receive(other_served), "hello") << "another session";
    EXPECT_TRUE(await([&, id = deleted] { return proxy_->ended(id); }));
    proxy_->end_session(session, CloseHow::kInstanceStopped);  // a repeated end finds nothing
    proxy_->stop();
  }
}

TEST_P(ProxyTest, ANewOwnerGetsTheOpenForwardsAndNobodyKeepsWhatNobodySees) {
  start(2);
  const Guest guest;
  const Uuid session = make_uuid();
  const auto [deleted, deleted_port] = open(guest.endpoint, session);
  const auto [open_id, open_port] = open(guest.endpoint, session);
  const Fd unseen = connect_to(deleted_port);
  const Fd unseen_served = guest.accept();
  const Fd client = connect_to(open_port);
  const Fd served = guest.accept();
  proxy_->close(deleted, ClosePolicy::kKeep, CloseHow::kForwardDeleted);
  proxy_->change_owner(session, "bob");
  EXPECT_EQ(receive(unseen), "error");
  ASSERT_EQ(::send(client.get(), "hello", 5, 0), 5);
  EXPECT_EQ(receive(served), "hello");
  proxy_->change_owner(make_uuid(), "bob");
}

TEST_P(ProxyTest, ASessionCanEndWhileTheDaemonDrains) {
  start(2);
  const Guest guest;
  const Uuid session = make_uuid();
  const auto [id, port] = open(guest.endpoint, session);
  const Fd client = connect_to(port);
  const Fd served = guest.accept();
  proxy_->stop_accepting();
  ASSERT_EQ(::send(client.get(), "still", 5, 0), 5);
  ASSERT_EQ(receive(served), "still");
  proxy_->end_session(session, CloseHow::kTapGone);
  EXPECT_EQ(receive(client), "error");
  EXPECT_EQ(receive(served), "error");
  EXPECT_TRUE(await([&] { return proxy_->idle(); }));
}

TEST_P(ProxyTest, WhileTheDaemonDrainsConnectionsAreListedAndEndedAsBefore) {
  start(2);
  const Guest guest;
  const auto [id, port] = open(guest.endpoint);
  const auto [other_id, other_port] = open(guest.endpoint);
  const Fd one = connect_to(port);
  const Fd one_served = guest.accept();
  const Fd two = connect_to(other_port);
  const Fd two_served = guest.accept();
  proxy_->stop_accepting();
  EXPECT_FALSE(connect_to(port));
  EXPECT_EQ(proxy_->connections(id, 0, 10)->connections.size(), 1u);
  EXPECT_EQ(proxy_->end_connections(id, 0).value(), 1u);
  EXPECT_EQ(receive(one), "error");
  proxy_->close(other_id, ClosePolicy::kReset, CloseHow::kForwardDeleted);
  EXPECT_EQ(receive(two), "error");
  EXPECT_TRUE(await([&] { return proxy_->idle(); }));
}

/// Clients come all the time, most of them through another worker: none may be left once the session has
/// ended.
TEST_P(ProxyTest, NoConnectionOutlivesItsSessionHoweverItIsUnderWay) {
  for (int round = 0; round < 30; ++round) {
    start(2);
    const Guest guest;
    const Uuid session = make_uuid();
    const auto [id, port] = open(guest.endpoint, session);
    std::vector<Fd> clients;
    for (int i = 0; i < 40; ++i) clients.push_back(connect_to(port));
    if (round % 3 == 1) proxy_->close(id, ClosePolicy::kKeep, CloseHow::kForwardDeleted);
    if (round % 3 == 2) proxy_->stop_accepting();
    proxy_->end_session(session, CloseHow::kInstanceStopped);
    EXPECT_TRUE(await([&] { return proxy_->idle(); })) << "round " << round;
    for (const Fd& client : clients) EXPECT_EQ(receive(client), "error");
    proxy_->stop();
  }
}

/// Clients come all the time, most of them through another worker, while the guest's address changes back and
/// forth: none may be left at the address that it does not have at the end.
TEST_P(ProxyTest, NoConnectionStaysAtAnAddressThatItsGuestHasLeftHoweverItIsUnderWay) {
  constexpr std::size_t kClients = 400;
  start(3);
  const Guest left;
  const Guest last(2, left.endpoint.port());
  const Uuid session = make_uuid();
  const auto [id, port] = open(left.endpoint, session);
  std::vector<Fd> clients;
  clients.push_back(connect_to(port));
  const Fd first = left.accept();  // one at least is there when its guest leaves
  while (clients.size() < kClients) {
    clients.push_back(connect_to(port));
    if (clients.size() % 5 != 0) continue;
    const Guest& now = clients.size() % 2 != 0 ? left : last;
    proxy_->set_guest(session, now.endpoint.address(), std::nullopt);
  }
  const auto moved = [&] {
    std::uint64_t count = 0;
    for (const WorkerCounters* worker : proxy_->node_stats().workers) {
      count += worker
                   ->closed[static_cast<std::size_t>(CloseSide::kNode)]
                           [static_cast<std::size_t>(CloseHow::kAddressChanged)]
                   .get();
    }
    return count;
  };
  ASSERT_TRUE(
      await([&, id = id] { return proxy_->forward_stats(id)->connections_active + moved() == kClients; }));
  EXPECT_GT(moved(), 0U);
  EXPECT_EQ(receive(first), "error");
  for (std::optional<Fd> served; (served = left.try_accept());) EXPECT_EQ(receive(*served), "error");
  std::size_t alive = 0;
  std::vector<Fd> all_served;
  for (std::optional<Fd> served; (served = last.try_accept());) {
    alive += ::send(served->get(), "hello", 5, MSG_NOSIGNAL) == 5 ? 1 : 0;
    all_served.push_back(std::move(*served));
  }
  std::size_t answered = 0;
  for (const Fd& client : clients) answered += receive(client) == "hello" ? 1 : 0;
  EXPECT_EQ(answered, proxy_->forward_stats(id)->connections_active);
  EXPECT_GE(alive, answered);
  EXPECT_EQ(answered + moved(), kClients);
  proxy_->set_guest(make_uuid(), left.endpoint.address(), std::nullopt);
}

TEST_P(ProxyTest, ANewAddressConcernsAllForwardsOfItsSessionAlsoDeletedOnesAndNoOthers) {
  start(2);
  const Guest left;
  const Guest moved(2, left.endpoint.port());
  const Uuid session = make_uuid();
  const auto [deleted, deleted_port] = open(left.endpoint, session);
  const auto [id, port] = open(left.endpoint, session);
  const auto [other, other_port] = open(left.endpoint, make_uuid());
  const Fd unseen = connect_to(deleted_port);
  const Fd unseen_served = left.accept();
  const Fd client = connect_to(port);
  const Fd served = left.accept();
  const Fd bystander = connect_to(other_port);
  const Fd bystander_served = left.accept();
  proxy_->close(deleted, ClosePolicy::kKeep, CloseHow::kForwardDeleted);
  proxy_->set_guest(session, moved.endpoint.address(), std::nullopt);
  for (const Fd* end : {&unseen, &unseen_served, &client, &served}) EXPECT_EQ(receive(*end), "error");
  const Fd next = connect_to(port);
  const Fd next_served = moved.accept();
  ASSERT_EQ(::send(next.get(), "hello", 5, 0), 5);
  EXPECT_EQ(receive(next_served), "hello");
  ASSERT_EQ(::send(bystander.get(), "still here", 10, 0), 10);
  EXPECT_EQ(receive(bystander_served), "still here");
}

TEST_P(ProxyTest, AnotherGuestPortConcernsFutureConnectionsOfItsForwardOnly) {
  start(2);
  const Guest before;
  const Guest after;
  const Uuid session = make_uuid();
  const auto [id, port] = open(before.endpoint, session);
  const auto [other, other_port] = open(before.endpoint, session);
  const Fd client = connect_to(port);
  const Fd served = before.accept();
  proxy_->set_guest_port(id, after.endpoint.port());
  const Fd next = connect_to(port);
  const Fd next_served = after.accept();
  ASSERT_EQ(::send(next.get(), "hello", 5, 0), 5);
  EXPECT_EQ(receive(next_served), "hello");
  ASSERT_EQ(::send(client.get(), "still here", 10, 0), 10);
  EXPECT_EQ(receive(served), "still here");
  const Fd bystander = connect_to(other_port);
  const Fd bystander_served = before.accept();
  // With another address the forward keeps its port, and the connection to the former one goes.
  const Guest moved(2, after.endpoint.port());
  proxy_->set_guest(session, moved.endpoint.address(), std::nullopt);
  for (const Fd* end : {&client, &served, &next, &next_served}) EXPECT_EQ(receive(*end), "error");
  const Fd last = connect_to(port);
  const Fd last_served = moved.accept();
  ASSERT_EQ(::send(last.get(), "hello", 5, 0), 5);
  EXPECT_EQ(receive(last_served), "hello");
  proxy_->set_guest_port(make_uuid(), 1);
}

// --- A session's device.

/// The connections were bound to a bridge that was deleted and made again under its name: they stayed, and
/// no byte got through.
TEST_P(ProxyTest, ConnectionsEndWithTheDeviceThatTheyAreBoundTo) {
  for (const int next : {kNoDevice, 1'000'000}) {
    start(2);
    const Guest guest;
    const Uuid session = make_uuid();
    const auto lo = static_cast<int>(::if_nametoindex("lo"));
    const auto [deleted, deleted_port] =
        open({.session_id = session, .guest = {.endpoint = guest.endpoint}, .device = lo});
    const auto [id, port] =
        open({.session_id = session, .guest = {.endpoint = guest.endpoint}, .device = lo});
    const auto [other, other_port] =
        open({.session_id = make_uuid(), .guest = {.endpoint = guest.endpoint}, .device = lo});
    std::vector<std::pair<Fd, Fd>> own;
    for (const std::uint16_t each : {deleted_port, port}) {
      for (int i = 0; i < 4; ++i) {  // on both workers
        Fd client = connect_to(each);
        own.emplace_back(std::move(client), guest.accept());
      }
    }
    const Fd neighbour = connect_to(other_port);
    const Fd neighbour_served = guest.accept();
    proxy_->close(deleted, ClosePolicy::kKeep, CloseHow::kForwardDeleted);

    proxy_->set_device(session, lo, 0);  // it is the same one
    ASSERT_EQ(::send(own.front().first.get(), "still", 5, 0), 5);
    EXPECT_EQ(receive(own.front().second), "still");

    proxy_->set_device(session, next, 0);
    for (const auto& [client, served] : own) {
      EXPECT_EQ(receive(client), "error");
      EXPECT_EQ(receive(served), "error");
    }
    ASSERT_EQ(::send(neighbour.get(), "hello", 5, 0), 5);
    EXPECT_EQ(receive(neighbour_served), "hello") << "another session";

    proxy_->set_device(session, lo, 0);
    const Fd client = connect_to(port);
    const Fd served = guest.accept();
    ASSERT_EQ(::send(client.get(), "again", 5, 0), 5);
    EXPECT_EQ(receive(served), "again");
    std::size_t ended = 0;
    EXPECT_TRUE(await([&] {
      proxy_->drain_closes([&](const CloseRecord& record) {
        ++ended;
        EXPECT_EQ(record.cause, (CloseCause{CloseSide::kNode, CloseHow::kDeviceGone}));
      });
      return ended == own.size();
    }));
    proxy_->stop();
  }
}

/// Clients come all the time, most of them through another worker: none may keep a former device.
TEST_P(ProxyTest, NoConnectionKeepsAFormerDeviceHoweverItIsUnderWay) {
  const auto lo = static_cast<int>(::if_nametoindex("lo"));
  for (int round = 0; round < 30; ++round) {
    start(2);
    const Guest guest;
    const Uuid session = make_uuid();
    const auto [id, port] =
        open({.session_id = session, .guest = {.endpoint = guest.endpoint}, .device = lo});
    std::vector<Fd> clients;
    for (int i = 0; i < 40; ++i) clients.push_back(connect_to(port));
    proxy_->set_device(session, kNoDevice, 0);
    for (const Fd& client : clients) EXPECT_EQ(receive(client), "error") << "round " << round;
    EXPECT_TRUE(await([&, id = id] { return proxy_->forward_stats(id)->connections_active == 0; }));
    proxy_->stop();
  }
}

TEST_P(ProxyTest, ClientsThatNobodyHasAcceptedYetRunOnWhereTheForwardsConnectionsDo) {
  for (const ClosePolicy policy : {ClosePolicy::kKeep, ClosePolicy::kDrain}) {
    start(2);
    const Guest guest;
    for (int round = 0; round < 100; ++round) {
      const auto [id, port] = open(guest.endpoint);
      std::vector<Fd> clients;
      for (int i = 0; i < 4; ++i) clients.push_back(connect_to(port));
      proxy_->close(id, policy, CloseHow::kForwardDeleted);
      for (const Fd& client : clients) ASSERT_EQ(::send(client.get(), "hello", 5, 0), 5);
      std::vector<Fd> served;
      for (std::size_t i = 0; i < clients.size(); ++i) {
        served.push_back(guest.accept());
        ASSERT_EQ(receive(served.back()), "hello") << "round " << round;
      }
    }
    proxy_->stop();
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, ProxyTest, testing::Values(IoBackend::kUring, IoBackend::kEpoll),
                         [](const auto& backend) { return std::string(to_string(backend.param)); });

}  // namespace
}  // namespace portway

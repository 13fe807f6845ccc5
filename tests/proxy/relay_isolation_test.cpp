// Whatever happens to one forward, however much at once, does not delay the clients of another: a worker
// does a little of it in each turn.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "proxy/slot_arena.h"
#include "tests/proxy/harness.h"

namespace portway::test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t kCrowd = 600;
// Sockets opened or closed in a turn; a connection's step has two.
constexpr std::size_t kSocketsInTurn = 150;
// To the guest and back over four wires, plus a missed turn at each end.
constexpr int kTurnsOfAPing = 8;
constexpr SimNetworkOptions kNetwork{.latency =
                                         std::chrono::microseconds(1)};  // as a turn of the simulated time

ConnectionOptions connection_options() {
  ConnectionOptions options;
  options.config.idle_timeout = 60s;
  options.config.drain_timeout = 5s;
  options.config.keepalive = 0s;
  options.config.user_timeout = 0s;
  options.config.busy_poll = 0us;
  return options;
}

/// A simulated worker with two forwards: one has a crowd of clients, the other one has a bystander.
class RelayIsolation : public testing::Test {
 protected:
  struct Served {
    ServedForwardPtr forward;
    Endpoint entry;
    Endpoint service;
    int listener;
  };

  explicit RelayIsolation(WorkerOptions options = {})
      : world_(make_world(Backend::kSim, kNetwork)), arena_(2 * kCrowd) {
    std::string why_not;
    auto io = world_->make_io(why_not);
    options.connections = connection_options();
    worker_ = std::make_unique<Worker>(std::move(io), options, arena_.table(0));
    crowd_ = serve();
    other_ = serve();
    turn();
    client_ = std::make_unique<Peer>(world_->connect(other_.entry));
    guest_ = await_guest(other_);
    guest_->echo();
  }

  ~RelayIsolation() override {
    worker_->post(Worker::Stop{});
    while (!worker_->stopped()) worker_->turn(1ms);
    worker_.reset();
  }

  Served serve() {
    Served served;
    served.service = world_->serve(AF_INET, GuestAnswer::kServes);
    ForwardRoute route;
    route.id = ForwardId{static_cast<std::uint8_t>(++forwards_)};
    route.guest.endpoint = served.service;
    route.device = kAnyDevice;
    served.forward = std::make_shared<ServedForward>(route, 1);
    std::vector<Fd> listeners;
    listeners.push_back(world_->listen(AF_INET, served.entry));
    served.listener = listeners.front().get();
    worker_->post(Worker::OpenForward{served.forward, std::move(listeners)});
    return served;
  }

  void turn() {
    const std::size_t before = world_->sim()->open_sockets();
    worker_->turn(1ms);
    const std::size_t after = world_->sim()->open_sockets();
    most_ = std::max(most_, after > before ? after - before : before - after);
    if (client_) client_->pump();
    if (guest_) guest_->pump();
  }

  /// While nothing happens.
  void pass_until(Nanos time) {
    while (world_->now() < time) worker_->turn(time - world_->now());
  }

  std::unique_ptr<Peer> await_guest(const Served& served) {
    for (int i = 0; i < 1000; ++i) {
      if (auto socket = world_->accept(served.service)) return std::make_unique<Peer>(std::move(socket));
      turn();
    }
    throw std::runtime_error("no connection came to the guest");
  }

  /// Clients that come at the same time.
  void send_crowd() {
    for (std::uint32_t i = 0; i < kCrowd; ++i) clients_.push_back(world_->connect(crowd_.entry));
  }
  /// Waits until they are served and nothing happens any more.
  void settle_crowd() {
    send_crowd();
    while (established() < kCrowd) {
      turn();
      while (auto guest = world_->accept(crowd_.service)) guests_.push_back(std::move(guest));
    }
    most_ = 0;
  }

  std::uint64_t established() const { return crowd_.forward->stats().connections_established; }
  std::uint64_t active() const { return crowd_.forward->stats().connections_active; }

  /// The bystander sends repeatedly until `done`; each answer comes soon.
  void ping_until(const std::function<bool()>& done) {
    for (std::size_t pings = client_->received().size() + 1; !done(); ++pings) {
      client_->send("x");
      client_->pump();
      int turns = 0;
      while (client_->received().size() < pings) {
        turn();
        ASSERT_LE(++turns, kTurnsOfAPing);
      }
    }
    EXPECT_LE(most_, kSocketsInTurn) << "of the sockets in one turn";
  }

  void close_crowd(ForwardPhase phase) {
    crowd_.forward->advance(phase, CloseHow::kForwardDeleted);
    world_->sim()->shutdown(crowd_.listener, SHUT_RD);
    worker_->post(Worker::CloseForward{crowd_.forward});
  }

  std::unique_ptr<World> world_;
  SlotArena arena_;
  std::unique_ptr<Worker> worker_;
  int forwards_ = 0;
  Served crowd_;
  Served other_;
  std::unique_ptr<Peer> client_;  // the bystander
  std::unique_ptr<Peer> guest_;
  std::vector<std::unique_ptr<PeerSocket>> clients_;
  std::vector<std::unique_ptr<PeerSocket>> guests_;
  std::size_t most_ = 0;  // sockets opened or closed in a turn
};

TEST_F(RelayIsolation, ACrowdComesAtOnce) {
  send_crowd();
  ping_until([this] { return established() == kCrowd; });
}

TEST_F(RelayIsolation, AClientOfAnotherForwardIsServedWhileACrowdWaits) {
  send_crowd();
  turn();
  const auto newcomer = std::make_unique<Peer>(world_->connect(other_.entry));
  int turns = 0;
  while (!world_->accept(other_.service)) {
    turn();
    ASSERT_LE(++turns, kTurnsOfAPing);
  }
  EXPECT_LT(established(), kCrowd / 2) << "it is not served because the crowd is gone";
}

TEST_F(RelayIsolation, ACrowdLeavesAtOnce) {
  settle_crowd();
  for (const auto& client : clients_) client->close();
  ping_until([this] {
    for (const auto& guest : guests_) {
      char byte;
      if (guest->recv({&byte, 1}, 0) == 0) guest->shutdown_write();
    }
    return active() == 0;
  });
}

TEST_F(RelayIsolation, ACrowdIsResetAtOnceByItsGuest) {
  settle_crowd();
  for (const auto& guest : guests_) guest->close_with_reset();
  ping_until([this] { return active() == 0; });
}

TEST_F(RelayIsolation, AForwardWithACrowdIsDeleted) {
  settle_crowd();
  close_crowd(ForwardPhase::kEnded);
  ping_until([this] { return active() == 0; });
}

TEST_F(RelayIsolation, AForwardWithACrowdIsDrained) {
  settle_crowd();
  close_crowd(ForwardPhase::kDraining);
  turn();
  pass_until(world_->now() + connection_options().config.drain_timeout - 50ms);
  EXPECT_EQ(active(), kCrowd);
  ping_until([this] { return active() == 0; });
}

TEST_F(RelayIsolation, ACrowdIsIdleForTooLong) {
  settle_crowd();
  const Nanos settled = world_->now();
  pass_until(settled + connection_options().config.idle_timeout / 2);
  std::size_t pings = 0;
  ping_until([&] { return ++pings > 1; });  // so that it is not idle for as long itself
  pass_until(settled + connection_options().config.idle_timeout - 50ms);
  EXPECT_EQ(active(), kCrowd);
  ping_until([this] { return active() == 0; });
  EXPECT_EQ(worker_->counters()
                .closed[static_cast<std::size_t>(CloseSide::kNode)]
                       [static_cast<std::size_t>(CloseHow::kIdleTimeout)]
                .get(),
            kCrowd);
}

TEST_F(RelayIsolation, AllConnectionsOfAForwardAreEndedByRequestAndThoseThatComeLaterAreNot) {
  settle_crowd();
  std::promise<std::size_t> answer;
  auto count = answer.get_future();
  worker_->post(Worker::EndConnections{crowd_.forward, 0, std::move(answer)});
  turn();
  EXPECT_EQ(count.get(), kCrowd);
  const auto later = world_->connect(crowd_.entry);
  std::promise<std::vector<LiveConnection>> list;
  auto live = list.get_future();
  worker_->post(Worker::ListConnections{crowd_.forward, 0, 10, std::move(list)});
  turn();
  EXPECT_LE(live.get().size(), 1U) << "those that are being ended are not listed";
  ping_until([this] { return active() == 1; });
  for (int i = 0; i < 10; ++i) turn();
  EXPECT_EQ(active(), 1U);
}

/// The same with few pipes, of which a quarter is kept for instances that have none.
class RelayPipeShares : public RelayIsolation {
 protected:
  static constexpr std::uint32_t kPipes = 8;
  static constexpr std::uint32_t kForAll = 6;

  RelayPipeShares()
      : RelayIsolation(
            {.index = 0, .pipes_max = kPipes, .share = shares(), .connections = connection_options()}) {}

  static const FairShare* shares() {
    static FairShare share(2 * kCrowd, 75);
    share.set_sessions(2);
    return &share;
  }

  struct Stalled {
    std::unique_ptr<Peer> client;
    std::unique_ptr<PeerSocket> guest;
  };
  /// A client that sends to a guest that reads nothing, until no byte moves any more.
  Stalled stall(const Served& served) {
    Stalled made{std::make_unique<Peer>(world_->connect(served.entry)), nullptr};
    while (!(made.guest = world_->accept(served.service))) turn();
    made.client->send_pattern(1, 8 << 20);
    for (std::uint64_t before = UINT64_MAX, idle = 0; idle < 20; turn()) {
      made.client->pump();
      const std::uint64_t moved = served.forward->stats().received_bytes;
      idle = moved == before ? idle + 1 : 0;
      before = moved;
    }
    return made;
  }
  std::uint64_t in_use() const { return worker_->counters().pipes_in_use.get(); }
  std::uint64_t spliced() const { return worker_->counters().spliced_bytes.get(); }
};

TEST_F(RelayPipeShares, StalledClientsOfOneInstanceLeaveSomeToTheOthers) {
  std::vector<Stalled> stalled;
  for (std::uint32_t i = 0; i < 2 * kPipes; ++i) stalled.push_back(stall(crowd_));
  EXPECT_EQ(in_use(), kForAll);
  EXPECT_EQ(crowd_.forward->session->pipes.load(), kForAll);
  const Stalled first = stall(other_);
  EXPECT_EQ(in_use(), kForAll + 1) << "an instance without one gets one of those that are kept";
  const Stalled second = stall(other_);
  EXPECT_EQ(in_use(), kForAll + 1) << "and leaves the other one to a third instance";
  EXPECT_EQ(other_.forward->session->pipes.load(), 1U);
}

TEST_F(RelayPipeShares, AnInstanceThatHoldsNoneHasItsBulkSpliced) {
  std::vector<Stalled> stalled;
  for (std::uint32_t i = 0; i < 2 * kPipes; ++i) stalled.push_back(stall(crowd_));
  const std::uint64_t before = spliced();
  client_->send_pattern(2, 4 << 20);
  while (guest_->received_bytes() < 4 << 20) turn();
  EXPECT_GT(spliced(), before);
  EXPECT_LE(in_use(), kPipes);
}

TEST_F(RelayPipeShares, WhatAConnectionHeldCountsNoLongerOnceItHasEnded) {
  std::vector<Stalled> stalled;
  for (std::uint32_t i = 0; i < 2 * kPipes; ++i) stalled.push_back(stall(crowd_));
  for (const Stalled& each : stalled) each.guest->close_with_reset();
  for (int i = 0; i < 1000 && active() != 0; ++i) turn();
  EXPECT_EQ(active(), 0U);
  EXPECT_EQ(in_use(), 0U);
  EXPECT_EQ(crowd_.forward->session->pipes.load(), 0U);
}

}  // namespace
}  // namespace portway::test

// A kernel without memory for its ring: it refuses to arm operations, or loses completions.
#include <gtest/gtest.h>
#include <liburing.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <random>
#include <vector>

#include "proxy/uring_io.h"
#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

class UringFaults : public testing::Test {
 protected:
  void SetUp() override {
    std::string why_not;
    make_world(Backend::kUring)->make_io(why_not);
    PORTWAY_NEEDS(why_not);
  }

  /// Replaces the kernel in each call.
  RigOptions options() {
    RigOptions options;
    options.uring_enter = [this](io_uring& ring, Nanos timeout) { return enter(ring, timeout); };
    return options;
  }

  int enter(io_uring& ring, Nanos timeout) {
    ++entered_;
    if (chance(refusals_)) return errors_[random_() % errors_.size()];
    const int result = enter_uring(ring, timeout);
    if (stale_flag_) *ring.sq.kflags |= IORING_SQ_TASKRUN;
    if (!chance(losses_)) return result;
    const unsigned lost = io_uring_cq_ready(&ring);
    if (lost == 0) return result;
    io_uring_cq_advance(&ring, lost);
    *ring.cq.koverflow += lost;
    ++lost_;
    return random_() % 2 == 0 ? -EBADR : result;
  }

  bool chance(double probability) {
    return probability > 0 && std::uniform_real_distribution<>()(random_) < probability;
  }

  /// Both send each other so much, then one of them ends it, one way or the other.
  static void exchange(Rig& rig, const std::vector<Rig::Pair>& pairs, std::uint64_t bytes) {
    for (const Rig::Pair& pair : pairs) {
      pair.client.send_pattern(1, bytes);
      pair.guest.send_pattern(2, bytes);
      pair.guest.expect_pattern(1);
      pair.client.expect_pattern(2);
    }
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      const auto& [client, guest] = pairs[i];
      ASSERT_TRUE(rig.run_until([&, &client = client, &guest = guest] {
        return client.received_bytes() == bytes && guest.received_bytes() == bytes;
      })) << i;
      EXPECT_TRUE(client.intact());
      EXPECT_TRUE(guest.intact());
    }
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      const auto& [client, guest] = pairs[i];
      if (i % 3 == 0) {
        client.reset();
      } else {
        client.shutdown_write();
        guest.shutdown_write();
      }
    }
    ASSERT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 0; })) << "a slot is left";
    for (const auto& [client, guest] : pairs) {
      EXPECT_TRUE(rig.run_until([&, &guest = guest] { return guest.ended(); }));
    }
  }

  double refusals_ = 0;
  double losses_ = 0;
  bool stale_flag_ = false;  // the flag reports more events than there are
  std::vector<int> errors_ = {-EAGAIN, -EBUSY, -ENOMEM};
  std::uint64_t entered_ = 0;
  std::uint64_t lost_ = 0;
  std::mt19937_64 random_{1};
};

TEST_F(UringFaults, WhatIsRefusedIsSubmittedAgain) {
  Rig rig(Backend::kUring, options());
  refusals_ = 0.3;
  std::vector<Rig::Pair> pairs;
  for (int i = 0; i < 20; ++i) pairs.push_back(rig.open());
  exchange(rig, pairs, 1 * kMiB);
  EXPECT_GT(rig.counters().io_refusals.get(), 0u);
  refusals_ = 0;
}

// It tried again and again, at once; with a full queue it never came back.
TEST_F(UringFaults, ARefusalForLongIsWaitedOut) {
  Rig rig(Backend::kUring, options());
  const auto [client, guest] = rig.open();
  guest.echo();
  rig.settle();  // or its polls would be refused too
  refusals_ = 1;
  std::vector<Peer*> waiting;
  for (int i = 0; i < 5; ++i) waiting.push_back(&rig.connect());
  const std::uint64_t before = entered_;
  const Nanos began = rig.world().now();
  std::uint64_t turns = 0;
  while (rig.world().now() - began < 300ms) {
    rig.worker().turn(Nanos(-1));
    ++turns;
  }
  EXPECT_LT(entered_ - before, 30u);
  EXPECT_LT(turns, 100u) << "it does not sleep";
  client.send("what is armed already goes on");
  EXPECT_TRUE(rig.run_until([&, &client = client] { return client.received_bytes() == 29; }));
  refusals_ = 0;
  EXPECT_TRUE(rig.run_until([&] { return rig.stats().connections_established == 6; }));
}

TEST_F(UringFaults, MoreThanTheQueueHoldsWaitsForItsTurn) {
  refusals_ = 0;
  std::string why_not;
  auto world = make_world(Backend::kUring);
  world->set_enter([this](io_uring& ring, Nanos timeout) { return enter(ring, timeout); });
  const auto io = world->make_io(why_not);
  ASSERT_TRUE(io) << why_not;
  io->wait(Nanos::zero());
  // Twice as many operations as the ring's queue holds.
  constexpr int kOperations = 4096;
  std::vector<Fd> fds;
  refusals_ = 1;
  int fd = -1;
  while (fds.size() < kOperations && (fd = ::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)) >= 0) {
    fds.emplace_back(fd);
    io->poll(fds.size(), fd);
  }
  refusals_ = 0;
  std::vector<bool> told(fds.size() + 1);
  std::size_t count = 0;
  for (int i = 0; i < 1000 && count < fds.size(); ++i) {
    for (const Completion& completion : io->wait(10ms)) {
      if (!told[completion.token]) ++count;
      told[completion.token] = true;
    }
  }
  EXPECT_EQ(count, fds.size());
  for (std::size_t i = 0; i < fds.size(); ++i) io->cancel(i + 1, fds[i].get());
  for (int i = 0; i < 1000 && count > 0; ++i) {
    for (const Completion& completion : io->wait(10ms)) count -= completion.more ? 0 : 1;
  }
  EXPECT_EQ(count, 0u);
}

// The kernel sets the flag after queuing the event, which may have been processed meanwhile. A worker
// asked for more until another event came, and its clients waited.
TEST_F(UringFaults, AFlagThatReportsMissingEventsHoldsNobodyUp) {
  Rig rig(Backend::kUring, options());
  stale_flag_ = true;
  const auto [client, guest] = rig.open();
  client.send("still here");
  EXPECT_TRUE(rig.run_until([&, &guest = guest] { return guest.received() == "still here"; }));
  EXPECT_TRUE(rig.worker_sleeps());
}

// A slot whose last completion was lost stayed for ever, and a socket whose edge was lost stalled.
TEST_F(UringFaults, LostCompletionsAreMadeUpFor) {
  for (const double losses : {0.05, 0.2}) {
    Rig rig(Backend::kUring, options());
    std::vector<Rig::Pair> pairs;
    losses_ = losses;
    for (int i = 0; i < 30; ++i) pairs.push_back(rig.open());
    exchange(rig, pairs, 256 * kKiB);
    EXPECT_TRUE(rig.run_until([&] { return rig.counters().io_losses.get() > 0; }));
    losses_ = 0;
    EXPECT_GT(lost_, 0u);
    EXPECT_GT(rig.counters().io_losses.get(), 0u);
    // The listener and the wake-up are armed as well.
    const auto [client, guest] = rig.open();
    client.send("still here");
    EXPECT_TRUE(rig.run_until([&, &guest = guest] { return guest.received() == "still here"; }));
    EXPECT_EQ(rig.connections().size(), 1u);
  }
}

}  // namespace
}  // namespace portway::test

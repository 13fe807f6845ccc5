// Watches, with a real etcd.

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <chrono>
#include <string>
#include <vector>

#include "fleet/etcd.h"
#include "tests/fleet/etcd_world.h"

namespace portway::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

using EtcdWatchTest = EtcdTest;

TEST_F(EtcdWatchTest, DeliversWhatChangesFromNowOn) {
  start_one();
  put("k/a", "before");
  const auto watch = etcd().watch({.keys = EtcdKeys::with_prefix("k/")});
  EXPECT_EQ(watch->next_revision(), 0);
  const auto opened = done(watch->next());
  EXPECT_TRUE(opened.events.empty());
  EXPECT_EQ(opened.revision, 2);
  EXPECT_EQ(watch->next_revision(), 3);

  put("elsewhere");
  const std::int64_t changed = put("k/a", "after");
  const EtcdEvents first = next_events(*watch);
  EXPECT_EQ(first.revision, changed);
  ASSERT_EQ(first.events.size(), 1U);
  EXPECT_EQ(first.events[0].type, EtcdEvent::Type::kPut);
  EXPECT_EQ(first.events[0].kv.value, "after");

  const auto both = done(etcd().txn(
      {.success = {EtcdPut{.key = "k/b"}, EtcdDelete{.keys = EtcdKeys::one("k/a")}, EtcdPut{.key = "l"}}}));
  const EtcdEvents second = next_events(*watch);
  EXPECT_EQ(second.revision, both.header.revision);
  ASSERT_EQ(second.events.size(), 2U);
  EXPECT_EQ(second.events[1].type, EtcdEvent::Type::kDelete);
  EXPECT_EQ(second.events[1].kv.key, "k/a");
  EXPECT_EQ(watch->next_revision(), both.header.revision + 1);
}

TEST_F(EtcdWatchTest, SeesALeaseExpire) {
  start_one();
  const auto lease = done(etcd().grant(seconds(1)));
  const std::int64_t revision = put("a", "1", lease.lease);
  const auto watch = etcd().watch({.keys = EtcdKeys::one("a"), .start_revision = revision});
  EXPECT_EQ(next_events(*watch).events.at(0).kv.lease, lease.lease);
  const EtcdEvents expired = next_events(*watch);
  EXPECT_EQ(expired.events.at(0).type, EtcdEvent::Type::kDelete);
  EXPECT_EQ(expired.revision, revision + 1);
  EXPECT_EQ(failed(etcd().keep_alive(lease.lease)).kind, EtcdErrorKind::kLeaseNotFound);
}

TEST_F(EtcdWatchTest, GoesOnAfterARestartWithoutLossOrRepetition) {
  EtcdMember& member = start_one();
  const auto watch = etcd().watch({.keys = EtcdKeys::with_prefix("k/")});
  done(watch->next());
  std::vector<std::int64_t> put_at{put("k/0"), put("k/1"), put("k/2")};
  std::vector<std::int64_t> seen_at;
  const auto take = [&](const EtcdEvents& batch) {
    for (const EtcdEvent& event : batch.events) seen_at.push_back(event.kv.mod_revision);
  };
  take(next_events(*watch));  // perhaps not all of them
  member.kill();
  EtcdError lost;
  while (lost.detail.empty()) {
    const auto batch = wait(watch->next());
    if (batch) {
      take(*batch);
    } else {
      lost = batch.error();
    }
  }
  EXPECT_EQ(lost.kind, EtcdErrorKind::kUnreachable) << lost.detail;
  EXPECT_NE(lost.detail.find(member.url()), std::string::npos) << lost.detail;
  member.restart();
  for (int i = 3; i < 6; ++i) put_at.push_back(put("k/" + std::to_string(i)));
  while (seen_at.size() < put_at.size()) take(next_events(*watch));
  EXPECT_EQ(seen_at, put_at);
}

TEST_F(EtcdWatchTest, SaysThatChangesAreCompacted) {
  EtcdMember& member = start_one();
  for (int i = 0; i < 5; ++i) put("a", std::to_string(i));
  member.control({"compact", "4"});
  const auto watch = etcd().watch({.keys = EtcdKeys::one("a"), .start_revision = 2});
  auto batch = wait(watch->next());
  if (batch) batch = wait(watch->next());  // etcd opens the stream first
  for (int i = 0; i < 2; ++i, batch = wait(watch->next())) {
    ASSERT_FALSE(batch);
    EXPECT_EQ(batch.error().kind, EtcdErrorKind::kCompacted);
    EXPECT_EQ(batch.error().compact_revision, 4);
  }
  const auto from_there = etcd().watch({.keys = EtcdKeys::one("a"), .start_revision = 4});
  EXPECT_EQ(next_events(*from_there).events.at(0).kv.mod_revision, 4);
}

TEST_F(EtcdWatchTest, DeliversRevisionsWholeHoweverLargeTheyAre) {
  start_one();
  // etcd sends them in fragments of about 2 MiB; a transaction of 1.2 MB is at the end of one, and begins the
  // next.
  std::vector<std::int64_t> put_at;
  for (int i = 0; i < 6; ++i) {
    EtcdTxn txn;
    for (int key = 0; key < 3; ++key) {
      txn.success.emplace_back(
          EtcdPut{.key = "k/" + std::to_string(key), .value = std::string(400'000, 'x')});
    }
    put_at.push_back(done(etcd().txn(txn)).header.revision);
  }
  const auto watch = etcd().watch({.keys = EtcdKeys::with_prefix("k/"), .start_revision = put_at.front()});
  std::vector<std::int64_t> seen_at;
  int batches = 0;
  while (seen_at.size() < 3 * put_at.size()) {
    const EtcdEvents batch = next_events(*watch);
    ++batches;
    ASSERT_EQ(batch.events.size() % 3, 0U);
    for (const EtcdEvent& event : batch.events) seen_at.push_back(event.kv.mod_revision);
  }
  EXPECT_GT(batches, 1);
  for (std::size_t i = 0; i < seen_at.size(); ++i) EXPECT_EQ(seen_at[i], put_at[i / 3]);
}

TEST_F(EtcdWatchTest, RefusesABatchThatIsTooLarge) {
  start_one();
  EtcdOptions small = options();
  small.answer_max = 64U << 10;
  const auto bounded = make(small);
  const auto watch = bounded->watch({.keys = EtcdKeys::one("a")});
  done(watch->next());
  put("a", std::string(100'000, 'x'));
  EXPECT_EQ(failed(watch->next()).kind, EtcdErrorKind::kTooLarge);
  EXPECT_EQ(failed(watch->next()).kind, EtcdErrorKind::kTooLarge);
}

TEST_F(EtcdWatchTest, IsQuietWhileNothingChanges) {
  start_one();
  EtcdOptions eager = options();
  eager.silence_max = milliseconds(20);
  const auto client = make(eager);
  const auto watch = client->watch({.keys = EtcdKeys::one("a")});
  done(watch->next());
  // A lease's expiry is two seconds and a hundred signs of life away. The stream is the same one all along.
  const auto lease = done(client->grant(seconds(1)));
  done(client->put({.key = "a", .lease = lease.lease}));
  EXPECT_EQ(done(watch->next()).events.at(0).type, EtcdEvent::Type::kPut);
  EXPECT_EQ(done(watch->next()).events.at(0).type, EtcdEvent::Type::kDelete);
}

TEST_F(EtcdWatchTest, LeavesAMemberThatIsSilentOrHasNoLeader) {
  start_cluster(3);
  EtcdOptions eager = options();
  eager.silence_max = milliseconds(200);
  eager.request_timeout = seconds(3);
  eager.connect_timeout = seconds(1);
  const auto client = make(eager);
  std::vector<std::int64_t> put_at;
  const auto put_somewhere = [&] {
    for (;;) {
      // A repeated put could be there twice: the revision tells.
      const auto put = wait(client->put({.key = "a"}));
      if (put) return put_at.push_back(put->header.revision);
      ASSERT_NE(put.error().kind, EtcdErrorKind::kRefused) << put.error().detail;
    }
  };
  const auto watch = client->watch({.keys = EtcdKeys::one("a")});
  done_once_led([&] { return watch->next(); });
  const auto expect_up_to = [&](std::int64_t revision) {
    while (watch->next_revision() <= revision) {
      const std::int64_t before = watch->next_revision();
      const EtcdEvents batch = next_events(*watch);
      for (std::size_t i = 0; i < batch.events.size(); ++i) {
        EXPECT_EQ(batch.events[i].kv.mod_revision, before + static_cast<std::int64_t>(i));
      }
    }
  };
  put_somewhere();
  expect_up_to(put_at.back());
  members_[0]->stop();  // its connections stay
  put_somewhere();
  expect_up_to(put_at.back());
  members_[0]->resume();
  members_[1]->stop();
  put_somewhere();
  expect_up_to(put_at.back());
  members_[1]->resume();
  // Whichever member it is at now is left without the two others, and then with them again.
  members_[0]->kill();
  members_[1]->kill();
  EtcdError error;
  while (error.detail.find("no leader") == std::string::npos) {
    const auto batch = wait(watch->next());
    if (!batch) error = batch.error();
  }
  for (const int i : {0, 1}) members_[static_cast<std::size_t>(i)]->restart();
  put_somewhere();
  expect_up_to(put_at.back());
}

TEST_F(EtcdWatchTest, MayBeDestroyedByWhomItHasResumed) {
  start_one();
  auto client = make(options());
  auto watch = client->watch({.keys = EtcdKeys::one("a")});
  auto other = client->watch({.keys = EtcdKeys::one("b")});
  done(other->next());
  std::vector<EtcdErrorKind> ends;
  int resumed = 0;
  const auto consumer = [&]() -> boost::asio::awaitable<void> {
    for (;;) {
      const auto batch = co_await watch->next();
      ++resumed;
      if (!batch) break;
      if (batch->events.empty()) continue;
      watch.reset();
      client.reset();
      co_return;
    }
  };
  const auto waiting = [&]() -> boost::asio::awaitable<void> {
    const auto batch = co_await other->next();
    ends.push_back(batch ? EtcdErrorKind::kRefused : batch.error().kind);
  };
  boost::asio::co_spawn(context_, consumer, boost::asio::detached);
  boost::asio::co_spawn(context_, waiting, boost::asio::detached);
  while (resumed == 0) context_.run_one();
  put("a");
  context_.restart();
  while (client != nullptr) context_.run_one();
  while (ends.empty()) context_.run_one();
  EXPECT_EQ(resumed, 2);
  EXPECT_EQ(ends, std::vector{EtcdErrorKind::kClosed});
  EXPECT_EQ(failed(other->next()).kind, EtcdErrorKind::kClosed);
}

}  // namespace
}  // namespace portway::test

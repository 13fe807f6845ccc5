#include "proxy/pipe_pool.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "tests/sim/sim_io.h"

namespace portway::test {
namespace {

class PipePoolTest : public ::testing::Test {
 protected:
  /// A second after a pipe has not taken everything, pipes are used again.
  void wait_out_the_pause() {
    for (const Nanos until = io_.now() + std::chrono::seconds(2); io_.now() < until;)
      io_.wait(until - io_.now());
  }

  SimNetwork network_;
  SimIo io_{network_};
  WorkerCounters counters_;
  const std::unique_ptr<RelayMemory> memory_ = std::make_unique<RelayMemory>();
};

TEST_F(PipePoolTest, OpensAPipeWhenOneIsNeededAndKeepsItForTheNextRelay) {
  PipePool pool(io_, 10, counters_, *memory_);
  EXPECT_EQ(io_.open_pipe_ends(), 0U);
  const Pipe pipe = pool.take().value();
  EXPECT_EQ(pipe.capacity, PipePool::kPipeSize);
  EXPECT_EQ(counters_.pipes_in_use.get(), 1U);
  pool.give_back(pipe, true);
  EXPECT_EQ(counters_.pipes_in_use.get(), 0U);
  EXPECT_EQ(pool.take().value().read_end, pipe.read_end);
  EXPECT_EQ(io_.open_pipe_ends(), 2U);
  pool.give_back(pipe, true);
}

TEST_F(PipePoolTest, APipeWithBytesInItIsNeverLentAgain) {
  PipePool pool(io_, 10, counters_, *memory_);
  const Pipe pipe = pool.take().value();
  ASSERT_EQ(io_.write(pipe.write_end, "secret", 6), 6);
  pool.give_back(pipe, false);
  EXPECT_EQ(io_.open_pipe_ends(), 0U);
  EXPECT_EQ(counters_.pipes_open.get(), 0U);
}

TEST_F(PipePoolTest, RefusesMoreThanItsBoundAndCountsThat) {
  PipePool pool(io_, 2, counters_, *memory_);
  const Pipe first = pool.take().value();
  const Pipe second = pool.take().value();
  EXPECT_FALSE(pool.take());
  EXPECT_FALSE(pool.reserve());
  EXPECT_EQ(counters_.pipes_exhausted.get(), 2U);
  pool.give_back(first, false);  // a place is free, but the pipe is not reused
  const Pipe third = pool.take().value();
  pool.give_back(second, true);
  pool.give_back(third, true);
}

TEST_F(PipePoolTest, RefusalOfTheSystemIsCountedAndNotFinal) {
  PipePool pool(io_, 10, counters_, *memory_);
  io_.fail(SimIo::Call::kPipe, 1, EMFILE);
  EXPECT_FALSE(pool.take());
  EXPECT_EQ(counters_.pipes_exhausted.get(), 1U);
  EXPECT_EQ(counters_.pipes_open.get(), 0U);
  const auto pipe = pool.take();
  ASSERT_TRUE(pipe);
  pool.give_back(*pipe, true);
}

TEST_F(PipePoolTest, CountsPipesThatTheKernelMadeSmaller) {
  io_.set_pipe_slots_max(2);
  PipePool pool(io_, 10, counters_, *memory_);
  const Pipe pipe = pool.take().value();
  EXPECT_LT(pipe.capacity, PipePool::kPipeSize);
  EXPECT_EQ(counters_.pipes_clamped.get(), 1U);
  pool.give_back(pipe, false);
  EXPECT_EQ(counters_.pipes_clamped.get(), 0U);
}

TEST_F(PipePoolTest, ARelayThatHasAPipeKeepsIt) {
  PipePool pool(io_, 1, counters_, *memory_);
  RelayState relay;
  ASSERT_TRUE(pool.lend(relay));
  const int reader = relay.pipe[0];
  EXPECT_TRUE(pool.lend(relay));
  EXPECT_EQ(relay.pipe[0], reader);
  RelayState other;
  EXPECT_FALSE(pool.lend(other));
  pool.give_back({relay.pipe[0], relay.pipe[1], relay.pipe_capacity}, true);
}

TEST_F(PipePoolTest, WhileTheSpareBufferIsTakenNobodyElseMayKeepBytes) {
  PipePool pool(io_, 0, counters_, *memory_);  // no pipe to move them to
  RelayState owner;
  const std::vector<std::byte> bytes(1000, std::byte{7});
  ASSERT_TRUE(pool.may_keep());
  pool.put_in_spare(owner, bytes);
  EXPECT_TRUE(owner.in_spare);
  EXPECT_EQ(memory_->in_spare().size(), 1000U);
  EXPECT_FALSE(pool.may_keep());
  pool.take_from_spare(999);
  EXPECT_TRUE(owner.in_spare);
  EXPECT_EQ(memory_->in_spare().size(), 1U);
  pool.take_from_spare(1);
  EXPECT_FALSE(owner.in_spare);
  EXPECT_FALSE(pool.may_keep()) << "the kernel was short of memory a moment ago";
  wait_out_the_pause();
  EXPECT_TRUE(pool.may_keep());
}

TEST_F(PipePoolTest, TheSpareBufferIsEmptiedIntoAPipeOnceThereIsOne) {
  PipePool pool(io_, 10, counters_, *memory_);
  RelayState owner;
  const std::vector<std::byte> bytes(1000, std::byte{7});
  pool.put_in_spare(owner, bytes);
  EXPECT_EQ(counters_.pipe_writes_short.get(), 1U);
  wait_out_the_pause();
  EXPECT_TRUE(pool.may_keep());
  EXPECT_FALSE(owner.in_spare);
  EXPECT_EQ(owner.pipe_bytes, 1000U);
  pool.give_back({owner.pipe[0], owner.pipe[1], owner.pipe_capacity}, false);
}

}  // namespace
}  // namespace portway::test

// What only the simulated Io does: faults on demand, a strict account of descriptors. The conformance
// suite (tests/proxy) shows that it otherwise behaves like the real ones.
#include "tests/sim/sim_io.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <optional>
#include <string>

namespace portway::test {
namespace {

using namespace std::chrono_literals;

const Endpoint kEntry(boost::asio::ip::address_v4::loopback(), 80);

class SimIoTest : public testing::Test {
 protected:
  /// A connection: the client's end, and the Io's descriptor of the other one.
  int accept() {
    client_ = &network_.socket();
    client_->connect(kEntry);
    EXPECT_FALSE(io_->wait(1s).empty()) << "nobody has come";
    return io_->accept(listener_);
  }

  void SetUp() override {
    io_.emplace(network_);
    listener_ = io_->listen(kEntry);
    io_->poll(1, listener_);
  }
  void TearDown() override {
    io_->cancel(1, listener_);
    io_->wait(1s);
    io_->close(listener_);
    io_.reset();
  }

  SimNetwork network_;
  std::optional<SimIo> io_;
  int listener_ = -1;
  SimSocket* client_ = nullptr;
};

using SimIoDeathTest = SimIoTest;

TEST_F(SimIoDeathTest, ADescriptorThatIsClosedTwiceOrUsedAfterwardsAborts) {
  const int fd = accept();
  io_->close(fd);
  EXPECT_DEATH(io_->close(fd), "is closed");
  EXPECT_DEATH(io_->shutdown(fd, SHUT_WR), "is closed");
  EXPECT_DEATH(io_->poll(1, fd), "is closed");
  EXPECT_DEATH(io_->close(7), "not a descriptor");
}

TEST_F(SimIoDeathTest, ClosingWhatIsArmedAborts) {
  const int fd = accept();
  io_->poll(2, fd);
  EXPECT_DEATH(io_->close(fd), "armed");
  EXPECT_DEATH(io_->close_with_reset(fd), "armed");
  EXPECT_DEATH(io_->poll(3, fd), "armed twice");
  io_->cancel(2, fd);
  EXPECT_DEATH(io_->close(fd), "armed") << "a cancellation is not the last completion";
  io_->wait(1s);
  io_->wait(0s);
  io_->close(fd);
}

TEST_F(SimIoDeathTest, ALeakAborts) {
  EXPECT_DEATH(io_.reset(), "still open");
}

TEST_F(SimIoDeathTest, WaitingForEverForNothingAborts) {
  EXPECT_DEATH(io_->wait(Nanos(-1)), "nothing is going to happen");
}

TEST_F(SimIoTest, TheNthCallFailsAndSoManyAfterIt) {
  io_->fail(SimIo::Call::kSocket, 2, EMFILE, 2);
  const int first = io_->socket(AF_INET, nullptr);
  EXPECT_GE(first, 0);
  EXPECT_FALSE(io_->failed(SimIo::Call::kSocket));
  EXPECT_EQ(io_->socket(AF_INET, nullptr), -EMFILE);
  EXPECT_TRUE(io_->failed(SimIo::Call::kSocket));
  EXPECT_EQ(io_->socket(AF_INET, nullptr), -EMFILE);
  const int fourth = io_->socket(AF_INET, nullptr);
  EXPECT_GE(fourth, 0);
  io_->close(first);
  io_->close(fourth);
}

TEST_F(SimIoTest, WithoutDescriptorsAClientStaysInTheBacklog) {
  io_->set_descriptors_max(1);
  EXPECT_EQ(accept(), -EMFILE);
  io_->set_descriptors_max(SIZE_MAX);
  const int fd = io_->accept(listener_);
  EXPECT_GE(fd, 0);
  io_->close(fd);
}

TEST_F(SimIoTest, AReadThatIsCutShortIsFollowedByAnEvent) {
  const int fd = accept();
  io_->poll(2, fd);
  io_->wait(1s);
  io_->set_faults({.partial_read = 1});
  const std::string sent(10'000, 'x');
  client_->send(sent, 0);
  std::size_t got = 0;
  while (got < sent.size()) {
    const auto completions = io_->wait(1s);
    ASSERT_FALSE(completions.empty()) << "the rest is never reported";
    char buffer[65536];
    const auto size = io_->recv(fd, buffer, sizeof buffer, 0);
    if (size > 0) got += static_cast<std::size_t>(size);
  }
  io_->set_faults({});
  io_->cancel(2, fd);
  io_->wait(1s);
  io_->close(fd);
}

TEST_F(SimIoTest, WhatAPeekHasShownIsThere) {
  const int fd = accept();
  io_->set_faults({.partial_read = 0.9, .spurious_again = 0.9});
  client_->send(std::string(10'000, 'x'), 0);
  io_->wait(10ms);
  char buffer[65536];
  std::ptrdiff_t got = 0;
  for (int i = 0; i < 1000 && got < 10'000; ++i) {
    const auto seen = io_->recv(fd, buffer, sizeof buffer, MSG_PEEK);
    if (seen <= 0) continue;
    ASSERT_EQ(io_->recv(fd, buffer, static_cast<std::size_t>(seen), 0), seen);
    got += seen;
  }
  EXPECT_EQ(got, 10'000);
  io_->close(fd);
}

TEST_F(SimIoTest, BareEventsReportPollpriWithEveryArrival) {
  const int fd = accept();
  io_->poll(2, fd);
  io_->wait(1s);
  io_->set_faults({.bare_event = 1});
  client_->send("x", 0);
  const auto completions = io_->wait(1s);
  ASSERT_EQ(completions.size(), 1u);
  EXPECT_EQ(completions[0].result, POLLIN | POLLPRI);
  io_->cancel(2, fd);
  io_->wait(1s);
  io_->close(fd);
}

TEST_F(SimIoTest, AMultishotOperationThatEndsEarlyReportsItAndCanBeArmedAgain) {
  const int fd = accept();
  io_->set_faults({.early_end = 1});
  for (int i = 0; i < 3; ++i) {
    io_->poll(2, fd);
    const auto completions = io_->wait(1s);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].result, POLLOUT);
    EXPECT_FALSE(completions[0].more);
  }
  io_->close(fd);
}

TEST_F(SimIoTest, ASmallPipeSaysHowSmallItIs) {
  io_->set_pipe_slots_max(2);
  int fds[2];
  EXPECT_EQ(io_->pipe(fds, 262144), 8192);
  EXPECT_EQ(io_->open_pipe_ends(), 2u);
  EXPECT_EQ(io_->write(fds[1], "xyz", 3), 3);
  EXPECT_EQ(io_->piped_bytes(), 3u);
  io_->close(fds[0]);
  io_->close(fds[1]);
}

}  // namespace
}  // namespace portway::test

// What every Io does, tested on each of them: keeps the simulated one honest, and shows what the relay
// needs from the kernel.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <functional>
#include <map>
#include <thread>
#include <vector>

#include "tests/proxy/world.h"
#include "tests/support/requirements.h"

namespace portway::test {
namespace {

using namespace std::chrono_literals;

constexpr Nanos kLimit = 10s;

class IoConformance : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    world_ = make_world(GetParam());
    std::string why_not;
    io_ = world_->make_io(why_not);
    PORTWAY_NEEDS(why_not);
    listener_ = world_->listen(AF_INET, entry_).release();
  }

  void TearDown() override {
    if (!io_) return;
    for (const auto& [fd, token] : armed_) io_->cancel(token, fd);
    EXPECT_TRUE(await([this] { return armed_.empty(); })) << "a cancelled operation has a last completion";
    for (const int fd : opened_) io_->close(fd);
    io_->close(listener_);
  }

  void poll(int fd) {
    armed_[fd] = static_cast<Token>(fd);
    io_->poll(static_cast<Token>(fd), fd);
  }

  /// Waits until `condition` is true, keeping what was reported.
  bool await(const std::function<bool()>& condition) {
    const Nanos deadline = world_->now() + kLimit;
    while (!condition()) {
      if (world_->now() >= deadline) return false;
      wait(1ms);
    }
    return true;
  }

  /// One wait; true if it reported something.
  bool wait(Nanos timeout) {
    const auto completions = io_->wait(timeout);
    for (const Completion& completion : completions) {
      told_[static_cast<int>(completion.token)].push_back(completion);
      if (!completion.more) armed_.erase(static_cast<int>(completion.token));
    }
    return !completions.empty();
  }

  /// Every bit that was reported for `fd` since the last call.
  int bits(int fd) {
    int mask = 0;
    for (const Completion& completion : told_[fd]) mask |= completion.result;
    told_.erase(fd);
    return mask;
  }
  /// Waits until all of `mask` has been reported for `fd`.
  bool await_bits(int fd, int mask) {
    int seen = 0;
    return await([&] { return ((seen |= bits(fd)) & mask) == mask; });
  }
  /// Lets everything arrive that is on its way, and discards the reports.
  void settle() {
    for (int quiet = 0; quiet < 10; ++quiet) {
      if (wait(1ms)) quiet = 0;
    }
    told_.clear();
  }

  struct Ends {
    std::unique_ptr<PeerSocket> peer;
    int fd;
  };
  /// A connected pair; not polled yet.
  Ends connected() {
    Ends ends{world_->connect(entry_), -1};
    EXPECT_TRUE(await([&] { return (ends.fd = io_->accept(listener_)) != -EAGAIN; }));
    EXPECT_GE(ends.fd, 0);
    opened_.push_back(ends.fd);
    return ends;
  }

  struct Ends2 {
    int read_end;
    int write_end;
    int size;
  };
  Ends2 pipe(std::size_t size) {
    int fds[2];
    const int got = io_->pipe(fds, size);
    EXPECT_GT(got, 0);
    opened_.insert(opened_.end(), {fds[0], fds[1]});
    return {fds[0], fds[1], got};
  }

  void close_with_reset(int fd) {
    forget(fd);
    io_->close_with_reset(fd);
  }
  void close(int fd) {
    forget(fd);
    io_->close(fd);
  }

  /// Reads what `peer` gets until its end, which is the result: 0 or -errno.
  std::ptrdiff_t read_to_end(PeerSocket& peer, std::string& out) {
    std::ptrdiff_t end = -EAGAIN;
    EXPECT_TRUE(await([&] {
      char buffer[4096];
      while ((end = peer.recv(buffer, 0)) > 0) out.append(buffer, static_cast<std::size_t>(end));
      return end != -EAGAIN;
    }));
    return end;
  }

  std::unique_ptr<World> world_;
  std::unique_ptr<Io> io_;
  Endpoint entry_;
  int listener_ = -1;
  std::map<int, std::vector<Completion>> told_;  // by descriptor, which is the token

 private:
  void forget(int fd) {
    if (armed_.contains(fd)) {
      io_->cancel(static_cast<Token>(fd), fd);
      EXPECT_TRUE(await([&] { return !armed_.contains(fd); }));
    }
    std::erase(opened_, fd);
  }

  std::map<int, Token> armed_;
  std::vector<int> opened_;
};

INSTANTIATE_TEST_SUITE_P(Io, IoConformance, testing::ValuesIn(kBackends),
                         [](const auto& backend) { return std::string(to_string(backend.param)); });

// --- Waiting.

TEST_P(IoConformance, WaitEndsAfterItsTimeoutWhenNothingHappens) {
  const Nanos before = io_->now();
  int waits = 0;
  // Work that the kernel has for the thread may end a wait early, but that is rare.
  for (; io_->now() - before < 20ms; ++waits) EXPECT_FALSE(wait(20ms));
  EXPECT_LT(waits, 10);
  EXPECT_FALSE(wait(0ns));
}

TEST_P(IoConformance, AWakeUpBeforeTheWaitEndsIt) {
  wait(0ns);
  io_->wake();
  EXPECT_FALSE(wait(Nanos(-1)));
}

TEST_P(IoConformance, AWakeUpFromAnotherThreadEndsTheWait) {
  wait(0ns);
  std::thread other([this] { io_->wake(); });
  if (GetParam() == Backend::kSim) other.join();  // its time does not pass while another thread works
  EXPECT_FALSE(wait(Nanos(-1)));
  if (other.joinable()) other.join();
}

// --- Accepting.

TEST_P(IoConformance, AListenerReportsClientsUntilItIsCancelled) {
  poll(listener_);
  const auto first = world_->connect(entry_);
  ASSERT_TRUE(await_bits(listener_, POLLIN));
  const int accepted = io_->accept(listener_);
  ASSERT_GE(accepted, 0);
  EXPECT_EQ(io_->accept(listener_), -EAGAIN);
  io_->close(accepted);
  const auto second = world_->connect(entry_);
  EXPECT_TRUE(await_bits(listener_, POLLIN));
  settle();
  io_->cancel(static_cast<Token>(listener_), listener_);
  EXPECT_TRUE(await([this] { return !told_[listener_].empty() && !told_[listener_].back().more; }));
}

TEST_P(IoConformance, AListenerReportsAClientThatCameBefore) {
  const auto client = world_->connect(entry_);
  settle();
  poll(listener_);
  EXPECT_TRUE(await_bits(listener_, POLLIN));
}

TEST_P(IoConformance, AnAcceptedSocketKnowsItsPeer) {
  const Ends ends = connected();
  Client client;
  EXPECT_EQ(io_->take_client(ends.fd, client), 0);
  EXPECT_NE(client.endpoint.port(), 0);
}

TEST_P(IoConformance, AListenerThatWasShutDownReportsItAndListensAgain) {
  poll(listener_);
  io_->shutdown(listener_, SHUT_RD);
  EXPECT_TRUE(await_bits(listener_, POLLHUP));
  EXPECT_EQ(io_->accept(listener_), -EINVAL);
  settle();
  ASSERT_EQ(io_->listen_again(listener_), 0);
  EXPECT_EQ(io_->accept(listener_), -EAGAIN);
  const auto client = world_->connect(entry_);
  ASSERT_TRUE(await_bits(listener_, POLLIN));
  const int accepted = io_->accept(listener_);
  ASSERT_GE(accepted, 0);
  io_->close(accepted);
}

TEST_P(IoConformance, AClientThatResetsBeforeItIsAcceptedIsAcceptedAndThenSeenToBeReset) {
  auto client = world_->connect(entry_);
  settle();
  client->close_with_reset();
  settle();
  const int fd = io_->accept(listener_);
  ASSERT_GE(fd, 0);
  poll(fd);
  EXPECT_TRUE(await_bits(fd, POLLERR | POLLHUP));
  close(fd);
}

// --- Polling.

TEST_P(IoConformance, PollReportsTheStateAtTheTimeOfArming) {
  const Ends ends = connected();
  ends.peer->send("x", 0);
  settle();
  poll(ends.fd);
  EXPECT_TRUE(await_bits(ends.fd, POLLIN | POLLOUT));
}

TEST_P(IoConformance, PollReportsEachArrivalOnceHoweverMuchIsUnread) {
  const Ends ends = connected();
  poll(ends.fd);
  EXPECT_TRUE(await_bits(ends.fd, POLLOUT));
  for (int i = 0; i < 3; ++i) {
    ends.peer->send("x", 0);
    EXPECT_TRUE(await_bits(ends.fd, POLLIN));
    EXPECT_FALSE(wait(5ms)) << "the report is repeated";
  }
}

TEST_P(IoConformance, PollReportsRoomToWriteAfterThereWasNone) {
  const Ends ends = connected();
  poll(ends.fd);
  const std::string chunk(64 * 1024, 'x');
  // The peer's buffer takes what was in the socket's: continue until both are full.
  bool taken = true;
  while (taken) {
    taken = false;
    while (io_->send(ends.fd, chunk.data(), chunk.size(), 0) > 0) taken = true;
    settle();
  }
  EXPECT_GT(io_->unacknowledged(ends.fd), 0);
  int seen = 0;
  EXPECT_TRUE(await([&] {
    char buffer[65536];
    while (ends.peer->recv(buffer, 0) > 0) {
    }
    return ((seen |= bits(ends.fd)) & POLLOUT) != 0;
  }));
}

TEST_P(IoConformance, PollEndsWithCancelAndTheDescriptorCanBePolledAgain) {
  const Ends ends = connected();
  for (int i = 0; i < 3; ++i) {
    poll(ends.fd);
    EXPECT_TRUE(await_bits(ends.fd, POLLOUT));
    io_->cancel(static_cast<Token>(ends.fd), ends.fd);
    EXPECT_TRUE(await([&] { return !told_[ends.fd].empty() && !told_[ends.fd].back().more; }));
    told_.erase(ends.fd);
  }
}

// --- Connecting.

TEST_P(IoConformance, ConnectReportsRoomToWriteWhenItIsAnswered) {
  const Endpoint service = world_->serve(AF_INET, GuestAnswer::kServes);
  const int fd = io_->socket(AF_INET, nullptr);
  ASSERT_GE(fd, 0);
  const int result = io_->connect(fd, service);
  EXPECT_TRUE(result == 0 || result == -EINPROGRESS);
  poll(fd);
  EXPECT_TRUE(await_bits(fd, POLLOUT));
  EXPECT_EQ(io_->socket_error(fd), 0);
  std::unique_ptr<PeerSocket> guest;
  EXPECT_TRUE(await([&] { return (guest = world_->accept(service)) != nullptr; }));
  close(fd);
}

TEST_P(IoConformance, ConnectReportsAnErrorWhenItIsRefused) {
  const int fd = io_->socket(AF_INET, nullptr);
  EXPECT_EQ(io_->connect(fd, world_->serve(AF_INET, GuestAnswer::kRefuses)), -EINPROGRESS);
  poll(fd);
  EXPECT_TRUE(await_bits(fd, POLLERR | POLLHUP));
  EXPECT_EQ(io_->socket_error(fd), -ECONNREFUSED);
  EXPECT_EQ(io_->socket_error(fd), 0) << "it is reported once";
  close(fd);
}

TEST_P(IoConformance, ConnectReportsNothingWhileThereIsNoAnswer) {
  const int fd = io_->socket(AF_INET, nullptr);
  EXPECT_EQ(io_->connect(fd, world_->serve(AF_INET, GuestAnswer::kSilent)), -EINPROGRESS);
  poll(fd);
  EXPECT_FALSE(wait(20ms));
  close(fd);
}

// --- Ends.

TEST_P(IoConformance, FinIsReportedAndReadAsZero) {
  const Ends ends = connected();
  poll(ends.fd);
  settle();
  ends.peer->send("last", 0);
  ends.peer->shutdown_write();
  EXPECT_TRUE(await_bits(ends.fd, POLLIN | POLLRDHUP));
  char buffer[16];
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), 4);
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), 0);
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), 0);
  EXPECT_EQ(io_->socket_error(ends.fd), 0);
}

TEST_P(IoConformance, HangUpIsReportedWhenBothDirectionsHaveEnded) {
  const Ends ends = connected();
  poll(ends.fd);
  ends.peer->shutdown_write();
  io_->shutdown(ends.fd, SHUT_WR);
  EXPECT_TRUE(await_bits(ends.fd, POLLIN | POLLRDHUP | POLLHUP));
  EXPECT_EQ(io_->socket_error(ends.fd), 0);
}

TEST_P(IoConformance, BytesBeforeAResetAreSplicedThenTheErrorThenZero) {
  const Ends ends = connected();
  const Ends2 to = pipe(65536);
  poll(ends.fd);
  settle();
  ends.peer->send("bytes", 0);
  settle();
  ends.peer->close_with_reset();
  EXPECT_TRUE(await_bits(ends.fd, POLLIN | POLLERR | POLLHUP | POLLRDHUP));
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), 5);
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), -ECONNRESET);
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), 0);
}

TEST_P(IoConformance, AnErrorThatWasAskedForMakesAResetReadAsAFin) {
  const Ends ends = connected();
  ends.peer->close_with_reset();
  poll(ends.fd);
  EXPECT_TRUE(await_bits(ends.fd, POLLERR));
  EXPECT_EQ(io_->socket_error(ends.fd), -ECONNRESET);
  char buffer[16];
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), 0);
}

TEST_P(IoConformance, BytesThenFinThenResetReadAsAFinAndTheErrorIsEpipeOnce) {
  const Ends ends = connected();
  const Ends2 to = pipe(65536);
  poll(ends.fd);
  settle();
  ends.peer->send("bytes", 0);
  ends.peer->shutdown_write();
  settle();
  ends.peer->close_with_reset();
  EXPECT_TRUE(await_bits(ends.fd, POLLIN | POLLERR | POLLHUP | POLLRDHUP));
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), 5);
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), 0);
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), 0);
  EXPECT_EQ(io_->socket_error(ends.fd), -EPIPE);
  EXPECT_EQ(io_->socket_error(ends.fd), 0);
}

TEST_P(IoConformance, SendingAfterAResetTakesTheErrorAndThenFindsABrokenPipe) {
  const Ends ends = connected();
  poll(ends.fd);
  settle();
  ends.peer->close_with_reset();
  EXPECT_TRUE(await_bits(ends.fd, POLLERR));
  EXPECT_EQ(io_->send(ends.fd, "x", 1, 0), -ECONNRESET);
  EXPECT_EQ(io_->send(ends.fd, "x", 1, 0), -EPIPE);
  char buffer[16];
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), 0);
}

TEST_P(IoConformance, CloseIsAFinToThePeerAndCloseWithResetAReset) {
  std::string received;
  const Ends closed = connected();
  io_->send(closed.fd, "end", 3, 0);
  close(closed.fd);
  EXPECT_EQ(read_to_end(*closed.peer, received), 0);
  EXPECT_EQ(received, "end");

  const Ends reset = connected();
  close_with_reset(reset.fd);
  EXPECT_EQ(read_to_end(*reset.peer, received), -ECONNRESET);
}

TEST_P(IoConformance, CloseWithUnreadBytesIsAResetToThePeer) {
  const Ends ends = connected();
  ends.peer->send("unread", 0);
  settle();
  close(ends.fd);
  std::string received;
  EXPECT_EQ(read_to_end(*ends.peer, received), -ECONNRESET);
}

TEST_P(IoConformance, UnacknowledgedBytesIncludeTheFinAndVanishWhenTheyArrive) {
  const Ends ends = connected();
  poll(ends.fd);
  settle();
  EXPECT_EQ(io_->unacknowledged(ends.fd), 0);
  io_->send(ends.fd, "bytes", 5, 0);
  io_->shutdown(ends.fd, SHUT_WR);
  EXPECT_TRUE(await([&] { return io_->unacknowledged(ends.fd) == 0; }));
  std::string received;
  EXPECT_EQ(read_to_end(*ends.peer, received), 0);
  EXPECT_EQ(received, "bytes");
}

TEST_P(IoConformance, TheRoundTripTimeOfASocketIsKnownAndStaysSoAfterAReset) {
  const Ends ends = connected();
  EXPECT_GT(io_->tcp_summary(ends.fd).rtt_us, 0u);
  EXPECT_EQ(io_->tcp_summary(ends.fd).retransmits, 0u);
  poll(ends.fd);
  ends.peer->close_with_reset();
  EXPECT_TRUE(await_bits(ends.fd, POLLERR));
  EXPECT_GT(io_->tcp_summary(ends.fd).rtt_us, 0u);
}

// --- Pipes.

TEST_P(IoConformance, SpliceAndWriteGoThroughAPipeInOrder) {
  const Ends ends = connected();
  const Ends2 through = pipe(65536);
  ends.peer->send("one ", 0);
  settle();
  EXPECT_EQ(io_->splice(ends.fd, through.write_end, 65536), 4);
  EXPECT_EQ(io_->write(through.write_end, "two", 3), 3);
  EXPECT_EQ(io_->splice(through.read_end, ends.fd, 7), 7);
  io_->shutdown(ends.fd, SHUT_WR);
  std::string received;
  EXPECT_EQ(read_to_end(*ends.peer, received), 0);
  EXPECT_EQ(received, "one two");
}

TEST_P(IoConformance, SpliceSaysTryAgainForAnEmptySocketAndForAFullPipeAlike) {
  const Ends ends = connected();
  const Ends2 to = pipe(65536);
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), -EAGAIN);
  // Sixteen slots: sixteen segments fill them, however small.
  for (int i = 0; i < 20; ++i) {
    ends.peer->send("x", 0);
    settle();
    io_->splice(ends.fd, to.write_end, 65536);
  }
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), -EAGAIN);
  char buffer[32];
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), 4) << "the pipe took sixteen of twenty bytes";
}

TEST_P(IoConformance, APipeTakesAsMuchAsItsSizeInOneWrite) {
  const Ends2 to = pipe(262144);
  const std::string bytes(static_cast<std::size_t>(to.size), 'x');
  EXPECT_EQ(io_->write(to.write_end, bytes.data(), bytes.size()), to.size);
  EXPECT_EQ(io_->write(to.write_end, bytes.data(), bytes.size()), -EAGAIN);
}

// --- The urgent byte.

TEST_P(IoConformance, SpliceStopsAtTheUrgentMarkForEverAndAPlainReadStepsOverIt) {
  const Ends ends = connected();
  const Ends2 to = pipe(65536);
  poll(ends.fd);
  settle();
  ends.peer->send("before", 0);
  ends.peer->send("!", MSG_OOB);
  ends.peer->send("after", 0);
  EXPECT_TRUE(await_bits(ends.fd, POLLIN | POLLPRI));
  settle();
  EXPECT_FALSE(io_->at_urgent_mark(ends.fd));
  EXPECT_EQ(io_->unread(ends.fd), 6);
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), 6);
  EXPECT_TRUE(io_->at_urgent_mark(ends.fd));
  EXPECT_EQ(io_->unread(ends.fd), 0) << "what is behind the mark does not count";
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), -EAGAIN);
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), -EAGAIN);

  char buffer[16] = {};
  EXPECT_EQ(io_->recv(ends.fd, buffer, 1, MSG_OOB | MSG_PEEK), 1);
  EXPECT_EQ(io_->recv(ends.fd, buffer, 1, MSG_OOB), 1);
  EXPECT_EQ(buffer[0], '!');
  EXPECT_EQ(io_->recv(ends.fd, buffer, 1, MSG_OOB), -EINVAL) << "it is read once";
  EXPECT_EQ(io_->splice(ends.fd, to.write_end, 65536), -EAGAIN) << "the mark stays";
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), 5);
  EXPECT_EQ(std::string(buffer, 5), "after");
  EXPECT_FALSE(io_->at_urgent_mark(ends.fd));
}

TEST_P(IoConformance, AnUrgentByteIsFoundAmongOtherSocketsUntilItIsRead) {
  const Ends ordinary = connected();
  const Ends urgent = connected();
  poll(ordinary.fd);
  poll(urgent.fd);
  settle();
  ordinary.peer->send("text", 0);
  urgent.peer->send("!", MSG_OOB);
  EXPECT_TRUE(await_bits(ordinary.fd, POLLIN));
  EXPECT_TRUE(await_bits(urgent.fd, POLLPRI));

  pollfd sockets[] = {{ordinary.fd, POLLPRI, 0}, {-1, POLLPRI, 0}, {urgent.fd, POLLPRI, 0}};
  io_->find_urgent(sockets);
  EXPECT_EQ(sockets[0].revents, 0);
  EXPECT_EQ(sockets[1].revents, 0);
  EXPECT_EQ(sockets[2].revents, POLLPRI);

  char byte;
  EXPECT_EQ(io_->recv(urgent.fd, &byte, 1, MSG_OOB), 1);
  io_->find_urgent(sockets);
  EXPECT_EQ(sockets[2].revents, 0);
}

TEST_P(IoConformance, APlainReadStopsBeforeTheUrgentMark) {
  const Ends ends = connected();
  ends.peer->send("before", 0);
  ends.peer->send("!", MSG_OOB);
  ends.peer->send("after", 0);
  settle();
  char buffer[16];
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), 6);
  EXPECT_TRUE(io_->at_urgent_mark(ends.fd));
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), 5);
}

TEST_P(IoConformance, AnUrgentByteAloneIsNotReadable) {
  const Ends ends = connected();
  ends.peer->send("!", MSG_OOB);
  settle();
  poll(ends.fd);
  EXPECT_TRUE(await_bits(ends.fd, POLLPRI | POLLOUT));
  EXPECT_TRUE(io_->at_urgent_mark(ends.fd));
  char buffer[16];
  EXPECT_EQ(io_->recv(ends.fd, buffer, sizeof buffer, 0), -EAGAIN);
}

TEST_P(IoConformance, AnUrgentByteThatIsSentIsUrgentToThePeer) {
  const Ends ends = connected();
  EXPECT_EQ(io_->send(ends.fd, "!", 1, MSG_OOB), 1);
  char byte = 0;
  EXPECT_TRUE(await([&] { return ends.peer->recv({&byte, 1}, MSG_OOB) == 1; }));
  EXPECT_EQ(byte, '!');
}

}  // namespace
}  // namespace portway::test

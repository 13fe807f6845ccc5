// What the kernel counts, in every state of a connection.
#include "network/tcp_progress.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"

namespace portway {
namespace {

class TcpProgressTest : public testing::Test {
 protected:
  void SetUp() override {
    Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{
        .sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
    socklen_t size = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    ASSERT_EQ(::bind(listener.get(), generic, size), 0);
    ASSERT_EQ(::listen(listener.get(), 1), 0);
    ASSERT_EQ(::getsockname(listener.get(), generic, &size), 0);
    opener.fd.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(opener.fd.get(), generic, size), 0);
    taker.fd.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(taker.fd);
  }

  /// A side, and what its process has done.
  struct Side {
    Fd fd;
    bool is_opener;
    std::uint64_t read = 0;
    std::uint64_t written = 0;

    void write(std::size_t size) {
      const std::string data(size, 'x');
      ASSERT_EQ(::send(fd.get(), data.data(), size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
      written += size;
    }
    void take(std::size_t size) {
      std::string data(size, '-');
      ASSERT_EQ(::recv(fd.get(), data.data(), size, MSG_WAITALL), static_cast<ssize_t>(size));
      read += size;
    }
    void take_end() {
      char byte = 0;
      ASSERT_EQ(::recv(fd.get(), &byte, 1, 0), 0);
    }
    void end() { ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0); }
    void await(short events) {
      pollfd poll{.fd = fd.get(), .events = events, .revents = 0};
      ASSERT_EQ(::poll(&poll, 1, 10'000), 1);
    }
    void expect(const char* when) const {
      const auto progress = tcp_progress(fd.get(), is_opener);
      ASSERT_TRUE(progress) << when;
      EXPECT_EQ(progress->read, read) << when << (is_opener ? ", opener" : ", taker");
      EXPECT_EQ(progress->written, written) << when << (is_opener ? ", opener" : ", taker");
    }
  };

  void expect(const char* when) const {
    opener.expect(when);
    taker.expect(when);
  }

  Side opener{.fd = {}, .is_opener = true};
  Side taker{.fd = {}, .is_opener = false};
};

TEST_F(TcpProgressTest, IsExactWhateverWasReadAndWritten) {
  expect("at first");
  opener.write(10);
  taker.write(7);
  expect("unread");
  taker.take(4);
  expect("partly read");
  opener.take(7);
  taker.take(6);
  expect("all read");
}

TEST_F(TcpProgressTest, CountsNoFin) {
  for (Side* first : {&opener, &taker}) {
    Side* second = first == &opener ? &taker : &opener;
    SetUp();
    first->read = first->written = second->read = second->written = 0;
    first->write(10);
    first->end();
    second->await(POLLRDHUP);
    expect("FIN behind unread bytes");
    second->take(10);
    expect("FIN unread");
    second->take_end();
    expect("half closed");
    second->write(5);
    first->take(5);
    expect("answered");
    second->end();
    first->await(POLLHUP);
    first->take_end();
    expect("both FINs");
  }
}

TEST_F(TcpProgressTest, CountsWhatIsOnlyInTheSendBuffer) {
  const int flags = ::fcntl(opener.fd.get(), F_GETFL);
  ASSERT_EQ(::fcntl(opener.fd.get(), F_SETFL, flags | O_NONBLOCK), 0);
  const std::vector<char> data(1 << 16);
  for (;;) {
    const ssize_t sent = ::send(opener.fd.get(), data.data(), data.size(), MSG_NOSIGNAL);
    if (sent < 0) break;
    opener.written += static_cast<std::uint64_t>(sent);
  }
  expect("full");
  opener.end();
  expect("a FIN that could not be sent yet");
  taker.take(1000);
  expect("partly read");
}

/// An acknowledgement between two of the kernel's answers made less of what was written.
TEST_F(TcpProgressTest, IsExactWhileBytesAndAcknowledgementsAreOnTheirWay) {
  constexpr std::size_t kRounds = 200;
  constexpr std::size_t kPiece = 1 << 17;  // fits into the buffers
  std::thread other([this] {
    std::vector<char> data(kPiece);
    for (std::size_t i = 0; i < kRounds; ++i) ::recv(taker.fd.get(), data.data(), kPiece, MSG_WAITALL);
  });
  for (std::size_t i = 0; i < kRounds; ++i) {
    opener.write(kPiece);
    int left = 0;
    do {
      opener.expect("acknowledgements are coming");
      ASSERT_EQ(::ioctl(opener.fd.get(), SIOCOUTQ, &left), 0);
    } while (left > 0 && !HasFailure());
  }
  other.join();
}

TEST_F(TcpProgressTest, SaysNothingAfterAReset) {
  opener.write(10);
  const linger reset{.l_onoff = 1, .l_linger = 0};
  ASSERT_EQ(::setsockopt(taker.fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
  taker.fd.reset();
  opener.await(POLLERR);
  EXPECT_FALSE(tcp_progress(opener.fd.get(), true));
}

TEST_F(TcpProgressTest, CountsToTheByteBeforeAResetIfItsErrorIsKnown) {
  for (const bool after_fin : {false, true}) {
    if (after_fin) {
      opener.read = 0;
      SetUp();
    }
    taker.write(10);
    opener.await(POLLIN);
    if (after_fin) {
      taker.end();
      opener.await(POLLRDHUP);
    }
    const linger reset{.l_onoff = 1, .l_linger = 0};
    ASSERT_EQ(::setsockopt(taker.fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
    taker.fd.reset();
    opener.await(POLLERR);
    int error = 0;
    socklen_t size = sizeof error;
    ASSERT_EQ(::getsockopt(opener.fd.get(), SOL_SOCKET, SO_ERROR, &error, &size), 0);
    EXPECT_EQ(error, after_fin ? EPIPE : ECONNRESET);
    for (const std::size_t some : {4, 6}) {
      opener.take(some);
      const auto progress = tcp_progress(opener.fd.get(), true, error);
      ASSERT_TRUE(progress);
      EXPECT_EQ(progress->read, opener.read);
    }
  }
}

TEST_F(TcpProgressTest, SaysNothingWhileUrgentDataWaits) {
  opener.write(3);
  ASSERT_EQ(::send(opener.fd.get(), "!", 1, MSG_OOB | MSG_NOSIGNAL), 1);
  opener.written += 1;
  taker.await(POLLPRI);
  EXPECT_FALSE(tcp_progress(taker.fd.get(), false));
  opener.expect("an urgent byte is one");
}

TEST_F(TcpProgressTest, IsForConnectedTcpSocketsOnly) {
  EXPECT_FALSE(tcp_progress(-1, true));
  EXPECT_FALSE(tcp_progress(Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)).get(), true));
  EXPECT_FALSE(tcp_progress(Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)).get(), true));
}

}  // namespace
}  // namespace portway

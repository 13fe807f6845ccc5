#include "network/vsock_handshake.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "base/fd.h"

namespace portway {
namespace {

TEST(VsockHandshake, AsksForThePortInDecimal) {
  EXPECT_EQ(vsock_request(1), "CONNECT 1\n");
  EXPECT_EQ(vsock_request(4294967294), "CONNECT 4294967294\n");
}

VsockAnswer parse(std::string_view received, std::size_t expected_size = 0) {
  std::size_t size = 0;
  const VsockAnswer answer = parse_vsock_answer(received, size);
  EXPECT_EQ(size, expected_size) << received;
  return answer;
}

TEST(VsockHandshake, AnAnswerIsRightFromItsFirstByteToTheLast) {
  const std::string answer = "OK 1073741824\n";
  for (std::size_t size = 0; size < answer.size(); ++size)
    EXPECT_EQ(parse(answer.substr(0, size)), VsockAnswer::kIncomplete) << size;
  EXPECT_EQ(parse(answer, answer.size()), VsockAnswer::kAccepted);
  EXPECT_EQ(parse("OK 0\n", 5), VsockAnswer::kAccepted);
  EXPECT_EQ(parse("OK 1\nOK 2\n", 5), VsockAnswer::kAccepted);
  EXPECT_EQ(parse("OK 1\n\n\n", 5), VsockAnswer::kAccepted);
}

TEST(VsockHandshake, TheLongestAnswerIsThatOfTheLargestNumberOfTenDigits) {
  const std::string longest = "OK 9999999999\n";
  EXPECT_EQ(longest.size(), kVsockAnswerMax);
  EXPECT_EQ(parse(longest, longest.size()), VsockAnswer::kAccepted);
  EXPECT_EQ(parse("OK 99999999990"), VsockAnswer::kWrong);
}

TEST(VsockHandshake, WhatCannotBecomeAnAnswerIsWrongAtOnce) {
  for (const char* wrong : {"K", "ok 1\n", "OKAY", "OK\n", "OK \n", "OK  1", "OK x", "OK -1", "OK 1 ",
                            "OK 1\r", "\n", "OK 12345678901", "OK 1x\n", "ERR", "\nOK 1\n"}) {
    EXPECT_EQ(parse(wrong), VsockAnswer::kWrong) << wrong;
  }
  EXPECT_EQ(parse(std::string_view("OK 1\0\n", 6)), VsockAnswer::kWrong);
}

/// Both ends of a stream; `vmm` is Firecracker's.
struct Pair {
  Pair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    node.reset(fds[0]);
    vmm.reset(fds[1]);
  }
  void send(std::string_view bytes) const {
    EXPECT_EQ(::send(vmm.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  int take(bool ended = false) const {
    const auto receive = [this](void* buffer, std::size_t size, int flags) -> std::ptrdiff_t {
      const ssize_t got = ::recv(node.get(), buffer, size, flags);
      return got < 0 ? -errno : got;
    };
    return take_vsock_answer(receive, ended);
  }
  std::string rest() const {
    std::string rest(256, '\0');
    rest.resize(
        static_cast<std::size_t>(std::max<ssize_t>(0, ::recv(node.get(), rest.data(), rest.size(), 0))));
    return rest;
  }
  Fd node, vmm;
};

TEST(VsockHandshake, TakesTheAnswerAndNotAByteBehindIt) {
  const Pair pair;
  pair.send("OK 1024\nSSH-2.0");
  EXPECT_EQ(pair.take(), 0);
  EXPECT_EQ(pair.rest(), "SSH-2.0");
}

TEST(VsockHandshake, WaitsForAnAnswerThatComesByteByByte) {
  const Pair pair;
  const std::string answer = "OK 1073741824\n";
  for (const char byte : answer) {
    EXPECT_EQ(pair.take(), -EAGAIN);
    pair.send({&byte, 1});
  }
  pair.send("x");
  EXPECT_EQ(pair.take(), 0);
  EXPECT_EQ(pair.rest(), "x");
}

TEST(VsockHandshake, AnEndWithoutAnAnswerIsARefusal) {
  Pair empty;
  EXPECT_EQ(empty.take(), -EAGAIN);
  empty.vmm.reset();
  EXPECT_EQ(empty.take(true), -ECONNREFUSED);
  Pair reset;
  ASSERT_EQ(::send(reset.node.get(), "CONNECT 1\n", 10, MSG_NOSIGNAL), 10);
  reset.vmm.reset();  // with the request unread
  EXPECT_EQ(reset.take(true), -ECONNREFUSED);
}

TEST(VsockHandshake, AnAnswerThatBreaksOffIsWrong) {
  for (const std::string begin : {"O", "OK", "OK 10"}) {
    const Pair pair;
    pair.send(begin);
    EXPECT_EQ(pair.take(), -EAGAIN);
    EXPECT_EQ(pair.take(true), -EBADMSG) << begin;
  }
}

TEST(VsockHandshake, AnAnswerBeforeTheEndCounts) {
  Pair pair;
  pair.send("OK 1\nbye");
  pair.vmm.reset();
  EXPECT_EQ(pair.take(true), 0);
  EXPECT_EQ(pair.rest(), "bye");
}

TEST(VsockHandshake, AnAnswerThatNeverEndsIsWrong) {
  const Pair pair;
  pair.send("OK " + std::string(1000, '1'));
  EXPECT_EQ(pair.take(), -EBADMSG);
}

}  // namespace
}  // namespace portway

// What goes over the handover socket, and what must not be taken for it.
#include "handover/transfer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/ends_with_process.h"
#include "handover/descriptors.h"

namespace portway {
namespace {

using namespace std::chrono_literals;

struct Ends {
  Fd sender;
  Fd receiver;
};

Ends connected(int type = SOCK_SEQPACKET) {
  int ends[2] = {-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
  return {Fd(ends[0]), Fd(ends[1])};
}

Fd file_with(const std::string& text) {
  Fd fd(::memfd_create("test", MFD_CLOEXEC));
  EXPECT_EQ(::write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  return fd;
}

std::string text_of(const Fd& fd) {
  char text[16] = {};
  const auto size = ::pread(fd.get(), text, sizeof text, 0);
  return size < 0 ? "none" : std::string(text, static_cast<std::size_t>(size));
}

std::vector<int> numbers_of(const std::vector<Descriptor>& descriptors) {
  std::vector<int> numbers;
  for (const Descriptor& each : descriptors) numbers.push_back(each.fd);
  return numbers;
}

/// Those of `some` that would be handed over.
std::vector<int> handed_over(const std::vector<int>& some) {
  std::vector<int> all = descriptors_to_hand_over(open_descriptors());
  std::erase_if(all, [&](int fd) { return std::ranges::find(some, fd) == some.end(); });
  return all;
}

TEST(Transfer, BringsEachDescriptorWithItsNumber) {
  const Ends ends = connected();
  const Fd control = file_with("control");
  const Fd memory = file_with("memory");
  std::vector<Fd> files;
  std::vector<int> numbers;
  for (int i = 0; i < 600; ++i) {  // more than one message has room for
    files.push_back(file_with(std::to_string(i)));
    numbers.push_back(files.back().get());
  }
  std::thread sending(
      [&] { EXPECT_EQ(send_estate(ends.sender.get(), control.get(), memory.get(), numbers), 0); });
  int error = -1;
  const auto estate = receive_estate(ends.receiver.get(), 5s, error);
  sending.join();
  ASSERT_TRUE(estate) << error;
  EXPECT_EQ(text_of(estate->control), "control");
  EXPECT_EQ(text_of(estate->memory), "memory");
  EXPECT_EQ(
      static_cast<std::size_t>(std::ranges::count_if(estate->others, [](const Fd& fd) { return bool(fd); })),
      numbers.size());
  for (std::size_t i = 0; i < numbers.size(); ++i)
    EXPECT_EQ(text_of(estate->others.at(static_cast<std::size_t>(numbers[i]))), std::to_string(i));
}

TEST(Transfer, BringsNothingIfThereIsNothing) {
  const Ends ends = connected();
  const Fd file = file_with("x");
  ASSERT_EQ(send_estate(ends.sender.get(), file.get(), file.get(), {}), 0);
  int error = -1;
  const auto estate = receive_estate(ends.receiver.get(), 5s, error);
  ASSERT_TRUE(estate) << error;
  EXPECT_TRUE(estate->others.empty());
}

TEST(Transfer, WhatIsSentByAnotherVersionIsRefused) {
  const Ends ends = connected();
  const std::string nonsense(2000, 'x');
  ASSERT_EQ(::send(ends.sender.get(), nonsense.data(), nonsense.size(), 0), 2000);
  int error = 0;
  EXPECT_FALSE(receive_estate(ends.receiver.get(), 5s, error));
  EXPECT_EQ(error, EPROTO);
}

TEST(Transfer, AnEndBeforeItsEndIsNoEstate) {
  Ends ends = connected();
  const Fd file = file_with("x");
  std::thread sending([&] {
    const std::vector<int> one = {file.get()};
    EXPECT_EQ(send_estate(ends.sender.get(), file.get(), file.get(), one), 0);
    ends.sender.reset();
  });
  sending.join();
  // As if its sender had been killed after the first message.
  char message[4096];
  iovec data{.iov_base = message, .iov_len = sizeof message};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  ASSERT_GT(::recvmsg(ends.receiver.get(), &header, 0), 0);
  int error = 0;
  EXPECT_FALSE(receive_estate(ends.receiver.get(), 5s, error));
  EXPECT_NE(error, 0);
}

TEST(Transfer, ASilentSenderIsNotWaitedForForLong) {
  const Ends ends = connected();
  int error = 0;
  EXPECT_FALSE(receive_estate(ends.receiver.get(), 10ms, error));
  EXPECT_EQ(error, ETIMEDOUT);
}

TEST(Transfer, TooFewDescriptorsAreAnErrorAndNothingStaysOpen) {
  const Ends ends = connected();
  std::vector<Fd> files;
  std::vector<int> numbers;
  for (int i = 0; i < 100; ++i) {
    files.push_back(file_with("x"));
    numbers.push_back(files.back().get());
  }
  ASSERT_EQ(send_estate(ends.sender.get(), numbers[0], numbers[1], numbers), 0);
  const std::vector<int> before = numbers_of(open_descriptors());
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  rlimit few = limit;
  few.rlim_cur = static_cast<rlim_t>(files.back().get()) + 20;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  int error = 0;
  EXPECT_FALSE(receive_estate(ends.receiver.get(), 5s, error));
  EXPECT_EQ(error, EMFILE);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(numbers_of(open_descriptors()), before);
}

TEST(Transfer, APathThatIsTooLongIsSaid) {
  int error = 0;
  EXPECT_FALSE(listen_for_successor("/tmp/" + std::string(200, 'x'), error));
  EXPECT_EQ(error, ENAMETOOLONG);
}

TEST(Descriptors, PipesToOtherProcessesStayHere) {
  int whole[2];
  int half[2];
  ASSERT_EQ(::pipe2(whole, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(half, O_CLOEXEC), 0);
  const Fd read_end(whole[0]), write_end(whole[1]), log(half[1]);
  ::close(half[0]);
  const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Fd datagrams(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const std::vector<int> all = {read_end.get(), write_end.get(), log.get(), socket.get(), datagrams.get()};
  EXPECT_EQ(handed_over(all), (std::vector<int>{read_end.get(), write_end.get(), socket.get()}));
}

TEST(Descriptors, WhatIsMarkedStaysHere) {
  const Ends ends = connected(SOCK_STREAM);
  const int fds[] = {ends.sender.get(), ends.receiver.get()};
  end_with_process(fds[0]);
  EXPECT_EQ(handed_over({fds[0], fds[1]}), std::vector{fds[1]});
}

TEST(Descriptors, WhatHasTakenAKnownNumberIsLookedAt) {
  Fd first(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const Fd stays(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int number = first.get();
  const auto kind = [](const std::vector<Descriptor>& all, int fd) {
    const auto found = std::ranges::find(all, fd, &Descriptor::fd);
    return found == all.end() ? DescriptorKind::kOther : found->kind;
  };
  const std::vector<Descriptor> before = open_descriptors();
  EXPECT_EQ(kind(before, number), DescriptorKind::kOther);
  first.reset();
  first.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(first.get(), number);
  const std::vector<Descriptor> after = open_descriptors(before);
  EXPECT_EQ(kind(after, number), DescriptorKind::kConnection);
  EXPECT_EQ(kind(after, stays.get()), DescriptorKind::kConnection);
}

}  // namespace
}  // namespace portway

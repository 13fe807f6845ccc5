// A real keeper of a process that is killed.
#include "handover/keeper.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>

#include "handover/descriptors.h"
#include "handover/predecessor.h"

namespace portway {
namespace {

using namespace std::chrono_literals;

bool has(const Estate& estate, int number) {
  const auto place = static_cast<std::size_t>(number);
  return place < estate.others.size() && estate.others[place];
}

class KeeperTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);  // the keepers become this process's children
    std::string path = std::filesystem::temp_directory_path() / "portway-keeper-XXXXXX";
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    directory_ = path;
    path_ = path + "/handover";
    listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    ASSERT_EQ(::bind(listener_.get(), generic, size), 0);
    ASSERT_EQ(::listen(listener_.get(), 1), 0);
    ASSERT_EQ(::getsockname(listener_.get(), generic, &size), 0);
    client_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(client_.get(), generic, size), 0);
    node_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }
  void TearDown() override {
    while (::waitpid(-1, nullptr, 0) > 0 || errno == EINTR) {
    }
    std::filesystem::remove_all(directory_);
  }

  /// A process with a keeper, which keeps the node's end of the connection; it does `what`, then it is
  /// killed.
  void die(std::chrono::milliseconds timeout, int predecessor = -1, const std::function<void()>& what = {}) {
    const pid_t process = ::fork();
    if (process == 0) {
      int error = 0;
      auto keeper = Keeper::start(error);
      const Fd memory(::memfd_create("slots", MFD_CLOEXEC));
      if (::write(memory.get(), "slots", 5) != 5 || !keeper) ::_exit(1);
      keeper->keep(memory.get(), predecessor, path_, timeout);
      if (what) what();
      ::raise(SIGKILL);
    }
    ASSERT_GT(process, 0);
    ::waitpid(process, nullptr, 0);
  }
  std::unique_ptr<Predecessor> find() {
    const auto deadline = std::chrono::steady_clock::now() + 10s;
    for (;;) {
      auto found = Predecessor::find(path_);
      EXPECT_TRUE(found) << (found ? "" : found.error().detail);
      if (!found || *found || std::chrono::steady_clock::now() > deadline)
        return found ? std::move(*found) : nullptr;
      ::poll(nullptr, 0, 1);  // no event reports that the keeper listens
    }
  }
  /// What the client reads next; an errno if it is negative.
  ssize_t client_reads(std::chrono::milliseconds within) {
    pollfd readable{.fd = client_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&readable, 1, static_cast<int>(within.count())) == 0) return -EAGAIN;
    char byte;
    const auto got = ::recv(client_.get(), &byte, 1, 0);
    return got < 0 ? -errno : got;
  }
  /// Of this process: the successor gets copies of its own.
  void let_go() { node_.reset(); }

  std::string directory_;
  std::string path_;
  Fd listener_;
  Fd client_;
  Fd node_;
};

TEST_F(KeeperTest, HandsOverWhatAKilledProcessHad) {
  const int number = node_.get();
  die(30s);
  let_go();
  const auto predecessor = find();
  ASSERT_TRUE(predecessor);
  Estate& estate = predecessor->estate();
  char text[5] = {};
  EXPECT_EQ(::pread(estate.memory.get(), text, 5, 0), 5);
  EXPECT_EQ(std::string(text, 5), "slots");
  ASSERT_TRUE(has(estate, number));
  ASSERT_TRUE(predecessor->take());
  EXPECT_EQ(client_reads(0ms), -EAGAIN);
  EXPECT_EQ(::send(estate.others.at(static_cast<std::size_t>(number)).get(), "x", 1, 0), 1);
  EXPECT_EQ(client_reads(5s), 1);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(KeeperTest, ResetsTheConnectionsIfNobodyComes) {
  die(50ms);
  let_go();
  EXPECT_EQ(client_reads(10s), -ECONNRESET);
}

TEST_F(KeeperTest, GivesUpOnSigterm) {
  die(30s);
  let_go();
  { ASSERT_TRUE(find()); }  // it waits by now
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream status(entry.path() / "stat");
    std::string line;
    std::getline(status, line);
    const bool mine = line.find(") ") != std::string::npos &&
                      line.substr(line.find(") ") + 4).starts_with(std::to_string(::getpid()) + " ");
    if (mine && line.find("(portway-keeper)") != std::string::npos) ::kill(std::stoi(name), SIGTERM);
  }
  EXPECT_EQ(client_reads(10s), -ECONNRESET);
}

TEST_F(KeeperTest, ASuccessorThatDiesBeforeItTakesOverChangesNothing) {
  const int number = node_.get();
  die(30s);
  let_go();
  { ASSERT_TRUE(find()); }
  const auto second = find();
  ASSERT_TRUE(second);
  EXPECT_EQ(client_reads(0ms), -EAGAIN);
  EXPECT_TRUE(has(second->estate(), number));
  EXPECT_TRUE(second->take());
}

// Its keeper must not reset what the first keeper still has.
TEST_F(KeeperTest, AnHeirsKeeperKeepsNothingBeforeTheHeirHasTakenOver) {
  die(30s);
  const auto first = find();
  ASSERT_TRUE(first);
  die(1ms, first->estate().control.get());  // shares this process's descriptors
  let_go();
  EXPECT_EQ(client_reads(50ms), -EAGAIN);
  EXPECT_TRUE(first->take());
}

TEST_F(KeeperTest, AProcessThatEndsByItselfLeavesNothing) {
  const pid_t process = ::fork();
  if (process == 0) {
    int error = 0;
    {
      auto keeper = Keeper::start(error);
      const Fd memory(::memfd_create("slots", MFD_CLOEXEC));
      keeper->keep(memory.get(), -1, path_, 30s);
    }
    ::_exit(0);
  }
  ::waitpid(process, nullptr, 0);
  let_go();
  EXPECT_EQ(client_reads(5s), 0) << "the end, when the last descriptor is closed";
}

TEST_F(KeeperTest, WithoutAnythingToKeepItEndsWithItsProcess) {
  const pid_t process = ::fork();
  if (process == 0) {
    int error = 0;
    const auto keeper = Keeper::start(error);
    ::raise(SIGKILL);
  }
  ::waitpid(process, nullptr, 0);
  let_go();
  EXPECT_EQ(client_reads(5s), 0);
}

}  // namespace
}  // namespace portway

// Which file a socket's path leads to, with files that somebody else may have put there.
#include "network/socket_target.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/fd.h"

namespace portway {
namespace {

namespace fs = std::filesystem;

TEST(SocketTarget, IsSplitAtTheFirstDirectoryThatItLiesBelow) {
  const std::vector<std::string> directories = {"/run/fc", "/run/", "/run/other//"};
  const auto split = [&](const std::string& path) {
    const SocketTarget target = socket_target({.kind = TargetKind::kUnix, .socket = path}, directories);
    return target.directory + " " + target.name;
  };
  EXPECT_EQ(split("/run/fc/vm/v.sock"), "/run/fc vm/v.sock");
  EXPECT_EQ(split("/run/fcx/v.sock"), "/run fcx/v.sock");
  EXPECT_EQ(split("/run/other/v.sock"), "/run other/v.sock");
  EXPECT_EQ(split("/srv/v.sock"), " /srv/v.sock");
  const std::vector<std::string> root = {"/"};
  EXPECT_EQ(socket_target({.kind = TargetKind::kUnix, .socket = "/a/b"}, root).name, "a/b");
}

class ConnectTo : public testing::Test {
 protected:
  ConnectTo() {
    std::string pattern = testing::TempDir() + "/portway-XXXXXX";
    root_ = ::mkdtemp(pattern.data());
    fs::create_directories(root_ / "sockets/vm");
    fs::create_directories(root_ / "others");
  }
  ~ConnectTo() override { fs::remove_all(root_); }
  ConnectTo(const ConnectTo&) = delete;
  ConnectTo& operator=(const ConnectTo&) = delete;

  Fd serve(const std::string& name, int type = SOCK_STREAM, int backlog = 8) const {
    Fd fd(::socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, (root_ / name).c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    if (type == SOCK_STREAM) {
      EXPECT_EQ(::listen(fd.get(), backlog), 0);
    }
    return fd;
  }
  int connect(const std::string& name) const {
    const Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    return connect_to(fd.get(), {.directory = root_ / "sockets", .name = name});
  }

  fs::path root_;
};

TEST_F(ConnectTo, ReachesASocketBelowTheDirectory) {
  const Fd service = serve("sockets/vm/v.sock");
  EXPECT_EQ(connect("vm/v.sock"), 0);
  EXPECT_TRUE(Fd(::accept(service.get(), nullptr, nullptr)));
}

TEST_F(ConnectTo, ReachesADirectoryThatIsASymbolicLinkItself) {
  const Fd service = serve("sockets/v.sock");
  fs::create_symlink("sockets", root_ / "link");
  const Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect_to(fd.get(), {.directory = root_ / "link", .name = "v.sock"}), 0);
}

TEST_F(ConnectTo, FollowsNoSymbolicLink) {
  const Fd service = serve("others/v.sock");
  const Fd inside = serve("sockets/vm/v.sock");
  fs::create_symlink(root_ / "others/v.sock", root_ / "sockets/absolute");
  fs::create_symlink("../others/v.sock", root_ / "sockets/relative");
  fs::create_symlink("vm/v.sock", root_ / "sockets/harmless");
  fs::create_symlink("/proc/self/fd/" + std::to_string(service.get()), root_ / "sockets/magic");
  fs::create_symlink(root_ / "others", root_ / "sockets/directory");
  for (const char* name : {"absolute", "relative", "harmless", "magic", "directory/v.sock"})
    EXPECT_EQ(connect(name), -ELOOP) << name;
}

TEST_F(ConnectTo, DoesNotLeaveTheDirectory) {
  const Fd service = serve("others/v.sock");
  EXPECT_EQ(connect("../others/v.sock"), -EXDEV);
  EXPECT_EQ(connect((root_ / "others/v.sock").string()), -EXDEV);
}

TEST_F(ConnectTo, RefusesWhatIsNoSocketWithoutWaitingForIt) {
  ASSERT_EQ(::mkfifo((root_ / "sockets/fifo").c_str(), 0600), 0);
  std::ofstream(root_ / "sockets/file") << "x";
  for (const char* name : {"fifo", "file", "vm"}) EXPECT_EQ(connect(name), -ENOTSOCK) << name;
  const Fd datagrams = serve("sockets/datagrams", SOCK_DGRAM);
  EXPECT_EQ(connect("datagrams"), -EPROTOTYPE);
}

TEST_F(ConnectTo, ReportsThatNobodyListens) {
  EXPECT_EQ(connect("missing"), -ENOENT);
  { const Fd service = serve("sockets/gone"); }
  EXPECT_EQ(connect("gone"), -ECONNREFUSED);
  const Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect_to(fd.get(), {.directory = "", .name = "/run/x"}), -ENOENT);
}

TEST_F(ConnectTo, ReportsAFullBacklogAndTheSameSocketCanTryAgain) {
  const Fd service = serve("sockets/v.sock", SOCK_STREAM, 0);
  const SocketTarget target{.directory = root_ / "sockets", .name = "v.sock"};
  const Fd first(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const Fd second(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect_to(first.get(), target), 0);
  EXPECT_EQ(connect_to(second.get(), target), -EAGAIN);
  EXPECT_TRUE(Fd(::accept(service.get(), nullptr, nullptr)));
  EXPECT_EQ(connect_to(second.get(), target), 0);
}

// The API on a Unix socket takes the user at the other end for the caller: a forward to it would have made
// everybody an admin.
TEST_F(ConnectTo, DoesNotLeadAClientToThisProcess) {
  const Fd service = serve("sockets/v.sock");
  const Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect_client_to(fd.get(), {.directory = root_ / "sockets", .name = "v.sock"}), -EPERM);
}

TEST_F(ConnectTo, LeavesNoDescriptorBehind) {
  const auto count = [] {
    const auto all = fs::directory_iterator("/proc/self/fd");
    return std::distance(begin(all), end(all));
  };
  const Fd service = serve("sockets/v.sock");
  fs::create_symlink("v.sock", root_ / "sockets/link");
  const auto before = count();
  for (const char* name : {"v.sock", "link", "missing", "vm", "../others"}) (void)connect(name);
  EXPECT_EQ(count(), before);
}

}  // namespace
}  // namespace portway

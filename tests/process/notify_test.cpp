// What is sent to systemd, and what must be sent again.
#include "process/notify.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <string>

#include "base/fd.h"
#include "base/forward.h"

namespace portway {
namespace {

/// Systemd's end: a socket in the abstract namespace.
class NotifyTest : public testing::Test {
 protected:
  void SetUp() override {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string name = "@portway-notify-" + to_string(make_uuid());
    name.copy(address.sun_path, name.size());
    address.sun_path[0] = '\0';
    const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
    ASSERT_EQ(::bind(systemd_.get(), reinterpret_cast<const sockaddr*>(&address), size), 0);
    ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
  }
  void TearDown() override { ::unsetenv("NOTIFY_SOCKET"); }

  std::string heard() {
    std::array<char, 256> buffer;
    const ssize_t got = ::recv(systemd_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    return got < 0 ? "" : std::string(buffer.data(), static_cast<std::size_t>(got));
  }

  Fd systemd_{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
};

TEST_F(NotifyTest, SaysWhatItIsGiven) {
  EXPECT_TRUE(notify("READY=1"));
  EXPECT_EQ(heard(), "READY=1");
}

TEST_F(NotifyTest, WithoutSystemdThereIsNothingToSayAgain) {
  systemd_.reset();
  EXPECT_TRUE(notify("READY=1")) << "nobody is there";
  ::unsetenv("NOTIFY_SOCKET");
  EXPECT_TRUE(notify("READY=1"));
}

// A daemon without a free descriptor at that moment never became ready for systemd.
TEST_F(NotifyTest, AStateForWhichNoSocketCouldBeOpenedIsToBeSentAgain) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none{.rlim_cur = 0, .rlim_max = limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool told = notify("READY=1");
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_FALSE(told);
  EXPECT_EQ(heard(), "");
  EXPECT_TRUE(notify("READY=1"));
  EXPECT_EQ(heard(), "READY=1");
}

}  // namespace
}  // namespace portway

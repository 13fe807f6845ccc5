#include "lifecycle/process_watch.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "tests/support/process.h"

namespace portway {
namespace {

using test::Process;

bool has_ended(const ProcessWatch& watch, int timeout_ms) {
  pollfd ended{.fd = watch.descriptor(), .events = POLLIN, .revents = 0};
  return ::poll(&ended, 1, timeout_ms) == 1;
}

TEST(ProcessWatch, TellsThatAProcessWasKilled) {
  Process process({.command = {"sleep", "1000"}});
  const auto watch = ProcessWatch::start(process.pid());
  ASSERT_TRUE(watch);
  EXPECT_FALSE(has_ended(*watch, 0));
  process.signal(SIGKILL);
  EXPECT_TRUE(has_ended(*watch, 10'000));
}

TEST(ProcessWatch, RefusesAProcessThatDoesNotExist) {
  const auto watch = ProcessWatch::start(0x3fffffff);
  ASSERT_FALSE(watch);
  EXPECT_EQ(watch.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(watch.error().field, "vmm_pid");
}

TEST(ProcessStartTime, TellsTwoProcessesApartWhateverTheyAreCalled) {
  const auto own = process_start_time(::getpid());
  ASSERT_TRUE(own);
  EXPECT_EQ(*own, *process_start_time(::getpid()));
  EXPECT_FALSE(process_start_time(0x3fffffff));
}

}  // namespace
}  // namespace portway

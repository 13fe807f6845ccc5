#include "lifecycle/process_watch.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "tests/support/no_descriptors.h"
#include "tests/support/process.h"

namespace portway {
namespace {

using test::NoDescriptors;
using test::Process;

bool has_ended(const ProcessWatch& watch, int timeout_ms) {
  pollfd ended{.fd = watch.descriptor(), .events = POLLIN, .revents = 0};
  return ::poll(&ended, 1, timeout_ms) == 1;
}

TEST(ProcessWatch, ReportsThatAProcessWasKilled) {
  Process process({.command = {"sleep", "1000"}});
  ProcessWatch watch(process.pid(), 0);
  EXPECT_EQ(watch.look(), ProcessState::kRuns);
  EXPECT_FALSE(has_ended(watch, 0));
  process.signal(SIGKILL);
  EXPECT_TRUE(has_ended(watch, 10'000));
  EXPECT_EQ(watch.look(), ProcessState::kEnded) << "already a zombie";
  process.wait(std::chrono::seconds(10));
  EXPECT_EQ(watch.look(), ProcessState::kEnded);
  EXPECT_EQ(ProcessWatch(process.pid(), watch.started()).look(), ProcessState::kEnded);
}

TEST(ProcessWatch, AProcessThatDoesNotExistHasEnded) {
  EXPECT_EQ(ProcessWatch(0x3fffffff, 0).look(), ProcessState::kEnded);
}

TEST(ProcessWatch, DistinguishesAProcessFromAnotherThatHadItsPidBefore) {
  ProcessWatch own(::getpid(), 0);
  EXPECT_EQ(own.look(), ProcessState::kRuns);
  EXPECT_GT(own.started(), 0U);
  EXPECT_EQ(ProcessWatch(::getpid(), own.started()).look(), ProcessState::kRuns);
  EXPECT_EQ(ProcessWatch(::getpid(), own.started() - 1).look(), ProcessState::kEnded);
}

// Sessions ended, and their forwards were deleted for good, because the daemon was short of descriptors.
TEST(ProcessWatch, AProcessThatCannotBeSeenHasNotEnded) {
  Process process({.command = {"sleep", "1000"}});
  ProcessWatch watch(process.pid(), 0);
  ProcessWatch known(process.pid(), 1);  // whatever had the pid then: nobody can say that this is another one
  {
    const NoDescriptors none;
    EXPECT_EQ(watch.look(), ProcessState::kUnseen);
    EXPECT_EQ(known.look(), ProcessState::kUnseen);
    EXPECT_EQ(watch.started(), 0U);
    EXPECT_EQ(watch.descriptor(), -1);
  }
  EXPECT_EQ(watch.look(), ProcessState::kRuns);
  EXPECT_EQ(known.look(), ProcessState::kEnded);
}

TEST(ProcessWatch, AProcessThatIsGoneIsSeenToBeGoneWithoutADescriptor) {
  Process process({.command = {"sleep", "1000"}});
  ProcessWatch watch(process.pid(), 0);
  const NoDescriptors none;
  EXPECT_EQ(watch.look(), ProcessState::kUnseen);
  process.signal(SIGKILL);
  process.wait(std::chrono::seconds(10));
  EXPECT_EQ(watch.look(), ProcessState::kEnded);
}

}  // namespace
}  // namespace portway

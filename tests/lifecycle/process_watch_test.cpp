#include "lifecycle/process_watch.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include "tests/support/process.h"

namespace portway {
namespace {

using test::Process;

TEST(ProcessWatch, TellsOnceThatAProcessWasKilled) {
  boost::asio::io_context context;
  Process process({.command = {"sleep", "1000"}});
  int told = 0;
  auto watch = ProcessWatch::start(context, process.pid(), [&told] { ++told; });
  ASSERT_TRUE(watch);
  context.poll();
  EXPECT_EQ(told, 0);
  process.signal(SIGKILL);
  context.run_for(std::chrono::seconds(10));  // ends as soon as nothing is waited for any more
  EXPECT_EQ(told, 1);
}

TEST(ProcessWatch, DestroyedBeforeTheEndItSaysNothing) {
  boost::asio::io_context context;
  Process process({.command = {"sleep", "1000"}});
  bool told = false;
  auto watch = ProcessWatch::start(context, process.pid(), [&told] { told = true; });
  ASSERT_TRUE(watch);
  process.signal(SIGKILL);
  process.wait(std::chrono::seconds(10));
  watch->reset();
  context.run_for(std::chrono::seconds(10));
  EXPECT_FALSE(told);
}

TEST(ProcessWatch, RefusesAProcessThatDoesNotExist) {
  boost::asio::io_context context;
  const auto watch = ProcessWatch::start(context, 0x3fffffff, [] {});
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

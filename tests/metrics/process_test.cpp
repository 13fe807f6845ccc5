#include "metrics/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <ctime>

#include "tests/metrics/measured_node.h"
#include "tests/metrics/text_format.h"

namespace {
time_t clock_step_seconds = 0;
}

// What Portway's code calls in this program, by the linker's --wrap.
// NOLINTBEGIN(bugprone-reserved-identifier)
extern "C" int __real_clock_gettime(clockid_t clock, timespec* time);
extern "C" int __wrap_clock_gettime(clockid_t clock, timespec* time) {
  const int result = __real_clock_gettime(clock, time);
  if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += clock_step_seconds;
  return result;
}
// NOLINTEND(bugprone-reserved-identifier)

namespace portway {
namespace {

TEST(ProcessStats, CountEveryOpenDescriptor) {
  const auto before = read_process_stats();
  std::array<int, 50> fds{};
  for (int& fd : fds) fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  const auto with = read_process_stats();
  for (const int fd : fds) ::close(fd);
  const auto after = read_process_stats();
  EXPECT_EQ(with.open_fds, before.open_fds + fds.size());
  EXPECT_EQ(after.open_fds, before.open_fds);
}

TEST(ProcessStats, ReportLimitMemoryCpuAndStart) {
  const auto stats = read_process_stats();
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(stats.max_fds, limit.rlim_cur);
  EXPECT_GT(stats.resident_bytes, 100'000u);
  EXPECT_GT(stats.cpu_seconds, 0);
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  EXPECT_LE(stats.start_time_seconds, now.count() + 1);
  EXPECT_GT(stats.start_time_seconds, now.count() - 3600);
  EXPECT_EQ(read_process_stats().start_time_seconds, stats.start_time_seconds) << "it must not move";
}

// Between the start and the first scrape, too.
TEST(ProcessStats, TheStartDoesNotMoveWhenTheClockIsSet) {
  test::MeasuredNode node;
  const Exporter exporter = node.exporter();
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  for (const time_t step : {86'400, -86'400}) {
    clock_step_seconds = step;
    const auto started = test::parse_text_format(exporter.expose()).value("process_start_time_seconds", {});
    clock_step_seconds = 0;
    ASSERT_TRUE(started);
    EXPECT_NEAR(*started, now.count(), 3600);
  }
}

}  // namespace
}  // namespace portway

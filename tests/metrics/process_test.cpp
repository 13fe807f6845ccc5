#include "metrics/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <chrono>

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

TEST(ProcessStats, TellLimitMemoryCpuAndStart) {
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

}  // namespace
}  // namespace portway

#include "bench/compare/cpu_time.h"

#include <time.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace portway::bench {
namespace {

double ticks_to_s(unsigned long long ticks) {
  return static_cast<double>(ticks) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

double process_cpu_s(pid_t pid) {
  clockid_t clock;
  timespec time;
  if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &time) != 0) return 0;
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

double machine_cpu_s() {
  std::ifstream file("/proc/stat");
  std::string name;
  unsigned long long user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0;
  file >> name >> user >> nice >> system >> idle >> iowait >> irq >> softirq;
  return ticks_to_s(user + nice + system + irq + softirq);
}

}  // namespace

CpuTime read_cpu_time(const std::vector<pid_t>& subject) {
  CpuTime time;
  for (const pid_t pid : subject) time.subject_s += process_cpu_s(pid);
  time.machine_s = machine_cpu_s();
  return time;
}

}  // namespace portway::bench

#include "bench/compare/cpu_time.h"

#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>

namespace portway::bench {
namespace {

double ticks_to_s(unsigned long long ticks) {
  return static_cast<double>(ticks) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

double process_cpu_s(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);
  const std::size_t command_end = line.rfind(')');  // the command's name may hold anything
  if (command_end == std::string::npos) return 0;
  std::istringstream fields(line.substr(command_end + 1));
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  unsigned long long user = 0;
  unsigned long long system = 0;
  fields >> user >> system;
  return ticks_to_s(user + system);
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

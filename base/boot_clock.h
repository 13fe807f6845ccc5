// The time that passes on the node whatever anybody sets its clock to.
#pragma once

#include <chrono>
#include <functional>
#include <string>

namespace portway {

/// Of this boot of the kernel (random(4), /proc/sys/kernel/random/boot_id); empty where it cannot be read.
std::string kernel_boot_id();

/// CLOCK_BOOTTIME: since the kernel began, suspended or not.
std::chrono::milliseconds kernel_uptime();

/// How those who need it ask, so that tests can have their own. Any thread.
struct BootClock {
  std::function<std::string()> boot_id = kernel_boot_id;
  std::function<std::chrono::milliseconds()> uptime = kernel_uptime;
};

}  // namespace portway

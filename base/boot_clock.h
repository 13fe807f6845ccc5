// Time that passes on the node independently of its wall clock.
#pragma once

#include <chrono>
#include <functional>
#include <string>

namespace portway {

/// The id of this boot (random(4), /proc/sys/kernel/random/boot_id); empty if it cannot be read.
std::string kernel_boot_id();

/// CLOCK_BOOTTIME: time since boot, including suspend.
std::chrono::milliseconds kernel_uptime();

/// The functions as an object that tests can replace. Any thread.
struct BootClock {
  std::function<std::string()> boot_id = kernel_boot_id;
  std::function<std::chrono::milliseconds()> uptime = kernel_uptime;
};

}  // namespace portway

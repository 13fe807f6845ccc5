// Capabilities that a test's thread gives up.
#pragma once

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <initializer_list>

namespace portway::test {

/// Takes a capability from the calling thread alone.
inline void drop_capabilities(std::initializer_list<int> dropped) {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> data{};
  ASSERT_EQ(::syscall(SYS_capget, &header, data.data()), 0);
  for (const int capability : dropped) {
    data.at(CAP_TO_INDEX(capability)).effective &= ~CAP_TO_MASK(capability);
  }
  ASSERT_EQ(::syscall(SYS_capset, &header, data.data()), 0);
}

/// Takes all others from the calling thread alone.
inline void keep_capabilities(std::initializer_list<int> kept) {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> data{};
  ASSERT_EQ(::syscall(SYS_capget, &header, data.data()), 0);
  for (__user_cap_data_struct& word : data) word.effective = 0;
  for (const int capability : kept) data.at(CAP_TO_INDEX(capability)).effective |= CAP_TO_MASK(capability);
  ASSERT_EQ(::syscall(SYS_capset, &header, data.data()), 0);
}

}  // namespace portway::test

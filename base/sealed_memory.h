// Memory that another process maps, and whose size it can rely on: if it shrank, that process would end with
// SIGBUS.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"

namespace portway {

inline constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

/// A memfd of zeros; not valid, with errno, if the kernel refuses.
inline Fd make_sealed_memory(const char* name, off_t bytes) {
  Fd memory(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (memory &&
      (::ftruncate(memory.get(), bytes) != 0 || ::fcntl(memory.get(), F_ADD_SEALS, kSizeSeals) != 0))
    memory.reset();
  return memory;
}

}  // namespace portway

// Marks descriptors that are not to outlive this process, whoever shares its table of descriptors
// (handover/keeper.h): their peers are to see its end at once. The mark is F_SETSIG of fcntl(2), which does
// nothing without O_ASYNC.
#pragma once

#include <fcntl.h>

#include <csignal>

namespace portway {

inline void end_with_process(int fd) {
  ::fcntl(fd, F_SETSIG, SIGIO);
}

inline bool ends_with_process(int fd) {
  return ::fcntl(fd, F_GETSIG) > 0;
}

}  // namespace portway

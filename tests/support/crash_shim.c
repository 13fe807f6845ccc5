// Ends its process with SIGKILL at the N-th call that changes a file under a given path: LD_PRELOAD for crash_test.py, upgrade_test.py.
//
//   PORTWAY_CRASH_PATH  only files whose path starts with it count
//   PORTWAY_CRASH_AT    N, from 1; 0: never
//   PORTWAY_CRASH_HALF  set: when the N-th call writes, half of its bytes are written first
//   PORTWAY_CRASH_LOG   a file that gets one byte for each call counted
//   PORTWAY_CRASH_PARENT  set: its parent gets this signal instead, and the process goes on
//
// The daemon calls these from one thread at a time: at its start from the control thread, then from the store's. A kill between two calls leaves the same files as one at the
// beginning of the second, so killing at each call is killing at every moment.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pid_t self;
static pid_t parent;

__attribute__((constructor)) static void begin(void) {
  unsetenv("LD_PRELOAD");  // not for what this process starts
  self = getpid();
  parent = getppid();  // whoever takes its place later has done nothing
}

static int matches(const char* path) {
  const char* prefix = getenv("PORTWAY_CRASH_PATH");
  return prefix != NULL && strncmp(path, prefix, strlen(prefix)) == 0;
}

/// True when this call is the one to die in.
static int counted(const char* path) {
  static long calls = 0;
  static int log_fd = -1;
  if (getpid() != self || !matches(path)) return 0;  // its keeper removes a socket there
  const char* log_path = getenv("PORTWAY_CRASH_LOG");
  if (log_path != NULL) {
    if (log_fd < 0) log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (syscall(SYS_write, log_fd, ".", 1) != 1) abort();  // write() is ours
  }
  const char* at = getenv("PORTWAY_CRASH_AT");
  return ++calls == (at == NULL ? 0 : atol(at));
}

static int counted_fd(int fd) {
  char link[32];
  char path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof path - 1);
  if (size <= 0) return 0;
  path[size] = '\0';
  return counted(path);
}

static void die(void) {
  const char* signal = getenv("PORTWAY_CRASH_PARENT");
  if (signal != NULL) {
    syscall(SYS_tgkill, parent, parent, atoi(signal));
    return;
  }
  syscall(SYS_tgkill, getpid(), getpid(), SIGKILL);  // which the store's thread may: its own process ends in abort(3)
  for (;;) pause();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define HALF(size) (getenv("PORTWAY_CRASH_HALF") != NULL ? (size) / 2 : 0)

ssize_t write(int fd, const void* bytes, size_t size) {
  if (counted_fd(fd)) {
    if (HALF(size) > 0) REAL(write)(fd, bytes, HALF(size));
    die();
  }
  return REAL(write)(fd, bytes, size);
}

ssize_t pwrite(int fd, const void* bytes, size_t size, off_t offset) {
  if (counted_fd(fd)) {
    if (HALF(size) > 0) REAL(pwrite)(fd, bytes, HALF(size), offset);
    die();
  }
  return REAL(pwrite)(fd, bytes, size, offset);
}

ssize_t pwrite64(int fd, const void* bytes, size_t size, off64_t offset) {
  if (counted_fd(fd)) {
    if (HALF(size) > 0) REAL(pwrite64)(fd, bytes, HALF(size), offset);
    die();
  }
  return REAL(pwrite64)(fd, bytes, size, offset);
}

int fsync(int fd) {
  if (counted_fd(fd)) die();
  return REAL(fsync)(fd);
}

int fdatasync(int fd) {
  if (counted_fd(fd)) die();
  return REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t size) {
  if (counted_fd(fd)) die();
  return REAL(ftruncate)(fd, size);
}

int ftruncate64(int fd, off64_t size) {
  if (counted_fd(fd)) die();
  return REAL(ftruncate64)(fd, size);
}

int unlink(const char* path) {
  if (counted(path)) die();
  return REAL(unlink)(path);
}

int rename(const char* from, const char* to) {
  if (counted(to)) die();
  return REAL(rename)(from, to);
}

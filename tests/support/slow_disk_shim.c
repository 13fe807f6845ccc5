// A disk that takes its time: LD_PRELOAD for slow_disk_test.py.
//
//   PORTWAY_SLOW_PATH   only files whose path starts with it are slow
//   PORTWAY_SLOW_MS     so much longer takes each fsync(2) and fdatasync(2)
//   PORTWAY_SLOW_HANG   while this file exists, they do not return
//   PORTWAY_SLOW_LOG    a file that gets one byte at the beginning of each
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void sleep_ms(long ms) {
  const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&time, NULL);
}

static void wait_as_a_disk_does(int fd) {
  const char* prefix = getenv("PORTWAY_SLOW_PATH");
  char link[32];
  char path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof path - 1);
  if (prefix == NULL || size <= 0) return;
  path[size] = '\0';
  if (strncmp(path, prefix, strlen(prefix)) != 0) return;
  const int log = open(getenv("PORTWAY_SLOW_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (log < 0 || write(log, ".", 1) != 1) abort();
  close(log);
  sleep_ms(atol(getenv("PORTWAY_SLOW_MS")));
  while (access(getenv("PORTWAY_SLOW_HANG"), F_OK) == 0) sleep_ms(1);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) {
  wait_as_a_disk_does(fd);
  return REAL(fsync)(fd);
}

int fdatasync(int fd) {
  wait_as_a_disk_does(fd);
  return REAL(fdatasync)(fd);
}

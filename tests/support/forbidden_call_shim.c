// Makes a worker, at its first connect(2), and the control thread, at its first accept(2), try what no thread that is
// confined may: make the link in PORTWAY_FORBIDDEN_LINK, and a file beside it. Says on standard error what
// came of it. Loaded into the daemon by sandbox_test.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void try_once(const char* thread, int* tried) {
  const char* link = getenv("PORTWAY_FORBIDDEN_LINK");
  if (link == NULL || *tried != 0) return;
  *tried = 1;
  const int before = errno;
  const long result = syscall(SYS_symlinkat, "nothing", AT_FDCWD, link);
  char line[200];
  int length = snprintf(line, sizeof line, "shim: %s: link: %s\n", thread, result == 0 ? "done" : strerror(errno));
  if (write(STDERR_FILENO, line, (size_t)length) < 0) abort();
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s.file", link);
  const int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  length = snprintf(line, sizeof line, "shim: %s: file: %s\n", thread, file >= 0 ? "done" : strerror(errno));
  if (write(STDERR_FILENO, line, (size_t)length) < 0) abort();
  if (file >= 0) close(file);
  errno = before;
}

int connect(int fd, const struct sockaddr* address, socklen_t length) {
  static int (*real)(int, const struct sockaddr*, socklen_t);
  static int tried;
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "connect");
  if (getpid() != gettid()) try_once("worker", &tried);
  return real(fd, address, length);
}

static int tried_by_control;

int accept(int fd, struct sockaddr* address, socklen_t* length) {
  static int (*real)(int, struct sockaddr*, socklen_t*);
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "accept");
  if (getpid() == gettid()) try_once("control", &tried_by_control);
  return real(fd, address, length);
}

int accept4(int fd, struct sockaddr* address, socklen_t* length, int flags) {
  static int (*real)(int, struct sockaddr*, socklen_t*, int);
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "accept4");
  if (getpid() == gettid()) try_once("control", &tried_by_control);
  return real(fd, address, length, flags);
}

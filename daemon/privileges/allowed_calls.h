// The system calls that confined threads may make (daemon/privileges/seccomp.h): one list for each kind of
// thread, kept in alphabetical order, without arguments, so that the kernel can decide by a bit of its cache
// (Linux 5.11).
//
// They are derived from the test suite. To derive them again, after a change or with another C library, as
// root, with a build in BUILD:
//
//     daemon/privileges/derive_calls.py record BUILD DIRECTORY -L system
//     daemon/privileges/derive_calls.py compare DIRECTORY
//
// The first runs the suite's daemons under strace; the second prints what the lists lack, or were not seen to
// need. What was not seen and stays is what error paths, other kernels and other versions of the libraries
// call.
//
// The suite then runs with the filter on: a call that is missing is refused, and the log says which one.
#pragma once

#include <string_view>

namespace portway {

// clang-format off

/// What the C library and the runtime need in any thread: memory, locks, time, an end with a core (tgkill). Some of
/// these other versions of the C library call in place of those that this one does.
inline constexpr std::string_view kCallsOfAnyThread =
    "brk clock_getres clock_gettime clock_nanosleep close dup exit exit_group fcntl fstat futex getegid geteuid "
    "getgid getpid getrandom gettid gettimeofday getuid lseek madvise membarrier mmap mprotect mremap munmap "
    "nanosleep newfstatat poll ppoll pread64 read readv restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn "
    "sched_getaffinity sched_yield set_robust_list stat statx sysinfo tgkill time uname write writev";

/// The data plane: sockets, pipes, its ring or epoll, maps of its BPF programs, a guest's namespace.
inline constexpr std::string_view kCallsOfWorkers =
    "accept4 bind bpf connect epoll_ctl epoll_pwait epoll_pwait2 epoll_wait getpeername getsockname getsockopt "
    "io_uring_enter io_uring_register ioctl listen openat openat2 pipe2 recvfrom recvmsg sendmmsg sendmsg sendto "
    "setns setsockopt shutdown socket splice tee";

/// SQLite on its files, and word to the control thread.
inline constexpr std::string_view kCallsOfTheStore =
    "access epoll_ctl faccessat faccessat2 fallocate fchmod fchown fdatasync flock fstatfs fsync ftruncate getcwd "
    "getdents64 lstat mkdir mkdirat openat pwrite64 readlink readlinkat rename renameat renameat2 statfs unlink "
    "unlinkat";

/// The API, netlink, BPF programs, namespaces, the life of machines, files that are read again, the hand-over, and threads
/// of logs. It does not execute: there is no execve.
inline constexpr std::string_view kCallsOfTheControlThread =
    "accept accept4 access bind bpf chmod clone clone3 connect epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 "
    "epoll_wait eventfd2 faccessat faccessat2 fallocate fchmod fchmodat fchown fdatasync flock fstatfs fsync "
    "ftruncate getcwd getdents64 getpeername getrusage getsockname getsockopt inotify_add_watch inotify_init1 "
    "inotify_rm_watch io_uring_enter io_uring_register ioctl kcmp kill listen lstat memfd_create mkdir mkdirat "
    "openat openat2 pidfd_open pipe2 prctl prlimit64 pwrite64 readlink readlinkat recvfrom recvmmsg recvmsg "
    "rename renameat renameat2 sendmmsg sendmsg sendto setns setsockopt shutdown signalfd4 socket socketpair "
    "statfs timerfd_create timerfd_settime umask unlink unlinkat wait4 waitid";

// clang-format on

}  // namespace portway

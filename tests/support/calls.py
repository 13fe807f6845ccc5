"""Stops threads of another process at every system call, both before and after it, and kills their process at the one that
is wanted. ptrace(2) sees every call, also those that bypass libc, as liburing's and the relay's own do: a preloaded library
would miss them.

A point is the time before or after a call of a traced thread; points count from 1. Killed before a call, the call has no
effect. Killed after it, nothing that the process would have done about its result has been done.
"""
import ctypes
import json
import os
import re
import signal

from tests.support.portwayd import die_with_parent

PTRACE_SYSCALL, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_GET_SYSCALL_INFO = 24, 0x4206, 0x4207, 0x420E  # linux/ptrace.h
TRACE_SYSGOOD, TRACE_VFORK, TRACE_EXEC = 0x01, 0x04, 0x10
EVENT_EXEC = 4
SYSCALL_STOP = signal.SIGTRAP | 0x80
WALL = 0x40000000  # bits/waitflags.h


class SyscallInfo(ctypes.Structure):
    """struct ptrace_syscall_info: before a call its number, after it its result."""
    _fields_ = [("op", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3), ("arch", ctypes.c_uint32),
                ("instruction", ctypes.c_uint64), ("stack", ctypes.c_uint64), ("value", ctypes.c_int64),
                ("arguments", ctypes.c_uint64 * 6)]


ENTRY, EXIT = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def call_names():
    """By number, as the machine's headers have them; without headers there are only numbers."""
    names = {}
    for path in (f"/usr/include/{os.uname().machine}-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"):
        if os.path.exists(path):
            with open(path, encoding="ascii") as file:
                for name, number in re.findall(r"#define __NR_(\w+) (\d+)", file.read()):
                    names.setdefault(int(number), name)
    return names


NAMES = call_names()


def ptrace(request, tid, address=0, data=0):
    result = _libc.ptrace(request, tid, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x})")
    return result


def threads_of(pid, name):
    """Those whose names begin with it."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/comm", encoding="ascii") as file:
            if file.read().startswith(name):
                found.append(int(task))
    return found


class Calls:
    """Traces threads from now on, until their process has ended. A process of its own does it: the test can wait for the
    traced ones as if they were not.

    `kill_at`: the point, or what it is called: the first one of that name; 0: none. `begin`: nothing counts before the first
    call of that name has succeeded. `end`: the trace ends with the next call of that name. With `of_child`, what counts is
    the process that a traced one starts with that argument, and it is killed."""

    def __init__(self, tids, kill_at=0, begin=None, end=None, of_child=None):
        self.kill_at, self.begin, self.end, self.of_child = kill_at, begin, end, of_child
        self.ended = False
        self.seen, self.killed = [], False  # in the tracing process
        self.counting = begin is None and of_child is None
        self.target = None
        self.names = {}
        read_end, write_end = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            die_with_parent()
            os.close(read_end)
            with os.fdopen(write_end, "w") as report:
                self._run(tids, report)
            os._exit(0)
        os.close(write_end)
        self.report = os.fdopen(read_end)
        assert self.report.readline() == "ready\n"

    def result(self):
        """Waits for the end of what is traced: all points, each as `before NAME` or `after NAME -> RESULT`, and whether the
        wanted one was reached."""
        with self.report:
            points, killed = json.loads(self.report.readline())
        os.waitpid(self.process, 0)
        return points, killed

    def _run(self, tids, report):
        options = TRACE_SYSGOOD | (TRACE_VFORK | TRACE_EXEC if self.of_child else 0)
        for tid in tids:
            ptrace(PTRACE_SEIZE, tid, 0, options)
            ptrace(PTRACE_INTERRUPT, tid)  # or the call that it is in would not be seen to end
        print("ready", file=report, flush=True)
        while not self.ended:  # who is still traced then goes on without this process
            try:
                tid, status = os.waitpid(-1, WALL)
            except ChildProcessError:
                break
            try:
                if os.WIFSTOPPED(status):
                    ptrace(PTRACE_SYSCALL, tid, 0, self._on_stop(tid, os.WSTOPSIG(status), status >> 16))
                elif tid == self.target:
                    break
            except ProcessLookupError:
                pass  # it has been killed
        print(json.dumps([self.seen, self.killed]), file=report, flush=True)

    def _on_stop(self, tid, number, event):
        """The signal to continue with."""
        if number == SYSCALL_STOP:
            self._on_call(tid)
            return 0
        if event == EVENT_EXEC:
            with open(f"/proc/{tid}/cmdline", "rb") as file:
                if self.of_child.encode() in file.read().split(b"\0"):
                    self.target, self.counting = tid, self.begin is None
        return 0 if event else number

    def _on_call(self, tid):
        info = SyscallInfo()
        ptrace(PTRACE_GET_SYSCALL_INFO, tid, ctypes.sizeof(info), ctypes.addressof(info))
        if info.op == ENTRY:
            self.names[tid] = NAMES.get(info.value, str(info.value))
        name = self.names.get(tid, "the first call")
        if self.of_child and tid != self.target:
            return
        if not self.counting:
            self.counting = info.op == EXIT and name == self.begin and info.value >= 0
            return
        if self.killed:
            return
        self.ended = name == self.end
        self.seen.append(f"before {name}" if info.op == ENTRY else f"after {name} -> {info.value}")
        if self.kill_at in (len(self.seen), self.seen[-1]):
            self.killed = True
            os.kill(tid, signal.SIGKILL)  # of any thread: its process

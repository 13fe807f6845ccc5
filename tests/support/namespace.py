"""Network namespaces of a test, which one process is in and out of."""
import ctypes
import os
import subprocess
import threading

from tests.support.portwayd import CLONE_NEWNET

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A new network namespace, or another process's; it lasts as long as this process. `with` puts the thread into it, and
    what it starts meanwhile. Several threads may be in it."""

    def __init__(self, pid=None):
        self.own = threading.local()
        if pid is not None:
            self.fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            return
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        assert _libc.unshare(CLONE_NEWNET) == 0
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        assert _libc.setns(own, CLONE_NEWNET) == 0
        os.close(own)

    def __enter__(self):
        self.own.before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        assert _libc.setns(self.fd, CLONE_NEWNET) == 0

    def __exit__(self, *_):
        assert _libc.setns(self.own.before, CLONE_NEWNET) == 0
        os.close(self.own.before)

    def take(self, link, address):
        subprocess.run(["ip", "link", "set", link, "netns", f"/proc/self/fd/{self.fd}"], check=True, pass_fds=[self.fd])
        with self:
            for words in (("address", "add", address, "dev", link), ("link", "set", link, "up"),
                          ("link", "set", "lo", "up")):
                subprocess.run(["ip", *words], check=True)

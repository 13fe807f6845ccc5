"""The machine room of a comparison: client, host and guest, each a network namespace of its own, joined by veth pairs.

    client 198.18.0.2 ---- 198.18.0.1 host 198.19.0.1 ---- 198.19.0.2 guest

The namespaces have no names: they live as long as a descriptor or a process of ours holds them, so nothing is left
behind whichever way the comparison ends. This process itself works in the host namespace.
"""
import ctypes
import os
import signal
import subprocess
import sys

HOST_PUBLIC = "198.18.0.1"
HOST_INNER = "198.19.0.1"
GUEST = "198.19.0.2"
GUEST_DEVICE = "guest0"  # the host's interface to the guest
CLIENT = "198.18.0.2"
CLIENT_FIRST = "198.18.1.1"  # more client addresses, so that used-up (address, port) pairs do not limit a run
CLIENT_COUNT = 64

FORWARD_PORTS = "20000-32767"  # of Portway

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1

SYSCTLS = {
    # bbr, some machines' default, paces veth links and makes every subject look the same.
    "net/ipv4/tcp_congestion_control": "reno",
    # Short connections must not pile up in TIME_WAIT: above about 65,000 runs stall.
    "net/ipv4/tcp_max_tw_buckets": "1000",
    # Forwarded ports are below it, upstream connections have 55,000 ports.
    "net/ipv4/ip_local_port_range": "10000 65535",
    "net/ipv4/ip_local_reserved_ports": FORWARD_PORTS,
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/core/somaxconn": "16384",
}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def isolate(scratch):
    """Goes on in a child that has process and mount namespaces of its own, with an empty `scratch` directory in memory.

    This process only waits, passes signals on and ends with the child's status. When either is killed, the kernel ends
    everything that the child started.
    """
    _check(_libc.unshare(CLONE_NEWPID | CLONE_NEWNS), "unshare")
    child = os.fork()
    if child == 0:
        _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")
        for mount in (["--make-rprivate", "/"], ["-t", "proc", "proc", "/proc"], ["-t", "tmpfs", "tmpfs", scratch]):
            subprocess.run(["mount", *mount], check=True)
        # Process 1 of a namespace ignores signals it has no handler for.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def move_guest_link(to):
    """From the host namespace, where we are, into another one, which gets the host's address with it."""
    subprocess.run(["ip", "link", "set", GUEST_DEVICE, "netns", to.path()], check=True)
    to.run("ip", "addr", "add", f"{HOST_INNER}/16", "dev", GUEST_DEVICE)
    to.run("ip", "link", "set", GUEST_DEVICE, "up")


def stop(process):
    """One of Namespace.popen_ready()."""
    process.kill()
    process.wait()
    process.stdout.close()


class Namespace:
    """A new one, or that of a process; with our settings."""

    def __init__(self, pid=None):
        before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if pid is None:
            _check(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
        self.fd = os.open(f"/proc/{pid or 'self'}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.enter()
        for name, value in SYSCTLS.items():
            with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
                file.write(value)
        self.run("ip", "link", "set", "lo", "up")
        _check(_libc.setns(before, CLONE_NEWNET), "setns")
        os.close(before)

    def enter(self):
        """Moves this process, and the children it makes from now on, into the namespace."""
        _check(_libc.setns(self.fd, CLONE_NEWNET), "setns")

    def popen(self, *command, **options):
        return subprocess.Popen(command, preexec_fn=self.enter, **options)

    def popen_ready(self, *command, **options):
        """One that says so when it is; an OSError when it does not."""
        process = self.popen(*command, stdout=subprocess.PIPE, **options)
        if process.stdout.readline() != b"ready\n":
            raise OSError(f"did not start: {' '.join(command)}")
        return process

    def run(self, *command, **options):
        return subprocess.run(command, preexec_fn=self.enter, check=True, **options)

    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self):
        os.close(self.fd)


class Network:
    """A fresh client, host and guest; a context. Nothing of an earlier subject is in it: no conntrack, no TIME_WAIT.

    The guest is behind a veth, or, with `bridge` (the path of bench_load), behind a tap."""

    def __init__(self, bridge=None):
        self.bridge = bridge
        self.bridging = None

    def __enter__(self):
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.client, self.host, self.guest = Namespace(), Namespace(), Namespace()
        self._link(self.client, "client0", [f"{CLIENT}/16"], "public0", HOST_PUBLIC)
        if self.bridge:
            self._tap_link()
        else:
            self._link(self.guest, "eth0", [f"{GUEST}/16"], GUEST_DEVICE, HOST_INNER)
        base = CLIENT_FIRST.rpartition(".")
        commands = "".join(f"addr add {base[0]}.{int(base[2]) + i}/16 dev client0\n" for i in range(CLIENT_COUNT))
        self.client.run("ip", "-batch", "-", input=commands.encode())
        self.client.run("ip", "route", "add", "default", "via", HOST_PUBLIC)
        self.guest.run("ip", "route", "add", "default", "via", HOST_INNER)
        self.host.enter()
        return self

    def __exit__(self, *_):
        _check(_libc.setns(self.home, CLONE_NEWNET), "setns")
        if self.bridging:
            stop(self.bridging)
        for namespace in (self.client, self.host, self.guest):
            namespace.close()
        os.close(self.home)

    def _link(self, outer, outer_device, addresses, host_device, host_address):
        outer.run("ip", "link", "add", outer_device, "type", "veth",
                  "peer", "name", host_device, "netns", self.host.path())
        self._address(outer, outer_device, addresses, host_device, host_address)

    def _tap_link(self):
        self.bridging = self.host.popen_ready(self.bridge, "bridge", "--device", GUEST_DEVICE, "--guest-device", "eth0",
                                              "--guest-namespace", self.guest.path())
        self._address(self.guest, "eth0", [f"{GUEST}/16"], GUEST_DEVICE, HOST_INNER)

    def _address(self, outer, outer_device, addresses, host_device, host_address):
        for address in addresses:
            outer.run("ip", "addr", "add", address, "dev", outer_device)
        outer.run("ip", "link", "set", outer_device, "up")
        self.host.run("ip", "addr", "add", f"{host_address}/16", "dev", host_device)
        self.host.run("ip", "link", "set", host_device, "up")

"""The machine room of a comparison: a client and a guest, and between them a host for each subject, each a network
namespace of its own, joined by veth pairs:

                        +---- 198.18.1.1 host 1 198.19.1.1 ----+
    client 198.18.N.2 --+                                      +-- 198.19.N.2 guest
                        +---- 198.18.2.1 host 2 198.19.2.1 ----+

So all subjects can run at once, and what one does to its network (connection tracking, a program on the link) is only its
own. The namespaces have no names: they live as long as a descriptor or a process of ours holds them, so nothing is left
behind whichever way the comparison ends.
"""
import ctypes
import os
import signal
import subprocess
import sys

GUEST_DEVICE = "guest0"  # a host's interface to the guest
IDLE_DEVICE = "idle0"  # to a guest that is not there
CLIENT_COUNT = 64  # addresses at each host, so that used-up (address, port) pairs do not limit a run

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
    # A subject's streams rest while the others have their turn, and then continue where they were.
    "net/ipv4/tcp_slow_start_after_idle": "0",
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


class Site:
    """A host between the client and the guest, and the links to both. This process works in a host's namespace while it
    is in `with site:`."""

    def __init__(self, number, client, guest, bridge):
        self.public, self.inner, self.guest_address = f"198.18.{number}.1", f"198.19.{number}.1", f"198.19.{number}.2"
        self.client_first = f"198.18.{number}.2"
        self.public6 = None  # until add_ipv6()
        self.idle_guest_address = None  # until add_idle_guest()
        self.bridging = None
        self.host = Namespace()
        client_device, guest_device = f"client{number}", f"eth{number}"
        client.run("ip", "link", "add", client_device, "type", "veth", "peer", "name", "public0", "netns", self.host.path())
        if bridge:
            self.bridging = self.host.popen_ready(bridge, "bridge", "--device", GUEST_DEVICE, "--guest-device", guest_device,
                                                  "--guest-namespace", guest.path())
        else:
            guest.run("ip", "link", "add", guest_device, "type", "veth", "peer", "name", GUEST_DEVICE, "netns", self.host.path())
        # The clients are behind one router, as on the internet: the kernel has no more than 1,024 neighbours in all namespaces.
        own = [f"198.18.{number}.{2 + i}/32" for i in range(CLIENT_COUNT)]
        self._set_up(client, client_device, own,
                     [f"{self.public} dev {client_device}", f"198.19.{number}.0/24 via {self.public}"])
        self._set_up(guest, guest_device, [f"{self.guest_address}/24"], [f"198.18.{number}.0/24 via {self.inner}"])
        self._set_up(self.host, "public0", [f"{self.public}/32"],
                     [f"{self.client_first} dev public0", f"198.18.{number}.0/24 via {self.client_first}"])
        self._set_up(self.host, GUEST_DEVICE, [f"{self.inner}/24"], [])

    @staticmethod
    def _set_up(namespace, device, addresses, routes):
        commands = [f"addr add {address} dev {device}" for address in addresses] + [f"link set {device} up"]
        commands += [f"route add {route}" for route in routes]
        namespace.run("ip", "-batch", "-", input="\n".join(commands).encode())

    def add_ipv6(self, client):
        """An address for clients that have IPv6; the guest has none."""
        self.public6 = f"fd00:198:18:{self.public.split('.')[2]}::1"
        device = f"client{self.public.split('.')[2]}"
        for namespace, name, address in ((self.host, "public0", self.public6), (client, device, self.public6[:-1] + "2")):
            namespace.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
            namespace.run("ip", "addr", "add", f"{address}/64", "dev", name, "nodad")

    def add_idle_guest(self):
        """Another guest's link and address; the guest itself is not there."""
        self.idle_guest_address = self.guest_address[:-1] + "130"
        self.host.run("ip", "link", "add", IDLE_DEVICE, "type", "veth", "peer", "name", f"{IDLE_DEVICE}-peer")
        self.host.run("ip", "link", "set", f"{IDLE_DEVICE}-peer", "up")
        self._set_up(self.host, IDLE_DEVICE, [self.guest_address[:-1] + "129/25"], [])

    def public_addresses(self):
        """As they stand before a port."""
        return [self.public] + ([f"[{self.public6}]"] if self.public6 else [])

    def move_guest_link(self, to):
        """Into another namespace, which gets the host's address with it."""
        self.host.run("ip", "link", "set", GUEST_DEVICE, "netns", to.path())
        self._set_up(to, GUEST_DEVICE, [f"{self.inner}/24"], [])

    def __enter__(self):
        self.host.enter()
        return self

    def __exit__(self, *_):
        HOME.enter()

    def close(self):
        if self.bridging:
            stop(self.bridging)
        self.host.close()


class Network:
    """A fresh client, guest and hosts; a context. Nothing of an earlier run is in it: no conntrack, no TIME_WAIT.

    The guest is behind veths, or, with `bridge` (the path of bench_load), behind taps."""

    def __init__(self, sites, bridge=None):
        self.count, self.bridge = sites, bridge
        self.sites = []

    def __enter__(self):
        self.client, self.guest = Namespace(), Namespace()
        for number in range(1, self.count + 1):
            self.sites.append(Site(number, self.client, self.guest, self.bridge))
        return self

    def __exit__(self, *_):
        for each in (*self.sites, self.client, self.guest):
            each.close()


class _Home:
    """The network namespace that this process started in."""

    def __init__(self):
        self.fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def enter(self):
        _check(_libc.setns(self.fd, CLONE_NEWNET), "setns")


HOME = _Home()

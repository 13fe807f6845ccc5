"""The machines of the conformance tests, each a network namespace of its own, joined by veth pairs; the host's ends
towards its guests are named as taps:

    client 198.18.0.2 ---- public0 198.18.0.1 host 198.19.0.1 tap0 ---- 198.19.0.2 guest
           fd00:18::2              fd00:18::1      198.19.1.1 tap1 ---- 198.19.1.2 neighbour, another guest
                                                   fd00:19:2::1 tap2 -- fd00:19:2::2 guest6, which has no IPv4
                                                   198.19.3.1 tap3 ---- 198.19.3.2, where nobody answers
                                                   198.19.4.1 tap4 ---- 198.19.4.2 dual, which has both
                                                   fd00:19:4::1         fd00:19:4::2
                198.19.6.1, fd00:19:6::1 tap5, tap6 -- router ---- 198.19.5.2, fd00:19:5::2 far, with an MTU of 1300 between

The host forwards packets, as nodes with DNAT do. The namespaces have no names and live as long as this process.
"""
import contextlib
import ctypes
import os
import socket
import subprocess

CLONE_NEWNET = 0x40000000
TOOLS = "ip", "nft", "ss"

PUBLIC, PUBLIC6 = "198.18.0.1", "fd00:18::1"
CLIENT, CLIENT6 = "198.18.0.2", "fd00:18::2"
GUEST, NEIGHBOUR, GUEST6, SILENT = "198.19.0.2", "198.19.1.2", "fd00:19:2::2", "198.19.3.2"
DUAL, DUAL6 = "198.19.4.2", "fd00:19:4::2"
FAR, FAR6 = "198.19.5.2", "fd00:19:5::2"
TAPS = {GUEST: "tap0", NEIGHBOUR: "tap1", GUEST6: "tap2", SILENT: "tap3", DUAL: "tap4", FAR: "tap5", FAR6: "tap6"}
SECOND_ADDRESS = {DUAL: DUAL6}
NODE_ADDRESSES = {PUBLIC, PUBLIC6, "198.19.0.1", "198.19.1.1", "fd00:19:2::1", "198.19.3.1", "198.19.4.1", "fd00:19:4::1",
                  "198.19.6.1", "fd00:19:6::1", "127.0.0.1"}

SYSCTLS = {
    "net/ipv4/tcp_congestion_control": "reno",  # bbr would pace the veth links
    "net/ipv4/ip_local_port_range": "40000 60999",  # apart from the forwards' ports
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv6/conf/default/accept_dad": "0",  # addresses are usable at once
    "net/ipv4/icmp_ratelimit": "0",  # each refusal is reported
    "net/ipv6/icmp/ratelimit": "0",
}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


class Namespace:
    """`with namespace:` puts the calling thread into it; a socket stays where it was made, whoever uses it."""

    def __init__(self):
        self._outer = []
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _check(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _check(_libc.setns(home, CLONE_NEWNET), "setns")
        os.close(home)
        for name, value in SYSCTLS.items():
            self.set(name, value)
        self.ip("link set lo up")

    def __enter__(self):
        self._outer.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        _check(_libc.setns(self.fd, CLONE_NEWNET), "setns")
        return self

    def __exit__(self, *_):
        home = self._outer.pop()
        _check(_libc.setns(home, CLONE_NEWNET), "setns")
        os.close(home)

    def set(self, name, value):
        with self, open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
            file.write(value)

    def run(self, *command, **options):
        """What it printed. Raises when it fails."""
        with self:
            return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout

    def ip(self, *lines):
        self.run("ip", "-batch", "-", input="\n".join(lines) + "\n")

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0):
        with self:
            return socket.socket(family, kind, protocol)

    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self):
        os.close(self.fd)


class Network:
    def __init__(self):
        self.host, self.client = Namespace(), Namespace()
        self.guest, self.neighbour, self.guest6, self.dual = Namespace(), Namespace(), Namespace(), Namespace()
        self.router, self.far = Namespace(), Namespace()
        for router in (self.host, self.router):
            for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
                router.set(name, "1")
        self._join("public0", [f"{PUBLIC}/24", f"{PUBLIC6}/64"], self.client, [f"{CLIENT}/24", f"{CLIENT6}/64"])
        self._join("tap0", ["198.19.0.1/24"], self.guest, [f"{GUEST}/24"])
        self._join("tap1", ["198.19.1.1/24"], self.neighbour, [f"{NEIGHBOUR}/24"])
        self._join("tap2", ["fd00:19:2::1/64"], self.guest6, [f"{GUEST6}/64"])
        self._join("tap4", ["198.19.4.1/24", "fd00:19:4::1/64"], self.dual, [f"{DUAL}/24", f"{DUAL6}/64"])
        self.host.ip("link add tap3 type veth peer name silent0", "link set silent0 up", "link set tap3 up",
                     "addr add 198.19.3.1/24 dev tap3",
                     f"neigh add {SILENT} lladdr 02:00:00:00:00:77 dev tap3")

        self._join_far()

    def _join_far(self):
        """The ends of the link behind the router differ in MTU: so the far guest offers an MSS that does not fit."""
        router, far = self.router.path(), self.far.path()
        self.host.ip(f"link add tap5 type veth peer name eth0 netns {router}",
                     f"link add tap6 type veth peer name eth1 netns {router}",
                     "link set tap5 up", "link set tap6 up",
                     "addr add 198.19.6.1/24 dev tap5", "addr add fd00:19:6::1/64 dev tap6",
                     f"route add {FAR} via 198.19.6.2")
        self.router.ip(f"link add eth2 type veth peer name eth0 netns {far}", "link set eth2 mtu 1300",
                       *(f"link set eth{number} up" for number in range(3)),
                       "addr add 198.19.6.2/24 dev eth0", "addr add fd00:19:6::2/64 dev eth1",
                       "addr add 198.19.5.1/24 dev eth2", "addr add fd00:19:5::1/64 dev eth2",
                       "route add default via 198.19.6.1", "route add default via fd00:19:6::1")
        self.host.ip(f"route add {FAR6} via fd00:19:6::2")
        self.far.ip("link set eth0 up", f"addr add {FAR}/24 dev eth0", f"addr add {FAR6}/64 dev eth0",
                    "route add default via 198.19.5.1", "route add default via fd00:19:5::1")

    def _join(self, tap, addresses, outer, outer_addresses):
        self.host.ip(f"link add {tap} type veth peer name eth0 netns {outer.path()}", f"link set {tap} up",
                     *(f"addr add {address} dev {tap}" for address in addresses))
        outer.ip("link set eth0 up", *(f"addr add {address} dev eth0" for address in outer_addresses))
        for address in addresses:  # IPv6 needs its link up first
            outer.ip(f"route add default via {address.split('/')[0]}")

    def namespace_of(self, address):
        return {CLIENT: self.client, CLIENT6: self.client, GUEST: self.guest, NEIGHBOUR: self.neighbour,
                GUEST6: self.guest6, DUAL: self.dual, DUAL6: self.dual, FAR: self.far, FAR6: self.far}[address]

    def set_rp_filter(self, value):
        for device in ("all", "public0", "tap0"):
            self.host.set(f"net/ipv4/conf/{device}/rp_filter", str(value))

    @contextlib.contextmanager
    def mtu(self, value):
        """Of the link to `guest`, on both ends."""
        for wanted in (value, 1500):
            self.host.ip(f"link set tap0 mtu {wanted}")
            self.guest.ip(f"link set eth0 mtu {wanted}")
            if wanted == value:
                yield

    @contextlib.contextmanager
    def vanished(self, namespace):
        """The machine neither answers nor sends, and its link stays up."""
        chains = "".join(f" chain {hook} {{\n type filter hook {hook} priority 0; policy drop;\n }}\n"
                         for hook in ("input", "output"))
        namespace.run("nft", "-f", "-", input=f"table inet vanished {{\n{chains}}}\n")
        yield
        namespace.run("nft", "delete table inet vanished")

    @contextlib.contextmanager
    def filter(self, namespace, *rules):
        """The machine's own packet filter, in its input chain."""
        lines = "".join(f"  {rule}\n" for rule in rules)
        namespace.run("nft", "-f", "-", input="table inet own_filter {\n chain input {\n"
                      f"  type filter hook input priority 0; policy accept;\n{lines} }}\n}}\n")
        try:
            yield
        finally:
            namespace.run("nft", "delete table inet own_filter")

    def close(self):
        for namespace in (self.host, self.client, self.guest, self.neighbour, self.guest6, self.dual, self.router,
                          self.far):
            namespace.close()

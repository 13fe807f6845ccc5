"""Hosts of a fleet: network namespaces on one bridge in the test's own, which a firewall can cut off; and guests behind them.

The test has called isolate() (tests/support/portwayd.py).
"""
import contextlib
import socket
import subprocess
import threading

from tests.support.guest import ip
from tests.support.namespace import Namespace

ADDRESS = "198.18.5.1"  # the test's own on the bridge; its other addresses are reached by it
GUEST_PORT = 3000


class Fabric:
    def __init__(self):
        # Without an address of its own the bridge takes one of its links', and another one with the next link.
        ip("link", "add", "fabric", "address", "02:00:00:00:00:01", "type", "bridge")
        ip("address", "add", f"{ADDRESS}/24", "dev", "fabric")
        ip("link", "set", "fabric", "up")

    def host(self, name, number):
        return Host(name, f"198.18.5.{number}")


class Host:
    def __init__(self, name, address):
        self.address = address
        self.namespace = Namespace()
        ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", f"of-{name}")
        ip("link", "set", f"to-{name}", "master", "fabric", "up")
        self.namespace.take(f"of-{name}", f"{address}/24")
        with self.namespace:
            ip("route", "add", "default", "via", ADDRESS)

    def cut(self, *ports):
        """Packets from and to these TCP ports are dropped, and nobody is told."""
        ports = "{ " + ", ".join(map(str, ports)) + " }"
        rules = "".join(f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; }}\n"
                        f"add rule inet cut {hook} tcp dport {ports} drop\n"
                        f"add rule inet cut {hook} tcp sport {ports} drop\n" for hook in ("input", "output"))
        with self.namespace:
            subprocess.run(["nft", "-f", "-"], input=f"add table inet cut\n{rules}", text=True, check=True)

    def mend(self):
        with self.namespace:
            subprocess.run(["nft", "delete", "table", "inet", "cut"], check=True)


class Guest:
    """Behind a host, at 198.19.NUMBER.2. It answers each line with its name before it."""

    def __init__(self, host, name, number):
        self.name, self.address, self.tap = name, f"198.19.{number}.2", f"t-{name}"
        namespace = Namespace()
        with host.namespace:
            ip("link", "add", self.tap, "type", "veth", "peer", "name", f"g-{name}")
            namespace.take(f"g-{name}", f"{self.address}/24")
            ip("address", "add", f"198.19.{number}.1/24", "dev", self.tap)
            ip("link", "set", self.tap, "up")
        with namespace:
            ip("route", "add", "default", "via", f"198.19.{number}.1")
            listener = socket.create_server(("0.0.0.0", GUEST_PORT), backlog=1000)
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection, contextlib.suppress(OSError):
            for line in connection.makefile("rb"):
                connection.sendall(self.name.encode() + b" " + line)


def ask(address, port, text="ping", timeout=10):
    """What a client of a forward is answered: (name of the guest, text). An OSError if it is not."""
    with socket.create_connection((address, port), timeout) as connection:
        connection.sendall(f"{text}\n".encode())
        answer = connection.makefile("rb").readline().decode().rstrip("\n")
    name, _, rest = answer.partition(" ")
    if not answer:
        raise ConnectionError("ended without an answer")
    return name, rest

"""What carries the connections: a DNAT rule of the kernel, or Portway. Each has a network of its own."""
import itertools
import os
import shutil
import signal
import sys
import tempfile
import threading

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.conformance import network as net  # noqa: E402
from tests.support.portwayd import Portwayd, wait_until  # noqa: E402

CONNECT_TIMEOUT_S = 2  # Portway's, for a guest that does not answer
DRAIN_S = 1


class Forward:
    def __init__(self, guest, guest_port, host_port, key):
        self.guest, self.guest_port, self.host_port, self.key = guest, guest_port, host_port, key


class Dnat:
    """One rule for each forward and guest address, in prerouting for packets that arrive and in output for those of the host itself."""
    name = "nft DNAT"
    portway = False

    def __init__(self):
        self.network = net.Network()
        self._ports = itertools.count(20000)
        self._forwards = []

    def forward(self, guest, guest_port, **_):
        forward = Forward(guest, guest_port, next(self._ports), None)
        self._forwards.append(forward)
        self._load()
        return forward

    def delete(self, forward, **_):
        """conntrack keeps what is established, whatever is asked for."""
        self._forwards.remove(forward)
        self._load()

    def upgrade(self):
        """The same rules again."""
        self._load()

    kill = upgrade  # no process carries anything

    def _load(self):
        rules = ""
        for forward in self._forwards:
            to = f"tcp dport {forward.host_port} dnat"
            for guest in filter(None, (forward.guest, net.SECOND_ADDRESS.get(forward.guest))):
                if ":" in guest:
                    rules += f"  ip6 daddr {net.PUBLIC6} {to} ip6 to [{guest}]:{forward.guest_port}\n"
                else:
                    rules += f"  ip daddr {{ {net.PUBLIC}, 127.0.0.1 }} {to} ip to {guest}:{forward.guest_port}\n"
        chains = "".join(f" chain {hook} {{\n  type nat hook {hook} priority -100;\n{rules} }}\n"
                         for hook in ("prerouting", "output"))
        # Replaced in one transaction: established connections do not look at it any more.
        self.network.host.run("nft", "-f", "-", input=f"table inet forwards\ndelete table inet forwards\n"
                              f"table inet forwards {{\n{chains}}}\n")

    def close(self):
        self.network.close()


class Portway:
    portway = True

    def __init__(self, io_backend, source_mode="auto"):
        self.name = f"Portway, {io_backend}"
        self.sockets = tempfile.mkdtemp(prefix="portway-sockets-")
        self._calling = threading.Lock()  # two kinds of sockets share the daemon
        self.network = net.Network()
        with self.network.host:
            self.daemon = Portwayd(
                f"node.public_addresses={net.PUBLIC},{net.PUBLIC6},127.0.0.1", "guests.networks=198.18.0.0/15,fd00::/8",
                "profiles.default.max_forwarded_ports=1000", f"proxy.io_backend={io_backend}",
                f"proxy.source_mode={source_mode}", f"proxy.connect_timeout_ms={CONNECT_TIMEOUT_S * 1000}",
                f"proxy.drain_timeout_s={DRAIN_S}", f"guests.socket_directories={self.sockets}", start=False)
            self.daemon.start(arguments=["--supervise"])
        for guest, tap in net.TAPS.items():
            addresses = [guest, *filter(None, [net.SECOND_ADDRESS.get(guest)])]
            self._call(201, "PUT", f"/instances/{tap}", {"guest_addresses": addresses, "tap": tap, "owner": "alice"})

    def forward(self, guest, guest_port, **fields):
        return self.forward_to(guest, guest_port, {"guest_port": guest_port, **fields})

    def forward_to(self, guest, place, body):
        path = f"/instances/{net.TAPS[guest]}/port-forwards"
        made = self._call(201, "POST", path, body).json()["port_forward"]
        return Forward(guest, place, made["host_port"], f"{path}/{made['id']}")

    def delete(self, forward, connections="keep"):
        self._call(204, "DELETE", f"{forward.key}?connections={connections}")

    def upgrade(self):
        self._replace(lambda: self.daemon.process.send_signal(signal.SIGUSR2))

    def kill(self):
        """Its supervisor starts it again."""
        self._replace(lambda: os.kill(self.daemon.daemon_below(), signal.SIGKILL))

    def _replace(self, disturb):
        with self._calling:
            begun = self.daemon.begun()
            disturb()
            if not wait_until(lambda: self.daemon.begun() > begun):
                raise AssertionError(self.daemon.output())
            self.daemon.find_port()

    def _call(self, status, *request):
        with self._calling, self.network.host:
            answer = self.daemon.call(*request)
        if answer.status != status:
            raise AssertionError(f"{request}: {answer}")
        return answer

    def close(self):
        self.daemon.end()
        self.network.close()
        shutil.rmtree(self.sockets)


class Sockets:
    """Portway with forwards to Unix sockets instead of TCP ports; of a guest's vsock, the test is the Firecracker."""
    portway = True
    VSOCK_PORT = 3000

    def __init__(self, portway, kind):
        self.name, self.kind = f"{portway.name}, {kind}", kind
        self.network, self._portway = portway.network, portway
        self._names = itertools.count()

    def new_path(self):
        return f"{self._portway.sockets}/{self.kind}-{next(self._names)}"

    def forward(self, guest, path, **fields):
        port = {"port": self.VSOCK_PORT} if self.kind == "firecracker_vsock" else {}
        return self._portway.forward_to(guest, path, {"target": {"kind": self.kind, "socket": path, **port}, **fields})

    def delete(self, forward, connections="keep"):
        self._portway.delete(forward, connections)

"""A fleet for tests in Python: a real etcd, nodes and gateways, all in the test's network namespace.

The test has called isolate() (tests/support/portwayd.py).
"""
import contextlib
import http.client
import json
import os
import socket
import subprocess
import tempfile
import time

from tests.support.certificate import Authority
from tests.support.etcd import Etcd, require_etcd
from tests.support.portwayd import Portwayd, wait_until

GATEWAY = "gateway.example.com"
LEASE_S = 5  # the shortest that is allowed


def require_fleet():
    require_etcd("openssl")


class Fleet:
    """etcd serves when the constructor returns: one member, unless it is given. A context."""

    def __init__(self, etcd=None, lease_s=LEASE_S):
        self.lease_s = lease_s
        self.stack = contextlib.ExitStack()
        self.directory = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="portway-fleet-"))
        self.etcd = self.stack.enter_context(etcd or Etcd())
        self.of_nodes = Authority(f"{self.directory}/nodes")
        self.of_gateways = Authority(f"{self.directory}/gateways")

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        return self.stack.__exit__(*failure)

    def node(self, number, *settings, gateways=(GATEWAY,), host=None):
        """`nNUMBER`, with an address and ports of its own; on a host of its own (tests/support/hosts.py), if there is one."""
        return self.stack.enter_context(Node(self, number, gateways, settings, host))

    def gateway(self, *settings, name=GATEWAY, **options):
        return self.stack.enter_context(Gateway(self, name, settings, **options))


class Placed(Portwayd):
    """On a host (tests/support/hosts.py), or in the test's namespace."""

    host = None

    def place(self):
        return self.host.namespace if self.host else contextlib.nullcontext()

    def start(self, **options):
        with self.place():
            super().start(**options)

    def call(self, *words, **options):
        with self.place():
            return super().call(*words, **options)

    def connect(self, timeout=30):
        """Another connection to its API, which is open."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with self.place():
            connection.connect()
        return connection


class Node(Placed):
    """Its API listens at loopback for the test, and over TLS for gateways."""

    def __init__(self, fleet, number, gateways, settings, host=None):
        super().__init__(*settings, config="", start=False)
        self.id = f"n{number}"
        self.host = host
        self.address = host.address if host else f"198.18.5.{10 + number}"
        if host is None:
            subprocess.run(["ip", "address", "replace", f"{self.address}/32", "dev", "lo"], check=True)
        self.fleet, self.gateways = fleet, list(gateways)
        self.pem = fleet.of_nodes.issue(self.id, f"IP:{self.address}")
        ours = ("api.listen=", "node.public_hostname=")
        self.settings = [each for each in self.settings if not each.startswith(ours)]
        self.settings += [f"node.public_hostname=compute-{number}.test", f"ports.range={20000 + 1000 * number}-"
                          f"{20999 + 1000 * number}"]
        self.write_config(self.text())
        self.start()

    def text(self):
        return f"""
[guests]
networks = ["198.19.0.0/16"]
[[api.listen]]
address = "127.0.0.1:0"
[[api.listen]]
address = "{self.address}:8443"
tls_certificate = "{self.pem}"
tls_private_key = "{self.pem}"
client_ca = "{self.fleet.of_gateways.certificate}"
[fleet]
etcd = {json.dumps(self.fleet.etcd.urls)}
node_id = "{self.id}"
address = "https://{self.address}:8443"
gateways = {json.dumps(self.gateways)}
lease_ttl_s = {self.fleet.lease_s}
"""


class Gateway(Placed):
    """With `certificate`, that one instead of one with its name."""

    def __init__(self, fleet, name, settings, start=True, certificate=None, host=None):
        super().__init__(start=False)
        self.host = host
        certificate = certificate or fleet.of_gateways.issue("gateway", f"DNS:{name}")
        self.program = os.environ["PORTWAY_GATEWAY"]
        self.settings = ["node.public_hostname=api.test", "api.listen=127.0.0.1:0", "api.rate_limit_per_second=0",
                         f"api.admin_key_file={self.directory}/admin.key", f"fleet.etcd={','.join(fleet.etcd.urls)}",
                         f"gateway.node_tls_ca={fleet.of_nodes.certificate}",
                         f"gateway.node_tls_certificate={certificate}", f"gateway.node_tls_private_key={certificate}",
                         *settings]
        if start:
            self.start()

    def nodes(self):
        """Their states, by id."""
        return {each["id"]: each["state"] for each in self.call("GET", "/nodes").json().get("nodes", [])}

    def wait_for_nodes(self, **states):
        assert wait_until(lambda: self.nodes() == states), (self.nodes(), self.output())

    def put_on(self, node, name, **fields):
        return self.call("PUT", f"/instances/{name}?node={node}",
                         {"guest_address": "198.19.0.2", "tap": f"t-{name}", "owner": "alice", **fields})

    def events(self, key=None, after=None, target="/events"):
        return Events(self, key or self.admin_key(), after, target)


class Events:
    """An open stream of events. A context."""

    def __init__(self, server, key, after, target):
        header = f"Last-Event-ID: {after}\r\n" if after else ""
        self.connection = server.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n{header}"
                                      "Connection: close\r\n\r\n".encode(), finish=False)
        self.file = self.connection.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        while self.file.readline() not in (b"\r\n", b""):
            pass

    def position(self):
        """Before the first event: after which one the stream begins, None if that is a reset."""
        fields = {}
        while (line := self._line()) not in ("", None):
            name, _, value = line.partition(": ")
            fields[name] = value
        return None if "event" in fields else fields.get("id")

    def next(self):
        """(id, type, data); None at the end of the stream."""
        fields = {}
        for line in iter(self._line, None):
            if line == "" and "event" in fields:
                return fields["id"], fields["event"], json.loads(fields["data"])
            name, _, value = line.partition(": ")
            fields[name] = value
        return None

    def until(self, wanted):
        """All up to the first one that `wanted(type, data)` takes."""
        found = []
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            event = self.next()
            assert event, found
            found.append(event)
            if wanted(*event[1:]):
                return found
        raise AssertionError(found)

    def _line(self):
        """Without the framing: lines of chunk sizes are hexadecimal, and an event's never are."""
        while True:
            line = self.file.readline()
            if not line or line == b"0\r\n":
                return None
            if not line.endswith(b"\r\n"):
                return line.decode().rstrip("\n")

    def close(self):
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.file.close()
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

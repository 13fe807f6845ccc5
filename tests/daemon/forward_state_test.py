"""What `state` of a forward says, and the events about its changes: against a guest in a network namespace of its own."""
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.namespace import Namespace  # noqa: E402
from tests.support.portwayd import ADMIN, Portwayd, isolate, wait_until  # noqa: E402

NODE, GUEST, NEIGHBOUR = "198.18.0.1", "198.19.0.2", "198.19.1.2"
PATIENCE = 30  # s
PORT = 7000


class Events:
    """Of one caller, from now on."""

    def __init__(self, node, key=ADMIN):
        secret = node.admin_key() if key == ADMIN else key
        self.connection = node.send(f"GET /events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {secret}\r\n\r\n".encode(),
                                    finish=False)
        self.connection.settimeout(PATIENCE)
        self.response = http.client.HTTPResponse(self.connection, method="GET")
        self.response.begin()
        self.lines = iter(self.response.readline, b"")

    def next(self, kind, forward):
        """The next one of this type about the forward."""
        of, deadline = None, time.monotonic() + PATIENCE
        for line in self.lines:
            self.assert_in_time(deadline)
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                of = value
            if name == "data" and of == kind and json.loads(value)["forward_id"] == forward:
                return json.loads(value)
        raise AssertionError("the stream has ended")

    @staticmethod
    def assert_in_time(deadline):
        """Heartbeats would let a wait go on for ever."""
        if time.monotonic() > deadline:
            raise AssertionError("no such event has come")

    def expect(self, forward, state, cause=None):
        """All changes of its state up to this one."""
        while True:
            event = self.next("forward.state_changed", forward)
            if (event["state"], event.get("cause")) == (state, cause):
                return event

    def close(self):
        self.response.close()
        self.connection.close()


class ForwardStateTest(unittest.TestCase):
    def setUp(self):
        isolate()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.keep = stack.enter_context
        self.clients, self.guests, self.neighbours = Namespace(), Namespace(), Namespace()
        subprocess.run(["ip", "link", "add", "net0", "type", "veth", "peer", "name", "client0"], check=True)
        subprocess.run(["ip", "link", "set", "guest0", "down"], check=True)  # its machine has not started
        for link, address in (("net0", f"{NODE}/24"), ("tap0", "198.19.0.1/24"), ("tap1", "198.19.1.1/24")):
            subprocess.run(["ip", "address", "add", address, "dev", link], check=True)
            subprocess.run(["ip", "link", "set", link, "up"], check=True)
        self.clients.take("client0", "198.18.0.2/24")
        with self.clients:
            subprocess.run(["ip", "route", "add", "default", "via", NODE], check=True)
        self.start_machine(self.neighbours, "guest1", NEIGHBOUR, "198.19.1.1")
        self.node = self.keep(Portwayd(f"node.public_addresses={NODE}", "proxy.connect_timeout_ms=300"))
        self.node.put_instance("vm-1", tap="tap0", guest_address=GUEST, owner="alice")
        self.node.put_instance("vm-2", tap="tap1", guest_address=NEIGHBOUR, owner="bob")
        self.events = Events(self.node)
        self.addCleanup(self.events.close)

    def start_machine(self, namespace=None, link="guest0", address=GUEST, gateway="198.19.0.1"):
        """The tap has a carrier once its other end is up."""
        namespace = namespace or self.guests
        namespace.take(link, f"{address}/24")
        with namespace:
            subprocess.run(["ip", "route", "add", "default", "via", gateway], check=True)

    def listen(self, port=PORT):
        with self.guests:
            return self.keep(socket.create_server((GUEST, port)))

    def make(self, instance="vm-1", **fields):
        answer = self.node.call("POST", f"/instances/{instance}/port-forwards", {"guest_port": PORT, **fields})
        self.assertEqual(answer.status, 201, answer)
        return answer.json()["port_forward"]

    def get(self, forward):
        path = f"/instances/{forward['instance_id']}/port-forwards/{forward['id']}"
        return self.node.call("GET", path).json()["port_forward"]

    def check(self, forward):
        path = f"/instances/{forward['instance_id']}/port-forwards/{forward['id']}/check"
        return self.node.call("GET", path).json()["check"]

    def connect(self, forward):
        with self.clients:
            client = self.keep(socket.socket())
        client.settimeout(PATIENCE)
        client.connect((NODE, forward["host_port"]))
        return client

    def fail(self, forward):
        """A client that does not get through."""
        with contextlib.suppress(OSError):
            self.connect(forward).recv(1)

    def assert_state(self, forward, state, cause=None):
        now = self.get(forward)
        self.assertEqual((now["state"], now.get("cause")), (state, cause), now)
        self.assertEqual("reason" in now, state in ("failed", "unavailable"), now)
        if "reason" in now:
            self.assertTrue(any(step["detail"] and not step["ok"] for step in self.check(now)["steps"]), now)

    def test_a_machine_that_has_not_started(self):
        forward = self.make()
        self.assert_state(forward, "unavailable", "tap_down")
        self.assertIn("tap0 has no carrier", self.get(forward)["reason"])
        self.assert_state(self.make("vm-2"), "listening")
        began = time.monotonic()
        self.start_machine()
        self.events.expect(forward["id"], "listening")
        print(f"tap up: {time.monotonic() - began:.3f} s")
        self.assert_state(forward, "listening")

    def test_a_service_that_is_not_there_and_comes(self):
        self.start_machine()
        for source_mode in ("auto", "plain"):
            with self.subTest(source_mode=source_mode):
                forward = self.make(source_mode=source_mode)
                other = self.make("vm-2")
                self.fail(forward)
                began = time.monotonic()
                event = self.events.expect(forward["id"], "unavailable", "guest_refusing")
                print(f"{source_mode}, refusing: {time.monotonic() - began:.3f} s")
                self.assertIn("nothing listens there", event["reason"])
                self.assert_state(forward, "unavailable", "guest_refusing")
                self.assert_state(other, "listening")
                listener = self.listen()
                began = time.monotonic()
                self.events.expect(forward["id"], "listening")
                print(f"{source_mode}, serving: {time.monotonic() - began:.3f} s")
                self.assert_state(forward, "listening")
                listener.close()

    def test_a_guest_that_does_not_answer(self):
        self.start_machine()
        self.listen()
        forward = self.make()
        with self.guests:
            subprocess.run(["nft", "add table ip silent; add chain ip silent in { type filter hook input priority 0; }; "
                            f"add rule ip silent in tcp dport {PORT} drop"], check=True)
        self.fail(forward)
        self.events.expect(forward["id"], "unavailable", "guest_unreachable")
        self.assert_state(forward, "unavailable", "guest_unreachable")
        with self.guests:
            subprocess.run(["nft", "delete table ip silent"], check=True)
        self.events.expect(forward["id"], "listening")
        self.assert_state(forward, "listening")

    def test_a_guest_without_a_route_back_refuses_whom_it_can_answer(self):
        """The probe of its port is not answered, as it comes from afar; the client was refused all the same."""
        self.guests.take("guest0", f"{GUEST}/24")
        forward = self.make()

        def connect():
            return socket.create_connection((NODE, forward["host_port"]), PATIENCE, source_address=("198.19.0.1", 0))
        with contextlib.suppress(OSError):
            connect().recv(1)
        self.events.expect(forward["id"], "unavailable", "guest_refusing")
        with contextlib.suppress(OSError):
            connect().recv(1)
        self.assert_state(forward, "unavailable", "guest_refusing")
        self.listen()

        def is_served():
            try:
                self.keep(connect())
            except ConnectionRefusedError:
                return False  # the listener is shut until the guest's port is known to be open
            return True
        self.assertTrue(wait_until(is_served))
        self.events.expect(forward["id"], "listening")

    def test_a_limit(self):
        self.start_machine()
        listener = self.listen()
        forward = self.make(max_connections=1)
        with self.connect(forward), listener.accept()[0]:
            event = self.events.expect(forward["id"], "unavailable", "limit_reached")
            self.assertIn("max_connections (1)", event["reason"])
            self.assert_state(forward, "unavailable", "limit_reached")
        self.events.expect(forward["id"], "listening")
        self.assert_state(forward, "listening")

    def test_a_client_that_one_limit_turns_away_says_nothing_about_others(self):
        self.start_machine()
        listener = self.listen()
        forward = self.make(allowed_cidrs=["198.18.7.0/24"])
        other = self.make(max_connections_per_source=1)
        with self.connect(other), listener.accept()[0]:
            self.fail(forward)
            self.fail(other)
            refused = {self.events.next("connection.refused", each["id"])["how"] for each in (forward, other)}
            self.assertEqual(refused, {"limit"})
            self.assert_state(forward, "listening")
            self.assert_state(other, "listening")

    def test_disabled_and_enabled(self):
        self.start_machine()
        forward = self.make()
        path = f"/instances/vm-1/port-forwards/{forward['id']}"
        for enabled, state, cause in ((False, "disabled", "disabled"), (True, "listening", None)):
            self.assertEqual(self.node.call("PATCH", path, {"enabled": enabled}).status, 200)
            self.events.expect(forward["id"], state, cause)
            self.assert_state(forward, state, cause)

    def test_another_guest_port_is_another_service(self):
        self.start_machine()
        self.listen(port=PORT + 1)
        forward = self.make()
        self.fail(forward)
        self.events.expect(forward["id"], "unavailable", "guest_refusing")
        path = f"/instances/vm-1/port-forwards/{forward['id']}"
        self.assertEqual(self.node.call("PATCH", path, {"guest_port": PORT + 1}).json()["port_forward"]["state"], "listening")
        self.events.expect(forward["id"], "listening")

    def test_a_tenant_sees_its_own_only(self):
        self.start_machine()
        bobs = Events(self.node, self.node.tenant_key("bob"))
        self.addCleanup(bobs.close)
        alices, own = self.make(), self.make("vm-2")
        for forward in (alices, own):
            self.fail(forward)
            self.events.expect(forward["id"], "unavailable", "guest_refusing")
        self.assertEqual(bobs.next("forward.state_changed", own["id"])["instance_id"], "vm-2")

    def test_many_that_are_refused_are_one_change(self):
        self.start_machine()
        forward = self.make()
        for _ in range(200):
            self.fail(forward)
        self.events.expect(forward["id"], "unavailable", "guest_refusing")
        self.listen()
        changes = []
        while not changes or changes[-1] != "listening":
            changes.append(self.events.next("forward.state_changed", forward["id"])["state"])
        self.assertEqual(changes, ["listening"])


if __name__ == "__main__":
    unittest.main()

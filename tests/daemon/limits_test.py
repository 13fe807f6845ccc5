"""The limits of profiles and of owners count what is there already: after a reload, and in a daemon that has taken over."""
import contextlib
import os
import socket
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.portwayd import Portwayd, isolate, wait_until  # noqa: E402

ECHO = 7000
NETWORKS = 'guests.networks = ["198.18.0.0/15"]\n'


class LimitsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        isolate()
        cls.guest = guest.start_guest(__file__)

    @classmethod
    def tearDownClass(cls):
        guest.end(cls.guest)

    def begin(self, config):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.node = self.stack.enter_context(Portwayd("proxy.workers=2", config=NETWORKS + config))
        self.node.put_instance("vm-1", tap="tap0", owner="alice", guest_address=guest.GUEST_ADDRESS)
        self.assertTrue(wait_until(
            lambda: self.node.call("GET", "/instances/vm-1").json()["instance"]["tap_state"] == "up"))
        self.forwards = [self.create() for _ in range(2)]

    def create(self):
        answer = self.node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO})
        self.assertEqual(answer.status, 201, answer)
        return answer.json()["port_forward"]

    def reload(self, config):
        self.node.write_config(NETWORKS + config)
        self.node.reload()

    def connect(self, forward=0):
        """A connection that is served, or None if it was reset."""
        try:
            connection = socket.create_connection(("127.0.0.1", self.forwards[forward]["host_port"]), timeout=30)
        except ConnectionResetError:
            return None
        self.stack.enter_context(connection)
        return connection if self.is_served(connection) else None

    @staticmethod
    def is_served(connection):
        try:
            connection.sendall(b"x")
            return connection.recv(1) == b"x"
        except (ConnectionResetError, BrokenPipeError):
            return False

    def rejected(self, reason):
        lines = self.node.call("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines
                   if line.startswith("portway_connections_rejected_total{") and f'reason="{reason}"' in line)

    def end_one(self, connections):
        """One connection of the list ends; returns when the node has seen that."""
        before = self.active()
        connections.pop().close()
        self.assertTrue(wait_until(lambda: self.active() == before - 1))

    def active(self):
        forwards = self.node.call("GET", "/instances/vm-1/port-forwards").json()["port_forwards"]
        return sum(each["connections_active"] for each in forwards)

    def expect_full(self, connections, reason):
        """No more than these, over both forwards or on the first; and one in place of one that ends."""
        for connection in connections:
            self.assertTrue(self.is_served(connection))
        rejected = self.rejected(reason)
        self.assertIsNone(self.connect(0))
        self.assertTrue(wait_until(lambda: self.rejected(reason) == rejected + 1), reason)
        self.end_one(connections)
        connections.append(self.connect(0))
        self.assertIsNotNone(connections[-1])
        self.assertIsNone(self.connect(0))

    def test_an_owners_connections_count_in_each_daemon_that_takes_over(self):
        self.begin("owners.max_connections = 3\n")
        connections = [self.connect(0), self.connect(1), self.connect(1)]
        self.expect_full(connections, "owner_connections_max")
        for disturb in (Portwayd.kill_and_start, Portwayd.upgrade):
            with self.subTest(disturb.__name__):
                disturb(self.node)
                self.expect_full(connections, "owner_connections_max")

    def test_an_owner_that_is_new_brings_its_own_connections(self):
        self.begin("owners.max_connections = 2\n")
        connections = [self.connect(0), self.connect(1)]
        answer = self.node.call("PATCH", "/instances/vm-1", {"owner": "bob"})
        self.assertEqual(answer.status, 200, answer)
        self.expect_full(connections, "owner_connections_max")
        self.node.kill_and_start()
        self.expect_full(connections, "owner_connections_max")

    def test_a_profiles_limit_counts_in_each_daemon_that_takes_over(self):
        self.begin("profiles.default.max_connections = 2\n")
        connections = [self.connect(0), self.connect(0)]
        self.assertIsNotNone(self.connect(1))  # the limit is that of each forward
        self.expect_full(connections, "forward_connections_max")
        for disturb in (Portwayd.kill_and_start, Portwayd.upgrade):
            with self.subTest(disturb.__name__):
                disturb(self.node)
                self.expect_full(connections, "forward_connections_max")

    def test_a_reload_counts_what_is_there(self):
        self.begin("")
        connections = [self.connect(0), self.connect(0)]
        self.reload("owners.max_connections = 2\n")
        self.expect_full(connections, "owner_connections_max")
        self.reload("profiles.default.max_connections = 2\n")
        self.expect_full(connections, "forward_connections_max")
        forward = self.node.call("GET", f"/instances/vm-1/port-forwards/{self.forwards[0]['id']}").json()["port_forward"]
        self.assertEqual(forward["limits_in_effect"], {"max_connections": {"value": 2, "from": "profile"}})
        self.reload("owners.max_forwards = 2\n")
        self.assertIsNotNone(self.connect(0))
        answer = self.node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO})
        self.assertEqual((answer.status, answer.json()["code"]), (409, "quota_exceeded"), answer)
        self.reload("")
        self.create()


if __name__ == "__main__":
    if sys.argv[1:] == ["--guest"]:
        guest.serve_echo(ECHO)
    else:
        unittest.main()

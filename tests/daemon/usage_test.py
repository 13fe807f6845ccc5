"""What was reported of an instance's usage never goes back, whatever becomes of its daemon: a restart, an upgrade, SIGKILL
with and without a keeper; and it is reported while the disk hangs.
"""
import contextlib
import os
import socket
import sqlite3
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.portwayd import Portwayd, isolate, wait_until  # noqa: E402

ECHO = 7000
NUMBERS = ("connections_total", "received_bytes", "sent_bytes", "connection_seconds", "last_byte_at", "last_connection_at")


class UsageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        isolate()
        cls.guest = guest.start_guest(__file__)

    @classmethod
    def tearDownClass(cls):
        guest.end(cls.guest)

    def begin(self, *settings, environment=None):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.node = self.stack.enter_context(Portwayd("proxy.workers=2", *settings, start=False))
        self.node.start(environment(self.node) if environment else None)
        self.assertEqual(self.node.put_instance("vm-1", tap="tap0", guest_address=guest.GUEST_ADDRESS).status, 201)
        self.assertTrue(wait_until(
            lambda: self.node.call("GET", "/instances/vm-1").json()["instance"]["tap_state"] == "up"))
        answer = self.node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO})
        self.assertEqual(answer.status, 201, answer)
        self.forward = answer.json()["port_forward"]
        self.reports = [self.activity()]

    def activity(self):
        answer = self.node.call("GET", "/instances/vm-1/activity")
        self.assertEqual(answer.status, 200, answer)
        return answer.json()["activity"]

    def forward_now(self):
        return self.node.call("GET", f"/instances/vm-1/port-forwards/{self.forward['id']}").json()["port_forward"]

    def report(self):
        """The activity, which must not be less than it ever was."""
        now, before = self.activity(), self.reports[-1]
        for name in set(NUMBERS).intersection(before):
            self.assertGreaterEqual(now[name], before[name], name)  # RFC 3339 in UTC sorts as text
        self.assertEqual(now["usage_since"], before["usage_since"])
        self.reports.append(now)
        return now

    def connect(self):
        return self.stack.enter_context(socket.create_connection(("127.0.0.1", self.forward["host_port"]), timeout=30))

    def echo(self, connection, size=1000):
        connection.sendall(b"x" * size)
        self.assertEqual(len(connection.recv(size, socket.MSG_WAITALL)), size)

    def wait_for(self, **values):
        self.assertTrue(wait_until(lambda: all(self.activity()[name] == value for name, value in values.items())),
                        f"{values}: {self.activity()}")
        return self.report()

    def survive(self, disturb):
        """Connections that are open live on, and count on."""
        self.begin()
        connection, other = self.connect(), self.connect()
        self.echo(connection)
        self.echo(other)
        other.close()
        self.wait_for(connections_active=1, connections_total=2, received_bytes=2000, sent_bytes=2000)
        for turn in range(1, 4):
            disturb()
            now = self.report()
            self.assertEqual((now["connections_active"], now["connections_total"]), (1, 2))
            self.assertEqual(now["received_bytes"], 1000 + 1000 * turn, "nothing is lost or counted twice")
            self.echo(connection)
            self.wait_for(received_bytes=2000 + 1000 * turn, sent_bytes=2000 + 1000 * turn)
            forward = self.forward_now()
            self.assertEqual((forward["received_bytes"], forward["connections_total"]), (2000 + 1000 * turn, 2))
        connection.close()
        ended = self.wait_for(connections_active=0)
        self.assertGreater(ended["connection_seconds"], 0)
        disturb()
        self.assertEqual({name: self.report()[name] for name in NUMBERS}, {name: ended[name] for name in NUMBERS})

    def test_sigkill_takes_nothing(self):
        self.survive(lambda: self.node.kill_and_start())

    def test_an_upgrade_takes_nothing(self):
        self.survive(lambda: self.node.upgrade())

    def test_a_restart_takes_nothing(self):
        self.begin("proxy.drain_timeout_s=1")
        connection = self.connect()
        self.echo(connection)
        self.wait_for(received_bytes=1000, sent_bytes=1000, connections_active=1)
        self.assertEqual(self.node.stop(), 0)
        self.node.start()
        now = self.report()
        self.assertEqual((now["connections_active"], now["connections_total"], now["sent_bytes"]), (0, 1, 1000))
        self.assertEqual(self.forward_now()["sent_bytes"], 1000)

    def test_a_forward_that_is_deleted_stays_counted_and_so_do_its_connections(self):
        self.begin()
        connection = self.connect()
        self.echo(connection)
        self.wait_for(received_bytes=1000, sent_bytes=1000, connections_active=1)
        path = f"/instances/vm-1/port-forwards/{self.forward['id']}"
        self.assertEqual(self.node.call("DELETE", path).status, 204)
        self.echo(connection)
        self.wait_for(received_bytes=2000, sent_bytes=2000, connections_active=1)
        self.node.kill_and_start()
        self.assertEqual(self.report()["received_bytes"], 2000)
        self.echo(connection)
        self.wait_for(received_bytes=3000, sent_bytes=3000, connections_active=1)
        connection.close()
        self.wait_for(connections_active=0)

    def test_without_a_keeper_a_kill_takes_what_was_not_saved(self):
        self.begin("proxy.handover_timeout_s=0")
        connection = self.connect()
        self.echo(connection)
        self.wait_for(received_bytes=1000, sent_bytes=1000)
        before = self.on_disk()
        self.assertTrue(wait_until(lambda: self.on_disk() > before, 60), "it is not saved")
        self.node.kill_and_start()
        now = self.activity()
        self.assertEqual((now["received_bytes"], now["connections_active"]), (1000, 0))

    def on_disk(self):
        with contextlib.closing(sqlite3.connect(f"{self.node.directory}/portway.db")) as database:
            rows = database.execute("SELECT sent_bytes FROM instance_usage").fetchall()
        return rows[0][0] if rows else 0

    def test_it_is_reported_while_the_disk_hangs(self):
        def shim(node):
            return {"LD_PRELOAD": os.environ["PORTWAY_SLOW_DISK_SHIM"], "PORTWAY_SLOW_MS": "0",
                    "PORTWAY_SLOW_PATH": f"{node.directory}/portway.db", "PORTWAY_SLOW_HANG": f"{node.directory}/hang",
                    "PORTWAY_SLOW_LOG": f"{node.directory}/syncs",
                    "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0"}
        self.begin(environment=shim)
        with open(f"{self.node.directory}/hang", "wb"):
            pass
        try:
            before = os.path.getsize(f"{self.node.directory}/syncs")
            connection = self.connect()
            self.echo(connection)
            self.wait_for(received_bytes=1000, sent_bytes=1000, connections_active=1)
            self.assertTrue(wait_until(lambda: os.path.getsize(f"{self.node.directory}/syncs") > before, 60),
                            "nothing is saved")
            self.echo(connection)  # the save hangs
            self.wait_for(received_bytes=2000, sent_bytes=2000, connections_active=1)
            self.assertEqual(len(self.node.call("GET", "/usage").json()["usage"]), 1)
        finally:
            os.unlink(f"{self.node.directory}/hang")


if __name__ == "__main__":
    if sys.argv[1:] == ["--guest"]:
        guest.serve_echo(ECHO)
    unittest.main()

"""Threads that handle what strangers send are confined to the system calls that they need. Another call is refused, logged
and counted, and the daemon continues.
"""
import ctypes
import glob
import os
import signal
import socket
import sys
import tempfile
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.portwayd import Portwayd, isolate, wait_until  # noqa: E402

ECHO = 7000
CONFINED = {"portwayd", "worker-0", "worker-1", "store"}
SHIM = {"LD_PRELOAD": os.environ["PORTWAY_FORBIDDEN_CALL_SHIM"]}


def has_landlock():
    """landlock_create_ruleset(2) with LANDLOCK_CREATE_RULESET_VERSION."""
    return ctypes.CDLL(None).syscall(444, None, 0, 1) > 0


def filters_of(pid):
    """Of each thread, by its name: 2 if it has a filter."""
    found = {}
    for path in glob.glob(f"/proc/{pid}/task/*/status"):
        with open(path, encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file.read().splitlines())
        found.setdefault(fields["Name"].strip(), set()).add(int(fields["Seccomp"]))
    return found


class SandboxTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if os.environ["PORTWAY_SANITIZE"]:
            raise unittest.SkipTest("a build with sanitizers has no filters")
        isolate()
        cls.guest = guest.start_guest(__file__)

    @classmethod
    def tearDownClass(cls):
        guest.end(cls.guest)

    def forward(self, node):
        node.put_instance("vm-1", tap="tap0", owner="alice", guest_address=guest.GUEST_ADDRESS)
        answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO})
        self.assertEqual(answer.status, 201, answer)
        return answer.json()["port_forward"]

    def expect_served(self, forward):
        with socket.create_connection(("127.0.0.1", forward["host_port"]), timeout=30) as connection:
            connection.sendall(b"hello")
            self.assertEqual(connection.recv(5), b"hello")

    def expect_confined(self, node):
        def confined():
            found = filters_of(node.process.pid)
            return all(2 in found.get(name, ()) for name in CONFINED)
        # The main thread is, when it serves: soon after it has said that it is ready.
        self.assertTrue(wait_until(confined), filters_of(node.process.pid))

    def test_confined_from_its_start_on_and_after_an_upgrade(self):
        with Portwayd("proxy.workers=2") as node:
            self.expect_confined(node)
            forward = self.forward(node)
            self.expect_served(forward)
            node.upgrade()
            self.expect_confined(node)
            self.expect_served(forward)
            self.assertNotIn("was refused", node.output())

    def test_a_call_that_is_forbidden_is_refused_and_logged(self):
        with Portwayd("proxy.workers=2", start=False) as node:
            made = f"{node.directory}/made"
            node.tries_forbidden_calls = True
            node.start({**SHIM, "PORTWAY_FORBIDDEN_LINK": made})
            forward = self.forward(node)
            self.expect_served(forward)
            for thread in ("worker", "control"):
                self.expect_said(node, f"shim: {thread}: link: Operation not permitted")
            self.assertFalse(os.path.islink(made))
            # Once for each call, whoever made it first.
            self.assertTrue(wait_until(lambda: "was refused symlinkat(2)" in node.output()), node.output())
            metrics = node.call("GET", "/metrics").body.decode()
            self.assertIn("\nportway_seccomp_refused_total 2\n", metrics)
            self.expect_served(forward)
            self.assertEqual(node.output().count("was refused"), 1)

    def expect_said(self, node, text):
        self.assertTrue(wait_until(lambda: text in node.output()), node.output())

    @unittest.skipUnless(has_landlock(), "the kernel has no Landlock")
    def test_files_are_written_in_the_daemons_directories_only(self):
        with tempfile.TemporaryDirectory() as other, Portwayd("proxy.workers=2", start=False) as node:
            node.tries_forbidden_calls = True
            node.start({**SHIM, "PORTWAY_FORBIDDEN_LINK": f"{other}/made"})
            self.expect_served(self.forward(node))
            for thread in ("worker", "control"):
                self.expect_said(node, f"shim: {thread}: file: Permission denied")
            self.assertEqual(os.listdir(other), [])
        # A worker has no directory at all.
        with Portwayd("proxy.workers=2", start=False) as node:
            node.tries_forbidden_calls = True
            node.start({**SHIM, "PORTWAY_FORBIDDEN_LINK": f"{node.directory}/made"})
            self.expect_served(self.forward(node))
            self.expect_said(node, "shim: worker: file: Permission denied")
            self.expect_said(node, "shim: control: file: done")

    def test_logs_are_rotated_and_a_new_daemon_has_other_directories(self):
        networks = 'guests.networks = ["198.18.0.0/15"]\n'
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second, \
                Portwayd("proxy.workers=2", config=f'{networks}log.access = "{first}/access.log"\n') as node:
            os.rename(f"{first}/access.log", f"{first}/access.log.1")
            node.process.send_signal(signal.SIGUSR1)
            self.assertTrue(wait_until(lambda: os.path.exists(f"{first}/access.log")), node.output())
            node.write_config(f'{networks}log.access = "{second}/access.log"\n')
            node.upgrade()
            self.assertTrue(os.path.exists(f"{second}/access.log"))
            self.expect_confined(node)

    def test_off_by_configuration(self):
        with Portwayd("proxy.workers=2", "process.sandbox=false", start=False) as node:
            made = f"{node.directory}/made"
            node.tries_forbidden_calls = True
            node.start({**SHIM, "PORTWAY_FORBIDDEN_LINK": made})
            self.expect_served(self.forward(node))
            self.assertTrue(wait_until(lambda: "shim: control: file: done" in node.output()))
            self.assertTrue(os.path.islink(made))
            self.assertEqual(set().union(*filters_of(node.process.pid).values()), {0})


if __name__ == "__main__":
    if sys.argv[1:] == ["--guest"]:
        guest.serve_echo(ECHO)
    else:
        unittest.main()

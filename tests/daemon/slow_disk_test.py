"""Many machines that die at once, on a node whose disk is slow or hangs: their ports are closed and their connections reset
at once, whatever the disk does, and the disk learns of all of them together.
"""
import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, hold_tap, isolate, wait_until  # noqa: E402

MACHINES = 30
MANY_MACHINES = 300
PATIENCE_S = 30  # for what only a fault delays


class Machines:
    """A process that holds many taps open, and takes all of their carriers with it."""

    def __init__(self, names):
        self.names = names
        subprocess.run(["ip", "-batch", "-"], check=True, text=True, input="".join(
            f"tuntap add dev {name} mode tap\nlink set {name} up\n" for name in names))
        self.start()

    def start(self):
        ready, child_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._hold(self.names, child_end)
        os.close(child_end)
        if os.read(ready, 1) != b"r":
            raise RuntimeError("the taps cannot be opened")
        os.close(ready)

    @staticmethod
    def _hold(names, child_end):
        try:
            for name in names:
                hold_tap(name)
            os.write(child_end, b"r")
            while True:
                signal.pause()
        finally:
            os._exit(1)

    def kill(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


class SlowDisk(unittest.TestCase):
    def setUp(self):
        isolate()
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.node = self.stack.enter_context(Portwayd("proxy.connect_timeout_ms=60000", start=False))
        self.syncs = f"{self.node.directory}/syncs"
        self.hang = f"{self.node.directory}/hang"

    def start(self, delay_ms=0, machines=MACHINES):
        self.names = [f"m{i}" for i in range(machines)]
        self.machines = Machines(self.names)
        self.stack.callback(self.machines.kill)
        self.node.start({"LD_PRELOAD": os.environ["PORTWAY_SLOW_DISK_SHIM"], "PORTWAY_SLOW_PATH": f"{self.node.directory}/portway.db",
                         "PORTWAY_SLOW_MS": str(delay_ms), "PORTWAY_SLOW_HANG": self.hang, "PORTWAY_SLOW_LOG": self.syncs,
                         "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0"})
        self.clients = {}
        for name in self.names:
            self.assertEqual(self.node.put_instance(name, tap=name).status, 201)
            answer = self.node.call("POST", f"/instances/{name}/port-forwards", {"guest_port": 3000})
            self.assertEqual(answer.status, 201, answer)
            port = answer.json()["port_forward"]["host_port"]
            client = self.stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            self.clients[client] = port
        # Armed, and on disk.
        self.assertTrue(wait_until(lambda: all(
            instance["tap_state"] == "up" for instance in self.instances())), "not all taps are up")

    def instances(self):
        return self.node.call("GET", "/instances?limit=1000").json()["instances"]

    def allocated(self):
        return self.node.call("GET", "/v1/info").json()["ports"]["allocated"]

    def wait_until_all_are_cut(self):
        """Each client's connection is reset; then its port refuses."""
        waiting = dict(self.clients)
        while waiting:
            reset = select.select(list(waiting), [], [], PATIENCE_S)[0]
            self.assertTrue(reset, f"{len(waiting)} of {len(self.names)} connections live on")
            for client in reset:
                with self.assertRaises(ConnectionResetError):
                    client.recv(1)
                with socket.socket() as again:
                    self.assertEqual(again.connect_ex(("127.0.0.1", waiting.pop(client))), errno.ECONNREFUSED)

    def syncs_so_far(self):
        return os.path.getsize(self.syncs)

    def hang_disk(self):
        with open(self.hang, "wb"):
            pass

    def another_caller(self):
        caller = Portwayd.__new__(Portwayd)
        caller.__dict__.update(self.node.__dict__, connection=None)
        return caller

    @contextlib.contextmanager
    def change_that_hangs(self, *call):
        """Made by another client of the API; gives its answer, a list that is empty until it comes."""
        answers = []
        caller = self.another_caller()
        before = self.syncs_so_far()
        self.hang_disk()
        thread = threading.Thread(target=lambda: answers.append(caller.call(*call)))
        thread.start()
        self.assertTrue(wait_until(lambda: self.syncs_so_far() > before), "the change does not reach the disk")
        try:
            yield answers
        finally:
            os.unlink(self.hang)
            thread.join()
            caller.close_connection()

    def test_all_are_cut_while_a_change_hangs_in_the_disk(self):
        self.start()
        self.assertEqual(self.node.put_instance("other", tap="tap0").status, 201)
        with self.change_that_hangs("POST", "/instances/other/port-forwards", {"guest_port": 3000}) as answers:
            self.machines.kill()
            self.wait_until_all_are_cut()
            self.assertEqual(answers, [], "the disk hangs no more")
        self.assertEqual(answers[0].status, 201, answers)
        stopped = [instance for instance in self.instances() if instance["state"] == "stopped"]
        self.assertEqual(len(stopped), MACHINES)

    def test_a_forward_that_is_being_made_then_listens_no_more(self):
        self.start()
        port = next(port for port in range(32000, 32768) if port not in self.clients.values())
        with self.change_that_hangs("POST", "/instances/m0/port-forwards", {"guest_port": 3001, "host_port": port}) as answers:
            early = self.stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            self.machines.kill()
            self.wait_until_all_are_cut()
            with self.assertRaises(ConnectionResetError):
                early.recv(1)
            with socket.socket() as again:
                self.assertEqual(again.connect_ex(("127.0.0.1", port)), errno.ECONNREFUSED)
            self.assertEqual(answers, [], "the disk hangs no more")
        self.assertEqual((answers[0].status, answers[0].json()["code"]), (409, "instance_not_running"))
        self.assertTrue(wait_until(lambda: self.allocated() == 0))

    def test_what_was_reported_as_stopped_is_stopped_after_a_crash(self):
        self.start()
        self.hang_disk()
        self.machines.kill()
        self.wait_until_all_are_cut()
        self.assertTrue(wait_until(lambda: all(instance["state"] == "stopped" for instance in self.instances())))
        self.machines.start()  # others, on the same taps
        self.node.kill()
        os.unlink(self.hang)
        self.node.start()
        self.assertEqual({instance["state"] for instance in self.instances()}, {"stopped"})
        for port in self.clients.values():
            with socket.socket() as again:
                self.assertEqual(again.connect_ex(("127.0.0.1", port)), errno.ECONNREFUSED)

    def test_the_api_answers_while_the_ends_hang_in_the_disk(self):
        self.start()
        self.hang_disk()
        self.machines.kill()
        self.wait_until_all_are_cut()
        self.assertTrue(wait_until(lambda: all(instance["state"] == "stopped" for instance in self.instances())))
        self.assertEqual(self.allocated(), MACHINES, "the disk promises them still")
        os.unlink(self.hang)
        self.assertTrue(wait_until(lambda: self.allocated() == 0))

    def test_everything_else_is_answered_while_a_change_hangs_in_the_disk(self):
        self.start()
        with self.change_that_hangs("POST", "/instances/m0/port-forwards", {"guest_port": 3001}) as answers:
            worst_ms = 0
            for _ in range(200):
                began = time.monotonic()
                self.assertEqual(self.node.call("GET", "/healthz").status, 200)
                worst_ms = max(worst_ms, 1000 * (time.monotonic() - began))
            print(f"GET /healthz took at most {worst_ms:.1f} ms while a change hung in the disk")
            for path in ("/instances", "/instances/m0/port-forwards", "/v1/info", "/metrics", "/api-keys"):
                self.assertEqual(self.node.call("GET", path).status, 200, path)
            self.assertEqual(answers, [], "the disk hangs no more")
            # Those that would only wait, too, are refused after a while.
            waiting = [threading.Thread(target=lambda: answers.append(self.another_caller().call(
                "DELETE", "/instances/m1"))) for _ in range(2)]
            for thread in waiting:
                thread.start()
            self.assertTrue(wait_until(lambda: self.node.call("GET", "/readyz").status == 503))
            refused = self.node.call("POST", "/instances/m2/port-forwards", {"guest_port": 3001})
            self.assertEqual((refused.status, refused.json()["code"]), (503, "store_unavailable"), refused)
            self.assertIn("does not answer", refused.json()["detail"])
        for thread in waiting:
            thread.join()
        self.assertEqual(sorted(answer.status for answer in answers), [201, 204, 404])
        self.assertEqual(self.node.call("POST", "/instances/m2/port-forwards", {"guest_port": 3001}).status, 201)

    def test_an_upgrade_waits_for_the_changes_under_way(self):
        self.start()
        successor = []
        with self.change_that_hangs("POST", "/instances/m0/port-forwards", {"guest_port": 3001}) as answers:
            upgrade = threading.Thread(target=lambda: successor.append(self.node.upgrade()))
            upgrade.start()
            self.assertTrue(wait_until(lambda: "checks the configuration" in self.node.output()))
            self.assertEqual(self.node.call("GET", "/healthz").status, 200)
            self.assertEqual(answers, [], "the disk hangs no more")
        upgrade.join()
        self.assertEqual(answers[0].status, 201, answers)
        made = answers[0].json()["port_forward"]["id"]
        self.node.close_connection()
        self.assertEqual(self.node.call("GET", f"/instances/m0/port-forwards/{made}").status, 200)

    def test_the_disk_learns_of_all_together(self):
        self.start(delay_ms=20, machines=MANY_MACHINES)
        before = self.syncs_so_far()
        died = time.monotonic()
        self.machines.kill()
        self.wait_until_all_are_cut()
        took_ms = (time.monotonic() - died) * 1000
        print(f"the last of {MANY_MACHINES} machines that died at once was cut after {took_ms:.0f} ms")
        self.assertLess(took_ms, 3000, "one disk write after the other takes 6000")
        self.assertTrue(wait_until(lambda: self.allocated() == 0))
        # As many as transactions that were begun while messages still came, one every 20 ms at most; one for each machine
        # would be 300.
        self.assertLess(self.syncs_so_far() - before, MANY_MACHINES / 5 + took_ms / 20)


if __name__ == "__main__":
    unittest.main()

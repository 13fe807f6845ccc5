"""A backup of the running daemon's store, and a daemon that begins with it."""
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, hold_tap, isolate, wait_until  # noqa: E402

SETTINGS = ["profiles.default.max_forwarded_ports=1000", "proxy.drain_timeout_s=0"]
PATH = "/instances/vm-1/port-forwards"


class Backup(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        isolate()

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="portway-backup-")
        self.addCleanup(directory.cleanup)
        self.file = f"{directory.name}/portway.backup"

    def back_up(self, node, status=0):
        done = subprocess.run([os.environ["PORTWAY_CLIENT"], "--server", f"http://127.0.0.1:{node.port}", "--key-file",
                               f"{node.directory}/admin.key", "node", "backup", self.file], capture_output=True, text=True)
        self.assertEqual(done.returncode, status, done)
        return done.stderr

    def portwayd(self, node, *arguments, status=0):
        done = subprocess.run([node.program, *(f"--set={one}" for one in node.settings), *arguments], capture_output=True,
                              text=True)
        self.assertEqual(done.returncode, status, done)
        return done.stdout + done.stderr

    def forwards(self, node):
        return {one["id"]: (one["host_port"], one["state"])
                for one in node.call("GET", PATH + "?limit=1000").json()["port_forwards"]}

    def test_a_restored_backup_is_the_node_of_its_time(self):
        with Portwayd(*SETTINGS) as node:
            node.put_instance("vm-1", tap="tap0")
            gone = subprocess.Popen(["sleep", "infinity"])
            self.addCleanup(gone.wait)
            self.addCleanup(gone.kill)
            node.put_instance("vm-2", tap="tap1", guest_address="198.19.0.3", vmm_pid=gone.pid)
            self.assertEqual(node.call("POST", "/instances/vm-2/port-forwards", {"guest_port": 1}).status, 201)
            for _ in range(10):
                self.assertEqual(node.call("POST", PATH, {"guest_port": 3000}).status, 201)
            self.assertTrue(wait_until(lambda: node.call("GET", "/instances/vm-1").json()["instance"]["state"] == "running"))
            key = node.tenant_key()
            before = self.forwards(node)
            self.assertEqual(before.keys(), self.forwards(node).keys())
            self.back_up(node)
            self.assertEqual(os.stat(self.file).st_mode & 0o777, 0o600)
            self.assertIn("request", re.search("backup of the store, .*", node.output())[0])

            for one in list(before)[:5]:
                node.call("DELETE", f"{PATH}/{one}")
            node.call("POST", PATH, {"guest_port": 4000})
            self.assertIn("another portwayd has it open", self.portwayd(node, "--restore", self.file, status=1))
            self.assertIn("11 forwards", self.portwayd(node, "--restore", self.file, "--check"))
            node.kill()
            gone.kill()
            gone.wait()
            self.assertIn("restored to", self.portwayd(node, "--restore", self.file))
            node.start()
            self.assertEqual({one: port for one, (port, _) in self.forwards(node).items()},
                             {one: port for one, (port, _) in before.items()})
            for port, _ in before.values():
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
            self.assertEqual(node.call("GET", "/instances/vm-2").json()["instance"]["state"], "stopped")
            self.assertEqual(node.call("GET", "/v1/whoami", key=key).status, 200)
            self.assertIn("is a backup of", node.output())

    def test_a_machine_that_came_later_gets_nothing_of_an_older_backup(self):
        """Alice's session waited for its machine when the backup was made; then Bob's came to the same tap and address."""
        subprocess.run(["ip", "tuntap", "add", "dev", "vmtap", "mode", "tap"], check=True)
        subprocess.run(["ip", "link", "set", "vmtap", "up"], check=True)
        self.addCleanup(subprocess.run, ["ip", "link", "delete", "vmtap"], check=True)
        with Portwayd(*SETTINGS) as node:
            node.put_instance("vm-1", tap="vmtap")
            port = node.call("POST", PATH, {"guest_port": 3000}).json()["port_forward"]["host_port"]
            self.back_up(node)
            node.call("DELETE", "/instances/vm-1")
            node.put_instance("vm-9", tap="vmtap", owner="bob")
            machine = hold_tap("vmtap")
            self.addCleanup(os.close, machine)
            node.stop()
            self.portwayd(node, "--restore", self.file)
            node.start()
            self.assertEqual(node.call("GET", "/instances/vm-1").json()["instance"]["state"], "stopped")
            self.assertEqual(self.forwards(node), {})
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=10)
            self.assertEqual(node.put_instance("vm-9", tap="vmtap", owner="bob").status, 201)

    @contextlib.contextmanager
    def begun(self, node, key=None):
        """A backup whose client has read the head of the answer only."""
        connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
        connection.request("POST", "/v1/node/backup", headers={"Authorization": f"Bearer {key or node.admin_key()}"})
        yield connection.getresponse()
        connection.close()

    def test_two_at_a_time_and_an_incomplete_one_is_seen(self):
        with Portwayd(*SETTINGS) as node:
            # More than the sockets between the two hold.
            node.put_instance("vm-1", tap="tap0")
            label = {"metadata": {f"k{i}": "x" * 200 for i in range(30)}}
            while os.path.getsize(f"{node.directory}/portway.db") < 12_000_000:
                made = node.call("POST", PATH + ":batch", {"port_forwards": [{"guest_port": 3000, **label}] * 8},
                                 headers={"Idempotency-Key": os.urandom(8).hex()})
                if made.status != 201:
                    node.call("DELETE", PATH)
            files = sorted(os.listdir(node.directory))
            ops = node.call("POST", "/api-keys", {"role": "admin", "owner": "ops"}).json()
            with self.begun(node, ops["secret"]) as first, self.begun(node) as second:
                self.assertEqual((first.status, second.status), (200, 200))
                self.assertIn("stream_limit", self.back_up(node, 6))
                self.assertEqual(sorted(os.listdir(node.directory)), files)
                self.assertEqual(len(second.read()), int(second.headers["Content-Length"]))
                self.back_up(node)
                self.assertEqual(node.call("DELETE", f"/api-keys/{ops['api_key']['id']}").status, 204)
                with self.assertRaises((http.client.IncompleteRead, ConnectionResetError)):
                    first.read()
            with self.begun(node) as third:
                node.kill()
                with self.assertRaises((http.client.IncompleteRead, ConnectionResetError)):
                    third.read()
            self.back_up(node, 3)
            self.assertGreater(os.path.getsize(self.file), 1_000_000)

    def test_changes_and_an_upgrade_go_on_during_backups(self):
        with Portwayd(*SETTINGS) as node:
            node.put_instance("vm-1", tap="tap0")
            over = threading.Event()
            statuses = []

            def back_up_again_and_again():
                while not over.is_set():
                    with contextlib.suppress(OSError, http.client.HTTPException), self.begun(node) as answer:
                        statuses.append((answer.status, len(answer.read()) == int(answer.headers["Content-Length"])))
            threads = [threading.Thread(target=back_up_again_and_again) for _ in range(2)]
            for thread in threads:
                thread.start()
            try:
                for _ in range(50):
                    self.assertEqual(node.call("POST", PATH, {"guest_port": 3000}).status, 201)
                node.upgrade()
                for _ in range(10):
                    self.assertEqual(node.call("POST", PATH, {"guest_port": 3000}).status, 201)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            self.assertEqual(set(statuses), {(200, True)})
            self.assertEqual(len(self.forwards(node)), 60)
            self.assertEqual(node.stop(signal.SIGTERM), 0)


if __name__ == "__main__":
    unittest.main()

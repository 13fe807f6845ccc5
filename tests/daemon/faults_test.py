"""One bad thing does not stop the node: what cannot start, or hangs, is reported and tried again, and forwards are served."""
import contextlib
import ctypes
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.certificate import make_certificate  # noqa: E402
from tests.support.portwayd import (  # noqa: E402
    Portwayd, UnixConnection, die_with_parent, isolate, require_namespaces, wait_until)

ECHO = 7000
PATH = "/instances/vm-1/port-forwards"
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000


class Systemd:
    """The end of $NOTIFY_SOCKET at which systemd listens."""

    def __init__(self, directory):
        self.path = f"{directory}/systemd"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.said = []

    def hear(self, wanted, seconds=30):
        """Waits for a message with this text; what was heard before that is in `said`."""
        def has_come():
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.said.append(self.socket.recv(65536, socket.MSG_DONTWAIT).decode())
                    if wanted in self.said[-1]:
                        return True
            return False
        return wait_until(has_come, seconds)

    def hears_no(self, unwanted, seconds):
        """From now on."""
        self.hear("what nobody says", 0)
        self.said.clear()
        return not self.hear(unwanted, seconds)


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_namespaces("openssl")
        isolate()
        cls.guest = guest.start_guest(__file__)
        cls.addClassCleanup(guest.end, cls.guest)

    def make_node(self, *settings, config=None):
        node = Portwayd(*settings, start=False, config=config)
        self.addCleanup(node.end)
        self.systemd = Systemd(node.directory)
        self.addCleanup(self.systemd.socket.close)
        return node

    def start(self, node, **environment):
        """As Portwayd.start(), with a systemd that goes on listening, and whatever its API does."""
        config = [] if node.config is None else [f"--config={node.directory}/portway.toml"]
        with open(f"{node.directory}/log", "ab") as log:
            node.process = subprocess.Popen(
                [node.program, *config, *(f"--set={setting}" for setting in node.settings)], stdout=log, stderr=log,
                cwd=node.directory, preexec_fn=die_with_parent,
                env={**os.environ, "NOTIFY_SOCKET": self.systemd.path, **environment})
        self.assertTrue(self.systemd.hear("READY=1"), node.output())

    def unix_call(self, path, method, target, key=None):
        connection = UnixConnection(path)
        with contextlib.closing(connection):
            connection.request(method, target, headers={"Authorization": f"Bearer {key}"} if key else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def echo(self, port):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"hello")
            return connection.recv(5) == b"hello"

    def test_forwards_are_served_whatever_else_cannot_start(self):
        node = self.make_node("guests.networks=198.18.0.0/15", config="")
        node.start()
        node.put_instance("vm-1", tap="tap0")
        port = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO}).json()["port_forward"]["host_port"]
        key = node.admin_key()
        node.kill()

        directory = node.directory
        node.settings = [each for each in node.settings if not each.startswith("api.listen=")]
        node.write_config(f"""
[api]
tls_certificate = "{directory}/api.pem"
tls_private_key = "{directory}/api.pem"
[[api.listen]]
address = "127.0.0.1:8080"
tls_certificate = ""
[[api.listen]]
address = "127.0.0.1:8443"
[[api.listen]]
address = "unix:{directory}/api.sock"
admin_uids = [0]
[metrics]
listen = "127.0.0.1:9100"
[log]
access = "{directory}/logs/access.log"
""")
        os.chmod(f"{directory}/admin.key", 0o644)
        with open(f"{directory}/api.pem", "w", encoding="ascii") as file:
            file.write("no certificate")
        with socket.create_server(("127.0.0.1", 8080)), socket.create_server(("127.0.0.1", 9100)):
            self.start(node)
            self.assertTrue(self.echo(port), node.output())
            status, body = self.unix_call(f"{directory}/api.sock", "GET", "/readyz")
            self.assertEqual((status, json.loads(body)), (200, {
                "status": "ready", "faults": ["api", "metrics", "admin_key", "access_log"]}))
            faults = self.faults(node)
            self.assertEqual([(fault["part"], fault.get("subject")) for fault in faults],
                             [("api", "127.0.0.1:8080"), ("api", "127.0.0.1:8443"), ("metrics", "127.0.0.1:9100"),
                              ("admin_key", None), ("access_log", None)])
            for fault, remedy in zip(faults, ("stop the process", "PEM", "stop the process", "chmod 600", "must exist")):
                with self.subTest(fault=fault["part"]):
                    self.assertIn(remedy, fault["detail"])
                    self.assertIn(fault["detail"], node.output())
            self.assertTrue(self.systemd.said[-1].endswith(
                "STATUS=1 forwards of 1 instances; does not work: api 127.0.0.1:8080, api 127.0.0.1:8443, "
                "metrics 127.0.0.1:9100, admin_key, access_log"), self.systemd.said)
            self.assertEqual(self.unix_call(f"{directory}/api.sock", "GET", "/v1/node", key)[0], 401)
            _, scrape = self.unix_call(f"{directory}/api.sock", "GET", "/metrics")
            self.assertIn('portway_fault{part="api"} 2', scrape)

        os.mkdir(f"{directory}/logs")
        os.chmod(f"{directory}/admin.key", 0o600)
        make_certificate(f"{directory}/api.pem", "portway")
        self.assertTrue(wait_until(lambda: self.faults(node) == []), node.output())
        self.assertTrue(self.systemd.hear("STATUS=1 forwards of 1 instances"), self.systemd.said)
        node.port = 8080
        self.assertEqual(node.call("GET", "/readyz").json(), {"status": "ready"})
        self.assertEqual(node.call("GET", "/v1/node").status, 200)
        socket.create_connection(("127.0.0.1", 8443), timeout=30).close()
        socket.create_connection(("127.0.0.1", 9100), timeout=30).close()
        self.assertTrue(self.echo(port))
        self.assertTrue(wait_until(lambda: os.path.getsize(f"{directory}/logs/access.log") > 0), node.output())

    def test_a_filesystem_that_is_read_only_keeps_no_forward_down(self):
        node = self.make_node("guests.networks=198.18.0.0/15")
        store = f"{node.directory}/var"
        os.mkdir(store)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", store], check=True)
        self.addCleanup(subprocess.run, ["umount", "--lazy", store], check=True)
        node.settings.append(f"store.path={store}/portway.db")
        node.start()
        machine = subprocess.Popen(["sleep", "infinity"], preexec_fn=die_with_parent)
        self.addCleanup(machine.wait)
        self.addCleanup(machine.kill)
        node.put_instance("vm-1", tap="tap0", vmm_pid=machine.pid)
        ports = [node.call("POST", PATH, {"guest_port": ECHO}).json()["port_forward"]["host_port"] for _ in range(2)]
        node.kill()  # its -wal has what the database has not

        def remount(mode):  # refused until the keeper of the daemon that was killed has let go of the store's files
            command = ["mount", "-o", f"remount,{mode}", store]
            self.assertTrue(wait_until(lambda: subprocess.run(command, check=False).returncode == 0))

        remount("ro")
        node.start()
        self.assertIn("Read-only file system; mount its filesystem writable. Until then changes are refused",
                      node.output())
        self.assertTrue(all(self.echo(port) for port in ports), node.output())
        refused = node.call("POST", PATH, {"guest_port": ECHO})
        self.assertEqual((refused.status, refused.json()["code"]), (503, "store_unavailable"))
        self.assertIn("mount its filesystem writable", refused.json()["detail"])
        ready = node.call("GET", "/readyz")
        self.assertEqual(ready.status, 503)
        self.assertEqual(ready.json()["reasons"][0]["code"], "store_unavailable")
        self.assertEqual(node.call("GET", "/healthz").status, 200)
        # A session that ends meanwhile is over at once, and on disk once that can be written.
        machine.kill()
        machine.wait()
        self.assertTrue(wait_until(lambda: node.call("GET", "/instances/vm-1").json()["instance"]["state"] == "stopped"))
        self.assertRaises(OSError, self.echo, ports[0])

        remount("rw")
        self.assertTrue(wait_until(lambda: node.call("GET", "/readyz").status == 200), node.output())
        self.assertTrue(wait_until(lambda: "can be written again, and changes are accepted" in node.output()))
        self.assertTrue(wait_until(lambda: self.stored_state(store) == "stopped"), node.output())
        self.assertEqual(node.stop(), 0)

    def test_a_certificate_whose_time_comes_later_keeps_no_forward_down(self):
        node = self.make_node("guests.networks=198.18.0.0/15", config="")
        node.start()
        node.put_instance("vm-1", tap="tap0")
        port = node.call("POST", PATH, {"guest_port": ECHO}).json()["port_forward"]["host_port"]
        node.kill()
        pem = f"{node.directory}/api.pem"
        node.settings = [each for each in node.settings if not each.startswith("api.listen=")]
        node.write_config(f"""
[guests]
networks = ["198.18.0.0/15"]
[api]
listen = "127.0.0.1:8443"
tls_certificate = "{pem}"
tls_private_key = "{pem}"
""")
        make_certificate(pem, "portway", begins_in_s=3600)
        self.start(node)
        self.assertTrue(self.echo(port), node.output())
        self.assertTrue(wait_until(lambda: "set this machine's clock, or take another certificate" in node.output()))
        make_certificate(pem, "portway")
        self.assertTrue(wait_until(lambda: "fault: api 127.0.0.1:8443 is mended" in node.output()), node.output())
        socket.create_connection(("127.0.0.1", 8443), timeout=30).close()

    def test_a_tap_that_is_missing_is_said_with_the_remedy(self):
        node = self.make_node("guests.networks=198.18.0.0/15")
        node.start()
        self.assertEqual(node.put_instance("vm-1", tap="tap0").status, 201)
        port = node.call("POST", PATH, {"guest_port": ECHO}).json()["port_forward"]["host_port"]
        self.assertEqual(node.put_instance("vm-2", tap="gone0", guest_address="198.19.0.3").status, 201)
        said = "instance vm-2 waits for its machine: There is no network device gone0. Create the tap"
        self.assertTrue(wait_until(lambda: said in node.output()), node.output())
        node.kill()
        node.start()
        self.assertTrue(wait_until(lambda: node.output().count(said) == 2), node.output())
        self.assertTrue(self.echo(port), node.output())

    @staticmethod
    def stored_state(store):
        with contextlib.closing(sqlite3.connect(f"{store}/portway.db")) as database:
            return database.execute("SELECT state FROM instances").fetchone()[0]

    def faults(self, node):
        status, body = self.unix_call(f"{node.directory}/api.sock", "GET", "/v1/node")
        self.assertEqual(status, 200, body)
        return json.loads(body)["process"]["faults"]

    def test_the_watchdog_hears_of_it_while_all_threads_run(self):
        node = self.make_node("proxy.workers=2")
        self.start(node, WATCHDOG_USEC="400000")
        for _ in range(5):
            self.assertTrue(self.systemd.hear("WATCHDOG=1"))
        self.assertTrue(wait_until(lambda: "listens on http://" in node.output()))
        node.find_port()
        for worker in (0, 1):
            with self.stopped(node.process.pid, f"worker-{worker}"):
                self.assertTrue(wait_until(lambda: f"fault: worker {worker}: the thread does not run" in node.output()))
                self.assertTrue(self.systemd.hears_no("WATCHDOG=1", 1), self.systemd.said)
                self.assertEqual(node.call("GET", "/readyz").json()["faults"], ["worker"])
            self.assertTrue(self.systemd.hear("WATCHDOG=1"))
            self.assertTrue(wait_until(lambda: f"fault: worker {worker} is mended" in node.output()))
        with self.stopped(node.process.pid, "portwayd"):
            self.assertTrue(self.systemd.hears_no("WATCHDOG=1", 1), self.systemd.said)
        self.assertTrue(self.systemd.hear("WATCHDOG=1"))

    @contextlib.contextmanager
    def stopped(self, process, name):
        """A thread that hangs: the kernel does not let it run."""
        thread = next(int(task) for task in os.listdir(f"/proc/{process}/task") if self.name_of(process, task) == name)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
            self.assertEqual(libc.ptrace(request, thread, None, None), 0, os.strerror(ctypes.get_errno()))
        os.waitpid(thread, WALL)
        try:
            yield
        finally:
            libc.ptrace(PTRACE_DETACH, thread, None, None)

    @staticmethod
    def name_of(process, task):
        with open(f"/proc/{process}/task/{task}/comm", encoding="ascii") as file:
            return file.read().strip()

    def test_a_wrong_watchdog_time_is_none(self):
        for text in ("", "x", "-5", "400000x"):
            with self.subTest(text=text):
                node = self.make_node()
                self.start(node, WATCHDOG_USEC=text)
                self.assertTrue(self.has_begun(node))
                self.assertNotIn("WATCHDOG=1", "\n".join(self.systemd.said))
                self.assertEqual(node.stop(), 0)

    def has_begun(self, node):
        return wait_until(lambda: re.search(r"listens on http://\S*:\d+,", node.output()))


if __name__ == "__main__":
    if "--guest" in sys.argv:
        guest.serve_echo(ECHO)
    else:
        unittest.main()

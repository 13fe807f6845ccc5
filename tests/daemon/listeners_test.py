"""The API on several listeners at once: a Unix socket for the orchestrator, TLS for tenants; with the real daemon."""
import contextlib
import fcntl
import http.client
import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.certificate import make_certificate  # noqa: E402
from tests.support.portwayd import Portwayd, UnixConnection, die_with_parent, isolate, require_namespaces, wait_until  # noqa: E402

SEATS = 1024  # of each listener
TENANTS, ORCHESTRATOR_TCP = 8443, 8080  # in a namespace of this test's own


class Listeners(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_namespaces("openssl")
        isolate()

    def start(self, more=""):
        node = Portwayd(start=False, config="")
        self.addCleanup(node.end)
        node.settings = [each for each in node.settings if not each.startswith("api.listen=")]
        self.socket, self.pem = f"{node.directory}/api.sock", f"{node.directory}/api.pem"
        make_certificate(self.pem, "one")
        node.write_config(f"""
[guests]
networks = ["198.18.0.0/15"]
[api]
tls_certificate = "{self.pem}"
tls_private_key = "{self.pem}"
{more}
[[api.listen]]
address = "127.0.0.1:{ORCHESTRATOR_TCP}"
tls_certificate = ""
[[api.listen]]
address = "127.0.0.1:{TENANTS}"
[[api.listen]]
address = "unix:{self.socket}"
admin_uids = [0]
""")
        node.start()
        return node

    def tls(self, key=None, target="/instances"):
        context = ssl.create_default_context(cafile=f"{self.pem}.crt")
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", TENANTS, timeout=30, context=context)
        return self.status(connection, key, target)

    def unix(self, key=None, target="/instances"):
        return self.status(UnixConnection(self.socket), key, target)

    @staticmethod
    def status(connection, key, target):
        try:
            connection.request("GET", target, headers={"Authorization": f"Bearer {key}"} if key else {})
            return connection.getresponse().status
        finally:
            connection.close()

    def test_each_listener_has_its_own_rules(self):
        node = self.start()
        tenant = node.tenant_key()
        self.assertIn(f"listens on http://127.0.0.1:{ORCHESTRATOR_TCP}, https://127.0.0.1:{TENANTS}, unix:{self.socket},",
                      node.output())
        self.assertEqual((self.unix(), self.tls(), self.tls(tenant), node.call("GET", "/instances", key=None).status),
                         (200, 401, 200, 401))
        with socket.create_connection(("127.0.0.1", TENANTS), timeout=30) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            self.assertIn(b"speaks HTTPS", plain.recv(4096))
        metrics = node.call("GET", "/metrics?scope=node").body.decode()
        self.assertIn("portway_api_tls_certificate_expiry_timestamp_seconds", metrics)

    def test_a_reload_renews_the_certificate_and_cuts_nobody(self):
        node = self.start()
        context = ssl.create_default_context(cafile=f"{self.pem}.crt")
        context.check_hostname = False
        early = http.client.HTTPSConnection("127.0.0.1", TENANTS, timeout=30, context=context)
        early.connect()
        before = early.sock.getpeercert(binary_form=True)
        make_certificate(self.pem, "two")
        node.reload()
        early.request("GET", "/healthz")
        self.assertEqual(early.getresponse().status, 200)
        early.close()
        self.assertNotEqual(ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", TENANTS))), before)
        self.assertEqual((self.tls(target="/healthz"), self.unix()), (200, 200))

    def test_an_upgrade_and_a_crash_keep_every_listener(self):
        node = self.start()
        inode = os.stat(self.socket).st_ino
        with UnixListenerClients(self.socket) as clients:
            clients.wait()
            for disturb in (Portwayd.upgrade, Portwayd.kill_and_start):
                disturb(node)
                self.assertEqual((self.tls(target="/healthz"), self.unix(), node.call("GET", "/healthz").status), (200, 200, 200))
                self.assertEqual(os.stat(self.socket).st_ino, inode)
            self.assertEqual(clients.refused, 0)

    def start_with(self, node, sockets):
        """As a service manager does that listens for the daemon."""
        with open(f"{node.directory}/log", "ab") as log:
            node.process = subprocess.Popen(
                [sys.executable, "-B", __file__, "--pass", ",".join(str(each.fileno()) for each in sockets), node.program,
                 f"--config={node.directory}/portway.toml", *(f"--set={setting}" for setting in node.settings)],
                stdout=log, stderr=log, cwd=node.directory, preexec_fn=die_with_parent,
                pass_fds=[each.fileno() for each in sockets])

    def test_sockets_of_a_service_manager_are_listened_on(self):
        node = self.start()
        self.assertEqual(node.stop(), 0)
        with contextlib.ExitStack() as stack:
            plain, tls, other = (stack.enter_context(socket.create_server(("127.0.0.1", port)))
                                 for port in (ORCHESTRATOR_TCP, TENANTS, 0))
            unix = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            unix.bind(f"{node.directory}/other.sock")
            unix.listen()
            datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            datagrams.bind(("127.0.0.1", 0))
            shutil.move(self.pem, f"{self.pem}.away")

            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", ORCHESTRATOR_TCP, timeout=30)) as early:
                early.request("GET", "/healthz")  # while there is no daemon
                self.start_with(node, [plain, datagrams, tls, unix, other])
                self.assertEqual(early.getresponse().status, 200)
            node.port = ORCHESTRATOR_TCP
            self.assertEqual(node.call("GET", "/healthz").status, 200)
            for what in ("127.0.0.1:%d" % other.getsockname()[1], "descriptor 4, no listening TCP", "descriptor 6, no"):
                self.assertTrue(wait_until(lambda what=what: f"none of api.listen and metrics.listen: {what}" in node.output()),
                                node.output())
            # What could not start is started on the same socket.
            shutil.move(f"{self.pem}.away", self.pem)
            self.assertTrue(wait_until(lambda: "fault: api 127.0.0.1:8443 is mended" in node.output()), node.output())
            self.assertEqual((self.unix(), self.tls(target="/healthz")), (200, 200))

            node.upgrade()
            self.assertEqual((self.unix(), self.tls(target="/healthz"), node.call("GET", "/healthz").status), (200, 200, 200))
            self.assertEqual(node.stop(), 0)
            self.start_with(node, [plain, tls])
            node.close_connection()
            self.assertEqual((self.tls(target="/healthz"), node.call("GET", "/healthz").status), (200, 200))

    def test_a_wrong_environment_passes_nothing(self):
        for environment in ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": "x", "LISTEN_FDS": "-3"},
                            {"LISTEN_FDS": "999999999999999999999"}):
            with self.subTest(environment), Portwayd(start=False) as node:
                node.start(environment=environment)
                self.assertEqual(node.call("GET", "/readyz").status, 200)

    def test_half_open_requests_on_every_seat_lock_out_nobody(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        node = self.start()
        half = b"PUT /instances/a HTTP/1.1\r\nHost: a\r\nContent-Le"
        with contextlib.ExitStack() as stack:
            for port, source in ((port, source) for port in (ORCHESTRATOR_TCP, TENANTS) for source in (2, 3)):
                for _ in range(SEATS * 3 // 4):
                    slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30, (f"127.0.0.{source}", 0)))
                    slow.sendall(half if port == ORCHESTRATOR_TCP else b"\x16\x03\x01")
            self.assertEqual((self.tls(target="/healthz"), self.unix(), node.call("GET", "/instances").status), (200, 200, 200))
            metrics = node.call("GET", "/metrics?scope=node").body.decode()
            self.assertEqual(re.search(r'connections_refused_total{reason="limit"} (\d+)', metrics)[1], "0")

    def test_two_listeners_at_one_address_are_refused(self):
        node = Portwayd("api.listen=127.0.0.1:8080,0.0.0.0:8080", start=False)
        self.addCleanup(node.end)
        check = subprocess.run([node.program, "--check", *(f"--set={setting}" for setting in node.settings)],
                               capture_output=True, text=True, check=False)
        self.assertEqual(check.returncode, 2, check)
        self.assertIn("api.listen[1].address: 0.0.0.0:8080 is taken by api.listen[0]", check.stdout + check.stderr)


class UnixListenerClients:
    """Connects to the socket again and again, from a thread; nobody may be refused, whichever process listens."""

    def __init__(self, path):
        self.path, self.refused, self.connected, self.ends = path, 0, 0, False
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.ends:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                try:
                    client.connect(self.path)
                    self.connected += 1
                except BlockingIOError:
                    pass  # the backlog is full
                except OSError:
                    self.refused += 1

    def wait(self):
        assert wait_until(lambda: self.connected > 0)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ends = True
        self.thread.join()


def pass_sockets(numbers, program):
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in numbers]
    for i, number in enumerate(high):
        os.dup2(number, 3 + i)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)))
    os.closerange(3 + len(numbers), 200)
    os.execv(program[0], program)


if __name__ == "__main__" and "--pass" in sys.argv:
    pass_sockets([int(each) for each in sys.argv[2].split(",")], sys.argv[3:])
if __name__ == "__main__":
    unittest.main()

"""What belongs to one key or one session ends with it, whoever comes next; with the real daemon."""
import contextlib
import fcntl
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import ADMIN, Portwayd, die_with_parent, isolate, wait_until  # noqa: E402

GUEST_PORT = 3000
GUEST = "198.19.0.2"
SOON_S = 10  # for what is done at once on a machine that is not overloaded


class Stream:
    """An answer without an end, on a connection of its own."""

    def __init__(self, node, method, target, key=ADMIN):
        secret = node.admin_key() if key == ADMIN else key
        self.connection = node.send(
            f"{method} {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {secret}\r\n\r\n".encode(), finish=False)
        self.response = http.client.HTTPResponse(self.connection, method=method)
        self.response.begin()

    def rest(self, seconds=SOON_S):
        """All until the body's end, which must be a clean one; nothing when it does not end in that time."""
        deadline = time.monotonic() + seconds
        body = b""
        while (left := deadline - time.monotonic()) > 0:
            self.connection.settimeout(left)
            try:
                piece = self.response.read1()
            except TimeoutError:
                break
            if not piece:
                return body
            body += piece
        return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.response.close()
        self.connection.close()


def segment(payload):
    """A frame as the guest would send it from its port."""
    tcp = struct.pack("!HHIIBBHHH", GUEST_PORT, 40000, 1, 1, 5 << 4, 0x18, 1000, 0, 0) + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, socket.inet_aton(GUEST),
                     socket.inet_aton("198.18.0.9"))
    return bytes.fromhex("020000000001020000000002") + struct.pack("!H", 0x0800) + ip + tcp


def send_from_guest(payload, device="guest0"):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        raw.send(segment(payload))


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


class Guest:
    """A network namespace behind the tap tap9, with the addresses fe80::9, fd00:77::2 and 198.51.100.2; the node has fe80::1,
    fd00:77::1 and 198.51.100.1. A context."""

    def __enter__(self):
        self.process = subprocess.Popen(["unshare", "--net", "sleep", "1000"], preexec_fn=die_with_parent)
        assert wait_until(
            lambda: os.readlink(f"/proc/{self.process.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        ip("link", "add", "tap9", "type", "veth", "peer", "name", "eth0", "netns", str(self.process.pid))
        self.add_addresses([], "tap9", "1", "1")
        self.add_addresses(self.enter(), "eth0", "9", "2")
        return self

    @staticmethod
    def add_addresses(prefix, device, local, own):
        for command in (["link", "set", device, "addrgenmode", "none"], ["link", "set", "lo", "up"], ["link", "set", device, "up"],
                        ["address", "add", f"fe80::{local}/64", "dev", device, "nodad"],
                        ["address", "add", f"fd00:77::{own}/64", "dev", device, "nodad"],
                        ["address", "add", f"198.51.100.{own}/24", "dev", device]):
            subprocess.run([*prefix, "ip", *command], check=True)

    def enter(self):
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net"]

    def talker(self, address, port):
        """A program in the guest with one connection to the node: for each line that it gets it asks for /healthz, and answers
        with the status, or 0 when the connection has been closed."""
        return subprocess.Popen([*self.enter(), sys.executable, "-u", "-c", f"""
import socket, sys
connection = socket.create_connection(("{address}", {port}))
for line in sys.stdin:
    answer = b""
    try:
        connection.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        answer = connection.recv(65536)
    except ConnectionError:
        pass
    print(answer.split()[1].decode() if answer else 0)
"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)

    @staticmethod
    def ask(talker):
        talker.stdin.write("\n")
        talker.stdin.flush()
        return int(talker.stdout.readline())

    def status(self, address, port):
        """Of one request on a connection of its own."""
        talker = self.talker(address, port)
        status = self.ask(talker)
        talker.communicate()
        return status

    def __exit__(self, *_):
        ip("link", "del", "tap9")  # the namespace would take it along some time later, and the next guest needs the name
        self.process.kill()
        self.process.wait()


class Isolation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        isolate()

    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)

    def start(self, *settings):
        return self.stack.enter_context(Portwayd(*settings))

    def put(self, node, **fields):
        answer = node.put_instance("vm-1", tap="tap0", **fields)
        self.assertIn(answer.status, (200, 201), answer)
        self.assertTrue(wait_until(lambda: node.call("GET", "/instances/vm-1").json()["instance"]["tap_state"] == "up"))
        created = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": GUEST_PORT})
        self.assertEqual(created.status, 201, created)
        return f"/instances/vm-1/port-forwards/{created.json()['port_forward']['id']}"

    # --- The log.

    def start_with_a_log_that_nobody_reads(self):
        """Returns the daemon and the pipe's reading end, of a pipe that is full already."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        # By an open file description of our own: the daemon's must stay a blocking one.
        other = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(other, b"\n")
        os.close(other)
        # Thousands of commits follow: not on a real disk.
        store = self.stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        node = self.stack.enter_context(
            Portwayd("api.listen=127.0.0.1:8080", f"store.path={store}/portway.db", start=False))
        node.start(stderr=writing, port=8080)
        os.close(writing)
        return node, reading

    def test_a_log_that_nobody_reads_stops_nothing_and_says_later_what_is_missing(self):
        node, reading = self.start_with_a_log_that_nobody_reads()
        self.put(node)
        self.addCleanup(ip, "link", "set", "guest0", "up")
        ip("link", "set", "guest0", "down")
        self.assertTrue(wait_until(
            lambda: node.call("GET", "/instances/vm-1").json()["instance"].get("reason") == "carrier_lost", SOON_S))

        def dropped():
            metrics = node.call("GET", "/metrics?scope=node").body.decode()
            return int(re.search(r"^portway_log_lines_dropped_total (\d+)$", metrics, re.MULTILINE)[1])

        for i in range(100):
            for owner in ("alice", "bob") * 50:  # each is a line
                self.assertIn(node.put_instance("vm-2", owner=owner).status, (200, 201))
            if dropped() > 0:
                break
        lost = dropped()
        self.assertGreater(lost, 0)
        text = b""
        while (note := re.search(rb"warning (\d+) lines of this log are missing here", text)) is None or b"vm-3" not in text:
            text += os.read(reading, 65536)
            if note and b"vm-3" not in text:
                node.put_instance("vm-3", tap="t3")
        self.assertEqual(int(note[1]), lost)
        self.assertLess(text.find(b"missing here"), text.find(b"vm-2"), "the oldest lines are the ones that are missing")
        self.assertEqual(dropped(), lost)

    def test_a_log_that_nobody_reads_does_not_hold_up_the_end(self):
        node, _ = self.start_with_a_log_that_nobody_reads()
        self.put(node)
        began = time.monotonic()
        self.assertEqual(node.stop(), 0)
        self.assertLess(time.monotonic() - began, SOON_S)

    # --- Keys.

    def test_streams_end_with_their_key(self):
        node = self.start()
        forward = self.put(node)
        alice = node.tenant_key("alice")
        bob = node.tenant_key("bob")
        of_admin = self.stack.enter_context(Stream(node, "GET", "/events"))
        capture = self.stack.enter_context(Stream(node, "POST", f"{forward}/capture?seconds=60"))
        of_alice = self.stack.enter_context(Stream(node, "GET", "/events", alice))
        of_bob = self.stack.enter_context(Stream(node, "GET", "/events", bob))
        keys = {key["owner"]: key["id"] for key in node.call("GET", "/api-keys").json()["api_keys"]}

        node.reload()  # nothing has changed
        self.assertEqual(node.call("DELETE", f"/api-keys/{keys['alice']}").status, 204)
        self.assertIsNotNone(of_alice.rest())
        with open(f"{node.directory}/admin.key", "w", encoding="ascii") as file:
            file.write("pwk_" + "b" * 43 + "\n")
        node.reload()
        self.assertIsNotNone(of_admin.rest())
        self.assertIsNotNone(capture.rest())
        node.put_instance("vm-2", tap="tap1", owner="bob")
        self.assertTrue(wait_until(lambda: b"instance.started" in of_bob.response.read1()))

    def test_streams_end_when_their_key_or_its_old_secret_does(self):
        node = self.start()

        def make(**fields):
            return node.call("POST", "/api-keys", {"role": "tenant", "owner": "alice", **fields}).json()

        def events(secret):
            return self.stack.enter_context(Stream(node, "GET", "/events", secret))

        began = time.monotonic()
        ending = make(ttl_seconds=2)
        rotated = make()
        one = f"/api-keys/{rotated['api_key']['id']}"
        of_ending, of_old = events(ending["secret"]), events(rotated["secret"])
        new = node.call("POST", f"{one}/rotate", {"overlap_seconds": 2}).json()["secret"]
        of_new = events(new)
        for stream in (of_ending, of_old):
            self.assertIsNotNone(stream.rest(2 + SOON_S))
        self.assertGreaterEqual(time.monotonic() - began, 1.9)
        for secret in (ending["secret"], rotated["secret"]):
            self.assertEqual(node.call("GET", "/whoami", key=secret).status, 401)
        node.put_instance("vm-2", tap="tap1", owner="alice")
        self.assertTrue(wait_until(lambda: b"instance.started" in of_new.response.read1()))
        newest = node.call("POST", f"{one}/rotate").json()["secret"]
        self.assertIsNotNone(of_new.rest())
        node.kill_and_start()  # what was acknowledged is so after a crash
        self.assertEqual(node.call("GET", "/whoami", key=new).status, 401)
        self.assertEqual(node.call("GET", "/whoami", key=newest).json()["whoami"]["key_id"], rotated["api_key"]["id"])
        for secret in (ADMIN, new, newest, rotated["secret"]):
            self.assertNotIn(node.admin_key() if secret == ADMIN else secret, node.output(), "a secret in the log")

    # --- Sessions.

    def test_a_capture_ends_with_its_session_however_that_ends(self):
        machine = subprocess.Popen(["sleep", "1000"], preexec_fn=die_with_parent)
        self.addCleanup(machine.wait)
        self.addCleanup(machine.kill)
        again = (("link", "add", "tap0", "type", "veth", "peer", "name", "guest0"), ("link", "set", "guest0", "up"),
                 ("link", "set", "tap0", "up"))
        ends = {
            "stop": lambda node: node.call("POST", "/instances/vm-1/stop"),
            "delete": lambda node: node.call("DELETE", "/instances/vm-1"),
            "another tenant's machine": lambda node: node.put_instance("vm-1", tap="tap0", owner="bob",
                                                                       guest_address="198.19.0.3"),
            "process gone": lambda node: machine.kill(),
            "carrier lost": lambda node: ip("link", "set", "guest0", "down"),
            "tap deleted": lambda node: ip("link", "del", "tap0"),
        }
        for name, end in ends.items():
            with self.subTest(name), Portwayd() as node:
                forward = self.put(node, **({"vmm_pid": machine.pid} if name == "process gone" else {}))
                with Stream(node, "POST", f"{forward}/capture?seconds=60") as capture:
                    head = capture.response.read1(24)
                    self.assertEqual(head[:4], struct.pack("=I", 0xA1B23C4D))
                    send_from_guest(b"of the first session")
                    self.assertTrue(wait_until(lambda: b"of the first" in capture.response.read1()))
                    end(node)
                    if name == "carrier lost":
                        ip("link", "set", "guest0", "up")
                    if name == "tap deleted":
                        for command in again:
                            ip(*command)
                    if name not in ("stop", "delete", "another tenant's machine"):
                        self.assertTrue(wait_until(
                            lambda: node.call("GET", "/instances/vm-1").json()["instance"]["state"] == "stopped"))
                    send_from_guest(b"of the next session")
                    rest = capture.rest()
                self.assertIsNotNone(rest, "it continues")
                self.assertNotIn(b"of the next", rest)

    def test_captures_of_a_former_owner_end_when_the_session_is_handed_on(self):
        node = self.start()
        forward = self.put(node, owner="alice")
        of_alice = self.stack.enter_context(Stream(node, "POST", f"{forward}/capture?seconds=60", node.tenant_key("alice")))
        of_admin = self.stack.enter_context(Stream(node, "POST", f"{forward}/capture?seconds=60"))
        self.assertEqual(node.put_instance("vm-1", tap="tap0", owner="bob").status, 200)
        self.assertIsNotNone(of_alice.rest(), "it continues")
        send_from_guest(b"of the next owner")
        self.assertTrue(wait_until(lambda: b"of the next owner" in of_admin.response.read1()))

    def test_a_check_under_way_ends_with_its_session_and_says_so(self):
        ip("address", "add", "198.19.0.1/24", "dev", "tap0")
        self.addCleanup(ip, "address", "flush", "dev", "tap0")
        ip("neighbor", "replace", GUEST, "lladdr", "02:00:00:00:00:77", "dev", "tap0")  # it never answers
        node = self.start()
        forward = self.put(node)
        with Stream(node, "GET", f"{forward}/check") as check:
            node.call("POST", "/instances/vm-1/stop")
            steps = json.loads(check.rest())["check"]["steps"]
        self.assertEqual((steps[-1]["step"], steps[-1]["ok"]), ("guest", False))
        self.assertIn("session ended", steps[-1]["detail"], "it waited for a guest that is no more")

    # --- Guests at the node's own listeners.

    LISTENERS = ("api.listen=[::]:8080", "metrics.listen=[::]:9100")
    LINK_LOCAL, UNLISTED, UNLISTED_V4 = "fe80::1%eth0", "fd00:77::1", "198.51.100.1"

    def test_a_guest_reaches_no_listener_of_the_node_by_whatever_address(self):
        guest = self.stack.enter_context(Guest())
        node = self.start(*self.LISTENERS)
        port = node.port
        for each in (port, 9100):
            self.assertEqual(guest.status(self.LINK_LOCAL, each), 0)
            # Nothing shows yet that it is a guest.
            self.assertEqual(guest.status(self.UNLISTED, each), 200)
            self.assertEqual(guest.status(self.UNLISTED_V4, each), 200)
        early = self.stack.enter_context(guest.talker(self.UNLISTED, port))
        self.assertEqual(guest.ask(early), 200)
        self.assertEqual(node.put_instance("vm-9", tap="tap9").status, 201)
        self.assertEqual(guest.ask(early), 0, "it is one now")
        for each in (port, 9100):
            for address in (self.LINK_LOCAL, self.UNLISTED, self.UNLISTED_V4):
                self.assertEqual(guest.status(address, each), 0, address)
        self.assertEqual(node.call("GET", "/healthz", key=None).status, 200)
        early.stdin.close()

    def test_a_guest_reaches_them_if_that_is_allowed(self):
        guest = self.stack.enter_context(Guest())
        node = self.start(*self.LISTENERS, "api.allow_guests=true")
        node.put_instance("vm-9", tap="tap9")
        for address in (self.LINK_LOCAL, self.UNLISTED):
            self.assertEqual(guest.status(address, node.port), 200)

    def test_each_listener_has_its_own_rule_for_guests(self):
        guest = self.stack.enter_context(Guest())
        listeners = """
[guests]
networks = ["198.18.0.0/15"]
[[api.listen]]
address = "[::]:8080"
[[api.listen]]
address = "[::]:8081"
allow_guests = true
"""
        node = self.stack.enter_context(Portwayd("metrics.listen=[::]:9100", start=False, config=listeners))
        node.settings = [each for each in node.settings if not each.startswith("api.listen=")]
        node.start()
        self.assertEqual(node.put_instance("vm-9", tap="tap9").status, 201)
        for address in (self.LINK_LOCAL, self.UNLISTED, self.UNLISTED_V4):
            statuses = [guest.status(address, port) for port in (8080, 8081, 9100)]
            self.assertEqual(statuses, [0, 200, 0], address)

    def test_networks_that_a_reload_adds_are_refused_at_once(self):
        guest = self.stack.enter_context(Guest())
        networks = "[guests]\nnetworks = [\"198.18.0.0/15\"{}]\n"
        node = self.stack.enter_context(Portwayd(*self.LISTENERS, config=networks.format("")))
        connected = self.stack.enter_context(guest.talker(self.UNLISTED, node.port))
        self.assertEqual(guest.ask(connected), 200)
        open_before = self.open_connections(node)
        node.write_config(networks.format(", \"fd00:77::/64\""))
        node.reload()
        self.assertLess(self.open_connections(node), open_before, "also one that is silent")
        self.assertEqual(guest.ask(connected), 0)
        self.assertEqual(guest.status(self.UNLISTED, node.port), 0)
        self.assertEqual(guest.status(self.UNLISTED, 9100), 0)
        connected.stdin.close()

    @staticmethod
    def open_connections(node):
        metrics = node.call("GET", "/metrics?scope=node").body.decode()
        return int(re.search(r"^portway_api_connections (\d+)$", metrics, re.MULTILINE)[1])

    # --- Shares.

    def test_one_tenants_streams_lock_out_nobody(self):
        node = self.start()
        alice = node.tenant_key("alice")
        streams = [self.stack.enter_context(Stream(node, "GET", "/events", alice)) for _ in range(64)]
        opened = sum(stream.response.status == 200 for stream in streams)
        self.assertEqual(opened, 6, "of one kind")
        self.assertEqual({stream.response.status for stream in streams}, {200, 429})
        self.assertEqual(self.stack.enter_context(Stream(node, "GET", "/events")).response.status, 200)
        bob = node.tenant_key("bob")
        self.assertEqual(self.stack.enter_context(Stream(node, "GET", "/events", bob)).response.status, 200)
        streams[0].connection.close()
        streams[0].response.close()

        def room_again():
            with Stream(node, "GET", "/events", alice) as another:
                return another.response.status == 200
        self.assertTrue(wait_until(room_again))


if __name__ == "__main__":
    unittest.main()

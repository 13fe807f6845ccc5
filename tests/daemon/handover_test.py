"""Connections outlive their daemon: killed with SIGKILL, or replaced by an upgrade (SIGUSR2), again and again under load.
Each stream is whole, and in order. Guests and clients are in network namespaces of their own.

PORTWAY_ROUNDS: how many times of each kind (10, fewer with sanitizers); PORTWAY_SEED: of the times between them.
"""
import contextlib
import ctypes
import hashlib
import json
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.moments import DIVISOR, SEED  # noqa: E402
from tests.support.namespace import Namespace  # noqa: E402
from tests.support.portwayd import Portwayd, die_with_parent, isolate, wait_until  # noqa: E402

ECHO, SOURCE, SINK, CLOSED = 7000, 7001, 7002, 7003
THROTTLED = "throttled"  # another forward to SOURCE
ROUNDS = int(os.environ.get("PORTWAY_ROUNDS", str(max(1, 10 // DIVISOR))))
PIECE = 65536


def pieces(seed, size):
    generator = random.Random(seed)
    while size > 0:
        yield generator.randbytes(min(size, PIECE))
        size -= min(size, PIECE)


def digest_of(seed, size):
    whole = hashlib.sha256()
    for piece in pieces(seed, size):
        whole.update(piece)
    return whole.digest()


# --- The guest.

def serve_echo(connection):
    while data := connection.recv(PIECE):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def serve_source(connection):
    """Sends what it is asked for, then ends."""
    seed, size = struct.unpack("!QQ", connection.recv(16, socket.MSG_WAITALL))
    for piece in pieces(seed, size):
        connection.sendall(piece)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)


def serve_sink(connection):
    """Says what it got once its client has ended: the connection is half-closed then."""
    got = hashlib.sha256()
    while data := connection.recv(PIECE):
        got.update(data)
        if b"slow" in data[:4]:
            time.sleep(0.01)  # a slow guest
    connection.sendall(got.digest())


def run_guest():
    def serve(port, service):
        def one(connection):
            with connection, contextlib.suppress(OSError):
                service(connection)
        listener = socket.create_server(("0.0.0.0", port), backlog=1000)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=one, args=(connection,), daemon=True).start()
    for port, service in ((SOURCE, serve_source), (SINK, serve_sink)):
        threading.Thread(target=serve, args=(port, service), daemon=True).start()
    threading.Thread(target=serve, args=(ECHO, serve_echo), daemon=True).start()
    print("ready", flush=True)
    while sys.stdin.readline() == "open\n":
        with socket.create_server(("0.0.0.0", CLOSED)) as listener:
            print("open", flush=True)
            listener.settimeout(0.01)
            while not select.select([sys.stdin], [], [], 0)[0]:
                with contextlib.suppress(TimeoutError):
                    listener.accept()[0].close()
        sys.stdin.readline()
        print("closed", flush=True)


# --- The clients.

class Clients:
    def __init__(self, address, ports):
        self.address, self.ports = address, ports
        self.stopped = False
        self.counts, self.errors, self.pauses = {}, [], []

    def connect(self, service):
        return socket.create_connection((self.address, self.ports[service]), timeout=60)

    def run(self, kind, number):
        def loop():
            turn = 0
            try:
                while not self.stopped:
                    getattr(self, kind)(number, turn)
                    turn += 1
            except (OSError, AssertionError) as error:
                self.errors.append(f"{kind} {number}, turn {turn}: {error!r}")
            self.counts[kind] = self.counts.get(kind, 0) + turn
        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    def ping(self, _number, _turn):
        """One connection for all of the test."""
        with self.connect(ECHO) as connection:
            while not self.stopped:
                message, began = os.urandom(64), time.monotonic()
                connection.sendall(message)
                assert connection.recv(64, socket.MSG_WAITALL) == message
                self.pauses.append(time.monotonic() - began)

    def idle(self, number, _turn):
        """It says nothing until the end."""
        with self.connect(ECHO) as connection:
            while not self.stopped:
                time.sleep(0.05)  # says nothing
            message = b"%d" % number * 100
            connection.sendall(message)
            assert connection.recv(len(message), socket.MSG_WAITALL) == message

    def throttled(self, number, turn):
        self.download(number, turn, THROTTLED, 3_000_000)

    def download(self, number, turn, service=SOURCE, size=30_000_000):
        seed = number * 1000 + turn
        with self.connect(service) as connection:
            connection.sendall(struct.pack("!QQ", seed, size))
            if number == 2:
                connection.shutdown(socket.SHUT_WR)  # it is half-closed from now on
            got, count = hashlib.sha256(), 0
            while data := connection.recv(PIECE):
                got.update(data)
                count += len(data)
                if number % 2:
                    time.sleep(0.0005)  # a slow reader: bytes wait in the relay
            assert (count, got.digest()) == (size, digest_of(seed, size)), f"{count} of {size} bytes"

    def upload(self, number, turn):
        seed, size = number * 1000 + turn, 30_000_000
        with self.connect(SINK) as connection:
            for piece in pieces(seed, size):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            got = connection.recv(32, socket.MSG_WAITALL)
            assert got == digest_of(seed, size), f"the guest got something else ({len(got)})"

    def short(self, _number, _turn):
        """Connections being made all the time."""
        with self.connect(ECHO) as connection:
            connection.sendall(b"x")
            got = connection.recv(1)
            assert got == b"x", "ended"


def run_clients():
    address, ports = json.loads(sys.stdin.readline())
    clients = Clients(address, {int(service) if service.isdigit() else service: port for service, port in ports.items()})
    threads = [clients.run(kind, number) for kind, count in
               (("ping", 3), ("idle", 20), ("download", 3), ("upload", 2), ("throttled", 1), ("short", 3)) for number in range(count)]
    sys.stdin.readline()
    clients.stopped = True
    for thread in threads:
        thread.join(60)
    pauses = sorted(clients.pauses)
    print(json.dumps({"counts": clients.counts, "errors": clients.errors, "alive": sum(t.is_alive() for t in threads),
                      "worst_ms": round(1000 * pauses[-1]), "pings": len(pauses)}), flush=True)
    os._exit(0)


# --- The test.

# Knocks again and again, and prints how it ended where that differs from the time before; "." answers a line of its input.
KNOCK = """
import select, socket, sys
def knock():
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as connection:
            return "served" if connection.recv(1) == b"" else "data"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "unanswered"
last = None
while True:
    asked = select.select([sys.stdin], [], [], 0.02)[0]
    if asked and not sys.stdin.readline():
        break
    ended = knock()
    if ended != last:
        print(ended)
        last = ended
    if asked:
        print(".")
    sys.stdout.flush()
"""


class Knocker:
    """A client that comes again and again, in that process's network namespace, or in this one's."""

    def __init__(self, pid, address):
        enter = ["nsenter", "-t", str(pid), "-n"] if pid else []
        self.process = subprocess.Popen([*enter, sys.executable, "-c", KNOCK, address[0], str(address[1])], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=die_with_parent)
        self.ended = []

    def outcomes(self):
        """How its attempts have ended until now: each time, where that differs from the time before."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while (line := self.process.stdout.readline()) != ".\n":
            assert line, "the client has ended"
            self.ended.append(line.strip())
        return self.ended

    def forget(self):
        self.ended = self.outcomes()[-1:]

    def end(self):
        guest.end(self.process)


class HandoverTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        isolate()
        cls.guest = guest.start_guest(__file__)

    @classmethod
    def tearDownClass(cls):
        guest.end(cls.guest)

    def start_clients(self):
        clients = guest.start_clients(__file__)
        self.addCleanup(guest.end_clients, clients)
        return clients

    def outlive(self, backend, source_mode, disturb):
        """Clients notice nothing of ROUNDS disturbances."""
        generator = random.Random(SEED)
        clients = self.start_clients()
        with Portwayd("node.public_addresses=198.18.0.1", f"proxy.io_backend={backend}", "proxy.workers=2",
                      f"proxy.source_mode={source_mode}") as node:
            node.put_instance("vm-1", tap="tap0")
            ports = {}
            for service, body in ((ECHO, {}), (SOURCE, {}), (SINK, {}), (THROTTLED, {"max_bytes_per_second": 1_000_000})):
                answer = node.call("POST", "/instances/vm-1/port-forwards",
                                   {"guest_port": SOURCE if service == THROTTLED else service, **body})
                self.assertEqual(answer.status, 201, answer)
                ports[service] = answer.json()["port_forward"]["host_port"]
            clients.stdin.write(json.dumps(["198.18.0.1", ports]) + "\n")
            clients.stdin.flush()
            for _ in range(ROUNDS):
                time.sleep(generator.uniform(0.1, 0.6))  # the load is at another point each time
                disturb(node)
            time.sleep(0.5)  # of load on the last process
            clients.stdin.write("end\n")
            clients.stdin.flush()
            result = json.loads(clients.stdout.readline())
            print(backend, source_mode, result)
            self.assertEqual(result["errors"], [], node.output()[-4000:])
            self.assertEqual(result["alive"], 0)
            self.assertTrue(all(result["counts"].get(kind) for kind in ("download", "upload", "short")), result)
            said = r"taken over from the daemon before, which [a-z ]+: (\d+) of (\d+) connections"
            taken = [tuple(map(int, each)) for each in re.findall(said, node.output())]
            self.assertEqual(len(taken), ROUNDS)
            self.assertTrue(all(adopted == found for adopted, found in taken), taken)
            listed = node.call("GET", "/instances/vm-1/port-forwards").json()["port_forwards"]
            self.assertEqual({each["host_port"] for each in listed}, set(ports.values()))
            self.assertTrue(wait_until(lambda: self.active(node) == 0), "connections are left over")

    @staticmethod
    def active(node):
        listed = node.call("GET", "/instances/vm-1/port-forwards").json()["port_forwards"]
        return sum(each["connections_active"] for each in listed)

    def test_killed_uring(self):
        self.outlive("uring", "auto", Portwayd.kill_and_start)

    def test_killed_epoll_plain(self):
        self.outlive("epoll", "plain", Portwayd.kill_and_start)

    def test_upgraded_uring(self):
        self.outlive("uring", "auto", Portwayd.upgrade)

    def test_upgraded_epoll_plain(self):
        self.outlive("epoll", "plain", Portwayd.upgrade)

    def test_a_successor_may_have_another_configuration(self):
        """Each step changes what the connections rely on; what has no room is reset, and said."""
        steps = (("proxy.workers=3", "proxy.io_backend=epoll"), ("proxy.workers=1", "proxy.io_backend=uring"),
                 ("proxy.workers=2", "proxy.source_mode=plain"), ("proxy.workers=2", "proxy.source_mode=auto"),
                 ("proxy.workers=2", "node.public_addresses=127.0.0.1,::1"))
        with Portwayd("proxy.workers=2") as node:
            node.put_instance("vm-1", tap="tap0")
            port = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO}).json()["port_forward"]["host_port"]
            connections = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(12)]
            settings = node.settings
            for step in steps:
                node.settings = [*settings, *step]
                for connection in connections:
                    connection.sendall(b"a")
                    self.assertEqual(connection.recv(1), b"a")
                    connection.sendall(b"b")
                Portwayd.kill_and_start(node)
                for connection in connections:
                    self.assertEqual(connection.recv(1), b"b")
                with socket.create_connection(("127.0.0.1", port), timeout=30) as another:
                    another.sendall(b"x")
                    self.assertEqual(another.recv(1), b"x")
                self.assertTrue(wait_until(lambda: self.active(node) == len(connections)))
            node.settings = [*settings, "proxy.connections_max=8", "proxy.workers=2"]
            Portwayd.kill_and_start(node)
            ends = [self.end_of(connection) for connection in connections]
            self.assertEqual(sorted(ends), ["goes on"] * 8 + ["reset"] * 4)
            self.assertIn("4 reset (connections_max)", node.output())
            for connection in connections:
                connection.close()

    @staticmethod
    def end_of(connection):
        try:
            connection.sendall(b"x")
            return "goes on" if connection.recv(1) == b"x" else "ended"
        except (ConnectionResetError, BrokenPipeError):
            return "reset"

    def test_an_upgrade_loses_no_line_of_the_access_log(self):
        with Portwayd("proxy.workers=2", start=False) as node:
            log = f"{node.directory}/access.log"
            node.settings.append(f"log.access={log}")
            node.start()
            node.put_instance("vm-1", tap="tap0")
            port = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO}).json()["port_forward"]["host_port"]
            count = 0
            for _ in range(4):
                for _ in range(50):
                    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                        connection.sendall(b"x")
                        self.assertEqual(connection.recv(1), b"x")
                    count += 1
                node.upgrade()

            def lines():
                with open(log, encoding="utf-8") as file:
                    return len(file.readlines())
            self.assertTrue(wait_until(lambda: lines() >= count), f"{lines()} of {count}")
            self.assertEqual(lines(), count)

    def test_no_descriptor_is_left_over_from_process_to_process(self):
        with Portwayd("proxy.workers=2") as node:
            node.put_instance("vm-1", tap="tap0")
            port = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO}).json()["port_forward"]["host_port"]
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                counts = []
                for disturb in (Portwayd.upgrade, Portwayd.kill_and_start) * 4:
                    disturb(node)
                    connection.sendall(b"x")
                    self.assertEqual(connection.recv(1), b"x")
                    node.call("GET", "/v1/node")
                    counts.append(len(os.listdir(f"/proc/{node.process.pid}/fd")))
            self.assertEqual(len(set(counts)), 1, counts)

    def test_an_upgrade_by_the_command_says_what_has_come_of_it(self):
        with Portwayd("api.listen=127.0.0.1:8080") as node:  # in a namespace of this test's own
            events = node.send(f"GET /events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {node.admin_key()}\r\n\r\n".encode(),
                               finish=False)
            events.settimeout(30)
            while b":\n\n" not in events.recv(4096):
                pass
            self.assertIn(f"pid:                 {node.process.pid}", self.portway(node, "status").stdout)
            node.upgrade(lambda: self.upgraded(node))
            status = self.portway(node, "status").stdout
            self.assertIn(f"pid:                 {node.process.pid}", status)
            self.assertIn("end=upgrade", status)
            with contextlib.suppress(ConnectionResetError):
                while events.recv(4096):
                    pass  # it ends with the old process
            events.close()
            stream = node.send(f"GET /events?last_event_id=1-1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {node.admin_key()}"
                               "\r\n\r\n".encode(), finish=False)
            os.rename(f"{node.directory}/admin.key", f"{node.directory}/moved")
            os.mkdir(f"{node.directory}/admin.key")
            failed = self.portway(node, "upgrade", key_file=f"{node.directory}/moved")
            self.assertEqual(failed.returncode, 1, failed)
            self.assertIn("the old one continues", failed.stderr)
            text = b""
            while b"node.upgrade_failed" not in text:
                text += stream.recv(4096)
            stream.close()

    @staticmethod
    def portway(node, verb, key_file=None):
        return subprocess.run([os.environ["PORTWAY_CLIENT"], "--server", f"http://127.0.0.1:{node.port}", "--key-file",
                               key_file or f"{node.directory}/admin.key", "node", verb],
                              capture_output=True, text=True, check=False, timeout=90)

    def upgraded(self, node):
        done = self.portway(node, "upgrade")
        self.assertEqual(done.returncode, 0, done)

    def test_supervised_it_comes_back_by_itself(self):
        with Portwayd(start=False) as node:
            node.start(arguments=["--supervise"])
            node.put_instance("vm-1", tap="tap0")
            answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO}).json()["port_forward"]
            with socket.create_connection(("127.0.0.1", answer["host_port"]), timeout=30) as connection:
                for number in (signal.SIGKILL, signal.SIGUSR2, signal.SIGKILL):
                    connection.sendall(b"x")
                    self.assertEqual(connection.recv(1), b"x")
                    before, begun = node.daemon_below(), node.begun()
                    os.kill(before if number == signal.SIGKILL else node.process.pid, number)
                    self.assertTrue(wait_until(lambda: node.begun() > begun), node.output())
                    self.assertTrue(wait_until(lambda: node.daemon_below() not in (None, before)))
                connection.sendall(b"x")
                self.assertEqual(connection.recv(1), b"x")
            self.assertEqual(node.stop(), 0)

    def test_connections_of_a_deleted_forward_live_on(self):
        with Portwayd("proxy.workers=2") as node:
            node.put_instance("vm-1", tap="tap0")
            answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO}).json()["port_forward"]
            with socket.create_connection(("127.0.0.1", answer["host_port"]), timeout=30) as connection:
                connection.sendall(b"x")
                self.assertEqual(connection.recv(1), b"x")
                path = f"/instances/vm-1/port-forwards/{answer['id']}?connections=keep"
                self.assertEqual(node.call("DELETE", path).status, 204)
                for disturb in (Portwayd.kill_and_start, Portwayd.upgrade, Portwayd.kill_and_start):
                    disturb(node)
                    connection.sendall(b"x")
                    self.assertEqual(connection.recv(1), b"x")
                with self.assertRaises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", answer["host_port"]), timeout=30)
                node.call("POST", "/instances/vm-1/stop")
                with self.assertRaises(ConnectionResetError):
                    connection.recv(1)

    def test_a_connection_that_crashes_its_worker_again_and_again_is_reset(self):
        with Portwayd() as node:
            node.put_instance("vm-1", tap="tap0")
            answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO})
            address = ("127.0.0.1", answer.json()["port_forward"]["host_port"])
            with socket.create_connection(address, timeout=30) as poison, \
                    socket.create_connection(address, timeout=30) as other:
                for crash in (1, 2, 3):
                    for connection in (other, poison):  # the last one that is moved
                        connection.sendall(b"x")
                        self.assertEqual(connection.recv(1), b"x")
                    self.crash_worker(node)
                    node.start()
                    if crash < 3:
                        continue
                    with self.assertRaises(ConnectionResetError):
                        poison.recv(1)
                other.sendall(b"x")
                self.assertEqual(other.recv(1), b"x")
            self.assertIn("1 reset (poison)", node.output())

    @staticmethod
    def crash_worker(node):
        for task in os.listdir(f"/proc/{node.process.pid}/task"):
            with open(f"/proc/{node.process.pid}/task/{task}/comm", encoding="ascii") as file:
                if file.read().startswith("worker-"):
                    # tgkill, x86-64. Sanitizers have a handler of their own for SIGSEGV.
                    ctypes.CDLL(None).syscall(234, node.process.pid, int(task), signal.SIGABRT)
        node.process.wait(30)
        node.kill()

    def test_whom_a_guest_refuses_stays_refused(self):
        """Nobody is accepted and reset because the daemon is another one now."""
        clients = self.start_clients()
        for source_mode in ("plain", "auto"):
            with Portwayd("node.public_addresses=198.18.0.1", "proxy.workers=2", f"proxy.source_mode={source_mode}") as node:
                node.put_instance("vm-1", tap="tap0")
                answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": CLOSED}).json()["port_forward"]
                address = ("198.18.0.1", answer["host_port"])
                # A client that does not come for three seconds is let in: these come all the time.
                knockers = [Knocker(source, address) for source in (None, clients.pid)]
                try:
                    for knocker in knockers:
                        self.assertTrue(wait_until(lambda: knocker.outcomes()[-1] == "refused"), knocker.ended)
                        knocker.forget()
                    for disturb in (Portwayd.kill_and_start, Portwayd.upgrade, Portwayd.kill_and_start):
                        disturb(node)
                        self.assertEqual([each.outcomes() for each in knockers], [["refused"]] * 2)
                    self.ask_guest("open", "open")
                    for knocker in knockers:
                        self.assertTrue(wait_until(lambda: knocker.outcomes()[-1] == "served"), knocker.ended)
                    self.ask_guest("close", "closed")
                finally:
                    for knocker in knockers:
                        knocker.end()

    def ask_guest(self, word, answer):
        self.guest.stdin.write(f"{word}\n")
        self.guest.stdin.flush()
        self.assertEqual(self.guest.stdout.readline(), f"{answer}\n")

    def test_a_connection_that_the_guest_accepts_while_nobody_sees_it_goes_on(self):
        """The guest sees it once: it is not connected again."""
        for source_mode in ("plain", "auto"):
            with Portwayd(f"proxy.source_mode={source_mode}") as node, self.listen_in_guest() as listener:
                node.put_instance("vm-1", tap="tap0")
                answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": listener.getsockname()[1]})
                forward = answer.json()["port_forward"]
                address = ("127.0.0.1", forward["host_port"])
                # The backlog takes one connection. The SYN of the second one is dropped, and repeated after a second.
                with socket.create_connection(address) as first, socket.create_connection(address) as second:
                    path = f"/instances/vm-1/port-forwards/{forward['id']}/connections"
                    self.assertTrue(wait_until(lambda: sorted(
                        each["state"] for each in node.call("GET", path).json()["connections"]) == ["connecting", "established"]))
                    node.kill()
                    with listener.accept()[0] as accepted, listener.accept()[0] as accepted_meanwhile:
                        node.start()
                        for client, guest_end in ((first, accepted), (second, accepted_meanwhile)):
                            for source, sink in ((client, guest_end), (guest_end, client)):
                                source.sendall(b"hello")
                                sink.settimeout(30)
                                self.assertEqual(sink.recv(5, socket.MSG_WAITALL), b"hello")
                        listener.setblocking(False)
                        with self.assertRaises(BlockingIOError):
                            listener.accept()
                self.assertIn(": 2 of 2 connections", node.output())

    def listen_in_guest(self):
        """With a backlog for one connection."""
        with Namespace(self.guest.pid):
            return socket.create_server(("0.0.0.0", 0), backlog=0)

    def test_a_client_of_the_api_sees_its_end_at_once(self):
        with Portwayd() as node, node.send(b"", finish=False) as silent:
            node.call("GET", "/v1/node")  # it was accepted before
            node.kill()
            silent.settimeout(10)  # its keeper waits for 30 s
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(silent.recv(1), b"")

    def test_without_a_successor_connections_are_reset_in_time(self):
        with Portwayd("proxy.handover_timeout_s=1") as node:
            node.put_instance("vm-1", tap="tap0")
            answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO})
            port = answer.json()["port_forward"]["host_port"]
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
            connection.sendall(b"x")
            self.assertEqual(connection.recv(1), b"x")
            began = time.monotonic()
            node.kill()
            with self.assertRaises(ConnectionResetError):
                connection.recv(1)
            self.assertGreater(time.monotonic() - began, 0.9)
            node.start()
            self.assertEqual(self.active(node), 0)

    def test_a_successor_that_does_not_begin_changes_nothing(self):
        with Portwayd() as node:
            node.put_instance("vm-1", tap="tap0")
            answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO})
            port = answer.json()["port_forward"]["host_port"]
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                os.chmod(f"{node.directory}/admin.key", 0)
                os.rename(f"{node.directory}/admin.key", f"{node.directory}/moved")
                os.mkdir(f"{node.directory}/admin.key")
                node.process.send_signal(signal.SIGUSR2)
                self.assertTrue(wait_until(lambda: "this process continues" in node.output()), node.output())
                connection.sendall(b"x")
                self.assertEqual(connection.recv(1), b"x")
                self.assertIsNone(node.process.poll())


if __name__ == "__main__":
    if "--guest" in sys.argv:
        run_guest()
    elif "--clients" in sys.argv:
        run_clients()
    else:
        unittest.main()

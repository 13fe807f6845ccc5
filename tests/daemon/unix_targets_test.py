"""Forwards that lead to a Unix socket or, through the socket of a Firecracker, to a guest's vsock: what clients and services
see of each other's ends, whom a path can lead to, and what is left behind. On both Io back ends.
"""
import contextlib
import hashlib
import os
import select
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, isolate, wait_until  # noqa: E402

PATIENCE_S = 30
MUCH = 100 * 1024 * 1024
PATH = "/instances/vm-1/port-forwards"


class Service:
    """Serves each connection on a thread with `serve(connection)`; a context."""

    def __init__(self, path, serve, backlog=128):
        self.path = path
        self.serve = serve
        self.errors = []
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(backlog)

    def __enter__(self):
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(PATIENCE_S)
        self.listener.close()
        if kind is None:
            assert not self.errors, self.errors

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE_S)
            threading.Thread(target=self.run, args=(connection,), daemon=True).start()

    def run(self, connection):
        with connection:
            try:
                self.serve(connection)
            except Exception as error:  # of a thread: kept for the test
                self.errors.append(repr(error))


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def read_line(connection):
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise EOFError(line)
        line += byte
    return line


class Firecracker(Service):
    """A VMM's end of a vsock as Firecracker has it: `ports` are the services of the guest."""

    def __init__(self, path, ports):
        super().__init__(path, self.multiplex)
        self.ports = ports
        self.requests = []

    def multiplex(self, connection):
        line = read_line(connection)
        self.requests.append(line)
        serve = self.ports.get(int(line.removeprefix(b"CONNECT ")))
        if serve is None:
            return  # the guest does not listen: the connection is closed
        connection.sendall(b"OK 1073741824\n")
        serve(connection)


def read_all(connection):
    """What came before the end, and the end: "fin" or "reset"."""
    data = b""
    try:
        while piece := connection.recv(1 << 16):
            data += piece
    except (ConnectionResetError, BrokenPipeError):
        return data, "reset"
    return data, "fin"


def read_exactly(connection, size):
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


ROWS = []


def documented(scenario, observed):
    """A row of the table in docs/sockets.md, which the test proves."""
    ROWS.append(f"| {scenario} | {observed} |")
    return lambda test: test


class UnixTargets:
    backend = None

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="portway-sockets-")
        cls.others = tempfile.mkdtemp(prefix="portway-others-")
        cls.node = Portwayd(f"guests.socket_directories={cls.directory}", f"proxy.io_backend={cls.backend}",
                            "profiles.default.max_forwarded_ports=100", "proxy.connect_timeout_ms=800",
                            "proxy.workers=2", f"metrics.listen=unix:{cls.directory}/metrics",
                            f"log.access={cls.directory}/access.log")
        cls.node.put_instance("vm-1", tap="tap0")

    @classmethod
    def tearDownClass(cls):
        cls.node.end()
        shutil.rmtree(cls.directory)
        shutil.rmtree(cls.others)

    def setUp(self):
        self.socket = f"{self.directory}/{self.id().rpartition('.')[2][:60]}"

    def forward(self, status=201, key=None, **fields):
        target = fields.pop("target", {"kind": "unix", "socket": self.socket})
        options = {"key": key} if key else {}
        answer = self.node.call("POST", PATH, {"target": target, **fields}, **options)
        self.assertEqual(answer.status, status, answer)
        return answer.json()["port_forward"] if status == 201 else answer.json()

    def vsock(self, port=3000, **fields):
        return self.forward(target={"kind": "firecracker_vsock", "socket": self.socket, "port": port}, **fields)

    def connect(self, forward):
        return socket.create_connection(("127.0.0.1", forward["host_port"]), timeout=PATIENCE_S)

    def end_of(self, forward):
        """How the node ends a client that sends nothing."""
        try:
            with self.connect(forward) as client:
                return read_all(client)
        except ConnectionResetError:  # before connect(2) had returned
            return b"", "reset"

    def last_log(self, forward):
        def lines():
            with open(f"{self.directory}/access.log", encoding="utf-8") as log:
                return [line for line in log if forward["id"] in line]
        self.assertTrue(wait_until(lines))
        return lines()[-1]

    def check(self, forward):
        answer = self.node.call("GET", f"{PATH}/{forward['id']}/check").json()["check"]
        return answer["ok"], {step["step"]: step["detail"] for step in answer["steps"]}

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.node.process.pid}/fd"))

    # --- Bytes and ends.

    def services(self, serve):
        """A forward to each kind of target, with serve() behind it."""
        with Service(self.socket, serve):
            yield self.forward()
        with Firecracker(self.socket, {3000: serve}):
            yield self.vsock()

    @documented("the client ends first", "the service reads everything and the end, and can still answer; the client "
                "gets the answer, then FIN")
    def test_client_ends_first_and_gets_the_rest(self):
        for forward in self.services(echo):
            with self.connect(forward) as client:
                client.sendall(b"x" * 300_000)
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(client), (b"x" * 300_000, "fin"))

    @documented("the service ends first (`shutdown(SHUT_WR)`)", "the client gets everything, then FIN, and can still "
                "send; the service reads it, then the end")
    def test_service_ends_first_and_gets_the_rest(self):
        got = []

        def serve(connection):
            connection.sendall(b"hello")
            connection.shutdown(socket.SHUT_WR)
            got.append(read_all(connection))
        for forward in self.services(serve):
            with self.connect(forward) as client:
                self.assertEqual(read_all(client), (b"hello", "fin"))
                client.sendall(b"late")
            self.assertTrue(wait_until(lambda: got))
            self.assertEqual(got.pop(), (b"late", "fin"))

    @documented("the client resets", "the service reads what came before, then the end")
    def test_a_reset_of_the_client_ends_the_services_connection(self):
        got = []
        accepted = threading.Event()

        def serve(connection):
            accepted.set()
            got.append(read_all(connection)[0])
        for forward in self.services(serve):
            accepted.clear()
            client = self.connect(forward)
            client.sendall(b"before")
            self.assertTrue(accepted.wait(PATIENCE_S))
            time.sleep(0.05)
            reset(client)
            self.assertTrue(wait_until(lambda: got))
            self.assertEqual(got.pop(), b"before")
            self.assertIn('"side":"client","how":"reset"', self.last_log(forward))

    @documented("the service closes with bytes unread", "the client gets what the service had sent, then ECONNRESET")
    def test_a_service_that_closes_with_unread_data_resets_the_client_after_its_answer(self):
        def serve(connection):
            connection.recv(1)
            connection.sendall(b"answer")
        for forward in self.services(serve):
            with self.connect(forward) as client:
                client.sendall(b"more than it reads")
                self.assertEqual(read_all(client), (b"answer", "reset"))
            self.assertIn('"side":"guest","how":"reset"', self.last_log(forward))

    @documented("the service stops reading (`shutdown(SHUT_RD)`) and still writes", "the client gets everything; it "
                "waits once the buffers are full, and its end or reset reaches the service")
    def test_a_service_that_shuts_its_reading_side_still_answers_and_notices_the_clients_end(self):
        """Its connection stayed until keepalive: nobody read the client any more."""
        leave = threading.Event()
        seen = []

        def serve(connection):
            connection.shutdown(socket.SHUT_RD)
            connection.sendall(b"go")
            leave.wait(PATIENCE_S)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while True:
                    connection.sendall(b"more")
            seen.append("gone")
        for end in ("reset", "close"):
            for forward in self.services(serve):
                with self.subTest(end=end, target=forward["target"]["kind"]):
                    leave.clear()
                    client = self.connect(forward)
                    self.assertEqual(client.recv(2), b"go")
                    for _ in range(3):  # one of them meets the closed side
                        client.sendall(b"not read")
                    if end == "reset":
                        reset(client)
                    else:
                        client.shutdown(socket.SHUT_WR)
                    leave.set()
                    if end == "close":
                        self.assertEqual(read_exactly(client, 400), b"more" * 100)
                        client.close()
                    self.assertTrue(wait_until(lambda: seen, seconds=5))
                    seen.clear()
                    self.assertIn('"side":"client","how":"reset"', self.last_log(forward))

    def test_a_client_that_leaves_a_service_that_reads_and_writes_nothing_is_noticed(self):
        """The service polls for the end of its connection, as a server of long polls does."""
        ends = []

        def serve(connection):
            connection.shutdown(socket.SHUT_RD)
            connection.sendall(b"go")
            poll = select.poll()
            poll.register(connection, 0)  # POLLHUP: both directions have ended
            ends.append(poll.poll(PATIENCE_S * 1000))
        for forward in self.services(serve):
            client = self.connect(forward)
            self.assertEqual(client.recv(2), b"go")
            client.sendall(b"not read")
            reset(client)
            self.assertTrue(wait_until(lambda: ends, seconds=5))
            self.assertTrue(ends.pop())

    def test_a_service_that_stopped_reading_ends_like_one_that_has_bytes_unread(self):
        dropped = threading.Event()

        def serve(connection):
            connection.shutdown(socket.SHUT_RD)
            connection.sendall(b"go")
            dropped.wait(PATIENCE_S)
            connection.sendall(b"answer")
        for forward in self.services(serve):
            dropped.clear()
            with self.connect(forward) as client:
                self.assertEqual(client.recv(2), b"go")
                client.sendall(b"not read")
                self.assertTrue(wait_until(lambda f=forward: self.queued(f) == 0))
                dropped.set()
                self.assertEqual(read_all(client), (b"answer", "reset"))

    def queued(self, forward):
        """Bytes of its one client that the node still has."""
        connections = self.node.call("GET", f"{PATH}/{forward['id']}/connections").json()["connections"]
        return connections[0]["received_queued_bytes"]

    @documented("the client does not read", "the service waits once the buffers are full; the client gets every byte")
    def test_a_client_that_does_not_read_holds_the_service_back_and_gets_every_byte(self):
        sent = []
        block = os.urandom(1 << 16)

        def serve(connection):
            for _ in range(MUCH // len(block)):
                connection.sendall(block)
                sent.append(len(block))
        for forward in self.services(serve):
            sent.clear()
            with self.connect(forward) as client:
                self.assertTrue(wait_until(lambda: sent))
                self.assertFalse(wait_until(lambda: sum(sent) > MUCH // 2, seconds=0.5))
                digest, count = hashlib.sha256(), 0
                while piece := client.recv(1 << 20):
                    digest.update(piece)
                    count += len(piece)
                self.assertEqual(count, MUCH)
                self.assertEqual(digest.digest(), hashlib.sha256(block * (MUCH // len(block))).digest())

    @documented("the service does not read", "the client waits once the buffers are full; the service gets every byte")
    def test_a_service_that_does_not_read_holds_the_client_back_and_gets_every_byte(self):
        go = threading.Event()
        block = os.urandom(1 << 16)
        data = memoryview(block * (MUCH // len(block)))

        def serve(connection):
            go.wait(PATIENCE_S)
            digest, count = hashlib.sha256(), 0
            while piece := connection.recv(1 << 20):
                digest.update(piece)
                count += len(piece)
            connection.sendall(digest.digest() + count.to_bytes(8, "big"))
        for forward in self.services(serve):
            go.clear()
            with self.connect(forward) as client:
                client.settimeout(0.5)
                count = 0
                with self.assertRaises(TimeoutError):
                    while count < MUCH:
                        count += client.send(data[count:count + len(block)])
                self.assertLess(count, MUCH // 2)
                go.set()
                client.settimeout(PATIENCE_S)
                client.sendall(data[count:])
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(client), (hashlib.sha256(data).digest() + MUCH.to_bytes(8, "big"), "fin"))

    def test_two_clients_at_once_each_have_their_own_connection(self):
        for forward in self.services(echo):
            with self.connect(forward) as one, self.connect(forward) as two:
                one.sendall(b"one")
                two.sendall(b"two")
                self.assertEqual((one.recv(9), two.recv(9)), (b"one", b"two"))

    @documented("an urgent byte of the client", "an ordinary byte in the stream")
    def test_an_urgent_byte_arrives_as_an_ordinary_one(self):
        for forward in self.services(echo):
            with self.connect(forward) as client:
                client.sendall(b"a")
                self.assertEqual(client.recv(1), b"a")
                client.send(b"b", socket.MSG_OOB)
                client.sendall(b"c")
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(client), (b"bc", "fin"))

    @documented("the service passes descriptors (SCM_RIGHTS)", "it gets EPERM, and the client the other bytes")
    def test_a_service_that_passes_descriptors_is_refused_and_no_byte_is_lost(self):
        """With one that lingers, whoever closed it would wait: a worker."""
        refused = []
        kernel = tuple(int(part) for part in os.uname().release.split(".")[:2])

        def serve(connection):
            for letter in b"abcdef":
                try:
                    socket.send_fds(connection, [bytes([letter])], [0])
                except PermissionError:
                    refused.append(letter)
                    connection.sendall(bytes([letter]))
            connection.recv(1)
        before = self.descriptors()
        for forward in self.services(serve):
            with self.connect(forward) as client:
                data = b""
                while len(data) < 6:
                    data += client.recv(16)
                self.assertEqual(data, b"abcdef")
                client.sendall(b"x")
            self.node.call("DELETE", f"{PATH}/{forward['id']}?connections=reset")
        self.assertTrue(wait_until(lambda: self.descriptors() <= before))
        self.assertEqual(bool(refused), kernel >= (6, 16))

    def test_many_connections_leave_nothing_behind(self):
        before = None
        for forward in self.services(echo):
            for _ in range(200):
                with self.connect(forward) as client:
                    client.sendall(b"x")
                    self.assertEqual(client.recv(1), b"x")
            self.node.call("DELETE", f"{PATH}/{forward['id']}?connections=reset")
            before = before or self.descriptors()
        self.assertTrue(wait_until(lambda: self.descriptors() <= before))

    # --- Firecracker's handshake.

    def answering(self, *pieces, pause=0.0):
        """A VMM that answers in these pieces, and then waits for the client's end."""
        def serve(connection):
            with contextlib.suppress(ConnectionError, EOFError):
                read_line(connection)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
                connection.recv(1)
        return Service(self.socket, serve)

    def test_the_port_is_asked_for(self):
        with Firecracker(self.socket, {4294967294: echo}) as vmm:
            with self.connect(self.vsock(4294967294)) as client:
                client.sendall(b"x")
                self.assertEqual(client.recv(1), b"x")
            self.assertEqual(vmm.requests, [b"CONNECT 4294967294\n"])

    def test_the_answer_may_come_byte_by_byte(self):
        with self.answering(*[bytes([byte]) for byte in b"OK 1024\nhello"], pause=0.005):
            with self.connect(self.vsock()) as client:
                self.assertEqual(read_exactly(client, 5), b"hello")

    def test_bytes_right_behind_the_answer_are_the_guests(self):
        with self.answering(b"OK 1024\n" + b"h" * 100_000):
            with self.connect(self.vsock()) as client:
                self.assertEqual(read_exactly(client, 100_000), b"h" * 100_000)

    @documented("Firecracker's OK with the guest's first bytes right behind", "the client gets these bytes, and no part "
                "of the answer")
    def test_an_answer_and_the_end_at_once_are_a_connection_that_ends(self):
        def serve(connection):
            read_line(connection)
            connection.sendall(b"OK 1024\nbye")
        with Service(self.socket, serve):
            self.assertEqual(self.end_of(self.vsock()), (b"bye", "fin"))

    @documented("another answer to CONNECT than `OK`, a number and a newline", "connected, then ECONNRESET: "
                "`connect_error`")
    def test_wrong_answers_reset_the_client(self):
        for answer in (b"NO\n", b"OK \n", b"OK x\n", b"OK 1", b"OK 12345678901\n", b"O" * 100, b"OK 1 \n", b"ok 1\n",
                       b"OK 1\r\n", b"\n"):
            with self.subTest(answer), self.answering(answer):
                forward = self.vsock()
                self.assertEqual(self.end_of(forward), (b"", "reset"))
                cause = "connect_timeout" if answer == b"OK 1" else "connect_error"
                self.assertIn(f'"how":"{cause}"', self.last_log(forward))

    def test_an_answer_that_never_ends_resets_the_client(self):
        def serve(connection):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while True:
                    connection.sendall(b"OK 1" * 1000)
        with Service(self.socket, serve):
            self.assertEqual(self.end_of(self.vsock()), (b"", "reset"))

    @documented("no answer to CONNECT within `proxy.connect_timeout_ms`", "connected, then ECONNRESET: "
                "`connect_timeout`")
    def test_silence_resets_the_client_after_the_connect_timeout(self):
        with self.answering():
            forward = self.vsock()
            began = time.monotonic()
            self.assertEqual(self.end_of(forward), (b"", "reset"))
            self.assertGreater(time.monotonic() - began, 0.7)
            self.assertIn('"side":"guest","how":"connect_timeout"', self.last_log(forward))
            ok, steps = self.check(forward)
            self.assertFalse(ok)
            self.assertIn("No answer to CONNECT", steps["guest"])

    @documented("nothing listens on the vsock port (Firecracker closes the connection)", "connected, then ECONNRESET, "
                "every client: `refused`")
    def test_a_port_on_which_nothing_listens_refuses_each_client(self):
        with Firecracker(self.socket, {3000: echo}):
            forward = self.vsock(3001)
            for _ in range(3):
                self.assertEqual(self.end_of(forward), (b"", "reset"))
            self.assertIn('"side":"guest","how":"refused"', self.last_log(forward))
            ok, steps = self.check(forward)
            self.assertFalse(ok)
            self.assertIn("nothing listens on vsock port 3001", steps["guest"])

    def test_a_client_that_leaves_during_the_handshake_leaves_nothing(self):
        with self.answering():
            forward = self.vsock()
            before = self.descriptors()
            for _ in range(20):
                reset(self.connect(forward))
            self.assertTrue(wait_until(lambda: self.descriptors() <= before))

    # --- The socket.

    @documented("there is no socket, or nobody listens on it", "connected, then ECONNRESET, every client: "
                "`refused`. The node does not probe the socket, and does not refuse clients itself")
    def test_without_a_socket_or_a_listener_each_client_is_reset(self):
        forward = self.forward()
        for _ in range(2):
            self.assertEqual(self.end_of(forward), (b"", "reset"))
            self.assertIn('"how":"refused","error":"ENOENT"', self.last_log(forward).replace(',"connect_s"', ""))
        self.assertIn("There is no", self.check(forward)[1]["socket"])
        with Service(self.socket, echo):
            self.assertTrue(self.check(forward)[0])
        self.assertEqual(self.end_of(forward), (b"", "reset"))
        self.assertIn("Nobody listens", self.check(forward)[1]["socket"])
        with Service(self.socket, echo), self.connect(forward) as client:  # and no gate keeps the next one out
            client.sendall(b"x")
            self.assertEqual(client.recv(1), b"x")

    @documented("the path leads over a symbolic link, or to something that is no stream socket", "connected, then "
                "ECONNRESET: `connect_error`")
    def test_nothing_but_a_socket_below_the_directory_is_connected(self):
        forward = self.forward()
        with Service(f"{self.others}/secret", echo) as secret:
            def expect(text):
                self.assertEqual(self.end_of(forward), (b"", "reset"))
                self.assertIn('"how":"connect_error"', self.last_log(forward))
                self.assertIn(text, self.check(forward)[1]["socket"])
                os.unlink(self.socket)
            os.symlink(secret.path, self.socket)
            expect("symbolic link")
            os.symlink("elsewhere", self.socket)
            expect("symbolic link")
            os.mkfifo(self.socket)
            expect("is no socket")
            with open(self.socket, "w", encoding="utf-8"):
                pass
            expect("is no socket")
            datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            datagrams.bind(self.socket)
            expect("is no stream socket")
            datagrams.close()
            os.symlink(self.others, self.socket)  # a directory on the way
            inner = self.forward(target={"kind": "unix", "socket": f"{self.socket}/secret"})
            self.assertEqual(self.end_of(inner), (b"", "reset"))
            self.assertIn("symbolic link", self.check(inner)[1]["socket"])
            os.unlink(self.socket)

    @documented("the socket is one of `portwayd` itself", "connected, then ECONNRESET: `connect_error`")
    def test_a_forward_does_not_lead_into_the_daemon(self):
        forward = self.forward(target={"kind": "unix", "socket": f"{self.directory}/metrics"})
        with contextlib.suppress(ConnectionResetError), self.connect(forward) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertEqual(read_all(client), (b"", "reset"))
        self.assertIn('"how":"connect_error","error":"EPERM"', self.last_log(forward))
        self.assertIn("portwayd itself", self.check(forward)[1]["socket"])

    @documented("the service's backlog is full", "the client waits until there is room")
    def test_clients_wait_for_room_in_a_full_backlog(self):
        service = Service(self.socket, echo, backlog=0)  # room for one
        forward = self.forward()
        clients = [self.connect(forward) for _ in range(5)]
        for i, client in enumerate(clients):
            client.sendall(b"%d" % i)
        time.sleep(0.2)
        with service:
            for i, client in enumerate(clients):
                self.assertEqual(client.recv(1), b"%d" % i)
                client.close()

    def active(self, forward):
        return self.node.call("GET", f"{PATH}/{forward['id']}").json()["port_forward"]["connections_active"]

    @documented("clients wait for room in one backlog, whichever forwards they come through", "they are served in the "
                "order in which they came")
    def test_clients_that_wait_for_one_socket_are_served_in_their_order(self):
        """The newest was served first: those before it had gone to sleep for longer."""
        service = Service(self.socket, echo, backlog=0)
        forwards = [self.forward(), self.forward()]  # on both workers
        clients = []
        for i in range(8):  # few, since they wait for no longer than proxy.connect_timeout_ms
            forward = forwards[i // 2 % 2]
            before = self.active(forward)
            clients.append(self.connect(forward))
            clients[-1].sendall(b"%c" % i)
            self.assertTrue(wait_until(lambda f=forward, n=before: self.active(f) == n + 1))
        served = []
        for _ in clients:
            connection, _ = service.listener.accept()
            connection.settimeout(PATIENCE_S)
            served.append(connection.recv(1)[0])
            connection.close()
        self.assertEqual(served, list(range(8)))
        service.listener.close()
        for client in clients:
            client.close()

    @documented("it stays full for `proxy.connect_timeout_ms`", "connected, then ECONNRESET: `connect_timeout`")
    def test_a_backlog_that_stays_full_is_a_timeout(self):
        service = Service(self.socket, echo, backlog=0)
        forward = self.forward()
        with self.connect(forward):
            time.sleep(0.1)
            self.assertEqual(self.end_of(forward), (b"", "reset"))
            self.assertIn('"how":"connect_timeout"', self.last_log(forward))
            self.assertIn("The backlog of", self.check(forward)[1]["socket"])
        service.listener.close()

    def test_proxy_v2_comes_before_the_clients_bytes(self):
        got = []

        def serve(connection):
            got.append(read_exactly(connection, 28 + 1))
        with Service(self.socket, serve), self.connect(self.forward(source_mode="proxy_v2")) as client:
            port = client.getsockname()[1]
            client.sendall(b"x")
            self.assertTrue(wait_until(lambda: got))
        header = got[0]
        self.assertEqual(header[:12], b"\r\n\r\n\0\r\nQUIT\n")
        self.assertEqual(struct.unpack("!HH", header[24:28])[0], port)
        self.assertEqual(header[28:], b"x")
        got.clear()
        with Firecracker(self.socket, {3000: serve}), self.connect(self.vsock(source_mode="proxy_v2")) as client:
            client.sendall(b"x")
            self.assertTrue(wait_until(lambda: got))
        self.assertEqual(got[0][:12], b"\r\n\r\n\0\r\nQUIT\n")

    # --- The API.

    def test_bad_targets_are_refused(self):
        def refused(target, field, code="invalid_request", status=422, key=None, **fields):
            with self.subTest(target):
                problem = self.forward(status=status, key=key, target=target, **fields)
                self.assertEqual((problem["code"], problem.get("field")), (code, field), problem)
        good = {"kind": "unix", "socket": self.socket}
        refused(good, "target", "forbidden", 403, self.node.tenant_key())
        for path in ("x.sock", "", f"{self.directory}/../x", f"{self.directory}//x", f"{self.directory}/./x",
                     f"{self.directory}/", self.directory, f"{self.directory}x/y", "/", f"{self.others}/x",
                     f"{self.directory}/" + "x" * 100, f"{self.directory}/a\nb", f"{self.directory}/a\0b"):
            refused({"kind": "unix", "socket": path}, "target.socket")
        refused({"kind": "unix"}, "target.socket")
        refused({"kind": "unix", "socket": 1}, "target.socket")
        refused({"kind": "pipe", "socket": self.socket}, "target.kind")
        refused({"socket": self.socket}, "target.kind")
        refused("x", "target")
        refused({**good, "port": 1}, "target.port", "unknown_field")
        refused({"kind": "tcp", "socket": self.socket}, "target.socket", "unknown_field", guest_port=3000)
        vsock = {"kind": "firecracker_vsock", "socket": self.socket}
        refused(vsock, "target.port")
        for port in (0, 4294967295, -1, "x"):
            refused({**vsock, "port": port}, "target.port", "invalid_port")
        refused(good, "guest_port", "invalid_port", guest_port=3000)
        refused({"kind": "tcp"}, "guest_port")
        refused(good, "source_mode", source_mode="transparent")
        batch = self.node.call("POST", PATH + ":batch", {"port_forwards": [{"guest_port": 1024}, {"target": {"kind": "x"}}]})
        self.assertEqual(batch.json()["field"], "port_forwards[1].target.kind")

    def test_it_is_shown_as_it_was_made(self):
        made = self.forward()
        self.assertEqual(made["target"], {"kind": "unix", "socket": self.socket})
        self.assertEqual((made["guest_port"], made["source_mode"]), (0, "plain"))
        self.assertNotIn("source_fallback", made)
        self.assertEqual(self.vsock(1)["target"], {"kind": "firecracker_vsock", "socket": self.socket, "port": 1})
        tcp = self.forward(target={"kind": "tcp"}, guest_port=3000)
        self.assertNotIn("target", tcp)
        answer = self.node.call("PATCH", f"{PATH}/{made['id']}", {"source_mode": "transparent"})
        self.assertEqual((answer.status, answer.json()["field"]), (422, "source_mode"))
        answer = self.node.call("POST", f"{PATH}/{made['id']}/capture")
        self.assertEqual((answer.status, answer.json()["field"]), (422, "target"))

    def test_a_tenants_forward_leads_where_its_instance_says(self):
        def put(**target):
            answer = self.node.put_instance("vm-3", tap="tap3", guest_address="198.19.0.4", target={"socket": self.socket, **target})
            self.assertIn(answer.status, (200, 201), answer)

        def create(**fields):
            answer = self.node.call("POST", "/instances/vm-3/port-forwards", fields, key=self.node.tenant_key())
            self.assertEqual(answer.status, 201, answer)
            return answer.json()["port_forward"]

        def greeting(forward):
            with self.connect(forward) as client:
                return client.recv(100)
        put(kind="firecracker_vsock", port=5000)
        by_port, default = create(guest_port=3000), create()
        self.assertEqual((by_port["target"]["port"], default["target"]["port"]), (3000, 5000))
        with Firecracker(self.socket, {3000: lambda each: each.sendall(b"3000"), 5000: lambda each: each.sendall(b"5000")}):
            self.assertEqual((greeting(by_port), greeting(default)), (b"3000", b"5000"))
        put(kind="unix")
        to_socket = create()
        with Service(self.socket, lambda each: each.sendall(b"unix")):
            self.assertEqual(greeting(to_socket), b"unix")
        self.assertEqual(self.node.call("DELETE", "/instances/vm-3").status, 204)

    @documented("the session ends", "the client gets ECONNRESET, the service the end")
    def test_the_sessions_end_resets_clients_and_ends_the_services_connections(self):
        self.node.put_instance("vm-2", tap="tap1", guest_address="198.19.0.3")
        got = []

        def serve(connection):
            connection.sendall(b"x")
            got.append(read_all(connection))
        with Service(self.socket, serve):
            answer = self.node.call("POST", "/instances/vm-2/port-forwards",
                                    {"target": {"kind": "unix", "socket": self.socket}})
            with self.connect(answer.json()["port_forward"]) as client:
                self.assertEqual(client.recv(1), b"x")
                self.assertEqual(self.node.call("DELETE", "/instances/vm-2").status, 204)
                self.assertEqual(read_all(client), (b"", "reset"))
            self.assertTrue(wait_until(lambda: got))
            self.assertEqual(got[0][0], b"")

    def test_metrics_count_the_ends(self):
        with Firecracker(self.socket, {3000: echo}):
            forward = self.vsock(3001)
            self.end_of(forward)
        with socket.socket(socket.AF_UNIX) as scraper:
            scraper.connect(f"{self.directory}/metrics")
            scraper.sendall(b"GET /metrics?scope=forwards HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            text = read_all(scraper)[0].decode()
        self.assertIn(f'portway_forward_connect_errors_total{{forward="{forward["id"]}",reason="refused"}} 1', text)


class OnUring(UnixTargets, unittest.TestCase):
    backend = "uring"


class OnEpoll(UnixTargets, unittest.TestCase):
    backend = "epoll"


class Page(unittest.TestCase):
    def test_has_the_rows_of_the_tests(self):
        path = f"{os.environ['PORTWAY_SOURCE_DIRECTORY']}/docs/sockets.md"
        with open(path, encoding="utf-8") as file:
            before, head, rest = file.read().partition("| what happens | what is observed |\n|---|---|\n")
        table, blank, after = rest.partition("\n\n")
        if "PORTWAY_UPDATE_REFERENCE" in os.environ:
            with open(path, "w", encoding="utf-8") as file:
                file.write(before + head + "\n".join(ROWS) + blank + after)
            return
        self.assertEqual(table.split("\n"), ROWS)


class Restart(unittest.TestCase):
    """A stored forward leads to its socket again, as long as the configuration permits it."""

    def test_it_is_served_again_or_fails_with_the_reason(self):
        directory = tempfile.mkdtemp(prefix="portway-sockets-")
        self.addCleanup(shutil.rmtree, directory)
        path = f"{directory}/a.sock"

        def config(*directories):
            return f'[guests]\nnetworks = ["198.18.0.0/15"]\nsocket_directories = {list(directories)}\n'
        with Portwayd(config=config()) as node, Service(path, echo):
            node.put_instance("vm-1", tap="tap0")
            wanted = {"target": {"kind": "unix", "socket": path}}
            self.assertIn("guests.socket_directories is empty", node.call("POST", PATH, wanted).json()["detail"])
            node.write_config(config(directory))
            node.reload()
            made = node.call("POST", PATH, wanted).json()["port_forward"]
            node.kill()
            node.start()
            again = node.call("GET", f"{PATH}/{made['id']}").json()["port_forward"]
            self.assertEqual((again["target"], again["state"]), (made["target"], "listening"))
            with socket.create_connection(("127.0.0.1", made["host_port"]), timeout=PATIENCE_S) as client:
                client.sendall(b"x")
                self.assertEqual(client.recv(1), b"x")
            node.write_config(config("/nowhere"))
            node.kill()
            node.start()
            failed = node.call("GET", f"{PATH}/{made['id']}").json()["port_forward"]
            self.assertEqual(failed["state"], "failed")
            self.assertIn("below none of the directories for sockets (/nowhere)", failed["reason"])
            node.write_config(config(directory))
            node.reload()
            self.assertTrue(wait_until(
                lambda: node.call("GET", f"{PATH}/{made['id']}").json()["port_forward"]["state"] == "listening"))


if __name__ == "__main__":
    isolate()
    unittest.main()

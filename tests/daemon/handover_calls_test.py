"""The daemon killed at every system call: of the worker that relays, of the successor while it takes over, and of both
processes of an upgrade. Each connection then goes on with every byte once and in order, with the next daemon.

It kills at some of them; with PORTWAY_EVERY_CALL before and after every call (tests/support/moments.py).
"""
import collections
import contextlib
import copy
import http.client
import itertools
import os
import queue
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.calls import Calls, threads_of  # noqa: E402
from tests.support.moments import EVERY_CALL, some_of  # noqa: E402
from tests.support.namespace import Namespace  # noqa: E402
from tests.support.portwayd import Adopted, Ended, Portwayd, children_of, isolate, wait_until  # noqa: E402

# LeakSanitizer ends a process that is traced.
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
PATIENCE = 30  # s, for one step of a connection
GUEST_PORTS = {"plain": 7000, "proxy_v2": 7001, "slow": 7002}
NODE, GUEST = "198.18.0.1", "198.19.0.2"
# Each client has another port as long as there are any: one that the node has in TIME_WAIT for an earlier forward to the
# same guest port would be another port for the guest.
CLIENT_PORTS = itertools.cycle(range(32768, 61000))
RESET_AT_END = struct.pack("ii", 1, 0)


def pattern(seed, size):
    return random.Random(seed).randbytes(size)


def receive(connection, size):
    """That many bytes, or what came before the end."""
    got = bytearray()
    while len(got) < size:
        data = connection.recv(min(size - len(got), 65536))
        if not data:
            break
        got += data
    return bytes(got)


# --- What a client and its guest do. Each step is the consequence of the one before: the calls of the relay are nearly the
# same ones each time.

class Pair:
    """A client and its guest. With a PROXY header or a Unix socket the guest may see a first connection that is reset
    before a byte has come: the relay was killed before it had sent the header, or before the connection had a slot."""

    def __init__(self, network, service):
        self.service = service
        self.listener = network.listeners[service]
        with network.clients:
            self.client = socket.create_connection((NODE, network.ports[service]), timeout=PATIENCE,
                                                   source_address=("", next(CLIENT_PORTS)))
        self.guest = None

    def accept(self):
        if self.guest is not None:
            self.guest.close()
        self.guest, peer = self.listener.accept()
        if self.is_transparent():
            assert peer == self.client.getsockname(), f"the guest sees {peer}, not {self.client.getsockname()}"
        self.guest.settimeout(PATIENCE)

    def is_transparent(self):
        return self.service in ("plain", "slow")

    def begin(self, data):
        """The client's first bytes."""
        self.client.sendall(data)
        wanted = data
        if self.service == "proxy_v2":
            (host, port), (to_host, to_port) = self.client.getsockname(), self.client.getpeername()
            wanted = (b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", 12) + socket.inet_aton(host) +
                      socket.inet_aton(to_host) + struct.pack("!HH", port, to_port) + data)
        while True:
            self.accept()
            try:
                got = receive(self.guest, len(wanted))
            except ConnectionResetError:
                got = None
            assert got is not None or not self.is_transparent(), "reset before the first byte"
            if got is None or (got == b"" and self.service == "unix"):  # which knows no reset
                if self.listener not in select.select([self.listener, self.client], [], [], PATIENCE)[0]:
                    self.client.recv(1)  # it was reset
                continue
            assert got == wanted, f"the guest got {len(got)} of {len(wanted)} bytes, or others"
            return

    def exchange(self, *sizes):
        """Each as many bytes, the client first."""
        for seed, size in enumerate(sizes):
            for sender, receiver in ((self.client, self.guest), (self.guest, self.client)):
                data = pattern(seed, size)
                sender.sendall(data)
                assert receive(receiver, size) == data, "other bytes"

    def close(self):
        for end in (self.client, self.guest):
            if end is not None:
                end.close()


def expect_end(connection, data=b""):
    got = receive(connection, len(data) + 1)
    assert got == data, f"{len(got)} of {len(data)} bytes, or others"


def expect_reset(connection, data=b""):
    got = receive(connection, len(data))
    assert got == data, f"{len(got)} of {len(data)} bytes before the reset, or others"
    try:
        more = connection.recv(1)
    except ConnectionResetError:
        return
    raise AssertionError(f"{more} in place of the reset")


def talk(pair):
    """Messages, which are copied; the client's end comes first."""
    pair.begin(pattern(1, 64))
    pair.exchange(64, 5000)
    pair.client.shutdown(socket.SHUT_WR)
    expect_end(pair.guest)
    answer = pattern(2, 3000)
    pair.guest.sendall(answer)
    pair.guest.close()
    expect_end(pair.client, answer)


def greeting(pair):
    """The guest speaks first, and ends first."""
    words = pattern(3, 200)
    pair.accept()
    pair.guest.sendall(words)
    assert receive(pair.client, len(words)) == words, "another greeting"
    pair.guest.shutdown(socket.SHUT_WR)
    expect_end(pair.client)
    pair.client.sendall(words)
    pair.client.close()
    expect_end(pair.guest, words)


def bulk(pair):
    """Both ways at once, into sinks that are slower: it is spliced, and bytes wait in pipes."""
    pair.begin(b"x")
    size = 600_000

    def send(sender, seed):
        with contextlib.suppress(OSError):  # the receiver sees it
            sender.sendall(pattern(seed, size))
            sender.shutdown(socket.SHUT_WR)
    failed = []

    def read(receiver, seed, sending):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        try:
            sending.join(0.02)  # what it could not send by then waits in front of the relay, and in it
            expect_end(receiver, pattern(seed, size))
        except (OSError, AssertionError) as error:
            failed.append(error)
    threads = []
    for seed, (sender, receiver) in enumerate(((pair.client, pair.guest), (pair.guest, pair.client))):
        sending = threading.Thread(target=send, args=(sender, seed))
        threads += [sending, threading.Thread(target=read, args=(receiver, seed, sending))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def throttled(pair):
    """At 200 kB/s, with a burst of 10 kB."""
    pair.begin(b"x")
    pair.exchange(25_000)
    pair.guest.close()
    expect_end(pair.client)


def reset_after_last(end):
    """What it has sent last."""
    last = pattern(4, 4000)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_END)
    end.sendall(last)
    end.close()
    return last


def guest_resets(pair):
    pair.begin(pattern(1, 64))
    pair.exchange(64)
    expect_reset(pair.client, reset_after_last(pair.guest))


def client_resets(pair):
    pair.begin(pattern(1, 64))
    pair.exchange(64)
    expect_reset(pair.guest, reset_after_last(pair.client))


def half_closed_resets(pair):
    pair.begin(pattern(1, 64))
    pair.exchange(64)
    pair.client.shutdown(socket.SHUT_WR)
    expect_end(pair.guest)
    expect_reset(pair.client, reset_after_last(pair.guest))


def urgent(pair):
    pair.begin(b"x")
    pair.client.send(b"ab", socket.MSG_OOB)
    pair.client.sendall(b"c")
    marked = select.poll()
    marked.register(pair.guest, select.POLLPRI)
    marked.poll(PATIENCE * 1000)
    got = pair.guest.recv(1) + pair.guest.recv(1, socket.MSG_OOB) + pair.guest.recv(1)
    assert got == b"abc", f"{got}"
    pair.guest.close()
    expect_end(pair.client)


# --- The test.

class Network:
    """Clients, the node and its guest, and the listeners of the guest's services."""

    def __init__(self):
        isolate()
        self.clients, self.guests = Namespace(), Namespace()
        subprocess.run(["ip", "link", "add", "net0", "type", "veth", "peer", "name", "client0"], check=True)
        for link, address in (("net0", f"{NODE}/24"), ("tap0", "198.19.0.1/24")):
            subprocess.run(["ip", "address", "add", address, "dev", link], check=True)
            subprocess.run(["ip", "link", "set", link, "up"], check=True)
        self.clients.take("client0", "198.18.0.2/24")
        self.guests.take("guest0", f"{GUEST}/24")
        with self.guests:
            subprocess.run(["ip", "route", "add", "default", "via", "198.19.0.1"], check=True)
            self.listeners = {service: socket.create_server((GUEST, port)) for service, port in GUEST_PORTS.items()}
        self.sockets = tempfile.mkdtemp(prefix="portway-test-")
        self.listeners["unix"] = socket.socket(socket.AF_UNIX)
        self.listeners["unix"].bind(f"{self.sockets}/service")
        self.listeners["unix"].listen()
        for listener in self.listeners.values():
            listener.settimeout(PATIENCE)
        self.ports = {}

    def open_forwards(self, node):
        node.put_instance("vm-1", tap="tap0")
        forwards = {service: {"guest_port": port} for service, port in GUEST_PORTS.items()}
        forwards["proxy_v2"]["source_mode"] = "proxy_v2"
        forwards["slow"]["max_bytes_per_second"] = 200_000
        forwards["unix"] = {"target": {"kind": "unix", "socket": f"{self.sockets}/service"}}
        for service, forward in forwards.items():
            answer = node.call("POST", "/instances/vm-1/port-forwards", forward)
            assert answer.status == 201, answer
            self.ports[service] = answer.json()["port_forward"]["host_port"]


    def close(self):
        for listener in self.listeners.values():
            listener.close()
        shutil.rmtree(self.sockets)


def active(node):
    listed = node.call("GET", "/instances/vm-1/port-forwards").json()["port_forwards"]
    return sum(each["connections_active"] for each in listed)


SCENARIOS = {  # what is played, with which service, and whether a kill may end in a reset (ARCHITECTURE.md)
    "talk": (talk, "plain", False), "greeting": (greeting, "plain", False), "bulk": (bulk, "plain", False),
    "proxied": (talk, "proxy_v2", False), "throttled": (throttled, "slow", False),
    "guest resets": (guest_resets, "plain", False), "client resets": (client_resets, "plain", False),
    "half-closed, guest resets": (half_closed_resets, "plain", True),
    "urgent": (urgent, "plain", True), "unix": (talk, "unix", True)}


def children_named(name):
    """Those that run, of what this process has started and of what became its own."""
    found = []
    for child in children_of(os.getpid()):
        with contextlib.suppress(OSError), open(f"/proc/{child}/stat", encoding="ascii") as file:
            fields = file.read().split()
            if fields[1] == f"({name})" and fields[2] != "Z":
                found.append(child)
    return found


class Connections:
    """One in each state in which a daemon may leave it, for the next one to go on with."""

    def __init__(self, network, node):
        self.network, self.node = network, node
        self.idle, self.full, self.half_closed, self.in_hand = (Pair(network, "plain") for _ in range(4))
        for pair in (self.idle, self.full, self.half_closed, self.in_hand):
            pair.begin(pattern(1, 64))
        self.waiting = None
        self.sent = pattern(5, 300_000)
        self.sender = threading.Thread(target=self.fill)
        self.sender.start()
        self.half_closed.client.shutdown(socket.SHUT_WR)
        expect_end(self.half_closed.guest)

    def fill(self):
        with contextlib.suppress(OSError):
            self.full.guest.sendall(self.sent)

    def kill(self):
        """While bytes are in the relay's memory only. Another client then waits to be accepted."""
        calls = Calls(threads_of(self.node.process.pid, "worker-"), "after recvfrom -> 3333")
        self.in_hand.client.sendall(pattern(6, 3333))
        self.node.process.wait(PATIENCE)
        points, killed = calls.result()
        assert killed, points[-9:]
        self.node.kill()
        self.waiting = Pair(self.network, "plain")

    def finish(self):
        if self.waiting is not None:
            assert receive(self.in_hand.guest, 3333) == pattern(6, 3333), "other bytes"
            talk(self.waiting)
        self.idle.exchange(64, 5000)
        self.in_hand.exchange(5000)
        assert receive(self.full.client, len(self.sent)) == self.sent, "other bytes"
        self.full.exchange(64)
        self.half_closed.guest.sendall(b"late")
        self.half_closed.guest.close()
        expect_end(self.half_closed.client, b"late")

    def close(self):
        for pair in (self.idle, self.full, self.half_closed, self.in_hand, self.waiting):
            if pair is not None:
                pair.close()
        self.sender.join()


class HandoverCallsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.network = Network()

    @classmethod
    def tearDownClass(cls):
        cls.network.close()

    def start(self, backend):
        return Portwayd(f"node.public_addresses={NODE}", f"proxy.io_backend={backend}", "proxy.busy_poll_us=0",
                        f"guests.socket_directories={self.network.sockets}")

    def kill_everywhere(self, what, run, at_most):
        """`run(point)` returns all points that it has seen, whether there was a kill, and what came of it. Prints how often
        that was, and at which calls connections were reset."""
        points, _, outcome = run(0)
        self.assertEqual(outcome, "goes on", f"{what} without a kill")
        count = len(points)
        every = range(1, count + count // 10)  # a run may have some more
        outcomes = collections.defaultdict(list)
        for point in every if EVERY_CALL else some_of(range(1, count + 1), at_most, what):
            points, killed, outcome = run(point)
            outcomes[outcome].append(points[-1] if killed else "the end")
        ends = sum(where.count("the end") for where in outcomes.values())
        print(f"{what}: {count} points, killed at {sum(map(len, outcomes.values())) - ends}:",
              {outcome: len(where) for outcome, where in outcomes.items()}, flush=True)
        for outcome in outcomes.keys() - {"goes on"}:
            print(f"  {outcome}: {', '.join(sorted(set(outcomes[outcome])))}")
        return outcomes

    # --- The worker.

    def run_scenario(self, node, name, kill_at):
        scenario, service, _ = SCENARIOS[name]
        ended = queue.Queue()
        failures = []

        def play():
            pair = None
            try:
                pair = Pair(self.network, service)
                scenario(pair)
            except (OSError, AssertionError) as error:
                failures.append(error)
            finally:
                if pair is not None:
                    pair.close()
                # Killed meanwhile, nobody answers, until the next one closes what it does not know.
                view = copy.copy(node)
                view.connection = None
                with contextlib.suppress(OSError, http.client.HTTPException):
                    wait_until(lambda: active(view) == 0)
                view.close_connection()
                ended.put("played")

        def watch(pidfd):
            select.select([pidfd], [], [])
            os.close(pidfd)
            ended.put("killed")
        calls = Calls(threads_of(node.process.pid, "worker-"), kill_at)
        threads = [threading.Thread(target=play), threading.Thread(target=watch, args=(os.pidfd_open(node.process.pid),))]
        for thread in threads:
            thread.start()
        ended.get()
        node.kill()
        points, killed = calls.result()
        said = len(node.output())
        node.start()
        for thread in threads:
            thread.join()
        self.assertTrue(wait_until(lambda: active(node) == 0), f"{name}: a connection is left over, killed {points[-1]}")
        outcome = "goes on"
        if failures:
            reasons = re.findall(r"1 reset \((\w+)\)", node.output()[said:])
            may_be_short = isinstance(failures[0], OSError) or service == "unix"
            outcome = f"reset ({reasons[0]})" if reasons and may_be_short else repr(failures[0])
        return points, killed, outcome

    def kill_worker(self, backend):
        with self.start(backend) as node:
            self.network.open_forwards(node)
            for name, (_, _, may_reset) in SCENARIOS.items():
                with self.subTest(name):
                    outcomes = self.kill_everywhere(
                        f"{backend}, {name}", lambda point, name=name: self.run_scenario(node, name, point), 12)
                    allowed = {"goes on"} | ({"reset (unknown)"} if may_reset else set())
                    self.assertLessEqual(outcomes.keys(), allowed, outcomes)

    def test_the_worker_is_killed_uring(self):
        self.kill_worker("uring")

    def test_the_worker_is_killed_epoll(self):
        self.kill_worker("epoll")

    # --- The successor.

    def start_traced(self, node, kill_at):
        """The daemon, killed between its predecessor's descriptors and the time when it is ready."""
        up, down = f"{node.directory}/up", f"{node.directory}/down"
        for path in (up, down):
            if not os.path.exists(path):
                os.mkfifo(path)
        results = []

        def trace():  # the tracing process ends with this thread
            with open(up, encoding="ascii") as file:
                pid = int(file.read())
            calls = Calls([pid], kill_at, begin="recvmsg", end="epoll_wait")
            with open(down, "w", encoding="ascii") as file:
                file.write("\n")
            results.append(calls.result())
        tracing = threading.Thread(target=trace)
        tracing.start()
        with contextlib.suppress(Ended):
            node.start(wrapper=["sh", "-c", f'echo $$ >{up}; read -r _ <{down}; exec "$@"', "sh"])
        tracing.join()
        return results[0]

    def go_on(self, node, connections):
        """What comes of them."""
        outcome = "goes on"
        try:
            connections.finish()
        except (OSError, AssertionError) as error:
            outcome = repr(error)
        connections.close()
        self.assertTrue(wait_until(lambda: active(node) == 0), "a connection is left over")
        # The keeper of a daemon that has ended would keep sockets open that the next one closes.
        self.assertTrue(wait_until(lambda: not children_named("portway-keeper"), 5), "a keeper is left over")
        return outcome

    def run_adoption(self, node, kill_at):
        connections = Connections(self.network, node)
        connections.kill()
        points, killed = self.start_traced(node, kill_at)
        if killed:
            node.start()
        return points, killed, self.go_on(node, connections)

    def test_the_successor_is_killed(self):
        with self.start("auto") as node:
            self.network.open_forwards(node)
            outcomes = self.kill_everywhere("successor", lambda point: self.run_adoption(node, point), 30)
            self.assertEqual(outcomes.keys(), {"goes on"}, outcomes)

    # --- An upgrade.

    def end_of_upgrade(self, node, said):
        """Returns when a daemon serves: the old one, the new one, or the next one, which is started if there is none."""
        def new(words):
            return words in node.output()[said:]
        old = node.process
        continues, serves = "this process continues", "listens on http://"
        self.assertTrue(wait_until(lambda: new(continues) or new(serves) or not children_named("portwayd")))
        node.close_connection()
        if new(continues):
            return
        old.wait(PATIENCE)
        self.assertTrue(wait_until(lambda: new(serves) or not children_named("portwayd")))
        running = children_named("portwayd")
        if not running:
            node.start()
            return
        node.process = Adopted(running[0])
        node.port = int(re.findall(r"listens on http://\S*:(\d+),", node.output())[-1])

    def run_upgrade(self, node, **options):
        connections = Connections(self.network, node)
        pid = node.process.pid
        # Of a confined daemon it is another thread that starts processes.
        calls = Calls(threads_of(pid, "unconfined") if "of_child" in options else [pid], **options)
        said = len(node.output())
        node.process.send_signal(signal.SIGUSR2)
        points, killed = calls.result()
        self.end_of_upgrade(node, said)
        return points, killed, self.go_on(node, connections)

    def test_the_new_process_of_an_upgrade_is_killed(self):
        with self.start("auto") as node:
            self.network.open_forwards(node)
            outcomes = self.kill_everywhere("new process", lambda point: self.run_upgrade(
                node, kill_at=point, begin="recvmsg", end="epoll_wait", of_child="--take-over"), 20)
            self.assertEqual(outcomes.keys(), {"goes on"}, outcomes)

    def test_the_old_process_of_an_upgrade_is_killed(self):
        with self.start("auto") as node:
            self.network.open_forwards(node)
            outcomes = self.kill_everywhere(
                "old process", lambda point: self.run_upgrade(node, kill_at=point), 20)
            self.assertEqual(outcomes.keys(), {"goes on"}, outcomes)


if __name__ == "__main__":
    unittest.main()

"""What a scenario works with: services at the guest, clients, and words for what either of them observes.

Words are the same in every run: times are reported as classes, and a random port only as the client's or not.
"""
import collections
import contextlib
import errno
import fcntl
import hashlib
import os
import random
import select
import socket
import struct
import termios
import threading
import time

from tests.conformance import network as net
from tests.support.portwayd import wait_until

TCP_SAVE_SYN, TCP_SAVED_SYN = 27, 28  # linux/tcp.h
SIOCATMARK = 0x8905
LIMIT_S = 5  # for what must come
SHORT_S = 1  # for what must not
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close(2) sends RST


def name_of(error):
    """Python's own timeouts have no errno and are not ETIMEDOUT."""
    return "timeout" if error.errno is None else errno.errorcode[error.errno]


def count(size):
    return f"{size:,} byte" + ("" if size == 1 else "s")


def within(seconds, *classes):
    """The first class that is not exceeded, e.g. "within 50 ms"."""
    for limit in classes:
        if seconds <= limit:
            return f"within {limit * 1000:.0f} ms" if limit < 1 else f"within {limit:g} s"
    return f"after more than {classes[-1]:g} s"


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def unacknowledged(sock):
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]


def readable(sock):
    """Bytes that wait to be read."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0]


def read_to_end(sock, limit=LIMIT_S):
    """(the bytes, how it ended)."""
    data = bytearray()
    sock.settimeout(limit)
    try:
        while chunk := sock.recv(1 << 20):
            data += chunk
    except OSError as error:
        return bytes(data), f"nothing for {limit:g} s" if error.errno is None else name_of(error)
    return bytes(data), "FIN"


def end_of(sock, limit=LIMIT_S):
    data, end = read_to_end(sock, limit)
    return f"{count(len(data))}, then {end}" if data else end


def send_until_error(sock, limit=LIMIT_S):
    """The errno's name that a sender gets at last."""
    sock.settimeout(limit)
    try:
        while True:
            sock.send(b"x" * 65536)
    except OSError as error:
        return name_of(error)


def exchange(client, guest):
    """A question one way, an answer the other."""
    try:
        for one, other, words in ((client, guest, b"question"), (guest, client, b"answer")):
            one.sendall(words)
            other.settimeout(LIMIT_S)
            got = other.recv(len(words), socket.MSG_WAITALL)
            if got != words:
                return f"got {got!r}"
    except OSError as error:
        return name_of(error)
    return "question and answer"


def pattern(size):
    return random.Random(size).randbytes(size)


def same(sent, got):
    """Compares by digest."""
    if len(sent) != len(got):
        return f"{count(len(got))} of {count(len(sent))}"
    equal = hashlib.sha256(sent).digest() == hashlib.sha256(got).digest()
    return f"{count(len(sent))}, SHA-256 {'equal' if equal else 'DIFFERENT'}"


class Background:
    """Runs a call in a thread; result() waits for what it returns."""

    def __init__(self, call, *arguments):
        self._result = None
        self._thread = threading.Thread(target=self._run, args=(call, *arguments), daemon=True)
        self._thread.start()

    def _run(self, call, *arguments):
        try:
            self._result = call(*arguments)
        except OSError as error:
            self._result = name_of(error)

    def result(self, limit=30):
        self._thread.join(limit)
        return "still running" if self._thread.is_alive() else self._result


class Hammer:
    """A context in which a call is made again and again, whatever comes of it."""

    def __init__(self, call, *arguments):
        self._call, self._arguments = call, arguments
        self._over = threading.Event()

    def _run(self):
        while not self._over.is_set():
            self._call(*self._arguments)

    def __enter__(self):
        self._made = Background(self._run)
        return self

    def __exit__(self, *_):
        self._over.set()
        self._made.result()


def each(times, call, *arguments):
    """What a call has said, and how often."""
    said = collections.Counter(call(*arguments) for _ in range(times))
    return "; ".join(f"{words} ({number} of {times})" for words, number in sorted(said.items()))


def wait_for(words, call, *arguments):
    """The first answer that is the wanted one, or the last."""
    deadline = time.monotonic() + LIMIT_S
    while (said := call(*arguments)) != words and time.monotonic() < deadline:
        pass
    return said


def send_all(sock, data):
    """And FIN."""
    sock.settimeout(30)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def fill(sock):
    """Bytes that a socket takes until it has taken none for half a second."""
    sock.setblocking(False)
    taken = 0
    while select.select([], [sock], [], 0.5)[1]:
        with contextlib.suppress(BlockingIOError):
            taken += sock.send(b"x" * 65536)
    sock.setblocking(True)
    return taken


def drain(receiver, sender):
    """Whether everything that was sent arrives, and then FIN."""
    sender.shutdown(socket.SHUT_WR)
    return read_to_end(receiver)[1] == "FIN"


def up_to(size, *classes):
    """The first class that is not exceeded, e.g. "up to 512 KiB"."""
    for limit in classes:
        if size <= limit:
            return f"up to {limit >> 10} KiB" if limit < 1 << 20 else f"up to {limit >> 20} MiB"
    return f"more than {classes[-1] >> 20} MiB"


def transfer(sender, receiver, data):
    sending = Background(send_all, sender, data)
    got, end = read_to_end(receiver)
    failed = sending.result()
    return f"{same(data, got)}, then {end}" + (f"; the sender: {failed}" if failed else "")


def peer_seen(guest, client):
    """Who the guest thinks it talks to."""
    address, port = guest.getpeername()[:2]
    client_address, client_port = client.getsockname()[:2]
    if address == client_address:
        who = "the client's address"
    else:
        who = "the node's address" if address in net.NODE_ADDRESSES else address
    return f"{who}, {'its port' if port == client_port else 'another port'}"


def icmp_error(code, mtu, source, destination):
    """Of IPv4, "destination unreachable": about a TCP segment that is said to have been sent."""
    quoted = (struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0x4000, 64, socket.IPPROTO_TCP, 0,
                          socket.inet_aton(source[0]), socket.inet_aton(destination[0]))
              + struct.pack("!HHII", source[1], destination[1], 0, 0))
    message = bytearray(struct.pack("!BBHHH", 3, code, 0, 0, mtu) + quoted)
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    message[2:4] = struct.pack("!H", ~total & 0xffff)
    return bytes(message)


class Syn:
    """The SYN that a connection began with, as it came to the guest. The kernel returns it once."""

    def __init__(self, accepted):
        packet = accepted.getsockopt(socket.IPPROTO_TCP, TCP_SAVED_SYN, 512)
        self.dscp, self.ttl = packet[1] >> 2, packet[8]
        options = packet[(packet[0] & 15) * 4 + 20:]
        self.mss = None
        while options and options[0] != 0:
            size = 1 if options[0] == 1 else options[1]
            if options[0] == 2:
                self.mss = struct.unpack("!H", options[2:4])[0]
            options = options[size:]


class Service:
    """A listener at a guest and the forward to it."""

    def __init__(self, listener, forward):
        self.listener, self.forward = listener, forward

    def accept(self):
        return self.listener.accept()[0]


class SocketService(Service):
    """Behind a Unix socket."""

    def __init__(self, listener, forward, vsock_port=None):
        super().__init__(listener, forward)
        self.vsock_port = vsock_port

    def accept(self):
        """For a vsock, what Firecracker does before the guest's service gets the connection."""
        accepted = super().accept()
        if self.vsock_port is not None:
            accepted.settimeout(LIMIT_S)
            request = f"CONNECT {self.vsock_port}\n".encode()
            if accepted.recv(len(request), socket.MSG_WAITALL) != request:
                raise AssertionError("no CONNECT")
            accepted.sendall(b"OK 1073741824\n")
            wait_until(lambda: unacknowledged(accepted) == 0)  # the node has read it
        return accepted


def nobody(service):
    """Whether no connection waits to be accepted."""
    service.listener.settimeout(0)
    try:
        service.accept().close()
    except BlockingIOError:
        return True
    finally:
        service.listener.settimeout(LIMIT_S)
    return False


class Lab:
    """A scenario's view of one subject; a context, at whose end all of its sockets are closed."""

    def __init__(self, subject):
        self.subject, self.network, self.portway = subject, subject.network, subject.portway
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def keep(self, sock):
        self._stack.callback(sock.close)
        return sock

    def listen(self, address, port=0, backlog=128, namespace=None, **options):
        """`options`: names of socket options, e.g. SO_OOBINLINE=1."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.keep((namespace or self.network.namespace_of(address)).socket(family))
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)
        for option, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
        sock.bind((address, port))
        sock.listen(backlog)
        sock.settimeout(LIMIT_S)
        return sock

    def service(self, guest=net.GUEST, backlog=128, fields=None, **options):
        listener = self.listen(guest, backlog=backlog, **options)
        return Service(listener, self.subject.forward(guest, listener.getsockname()[1], **(fields or {})))

    def service_at(self, listener, forward):
        return Service(listener, forward)

    def closed_port(self, guest=net.GUEST):
        listener = self.listen(guest)
        port = listener.getsockname()[1]
        listener.close()
        return port

    def client(self, source=None, port=0, namespace=None, dscp=0, v6=False):
        """A socket that is not connected yet; of the client by default."""
        sock = self.keep((namespace or self.network.client).socket(socket.AF_INET6 if v6 else socket.AF_INET))
        if port:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
        if dscp:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)
        if source or port:
            sock.bind((source or net.CLIENT, port))
        sock.settimeout(LIMIT_S)
        return sock

    @staticmethod
    def connect(sock, address, port, limit=LIMIT_S):
        """What connect(2) says, in words."""
        sock.settimeout(limit)
        try:
            sock.connect((address, port))
        except ConnectionResetError:
            # RST after the handshake, but before connect(2) has looked.
            return "connected, then ECONNRESET"
        except OSError as error:
            return f"no answer in {limit:g} s" if error.errno is None else name_of(error)
        return "connected"

    def outcome(self, forward, sock=None, address=net.PUBLIC, limit=LIMIT_S):
        """Of a client that connects and waits for something to happen."""
        sock = sock or self.client(v6=":" in address)
        result = self.connect(sock, address, forward.host_port, limit)
        if result == "connected":
            result += ", then " + end_of(sock, limit)
        sock.close()
        return result

    def pair(self, service, sock=None, address=net.PUBLIC):
        """(client, guest), connected. Raises when that fails."""
        sock = sock or self.client(v6=":" in address)
        result = self.connect(sock, address, service.forward.host_port)
        if result != "connected":
            raise AssertionError(f"a client that should get through: {result}")
        return sock, self.keep(service.accept())

    def met(self, service, sock=None, address=net.PUBLIC, limit=LIMIT_S):
        """Whom the guest sees when a client connects, or why it does not."""
        sock = sock or self.client(v6=":" in address)
        result = self.connect(sock, address, service.forward.host_port, limit)
        if result != "connected":
            sock.close()
            return result
        try:
            guest = self.keep(service.accept())
            talk = exchange(sock, guest)
        except TimeoutError:
            return "connected, and the guest knows nothing of it"
        return peer_seen(guest, sock) + ("" if talk == "question and answer" else "; " + talk)

    def met_from(self, source, service):
        return self.met(service, self.client(source))

    def say(self, forward, words):
        """To whoever takes the connection, if anybody does."""
        with contextlib.suppress(OSError), self.client() as sock:
            if self.connect(sock, net.PUBLIC, forward.host_port) == "connected":
                sock.sendall(words)

    def read_urgent(self, sock):
        """(the urgent byte as recv(MSG_OOB) gives it, the rest of the stream)."""
        poll = select.poll()
        poll.register(sock, select.POLLPRI)
        poll.poll(LIMIT_S * 1000)
        try:
            urgent = sock.recv(1, socket.MSG_OOB)
        except OSError as error:
            urgent = name_of(error).encode()
        return urgent, read_to_end(sock)[0]


class SocketLab(Lab):
    """Its services are behind Unix sockets (subjects.Sockets)."""

    def listen(self, address, port=0, backlog=128, namespace=None, **options):
        sock = self.keep(socket.socket(socket.AF_UNIX))
        path = port or self.subject.new_path()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(path)
        sock.listen(backlog)
        sock.settimeout(LIMIT_S)
        return sock

    def service_at(self, listener, forward):
        vsock = self.subject.kind == "firecracker_vsock"
        return SocketService(listener, forward, self.subject.VSOCK_PORT if vsock else None)

    def service(self, guest=net.GUEST, backlog=128, fields=None, **options):
        listener = self.listen(guest, backlog=backlog)
        return self.service_at(listener, self.subject.forward(guest, listener.getsockname(), **(fields or {})))

    def closed_port(self, guest=net.GUEST):
        listener = self.listen(guest)
        path = listener.getsockname()
        listener.close()
        return path


def at_mark(sock):
    return struct.unpack("i", fcntl.ioctl(sock, SIOCATMARK, b"\0" * 4))[0] == 1

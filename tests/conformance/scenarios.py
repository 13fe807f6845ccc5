"""What a client and a guest observe, scenario by scenario. Each is a function of a subject (subjects.py) that returns
what was seen, in words that are the same each time: ports become "the same" or "another", times become classes.

Where Portway's words differ from DNAT's, the scenario says why; a difference without a reason fails the test.
"""
import array
import errno
import fcntl
import hashlib
import select
import socket
import struct
import termios
import time

import network as net

PATIENCE_S = 10
SILENCE_S = 1.0  # after which nothing is taken to come any more
TCP_SAVE_SYN, TCP_SAVED_SYN = 27, 28

ALL = []


def scenario(title, why=None):
    """`why`: the reason for a difference."""
    def add(function):
        ALL.append((title, why, function))
        return function
    return add


# --- Machines

def listen(subject, address=net.GUEST, port=0, backlog=128):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = subject.network.namespace_of(address).socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)
    listener.settimeout(PATIENCE_S)
    listener.bind((address, port))
    listener.listen(backlog)
    return listener


def accept(listener):
    connection = listener.accept()[0]
    connection.settimeout(PATIENCE_S)
    return connection


def error_name(error):
    if isinstance(error, TimeoutError):
        return "no answer"
    return errno.errorcode.get(error.errno, str(error))


def connect(namespace, address, port, source_port=0, patience=PATIENCE_S, dscp=0):
    """A socket; raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    client = namespace.socket(family)
    try:
        client.settimeout(patience)
        if dscp:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp)
        if source_port:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("", source_port))
        client.connect((address, port))
        client.settimeout(PATIENCE_S)
        return client
    except OSError:
        client.close()
        raise


class Pair:
    """A forward to a new service of the guest, a client and the guest's end."""

    def __init__(self, subject, guest=net.GUEST, namespace=None, to=net.PUBLIC, forward=None, listener=None, **options):
        self.listener = listener or listen(subject, guest)
        self.forward = forward or subject.forward(guest, self.listener.getsockname()[1])
        self.client = connect(namespace or subject.network.client, to, self.forward.host_port, **options)
        self.guest = accept(self.listener)


def read(connection, size):
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            break
        data += chunk
    return data


def read_to_end(connection):
    """The bytes, and how they ended: FIN, or an error's name."""
    data = bytearray()
    try:
        while True:
            chunk = connection.recv(65536)
            if not chunk:
                return bytes(data), "FIN"
            data += chunk
    except OSError as error:
        return bytes(data), error_name(error)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def wait_delivered(connection):
    unacknowledged = array.array("i", [1])
    deadline = time.monotonic() + PATIENCE_S
    while unacknowledged[0] and time.monotonic() < deadline:
        fcntl.ioctl(connection, termios.TIOCOUTQ, unacknowledged)
        time.sleep(0.001)  # no event tells of acknowledgements


def fate(namespace, address, port, patience=SILENCE_S, **options):
    """Of a client that connects and only listens."""
    try:
        client = connect(namespace, address, port, patience=patience, **options)
    except ConnectionResetError:
        return "connected, then ECONNRESET"  # before connect(2) could tell that the SYN was answered
    except OSError as error:
        return error_name(error)
    client.settimeout(patience)
    data, end = read_to_end(client)
    client.close()
    return "connected, then " + {"FIN": "FIN", "no answer": "silence"}.get(end, end) + (f" after {len(data)} B" if data
                                                                                       else "")


def seen_by_guest(pair):
    """Whose address the guest sees."""
    address, port = pair.guest.getpeername()[:2]
    own_address, own_port = pair.client.getsockname()[:2]
    whose = ("the client's" if address == own_address else
             "the node's" if address in net.NODE_ADDRESSES else "somebody's")
    return f"{whose} address, {'the same' if port == own_port else 'another'} port"


def exchange(pair):
    pair.client.sendall(b"question")
    question = read(pair.guest, 8)
    pair.guest.sendall(b"answer")
    answer = read(pair.client, 6)
    return "both arrive" if (question, answer) == (b"question", b"answer") else f"{question} {answer}"


def saved_syn(connection):
    return connection.getsockopt(socket.IPPROTO_TCP, TCP_SAVED_SYN, 256)


def mss_of(syn):
    options = syn[40:20 + (syn[32] >> 4) * 4]
    while options and options[0]:
        if options[0] == 1:
            options = options[1:]
            continue
        if options[0] == 2:
            return struct.unpack(">H", options[2:4])[0]
        options = options[options[1]:]
    return None


def transfer(sender, receiver, size):
    """Both ends in one thread."""
    data = bytes(range(256)) * (size // 256)
    sent, received, digest = 0, 0, hashlib.sha256()
    sender.setblocking(False)
    receiver.setblocking(False)
    finished = False
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        readable, writable, _ = select.select([receiver], [] if finished else [sender], [], 1)
        if writable:
            if sent < size:
                sent += sender.send(data[sent:sent + 262144])
            else:
                sender.shutdown(socket.SHUT_WR)
                finished = True
        if readable:
            chunk = receiver.recv(262144)
            if not chunk:
                break
            received += len(chunk)
            digest.update(chunk)
    same = digest.digest() == hashlib.sha256(data).digest()
    return f"{received} B, {'intact' if same else 'DIFFERENT'}"


# --- Who is who

@scenario("Question and answer")
def question_and_answer(subject):
    return exchange(Pair(subject))


@scenario("The guest speaks first")
def banner(subject):
    pair = Pair(subject)
    pair.guest.sendall(b"220 welcome")
    return read(pair.client, 11).decode()


@scenario("The client, as the guest sees it")
def client_address(subject):
    return seen_by_guest(Pair(subject))


@scenario("The server, as the client sees it")
def server_address(subject):
    pair = Pair(subject)
    same = pair.client.getpeername() == (net.PUBLIC, pair.forward.host_port)
    return "the address and port that it connected to" if same else str(pair.client.getpeername())


@scenario("The same over IPv6: the client, as the guest sees it")
def client_address_v6(subject):
    return seen_by_guest(Pair(subject, net.GUEST6, to=net.PUBLIC6))


@scenario("One client port to two forwards of one guest port: the second one, as the guest sees it")
def colliding_ports(subject):
    first = Pair(subject, source_port=39000)
    again = subject.forward(net.GUEST, first.listener.getsockname()[1])
    second = Pair(subject, forward=again, listener=first.listener, source_port=39000)
    return seen_by_guest(second) + "; " + exchange(second)


@scenario("The client's port is that of a listener of the node on all addresses",
          "The node's own stack carries the connection, and its port is taken there; the address is the client's.")
def port_of_the_node(subject):
    taken = subject.network.host.socket()
    taken.bind(("0.0.0.0", 0))
    taken.listen(1)
    return seen_by_guest(Pair(subject, source_port=taken.getsockname()[1]))


@scenario("The guest is its own client (hairpin)",
          "Under DNAT the guest answers itself and drops that, unless another rule masquerades. Portway connects from the "
          "node's address.")
def hairpin(subject):
    listener = listen(subject)
    forward = subject.forward(net.GUEST, listener.getsockname()[1])
    try:
        pair = Pair(subject, namespace=subject.network.guest, forward=forward, listener=listener, patience=SILENCE_S)
    except OSError as error:
        return error_name(error)
    return seen_by_guest(pair)


@scenario("Another guest is the client")
def neighbour(subject):
    return seen_by_guest(Pair(subject, namespace=subject.network.neighbour))


@scenario("A program on the node is the client, by the node's address",
          "The client's own socket has the port, on the same machine.")
def local_client(subject):
    pair = Pair(subject, namespace=subject.network.host)
    return seen_by_guest(pair) + "; " + exchange(pair)


@scenario("A program on the node is the client, by 127.0.0.1",
          "A kernel does not route packets from 127.0.0.1 out of a device (route_localnet); Portway connects from the node's "
          "address.")
def loopback_client(subject):
    listener = listen(subject)
    forward = subject.forward(net.GUEST, listener.getsockname()[1])
    try:
        pair = Pair(subject, namespace=subject.network.host, to="127.0.0.1", forward=forward, listener=listener,
                    patience=SILENCE_S)
    except OSError as error:
        return error_name(error)
    return seen_by_guest(pair)


@scenario("An IPv6 client of an IPv4 guest",
          "DNAT cannot translate between the families; Portway can, and the guest sees the node's address.")
def v6_to_v4(subject):
    listener = listen(subject)
    forward = subject.forward(net.GUEST, listener.getsockname()[1])
    try:
        pair = Pair(subject, to=net.PUBLIC6, forward=forward, listener=listener, patience=SILENCE_S)
    except OSError as error:
        return error_name(error)
    return seen_by_guest(pair)


@scenario("rp_filter 0, 1 and 2 on the node")
def rp_filter(subject):
    seen = set()
    for value in (1, 2, 0):
        subject.network.set_rp_filter(value)
        pair = Pair(subject)
        seen.add(seen_by_guest(pair) + ", " + exchange(pair))
    return "; ".join(sorted(seen))


# --- What the SYN tells

@scenario("DSCP of the client's SYN, 0x28, at the guest")
def dscp(subject):
    return hex(saved_syn(Pair(subject, dscp=0x28).guest)[1] & 0xfc)


@scenario("TTL at the guest, of 64 at the client", "Another machine's stack sends the packet: it has not been forwarded.")
def ttl(subject):
    return str(saved_syn(Pair(subject).guest)[8])


@scenario("MSS that the guest is told, where its link has an MTU of 1400 and the client's 1500",
          "The node's stack tells what fits the guest's link; no packet needs a path MTU discovery.")
def mss(subject):
    with subject.network.mtu(1400):
        return str(mss_of(saved_syn(Pair(subject).guest)))


@scenario("4 MiB each way over a link with an MTU of 1400")
def small_mtu(subject):
    with subject.network.mtu(1400):
        up, down = Pair(subject), Pair(subject)
        return f"{transfer(up.client, up.guest, 4 << 20)}; {transfer(down.guest, down.client, 4 << 20)}"


# --- Nobody there

@scenario("The guest's port is closed: the first client",
          "Portway asks the guest only after it has accepted. From then on the node refuses, until the port is open.")
def closed_first(subject):
    closed = subject.forward(net.GUEST, 1)
    return fate(subject.network.client, net.PUBLIC, closed.host_port)


@scenario("The guest's port is closed: the next clients")
def closed_next(subject):
    closed = subject.forward(net.GUEST, 2)
    deadline = time.monotonic() + PATIENCE_S  # the first one's reset and the closing of the listener are not ordered
    while (fate(subject.network.client, net.PUBLIC, closed.host_port) != "ECONNREFUSED"
           and time.monotonic() < deadline):
        pass
    return ", ".join({fate(subject.network.client, net.PUBLIC, closed.host_port) for _ in range(3)})


def time_to_open(subject, port):
    forward = subject.forward(net.GUEST, port)
    for _ in range(2):
        fate(subject.network.client, net.PUBLIC, forward.host_port)
    time.sleep(0.3)  # the intervals between probes are at their longest
    listener = listen(subject, port=port)
    opened = time.monotonic()
    while time.monotonic() < opened + PATIENCE_S:
        try:
            connect(subject.network.client, net.PUBLIC, forward.host_port).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.001)
    listener.close()
    return time.monotonic() - opened


@scenario("It opens again: when clients get through")
def opens_again(subject):
    taken = min(time_to_open(subject, 4000 + i) for i in range(5))  # the machine may be busy with something else
    return "within 100 ms" if taken <= 0.1 else f"after {taken:.1f} s"


@scenario("The guest does not answer at all (it gets 2 s here, proxy.connect_timeout_ms)",
          "Portway has accepted by then. Under DNAT the client retries for two minutes, here after its own 3 s.")
def silent(subject):
    forward = subject.forward(net.SILENT, 80)
    return fate(subject.network.client, net.PUBLIC, forward.host_port, patience=3)


@scenario("The guest's accept queue is full",
          "Portway's own queue takes the client; it waits for the guest there, and is reset after proxy.connect_timeout_ms.")
def full_queue(subject):
    listener = listen(subject, backlog=0)
    forward = subject.forward(net.GUEST, listener.getsockname()[1])
    waiting = connect(subject.network.client, net.PUBLIC, forward.host_port)
    waiting.sendall(b"x")
    wait_delivered(waiting)
    third = fate(subject.network.client, net.PUBLIC, forward.host_port, patience=0.5)
    return f"the client: {third}"


# --- Ends

@scenario("The client ends its half; the guest goes on")
def client_half_close(subject):
    pair = Pair(subject)
    pair.client.sendall(b"all of it")
    pair.client.shutdown(socket.SHUT_WR)
    request, end = read_to_end(pair.guest)
    pair.guest.sendall(b"and the answer")
    pair.guest.close()
    answer, answer_end = read_to_end(pair.client)
    return f"guest: {len(request)} B, {end}; client: {len(answer)} B, {answer_end}"


@scenario("The guest ends its half; the client goes on")
def guest_half_close(subject):
    pair = Pair(subject)
    pair.guest.sendall(b"bye")
    pair.guest.shutdown(socket.SHUT_WR)
    answer, end = read_to_end(pair.client)
    pair.client.sendall(b"one more thing")
    pair.client.close()
    rest, rest_end = read_to_end(pair.guest)
    return f"client: {len(answer)} B, {end}; guest: {len(rest)} B, {rest_end}"


@scenario("The client resets")
def client_resets(subject):
    pair = Pair(subject)
    exchange(pair)
    reset(pair.client)
    return f"guest: {read_to_end(pair.guest)[1]}"


@scenario("The guest resets after 100,000 B that the client reads late")
def guest_resets(subject):
    pair = Pair(subject)
    pair.guest.sendall(bytes(100_000))
    wait_delivered(pair.guest)
    reset(pair.guest)
    poller = select.poll()
    poller.register(pair.client, 0)  # for POLLERR and POLLHUP
    poller.poll(1000 * PATIENCE_S)
    data, end = read_to_end(pair.client)
    return f"client: {len(data)} B, {end}"


@scenario("The guest closes with unread bytes of the client")
def guest_closes_unread(subject):
    pair = Pair(subject)
    pair.client.sendall(bytes(1000))
    select.select([pair.guest], [], [], PATIENCE_S)
    pair.guest.close()
    return f"client: {read_to_end(pair.client)[1]}"


@scenario("The client goes away while the guest sends")
def client_aborts(subject):
    pair = Pair(subject)
    pair.guest.sendall(bytes(1000))
    read(pair.client, 10)
    pair.client.close()
    try:
        while True:
            pair.guest.sendall(bytes(65536))
    except OSError as error:
        name = error_name(error)
    return "guest: " + ("ECONNRESET or EPIPE" if name in ("ECONNRESET", "EPIPE") else name)


@scenario("The client reads nothing for a second, then all of 8 MiB")
def zero_window(subject):
    pair = Pair(subject)
    pair.guest.setblocking(False)
    sent = 0
    data = bytes(range(256)) * 4096
    quiet = time.monotonic() + 1
    while time.monotonic() < quiet:
        if select.select([], [pair.guest], [], 0.1)[1]:
            sent += pair.guest.send(data[sent % len(data):])
            if sent >= 8 << 20:
                break
    pair.client.setblocking(False)
    received, digest, whole = 0, hashlib.sha256(), hashlib.sha256(data * 8)
    while received < 8 << 20:
        readable, writable, _ = select.select([pair.client], [pair.guest] if sent < 8 << 20 else [], [], PATIENCE_S)
        if not readable and not writable:
            break
        if writable:
            sent += pair.guest.send(data[sent % len(data):][:(8 << 20) - sent])
        if readable:
            chunk = pair.client.recv(1 << 20)
            received += len(chunk)
            digest.update(chunk)
    return f"{received} B, {'intact' if digest.digest() == whole.digest() else 'DIFFERENT'}"


@scenario("An urgent byte between others",
          "Portway reads past the urgent mark so that a client cannot stop its relay with it, and passes the byte on as urgent "
          "or in its place.")
def urgent(subject):
    pair = Pair(subject)
    pair.client.sendall(b"a")
    read(pair.guest, 1)
    pair.client.send(b"!", socket.MSG_OOB)
    poller = select.poll()
    poller.register(pair.guest, select.POLLPRI | select.POLLIN)
    poller.poll(1000 * PATIENCE_S)
    pair.client.sendall(b"b")
    pair.client.shutdown(socket.SHUT_WR)
    try:
        out_of_band = pair.guest.recv(1, socket.MSG_OOB).decode()
    except OSError:
        out_of_band = "none"
    stream = read_to_end(pair.guest)[0].decode()
    return f"guest: stream {stream!r}, urgent {out_of_band!r}"


@scenario("200 connections one after another")
def many(subject):
    listener = listen(subject)
    forward = subject.forward(net.GUEST, listener.getsockname()[1])
    good = 0
    for _ in range(200):
        pair = Pair(subject, forward=forward, listener=listener)
        good += exchange(pair) == "both arrive"
        pair.client.close()
        pair.guest.close()
    return f"{good} work"


# --- Life and death of a forward

def deleted(subject, policy):
    pair = Pair(subject)
    exchange(pair)
    subject.delete(pair.forward, connections=policy)
    return pair


@scenario("The forward is deleted: established connections (?connections=keep, the default)")
def delete_keep(subject):
    return exchange(deleted(subject, "keep"))


@scenario("The same with ?connections=drain, after proxy.drain_timeout_s (1 s here)", "On request; DNAT has nothing like it.")
def delete_drain(subject):
    pair = deleted(subject, "drain")
    first = exchange(pair)
    pair.client.settimeout(3)
    return f"{first}; then {read_to_end(pair.client)[1]}"


@scenario("The same with ?connections=reset", "On request; DNAT has nothing like it.")
def delete_reset(subject):
    pair = deleted(subject, "reset")
    pair.client.settimeout(SILENCE_S)
    return read_to_end(pair.client)[1]


@scenario("The forward is deleted: a new client")
def delete_new(subject):
    return fate(subject.network.client, net.PUBLIC, deleted(subject, "keep").forward.host_port)


# --- Beside it

@scenario("The guest's own connection to the outside, from the forwarded port number")
def guests_own(subject):
    pair = Pair(subject)
    outside = listen(subject, net.CLIENT)
    port = pair.listener.getsockname()[1]
    pair.listener.close()  # its socket has the port, for a bind
    own = connect(subject.network.guest, net.CLIENT, outside.getsockname()[1], source_port=port)
    far = accept(outside)
    own.sendall(b"hello")
    return f"{read(far, 5).decode()}, and the forward: {exchange(pair)}"


@scenario("Routed traffic to the guest's forwarded port, beside the forward")
def routed(subject):
    pair = Pair(subject)
    subject.network.client.ip(f"route replace 198.19.0.0/24 via {net.PUBLIC}")
    direct = connect(subject.network.client, net.GUEST, pair.listener.getsockname()[1])
    inside = accept(pair.listener)
    direct.sendall(b"direct")
    return f"{read(inside, 6).decode()}, and the forward: {exchange(pair)}"


# The last one: the guest is gone afterwards.

@scenario("The guest's tap vanishes under an established connection",
          "Under DNAT the client waits for its own time-outs; Portway hears of it and resets: 9 ms "
          "after its end for a virtual machine that is killed.")
def tap_gone(subject):
    pair = Pair(subject)
    exchange(pair)
    subject.network.host.ip("link del tap0")
    pair.client.settimeout(SILENCE_S)
    return read_to_end(pair.client)[1]

"""What is done to a DNAT rule and to Portway alike.

A scenario is a generator of (what is observed, the observation in words). Where Portway's differs from DNAT's, `reasons`
has the reason under what is observed; the test fails without it, and when it is there for nothing.
"""
import contextlib
import hashlib
import select
import signal
import socket
import statistics
import subprocess
import sys
import time

from tests.conformance import network as net
from tests.conformance.lab import (
    LIMIT_S, SHORT_S, Background, Hammer, Service, Syn, at_mark, count, drain, each, end_of, exchange, fill, icmp_error,
    name_of, nobody, pattern, peer_seen, read_to_end, readable, reset, same, send_all, send_until_error, transfer, unacknowledged, up_to,
    wait_for, within)
from tests.conformance.subjects import CONNECT_TIMEOUT_S
from tests.support.portwayd import wait_until

MIB = 1 << 20
SHORT_CONNECTIONS = 1000
PAIRS = 200
SCENARIOS = []

ACCEPTED_FIRST = ("The client is accepted before the guest is asked: Portway connects to the guest only when a client "
                  "is there.")
DNAT_HAS_NONE = "DNAT has nothing like it."


class Scenario:
    def __init__(self, section, title, run, reasons):
        self.section, self.title, self.run, self.reasons = section, title, run, reasons


def scenario(section, title, **reasons):
    """`reasons`: by what is observed, with _ for spaces; `all` stands for whatever differs."""
    def add(run):
        named = {name.replace("_", " "): reason for name, reason in reasons.items()}
        SCENARIOS.append(Scenario(section, title, run, named))
        return run
    return add


# ---- Who talks to whom

@scenario("Who the guest sees", "a client")
def plain(lab):
    service = lab.service()
    client, guest = lab.pair(service)
    yield "talk", exchange(client, guest)
    yield "guest sees", peer_seen(guest, client)
    address, port = client.getpeername()
    yield "client sees", "the public address and port" if (address, port) == (
        net.PUBLIC, service.forward.host_port) else f"{address}, {port}"


@scenario("Who the guest sees", "two clients with the same port")
def same_port(lab):
    lab.network.client.run("ip", "addr", "replace", "198.18.0.3/24", "dev", "eth0")
    service = lab.service()
    for which, source in (("first", net.CLIENT), ("second", "198.18.0.3")):
        yield f"guest sees, {which}", lab.met(service, lab.client(source, 30001))


@scenario("Who the guest sees", "a client whose port a listener of the node has on all addresses",
          guest_sees="The node's kernel does not give an address and port to a connection while a listener holds the "
                     "port on all addresses. Bind such listeners to single addresses, or keep their ports out of "
                     "clients' range.")
def port_of_the_node(lab):
    lab.listen("0.0.0.0", 30002, namespace=lab.network.host)
    yield "guest sees", lab.met(lab.service(), lab.client(net.CLIENT, 30002))


@scenario("Who the guest sees", "one client port through two forwards to the same guest port")
def two_forwards(lab):
    service = lab.service()
    again = Service(service.listener, lab.subject.forward(net.GUEST, service.forward.guest_port))
    yield "guest sees, first", lab.met(service, lab.client(net.CLIENT, 30003))
    yield "guest sees, second", lab.met(again, lab.client(net.CLIENT, 30003))


@scenario("Who the guest sees", "a guest that is its own client (hairpin)",
          guest_sees="The guest would answer itself. DNAT needs a masquerade rule for it; Portway connects from the "
                     "node's address.")
def hairpin(lab):
    yield "guest sees", lab.met(lab.service(), lab.client(namespace=lab.network.guest), limit=SHORT_S)


@scenario("Who the guest sees", "a client on the node, by the public address")
def on_the_node(lab):
    yield "guest sees", lab.met(lab.service(), lab.client(namespace=lab.network.host), limit=SHORT_S)


@scenario("Who the guest sees", "a client on the node, by 127.0.0.1",
          guest_sees="A packet with a loopback address cannot leave the node. DNAT would need route_localnet and a "
                     "masquerade rule; Portway, where 127.0.0.1 is among node.public_addresses, connects from the "
                     "node's address.")
def loopback(lab):
    yield "guest sees", lab.met(lab.service(), lab.client(namespace=lab.network.host), "127.0.0.1", SHORT_S)


@scenario("Who the guest sees", "another guest as client")
def other_guest(lab):
    yield "guest sees", lab.met(lab.service(), lab.client(namespace=lab.network.neighbour))


@scenario("Who the guest sees", "an IPv6 client of an IPv6 guest")
def v6(lab):
    service = lab.service(net.GUEST6)
    yield "guest sees", lab.met(service, address=net.PUBLIC6)


ONE_AT_THE_GUEST = ("For the guest the two would be one connection. conntrack gives the second one another port, and so does "
                    "Portway its own. What a client sends by its own route is not translated: while a forwarded connection "
                    "has the port, the guest takes the SYN for a stray one of that, and does not answer it.")


@scenario("Who the guest sees", "one client port through a forward and by the client's own route to the guest",
          all=ONE_AT_THE_GUEST)
def forward_and_route(lab):
    lab.network.client.run("ip", "route", "replace", net.GUEST, "via", net.PUBLIC)
    service = lab.service()

    def by_route(port):
        sock = lab.client(net.CLIENT, port)
        result = lab.connect(sock, net.GUEST, service.forward.guest_port, CONNECT_TIMEOUT_S / 2)
        if result != "connected":
            return None, result
        accepted = lab.keep(service.accept())
        return (sock, accepted), peer_seen(accepted, sock)

    routed, seen = by_route(30005)
    yield "by the route, first", seen
    yield "the forward, second", lab.met(service, lab.client(net.CLIENT, 30005), limit=CONNECT_TIMEOUT_S / 2)
    yield "the routed connection afterwards", exchange(*routed)
    relayed = lab.pair(service, lab.client(net.CLIENT, 30006))
    yield "the forward, first", peer_seen(relayed[1], relayed[0])
    yield "by the route, second", by_route(30006)[1]
    yield "the forwarded connection afterwards", exchange(*relayed)


OTHER_FAMILY = ("A DNAT rule cannot change the family. Portway connects from the node's address: the client's is of "
                "the other family.")


@scenario("Who the guest sees", "an IPv6 client of an IPv4 guest", guest_sees=OTHER_FAMILY)
def v6_to_v4(lab):
    yield "guest sees", lab.met(lab.service(), address=net.PUBLIC6)


@scenario("Who the guest sees", "an IPv4 client of an IPv6 guest", guest_sees=OTHER_FAMILY)
def v4_to_v6(lab):
    yield "guest sees", lab.met(lab.service(net.GUEST6))


@scenario("Who the guest sees", "a guest with an address of each family")
def dual_stack(lab):
    v4 = lab.service(net.DUAL)
    v6 = Service(lab.listen(net.DUAL6, v4.forward.guest_port), v4.forward)
    yield "guest sees of an IPv4 client", lab.met(v4)
    yield "guest sees of an IPv6 client", lab.met(v6, address=net.PUBLIC6)


@scenario("Who the guest sees", "rp_filter 0, 1 and 2")
def rp_filter(lab):
    service = lab.service()
    for value in (1, 2, 0):
        lab.network.set_rp_filter(value)
        yield f"guest sees, with {value}", lab.met(service)


@scenario("Who the guest sees", "a forward with `source_mode`",
          all="DNAT has one mode only. These are for guests that must not see clients' addresses, or want them in "
              "the stream.")
def source_modes(lab):
    for mode in ("transparent", "plain", "proxy_v2"):
        service = lab.service(fields={"source_mode": mode} if lab.portway else None)
        client, guest = lab.pair(service)
        yield f"guest sees, {mode}", peer_seen(guest, client)
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        yield f"guest reads, {mode}", _told(read_to_end(guest)[0], client, service)


def _told(data, client, service):
    """What a stream begins with, where it is a PROXY protocol header (version 2, TCP over IPv4)."""
    if not data.startswith(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"):
        return data.decode(errors="replace")
    ends = [(socket.inet_ntoa(data[at:at + 4]), int.from_bytes(data[port:port + 2], "big"))
            for at, port in ((16, 24), (20, 26))]
    right = ends == [client.getsockname(), (net.PUBLIC, service.forward.host_port)]
    return f"PROXY header with the client's and the public endpoint, {data[28:].decode()}" if right else str(ends)


@scenario("Who the guest sees", "the client's SYN",
          TTL="The guest's packets come from the node itself, not through it.",
          MSS_with_a_link_of_MTU_1400="The node knows the guest's link, and announces it to the guest; the client's "
                                      "connection keeps to the client's path. With DNAT the ends find the path's MTU "
                                      "by ICMP.")
def syn(lab):
    service = lab.service()
    for dscp in (0, 46):
        _, guest = lab.pair(service, lab.client(dscp=dscp))
        seen = Syn(guest)
        yield f"DSCP, from {dscp}", str(seen.dscp)
    yield "TTL", str(seen.ttl)
    yield "MSS", str(seen.mss)
    with lab.network.mtu(1400):
        client, guest = lab.pair(service)
        yield "MSS with a link of MTU 1400", str(Syn(guest).mss)
        for which, one, other in (("to the guest", client, guest), ("to the client", guest, client)):
            yield f"1 MiB {which} through it", transfer(one, other, pattern(MIB))


# ---- Refusals and silence

@scenario("A guest that does not take connections", "closed port",
          first_client=ACCEPTED_FIRST)
def closed_port(lab):
    forward = lab.subject.forward(net.GUEST, lab.closed_port())
    yield "first client", lab.outcome(forward)
    for _ in range(100):  # the listener is shut right after the first client's reset
        following = lab.outcome(forward)
        if following == "ECONNREFUSED":
            break
    yield "following clients", following
    yield "ten more", ", ".join(sorted({lab.outcome(forward) for _ in range(10)}))


@scenario("A guest that does not take connections", "the service comes up again")
def service_comes_up(lab):
    port = lab.closed_port()
    forward = lab.subject.forward(net.GUEST, port)
    waits = []
    for _ in range(3):
        wait_until(lambda: lab.outcome(forward) == "ECONNREFUSED")
        listener = lab.listen(net.GUEST, port)
        began = time.monotonic()
        wait_until(lambda: lab.connect(lab.client(), net.PUBLIC, forward.host_port) == "connected")
        waits.append(time.monotonic() - began)
        listener.close()
    yield "a client gets through", within(statistics.median(waits), 0.1, 0.5)


@scenario("A guest that does not take connections", "no answer at all",
          client=f"{ACCEPTED_FIRST} It is reset after proxy.connect_timeout_ms, {CONNECT_TIMEOUT_S} s here.")
def silence(lab):
    forward = lab.subject.forward(net.SILENT, 3000)
    began = time.monotonic()
    outcome = lab.outcome(forward, limit=CONNECT_TIMEOUT_S + 0.9)
    took = within(time.monotonic() - began, CONNECT_TIMEOUT_S / 2, CONNECT_TIMEOUT_S + 0.8)
    yield "client", outcome if outcome.startswith("no answer") else f"{outcome}, {took}"


@scenario("A guest that does not take connections", "full accept queue",
          one_more_client=f"{ACCEPTED_FIRST} It is reset after proxy.connect_timeout_ms, {CONNECT_TIMEOUT_S} s here.")
def backlog(lab):
    service = lab.service(backlog=0)  # holds one
    waiting = lab.client()
    yield "client in the queue", lab.connect(waiting, net.PUBLIC, service.forward.host_port)
    wait_until(lambda: _accept_queue(lab, service) == 1)
    yield "one more client", lab.outcome(service.forward, limit=CONNECT_TIMEOUT_S + 0.9)
    late = lab.client()
    connecting = Background(lab.connect, late, net.PUBLIC, service.forward.host_port)
    time.sleep(0.2)  # its SYN is lost under DNAT, which nothing reports; with Portway it is not
    first = lab.keep(service.accept())
    yield "the one in the queue, later", exchange(waiting, first)
    second = lab.keep(service.accept())
    yield "a client while the guest catches up", f"{connecting.result()}; {exchange(late, second)}"


@scenario("A guest that does not take connections", "a service that accepts one connection, and starts late",
          a_client_before_it=ACCEPTED_FIRST)
def accepts_once(lab):
    port = lab.closed_port()
    forward = lab.subject.forward(net.GUEST, port)
    yield "a client before it", lab.outcome(forward)
    listener = lab.listen(net.GUEST, port, backlog=0)
    with Hammer(lab.say, forward, b"hello"):
        accepted = lab.keep(listener.accept()[0])
        listener.close()
        accepted.settimeout(LIMIT_S)
        words = accepted.recv(5, socket.MSG_WAITALL).decode()
    yield "the one that it accepts", f"a client that says {words}" if words else "nobody"
    yield "clients afterwards", wait_for("ECONNREFUSED", lab.outcome, forward)


@scenario("A guest that does not take connections", "a guest's closed port, and the other guest's open one",
          a_client_of_the_closed_one=ACCEPTED_FIRST)
def two_guests(lab):
    closed = lab.subject.forward(net.GUEST, lab.closed_port())
    service = lab.service(net.NEIGHBOUR)
    yield "a client of the closed one", lab.outcome(closed)
    with Hammer(lab.outcome, closed):
        yield "50 clients of the other, meanwhile", each(50, lab.met, service)


@scenario("A guest that does not take connections", "a service that listens at one address of a dual-stack guest",
          an_IPv6_client=ACCEPTED_FIRST)
def one_family(lab):
    service = lab.service(net.DUAL)

    def ask():
        return lab.outcome(service.forward, address=net.PUBLIC6)

    yield "an IPv6 client", ask()
    yield "more of them", wait_for("ECONNREFUSED", ask)
    with Hammer(ask):
        yield "50 IPv4 clients, meanwhile", each(50, lab.met, service)


def _accept_queue(lab, service):
    told = lab.network.guest.run("ss", "-Hltn", f"sport = {service.forward.guest_port}").split()
    return int(told[1])


# ---- Guests with a packet filter

OFFICE = "198.18.0.3"  # another address of the client's machine
MODES = ("auto", "transparent")


def _filtered(lab, mode):
    """A service, and the guest's rules that let in its gateway and the office only, what follows being the verdict."""
    lab.network.client.run("ip", "addr", "replace", f"{OFFICE}/24", "dev", "eth0")
    service = lab.service(fields={"source_mode": mode} if lab.portway else None)
    port = service.forward.guest_port
    return service, f"tcp dport {port} ip saddr {{ 198.19.0.1, {OFFICE} }} accept", f"tcp dport {port}"


@scenario("A guest with a packet filter", "that lets in its gateway and an office, and drops the rest",
          all=f"{ACCEPTED_FIRST} It is reset after proxy.connect_timeout_ms, {CONNECT_TIMEOUT_S} s here.")
def drops(lab):
    for mode in MODES:
        service, accept, others = _filtered(lab, mode)
        with lab.network.filter(lab.network.guest, accept, f"{others} drop"):
            limit = CONNECT_TIMEOUT_S + 0.9
            strangers = [Background(lab.outcome, service.forward, None, net.PUBLIC, limit) for _ in range(2)]
            yield f"the office, {mode}", lab.met(service, lab.client(OFFICE))
            yield f"two strangers, {mode}", ", ".join(sorted({one.result() for one in strangers}))
            yield f"another stranger, {mode}", lab.outcome(service.forward, limit=limit)
            yield f"the office again, {mode}", lab.met(service, lab.client(OFFICE))
            yield f"the guest has let in, {mode}", "nobody else" if nobody(service) else "somebody"


@scenario("A guest with a packet filter", "that lets in its gateway and an office, and rejects the rest by RST",
          **{f"a stranger, {mode}": ACCEPTED_FIRST for mode in MODES})
def rejects(lab):
    for mode in MODES:
        service, accept, others = _filtered(lab, mode)
        with lab.network.filter(lab.network.guest, accept, f"{others} reject with tcp reset"):
            yield f"a stranger, {mode}", lab.outcome(service.forward)
            with Hammer(lab.outcome, service.forward):
                yield f"50 clients from the office, while the stranger hammers, {mode}", each(50, lab.met_from, OFFICE, service)
            yield f"the stranger at last, {mode}", wait_for("ECONNREFUSED", lab.outcome, service.forward)
            yield f"the guest has let in, {mode}", "nobody else" if nobody(service) else "somebody"
        yield (f"the stranger, once the guest lets it in, {mode}",
               wait_for("the client's address, its port", lab.met, service))


REFUSALS = {net.GUEST: ("icmp port-unreachable", "icmp admin-prohibited"),
            net.GUEST6: ("icmpv6 port-unreachable", "icmpv6 admin-prohibited")}


def _told_of_a_refusal(lab, forward, address):
    began = time.monotonic()
    outcome = lab.outcome(forward, address=address, limit=CONNECT_TIMEOUT_S)
    # Over veth pairs the first error comes while the SYN's sender still holds its socket, and a client hears only
    # the second one, a second later. Portway asks for the first.
    classes = (0.5, CONNECT_TIMEOUT_S - 0.2) if outcome.startswith("connected") else (CONNECT_TIMEOUT_S - 0.2,)
    return f"{outcome}, {within(time.monotonic() - began, *classes)}"


@scenario("A guest with a packet filter", "that rejects everybody by ICMP",
          **{f"{client}, {how}": ACCEPTED_FIRST for hows in REFUSALS.values() for how in hows
             for client in ("first client", "following clients")
             if client == "first client" or "prohibited" in how})
def rejects_by_icmp(lab):
    for guest, hows in REFUSALS.items():
        public, namespace = (net.PUBLIC6, lab.network.guest6) if ":" in guest else (net.PUBLIC, lab.network.guest)
        for how in hows:
            service = lab.service(guest)
            with lab.network.filter(namespace, f"tcp dport {service.forward.guest_port} reject with {how}"):
                yield f"first client, {how}", _told_of_a_refusal(lab, service.forward, public)
                if "port" in how:
                    wait_for("ECONNREFUSED", lambda: lab.outcome(service.forward, address=public, limit=SHORT_S))
                yield f"following clients, {how}", _told_of_a_refusal(lab, service.forward, public)
            yield (f"once it lets them in, {how}",
                   wait_for("the client's address, its port", lambda: lab.met(service, address=public)))


@scenario("A guest with a packet filter", "that begins to reject by ICMP while a connection is open")
def rejects_what_is_open(lab):
    service = lab.service()
    client, guest = lab.pair(service)
    with lab.network.filter(lab.network.guest,
                            f"tcp dport {service.forward.guest_port} reject with icmp port-unreachable"):
        client.sendall(b"hello")
        wait_until(lambda: unacknowledged(client) == 0 if lab.portway else unacknowledged(client) > 0)
    guest.settimeout(LIMIT_S)
    yield "what was sent meanwhile arrives afterwards", guest.recv(5, socket.MSG_WAITALL).decode()


@scenario("A guest with a packet filter", "that takes 20 connections a second, and rejects the rest by RST")
def limits_the_rate(lab):
    seconds, rate, burst = 4, 20, 5
    service = lab.service(backlog=1000)
    new = f"tcp dport {service.forward.guest_port} ct state new"
    with lab.network.filter(lab.network.guest,
                            f"{new} limit rate over {rate}/second burst {burst} packets reject with tcp reset"):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with lab.client() as sock:
                if lab.connect(sock, net.PUBLIC, service.forward.host_port) == "connected":
                    end_of(sock, 0.01)  # a reset, or nothing
    served = 0
    while not nobody(service):
        served += 1
    most = seconds * rate + burst
    yield f"a client that always tries again, for {seconds} s", (
        "gets nearly all that the guest gives" if served >= 0.7 * most else f"gets {served} of {most}")


# ---- ICMP

@scenario("ICMP", "an MTU of 1300 behind the guest's tap, which a router reports")
def path_mtu(lab):
    for guest, public, family in ((net.FAR, net.PUBLIC, "IPv4"), (net.FAR6, net.PUBLIC6, "IPv6")):
        client, accepted = lab.pair(lab.service(guest), address=public)
        yield f"1 MiB to the guest, {family}", transfer(client, accepted, pattern(MIB))


@scenario("ICMP", "errors that another guest forges, about the connections of two clients")
def forged_errors(lab):
    lab.network.client.run("ip", "addr", "replace", f"{OFFICE}/24", "dev", "eth0")
    service = lab.service()
    pairs = [lab.pair(service, lab.client(source)) for source in (net.CLIENT, OFFICE)]
    raw = lab.keep(lab.network.neighbour.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    for client, _ in pairs:
        seen, port = client.getsockname(), service.forward.guest_port
        for code, mtu in ((3, 0), (13, 0), (4, 576)):
            raw.sendto(icmp_error(code, mtu, seen, (net.GUEST, port)), (seen[0], 0))
    for which, (client, guest) in zip(("first", "second"), pairs):
        yield f"1 MiB of the {which} client", transfer(client, guest, pattern(MIB))


# ---- Ends

@scenario("How connections end", "the guest ends first")
def guest_ends_first(lab):
    client, guest = lab.pair(lab.service())
    guest.sendall(b"x" * 1000)
    guest.close()
    yield "client", end_of(client)
    client.close()


@scenario("How connections end", "the client ends first")
def client_ends_first(lab):
    client, guest = lab.pair(lab.service())
    client.sendall(b"x" * 1000)
    client.close()
    yield "guest", end_of(guest)


@scenario("How connections end", "one side half-closes, the other continues sending")
def half_close(lab):
    for which, first, second in (("client", 0, 1), ("guest", 1, 0)):
        ends = lab.pair(lab.service())
        ends[first].sendall(b"x" * 1000)
        ends[first].shutdown(socket.SHUT_WR)
        yield f"the other side, after the {which}'s FIN", end_of(ends[second])
        yield f"{which}, afterwards", transfer(ends[second], ends[first], pattern(MIB))


@scenario("How connections end", "one side resets")
def resets(lab):
    for which, first, second in (("client", 0, 1), ("guest", 1, 0)):
        ends = lab.pair(lab.service())
        ends[first].sendall(b"x" * 100_000)
        wait_until(lambda: readable(ends[second]) == 100_000)
        reset(ends[first])
        yield f"the other side, {which} resets after 100,000 bytes", end_of(ends[second])
        ends = lab.pair(lab.service())
        reset(ends[first])
        yield f"the other side, {which} resets at once", end_of(ends[second])
        with contextlib.suppress(OSError):
            ends[second].send(b"x")
        yield f"the other side sends, after the {which}'s reset", send_until_error(ends[second])


@scenario("How connections end", "one side goes away while the other sends")
def aborts(lab):
    for which, first, second in (("client", 0, 1), ("guest", 1, 0)):
        for how, leave in (("resets", reset), ("closes with bytes unread", socket.socket.close)):
            ends = lab.pair(lab.service())
            sending = Background(send_until_error, ends[second])
            ends[first].recv(65536)
            wait_until(lambda: readable(ends[first]) > 0)
            began = time.monotonic()
            leave(ends[first])
            result = sending.result()
            yield f"the sender, {which} {how}", f"{result} {within(time.monotonic() - began, 0.2, 1)}"


@scenario("How connections end", "the client closes before it reads the answer")
def closes_early(lab):
    client, guest = lab.pair(lab.service())
    client.close()
    yield "guest reads", end_of(guest)
    yield "guest sends", send_until_error(guest)


# ---- Bytes

@scenario("Bytes", "large transfers")
def large(lab):
    data = pattern(32 * MIB)
    client, guest = lab.pair(lab.service())
    yield "to the guest", transfer(client, guest, data)
    yield "to the client, afterwards", transfer(guest, client, data)
    client, guest = lab.pair(lab.service())
    upload = Background(transfer, client, guest, data)
    download = transfer(guest, client, data)
    yield "both ways at a time", f"{upload.result()}; {download}"


@scenario("Bytes", "who speaks first")
def speaks_first(lab):
    client, guest = lab.pair(lab.service())
    guest.sendall(b"220 ready")
    yield "client, when the guest does", client.recv(100).decode()
    service = lab.service()
    client = lab.client()
    lab.connect(client, net.PUBLIC, service.forward.host_port)
    client.sendall(b"early")
    client.shutdown(socket.SHUT_WR)
    yield "guest, when the client sends and ends before it accepts", end_of(lab.keep(service.accept()))


@scenario("Bytes", "the receiver reads nothing for 2 s (zero window)")
def zero_window(lab):
    data = pattern(32 * MIB)
    for which, sender, receiver in (("client", 1, 0), ("guest", 0, 1)):
        ends = lab.pair(lab.service())
        sending = Background(send_all, ends[sender], data)
        time.sleep(2)  # what is to be seen is that nothing happens meanwhile
        yield f"the sender to the {which}", "waits" if sending.result(0) == "still running" else "is done"
        got, end = read_to_end(ends[receiver])
        sending.result()
        yield f"{which}, when it reads", f"{same(data, got)}, then {end}"


@scenario("Bytes", "the receiver reads nothing, both ends with buffers of 64 KiB")
def held(lab):
    for which, sender, receiver in (("client", 1, 0), ("guest", 0, 1)):
        service = lab.service(**{"SO_SNDBUF": 65536, "SO_RCVBUF": 65536})
        client = lab.client()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            client.setsockopt(socket.SOL_SOCKET, option, 65536)
        ends = lab.pair(service, client)
        yield f"sent to the {which} before the sender must wait", up_to(fill(ends[sender]), 2 * MIB)
        yield f"{which}, when it reads", "all of it" if drain(ends[receiver], ends[sender]) else "NOT ALL"


@scenario("Bytes", "guest's process stopped for 2 s (SIGSTOP)")
def stopped(lab):
    client, guest = lab.pair(lab.service())
    data = pattern(16 * MIB)
    guest.setblocking(True)
    reader = subprocess.Popen([sys.executable, "-c", "import sys, hashlib; d = sys.stdin.buffer.read();"
                               "print(len(d), hashlib.sha256(d).hexdigest())"],
                              stdin=guest, stdout=subprocess.PIPE, text=True)
    try:
        reader.send_signal(signal.SIGSTOP)
        sending = Background(send_all, client, data)
        time.sleep(2)  # how long it is stopped
        reader.send_signal(signal.SIGCONT)
        sending.result()
        size, digest = reader.communicate(timeout=20)[0].split()
    finally:
        reader.kill()
        reader.wait()
    equal = digest == hashlib.sha256(data).hexdigest()
    yield "guest, when it continues", f"{count(int(size))}, SHA-256 {'equal' if equal else 'DIFFERENT'}"


@scenario("Bytes", "urgent data (`abc`, urgent `!`, `def`)")
def urgent(lab):
    for which, sender, receiver in (("guest", 0, 1), ("client", 1, 0)):
        for inline in (False, True):
            ends = lab.pair(lab.service())
            if inline:
                ends[receiver].setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            ends[sender].sendall(b"abc")
            ends[sender].send(b"!", socket.MSG_OOB)
            ends[sender].sendall(b"def")
            ends[sender].shutdown(socket.SHUT_WR)
            yield (f"{which} with SO_OOBINLINE" if inline else which), _urgent(lab, ends[receiver], inline)


def _urgent(lab, sock, inline):
    if not inline:
        byte, rest = lab.read_urgent(sock)
        return f"recv(MSG_OOB) {byte.decode()}, in the stream {rest.decode()}"
    got, mark = b"", None
    sock.settimeout(LIMIT_S)
    wait_until(lambda: readable(sock) >= 4)
    while True:
        if at_mark(sock):
            mark = len(got)
        byte = sock.recv(1)
        if not byte:
            return f"{got.decode()}, the mark after {mark} bytes"
        got += byte


@scenario("Bytes", "a guest that vanishes, its link still up; the client asks by keepalive each second",
          when_the_guest_vanishes="The node answers the client's keepalive, being the other end of its connection. "
                                  "Portway asks the guest by itself (proxy.keepalive_s, 300 s). A guest that has forgotten "
                                  "the connection answers with RST, which the client gets; one that answers nothing may be "
                                  "paused.",
          what_is_sent_then="The node acknowledges what it has accepted for forwarding. Only the guest's own answer shows "
                            "that the guest has it; where it is lost, the client is reset.")
def keepalive(lab):
    service = lab.service(net.NEIGHBOUR)
    client, guest = lab.pair(service)
    sender, _ = lab.pair(service)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 1)):
        client.setsockopt(socket.IPPROTO_TCP, option, value)
    yield "idle for 2.5 s", end_of(client, 2.5)
    yield "talk", exchange(client, guest)
    with lab.network.vanished(lab.network.neighbour):
        yield "when the guest vanishes", end_of(client, 3.5)
        sender.sendall(b"x" * 1000)
        wait_until(lambda: unacknowledged(sender) == 0, SHORT_S)
        yield "what is sent then", "acknowledged" if unacknowledged(sender) == 0 else "not acknowledged"


# ---- What else a node's programs notice

def listens(lab, port):
    """Whether a program of the node may listen there, at all addresses, which shares the port with nobody."""
    with contextlib.closing(lab.network.host.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
            sock.listen()
        except OSError as error:
            return name_of(error)
    return "listens"


def sockets(lab, port, *states):
    """`port`: of the forward, "sport = :N", or of the guest, "dport = :N"."""
    return len(lab.network.host.run("ss", "-Htn", *states, port).splitlines())


@scenario("Side effects on the node", "a client is connected",
          all="Portway is a program: it listens at the forward's port, and has a socket for either side of a connection, where "
              "DNAT has an entry of conntrack.")
def beside_a_connection(lab):
    service = lab.service()
    lab.pair(service, lab.client(net.CLIENT, 30010))
    yield "a program listens at the client's port number", listens(lab, 30010)
    yield "a program listens at the forward's port", listens(lab, service.forward.host_port)
    sock = lab.client("198.19.0.1", 30010, namespace=lab.network.host)
    yield "a program connects to the guest from the client's port number", lab.connect(sock, net.GUEST, service.forward.guest_port)
    yield "sockets to the client", f"{sockets(lab, f'sport = :{service.forward.host_port}', 'state', 'established')}"


@scenario("Side effects on the node", "1,000 connections have ended, half of them by the client",
          all="TCP has the side that ends first keep the port for a minute.")
def after_connections(lab):
    service = lab.service()
    for number in range(SHORT_CONNECTIONS):
        ends = lab.pair(service)
        first, last = ends if number % 2 else reversed(ends)
        first.close()
        read_to_end(last)
        last.close()
    for who, port in ("client", f"sport = :{service.forward.host_port}"), ("guest", f"dport = :{service.forward.guest_port}"):
        wait_for(0, sockets, lab, port, "state", "connected", "exclude", "time-wait")
        yield f"in TIME_WAIT, to the {who}", f"about {round(sockets(lab, port, 'state', 'time-wait'), -2)}"


@scenario("Side effects on the node", "the node's settings",
          routing_rules="Two a family lead guests' answers to clients' addresses to the node's sockets.")
def settings(lab):
    rules = [line for family in ("-4", "-6") for line in lab.network.host.run("ip", family, "rule").splitlines()]
    yield "routing rules", f"{len(rules)}"


# ---- Rules, routes, many

@scenario("Forwards and routes", "the forward is deleted",
          drain="With `?connections=drain`: connections get proxy.drain_timeout_s (1 s here) to end. " + DNAT_HAS_NONE,
          reset="With `?connections=reset`: connections end at once. With DNAT that takes `conntrack -D` and a RST "
                "from elsewhere.")
def deleted(lab):
    for policy in ("keep", "drain", "reset"):
        service = lab.service()
        client, guest = lab.pair(service)
        lab.subject.delete(service.forward, connections=policy)
        if policy == "reset":
            yield "reset", f"client: {end_of(client, 1.5)}; guest: {end_of(guest, 1.5)}"
        else:
            yield f"talk afterwards, {policy}", exchange(client, guest)
            yield policy, f"client: {end_of(client, 1.5)}; guest: {end_of(guest, 0.5)}"
        yield f"new client, {policy}", lab.outcome(service.forward)


@scenario("Forwards and routes", "the guest's own connections while it is a service")
def outbound(lab):
    service = lab.service()
    client, guest = lab.pair(service)
    server = lab.listen(net.CLIENT)
    for which, port in (("any port", 0), ("the forwarded port", service.forward.guest_port)):
        sock = lab.client(net.GUEST, port, namespace=lab.network.guest)
        result = lab.connect(sock, net.CLIENT, server.getsockname()[1])
        if result == "connected":
            accepted = lab.keep(server.accept()[0])
            result = f"{exchange(sock, accepted)}; seen with {peer_seen(accepted, sock).replace('client', 'guest')}"
        yield f"from {which}", result
    yield "its client, afterwards", exchange(client, guest)


@scenario("Forwards and routes", "a client that goes to the guest's address itself, by a route")
def routed(lab):
    service = lab.service()
    forwarded = lab.pair(service)
    sock = lab.client()
    yield "connect", lab.connect(sock, net.GUEST, service.forward.guest_port)
    guest = lab.keep(service.accept())
    yield "talk", exchange(sock, guest)
    yield "the forward's client, afterwards", exchange(*forwarded)


@scenario("Forwards and routes", "two connections of one client, one right after the other")
def order(lab):
    service = lab.service()
    kept = 0
    for _ in range(PAIRS):
        clients = [lab.client() for _ in range(2)]
        for sock in clients:
            lab.connect(sock, net.PUBLIC, service.forward.host_port)
        guests = [service.accept() for _ in range(2)]
        kept += [sock.getpeername()[1] for sock in guests] == [sock.getsockname()[1] for sock in clients]
        for sock in clients + guests:
            sock.close()
    yield f"come to the guest in their order, of {PAIRS} pairs", f"{kept}"


@scenario("Forwards and routes", "short connections")
def short(lab):
    service = lab.service()

    def answer():
        for _ in range(SHORT_CONNECTIONS):
            with service.accept() as guest:
                guest.settimeout(LIMIT_S)
                guest.sendall(guest.recv(100))

    answering = Background(answer)
    good, took = 0, []
    for _ in range(SHORT_CONNECTIONS):
        with lab.network.client.socket() as sock:
            sock.settimeout(LIMIT_S)
            began = time.monotonic()
            with contextlib.suppress(OSError):
                sock.connect((net.PUBLIC, service.forward.host_port))
                sock.sendall(b"hello")
                good += sock.recv(100) == b"hello" and sock.recv(100) == b""
            took.append(time.monotonic() - began)
    answering.result()
    yield "answered, of 1,000", f"{good:,}"
    yield "connect, question and answer, median", within(statistics.median(took), 0.05, 0.5)


PIECE = 4 * MIB


def _replaced(lab, disturb):
    """What is connected, half-closed, under way and new while the forwarder is replaced."""
    service = lab.service()
    open_pair, half_closed, to_guest, to_client = (lab.pair(service) for _ in range(4))
    half_closed[0].shutdown(socket.SHUT_WR)
    sending = [Background(transfer, client, guest, pattern(PIECE))
               for client, guest in (to_guest, reversed(to_client))]
    coming = Background(each, 50, lambda: lab.met(service))
    disturb()
    yield "4 MiB to the guest, meanwhile", sending[0].result()
    yield "4 MiB to the client, meanwhile", sending[1].result()
    yield "50 clients, meanwhile", coming.result()
    yield "talk afterwards", exchange(*open_pair)
    half_closed[1].sendall(b"answer")
    half_closed[1].close()
    yield "a half-closed connection: client reads", end_of(half_closed[0])
    reset(open_pair[1])
    yield "guest resets: client reads", end_of(open_pair[0])


@scenario("Forwards and routes", "the node's forwarder is upgraded")
def upgraded(lab):
    yield from _replaced(lab, lab.subject.upgrade)


@scenario("Forwards and routes", "the node's forwarder is killed, and started again")
def killed(lab):
    yield from _replaced(lab, lab.subject.kill)


# The last one: the tap stays away.
@scenario("Forwards and routes", "tap deleted",
          client="Portway resets the connections of a guest that is gone. A DNAT rule knows nothing of the tap: the "
                 "client waits.",
          new_client="The forward ended with the guest, and its port is closed. The rule is still there and leads "
                     "nowhere.")
def tap_gone(lab):
    service = lab.service(net.NEIGHBOUR)
    client, _ = lab.pair(service)
    lab.network.host.ip("link del tap1")
    began = time.monotonic()
    end = end_of(client, SHORT_S)
    yield "client", end if end.startswith("nothing") else f"{end} {within(time.monotonic() - began, 0.05, 0.5)}"
    wait_until(lambda: not lab.portway or lab.outcome(service.forward) == "ECONNREFUSED")
    yield "new client", lab.outcome(service.forward, limit=SHORT_S)


# ---- Unix sockets: a service behind one, compared with one at a TCP port behind the DNAT rule

SOCKETS = "Unix sockets and Firecracker's vsock"
SOCKET_SCENARIOS = []
NO_RST = ("A Unix socket has no RST: close(2) is its only end, and to its service a client's reset is an end as well. "
          "The node passes on what it can: where the service has closed with bytes unread, its client is reset.")
EACH_ONE = ("A Unix socket cannot be probed without a connection, so the node refuses no client itself: each one is accepted and "
            "reset.")
LIMIT_HERE = "A forward of Portway has limits. " + DNAT_HAS_NONE


def over_sockets(run, title, **reasons):
    """The same scenario again; `reasons` as for scenario()."""
    named = {name.replace("_", " "): reason for name, reason in reasons.items()}
    SOCKET_SCENARIOS.append(Scenario(SOCKETS, title, run, named))


def for_sockets(title, **reasons):
    def add(run):
        over_sockets(run, title, **reasons)
        return run
    return add


over_sockets(guest_ends_first, "the service ends first")
over_sockets(client_ends_first, "the client ends first")
over_sockets(half_close, "one side half-closes, the other continues sending")
over_sockets(resets, "one side resets", all=NO_RST)
over_sockets(aborts, "one side goes away while the other sends", all=NO_RST)
over_sockets(closes_early, "the client closes before it reads the answer")


@for_sockets("the service shuts its reading side, and the client leaves with bytes unread", all=NO_RST)
def stops_reading(lab):
    for how, leave in (("resets", reset), ("closes", socket.socket.close)):
        client, guest = lab.pair(lab.service())
        guest.shutdown(socket.SHUT_RD)
        for _ in range(3):
            client.sendall(b"x" * 1000)
        guest.sendall(b"hello")
        yield f"client, before it {how}", client.recv(5, socket.MSG_WAITALL).decode()
        leave(client)
        began = time.monotonic()
        yield (f"service, when the client {how}",
               f"{send_until_error(guest)} {within(time.monotonic() - began, 1, LIMIT_S)}")


over_sockets(large, "large transfers")
over_sockets(speaks_first, "who speaks first")
over_sockets(zero_window, "the receiver reads nothing for 2 s")
over_sockets(stopped, "the service's process stopped for 2 s (SIGSTOP)")


@for_sockets("nobody listens", all=EACH_ONE)
def no_listener(lab):
    path = lab.closed_port()
    forward = lab.subject.forward(net.GUEST, path)
    yield "three clients", each(3, lab.outcome, forward)
    yield "once somebody does", exchange(*lab.pair(lab.service_at(lab.listen(net.GUEST, path), forward)))


@for_sockets("full backlog",
             one_more_client=f"{ACCEPTED_FIRST} It is reset after proxy.connect_timeout_ms, {CONNECT_TIMEOUT_S} s here.")
def full_backlog(lab):
    def full():
        service, waiting = lab.service(backlog=0), lab.client()  # it holds one
        connected = lab.connect(waiting, net.PUBLIC, service.forward.host_port)
        select.select([service.listener], [], [], LIMIT_S)
        return service, waiting, connected

    service, *_ = full()
    yield "one more client", lab.outcome(service.forward, limit=CONNECT_TIMEOUT_S + 0.9)
    service, waiting, connected = full()
    yield "client in the queue", connected
    late = lab.client()
    connecting = Background(lab.connect, late, net.PUBLIC, service.forward.host_port)
    time.sleep(0.2)  # as in backlog()
    first = lab.keep(service.accept())
    yield "the one in the queue, later", exchange(waiting, first)
    second = lab.keep(service.accept())
    yield "a client while the service catches up", f"{connecting.result()}; {exchange(late, second)}"


@for_sockets("a forward with `source_mode` proxy_v2", all="A Unix socket shows no client address, so this is the only way to learn it. "
                                                          + DNAT_HAS_NONE)
def proxy_header(lab):
    service = lab.service(fields={"source_mode": "proxy_v2"} if lab.portway else None)
    client, guest = lab.pair(service)
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    yield "service reads", _told(read_to_end(guest)[0], client, service)


@for_sockets("a forward with limits", all=LIMIT_HERE)
def limits(lab):
    def limited(**fields):
        return lab.service(fields=fields if lab.portway else None)

    for which, first, second in (("service", 0, 1), ("client", 1, 0)):
        ends = lab.pair(limited(max_bytes_per_second=MIB))
        began = time.monotonic()
        got = transfer(ends[first], ends[second], pattern(3 * MIB))
        yield f"3 MiB to the {which}, at 1 MiB a second", f"{got}, {'after' if time.monotonic() - began > 1.5 else 'within'} 1.5 s"
    service = limited(max_connections=1)
    pair = lab.pair(service)
    yield "a second client, where one may connect", lab.outcome(service.forward, limit=SHORT_S)
    yield "the first one", exchange(*pair)

"""What a hostile guest may try against its neighbours and the node, in each source mode. The worst node there is: it
forwards packets and does not check their sources (rp_filter 0). Sequence numbers are those of the attacked connection, as
if the attacker could guess them; a control shows that the same packets do harm when they come from where they claim to.
"""
import os
import socket
import struct
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.conformance import network as net  # noqa: E402
from tests.conformance.lab import Lab, end_of, exchange  # noqa: E402
from tests.conformance.subjects import Portway  # noqa: E402
from tests.support.portwayd import require_namespaces  # noqa: E402

ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q, ETH_P_8021AD = 0x0800, 0x86dd, 0x8100, 0x88a8
PROXY_HEADER_BYTES = 28  # version 2, IPv4
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
QUIET_S = 0.3  # for what must not come
HEARD = "question and answer"


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def tcp_segment(pseudo_header, ports, flags, sequence, acknowledgement, data):
    def header(total):
        return struct.pack("!HHIIBBHHH", *ports, sequence & 0xffffffff, acknowledgement & 0xffffffff, 5 << 4, flags,
                           65535, total, 0)

    return header(checksum(pseudo_header + header(0) + data)) + data


def ipv4(source, destination, payload, fragment=0):
    """`fragment`: flags and offset as they are in the header."""
    def header(total):
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, socket.IPPROTO_TCP, total) + \
            socket.inet_aton(source) + socket.inet_aton(destination)

    return header(checksum(header(0))) + payload


def segment(source, destination, flags, sequence=1, acknowledgement=0, data=b"", fragments=False):
    """An IPv4 packet, or the two fragments of one; the endpoints are (address, port)."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    tcp = tcp_segment(addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20 + len(data)), (source[1], destination[1]),
                      flags, sequence, acknowledgement, data)
    if not fragments:
        return ipv4(source[0], destination[0], tcp)
    return [ipv4(source[0], destination[0], tcp[:16], 0x2000), ipv4(source[0], destination[0], tcp[16:], 2)]


def segment6(source, destination, flags, sequence=1, acknowledgement=0, options=False):
    """An IPv6 packet without data; `options`: with a destination options header."""
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, end[0]) for end in (source, destination))
    tcp = tcp_segment(addresses + struct.pack("!II", 20, socket.IPPROTO_TCP), (source[1], destination[1]), flags, sequence,
                      acknowledgement, b"")
    if options:
        tcp = struct.pack("!BBBB4x", socket.IPPROTO_TCP, 0, 1, 4) + tcp  # PadN
    return struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_DSTOPTS if options else socket.IPPROTO_TCP, 64) + \
        addresses + tcp


class Wire:
    """All TCP that passes eth0 of a namespace."""

    def __init__(self, namespace):
        self.sock = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        self.sock.bind(("eth0", 3))

    def segments(self, quiet=QUIET_S):
        """[(source, destination, flags, sequence, acknowledgement, data)], until nothing has come for so long."""
        seen = []
        self.sock.settimeout(quiet)
        while True:
            try:
                frame = self.sock.recv(65536)
            except TimeoutError:
                return seen
            protocol, packet = struct.unpack("!H", frame[12:14])[0], frame[14:]
            if protocol == ETH_P_IP and packet[9] == socket.IPPROTO_TCP:
                tcp = packet[(packet[0] & 15) * 4:struct.unpack("!H", packet[2:4])[0]]
                source, destination = (socket.inet_ntoa(packet[at:at + 4]) for at in (12, 16))
            elif protocol == ETH_P_IPV6 and packet[6] == socket.IPPROTO_TCP:
                tcp = packet[40:40 + struct.unpack("!H", packet[4:6])[0]]
                source, destination = (socket.inet_ntop(socket.AF_INET6, packet[at:at + 16]) for at in (8, 24))
            else:
                continue
            source_port, destination_port, sequence, acknowledgement = struct.unpack("!HHII", tcp[:12])
            seen.append(((source, source_port), (destination, destination_port), tcp[13], sequence, acknowledgement,
                         tcp[(tcp[12] >> 4) * 4:]))

    def numbers(self, sender, receiver):
        """(what the sender of a connection sends next, what it has received), after what it has sent so far."""
        sent = [one for one in self.segments(0.05) if one[:2] == (sender, receiver)]
        return max(one[3] + len(one[5]) + bool(one[2] & SYN) for one in sent), max(one[4] for one in sent)

    def close(self):
        self.sock.close()


class Attacks:
    """Run for each source mode. The connection attacked is one of the guest behind tap0; the far end that the guest sees is
    the client's address, or the node's."""
    mode = None
    transparent = False

    @classmethod
    def setUpClass(cls):
        require_namespaces(*net.TOOLS)
        cls.portway = Portway("uring", cls.mode)

    @classmethod
    def tearDownClass(cls):
        cls.portway.close()

    def setUp(self):
        self.lab = Lab(self.portway)
        self.addCleanup(self.lab.__exit__)
        self.network = self.portway.network
        self.service = self.lab.service(net.GUEST)
        self.at_client, self.at_guest = self.wire(self.network.client), self.wire(self.network.guest)
        self.client, self.guest = self.connect(self.service)
        self.far_end, self.guest_end = self.guest.getpeername(), self.guest.getsockname()
        self.assertEqual(self.far_end == self.client.getsockname(), self.transparent)
        self.next, self.received = self.at_guest.numbers(self.guest_end, self.far_end)

    def connect(self, service, sock=None, address=net.PUBLIC):
        client, guest = self.lab.pair(service, sock, address)
        if self.mode == "proxy_v2":
            guest.recv(PROXY_HEADER_BYTES + (24 if ":" in address else 0), socket.MSG_WAITALL)
        self.assertEqual(exchange(client, guest), HEARD)
        return client, guest

    def wire(self, namespace):
        wire = Wire(namespace)
        self.addCleanup(wire.close)
        return wire

    def send(self, namespace, packet, *tags, protocol=ETH_P_IP):
        """As it is, over the namespace's link to the node, behind these VLAN tags: (EtherType, id)."""
        links = {self.network.guest: "tap0", self.network.neighbour: "tap1", self.network.guest6: "tap2",
                 self.network.client: "public0"}
        frame = self._mac(self.network.host, links[namespace]) + self._mac(namespace, "eth0")
        for tag in tags:
            frame += struct.pack("!HH", *tag)
        with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.bind(("eth0", 0))
            raw.send(frame + struct.pack("!H", protocol) + packet)

    def _mac(self, namespace, device):
        with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.bind((device, 0))
            return raw.getsockname()[4]

    def as_guest(self, flags, data=b"", **options):
        """What the guest could send next."""
        return segment(self.guest_end, self.far_end, flags, self.next, self.received if flags & ACK else 0, data, **options)

    def as_far_end(self, flags, data=b""):
        return segment(self.far_end, self.guest_end, flags, self.received, self.next if flags & ACK else 0, data)

    def assert_unharmed(self, client=None, guest=None):
        client, guest = client or self.client, guest or self.guest
        self.assertEqual(end_of(client, QUIET_S), f"nothing for {QUIET_S:g} s")
        self.assertEqual(end_of(guest, QUIET_S), f"nothing for {QUIET_S:g} s")
        self.assertEqual(exchange(client, guest), HEARD)

    # ---- A connection of another guest

    def test_control_the_guest_itself_can_feed_and_reset_its_connection(self):
        self.send(self.network.guest, self.as_guest(PSH | ACK, b"evil"))
        self.assertEqual(self.client.recv(100), b"evil")
        self.send(self.network.guest, segment(self.guest_end, self.far_end, RST, self.next + len(b"evil")))
        self.assertEqual(end_of(self.client), "ECONNRESET")

    def test_a_neighbour_with_the_guests_address_is_heard_by_nobody(self):
        """Neither by the node, whose RST, since it has no such socket behind the neighbour's tap, would go to the guest and
        end its connection, nor by the client, whose RST would do the same."""
        self.at_client.segments(0.05)
        for flags, data in ((PSH | ACK, b"evil"), (ACK, b""), (FIN | ACK, b""), (RST, b""), (RST | ACK, b""), (SYN, b"")):
            self.send(self.network.neighbour, self.as_guest(flags, data))
        self.assertEqual([one for one in self.at_client.segments() if one[0] == self.guest_end], [])
        self.assertEqual([one for one in self.at_guest.segments(0.05) if one[2] & RST], [])
        self.assert_unharmed()

    def test_a_neighbour_with_the_guests_address_cannot_hide_it_in_fragments(self):
        for fragment in self.as_guest(PSH | ACK, b"evil" * 10, fragments=True):
            self.send(self.network.neighbour, fragment)
        self.assert_unharmed()

    def test_a_neighbour_with_the_guests_address_cannot_hide_it_behind_priority_tags(self):
        """The kernel takes them off, as many as there are, and takes the packet for an untagged one."""
        for protocol in (ETH_P_8021Q, ETH_P_8021AD):
            for count in (1, 2, 3, 4, 5, 6, 12):
                self.send(self.network.neighbour, self.as_guest(PSH | ACK, b"evil"), *[(protocol, 0)] * count)
        self.send(self.network.neighbour, self.as_guest(PSH | ACK, b"evil"), (ETH_P_8021AD, 0xe000), (ETH_P_8021Q, 0))
        self.assert_unharmed()

    def test_a_neighbour_cannot_end_an_ipv6_connection_of_another_guest(self):
        """The kernel has no rp_filter for IPv6."""
        service, wire = self.lab.service(net.GUEST6), self.wire(self.network.guest6)
        client, guest = self.connect(service, address=net.PUBLIC6)
        far_end, guest_end = guest.getpeername()[:2], guest.getsockname()[:2]
        numbers = wire.numbers(guest_end, far_end)
        for options in (False, True):
            for flags in (ACK, RST, SYN):
                self.send(self.network.neighbour, segment6(guest_end, far_end, flags, *numbers, options=options),
                          protocol=ETH_P_IPV6)
        self.assert_unharmed(client, guest)

    def test_a_neighbour_with_its_own_address_is_not_heard_on_the_connection(self):
        for port in (self.guest_end[1], 1):
            self.send(self.network.neighbour, segment((net.NEIGHBOUR, port), self.far_end, PSH | ACK, self.next,
                                                      self.received, b"evil"))
            self.send(self.network.neighbour, segment((net.NEIGHBOUR, port), self.far_end, RST, self.next))
        self.assert_unharmed()

    def test_with_rp_filter_a_neighbours_forged_packets_reach_nobody(self):
        """Without, any node that forwards packets forwards those from outsiders' addresses, with or without Portway."""
        self.network.host.set("net/ipv4/conf/tap1/rp_filter", "1")
        self.addCleanup(self.network.host.set, "net/ipv4/conf/tap1/rp_filter", "0")
        packets = [self.as_guest(PSH | ACK, b"evil"), self.as_far_end(PSH | ACK, b"evil"), self.as_far_end(RST)]
        self.at_client.segments(0.05)
        for packet in packets:
            self.send(self.network.neighbour, packet)
        self.assertEqual(self.at_client.segments(), [])
        self.assertEqual(self.at_guest.segments(), [])
        self.assert_unharmed()

    def test_what_is_dropped_is_counted(self):
        def dropped():
            text = self.portway.daemon.call("GET", "/metrics?scope=node").body.decode()
            return next(float(line.split()[1]) for line in text.splitlines()
                        if line.startswith("portway_forged_packets_dropped_total "))

        with self.network.host:
            before = dropped()
            for _ in range(3):
                self.send(self.network.neighbour, self.as_guest(ACK))
            self.assertEqual(dropped() - before, 3)

    def test_a_neighbour_cannot_use_a_forward_with_a_clients_address(self):
        """The answer to its SYN goes to the client."""
        forged = (net.CLIENT, 30100)
        public = (net.PUBLIC, self.service.forward.host_port)
        self.at_client.segments(0.05)
        self.send(self.network.neighbour, segment(forged, public, SYN))
        self.send(self.network.neighbour, segment(forged, public, ACK, 2, 1))
        answers = self.at_client.segments()
        self.assertIn((public, forged, SYN | ACK), [one[:3] for one in answers])
        self.service.listener.settimeout(QUIET_S)
        self.assertRaises(TimeoutError, self.service.accept)
        self.assert_unharmed()

    # ---- The node's own services

    def test_a_service_of_the_node_on_all_addresses_is_not_reached_by_foreign_ones(self):
        service = self.lab.listen("0.0.0.0", namespace=self.network.host)
        port = service.getsockname()[1]
        service.settimeout(QUIET_S)
        for namespace, address in ((self.network.neighbour, net.NEIGHBOUR), (self.network.guest, net.GUEST)):
            for target in (net.CLIENT, net.GUEST if namespace is self.network.neighbour else net.NEIGHBOUR):
                sock = self.lab.client(address, namespace=namespace)
                self.assertEqual(self.lab.connect(sock, target, port), "ECONNREFUSED", "by whom the address belongs to")
        self.assertRaises(TimeoutError, service.accept)

    def test_a_forged_source_opens_no_service_of_the_node(self):
        api = self.portway.daemon.port
        private = self.lab.listen("127.0.0.1", namespace=self.network.host)
        private.settimeout(QUIET_S)
        targets = [("127.0.0.1", api), private.getsockname(), (net.CLIENT, api), (net.CLIENT, private.getsockname()[1])]
        sources = [self.far_end, (net.CLIENT, 30101), self.guest_end, (net.PUBLIC, 30102), ("127.0.0.1", 30103)]
        self.at_client.segments(0.05)
        for namespace in (self.network.neighbour, self.network.guest):
            for source in sources:
                for target in targets:
                    self.send(namespace, segment(source, target, SYN))
        self.assertRaises(TimeoutError, private.accept)
        seen = self.at_client.segments() + self.at_guest.segments()
        answered = [one for one in seen if one[2] & (SYN | ACK) == SYN | ACK]
        self.assertEqual(answered, [])
        self.assert_unharmed()

    def test_the_guests_answers_to_no_connection_go_where_they_are_addressed(self):
        """To the client, which refuses them; the node takes none for its own."""
        service = self.lab.listen("0.0.0.0", namespace=self.network.host)
        service.settimeout(QUIET_S)
        nobody = (net.CLIENT, service.getsockname()[1])
        self.at_client.segments(0.05)
        for flags in (SYN | ACK, ACK, SYN):
            self.send(self.network.guest, segment(self.guest_end, nobody, flags, 7, 7))
        arrived = [one[2] for one in self.at_client.segments() if one[:2] == (self.guest_end, nobody)]
        self.assertEqual(arrived, [SYN | ACK, ACK, SYN])
        self.assertRaises(TimeoutError, service.accept)
        self.assert_unharmed()

    def test_a_guests_own_syn_on_its_connection_changes_nothing(self):
        self.send(self.network.guest, segment(self.guest_end, self.far_end, SYN, 7))
        self.assert_unharmed()

    def test_a_service_of_the_node_is_not_reached_through_the_time_wait_of_a_connection(self):
        self.reach_through_time_wait(self.service, self.network.guest, net.CLIENT, net.PUBLIC, segment, ETH_P_IP)

    def test_nor_with_ipv6(self):
        self.reach_through_time_wait(self.lab.service(net.GUEST6), self.network.guest6, net.CLIENT6, net.PUBLIC6, segment6,
                                     ETH_P_IPV6)

    def reach_through_time_wait(self, service, namespace, client_address, public, make, protocol):
        """The client ends first, so the node keeps TIME_WAIT for its address and port. A SYN that TIME_WAIT lets pass makes
        the kernel look for a listener, and one on all addresses fits."""
        at_guest = self.wire(namespace)
        client, guest = self.connect(service, self.lab.client(client_address, 9100, v6=":" in client_address), public)
        far_end, guest_end = guest.getpeername()[:2], guest.getsockname()[:2]
        sequence = at_guest.numbers(guest_end, far_end)[0]
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(end_of(guest), "FIN")
        guest.close()
        self.assertEqual(end_of(client), "FIN")
        client.close()
        if self.transparent:
            self.assertEqual(far_end, (client_address, 9100))
            self.assertIn(":9100 ", self.network.host.run("ss", "-Htn", "state", "time-wait"))
        service = self.lab.listen("::", 9100, namespace=self.network.host)
        service.settimeout(QUIET_S)
        self.addCleanup(self.network.host.set, "net/ipv4/ip_early_demux", "1")
        for early_demux in "0", "1":
            self.network.host.set("net/ipv4/ip_early_demux", early_demux)
            self.at_client.segments(0.05)
            at_guest.segments(0.05)
            self.send(namespace, make(guest_end, (client_address, 9100), SYN, sequence + (1 << 30)), protocol=protocol)
            arrived = [one[:3] for one in self.at_client.segments()]
            if early_demux == "0":  # with 1 the kernel forwards no packet for which it has any socket
                self.assertIn((guest_end, (client_address, 9100), SYN), arrived)
            self.assertEqual([one for one in at_guest.segments(0.05) if one[2] & SYN and one[0] != guest_end], [])
            self.assertRaises(TimeoutError, service.accept)
        self.assert_unharmed()


class InModeAuto(Attacks, unittest.TestCase):
    mode = "auto"
    transparent = True


class InModeTransparent(Attacks, unittest.TestCase):
    mode = "transparent"
    transparent = True


class InModePlain(Attacks, unittest.TestCase):
    mode = "plain"


class InModeProxyV2(Attacks, unittest.TestCase):
    mode = "proxy_v2"


if __name__ == "__main__":
    unittest.main()

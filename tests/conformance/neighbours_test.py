"""What a hostile guest may try against its neighbours and the node, whose connections carry addresses of others. The
worst node there is: it forwards packets and does not check their sources (rp_filter 0). Sequence numbers are those of
the attacked connection, as if the attacker could guess them; a control shows that the same packets do harm when they
come from where they claim to.
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

ETH_P_IP = 0x0800
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
QUIET_S = 0.3  # for what must not come
HEARD = "question and answer"


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def segment(source, destination, flags, sequence=1, acknowledgement=0, data=b""):
    """An IPv4 packet; the endpoints are (address, port)."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    ports = source[1], destination[1]

    def header(total):
        return struct.pack("!HHIIBBHHH", *ports, sequence & 0xffffffff, acknowledgement & 0xffffffff, 5 << 4, flags,
                           65535, total, 0)

    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20 + len(data))
    tcp = header(checksum(pseudo + header(0) + data)) + data

    def ip(total):
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, socket.IPPROTO_TCP, total) + addresses

    return ip(checksum(ip(0))) + tcp


class Wire:
    """All TCP over IPv4 that passes eth0 of a namespace."""

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
            packet = frame[14:]
            if frame[12:14] != b"\x08\x00" or packet[9] != socket.IPPROTO_TCP:
                continue
            size = struct.unpack("!H", packet[2:4])[0]
            tcp = packet[(packet[0] & 15) * 4:size]
            source_port, destination_port, sequence, acknowledgement = struct.unpack("!HHII", tcp[:12])
            seen.append(((socket.inet_ntoa(packet[12:16]), source_port),
                         (socket.inet_ntoa(packet[16:20]), destination_port),
                         tcp[13], sequence, acknowledgement, tcp[(tcp[12] >> 4) * 4:]))

    def close(self):
        self.sock.close()


class Attacks:
    """Run for each source mode."""
    mode = None

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
        self.client, self.guest = self.lab.pair(self.service)
        self.assertEqual(exchange(self.client, self.guest), HEARD)
        self.client_end, self.guest_end = self.guest.getpeername(), self.guest.getsockname()
        self.assertEqual(self.client_end, self.client.getsockname(), "the guest sees the client")
        sent = [one for one in self.at_guest.segments(0.05) if one[:2] == (self.guest_end, self.client_end)]
        # What the guest sends next, and what it has received.
        self.next = max(one[3] + len(one[5]) + bool(one[2] & SYN) for one in sent)
        self.received = max(one[4] for one in sent)

    def wire(self, namespace):
        wire = Wire(namespace)
        self.addCleanup(wire.close)
        return wire

    def send(self, namespace, packet):
        """As it is, over the namespace's link to the node."""
        links = {self.network.guest: "tap0", self.network.neighbour: "tap1", self.network.client: "public0"}
        tap = self._mac(self.network.host, links[namespace])
        frame = tap + self._mac(namespace, "eth0") + struct.pack("!H", ETH_P_IP) + packet
        with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.bind(("eth0", 0))
            raw.send(frame)

    def _mac(self, namespace, device):
        with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.bind((device, 0))
            return raw.getsockname()[4]

    def as_guest(self, flags, data=b""):
        """What the guest could send next. The acknowledgement is an old one, so that the RST with which the real client
        answers what it does not know is none that the guest believes."""
        return segment(self.guest_end, self.client_end, flags, self.next, self.received - 5 if flags & ACK else 0, data)

    def as_client(self, flags, data=b""):
        return segment(self.client_end, self.guest_end, flags, self.received, self.next if flags & ACK else 0, data)

    def assert_unharmed(self):
        self.assertEqual(end_of(self.client, QUIET_S), f"nothing for {QUIET_S:g} s")
        self.assertEqual(end_of(self.guest, QUIET_S), f"nothing for {QUIET_S:g} s")
        self.assertEqual(exchange(self.client, self.guest), HEARD)

    # ---- A connection of another guest

    def test_control_the_guest_itself_can_feed_and_reset_its_connection(self):
        self.send(self.network.guest, self.as_guest(PSH | ACK, b"evil"))
        self.assertEqual(self.client.recv(100), b"evil")
        self.send(self.network.guest, segment(self.guest_end, self.client_end, RST, self.next + len(b"evil")))
        self.assertEqual(end_of(self.client), "ECONNRESET")

    def test_a_neighbour_with_the_guests_address_cannot_feed_its_connection(self):
        """The node forwards what it sends, to the real client, as any node would."""
        self.send(self.network.neighbour, self.as_guest(PSH | ACK, b"evil"))
        self.assertIn(b"evil", [one[5] for one in self.at_client.segments() if one[0] == self.guest_end])
        self.assert_unharmed()

    def test_a_neighbour_with_the_guests_address_cannot_reset_its_connection(self):
        for flags in (RST, RST | ACK, FIN | ACK, SYN):
            self.send(self.network.neighbour, self.as_guest(flags))
        self.assert_unharmed()

    def test_a_neighbour_with_its_own_address_is_not_heard_on_the_connection(self):
        for port in (self.guest_end[1], 1):
            self.send(self.network.neighbour, segment((net.NEIGHBOUR, port), self.client_end, PSH | ACK, self.next,
                                                      self.received, b"evil"))
            self.send(self.network.neighbour, segment((net.NEIGHBOUR, port), self.client_end, RST, self.next))
        self.assert_unharmed()

    def test_with_rp_filter_a_neighbours_forged_packets_reach_nobody(self):
        """Without, any node that forwards packets forwards these too, with or without Portway."""
        self.network.host.set("net/ipv4/conf/tap1/rp_filter", "1")
        self.addCleanup(self.network.host.set, "net/ipv4/conf/tap1/rp_filter", "0")
        packets = [self.as_guest(PSH | ACK, b"evil"), self.as_client(PSH | ACK, b"evil"), self.as_client(RST)]
        self.at_client.segments(0.05)
        for packet in packets:
            self.send(self.network.neighbour, packet)
        self.assertEqual(self.at_client.segments(), [])
        self.assertEqual(self.at_guest.segments(), [])
        self.assert_unharmed()

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
        sources = [self.client_end, (net.CLIENT, 30101), self.guest_end, (net.PUBLIC, 30102), ("127.0.0.1", 30103)]
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
        self.send(self.network.guest, segment(self.guest_end, self.client_end, SYN, 7))
        self.assert_unharmed()


class InModeAuto(Attacks, unittest.TestCase):
    mode = "auto"


class InModeTransparent(Attacks, unittest.TestCase):
    mode = "transparent"


if __name__ == "__main__":
    unittest.main()

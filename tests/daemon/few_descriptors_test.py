"""A node with few descriptors: what its listeners take of the connections."""
import os
import re
import socket
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, isolate  # noqa: E402

FORWARDS = 300
FEW = ("prlimit", "--nofile=4000", "setpriv", "--bounding-set=-sys_resource")  # or the daemon would raise its limit


def setUpModule():
    isolate()


class FewDescriptors(unittest.TestCase):
    def connections_with_forwards(self, connections_max):
        node = Portwayd(f"proxy.connections_max={connections_max}", "profiles.default.max_forwarded_ports=1000", start=False)
        node.start(wrapper=FEW)
        with node:
            node.put_instance("vm-1", tap="tap0")
            forwards = [{"guest_port": 10000 + i} for i in range(FORWARDS)]
            made = node.call("POST", "/instances/vm-1/port-forwards:batch", {"port_forwards": forwards})
            self.assertEqual(made.status, 201, made)
            metrics = node.call("GET", "/metrics").body.decode()
            return int(re.search(r"^portway_connections_max (\d+)", metrics, re.MULTILINE)[1])

    def test_listeners_take_what_the_connections_do_not_want(self):
        self.assertEqual(self.connections_with_forwards(100), 100)

    def test_a_much_too_small_limit_is_said_and_forwards_are_served_again(self):
        with Portwayd() as node:
            node.put_instance("vm-1", tap="tap0")
            made = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": 3000})
            port = made.json()["port_forward"]["host_port"]
            self.assertEqual(node.stop(), 0)
            node.start(wrapper=("prlimit", "--nofile=128", *FEW[2:]))
            self.assertRegex(node.output(), r"RLIMIT_NOFILE is 128 and \d+ are wanted: .* raise the limit \(systemd: LimitNOFILE=\)")
            socket.create_connection(("127.0.0.1", port), timeout=30).close()

    def test_listeners_take_the_place_of_connections_if_they_use_all_descriptors(self):
        connections = self.connections_with_forwards(65536)
        self.assertLess(connections, 4000 // 2 - FORWARDS // 2)
        self.assertGreater(connections, 1000)


if __name__ == "__main__":
    unittest.main(verbosity=2)

"""A node with a thousand taps: what one registration costs does not grow with them."""
import os
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, isolate  # noqa: E402

LINKS = 1000
CALLS = 40


def setUpModule():
    isolate()


class ManyLinks(unittest.TestCase):
    def test_registration_does_not_read_them_all(self):
        with Portwayd() as daemon:
            daemon.put_instance("vm-1", tap="tap0")

            def again():
                begun = time.perf_counter()
                self.assertEqual(daemon.put_instance("vm-1", tap="tap0").status, 200)
                return time.perf_counter() - begun

            # The least of many: what else the machine does only adds to it.
            few = min(again() for _ in range(CALLS))
            subprocess.run(["ip", "-batch", "-"], check=True, text=True,
                           input="".join(f"tuntap add dev many{i} mode tap\n" for i in range(LINKS)))
            many = min(again() for _ in range(CALLS))
            all_links = min(read_all_links() for _ in range(CALLS))
            print(f"{few * 1e3:.2f} ms with few links, {many * 1e3:.2f} ms with {LINKS} more; "
                  f"{all_links * 1e3:.2f} ms to read all")
            self.assertLess(many - few, all_links / 2)


def read_all_links():
    begun = time.perf_counter()
    assert len(socket.if_nameindex()) > LINKS
    return time.perf_counter() - begun


if __name__ == "__main__":
    unittest.main(verbosity=2)

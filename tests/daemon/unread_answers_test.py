"""Clients that ask for large answers and never read them: what they can take of the daemon's memory is bounded, who reads
gets answers meanwhile, and the memory is given back when they have gone.
"""
import contextlib
import gzip
import http.client
import os
import re
import socket
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.moments import DIVISOR  # noqa: E402
from tests.support.portwayd import ADMIN, Portwayd, isolate, wait_until  # noqa: E402

READERS = 300 // DIVISOR
INSTANCES = max(2, 10 // DIVISOR)
FORWARDS = 1000  # of each: a scrape of ten has 7 MB, and a list of one instance's forwards 0.5 MB
MIB = 1024 * 1024
# ThreadSanitizer keeps four bytes or more of its own for each byte of the daemon's.
SHADOW = 6 if "TSAN_OPTIONS" in os.environ else 1
# Far below what the answers have together (2 GB and 150 MB, less with sanitizers), and above what allocators add.
GROWTH_MAX = 100 * MIB * SHADOW
LEFT_MAX = 32 * MIB * SHADOW
CONFIG = """
[guests]
networks = ["198.18.0.0/15"]
[metrics]
listen = "127.0.0.1:0"
[profiles.default]
max_forwarded_ports = 1000
"""


def setUpModule():
    isolate()
    # AddressSanitizer keeps 256 MB of freed memory, to find uses after free: what the daemon has freed would count as its own.
    os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1:thread_local_quarantine_size_kb=16"


class UnreadAnswers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with contextlib.ExitStack() as stack:
            cls.daemon = stack.enter_context(Portwayd(config=CONFIG))
            for i in range(INSTANCES):
                assert cls.daemon.put_instance(f"vm-{i}", owner=("alice", "bob")[i % 2]).status == 201
                wanted = {"port_forwards": [{"guest_port": 3000 + j} for j in range(FORWARDS)]}
                made = cls.daemon.call("POST", f"/instances/vm-{i}/port-forwards:batch", wanted)
                assert made.status == 201, made
            listens = re.compile(r"metrics on http://\S*:(\d+)")
            assert wait_until(lambda: listens.search(cls.daemon.output()))
            cls.metrics_port = int(listens.search(cls.daemon.output())[1])
            cls.addClassCleanup(stack.pop_all().close)

    def resident(self):
        with open(f"/proc/{self.daemon.process.pid}/status", encoding="ascii") as status:
            return 1024 * int(re.search(r"^VmRSS:\s*(\d+)", status.read(), re.M)[1])

    def scrape(self, encoding="identity", target="/metrics"):
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", target, headers={"Accept-Encoding": encoding})
            response = connection.getresponse()
            body = response.read()
            self.assertEqual(response.status, 200, body)
        return (gzip.decompress(body) if encoding == "gzip" else body).decode()

    def value(self, name):
        return float(re.search(rf"^{name} (\S+)$", self.scrape(target="/metrics?scope=node"), re.M)[1])

    def ask_and_never_read(self, stack, port, request):
        for _ in range(READERS):
            reader = socket.socket()
            stack.enter_context(reader)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", port))
            reader.sendall(request)

    def has_given_back(self, before):
        return wait_until(lambda: self.resident() < before + LEFT_MAX)

    def test_of_metrics(self):
        whole = self.scrape()
        self.assertEqual(self.scrape("gzip").count("portway_forward_info{"), INSTANCES * FORWARDS)
        before = self.resident()
        for encoding in (b"identity", b"gzip"):
            with self.subTest(encoding=encoding), contextlib.ExitStack() as stack:
                self.ask_and_never_read(stack, self.metrics_port,
                                        b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: " + encoding + b"\r\n\r\n")
                # Theirs were asked for before.
                for each in ("identity", "gzip"):
                    text = self.scrape(each)
                    self.assertEqual(text.count("portway_forward_info{"), INSTANCES * FORWARDS)
                    self.assertAlmostEqual(text.count("\n"), whole.count("\n"), delta=50)
                self.assertLess(self.resident(), before + GROWTH_MAX)
        self.assertTrue(self.has_given_back(before), f"{self.resident()} bytes, {before} before")

    def test_of_a_tenants_lists(self):
        alice, bob = self.daemon.tenant_key("alice"), self.daemon.tenant_key("bob")
        target = "/instances/vm-{}/port-forwards?limit=1000"
        self.assertEqual(self.daemon.call("GET", target.format(0), key=alice).status, 200)
        before = self.resident()
        refused = self.value("portway_api_answers_refused_total")
        with contextlib.ExitStack() as stack:
            self.ask_and_never_read(stack, self.daemon.port,
                                    (f"GET {target.format(0)} HTTP/1.1\r\nHost: a\r\n"
                                     f"Authorization: Bearer {alice}\r\n\r\n").encode())
            self.assertTrue(wait_until(lambda: self.value("portway_api_answers_refused_total") > refused))
            self.assertLess(self.resident(), before + GROWTH_MAX)
            self.assertLessEqual(self.value("portway_api_answer_bytes"),
                                 self.value("portway_api_answer_bytes_max") / 2 + MIB, "a share, not all of it")
            answer = self.daemon.call("GET", target.format(0), key=alice)
            self.assertEqual((answer.status, answer.json()["code"]), (503, "resource_exhausted"))
            self.assertIn("retry-after", answer.headers)
            # Others have theirs, and what changes something is never refused for it.
            self.assertEqual(self.daemon.call("GET", target.format(1), key=bob).status, 200)
            self.assertEqual(self.daemon.call("GET", target.format(0), key=ADMIN).status, 200)
            made = self.daemon.call("DELETE", "/instances/vm-0/port-forwards/none", key=alice)
            self.assertEqual(made.status, 404)
        self.assertTrue(wait_until(lambda: self.daemon.call("GET", target.format(0), key=alice).status == 200))
        self.assertTrue(self.has_given_back(before), f"{self.resident()} bytes, {before} before")


if __name__ == "__main__":
    unittest.main(verbosity=2)

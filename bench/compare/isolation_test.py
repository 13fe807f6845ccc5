#!/usr/bin/env python3
"""isolation.py runs every disturbance, and its tables have what they should. No time is looked at."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tests", "support"))
import report  # noqa: E402
from portwayd import require_namespaces  # noqa: E402


class Isolation(unittest.TestCase):
    def test_every_disturbance(self):
        require_namespaces("nft", "ip", "chrt")
        with tempfile.TemporaryDirectory() as output:
            build = os.environ["PORTWAY_BUILD"]
            done = subprocess.run([sys.executable, os.path.join(HERE, "isolation.py"), "--build", build, "--rounds", "1", "--seconds",
                                   "0.3", "--connections", "50", "--stalled", "5", "--forwards", "20", "--output", output,
                                   "--subjects", "nft-dnat,portway-uring,portway-epoll", "--other", f"old={build}/portwayd,epoll"],
                                  capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(os.path.join(output, "isolation.json"), encoding="utf-8") as file:
                summary = json.load(file)["summary"]
            portways = {"portway-uring", "portway-epoll", "old"}
            for name, subjects in summary.items():
                self.assertLessEqual(portways, subjects.keys(), name)
            self.assertEqual(list(summary), ["quiet", "churn-transparent", "churn-plain", "churn-ipv6", "end", "stalled",
                                             "quiet-forwards", "scrape", "reload", "delete"])
            self.assertIn("nft-dnat", summary["churn-plain"])
            self.assertEqual(summary["end"]["portway-uring"]["amount"]["median"], 50)
            self.assertEqual(summary["delete"]["portway-uring"]["amount"]["median"], 20)
            self.assertGreater(summary["scrape"]["portway-epoll"]["amount"]["median"], 0)


class Tables(unittest.TestCase):
    def test_verdicts(self):
        def runs(metric, subject, p99, worst):
            return [{"round": number, "metric": metric, "subject": subject,
                     "values": {"p50_us": 100, "p99_us": p99, "worst_us": worst, "amount": None}} for number in (1, 2, 3)]

        summary = report.summarize(runs("quiet", "portway", 200, 300) + runs("churn-plain", "haproxy", 900, 1000)
                                   + runs("churn-plain", "portway", 300, 1500) + runs("churn-transparent", "portway", 500, 900))
        titles = {"portway": "Portway", "haproxy": "HAProxy"}
        plain = report.isolation_table("churn-plain", summary, titles, "connections/s")
        self.assertIn("| 1.50x (at most 2x: met) | 1.50x (at most 1x: **not met**) |", plain)
        # HAProxy is never transparent: its plain connections are what comes closest.
        transparent = report.isolation_table("churn-transparent", summary, titles, "connections/s")
        self.assertIn("| 2.50x (at most 2x: **not met**) | 0.90x (at most 1x: met) |", transparent)


if __name__ == "__main__":
    unittest.main(verbosity=2)

#!/usr/bin/env python3
"""What a fleet costs etcd, and how soon etcd knows: many publishers in one process, one real etcd beside them, in a network
namespace. Prints a table. By hand, as root, from a release build:

    bench/fleet_scale.py build/release/bench/portway_fleet_scale --nodes 1000 --forwards 100
"""
import argparse
import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from tests.support.etcd import Etcd, require_etcd  # noqa: E402
from tests.support.portwayd import die_with_parent, isolate, wait_until  # noqa: E402


def process_numbers(pid):
    """Seconds of CPU, and MiB."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        resident = int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) / 1024
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), resident


class Nodes:
    def __init__(self, program, url, nodes, forwards):
        self.process = subprocess.Popen([program, url, str(nodes), str(forwards)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)

    def order(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Etcds(Etcd):
    def metrics(self):
        """The requests that it has answered, by method."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return {m[1]: float(m[2]) for m in
                re.finditer(r'^grpc_server_handled_total\{grpc_code="OK",grpc_method="(\w+)".*\} (\S+)$', text, re.M)}

    def count(self, prefix):
        """Keys that begin so."""
        def encoded(key):
            return base64.b64encode(key.encode()).decode()
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        body = json.dumps({"key": encoded(prefix), "range_end": encoded(end), "count_only": True}).encode()
        with urllib.request.urlopen(f"{self.url}/v3/kv/range", body, timeout=30) as answer:
            return int(json.load(answer).get("count", 0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--forwards", type=int, default=100, help="of each node")
    parser.add_argument("--idle", type=int, default=60, help="seconds that are looked at while nothing changes")
    options = parser.parse_args()
    require_etcd()
    isolate()
    with Etcds() as etcd:
        nodes = Nodes(os.path.abspath(options.program), etcd.url, options.nodes, options.forwards)

        def report(what, value):
            print(f"{what:<66} {value}", flush=True)

        before = process_numbers(nodes.process.pid)[1]
        took = nodes.order("join")
        keys = etcd.count("/portway/")
        report("all nodes are published, from nothing", f"{took:.1f} s, {keys} keys, {keys / took:.0f} a second")
        report("transactions for that", nodes.order("stats")["writes"])
        cpu, memory = process_numbers(etcd.process.pid)
        report("etcd: CPU for that, memory", f"{cpu:.1f} s, {memory:.0f} MiB")
        own = process_numbers(nodes.process.pid)
        report("a node's publisher: CPU for that, memory",
               f"{1000 * own[0] / options.nodes:.1f} ms, {1024 * (own[1] - before) / options.nodes:.0f} KiB")

        requests, cpu, own = etcd.metrics(), process_numbers(etcd.process.pid)[0], process_numbers(nodes.process.pid)[0]
        revision = json.loads(etcd.control("get", "x", "-w", "json"))["header"]["revision"]
        nodes.order(f"sleep {options.idle}")
        after = etcd.metrics()
        done = {name: (count - requests.get(name, 0)) / options.idle for name, count in after.items()
                if count - requests.get(name, 0) > options.idle / 20}
        report(f"while nothing changes for {options.idle} s: requests a second",
               ", ".join(f"{name} {rate:.1f}" for name, rate in done.items()))
        report("  writes", json.loads(etcd.control("get", "x", "-w", "json"))["header"]["revision"] - revision)
        report("  CPU of etcd, of all nodes (percent of a core)",
               f"{100 * (process_numbers(etcd.process.pid)[0] - cpu) / options.idle:.1f}, "
               f"{100 * (process_numbers(nodes.process.pid)[0] - own) / options.idle:.1f}")

        for count in (1, options.nodes, 10 * options.nodes):
            took = nodes.order(f"change {count}")
            report(f"{count} forwards change at once: etcd has it after", f"{took:.2f} s, {count / took:.0f} a second")

        etcd.kill()
        time.sleep(3)
        changed = options.nodes
        began = time.monotonic()
        etcd.start()
        started = time.monotonic() - began
        nodes.order(f"change {changed}")
        report(f"etcd was away for 3 s; {changed} forwards changed: etcd has it after",
               f"{time.monotonic() - began - started:.1f} s (its own start {started:.1f} s)")

        vanish = 3 * options.nodes // 10
        nodes.order(f"vanish {vanish}")
        began = time.monotonic()
        wait_until(lambda: nodes.order("sleep 1") and etcd.count("/portway/nodes/") == options.nodes - vanish, 120)
        report(f"{vanish} nodes vanish: etcd knows it after", f"{time.monotonic() - began:.0f} s")
        report("faults, writes that failed", json.dumps(nodes.order("stats")))


if __name__ == "__main__":
    main()

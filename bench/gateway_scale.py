#!/usr/bin/env python3
"""What a gateway of a large fleet needs, and how it answers: many publishers in one process, one real etcd and one real gateway,
in a network namespace. Prints a table. By hand, as root, from a release build:

    bench/gateway_scale.py build/release/bench/portway_fleet_scale build/release/portway-gateway --nodes 1000 --forwards 100
"""
import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bench.fleet_scale import Etcds, Nodes, process_numbers  # noqa: E402
from tests.support.etcd import require_etcd  # noqa: E402
from tests.support.portwayd import die_with_parent, isolate, wait_until  # noqa: E402

PORT = 8443


class Gateway:
    def __init__(self, program, directory, etcd):
        self.began = time.monotonic()
        settings = {"api.listen": f"127.0.0.1:{PORT}", "api.admin_key_file": f"{directory}/admin.key", "fleet.etcd": etcd.url,
                    "api.rate_limit_per_second": "0"}
        self.process = subprocess.Popen([program, *(f"--set={key}={value}" for key, value in settings.items())],
                                        stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
        assert wait_until(lambda: os.path.exists(f"{directory}/admin.key"), 10)
        with open(f"{directory}/admin.key", encoding="ascii") as file:
            self.headers = {"Authorization": "Bearer " + file.read().strip()}

    def get(self, path, connection=None):
        """The status and the JSON; the status 0 if it cannot be reached."""
        try:
            connection = connection or http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
            connection.request("GET", path, headers=self.headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except OSError:
            return 0, None


def percentile(times, share):
    return 1000 * sorted(times)[min(len(times) - 1, int(share * len(times)))]


def reads(gateway, path, clients, seconds):
    """How long each read took, of clients that read one after the other."""
    times = []
    end = time.monotonic() + seconds

    def read():
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        while time.monotonic() < end:
            began = time.monotonic()
            connection.request("GET", path, headers=gateway.headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            times.append(time.monotonic() - began)

    threads = [threading.Thread(target=read) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("gateway")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--forwards", type=int, default=100, help="of each node")
    parser.add_argument("--seconds", type=int, default=5, help="of reads")
    options = parser.parse_args()
    require_etcd()
    isolate()
    with Etcds() as etcd, tempfile.TemporaryDirectory() as directory:
        nodes = Nodes(os.path.abspath(options.program), etcd.url, options.nodes, options.forwards)

        def report(what, value):
            print(f"{what:<66} {value}", flush=True)

        nodes.order("join")
        gateway = Gateway(os.path.abspath(options.gateway), directory, etcd)
        assert wait_until(lambda: gateway.get("/readyz")[0] == 200, 120)
        warm = time.monotonic() - gateway.began
        cpu, memory = process_numbers(gateway.process.pid)
        info = gateway.get("/v1/info")[1]
        report("a gateway is warm after its start", f"{warm:.1f} s, {cpu:.1f} s of CPU")
        report("  with", f"{info['nodes']['up']} nodes, {info['instances']} instances, {info['port_forwards']} forwards")
        report("  memory", f"{memory:.0f} MiB, {1024 * 1024 * memory / max(info['port_forwards'], 1):.0f} bytes a forward")

        first = gateway.get("/instances?limit=1")[1]["instances"][0]
        for what, path in (("a page of 100 forwards of all", "/port-forwards?limit=100"),
                           ("a page of 100 forwards of all, by host port", "/port-forwards?limit=100&sort=host_port"),
                           ("one owner's forwards", f"/port-forwards?owner={first['owner']}&limit=100"),
                           ("the forwards with a host port", "/port-forwards?host_port=20001"),
                           ("a page of 100 nodes", "/nodes?limit=100")):
            for clients in (1, 8):
                times = reads(gateway, path, clients, options.seconds)
                report(f"{what}, {clients} client{'s'[:clients - 1]}",
                       f"{len(times) / options.seconds:.0f} a second, median {percentile(times, 0.5):.1f} ms, "
                       f"p99 {percentile(times, 0.99):.1f} ms")

        before = process_numbers(gateway.process.pid)[0]
        nodes.order(f"change {options.nodes}")
        report(f"{options.nodes} forwards change: CPU of the gateway",
               f"{process_numbers(gateway.process.pid)[0] - before:.2f} s")

        etcd.kill()
        assert wait_until(lambda: gateway.get("/nodes?limit=1")[1].get("stale"), 60)
        etcd.start()
        began = time.monotonic()
        assert wait_until(lambda: not gateway.get("/nodes?limit=1")[1].get("stale"), 60)
        report("etcd is back: the gateway knows everything again after", f"{time.monotonic() - began:.1f} s")

        nodes.order("wait")
        vanish = 3 * options.nodes // 10
        nodes.order(f"vanish {vanish}")
        began = time.monotonic()

        def lost():
            nodes.order("sleep 0.2")
            return gateway.get("/v1/info")[1]["nodes"]["lost"]
        assert wait_until(lambda: lost() == vanish, 120)
        report(f"{vanish} nodes vanish: the gateway says so after", f"{time.monotonic() - began:.0f} s")
        report("memory of the gateway at the end", f"{process_numbers(gateway.process.pid)[1]:.0f} MiB")


if __name__ == "__main__":
    main()

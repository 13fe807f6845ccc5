#!/usr/bin/env python3
"""What a gateway of a large fleet needs, and how it answers: many publishers in one process, a real node with a real guest, one real
etcd and one real gateway, in network namespaces. Prints a table. By hand, as root, from a release build:

    bench/gateway_scale.py --build build/release --nodes 1000 --forwards 100
"""
import argparse
import json
import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bench.fleet_scale import Etcds, Nodes, process_numbers  # noqa: E402
from tests.support.fleet import Fleet, require_fleet  # noqa: E402
from tests.support.hosts import GUEST_PORT, Fabric, Guest, ask  # noqa: E402
from tests.support.portwayd import isolate, wait_until  # noqa: E402

WRITERS = 8


class Caller:
    """Of a gateway's or a node's API, on one connection that stays open."""

    def __init__(self, server):
        self.headers = {"Authorization": "Bearer " + server.admin_key(), "Content-Type": "application/json"}
        self.connection = server.connect(timeout=60)

    def call(self, method, path, body=None):
        self.connection.request(method, path, None if body is None else json.dumps(body), self.headers)
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.status in (200, 201, 204), text
        return json.loads(text) if text else None

    def create(self, guest):
        """(path, host port) of a new forward."""
        path = f"/instances/{guest.name}/port-forwards"
        forward = self.call("POST", path, {"guest_port": GUEST_PORT})["port_forward"]
        return f"{path}/{forward['id']}", forward["host_port"]


def percentile(times, share):
    return 1000 * sorted(times)[min(len(times) - 1, int(share * len(times)))]


def times_of(clients, seconds, server, work):
    """How long each `work(caller)` took, of clients that do one after the other."""
    times = []
    end = time.monotonic() + seconds

    def run():
        caller = Caller(server)
        while time.monotonic() < end:
            began = time.monotonic()
            work(caller)
            times.append(time.monotonic() - began)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def first_bytes(server, node, guest, seconds):
    """How long it took from a POST until its answer, and until a client had the guest's first byte."""
    caller = Caller(server)
    answered, served = [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        path, port = caller.create(guest)
        answered.append(time.monotonic() - began)
        assert ask(node.address, port) == (guest.name, "ping")
        served.append(time.monotonic() - began)
        caller.call("DELETE", path)
    return answered, served


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build/release", help="the directory of the build")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--forwards", type=int, default=100, help="of each node")
    parser.add_argument("--seconds", type=int, default=5, help="of reads")
    options = parser.parse_args()
    build = os.path.abspath(options.build)
    os.environ.update(PORTWAY_GATEWAY=f"{build}/portway-gateway", PORTWAY_DAEMON=f"{build}/portwayd")
    require_fleet()
    isolate()
    with Fleet(Etcds(), lease_s=12) as fleet:
        etcd = fleet.etcd
        nodes = Nodes(f"{build}/bench/portway_fleet_scale", etcd.url, options.nodes, options.forwards)

        def report(what, value):
            print(f"{what:<66} {value}", flush=True)

        nodes.order("join")
        began = time.monotonic()
        gateway = fleet.gateway()
        assert wait_until(lambda: gateway.call("GET", "/readyz").status == 200, 120)
        warm = time.monotonic() - began
        cpu, memory = process_numbers(gateway.process.pid)

        def get(path):
            return gateway.call("GET", path).json()

        info = get("/v1/info")
        report("a gateway is warm after its start", f"{warm:.1f} s, {cpu:.1f} s of CPU")
        report("  with", f"{info['nodes']['up']} nodes, {info['instances']} instances, {info['port_forwards']} forwards")
        report("  memory", f"{memory:.0f} MiB, {1024 * 1024 * memory / max(info['port_forwards'], 1):.0f} bytes a forward")

        host = Fabric().host("n1", 11)
        node = fleet.node(1, f"node.public_addresses={host.address}", host=host)
        guest = Guest(host, "vm-guest", 10)
        assert gateway.call("PUT", "/profiles/large", {"max_forwarded_ports": 10000}).status == 201
        assert wait_until(lambda: gateway.put_on(node.id, guest.name, profile="large", guest_address=guest.address,
                                                 tap=guest.tap).status == 201)
        for what, server in (("the node itself", node), ("the gateway", gateway)):
            answered, served = first_bytes(server, node, guest, options.seconds)
            for until, times in (("its answer", answered), ("a client's first byte", served)):
                report(f"from a POST at {what} to {until}",
                       f"median {percentile(times, 0.5):.1f} ms, p99 {percentile(times, 0.99):.1f} ms")
            for writers in (1, WRITERS):
                def write(caller):
                    caller.call("DELETE", caller.create(guest)[0])
                times = times_of(writers, options.seconds, server, write)
                report(f"forwards created and deleted at {what}, {writers} caller{'s'[:writers - 1]}",
                       f"{2 * len(times) / options.seconds:.0f} writes a second, both: median {percentile(times, 0.5):.1f} ms, "
                       f"p99 {percentile(times, 0.99):.1f} ms")

        first = get("/instances?limit=1")["instances"][0]
        for what, path in (("a page of 100 forwards of all", "/port-forwards?limit=100"),
                           ("a page of 100 forwards of all, by host port", "/port-forwards?limit=100&sort=host_port"),
                           ("one owner's forwards", f"/port-forwards?owner={first['owner']}&limit=100"),
                           ("the forwards with a host port", "/port-forwards?host_port=20001"),
                           ("a page of 100 nodes", "/nodes?limit=100")):
            for clients in (1, 8):
                times = times_of(clients, options.seconds, gateway, lambda caller, path=path: caller.call("GET", path))
                report(f"{what}, {clients} client{'s'[:clients - 1]}",
                       f"{len(times) / options.seconds:.0f} a second, median {percentile(times, 0.5):.1f} ms, "
                       f"p99 {percentile(times, 0.99):.1f} ms")

        before = process_numbers(gateway.process.pid)[0]
        nodes.order(f"change {options.nodes}")
        report(f"{options.nodes} forwards change: CPU of the gateway",
               f"{process_numbers(gateway.process.pid)[0] - before:.2f} s")

        etcd.kill()
        assert wait_until(lambda: get("/nodes?limit=1").get("stale"), 60)
        etcd.start()
        began = time.monotonic()
        assert wait_until(lambda: not get("/nodes?limit=1").get("stale"), 60)
        report("etcd is back: the gateway knows everything again after", f"{time.monotonic() - began:.1f} s")

        nodes.order("wait")
        vanish = 3 * options.nodes // 10
        nodes.order(f"vanish {vanish}")
        began = time.monotonic()

        def lost():
            nodes.order("sleep 0.2")
            return get("/v1/info")["nodes"]["lost"]
        assert wait_until(lambda: lost() == vanish, 120)
        report(f"{vanish} nodes vanish: the gateway says so after", f"{time.monotonic() - began:.0f} s")
        report("memory of the gateway at the end", f"{process_numbers(gateway.process.pid)[1]:.0f} MiB")


if __name__ == "__main__":
    main()

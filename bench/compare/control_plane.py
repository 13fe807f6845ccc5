#!/usr/bin/env python3
"""How fast the API is, with many forwards and beside a busy data plane; writes a table.

    bench/compare/control_plane.py --build build/release [--forwards 10000]

Needs root. Forwards are created one by one over one kept-alive connection, listed page by page, found again after
kill -9, and one is asked for again and again while bulk and small messages keep the data plane busy.
"""
import argparse
import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import time

import network
import subjects

SCRATCH = "/dev/shm"
GET_SECONDS = 5


class Node(subjects.Portway):
    name = "portway-uring"
    range = "20000-32767"


class Api:
    """One connection, kept alive."""

    def __init__(self, node):
        self.key = node.key
        self.connection = http.client.HTTPConnection(node.api, timeout=60)

    def call(self, method, target, body=None):
        headers = {"Authorization": f"Bearer {self.key}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        self.connection.request(method, target, None if body is None else json.dumps(body), headers)
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise subjects.SubjectError(f"{method} {target}: {answer.status} {data.decode()}")
        return json.loads(data) if data else None


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def timed(function):
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began


def create(api, forwards):
    times = [timed(lambda i=i: api.call("POST", "/instances/many/port-forwards", {"guest_port": 10000 + i}))[1]
             for i in range(forwards)]
    return {"forwards": forwards, "seconds": sum(times), "median_ms": percentile(times, 0.5) * 1e3,
            "p99_ms": percentile(times, 0.99) * 1e3}


def walk_pages(api, forwards):
    times, seen, cursor = [], 0, ""
    while True:
        page, took = timed(lambda: api.call("GET", f"/instances/many/port-forwards?limit=1000{cursor}"))
        times.append(took)
        seen += len(page["port_forwards"])
        if "next_cursor" not in page:
            break
        cursor = f"&cursor={page['next_cursor']}"
    if seen != forwards:
        raise subjects.SubjectError(f"{seen} forwards listed")
    return {"pages": len(times), "slowest_ms": max(times) * 1e3}


def gets(api, target):
    request = f"GET {target} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {api.key}\r\n\r\n".encode()
    connection = api.connection.sock  # as it is: http.client would take longer than the daemon
    times, end = [], time.perf_counter() + GET_SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        connection.sendall(request)
        answer = connection.recv(65536)
        times.append(time.perf_counter() - began)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise subjects.SubjectError(answer.decode())
        time.sleep(0.002)  # asked as an orchestrator asks, not as load
    return {"gets": len(times), "median_ms": percentile(times, 0.5) * 1e3, "p99_ms": percentile(times, 0.99) * 1e3}


def load(options, net, node, mode, service, connections):
    return net.client.popen(options.load, mode, "--target", f"{node.target(service)},{node.site.client_first}",
                            "--from-count", str(network.CLIENT_COUNT), "--connections", str(connections), "--slices", "1",
                            "--slice", str(GET_SECONDS + 1), stdout=subprocess.DEVNULL)


def run(options, net):
    server = net.guest.popen(options.load, "server", stdout=subprocess.PIPE)
    if server.stdout.readline() != b"ready\n":
        raise subjects.SubjectError("the load server did not start")
    node = Node(options)
    node.site = net.sites[0]
    node.start(1000)
    api = Api(node)
    api.call("PUT", "/instances/many", {"guest_address": "198.19.0.3", "tap": "tap9", "owner": "benchmark"})
    results = {"create": create(api, options.forwards), "list": walk_pages(api, options.forwards)}
    node.process.send_signal(signal.SIGKILL)
    node.process.wait()
    _, results["restart_s"] = timed(lambda: (node.launch(node.program, "--config", node.path("portway.toml")),
                                             node.wait_until(node._healthy, "does not come back")))
    with open(node.path("admin.key"), encoding="ascii") as file:
        node.key = file.read().strip()
    api = Api(node)
    walk_pages(api, options.forwards)
    one = api.call("GET", "/instances/many/port-forwards?limit=1")["port_forwards"][0]
    target = f"/instances/many/port-forwards/{one['id']}"
    os.setpriority(os.PRIO_PROCESS, 0, -20)  # the daemon's delay is measured, not ours
    results["get_quiet"] = gets(api, target)
    busy = [load(options, net, node, "download", "source", 4), load(options, net, node, "ping", "echo", 64)]
    results["get_saturated"] = gets(api, target)
    for process in busy:
        process.wait()
    node.stop()
    server.kill()
    return results


def prepare(parser, scratch):
    """The options of a measurement of one node's API, which goes on in namespaces of its own."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser.add_argument("--build", default=os.path.join(root, "build/release"))
    options = parser.parse_args()
    options.portwayd = os.path.join(options.build, "portwayd")
    options.load = os.path.join(options.build, "bench/compare/bench_load")
    options.scratch, options.workers, options.hold = scratch, 1, 0
    if os.geteuid() != 0:
        sys.exit(f"{parser.prog}: needs root, to make network namespaces")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    network.isolate(scratch)
    return options


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forwards", type=int, default=10_000)
    options = prepare(parser, SCRATCH)
    Node.extra = f"[profiles.default]\nmax_forwarded_ports = {options.forwards}\n"
    with network.Network(1) as net, net.sites[0]:
        results = run(options, net)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

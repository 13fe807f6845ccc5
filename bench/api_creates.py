"""What the control plane does while its disk works: forwards created by several callers at once, and GET /healthz beside them.
PORTWAY_SLOW_MS makes each sync of the disk take so much longer. Prints the seconds, the disk's syncs, and the longest wait for
/healthz. Compare two builds in one go:

    PORTWAY_SLOW_MS=2 PORTWAY_SLOW_DISK_SHIM=$PWD/build/release/tests/daemon/libslow_disk_shim.so PORTWAY_SOURCE_DIRECTORY=$PWD \\
      python3 bench/api_creates.py FORWARDS CALLERS PORTWAYD [PORTWAYD...]
"""
import http.client
import json
import os
import statistics
import sys
import threading
import time

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, isolate  # noqa: E402

ROUNDS = 3
INSTANCES = 8


class Caller(threading.Thread):
    def __init__(self, node, instance, forwards):
        super().__init__()
        self.node, self.instance, self.forwards = node, instance, forwards

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port)
        headers = {"Authorization": f"Bearer {self.node.admin_key()}", "Content-Type": "application/json"}
        for _ in range(self.forwards):
            connection.request("POST", f"/instances/{self.instance}/port-forwards", json.dumps({"guest_port": 3000}), headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 201:
                raise RuntimeError(body)


class Health(threading.Thread):
    def __init__(self, node):
        super().__init__()
        self.node, self.waits, self.done = node, [], threading.Event()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port)
        while not self.done.wait(0.01):
            began = time.monotonic()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            self.waits.append(1000 * (time.monotonic() - began))


def measure(daemon, forwards, callers):
    os.environ["PORTWAY_DAEMON"] = daemon
    with Portwayd("profiles.default.max_forwarded_ports=65535", "ports.range=10000-60000", "api.rate_limit_per_second=0",
                  start=False) as node:
        syncs = f"{node.directory}/syncs"
        node.start({"LD_PRELOAD": os.environ["PORTWAY_SLOW_DISK_SHIM"], "PORTWAY_SLOW_PATH": f"{node.directory}/portway.db",
                    "PORTWAY_SLOW_MS": os.environ.get("PORTWAY_SLOW_MS", "0"), "PORTWAY_SLOW_HANG": f"{node.directory}/hang", "PORTWAY_SLOW_LOG": syncs})
        for i in range(INSTANCES):
            node.put_instance(f"vm-{i}", tap=f"tap{i}")
        threads = [Caller(node, f"vm-{i % INSTANCES}", forwards // callers) for i in range(callers)]
        health = Health(node)
        before = os.path.getsize(syncs)
        began = time.monotonic()
        for thread in (health, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        health.done.set()
        health.join()
        return took, os.path.getsize(syncs) - before, max(health.waits)


def main():
    forwards, callers = int(sys.argv[1]), int(sys.argv[2])
    daemons = sys.argv[3:]
    isolate()
    results = {daemon: [] for daemon in daemons}
    for _ in range(ROUNDS):
        for daemon in daemons:
            results[daemon].append(measure(daemon, forwards, callers))
    for daemon, rounds in results.items():
        seconds, syncs, waits = zip(*rounds)
        print(f"{daemon}: {forwards} forwards by {callers} callers in {statistics.median(seconds):.2f} s "
              f"({min(seconds):.2f} to {max(seconds):.2f}), {statistics.median(syncs):.0f} syncs, "
              f"/healthz after at most {max(waits):.1f} ms")


if __name__ == "__main__":
    main()

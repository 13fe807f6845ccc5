#!/usr/bin/env python3
"""How many guests, each in a network namespace of its own, cost; writes the figures.

    bench/compare/namespaces.py --build build/release [--namespaces 1000]

Needs root. Each namespace has a tap0 (the end of a veth) and a guest 198.19.0.2 behind it, which is another namespace.
All instances are registered, with two forwards each; then a client asks each forward which guest is behind it, metrics
are read, the daemon is killed and started again, the instances are deleted, and the namespaces are removed.
"""
import argparse
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time

import control_plane
import network
import subjects

SCRATCH = "/dev/shm"
GUEST, INNER = "198.19.0.2", "198.19.0.1"
PORTS = (7001, 7002)
# Permanent neighbours: the kernel finds no more than 1,024 in all namespaces together (gc_thresh3).
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


class Node(subjects.Portway):
    name = "portway-uring"
    range = "20000-32767"
    source_mode = "auto"

    def more_of_guests(self):
        return f'netns_directories = ["{SCRATCH}/netns"]\n'


class Sandbox:
    """A namespace with a name, a guest behind its tap0, and a link to the host that shows how long it lives."""

    def __init__(self, number, host):
        self.number, self.path = number, f"{SCRATCH}/netns/{number}"
        inside, self.guest = network.Namespace(), network.Namespace()
        with open(self.path, "w", encoding="ascii"):
            subprocess.run(["mount", "--bind", inside.path(), self.path], check=True)
        batch = [f"link add tap0 type veth peer name eth0 netns {self.guest.path()}",
                 f"link add sign type veth peer name sign{number} netns {host.path()}",
                 f"link set tap0 address {MACS[0]} up", f"addr add {INNER}/24 dev tap0",
                 f"neigh add {GUEST} lladdr {MACS[1]} dev tap0"]
        inside.run("ip", "-batch", "-", input="\n".join(batch).encode())
        batch = [f"link set eth0 address {MACS[1]} up", f"addr add {GUEST}/24 dev eth0",
                 f"neigh add {INNER} lladdr {MACS[0]} dev eth0", f"route add default via {INNER}"]
        self.guest.run("ip", "-batch", "-", input="\n".join(batch).encode())
        inside.close()

    def listen(self):
        self.guest.enter()
        listeners = [socket.create_server((GUEST, port)) for port in PORTS]
        network.HOME.enter()
        return listeners

    def remove(self):
        subprocess.run(["umount", "--lazy", self.path], check=True)  # as `ip netns del` does
        os.unlink(self.path)


def serve(sandboxes):
    """Tells each client the number of its guest and the address that the guest sees."""
    poll, by_fd = select.poll(), {}
    for sandbox in sandboxes:
        for listener in sandbox.listen():
            by_fd[listener.fileno()] = (listener, sandbox.number)
            poll.register(listener, select.POLLIN)

    def run():
        while True:
            for fd, _ in poll.poll():
                listener, number = by_fd[fd]
                client, address = listener.accept()
                client.sendall(f"{number} {address[0]}".encode())
                client.close()
    threading.Thread(target=run, daemon=True).start()


def ask(net, forwards):
    """Each forward in turn, from the client's namespace."""
    net.client.enter()
    wrong, seen = 0, set()
    for number, address, port in forwards:
        with socket.create_connection((address, port), timeout=10) as client:
            answer = client.recv(100).decode().split()
        wrong += answer[:1] != [str(number)]
        seen.update(answer[1:])
    network.HOME.enter()
    if wrong:
        raise subjects.SubjectError(f"{wrong} of {len(forwards)} forwards lead to another guest")
    return sorted(seen)


def status(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        rss = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    return {"rss_mib": rss / 1024, "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


def signs(host):
    listed = subprocess.run(["ip", "-o", "link"], preexec_fn=host.enter, capture_output=True, check=True)
    return listed.stdout.count(b": sign")


def slab_kib():
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Slab:"))


def run(options, net):
    host = net.sites[0].host
    os.mkdir(f"{SCRATCH}/netns")
    node = Node(options)
    node.site = net.sites[0]
    node.start(2000)
    sandboxes = [Sandbox(number, host) for number in range(options.namespaces)]
    serve(sandboxes)
    api = control_plane.Api(node)
    results = {"namespaces": len(sandboxes), "before": status(node.process.pid)}
    slab = slab_kib()

    def put():
        for each in sandboxes:
            api.call("PUT", f"/instances/vm-{each.number}",
                     {"guest_address": GUEST, "tap": "tap0", "netns": each.path, "owner": "benchmark"})
    _, results["put_s"] = control_plane.timed(put)

    def create():
        made = []
        for each in sandboxes:
            for port in PORTS:
                answer = api.call("POST", f"/instances/vm-{each.number}/port-forwards", {"guest_port": port})
                made.append((each.number, node.site.public, answer["port_forward"]["host_port"]))
        return made
    forwards, results["create_s"] = control_plane.timed(create)
    results["registered"] = status(node.process.pid) | {"slab_mib": (slab_kib() - slab) / 1024}
    results["guests_see"], results["ask_s"] = control_plane.timed(lambda: ask(net, forwards))

    def scrape():
        api.connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {api.key}"})
        return len(api.connection.getresponse().read())
    results["scrape_bytes"], results["scrape_s"] = control_plane.timed(scrape)

    node.process.send_signal(signal.SIGKILL)
    node.process.wait()
    _, results["restart_s"] = control_plane.timed(
        lambda: (node.launch(node.program, "--config", node.path("portway.toml")),
                 node.wait_until(node._healthy, "does not come back")))
    results["restarted"] = status(node.process.pid)
    ask(net, forwards)
    with open(node.path("admin.key"), encoding="ascii") as file:
        node.key = file.read().strip()
    api = control_plane.Api(node)

    gone, kept = sandboxes[::2], sandboxes[1::2]

    def delete():
        for each in gone:
            api.call("DELETE", f"/instances/vm-{each.number}")
    _, results["delete_half_s"] = control_plane.timed(delete)
    for each in gone:
        each.remove()
    began = time.perf_counter()
    while signs(host) > len(kept):
        if time.perf_counter() - began > 30:
            raise subjects.SubjectError(f"{signs(host) - len(kept)} namespaces of deleted instances live on")
    results["deleted_ones_end_s"] = time.perf_counter() - began

    for each in kept:
        each.remove()  # their sessions are running
    began = time.perf_counter()
    while signs(host) > 0:
        if time.perf_counter() - began > 30:
            raise subjects.SubjectError(f"{signs(host)} namespaces without a name live on")
    results["unnamed_ones_end_s"] = time.perf_counter() - began
    results["after"] = status(node.process.pid)
    _, results["stop_s"] = control_plane.timed(node.stop)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespaces", type=int, default=1_000)
    options = control_plane.prepare(parser, SCRATCH)
    options.forwards = 0
    with network.Network(1) as net, net.sites[0]:
        network.HOME.fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)  # the host's, for Sandbox
        results = run(options, net)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

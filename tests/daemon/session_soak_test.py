"""Sessions that end in every way, at random and again and again: descriptors, ports, connections, rules, programs and
kernel memory are where they were before.
"""
import collections
import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.moments import SEED  # noqa: E402
from tests.support.portwayd import Portwayd, hold_tap, isolate, wait_until  # noqa: E402

INSTANCES = 12
ROUNDS = 150


class Machine:
    """An instance with its tap, its VMM's process, its forward and a client."""

    def __init__(self, node, name):
        self.node, self.name, self.tap = node, name, name
        self.holder = self.vmm = self.client = self.forward = None
        self.make_tap()

    def make_tap(self):
        subprocess.run(["ip", "tuntap", "add", "dev", self.tap, "mode", "tap"], check=True)
        subprocess.run(["ip", "link", "set", self.tap, "up"], check=True)

    def run(self):
        self.holder = hold_tap(self.tap)
        self.vmm = subprocess.Popen(["sleep", "1000"])
        answer = self.node.put_instance(self.name, tap=self.tap, vmm_pid=self.vmm.pid)
        assert answer.status in (200, 201), answer
        answer = self.node.call("POST", f"/instances/{self.name}/port-forwards", {"guest_port": 3000})
        assert answer.status == 201, answer
        self.forward = answer.json()["port_forward"]
        self.client = socket.create_connection(("127.0.0.1", self.forward["host_port"]))

    def path(self):
        return f"/instances/{self.name}"

    def is_over(self):
        answer = self.node.call("GET", self.path())
        return answer.status == 404 or answer.json()["instance"]["state"] == "stopped"

    def clean_up(self):
        if self.holder is not None:
            os.close(self.holder)
        self.vmm.kill()
        self.vmm.wait()
        self.holder = self.vmm = None

    # --- Its ends.

    def lose_carrier(self):
        os.close(self.holder)
        self.holder = None

    def delete_tap(self):
        subprocess.run(["ip", "link", "del", self.tap], check=True)
        self.clean_up()
        self.make_tap()

    def kill_vmm(self):
        self.vmm.kill()

    def stop(self):
        assert self.node.call("POST", self.path() + "/stop").status == 200

    def delete(self):
        assert self.node.call("DELETE", self.path()).status == 204

    def keep_and_stop(self):
        self.node.call("DELETE", f"{self.path()}/port-forwards/{self.forward['id']}?connections=keep")
        self.stop()

    def drain_and_lose_carrier(self):
        self.node.call("DELETE", f"{self.path()}/port-forwards/{self.forward['id']}?connections=drain")
        self.lose_carrier()


ENDS = ("lose_carrier", "delete_tap", "kill_vmm", "stop", "delete", "keep_and_stop", "drain_and_lose_carrier")


class SessionSoak(unittest.TestCase):
    MADE_ONCE = {"descriptors": None, "bytes of programs and maps": None}

    def resources(self, node):
        metrics = node.call("GET", "/metrics?scope=node").body.decode()
        active = next(line for line in metrics.splitlines() if line.startswith("portway_connections_active"))
        return {
            "descriptors": collections.Counter(self.descriptors(node)),
            "ports": node.call("GET", "/v1/info").json()["ports"]["allocated"],
            "connections": float(active.split()[-1]),
            "rules": subprocess.run(["ip", "rule"], check=True, capture_output=True).stdout,
            "filters": [subprocess.run(["tc", "filter", "show", "dev", f"vm{i}", "ingress"], check=True,
                                       capture_output=True).stdout for i in range(INSTANCES)],
            "sockets": self.sockets(),
            "bytes of programs and maps": self.locked_bytes(node),
        }

    @staticmethod
    def sockets():
        """TCP sockets of this namespace, those too that no process has any more; orphans are counted for the machine."""
        with open("/proc/net/sockstat", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("TCP:")).split()
        return {name: line[line.index(name) + 1] for name in ("inuse", "tw")}

    @staticmethod
    def locked_bytes(node):
        """What the kernel holds for the daemon's BPF programs and maps."""
        directory = f"/proc/{node.process.pid}/fdinfo"
        total = 0
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError), open(f"{directory}/{name}", encoding="ascii") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("memlock:"))
        return total

    @staticmethod
    def descriptors(node):
        directory = f"/proc/{node.process.pid}/fd"
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                yield os.readlink(f"{directory}/{name}").partition(":")[0]

    def test_nothing_is_left(self):
        isolate()
        rng = random.Random(SEED)
        with Portwayd("proxy.connect_timeout_ms=60000", "proxy.drain_timeout_s=60") as node:
            machines = [Machine(node, f"vm{i}") for i in range(INSTANCES)]
            at_first = self.resources(node)
            before = None
            for round_number in range(ROUNDS):
                machine = rng.choice(machines)
                machine.run()
                getattr(machine, rng.choice(ENDS))()
                what = f"seed {SEED}, round {round_number}"
                self.assertTrue(wait_until(machine.is_over), what)
                with self.assertRaises(ConnectionResetError, msg=what):
                    machine.client.settimeout(30)
                    machine.client.recv(1)
                machine.client.close()
                with socket.socket() as again:
                    self.assertEqual(again.connect_ex(("127.0.0.1", machine.forward["host_port"])), errno.ECONNREFUSED, what)
                if machine.vmm is not None:
                    machine.clean_up()
                if round_number == ROUNDS // 5:  # with the descriptors that are made once
                    before = self.settled(node, {**at_first, **self.MADE_ONCE})
            self.settled(node, before)

    def settled(self, node, wanted):
        """The resources once they are as wanted; None stands for anything."""
        now = {}

        def look():
            now.update(self.resources(node))
            return all(value is None or value == now[name] for name, value in wanted.items())
        self.assertTrue(wait_until(look), f"wanted {wanted}\n found {now}")
        return dict(now)


if __name__ == "__main__":
    unittest.main()

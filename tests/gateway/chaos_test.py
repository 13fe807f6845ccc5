"""A fleet under load while its parts die: three members of etcd, three nodes, two gateways. What callers were told is compared
with what there is in the end.

    chaos_test.py [--seconds SECONDS] [--seed SEED]     20 seconds unless told, as in CI; by hand 300
"""
import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.etcd_cluster import EtcdCluster  # noqa: E402
from tests.support.fleet import LEASE_S, Fleet, require_fleet  # noqa: E402
from tests.support.portwayd import isolate, wait_until  # noqa: E402

CALLERS = 6
INSTANCES = 6
SETTLED_S = 90
OPTIONS = argparse.Namespace(seconds=20, seed=1)


class Link:
    """A way from one process to a TCP address that can be cut: what it carries ends, and nobody gets through."""

    def __init__(self, listen, to):
        self.to = to
        self.is_cut = False
        self.pairs = set()
        self.socket = socket.create_server(listen)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.socket.accept()
            try:
                if self.is_cut:
                    raise ConnectionError
                server = socket.create_connection(self.to, 5)
            except OSError:
                client.close()
                continue
            self.pairs.add((client, server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self.carry, args=(source, sink, (client, server)), daemon=True).start()

    def carry(self, source, sink, pair):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in pair:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        if pair in self.pairs:
            self.pairs.discard(pair)
        else:  # both ways have ended
            for each in pair:
                each.close()

    def cut(self):
        self.is_cut = True
        for pair in list(self.pairs):
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def mend(self):
        self.is_cut = False


class Caller(threading.Thread):
    """Makes and deletes forwards through gateways, and remembers what it was told."""

    def __init__(self, test, number):
        super().__init__(daemon=True)
        self.test = test
        self.random = random.Random(f"{OPTIONS.seed}-{number}")
        self.number = number
        self.made = {}  # id: (instance, host port), of those that were answered 201
        self.gone = {}  # the same, of those that were answered 204
        self.unknown = set()  # ids whose deletion was not answered
        self.answers = {}
        self.done = 0
        self.failure = None

    def call(self, method, path, body=None, **headers):
        """The status and JSON of whichever gateway; 0: no answer."""
        gateway = self.random.choice(self.test.gateways)
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        try:
            headers = {"Authorization": f"Bearer {self.test.key}", "Content-Type": "application/json", **headers}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            self.answers[(method, answer.status)] = self.answers.get((method, answer.status), 0) + 1
            return answer.status, json.loads(text) if text else None
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    def create(self):
        instance = f"vm-{self.random.randrange(INSTANCES)}"
        self.done += 1
        name = f"c{self.number}-{self.done}"
        while not self.test.is_over:  # the same request, until it is answered: there must be one forward of that name
            status, body = self.call("POST", f"/instances/{instance}/port-forwards", {"guest_port": 3000, "label": name},
                                     **{"Idempotency-Key": name})
            if status == 201:
                forward = body["port_forward"]
                self.made[forward["id"]] = (instance, forward["host_port"])
            if status not in (0, 503):
                self.test.assertEqual(status, 201, body)
                return

    def delete(self):
        forward, (instance, port) = self.random.choice(list(self.made.items()))
        del self.made[forward]
        self.unknown.add(forward)
        while not self.test.is_over:
            status, body = self.call("DELETE", f"/instances/{instance}/port-forwards/{forward}")
            if status in (204, 404):  # 404: a try before was carried out, and not answered
                self.unknown.discard(forward)
                self.gone[forward] = (instance, port)
            if status not in (0, 503):
                self.test.assertIn(status, (204, 404), body)
                return

    def look(self):
        status, body = self.call("GET", self.random.choice(["/port-forwards?limit=1000", "/instances", "/v1/info"]))
        self.test.assertIn(status, (0, 200, 503), body)

    def run(self):
        try:
            self.work()
        except AssertionError as failure:
            self.failure = failure

    def work(self):
        while not self.test.is_over:
            if len(self.made) < 5 or self.random.random() < 0.4:
                self.create()
            elif self.random.random() < 0.5:
                self.delete()
            else:
                self.look()


class Chaos(unittest.TestCase):
    def setUp(self):
        require_fleet()
        isolate()
        self.random = random.Random(OPTIONS.seed)
        self.is_over = False
        self.fleet = self.enterContext(Fleet(EtcdCluster()))
        self.etcd = self.fleet.etcd
        # Node 3 reaches etcd, and gateways reach node 3, by links that can be cut.
        self.links = [Link(("198.18.6.1", 12379 + member), (f"198.18.6.{1 + member}", 2379)) for member in range(3)]
        subprocess.run(["ip", "address", "replace", "198.18.5.13/32", "dev", "lo"], check=True)
        self.way = Link(("198.18.5.13", 9443), ("198.18.5.13", 8443))
        self.nodes = [self.fleet.node(1), self.fleet.node(2),
                      self.fleet.node(3, "fleet.etcd=" + ",".join(f"http://198.18.6.1:{12379 + each}" for each in range(3)),
                                      "fleet.address=https://198.18.5.13:9443")]
        self.gateways = [self.fleet.gateway(), self.fleet.gateway()]
        for gateway in self.gateways:
            gateway.wait_for_nodes(n1="up", n2="up", n3="up")
        first = self.gateways[0]
        self.assertEqual(first.call("PUT", "/profiles/large", {"max_forwarded_ports": 10000}).status, 201)
        self.key = first.tenant_key("alice")
        for number in range(INSTANCES):
            node = f"n{1 + number % 3}"
            put = lambda: first.put_on(node, f"vm-{number}", profile="large", guest_address=f"198.19.0.{10 + number}")
            self.assertTrue(wait_until(lambda: put().status in (200, 201)), put())

    def hurt(self):
        """Something ends, hangs or is cut for a while. What it was."""
        kind = self.random.choice(["node", "gateway", "etcd", "hang", "etcd link", "node link"])
        pause = self.random.uniform(0.2, LEASE_S + 3 if self.random.random() < 0.3 else 2)
        node, gateway = self.random.choice(self.nodes), self.random.choice(self.gateways)
        member = self.random.randrange(3)
        links = self.links if kind == "etcd link" else [self.way]
        begin, end = {
            "node": (node.kill, node.start),
            "gateway": (gateway.kill, gateway.start),
            "etcd": (lambda: self.etcd.kill(member), lambda: self.etcd.start(member)),
            "hang": (lambda: node.process.send_signal(signal.SIGSTOP), lambda: node.process.send_signal(signal.SIGCONT)),
        }.get(kind, (lambda: [link.cut() for link in links], lambda: [link.mend() for link in links]))
        begin()
        time.sleep(pause)  # how long it lasts is what is tried; nothing is waited for
        end()
        return kind

    def forwards_at(self, gateway):
        """(instance, host port) of all, by id; None if the list is not whole or not fresh."""
        found, cursor = {}, ""
        while cursor is not None:
            answer = gateway.call("GET", f"/port-forwards?limit=1000&cursor={cursor}")
            if answer.status != 200 or answer.json().get("stale"):
                return None
            found |= {each["id"]: (each["instance_id"], each["host_port"]) for each in answer.json()["port_forwards"]}
            cursor = answer.json().get("next_cursor")
        return found

    def forwards_of_nodes(self):
        found, names = {}, []
        for node in self.nodes:
            cursor = ""
            while cursor is not None:
                page = node.call("GET", f"/port-forwards?limit=1000&cursor={cursor}").json()
                found |= {each["id"]: (each["instance_id"], each["host_port"]) for each in page["port_forwards"]}
                names += [each["label"] for each in page["port_forwards"]]
                cursor = page.get("next_cursor")
        return found, names

    def test_what_callers_were_told_is_true(self):
        callers = [Caller(self, number) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        hurts = {}
        end = time.monotonic() + OPTIONS.seconds
        while time.monotonic() < end:
            kind = self.hurt()
            hurts[kind] = hurts.get(kind, 0) + 1
        self.is_over = True
        for caller in callers:
            caller.join(90)
            self.assertFalse(caller.is_alive())
            self.assertIsNone(caller.failure)

        real, names = self.forwards_of_nodes()
        told = {key: value for caller in callers for key, value in caller.made.items()}
        gone = {key: value for caller in callers for key, value in caller.gone.items()}
        print(f"{OPTIONS.seconds} s, seed {OPTIONS.seed}: {sum(caller.done for caller in callers)} creates, {len(told)} left, "
              f"{len(gone)} deleted; {hurts}")
        print({f"{method} {status}": sum(caller.answers.get((method, status), 0) for caller in callers)
               for method, status in sorted({key for caller in callers for key in caller.answers})})
        self.assertEqual({key: real.get(key) for key in told}, told, "what was answered 201 is there")
        self.assertEqual([key for key in gone if key in real], [], "what was answered 204 is gone")
        self.assertEqual(len(names), len(set(names)), "a repeated request has made one forward")
        for instance, port in told.values():
            socket.create_connection(("127.0.0.1", port), 10).close()
        for gateway in self.gateways:
            self.assertTrue(wait_until(lambda: self.forwards_at(gateway) == real, SETTLED_S), self.difference(gateway, real))
            gateway.wait_for_nodes(n1="up", n2="up", n3="up")

    def difference(self, gateway, real):
        """For a human: what is not the same at a gateway, in etcd and on the nodes."""
        listed = self.forwards_at(gateway) or {}
        apart = {key: (listed.get(key), real.get(key)) for key in {*listed, *real} if listed.get(key) != real.get(key)}
        keys = subprocess.run(["etcdctl", f"--endpoints={self.etcd.urls[0]}", "get", "--prefix", "--keys-only", "/portway/"],
                              capture_output=True, text=True, check=True, env={**os.environ, "ETCDCTL_API": "3"}).stdout
        claims = subprocess.run(["etcdctl", f"--endpoints={self.etcd.urls[0]}", "get", "--prefix", "/portway/claims/"],
                                capture_output=True, text=True, check=True, env={**os.environ, "ETCDCTL_API": "3"}).stdout
        return json.dumps({
            "apart": {key: {"gateway, nodes": value, "etcd": [each for each in keys.split() if key in each]}
                      for key, value in apart.items()},
            "claims": claims.split("\n"), "gateway": gateway.call("GET", "/v1/info").json(),
            "nodes": {node.id: [node.call("GET", "/v1/node").json()["process"]["faults"],
                                [each for each in node.call("GET", "/metrics").body.decode().split("\n")
                                 if each.startswith("portway_fleet")],
                                [(each["id"], each["session_id"], each["state"])
                                 for each in node.call("GET", "/instances").json()["instances"]]] for node in self.nodes}},
            indent=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seconds", type=float, default=OPTIONS.seconds)
    parser.add_argument("--seed", type=int, default=OPTIONS.seed)
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)

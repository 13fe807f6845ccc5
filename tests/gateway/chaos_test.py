"""A fleet under load while its parts die or are cut off: three members of etcd, three nodes with guests, two gateways, each node
and gateway on a host of its own. What callers were told is compared with what clients reach.

    chaos_test.py [--seconds SECONDS] [--seed SEED]     20 seconds unless told, as in CI; by hand 300
"""
import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.etcd_cluster import EtcdCluster  # noqa: E402
from tests.support.fleet import LEASE_S, Fleet, require_fleet  # noqa: E402
from tests.support.hosts import GUEST_PORT, Fabric, Guest, ask  # noqa: E402
from tests.support.portwayd import isolate, wait_until  # noqa: E402

CALLERS = 6
HURTERS = 2  # that is how many parts are hurt at once
INSTANCES = 6
ETCD_PORT, NODE_API_PORT = 2379, 8443
SETTLED_S = 90
OPTIONS = argparse.Namespace(seconds=20, seed=1)


class Caller(threading.Thread):
    """Makes, uses and deletes forwards, and remembers what it was told by gateways."""

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
        self.served = 0
        self.failure = None

    def call(self, method, path, body=None, **headers):
        """The status and JSON of whichever gateway; 0: no answer."""
        gateway = self.random.choice(self.test.gateways)
        try:
            connection = gateway.connect()
            with connection.sock:
                headers = {"Authorization": f"Bearer {self.test.key}", "Content-Type": "application/json", **headers}
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                text = answer.read()
            self.answers[(method, answer.status)] = self.answers.get((method, answer.status), 0) + 1
            return answer.status, json.loads(text) if text else None
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None

    def create(self):
        instance = f"vm-{self.random.randrange(INSTANCES)}"
        self.done += 1
        name = f"c{self.number}-{self.done}"
        while not self.test.is_over:  # the same request, until it is answered: there must be one forward of that name
            status, body = self.call("POST", f"/instances/{instance}/port-forwards", {"guest_port": GUEST_PORT, "label": name},
                                     **{"Idempotency-Key": name})
            if status == 201:
                forward = body["port_forward"]
                self.made[forward["id"]] = (instance, forward["host_port"])
                self.use(forward["id"])
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

    def use(self, forward):
        """As a client: its guest answers, and no other; unless the node itself was hurt meanwhile. Whatever else is."""
        instance, port = self.made[forward]
        node = self.test.node_of(instance)
        hurt = node.hurt
        try:
            answer = ask(node.address, port, forward)
        except OSError as error:
            self.test.assertTrue(hurt % 2 == 1 or node.hurt != hurt, f"{forward} of {instance} at {port}: {error}")
            return
        self.test.assertEqual(answer, (instance, forward))
        self.served += 1

    def run(self):
        try:
            self.work()
        except Exception as failure:  # pylint: disable=broad-except  # whatever it was, the test fails by it
            self.failure = failure

    def work(self):
        while not self.test.is_over:
            if len(self.made) < 5 or self.random.random() < 0.3:
                self.create()
            elif self.random.random() < 0.3:
                self.delete()
            elif self.random.random() < 0.5:
                self.look()
            else:
                self.use(self.random.choice(list(self.made)))


class Hurter(threading.Thread):
    """Has parts of the fleet end, hang or be cut off for a while, one after the other."""

    def __init__(self, test, number):
        super().__init__(daemon=True)
        self.test = test
        self.random = random.Random(f"{OPTIONS.seed}-hurter-{number}")
        self.done = {}
        self.failure = None
        self.finished = threading.Event()

    def take(self):
        """A part that nobody else hurts."""
        with self.test.lock:
            part = self.random.choice(sorted(self.test.unhurt))
            self.test.unhurt.remove(part)
        return part

    def ways(self, part):
        """(what, how it begins, how it ends)"""
        kind, number = part
        if kind == "etcd":
            return [("etcd is killed", lambda: self.test.etcd.kill(number),
                     lambda: self.test.etcd.start(number, wait=False))]
        if kind == "gateway":
            gateway = self.test.gateways[number]
            return [("a gateway is killed", gateway.kill, gateway.start),
                    ("a gateway is cut off from etcd", lambda: gateway.host.cut(ETCD_PORT), gateway.host.mend),
                    ("a gateway is cut off from nodes", lambda: gateway.host.cut(NODE_API_PORT), gateway.host.mend)]
        node = self.test.nodes[number]

        def itself(what, begin, end):
            def hurt():
                node.hurt += 1
                begin()

            def heal():
                end()
                node.hurt += 1
            return what, hurt, heal
        return [itself("a node is killed", node.kill, node.start),
                itself("a node is stopped", node.stop, node.start),
                itself("a node hangs", lambda: node.process.send_signal(signal.SIGSTOP),
                       lambda: node.process.send_signal(signal.SIGCONT)),
                ("a node is cut off from etcd", lambda: node.host.cut(ETCD_PORT), node.host.mend),
                ("a node is cut off from gateways", lambda: node.host.cut(NODE_API_PORT), node.host.mend),
                ("a node is cut off from both", lambda: node.host.cut(ETCD_PORT, NODE_API_PORT), node.host.mend)]

    def hurt(self):
        part = self.take()
        what, begin, end = self.random.choice(self.ways(part))
        begin()
        self.done[what] = self.done.get(what, 0) + 1
        # How long it lasts is what is tried; nothing is waited for.
        time.sleep(self.random.uniform(0.2, LEASE_S + 3 if self.random.random() < 0.3 else 2))
        end()
        with self.test.lock:
            self.test.unhurt.add(part)

    def run(self):
        try:
            while not self.test.is_over:
                self.hurt()
        except Exception as failure:  # pylint: disable=broad-except  # whatever it was, the test fails by it
            self.failure = failure
        self.finished.set()
        self.test.has_ended.wait()  # what a thread has started ends with it


class Chaos(unittest.TestCase):
    def setUp(self):
        require_fleet()
        isolate()
        self.is_over = False
        self.has_ended = threading.Event()
        self.addCleanup(self.has_ended.set)
        self.lock = threading.Lock()
        self.fleet = self.enterContext(Fleet(EtcdCluster()))
        self.etcd = self.fleet.etcd
        fabric = Fabric()
        self.nodes = []
        for number in (1, 2, 3):
            host = fabric.host(f"n{number}", 10 + number)
            node = self.fleet.node(number, f"node.public_addresses={host.address}", host=host)
            node.hurt = 0  # odd: it is
            self.nodes.append(node)
        self.gateways = [self.fleet.gateway(host=fabric.host(f"g{number}", 20 + number)) for number in (1, 2)]
        for gateway in self.gateways:
            gateway.wait_for_nodes(n1="up", n2="up", n3="up")
        first = self.gateways[0]
        self.assertEqual(first.call("PUT", "/profiles/large", {"max_forwarded_ports": 10000}).status, 201)
        self.key = first.tenant_key("alice")
        for number in range(INSTANCES):
            node = self.node_of(f"vm-{number}")
            guest = Guest(node.host, f"vm-{number}", 10 + number)
            put = lambda: first.put_on(node.id, guest.name, profile="large", guest_address=guest.address, tap=guest.tap)
            self.assertTrue(wait_until(lambda: put().status in (200, 201)), put())
        for gateway in self.gateways:
            listed = lambda: len(gateway.call("GET", "/instances").json()["instances"])
            self.assertTrue(wait_until(lambda: listed() == INSTANCES), gateway.call('GET','/instances'))
        self.unhurt = {(kind, number) for kind, count in (("node", 3), ("gateway", 2), ("etcd", 3)) for number in range(count)}
        self.unhurt -= {("etcd", 0)}  # it stays; if both others are killed, there is no quorum for a while

    def node_of(self, instance):
        return self.nodes[int(instance.rpartition("-")[2]) % len(self.nodes)]

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
            node.close_connection()  # it may have been idle for too long
            cursor = ""
            while cursor is not None:
                page = node.call("GET", f"/port-forwards?limit=1000&cursor={cursor}").json()
                found |= {each["id"]: (each["instance_id"], each["host_port"]) for each in page["port_forwards"]}
                names += [each["label"] for each in page["port_forwards"]]
                cursor = page.get("next_cursor")
        return found, names

    def test_what_callers_were_told_is_true(self):
        callers = [Caller(self, number) for number in range(CALLERS)]
        hurters = [Hurter(self, number) for number in range(HURTERS)]
        for each in (*callers, *hurters):
            each.start()
        end = time.monotonic() + OPTIONS.seconds
        while time.monotonic() < end and all(each.failure is None for each in (*callers, *hurters)):
            time.sleep(0.1)  # that is how long the test lasts
        self.is_over = True
        for hurter in hurters:
            self.assertTrue(hurter.finished.wait(90))
        for caller in callers:
            caller.join(90)
            self.assertFalse(caller.is_alive())
        for each in (*callers, *hurters):
            if each.failure is not None:
                raise each.failure

        real, names = self.forwards_of_nodes()
        told = {key: value for caller in callers for key, value in caller.made.items()}
        gone = {key: value for caller in callers for key, value in caller.gone.items()}
        print(f"{OPTIONS.seconds} s, seed {OPTIONS.seed}: {sum(caller.done for caller in callers)} creates, {len(told)} left, "
              f"{len(gone)} deleted; clients were answered {sum(caller.served for caller in callers)} times;",
              {what: sum(each.done.get(what, 0) for each in hurters) for what in sorted({*hurters[0].done, *hurters[1].done})})
        print({f"{method} {status}": sum(caller.answers.get((method, status), 0) for caller in callers)
               for method, status in sorted({key for caller in callers for key in caller.answers})})
        self.assertTrue(told and gone and sum(caller.served for caller in callers))
        self.assertEqual({key: real.get(key) for key in told}, told, "what was answered 201 is there")
        self.assertEqual([key for key in gone if key in real], [], "what was answered 204 is gone")
        self.assertEqual(len(names), len(set(names)), "a repeated request has made one forward")
        for forward, (instance, port) in told.items():
            self.assertEqual(ask(self.node_of(instance).address, port, forward), (instance, forward))
        serving = {(self.node_of(instance).id, port) for instance, port in real.values()}
        for instance, port in gone.values():
            node = self.node_of(instance)
            if (node.id, port) not in serving:  # the port may have become another forward's
                with self.assertRaises(OSError):
                    ask(node.address, port)
        for gateway in self.gateways:
            same = lambda: self.forwards_at(gateway) == self.forwards_of_nodes()[0]
            self.assertTrue(wait_until(same, SETTLED_S), self.difference(gateway, self.forwards_of_nodes()[0]))
            gateway.wait_for_nodes(n1="up", n2="up", n3="up")

    def difference(self, gateway, real):
        """For a human: what is not the same at a gateway, in etcd and on the nodes."""
        listed = self.forwards_at(gateway) or {}
        apart = {key: (listed.get(key), real.get(key)) for key in {*listed, *real} if listed.get(key) != real.get(key)}

        def in_etcd(*words):
            return subprocess.run(["etcdctl", f"--endpoints={self.etcd.urls[0]}", "get", "--prefix", *words],
                                  capture_output=True, text=True, check=True, env={**os.environ, "ETCDCTL_API": "3"}).stdout
        keys = in_etcd("--keys-only", "/portway/").split()
        return json.dumps({
            "apart": {key: {"gateway, nodes": value, "etcd": [each for each in keys if key in each]}
                      for key, value in apart.items()},
            "claims": in_etcd("/portway/claims/").split("\n"), "gateway": gateway.call("GET", "/v1/info").json(),
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

"""What becomes of a gateway's answers when nodes or etcd fail, when the gateway is told to stop or to reload, and when its
configuration is wrong.
"""
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest
import uuid

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.fleet import LEASE_S, Fleet, require_fleet  # noqa: E402
from tests.support.portwayd import isolate, wait_until  # noqa: E402

PATIENCE_S = 60


class GatewayFailuresTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_fleet()
        isolate()

    def setUp(self):
        self.fleet = self.enterContext(Fleet())

    def start(self, nodes=2, gateways=1):
        """An instance vm-1 on the node n1, and so on."""
        self.nodes = [self.fleet.node(number) for number in range(1, nodes + 1)]
        self.gateways = [self.fleet.gateway() for _ in range(gateways)]
        self.gateway = self.gateways[0]
        for each in self.gateways:
            each.wait_for_nodes(**{node.id: "up" for node in self.nodes})
        for number, node in enumerate(self.nodes, 1):
            self.assertEqual(self.gateway.put_on(node.id, f"vm-{number}").status, 201)
            made = self.gateway.call("POST", f"/instances/vm-{number}/port-forwards", {"guest_port": 3000})
            self.assertEqual(made.status, 201, made)
        for each in self.gateways:
            self.assertTrue(wait_until(
                lambda: len(each.call("GET", "/port-forwards").json()["port_forwards"]) == len(self.nodes)))

    def states(self, target, name):
        return [each["node_state"] for each in self.gateway.call("GET", target).json()[name]]

    def assert_unreachable(self, answer):
        self.assertEqual((answer.status, answer.json()["code"]), (503, "node_unreachable"), answer)
        self.assertGreater(int(answer.headers["retry-after"]), 0)

    # --- Nodes.

    def test_a_lost_node_is_known_and_comes_back(self):
        self.start()
        node, other = self.nodes
        with self.gateway.events() as events:
            node.kill()
            died = time.monotonic()
            self.assert_unreachable(self.gateway.call("GET", "/instances/vm-1"))  # before etcd knows
            self.gateway.wait_for_nodes(n1="lost", n2="up")
            self.assertLess(time.monotonic() - died, 3 * LEASE_S)  # etcd looks once a second, and tells then
            for method, target, body in (("GET", "/instances/vm-1", None),
                                         ("POST", "/instances/vm-1/port-forwards", {"guest_port": 80}),
                                         ("PUT", "/instances/vm-1", {}), ("PUT", "/instances/vm-9?node=n1", {}),
                                         ("GET", "/nodes/n1/v1/info", None), ("POST", "/nodes/n1/drain", None)):
                self.assert_unreachable(self.gateway.call(method, target, body))
            self.assertEqual(self.states("/instances", "instances"), ["lost", "up"])
            self.assertEqual(self.states("/port-forwards", "port_forwards"), ["lost", "up"])
            usage = self.gateway.call("GET", "/usage").json()
            self.assertEqual(([each["instance_id"] for each in usage["usage"]], usage["unreachable_nodes"]),
                             (["vm-2"], ["n1"]))
            self.assertEqual(self.gateway.call("GET", "/instances/vm-2").status, 200)
            node.start()
            self.gateway.wait_for_nodes(n1="up", n2="up")
            self.assertEqual(self.gateway.call("GET", "/instances/vm-1").status, 200)
            self.assertEqual(self.states("/port-forwards", "port_forwards"), ["up", "up"])
            kinds = [(kind, data["node"]) for _, kind, data in events.until(lambda kind, _: kind == "node.up")
                     if kind.startswith("node.")]
            self.assertEqual(kinds, [("node.lost", "n1"), ("node.up", "n1")])

    def test_a_node_that_hangs_holds_up_nobody_else(self):
        self.start()
        node = self.nodes[0]
        node.process.send_signal(signal.SIGSTOP)
        self.addCleanup(node.process.send_signal, signal.SIGCONT)
        answers, usage = [], []

        def ask(target, answers):
            connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=PATIENCE_S)
            connection.request("GET", target, headers={"Authorization": f"Bearer {self.gateway.admin_key()}"})
            answer = connection.getresponse()
            answers.append((answer.status, answer.read()))
            connection.close()

        hanging = [threading.Thread(target=ask, args=("/instances/vm-1", answers)) for _ in range(20)]
        hanging.append(threading.Thread(target=ask, args=("/usage", usage)))
        began = time.monotonic()
        for each in hanging:
            each.start()
        served = 0
        while any(each.is_alive() for each in hanging):
            self.assertEqual(self.gateway.call("GET", "/instances/vm-2").status, 200)
            served += 1
        for each in hanging:
            each.join()
        self.assertLess(time.monotonic() - began, 30)
        self.assertGreater(served, 100)
        self.assertEqual({status for status, _ in answers}, {503}, answers)
        status, body = usage[0][0], json.loads(usage[0][1])
        self.assertEqual((status, [each["instance_id"] for each in body["usage"]], body["unreachable_nodes"]),
                         (200, ["vm-2"], ["n1"]))
        node.process.send_signal(signal.SIGCONT)
        self.assertTrue(wait_until(lambda: self.gateway.call("GET", "/instances/vm-1").status == 200))

    def test_a_node_whose_certificate_has_expired_is_named(self):
        self.start()
        node = self.nodes[0]
        ends = self.fleet.of_nodes.issue("n1", f"IP:{node.address}", ends_in_s=8)
        os.rename(ends, node.pem)
        node.reload()

        def faults():
            return [each["part"] for each in node.call("GET", "/v1/node").json()["process"]["faults"]]
        self.assertEqual(faults(), [])  # it has it
        self.assertTrue(wait_until(lambda: faults() == ["certificate"]))
        self.gateway.kill_and_start()  # what is open stays as it is
        self.assertTrue(wait_until(lambda: "expired" in self.refusal()), self.refusal())
        self.assertIn(node.address, self.refusal())
        self.assertEqual(self.gateway.call("GET", "/instances/vm-2").status, 200)
        os.rename(self.fleet.of_nodes.issue("n1", f"IP:{node.address}"), node.pem)
        self.assertTrue(wait_until(lambda: self.gateway.call("GET", "/instances/vm-1").status == 200))

    def refusal(self):
        """What an admin is told of vm-1's node."""
        answer = self.gateway.call("GET", "/instances/vm-1").json()
        return answer["detail"] if answer.get("code") == "node_unreachable" else ""

    # --- etcd.

    def test_values_that_are_nonsense_end_nothing_and_are_counted(self):
        self.start()
        etcd, before = self.fleet.etcd, self.gateway.call("GET", "/port-forwards").json()
        bad = ("nodes/n7", "state/n7/instances/vm-7", f"state/n7/forwards/vm-7/{uuid.uuid4()}", "state/n7", "nowhere/x",
               "state/n1/instances/vm-1", f"state/n1/forwards/vm-1/{uuid.uuid4()}")  # a node mends what is its own
        for key in bad:
            for value in ("", "[]", '{"id": 7}', "\xff", "[" * 10000):
                etcd.control("put", f"/portway/{key}", value)
        etcd.control("put", f"/portway/keys/{uuid.uuid4()}", '{"role": "king"}')
        etcd.control("put", "/portway/profiles/broken", '{"max_forwarded_ports": -1}')
        self.assertTrue(wait_until(lambda: self.metric("portway_gateway_bad_values") == 3))
        self.assertTrue(wait_until(lambda: self.metric('portway_fault{part="fleet"}') == 2))  # key, profile
        late = self.fleet.gateway()  # which reads it all at once
        for each in (self.gateway, late):
            self.assertTrue(wait_until(lambda: each.call("GET", "/port-forwards").json() == before))
            self.assertEqual(each.nodes(), {"n1": "up", "n2": "up"})
            self.assertEqual(each.call("GET", "/instances/vm-1").status, 200)
        for prefix in ("keys/", "profiles/", "nodes/n7", "nowhere/", "state/n7"):
            etcd.control("del", "--prefix", f"/portway/{prefix}")
        self.assertTrue(wait_until(lambda: self.metric("portway_gateway_bad_values") == 0))
        self.assertTrue(wait_until(lambda: self.metric('portway_fault{part="fleet"}') == 0))

    def test_another_cluster_in_etcds_place_is_named_and_changes_nothing(self):
        self.start()
        key = self.gateway.tenant_key()
        etcd = self.fleet.etcd
        etcd.kill()
        shutil.rmtree(f"{etcd.directory}/data")
        etcd.start(token="another")
        self.assertTrue(wait_until(lambda: "cluster" in self.gateway.output(), PATIENCE_S), self.gateway.output())
        lists = self.gateway.call("GET", "/port-forwards", key=key).json()
        self.assertEqual((lists["stale"], len(lists["port_forwards"])), (True, 2))
        made = self.gateway.call("POST", "/instances/vm-1/port-forwards", {"guest_port": 8080}, key=key)
        self.assertEqual(made.status, 201, made)
        self.assertEqual(etcd.values("/portway/"), {})  # nobody has written to what may be somebody else's

    def test_while_etcd_is_away_lists_are_stale_and_nodes_serve(self):
        self.start()
        key = self.gateway.tenant_key()
        self.fleet.etcd.kill()
        self.assertTrue(wait_until(lambda: self.gateway.call("GET", "/instances").json().get("stale"), PATIENCE_S))
        for target in ("/port-forwards", "/nodes", "/nodes/n1", "/usage", "/instances/vm-1", "/v1/info", "/readyz"):
            answer = self.gateway.call("GET", target, key="admin")
            self.assertEqual((answer.status, answer.json().get("stale")), (200, True), target)
        made = self.gateway.call("POST", "/instances/vm-1/port-forwards", {"guest_port": 8080}, key=key)
        self.assertEqual(made.status, 201, made)
        self.assertEqual(self.gateway.call("GET", "/instances/vm-1/port-forwards").json()["stale"], True)
        # Nobody can say now that an instance is nowhere, or still where it was.
        for method, target in (("GET", "/instances/vm-9"), ("DELETE", "/instances/vm-9"), ("PUT", "/instances/vm-9"),
                               ("PUT", "/instances/vm-1")):
            answer = self.gateway.call(method, target, {} if method == "PUT" else None)
            self.assertEqual((answer.status, answer.json()["code"]), (503, "store_unavailable"), answer)
        self.assertEqual(self.gateway.put_on("n1", "vm-1").status, 200)
        for method, target, body in (("POST", "/api-keys", {"role": "tenant", "owner": "bob"}),
                                     ("PUT", "/profiles/large", {"max_forwarded_ports": 9})):
            answer = self.gateway.call(method, target, body)
            self.assertEqual((answer.status, answer.json()["code"]), (503, "store_unavailable"), answer)
        self.assertTrue(wait_until(lambda: "etcd" in self.gateway.output()))
        late = self.fleet.gateway()
        self.assertEqual(late.call("GET", "/healthz").status, 200)
        for target in ("/readyz", "/instances", "/port-forwards", "/nodes", "/instances/vm-1", "/usage", "/events"):
            answer = late.call("GET", target)
            self.assertEqual((answer.status, answer.json()["code"]), (503, "store_unavailable"), target)
            self.assertIn("retry-after", answer.headers)
        for _ in range(100):  # more than wrong keys may
            unread = late.call("GET", "/v1/whoami", key="perhaps-one-of-the-fleets")
            self.assertEqual((unread.status, unread.json()["code"]), (503, "store_unavailable"), unread)
        self.fleet.etcd.start()
        for each in (self.gateway, late):
            self.assertTrue(wait_until(lambda: each.call("GET", "/readyz").json() == {"status": "ready"}, PATIENCE_S))
            self.assertTrue(wait_until(lambda: each.nodes() == {"n1": "up", "n2": "up"}, PATIENCE_S))
            self.assertTrue(wait_until(
                lambda: len(each.call("GET", "/port-forwards").json()["port_forwards"]) == 3, PATIENCE_S))
            self.assertNotIn("stale", each.call("GET", "/instances").json())
            self.assertEqual(each.call("GET", "/instances/vm-1", key=key).status, 200)

    # --- The process.

    def test_a_stop_lets_answers_end(self):
        self.start(nodes=1)
        node = self.nodes[0]
        with self.gateway.events() as events:
            self.assertEqual(events.status, 200)
            node.process.send_signal(signal.SIGSTOP)
            asked = self.metric("portway_gateway_node_requests_total")
            connection = self.gateway.send(f"GET /instances/vm-1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
                                           f"{self.gateway.admin_key()}\r\n\r\n".encode(), finish=False)
            self.assertTrue(wait_until(lambda: self.metric("portway_gateway_node_requests_total") > asked))
            self.gateway.close_connection()
            self.gateway.process.send_signal(signal.SIGTERM)
            node.process.send_signal(signal.SIGCONT)
            with connection:
                self.assertIn(b" 200 ", connection.makefile("rb").readline())
            self.assertEqual(self.gateway.process.wait(60), 0)
            self.assertIsNone(events.next())

    def test_a_stop_does_not_wait_for_a_node_that_hangs(self):
        self.start(nodes=1)
        node = self.nodes[0]
        node.process.send_signal(signal.SIGSTOP)
        self.addCleanup(node.process.send_signal, signal.SIGCONT)
        asked = self.metric("portway_gateway_node_requests_total")
        head = f"Host: a\r\nAuthorization: Bearer {self.gateway.admin_key()}\r\n\r\n"
        for target in ("/instances/vm-1", "/usage", "/nodes/n1/events"):
            self.addCleanup(self.gateway.send(f"GET {target} HTTP/1.1\r\n{head}".encode(), finish=False).close)
        self.assertTrue(wait_until(lambda: self.metric("portway_gateway_node_requests_total") >= asked + 3))
        with self.gateway.events() as events:
            self.assertEqual(self.gateway.stop(), 0)
            self.assertIsNone(events.next())

    def metric(self, name):
        text = self.gateway.call("GET", "/metrics").body.decode()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))

    def test_a_reload_reads_the_admin_key_and_refuses_a_wrong_file(self):
        gateway = self.fleet.gateway(start=False)
        gateway.config = ""
        gateway.write_config("")
        gateway.start()
        old = gateway.admin_key()
        self.assertEqual(gateway.call("GET", "/whoami").status, 200)
        gateway.write_config('[ports]\nrange = "20000-30000"\n')
        gateway.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: "the configuration stays as it was: ports.range is for nodes" in gateway.output()))
        gateway.write_config("[fleet]\nlease_ttl_s = 20\n")
        os.unlink(f"{gateway.directory}/admin.key")
        gateway.reload()
        self.assertIn("changes of fleet need a restart", gateway.output())
        self.assertEqual(gateway.call("GET", "/whoami").status, 200)
        self.assertEqual(gateway.call("GET", "/whoami", key=old).status, 401)

    def test_a_wrong_configuration_is_refused_in_words(self):
        gateway = self.fleet.gateway(start=False)

        def check(*settings):
            done = subprocess.run([gateway.program, "--check", *(f"--set={each}" for each in (*gateway.settings, *settings))],
                                  capture_output=True, text=True, check=False, timeout=60, cwd=gateway.directory)
            return done.returncode, done.stdout + done.stderr
        self.assertEqual(check()[0], 0, check())
        for setting, words in (("fleet.etcd=", "fleet.etcd is empty"),
                               ("ports.range=20000-30000", "ports.range is for nodes"),
                               ("fleet.etcd=ftp://a", "fleet.etcd"),
                               ("gateway.node_tls_certificate=", "gateway.node_tls_certificate"),
                               ("gateway.node_tls_certificate=/nowhere.pem", "/nowhere.pem"),
                               ("gateway.node_tls_ca=/nowhere.pem", "/nowhere.pem"),
                               ("api.tls_certificate=/nowhere.pem", "api.tls_"),
                               ("gateway.colour=blue", "gateway.colour")):
            code, said = check(setting)
            self.assertEqual(code, 2, (setting, said))
            self.assertIn(words, said)
        code, said = check("fleet.etcd=https://198.18.5.1:2379", "fleet.etcd_tls_ca=/nowhere.pem")
        self.assertEqual((code, "/nowhere.pem" in said), (2, True), said)


if __name__ == "__main__":
    unittest.main(verbosity=2)

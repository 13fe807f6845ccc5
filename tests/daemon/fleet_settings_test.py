"""The API keys and profiles of a fleet, on real daemons with a real etcd."""
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import unittest
import uuid

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.etcd import Etcd, require_etcd  # noqa: E402
from tests.support.portwayd import Portwayd, isolate, wait_until  # noqa: E402

NETWORKS = '[guests]\nnetworks = ["198.18.0.0/15"]\n'
SECOND = 1  # in which a change is true everywhere
ROUNDS = 4  # one of which other work on the machine does not delay


class FleetSettingsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_etcd()
        isolate()

    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.etcd = self.stack.enter_context(Etcd())

    def node(self, name, *settings, **options):
        return self.stack.enter_context(Portwayd(f"fleet.etcd={self.etcd.url}", f"fleet.node_id={name}", *settings,
                                                 **options))

    def put_key(self, secret, key_id=None, **members):
        """A tenant's key in etcd; its path in the API."""
        key_id = key_id or str(uuid.uuid4())
        record = {"role": "tenant", "owner": "alice", "scope": "full", "description": "",
                  "secret_sha256": hashlib.sha256(secret.encode()).hexdigest(), "created_at": "2026-01-31T12:00:00.000Z",
                  **members}
        self.etcd.control("put", f"/portway/keys/{key_id}", json.dumps(record))
        return f"/api-keys/{key_id}"

    def delete(self, path):
        self.etcd.control("del", path.replace("/api-keys/", "/portway/keys/"))

    def works(self, node, secret):
        return node.call("GET", "/instances", key=secret).status == 200

    def time_until(self, question):
        began = time.monotonic()
        self.assertTrue(wait_until(question))
        return time.monotonic() - began

    def wait_for_key(self, secret, *nodes):
        self.assertTrue(wait_until(lambda: all(self.works(node, secret) for node in nodes)))

    def faults(self, node):
        return {fault.get("subject"): fault["detail"]
                for fault in node.call("GET", "/v1/node").json()["process"]["faults"] if fault["part"] == "fleet"}

    def stream(self, node, secret):
        """An answer of GET /events that is open."""
        connection = node.send(f"GET /events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {secret}\r\n\r\n".encode(),
                               finish=False)
        self.stack.callback(connection.close)
        answer = http.client.HTTPResponse(connection, method="GET")
        answer.begin()
        self.assertEqual(answer.status, 200)
        return answer

    def profile(self, node, name):
        found = [each for each in node.call("GET", "/profiles").json()["profiles"] if each["name"] == name]
        return found[0] if found else None

    def test_a_key_is_true_on_all_nodes_and_so_is_its_end(self):
        nodes = self.node("n1"), self.node("n2", "ports.range=40000-40100")
        self.put_key("first")
        self.wait_for_key("first", *nodes)  # they follow etcd
        known, gone = [], []
        for _ in range(ROUNDS):
            path = self.put_key("secret")
            known.append(self.time_until(lambda: all(self.works(node, "secret") for node in nodes)))
            self.assertIs(nodes[1].call("GET", path).json()["api_key"]["fleet"], True)
            self.assertEqual(nodes[0].call("DELETE", path).status, 403)
            streams = [self.stream(node, "secret") for node in nodes]
            self.delete(path)
            gone.append(self.time_until(lambda: not any(self.works(node, "secret") for node in nodes)))
            for stream in streams:
                stream.read()  # to its end
        self.assertLess(min(known), SECOND)
        self.assertLess(min(gone), SECOND)
        self.assertTrue(all(self.works(node, "first") for node in nodes))

    def test_a_key_that_becomes_unreadable_is_revoked(self):
        node = self.node("n1")
        path = self.put_key("secret")
        self.wait_for_key("secret", node)
        self.put_key("secret", path.rpartition("/")[2], role="everything")
        self.assertTrue(wait_until(lambda: not self.works(node, "secret")))
        self.assertIn("1 cannot be read", self.faults(node)["key"])
        self.assertIn(path.replace("/api-keys/", "/portway/keys/"), node.output())
        self.put_key("secret", path.rpartition("/")[2])
        self.wait_for_key("secret", node)
        self.assertEqual(self.faults(node), {})

    def test_an_own_key_wins_over_one_of_the_fleet_with_its_secret(self):
        node = self.node("n1")
        secret = node.tenant_key("bob")
        path = self.put_key(secret)
        self.assertTrue(wait_until(lambda: "key" in self.faults(node)))
        self.assertIn("has its secret", self.faults(node)["key"])
        self.assertEqual(node.call("GET", "/whoami", key=secret).json()["whoami"]["owner"], "bob")
        self.delete(path)
        self.assertTrue(wait_until(lambda: not self.faults(node)))
        self.assertTrue(self.works(node, secret))

    def test_keys_outlast_etcd_but_not_the_node_and_an_emptied_etcd_revokes_them(self):
        node, other = self.node("n1"), self.node("n2", "ports.range=40000-40100")
        self.put_key("secret")
        self.wait_for_key("secret", node, other)
        self.etcd.kill()
        other.kill_and_start()
        refused = other.call("GET", "/instances", key="secret")  # nobody can say yet that it is wrong
        self.assertEqual((refused.status, refused.json()["code"]), (503, "store_unavailable"))
        self.assertEqual(other.call("GET", "/instances").status, 200)  # with the node's own key
        self.assertTrue(self.works(node, "secret"))
        self.etcd.start()
        self.wait_for_key("secret", node, other)
        gone = self.put_key("other")
        self.wait_for_key("other", node, other)
        self.etcd.kill()
        self.etcd.start()
        self.delete(gone)
        self.assertTrue(wait_until(lambda: not any(self.works(each, "other") for each in (node, other)), 60))
        self.assertTrue(self.works(node, "secret"))
        self.etcd.kill()
        shutil.rmtree(f"{self.etcd.directory}/data")
        self.etcd.start()
        self.assertTrue(wait_until(lambda: not any(self.works(each, "secret") for each in (node, other)), 60))

    def test_profiles_of_the_fleet_go_before_those_of_the_configuration(self):
        node = self.node("n1", "profiles.small.max_forwarded_ports=1")
        node.put_instance("vm-a", tap="tap0", profile="small")
        self.assertNotIn("fleet", self.profile(node, "small"))
        self.etcd.control("put", "/portway/profiles/small", json.dumps({"max_forwarded_ports": 3}))
        self.etcd.control("put", "/portway/profiles/large", json.dumps({"max_forwarded_ports": 9, "max_connections": 7}))
        self.assertTrue(wait_until(lambda: self.profile(node, "large")))
        self.assertEqual(self.profile(node, "large"), {"name": "large", "max_forwarded_ports": 9, "allow_host_port": False,
                                                       "max_connections": 7, "fleet": True})
        self.assertEqual(self.profile(node, "small")["max_forwarded_ports"], 3)

        def limit():
            return node.call("GET", "/instances/vm-a").json()["instance"]["port_forwards"]["limit"]
        self.assertEqual(limit(), 3)
        self.assertTrue(wait_until(lambda: json.loads(self.etcd.values("/portway/state/n1/instances/vm-a").get(
            "/portway/state/n1/instances/vm-a", '{"port_forwards": {"limit": 0}}'))["port_forwards"]["limit"] == 3))
        # One that cannot be read stays as it was.
        self.etcd.control("put", "/portway/profiles/small", json.dumps({"max_forwarded_ports": 70000}))
        self.assertTrue(wait_until(lambda: "profile" in self.faults(node)))
        self.assertEqual(limit(), 3)
        node.call("PATCH", "/instances/vm-a", {"profile": "large"})
        self.assertEqual(limit(), 9)
        # Of one that is gone, the default's limits.
        self.etcd.control("del", "--prefix", "/portway/profiles/")
        self.assertTrue(wait_until(lambda: self.profile(node, "large") is None))
        self.assertEqual(limit(), self.profile(node, "default")["max_forwarded_ports"])
        self.assertEqual(self.profile(node, "small")["max_forwarded_ports"], 1)
        self.assertEqual(self.faults(node), {})

    def test_a_reload_keeps_them_and_leaving_the_fleet_ends_them(self):
        fleet = f'[fleet]\netcd = ["{self.etcd.url}"]\nnode_id = "n9"\n'
        node = self.stack.enter_context(Portwayd(config=NETWORKS + fleet))
        self.etcd.control("put", "/portway/profiles/large", json.dumps({"max_forwarded_ports": 9}))
        self.put_key("secret")
        self.wait_for_key("secret", node)
        self.assertTrue(wait_until(lambda: self.profile(node, "large")))
        self.etcd.kill()
        node.write_config(NETWORKS + fleet + "[profiles.large]\nmax_forwarded_ports = 2\n")
        node.reload()
        self.assertTrue(self.works(node, "secret"))
        self.assertEqual(self.profile(node, "large")["max_forwarded_ports"], 9)
        self.etcd.start()
        self.put_key("another")
        self.wait_for_key("another", node)
        # Another fleet's are others.
        node.write_config(NETWORKS + fleet + 'prefix = "/other/"\n')
        node.reload()
        self.assertFalse(self.works(node, "secret"))
        node.write_config(NETWORKS + fleet)
        node.reload()
        self.wait_for_key("secret", node)
        stream = self.stream(node, "secret")
        node.write_config(NETWORKS)
        node.reload()
        self.assertFalse(self.works(node, "secret"))
        stream.read()
        self.assertIsNone(self.profile(node, "large"))
        self.assertIsNotNone(self.profile(node, "default"))


if __name__ == "__main__":
    unittest.main(verbosity=2)

"""Daemons of a fleet, with a real etcd: what they publish, that nothing waits for etcd, that an instance runs on one of
them, and that all of it works in the sandbox.
"""
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.etcd import Etcd, require_etcd  # noqa: E402
from tests.support.portwayd import Portwayd, isolate, wait_until  # noqa: E402

# What an answer has beside what is published.
USAGE = {"connections_active", "connections_total", "received_bytes", "sent_bytes", "connection_seconds",
         "last_connection_at", "last_byte_at", "usage_since"}


class FleetTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_etcd()
        isolate()

    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.etcd = self.stack.enter_context(Etcd())

    def node(self, name, *settings, **options):
        return self.stack.enter_context(Portwayd(
            f"fleet.etcd={self.etcd.url}", f"fleet.node_id={name}",
            f"fleet.address=https://{name}.example:8443", *settings, **options))

    def published(self, node, name):
        """Whether etcd has what the node's API answers."""
        wanted = {}
        for instance in node.call("GET", "/instances").json()["instances"]:
            if instance.get("reason") == "moved":
                continue
            instance["port_forwards"] = {"limit": instance["port_forwards"]["limit"]}
            wanted[f"/portway/state/{name}/instances/{instance['id']}"] = instance
            for forward in node.call("GET", f"/instances/{instance['id']}/port-forwards").json()["port_forwards"]:
                wanted[f"/portway/state/{name}/forwards/{instance['id']}/{forward['id']}"] = {
                    **{key: value for key, value in forward.items() if key not in USAGE}, "session_id": instance["session_id"]}
        found = {key: json.loads(value) for key, value in self.etcd.values(f"/portway/state/{name}/").items()}
        self.difference = (wanted, found)
        return found == wanted

    def wait_for_published(self, node, name):
        if not wait_until(lambda: self.published(node, name), 60):
            self.fail(f"wanted {self.difference[0]}, found {self.difference[1]}")

    def faults(self, node):
        return {fault.get("subject"): fault["detail"]
                for fault in node.call("GET", "/v1/node").json()["process"]["faults"] if fault["part"] == "fleet"}

    def wait_for_fault(self, node, subject):
        self.assertTrue(wait_until(lambda: subject in self.faults(node), 60), node.output())
        return self.faults(node)[subject]

    def wait_for_no_fault(self, node):
        if not wait_until(lambda: not self.faults(node), 60):
            self.fail(self.faults(node))

    def metric(self, node, name):
        for line in node.call("GET", "/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        return None

    def claim(self, instance):
        return json.loads(self.etcd.values(f"/portway/claims/{instance}")[f"/portway/claims/{instance}"])

    def test_a_node_publishes_what_it_answers_whatever_becomes_of_its_process(self):
        node = self.node("n1")
        self.assertEqual(node.put_instance("vm-a", tap="tap0", metadata={"team": "blue"}).status, 201)
        web, _ = (node.call("POST", "/instances/vm-a/port-forwards", {"guest_port": port}).json()["port_forward"]
                    for port in (80, 8080))
        self.wait_for_published(node, "n1")
        record = json.loads(self.etcd.values("/portway/nodes/n1")["/portway/nodes/n1"])
        self.assertEqual(record["address"], "https://n1.example:8443")
        self.assertEqual(record["hostname"], "compute-1.test")
        self.assertFalse(record["draining"])
        self.assertEqual(self.metric(node, "portway_fleet_registered"), 1)

        node.call("PATCH", f"/instances/vm-a/port-forwards/{web['id']}", {"label": "shop", "max_connections": 3})
        node.put_instance("vm-b", tap="tap1", guest_address="198.19.0.3")
        self.wait_for_published(node, "n1")
        revision = self.revision()
        node.upgrade()
        self.assertTrue(wait_until(lambda: self.metric(node, "portway_fleet_listings_total") >= 1))
        self.wait_for_published(node, "n1")
        node.kill_and_start()
        self.assertTrue(wait_until(lambda: self.metric(node, "portway_fleet_listings_total") >= 1))
        self.wait_for_published(node, "n1")
        # Each has registered, and has written nothing else that has not changed.
        kvs = json.loads(self.etcd.control("get", "--prefix", "/portway/state/", "-w", "json"))["kvs"]
        self.assertEqual([kv for kv in kvs if kv["mod_revision"] > revision], [])

        node.call("DELETE", f"/instances/vm-a/port-forwards/{web['id']}")
        node.call("DELETE", "/instances/vm-b")
        self.wait_for_published(node, "n1")
        self.assertTrue(wait_until(lambda: self.claim("vm-b")["state"] == "ended"))
        state = self.etcd.values("/portway/state/")
        self.assertEqual(node.stop(), 0)
        self.assertEqual(self.etcd.values("/portway/nodes/"), {})  # long before its lease would end
        self.assertEqual(self.etcd.values("/portway/state/"), state)

    def revision(self):
        return json.loads(self.etcd.control("get", "none", "-w", "json"))["header"]["revision"]

    def test_a_drained_node_says_so_at_once_and_after_each_start(self):
        node = self.node("n1")
        self.assertEqual(node.put_instance("vm-a", tap="tap0").status, 201)
        forward = node.call("POST", "/instances/vm-a/port-forwards", {"guest_port": 80}).json()["port_forward"]

        def record_says(draining):
            values = self.etcd.values("/portway/nodes/n1")
            return values and json.loads(values["/portway/nodes/n1"])["draining"] == draining

        def is_drained():
            self.assertEqual(node.put_instance("vm-a", tap="tap0").status, 200)  # the session that is there
            refused = node.put_instance("vm-b", tap="tap1", guest_address="198.19.0.3")
            self.assertEqual((refused.status, refused.json()["code"]), (503, "draining"))
            state = node.call("GET", f"/instances/vm-a/port-forwards/{forward['id']}").json()["port_forward"]["state"]
            self.assertEqual((state, node.call("GET", "/readyz").status), (forward["state"], 503))
            self.assertEqual(self.metric(node, "portway_node_draining"), 1)

        self.assertTrue(wait_until(lambda: record_says(False), 60))
        since = node.call("POST", "/v1/node/drain").json()["node"]["draining_since"]
        self.assertTrue(wait_until(lambda: record_says(True), 60))
        is_drained()
        for disturb in (Portwayd.upgrade, Portwayd.kill_and_start):
            disturb(node)
            is_drained()
            self.assertEqual(node.call("GET", "/v1/node").json()["node"], {"draining": True, "draining_since": since})
            self.assertTrue(wait_until(lambda: record_says(True), 60))
        self.assertEqual(node.call("DELETE", "/v1/node/drain").json(), {"node": {"draining": False}})
        self.assertTrue(wait_until(lambda: record_says(False), 60))
        self.assertEqual(node.put_instance("vm-b", tap="tap1", guest_address="198.19.0.3").status, 201)
        self.assertEqual((node.call("GET", "/readyz").status, self.metric(node, "portway_node_draining")), (200, 0))

    def test_many_changes_are_published_while_they_are_made(self):
        node = self.node("n1", "profiles.default.max_forwarded_ports=300", "ports.rest_s=0")
        node.put_instance("vm-a", tap="tap0")
        self.wait_for_published(node, "n1")
        made = [node.call("POST", "/instances/vm-a/port-forwards", {"guest_port": port}).json()["port_forward"]["id"]
                for port in range(5000, 5300)]
        for forward in made[:200]:
            self.assertEqual(node.call("DELETE", f"/instances/vm-a/port-forwards/{forward}").status, 204)
        self.wait_for_published(node, "n1")

    def test_nothing_waits_for_an_etcd_that_is_away(self):
        self.etcd.kill()
        node = self.node("n1")
        self.assertIn(self.etcd.url, self.wait_for_fault(node, "etcd"))
        self.assertEqual(node.put_instance("vm-a", tap="tap0").status, 201)
        began = time.monotonic()
        for port in range(1, 6):
            self.assertEqual(node.call("POST", "/instances/vm-a/port-forwards", {"guest_port": port}).status, 201)
        self.assertLess(time.monotonic() - began, 5)  # five calls of milliseconds, on a slow machine
        ready = node.call("GET", "/readyz")
        self.assertEqual((ready.status, ready.json()["faults"]), (200, ["fleet"]))
        self.etcd.start()
        self.wait_for_published(node, "n1")
        self.wait_for_no_fault(node)

    def test_an_instance_that_is_registered_on_another_node_ends_on_the_first(self):
        first, second = self.node("n1"), self.node("n2", "ports.range=40000-40100")
        first.put_instance("vm-a", tap="tap0")
        port = first.call("POST", "/instances/vm-a/port-forwards", {"guest_port": 80}).json()["port_forward"]["host_port"]
        self.wait_for_published(first, "n1")
        second.put_instance("vm-a", tap="tap1", guest_address="198.19.0.3")
        second.call("POST", "/instances/vm-a/port-forwards", {"guest_port": 80})
        self.wait_for_published(second, "n2")
        self.assertTrue(wait_until(lambda: first.call("GET", "/instances/vm-a").json()["instance"]["state"] == "stopped"))
        self.assertEqual(first.call("GET", "/instances/vm-a").json()["instance"]["reason"], "moved")
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=30)
        self.wait_for_published(first, "n1")
        self.assertEqual(self.claim("vm-a")["node"], "n2")
        self.assertEqual(self.metric(first, "portway_fleet_sessions_lost_total"), 1)
        # It stays so after a restart of the first node.
        first.kill_and_start()
        self.assertTrue(wait_until(lambda: self.metric(first, "portway_fleet_listings_total") >= 1))
        self.wait_for_published(first, "n1")
        self.assertEqual(second.call("GET", "/instances/vm-a").json()["instance"]["state"], "running")

    def test_a_node_that_was_away_does_not_bring_back_what_was_deleted(self):
        first, second = self.node("n1"), self.node("n2", "ports.range=40000-40100")
        first.put_instance("vm-a", tap="tap0")
        first.call("POST", "/instances/vm-a/port-forwards", {"guest_port": 80})
        self.wait_for_published(first, "n1")
        first.kill()
        second.put_instance("vm-a", tap="tap1", guest_address="198.19.0.3")
        self.wait_for_published(second, "n2")
        second.call("DELETE", "/instances/vm-a")
        self.assertTrue(wait_until(lambda: self.claim("vm-a")["state"] == "ended"))
        first.start()
        self.assertTrue(wait_until(lambda: first.call("GET", "/instances/vm-a").status == 404), first.output())
        self.assertEqual(self.etcd.values("/portway/state/"), {})
        first.kill_and_start()
        self.assertEqual(first.call("GET", "/instances/vm-a").status, 404)

    def test_two_nodes_with_one_id_are_a_fault_of_the_second(self):
        first = self.node("n1")
        first.put_instance("vm-a", tap="tap0")
        self.wait_for_published(first, "n1")
        second = self.node("n1", "ports.range=40000-40100")
        second.put_instance("vm-b", tap="tap1", guest_address="198.19.0.3")
        self.assertIn("fleet.node_id", self.wait_for_fault(second, "node_id"))
        self.wait_for_published(first, "n1")
        self.assertEqual(self.faults(first), {})

    def test_a_reload_joins_and_leaves_a_fleet(self):
        networks = '[guests]\nnetworks = ["198.18.0.0/15"]\n'
        node = self.stack.enter_context(Portwayd(config=networks))
        node.put_instance("vm-a", tap="tap0")
        self.assertIsNone(self.metric(node, "portway_fleet_registered"))
        node.write_config(networks + f'[fleet]\netcd = ["{self.etcd.url}"]\nnode_id = "n9"\nprefix = "/other/fleet/"\n')
        node.reload()
        self.assertTrue(wait_until(lambda: "/other/fleet/state/n9/instances/vm-a" in self.etcd.values("/other/")))
        node.write_config(networks + '[fleet]\netcd = ["http://198.18.5.9:1"]\n')
        node.reload()
        self.assertIn("198.18.5.9", self.wait_for_fault(node, "etcd"))
        node.write_config(networks + '[fleet]\netcd = ["https://198.18.5.9/x"]\n')
        node.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: "stays as it was: fleet.etcd" in node.output()), node.output())
        node.write_config(networks)
        node.reload()
        self.assertEqual(self.faults(node), {})
        self.assertIsNone(self.metric(node, "portway_fleet_registered"))

    def test_a_wrong_setting_is_found_before_the_start(self):
        for settings, key in (([f"fleet.etcd={self.etcd.url}/v3"], "fleet.etcd"),
                              (["fleet.etcd=etcd.example"], "fleet.etcd"),
                              ([f"fleet.etcd={self.etcd.url}", "fleet.node_id=a/b"], "fleet.node_id"),
                              ([f"fleet.etcd={self.etcd.url}", "fleet.prefix=portway"], "fleet.prefix"),
                              ([f"fleet.etcd={self.etcd.url}", "fleet.lease_ttl_s=1"], "fleet.lease_ttl_s"),
                              ([f"fleet.etcd={self.etcd.url}", "fleet.etcd_user=joe"], "fleet.etcd_user"),
                              ([f"fleet.etcd={self.etcd.url}", "fleet.etcd_tls_ca=/x"], "fleet.etcd_tls_ca"),
                              (["fleet.etcd=https://h", "fleet.etcd_tls_ca=/not/there"], "fleet.etcd_tls_ca"),
                              (["fleet.address=https://h/path"], "fleet.address")):
            checked = subprocess.run([os.environ["PORTWAY_DAEMON"], "--check", *(f"--set={each}" for each in settings)],
                                     capture_output=True, text=True, check=False)
            self.assertNotEqual(checked.returncode, 0, settings)
            self.assertIn(f"{key}: ", checked.stderr, settings)

    def with_tls_and_users(self, name):
        """A node whose etcd wants all of it, and that etcd."""
        directory = self.etcd.directory
        self.etcd.kill()
        with open(f"{directory}/password", "w", encoding="ascii") as file:
            file.write("secret\n")
        etcd = self.stack.enter_context(Etcd(f"{directory}/pem", name))
        for words in (("user", "add", "root:top"), ("user", "add", "portway:secret"), ("role", "add", "fleet"),
                      *(("role", "grant-permission", "fleet", "--prefix=true", *what) for what in (
                          ("readwrite", "/portway/nodes/"), ("readwrite", "/portway/state/"),
                          ("readwrite", "/portway/claims/"), ("read", "/portway/keys/"), ("read", "/portway/profiles/"))),
                      ("user", "grant-role", "portway", "fleet"), ("user", "grant-role", "root", "root"),
                      ("auth", "enable")):
            etcd.control(*words)
        node = self.stack.enter_context(Portwayd(
            "fleet.etcd=https://localhost:2379", "fleet.node_id=n1", f"fleet.etcd_tls_ca={directory}/pem.crt",
            f"fleet.etcd_tls_certificate={directory}/pem.crt", f"fleet.etcd_tls_private_key={directory}/pem.key",
            "fleet.etcd_user=portway", f"fleet.etcd_password_file={directory}/password"))
        node.put_instance("vm-a", tap="tap0")
        return node, etcd

    def test_tls_a_user_and_a_host_name(self):
        node, etcd = self.with_tls_and_users("O=Portway")
        self.assertTrue(wait_until(lambda: "/portway/state/n1/instances/vm-a" in etcd.control(
            "--user=root:top", "get", "--prefix", "--keys-only", "/portway/")), node.output())
        self.wait_for_no_fault(node)

    def test_a_certificate_that_keeps_etcd_from_taking_the_user_is_named(self):
        node, _ = self.with_tls_and_users("CN=localhost")
        self.assertIn("use a certificate without one", self.wait_for_fault(node, "etcd"))


if __name__ == "__main__":
    unittest.main(verbosity=2)

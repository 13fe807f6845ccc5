"""`portway` at a gateway: a real etcd, two real nodes, and every command that says something of them."""
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.fleet import Fleet, require_fleet  # noqa: E402
from tests.support.portwayd import isolate, wait_until  # noqa: E402

NOT_FOUND, NOT_ALLOWED, BUSY = 4, 5, 6


class AtAGateway(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_fleet()
        isolate()

    def setUp(self):
        of_test = self.enterContext(contextlib.ExitStack())  # it ends what a test has left running
        self.fleet = of_test.enter_context(Fleet())
        self.nodes = {f"n{i}": self.fleet.node(i) for i in (1, 2)}
        self.gateway = self.fleet.gateway()
        self.gateway.wait_for_nodes(n1="up", n2="up")

    def start(self, *words, server=None, key_file=None):
        server = server or self.gateway
        return subprocess.Popen(
            [os.environ["PORTWAY_CLIENT"], "--server", f"http://127.0.0.1:{server.port}", "--key-file",
             key_file or f"{server.directory}/admin.key", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PATH": os.environ["PATH"]})

    def run_portway(self, *words, exit_code=0, **options):
        """What it prints on standard output, and on standard error."""
        with self.start(*words, **options) as process:
            out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, exit_code, (words, out, err))
        return out, err

    def put(self, name, node, tap):
        self.run_portway("instances", "put", name, "--node", node, "--tap", tap, "--guest-address",
                         "198.19.0.2" if tap == "tap0" else "198.19.0.3", "--owner", "alice")

    def test_each_command_works_as_at_a_node(self):
        self.put("vm-1", "n1", "tap0")
        self.put("vm-2", "n2", "tap1")
        run = self.run_portway
        endpoint = run("forwards", "create", "vm-2", "3000", "--label", "web")[0].strip()
        self.assertRegex(endpoint, r"^compute-2\.test:22\d\d\d$")
        self.assertRegex(run("forwards", "list", "vm-2")[0], endpoint)
        listed = run("forwards", "all")[0]
        self.assertRegex(listed, rf"vm-2 +n2 +up +\S+ +{re.escape(endpoint)}")
        forward = json.loads(run("forwards", "all", "-o", "json")[0])["port_forwards"][0]["id"]
        self.assertIn("compute-2.test", run("forwards", "get", "vm-2", forward)[0])
        self.assertIn(endpoint, run("forwards", "watch", "vm-2", "--count", "1")[0])
        run("forwards", "update", "vm-2", forward, "--label", "shop")
        run("forwards", "check", "vm-2", forward, exit_code=1)  # there is no guest
        run("connections", "list", "vm-2", forward)
        self.assertRegex(run("instances", "list")[0], r"(?s)vm-1 .* n1 +up .*vm-2 .* n2 +up ")
        self.assertNotIn("vm-1", run("instances", "list", "--node", "n2")[0])
        self.assertIn("198.19.0.3", run("instances", "get", "vm-2")[0])
        run("instances", "activity", "vm-2")
        self.assertRegex(run("instances", "usage")[0], r"(?s)vm-1 .*vm-2 ")
        run("profiles", "list")
        self.assertIn("admin", run("whoami")[0])
        self.assertRegex(run("version")[0], r"client: (\S+)\nserver: \1")
        run("healthcheck")
        run("healthcheck", "--ready")

        wanted = f"{self.gateway.directory}/wanted.json"
        with open(wanted, "w", encoding="ascii") as file:
            json.dump({"instances": {f"vm-{i}": {"port_forwards": [{"guest_port": 80, "label": "a"}]} for i in (1, 2)}}, file)
        self.assertEqual(run("apply", "-f", wanted)[0],
                         "vm-1: 1 created, 0 updated, 0 unchanged, 0 removed\nvm-2: 1 created, 0 updated, 0 unchanged, 1 removed\n")

        secret = run("keys", "create", "--owner", "alice")[0].strip()
        alice = {"key_file": f"{self.gateway.directory}/alice.key"}
        with open(alice["key_file"], "w", encoding="ascii", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(secret)
        self.assertIn("alice", run("keys", "list")[0])
        self.assertTrue(wait_until(lambda: self.nodes["n1"].call("GET", "/whoami", key=secret).status == 200))
        self.assertIn("compute-1.test", run("forwards", "create", "vm-1", "8081", **alice)[0])
        run("nodes", exit_code=NOT_ALLOWED, **alice)
        run("keys", "delete", secret.split("_")[1])
        run("instances", "list", exit_code=NOT_ALLOWED, **alice)
        run("instances", "stop", "vm-1")
        run("instances", "delete", "vm-1")
        self.assertTrue(wait_until(lambda: "vm-1" not in run("instances", "list")[0]))

    def test_events_and_lists_that_are_watched_are_of_all_nodes(self):
        self.put("vm-1", "n1", "tap0")
        self.put("vm-2", "n2", "tap1")
        with self.start("forwards", "all", "--watch") as watch, self.start("events", "--count", "8") as events:
            # The list is printed when its stream is open; the other one's opens without a word.
            self.assertIn("INSTANCE", watch.stdout.readline())
            stop = threading.Event()

            def make():
                """Forwards that live for a moment: etcd does not hear of those that go at once."""
                made = {}
                while not stop.is_set():
                    for i in (1, 2):
                        path = f"/instances/vm-{i}/port-forwards"
                        if i in made:
                            self.nodes[f"n{i}"].call("DELETE", f"{path}/{made.pop(i)}")
                        answer = self.nodes[f"n{i}"].call("POST", path, {"guest_port": 80}).json()
                        if "port_forward" in answer:
                            made[i] = answer["port_forward"]["id"]
                    stop.wait(0.1)
            maker = threading.Thread(target=make)
            maker.start()
            try:
                out, err = events.communicate(timeout=60)
                self.assertEqual((events.returncode, err), (0, ""))
                self.assertRegex(out, r"forward\.created node=n\d instance_id=vm-\d")
                self.assertTrue(any("compute-" in line for line in iter(watch.stdout.readline, "")))
            finally:
                stop.set()
                maker.join()
                watch.terminate()

    def test_nodes_are_listed_shown_and_drained(self):
        run = self.run_portway
        self.assertRegex(run("nodes")[0], r"^ID +STATE +HOSTNAME +INSTANCES +FORWARDS +CONNECTIONS +VERSION\n"
                                          r"n1 +up +compute-1\.test +0 +0 +0 +\S+\nn2 +up ")
        self.assertRegex(run("nodes", "show", "n2")[0], r"address: +https://198\.18\.5\.12:8443\n")
        self.assertRegex(run("nodes", "drain", "n2")[0], r"draining: +true\n")
        self.assertTrue(wait_until(lambda: "n2" in run("nodes", "--state", "draining")[0]))
        self.assertRegex(run("node", "status", "--node", "n2")[0], r"draining: +true\n")
        refused = run("instances", "put", "vm-2", "--node", "n2", "--guest-address", "198.19.0.2", "--tap", "tap0", "--owner",
                      "alice", exit_code=BUSY)[1]
        self.assertIn("being drained", refused)
        self.assertRegex(run("undrain", "--node", "n2")[0], r"draining: +false\n")
        run("nodes", "show", "n9", exit_code=NOT_FOUND)
        run("nodes", "drain", "n9", exit_code=NOT_FOUND)
        unknown = run("instances", "put", "vm-9", "--node", "n9", "--guest-address", "198.19.0.2", "--tap", "tap0", "--owner",
                      "alice", exit_code=1)[1]
        self.assertIn('There is no node "n9"', unknown)

    def test_what_is_about_one_node_names_it(self):
        run = self.run_portway
        for words in (["node", "status"], ["drain"], ["node", "upgrade"], ["node", "backup", f"{self.gateway.directory}/copy"]):
            self.assertIn("Name it with --node", run(*words, exit_code=NOT_FOUND)[1])
        self.assertIn("Name it with --node", run("instances", "put", "vm-1", "--guest-address", "198.19.0.2", "--tap", "tap0",
                                                 "--owner", "alice", exit_code=1)[1])
        backup = f"{self.gateway.directory}/copy"
        self.assertIn(backup, run("node", "backup", backup, "--node", "n1")[0])
        self.assertTrue(os.path.getsize(backup) > 0)
        self.nodes["n1"].upgrade(ask=lambda: run("node", "upgrade", "--node", "n1"))
        doctor = self.start("doctor")
        self.assertIn("is a gateway, and this is about one node", doctor.communicate(timeout=60)[0])
        at_node = {"server": self.nodes["n1"]}
        self.assertIn("is a node and not a gateway", run("nodes", exit_code=NOT_FOUND, **at_node)[1])
        self.assertIn("is a node and not a gateway", run("node", "status", "--node", "n2", exit_code=NOT_FOUND, **at_node)[1])
        self.assertIn("is a node and not a gateway", run("instances", "put", "vm-1", "--node", "n1", "--guest-address", "198.19.0.2",
                                                         "--tap", "tap0", "--owner", "alice", exit_code=1, **at_node)[1])

    def test_a_lost_node_and_a_lost_etcd_are_said(self):
        self.put("vm-1", "n1", "tap0")
        self.put("vm-2", "n2", "tap1")
        run = self.run_portway
        run("forwards", "create", "vm-2", "3000")
        self.nodes["n2"].kill()
        self.assertTrue(wait_until(lambda: "n2" in run("nodes", "--state", "lost")[0]))
        refused = run("forwards", "create", "vm-2", "3001", exit_code=BUSY)[1]
        self.assertRegex(refused, r"Node n2 is lost.* Try again in 10 s\. \(code: node_unreachable, status: 503")
        self.assertRegex(run("forwards", "all")[0], r"vm-2 +n2 +lost .*compute-2\.test:")
        self.fleet.etcd.kill()
        self.assertTrue(wait_until(lambda: run("nodes")[1] != ""))
        for words in (["nodes"], ["instances", "list"], ["forwards", "all", "-o", "json"]):
            self.assertEqual(run(*words)[1], "portway: etcd cannot be reached by the gateway: the list may be old\n")
        # What its node answers is as true as ever.
        run("forwards", "create", "vm-1", "3000")


if __name__ == "__main__":
    unittest.main()

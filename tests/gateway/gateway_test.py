"""Real gateways before real nodes with a real etcd: keys, instances and forwards of a fleet through one address."""
import concurrent.futures
import json
import os
import re
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.certificate import Authority  # noqa: E402
from tests.support.fleet import Events, Fleet, require_fleet  # noqa: E402
from tests.support.guest import end, serve_echo, start_guest  # noqa: E402
from tests.support.portwayd import isolate, wait_until  # noqa: E402

SECOND = 1  # in which a key is true everywhere
ROUNDS = 4  # one of which other work on the machine does not delay
GUEST_PORT = 3000

# The commands of the product's page, as they are there.
CREATE = r"""
curl -X POST https://api.firecase.ai/instances/{id}/port-forwards \
  -H "Authorization: Bearer $API_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "guest_port": 3000,
    "protocol": "tcp",
    "label": "dev-server"
  }'
"""
LIST = r"""
curl https://api.firecase.ai/instances/{id}/port-forwards \
  -H "Authorization: Bearer $API_KEY"
"""
DELETE = r"""
curl -X DELETE https://api.firecase.ai/instances/{id}/port-forwards/{forward_id} \
  -H "Authorization: Bearer $API_KEY"
"""


class GatewayTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_fleet()
        isolate()
        cls.fleet = cls.enterClassContext(Fleet(lease_s=60))  # however slow the machine is, nobody is lost
        cls.n1, cls.n2 = cls.nodes = cls.fleet.node(1), cls.fleet.node(2)
        cls.g1, cls.g2 = cls.gateways = cls.fleet.gateway(), cls.fleet.gateway()
        for gateway in cls.gateways:
            gateway.wait_for_nodes(n1="up", n2="up")
        cls.alice, cls.bob = (cls.g1.tenant_key(owner) for owner in ("alice", "bob"))
        assert wait_until(lambda: all(cls.works(each, key) for key in (cls.alice, cls.bob)
                                      for each in (*cls.gateways, *cls.nodes)))

    @staticmethod
    def works(server, key):
        return server.call("GET", "/v1/whoami", key=key).status == 200

    def put(self, node, name, gateway=None, **fields):
        """An instance that ends with the test. Its path."""
        gateway = gateway or self.g1
        answer = gateway.put_on(node, name, **fields)
        self.assertEqual(answer.status, 201, answer)
        self.addCleanup(self.g1.call, "DELETE", f"/instances/{name}")
        for each in self.gateways:
            self.assertTrue(wait_until(lambda: each.call("GET", f"/instances/{name}").status == 200))
        return f"/instances/{name}"

    def time_until(self, question):
        began = time.monotonic()
        self.assertTrue(wait_until(question))
        return time.monotonic() - began

    # --- Keys.

    def test_a_key_made_at_one_gateway_is_true_everywhere_and_so_is_its_end(self):
        known, gone = [], []
        for _ in range(ROUNDS):
            made = self.g1.call("POST", "/api-keys", {"role": "tenant", "owner": "carol"})
            self.assertEqual(made.status, 201, made)
            secret, path = made.json()["secret"], f"/api-keys/{made.json()['api_key']['id']}"
            everywhere = (*self.gateways, *self.nodes)
            known.append(self.time_until(lambda: all(self.works(each, secret) for each in everywhere)))
            self.assertIn(path.rpartition("/")[2], [each["id"] for each in
                                                    self.g2.call("GET", "/api-keys").json()["api_keys"]])
            streams = [Events(each, secret, None, "/events") for each in (self.g2, self.n1)]
            for stream in streams:
                self.addCleanup(stream.close)
                self.assertEqual(stream.status, 200)
            self.assertEqual(self.g2.call("DELETE", path).status, 204)
            gone.append(self.time_until(lambda: not any(self.works(each, secret) for each in everywhere)))
            for stream in streams:
                self.assertIsNone(stream.next())
        self.assertLess(min(known), SECOND)
        self.assertLess(min(gone), SECOND)

    def test_the_gateways_own_admin_key_is_its_own(self):
        self.assertEqual(self.g1.call("GET", "/whoami").json()["whoami"]["role"], "admin")
        self.assertEqual(self.g2.call("GET", "/whoami", key=self.g1.admin_key()).status, 401)
        self.assertEqual(self.g1.call("GET", "/instances", key=None).status, 401)

    # --- Instances and forwards.

    def test_an_instance_is_put_on_a_node_and_used_at_once(self):
        body = {"guest_address": "198.19.0.2", "tap": "t-vm-put", "owner": "alice"}
        missing = self.g1.call("PUT", "/instances/vm-put", body)
        self.assertEqual((missing.status, missing.json()["field"]), (422, "node"), missing)
        unknown = self.g1.call("PUT", "/instances/vm-put?node=n9", body)
        self.assertEqual((unknown.status, unknown.json()["field"]), (422, "node"), unknown)
        for i in range(10):
            name = f"vm-put-{i}"
            self.assertEqual(self.g1.put_on("n1", name).status, 201)
            made = self.g1.call("POST", f"/instances/{name}/port-forwards", {"guest_port": 3000}, key=self.alice)
            self.assertEqual(made.status, 201, made)
            self.assertEqual(made.json()["hostname"], "compute-1.test")
            self.assertEqual(made.headers["portway-node"], "n1")
            # Without the parameter, where it is already.
            again = self.g1.call("PUT", f"/instances/{name}", {**body, "tap": f"t-{name}"})
            self.assertEqual((again.status, again.headers["portway-node"]), (200, "n1"), again)
            self.assertEqual(self.g1.call("DELETE", f"/instances/{name}").status, 204)
            self.assertTrue(wait_until(lambda: self.g2.call("GET", f"/instances/{name}").status == 404))

    def test_a_client_reaches_a_guest_by_the_commands_of_the_products_page(self):
        guest = start_guest(__file__)
        self.addCleanup(end, guest)
        self.put("n1", "vm-page", tap="tap0")
        directory = self.fleet.directory
        authority = Authority(f"{directory}/page")
        pem = authority.issue("api", "DNS:api.firecase.ai")
        gateway = self.fleet.gateway(start=False)
        gateway.settings = [each for each in gateway.settings if not each.startswith("api.listen=")]
        gateway.config = ""
        gateway.write_config(f"""
[[api.listen]]
address = "127.0.0.1:0"
[[api.listen]]
address = "198.18.5.1:443"
tls_certificate = "{pem}"
tls_private_key = "{pem}"
""")
        gateway.start()
        gateway.wait_for_nodes(n1="up", n2="up")
        with open(f"{directory}/.curlrc", "w", encoding="ascii") as file:
            file.write(f'cacert = "{authority.certificate}"\nresolve = "api.firecase.ai:443:198.18.5.1"\nsilent\nshow-error\n')

        def run(command, **names):
            for name, value in names.items():
                command = command.replace("{" + name + "}", value)
            done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=60,
                                  env={**os.environ, "API_KEY": self.alice, "CURL_HOME": directory})
            return json.loads(done.stdout) if done.stdout else None

        made = run(CREATE, id="vm-page")
        forward = made["port_forward"]
        self.assertEqual(made["hostname"], "compute-1.test")
        self.assertEqual((forward["instance_id"], forward["guest_port"], forward["protocol"], forward["label"]),
                         ("vm-page", 3000, "tcp", "dev-server"))
        with socket.create_connection(("127.0.0.1", forward["host_port"]), 30) as client:
            client.sendall(b"hello")
            self.assertEqual(client.recv(5), b"hello")
        self.assertEqual([each["id"] for each in run(LIST, id="vm-page")["port_forwards"]], [forward["id"]])
        self.assertIsNone(run(DELETE, id="vm-page", forward_id=forward["id"]))
        self.assertEqual(run(LIST, id="vm-page")["port_forwards"], [])

    def test_every_route_of_an_instance_is_relayed(self):
        path = self.put("n2", "vm-all")
        forwards = f"{path}/port-forwards"
        call = self.g1.call

        def ask(method, target, body=None, key=self.alice, status=200, **headers):
            answer = call(method, target, body, key=key,
                          headers={name.replace("_", "-"): value for name, value in headers.items()})
            self.assertEqual(answer.status, status, answer)
            return answer

        self.assertEqual(ask("GET", path).json()["instance"]["id"], "vm-all")
        made = ask("POST", forwards, {"guest_port": 3000, "label": "a b"}, status=201)
        one = f"{forwards}/{made.json()['port_forward']['id']}"
        ask("POST", f"{forwards}:batch", {"port_forwards": [{"guest_port": 81 + 8000}, {"guest_port": 8082}]}, status=201)
        self.assertEqual(len(ask("GET", forwards).json()["port_forwards"]), 3)
        self.assertEqual(len(ask("GET", f"{forwards}?label=a%20b").json()["port_forwards"]), 1)
        refused = ask("GET", f"{forwards}?colour=blue", status=422)
        self.assertIn("colour", refused.json()["detail"])
        got = ask("GET", one)
        self.assertEqual(got.body, ask("GET", "/v1" + one).body)
        head = ask("HEAD", one)
        self.assertEqual((head.body, head.headers["etag"], head.headers["content-length"]),
                         (b"", got.headers["etag"], got.headers["content-length"]))
        ask("PATCH", one, {"label": "c"}, status=412, If_Match='"other"')
        ask("PATCH", one, {"label": "c"}, If_Match=got.headers["etag"])
        self.assertEqual(ask("GET", one.replace("vm-all", "vm%2Dall")).json()["port_forward"]["label"], "c")
        self.assertEqual(ask("GET", f"{one}/connections").json()["connections"], [])
        self.assertEqual(ask("GET", f"{path}/activity").json()["activity"]["instance_id"], "vm-all")
        ask("GET", f"{one}/check")
        ask("POST", f"{path}/stop", status=403)
        ask("DELETE", one, status=204)
        ask("GET", one, status=404)
        ask("PATCH", path, {"metadata": {"team": "blue"}}, key="admin")
        ask("POST", f"{path}/stop", key="admin")
        ask("GET", f"{path}/nothing", status=404)
        ask("POST", path, {}, status=405)

    def test_a_repeat_at_another_gateway_gets_the_same_answer(self):
        path = self.put("n2", "vm-repeat")
        answers = [gateway.call("POST", f"{path}/port-forwards", {"guest_port": 3000}, key=self.alice,
                                headers={"Idempotency-Key": "0190b2c0-once"}) for gateway in (*self.gateways, self.g1)]
        self.assertEqual({each.status for each in answers}, {201})
        self.assertEqual(len({each.body for each in answers}), 1)
        self.assertEqual(len(self.n2.call("GET", f"{path}/port-forwards").json()["port_forwards"]), 1)

    def test_another_tenants_instance_is_as_none(self):
        path = self.put("n1", "vm-hers")
        for target in ("", "/port-forwards", "/activity"):
            answers = [self.g1.call("GET", each + target, key=self.bob) for each in (path, "/instances/vm-none")]
            self.assertEqual([each.status for each in answers], [404, 404])
            self.assertEqual(*(re.sub("vm-hers|vm-none|[0-9a-f-]{36}", "", each.body.decode()) for each in answers))
        self.assertEqual(self.g1.call("PUT", path, {}, key=self.alice).status, 403)

    # --- Lists.

    def test_lists_are_of_all_nodes_and_of_the_caller(self):
        wanted = []
        for i in range(6):
            owner = "alice" if i % 3 else "bob"
            path = self.put(f"n{1 + i % 2}", f"vm-l{i}", owner=owner, metadata={"parity": str(i % 2)})
            for port in (8000 + i, 9000):
                made = self.g1.call("POST", f"{path}/port-forwards",
                                    {"guest_port": port, "label": f"l{port}", "metadata": {"i": str(i)}})
                self.assertEqual(made.status, 201, made)
                wanted.append({**made.json()["port_forward"], "owner": owner, "node": f"n{1 + i % 2}"})

        def pages(gateway, target, name, key="admin", limit=2):
            found, cursor = [], ""
            while True:
                answer = gateway.call("GET", f"{target}limit={limit}&cursor={cursor}", key=key)
                self.assertEqual(answer.status, 200, answer)
                body = answer.json()
                self.assertNotIn("stale", body)
                self.assertLessEqual(len(body[name]), limit)
                found += body[name]
                cursor = body.get("next_cursor")
                if cursor is None:
                    return found

        ids = {each["id"] for each in wanted}
        for gateway in self.gateways:
            self.assertTrue(wait_until(lambda: ids <= {each["id"] for each in
                                                       gateway.call("GET", "/port-forwards?limit=100").json()["port_forwards"]}))
        for sort_by, key_of in (("created_at", lambda each: each["id"]),
                                ("host_port", lambda each: (each["host_port"], each["id"]))):
            for order in ("asc", "desc"):
                found = pages(self.g2, f"/port-forwards?sort={sort_by}&order={order}&", "port_forwards")
                self.assertEqual([each["id"] for each in found],
                                 [each["id"] for each in sorted(wanted, key=key_of, reverse=order == "desc")])
        for entry in found:
            node = next(each["node"] for each in wanted if each["id"] == entry["id"])
            self.assertEqual((entry["node"], entry["node_state"], entry["hostname"]), (node, "up", f"compute-{node[1]}.test"))
        some = wanted[3]
        state = found[0]["state"]
        for query, takes in ((f"instance_id={some['instance_id']}", lambda each: each["instance_id"] == some["instance_id"]),
                             ("owner=bob", lambda each: each["owner"] == "bob"),
                             ("label=l9000", lambda each: each["label"] == "l9000"),
                             ("guest_port=9000", lambda each: each["guest_port"] == 9000),
                             (f"host_port={some['host_port']}", lambda each: each["host_port"] == some["host_port"]),
                             (f"state={state}", lambda each: True),
                             ("metadata=i%3D3", lambda each: each["metadata"] == {"i": "3"}),
                             ("owner=bob&label=l9000", lambda each: each["owner"] == "bob" and each["label"] == "l9000")):
            found = pages(self.g1, f"/port-forwards?{query}&", "port_forwards")
            self.assertEqual([each["id"] for each in found], [each["id"] for each in wanted if takes(each)], query)
        for owner, key in (("alice", self.alice), ("bob", self.bob)):
            found = pages(self.g2, "/port-forwards?", "port_forwards", key)
            self.assertEqual([each["id"] for each in found], [each["id"] for each in wanted if each["owner"] == owner])
            found = pages(self.g1, "/instances?", "instances", key, limit=1)
            self.assertEqual([each["id"] for each in found],
                             sorted({each["instance_id"] for each in wanted if each["owner"] == owner}))
        self.assertEqual(pages(self.g1, "/port-forwards?owner=bob&", "port_forwards", self.alice), [])
        found = pages(self.g1, "/instances?metadata=parity%3D1&", "instances")
        self.assertEqual([(each["id"], each["node"], each["node_state"], each["port_forwards"]["current"])
                          for each in found], [(f"vm-l{i}", "n2", "up", 2) for i in (1, 3, 5)])
        self.assertEqual([each["id"] for each in pages(self.g1, "/instances?node=n1&", "instances")],
                         ["vm-l0", "vm-l2", "vm-l4"])

        # What instances have carried is known to nodes only.
        for key, owners in ((self.alice, ["alice"]), (self.bob, ["bob"]), ("admin", ["alice", "bob"])):
            names = sorted({each["instance_id"] for each in wanted if each["owner"] in owners})
            for limit in (1, 2, 100):
                found = pages(self.g1, "/usage?", "usage", key, limit=limit)
                self.assertEqual([each["instance_id"] for each in found], names)
            self.assertTrue(all(each["owner"] in owners and each["connections_total"] == 0 for each in found))
        found = pages(self.g2, "/usage?metadata=parity%3D1&", "usage")
        self.assertEqual([(each["instance_id"], each["node"]) for each in found],
                         [(f"vm-l{i}", "n2") for i in (1, 3, 5)])

    # --- Nodes.

    def test_nodes_are_for_admins_and_can_be_drained(self):
        for target in ("/nodes", "/nodes/n1", "/nodes/n1/v1/info", "/nodes/n1/metrics", "/nodes/n1/events",
                       "/nodes/n1/instances"):
            self.assertEqual(self.g1.call("GET", target, key=self.alice).status, 403, target)
        self.assertEqual(self.g1.call("POST", "/nodes/n1/drain", key=self.alice).status, 403)
        self.assertEqual(self.g1.call("GET", "/nodes/n9").status, 404)
        self.assertEqual(self.g1.call("GET", "/nodes/n9/v1/info").status, 404)
        first = self.g1.call("GET", "/nodes/n1").json()["node"]
        self.assertEqual((first["id"], first["state"], first["hostname"], first["address"]),
                         ("n1", "up", "compute-1.test", "https://198.18.5.11:8443"))
        page = self.g1.call("GET", "/nodes?limit=1").json()
        self.assertEqual([each["id"] for each in page["nodes"]], ["n1"])
        page = self.g1.call("GET", f"/nodes?limit=1&cursor={page['next_cursor']}").json()
        self.assertEqual(([each["id"] for each in page["nodes"]], "next_cursor" in page), (["n2"], False))
        for prefix in ("", "/v1"):
            self.assertEqual(self.g1.call("GET", f"{prefix}/nodes/n2/v1/info").json()["hostname"], "compute-2.test")
        self.assertIn(b"portway_fleet_registered 1", self.g1.call("GET", "/nodes/n2/metrics").body)
        self.assertIn(b"portway_gateway_nodes", self.g1.call("GET", "/metrics").body)
        with self.g1.events(target="/nodes/n2/events") as events:
            self.assertEqual(events.status, 200)
            path = self.put("n2", "vm-drain")
            events.until(lambda kind, data: kind == "instance.started" and data["instance_id"] == "vm-drain")

        self.assertEqual(self.g1.call("POST", "/nodes/n2/drain").status, 200)
        self.addCleanup(self.g1.call, "DELETE", "/nodes/n2/drain")
        for gateway in self.gateways:
            gateway.wait_for_nodes(n1="up", n2="draining")
        refused = self.g2.put_on("n2", "vm-late")
        self.assertEqual((refused.status, refused.json()["code"]), (503, "draining"), refused)
        self.assertIn("retry-after", refused.headers)
        self.assertEqual(self.g2.call("GET", path).status, 200)
        self.assertEqual([each["id"] for each in self.g1.call("GET", "/nodes?state=draining").json()["nodes"]], ["n2"])
        self.assertEqual(self.g1.call("DELETE", "/nodes/n2/drain").status, 200)
        for gateway in self.gateways:
            gateway.wait_for_nodes(n1="up", n2="up")

    def test_an_instance_moves(self):
        path = self.put("n1", "vm-move")
        old = self.g1.call("POST", f"{path}/port-forwards", {"guest_port": 3000}).json()["port_forward"]["id"]
        moved = self.g2.put_on("n2", "vm-move")
        self.assertEqual((moved.status, moved.headers["portway-node"]), (201, "n2"), moved)
        made = self.g2.call("POST", f"{path}/port-forwards", {"guest_port": 3000}, key=self.alice)
        self.assertEqual((made.status, made.json()["hostname"]), (201, "compute-2.test"), made)
        new = made.json()["port_forward"]["id"]
        self.assertTrue(wait_until(lambda: self.n1.call("GET", path).json()["instance"].get("reason") == "moved"))
        for gateway in self.gateways:
            self.assertTrue(wait_until(lambda: [
                each["id"] for each in
                gateway.call("GET", "/port-forwards?instance_id=vm-move").json()["port_forwards"]] == [new]), old)
            self.assertEqual([each["node"] for each in gateway.call("GET", "/instances").json()["instances"]
                              if each["id"] == "vm-move"], ["n2"])
        self.assertEqual([each["node"] for each in self.g1.call("GET", "/usage").json()["usage"]], ["n2"])
        self.assertEqual(self.g1.call("DELETE", "/nodes/n1/instances/vm-move").status, 204)

    # --- Events.

    def test_events_continue_at_another_gateway(self):
        with self.g1.events() as at_first, self.g2.events(after=at_first.position()) as at_second, \
                self.g1.events(self.bob) as of_bob:
            path = self.put("n1", "vm-ev", tap="t-ev")
            one = self.g1.call("POST", f"{path}/port-forwards", {"guest_port": 3000}).json()["port_forward"]["id"]
            self.g2.call("PATCH", f"{path}/port-forwards/{one}", {"label": "x"})
            self.assertTrue(wait_until(lambda: "x" in [each.get("label") for each in self.g1.call(
                "GET", "/port-forwards?instance_id=vm-ev").json()["port_forwards"]]))
            self.g2.call("DELETE", f"{path}/port-forwards/{one}")
            self.assertTrue(wait_until(lambda: not self.g1.call(
                "GET", "/port-forwards?instance_id=vm-ev").json()["port_forwards"]))
            self.g1.call("DELETE", path)
            self.put("n2", "vm-bobs", owner="bob")

            def is_last(_, data):
                return data.get("instance_id") == "vm-bobs"
            first, second = at_first.until(is_last), at_second.until(is_last)
            self.assertEqual([each[:2] for each in first], [each[:2] for each in second])
            self.assertEqual([each[2]["instance_id"] for each in of_bob.until(is_last)], ["vm-bobs"])
        kinds = [kind for _, kind, data in first if data.get("instance_id") == "vm-ev"]
        for kind in ("instance.started", "forward.created", "forward.updated", "forward.deleted", "instance.deleted"):
            self.assertIn(kind, kinds)
        for i, (position, _, _) in enumerate(first[:-1]):
            with self.g2.events(after=position) as rest:
                self.assertEqual([each[:2] for each in rest.until(is_last)], [each[:2] for each in first[i + 1:]])
        # At once, with an id that the other gateway may not know yet.
        latest = first[-1][0]
        for i in range(20):
            self.assertEqual(self.g1.call("PATCH", "/instances/vm-bobs", {"metadata": {"n": str(i)}}).status, 200)
            with self.g1.events(after=latest) as events:
                latest, kind, data = events.next()
                self.assertEqual((kind, data["instance"]["metadata"]["n"]), ("instance.updated", str(i)))
            with self.g2.events(after=latest) as events:
                self.assertEqual(events.position(), latest)
        for unknown in ("nonsense", "1.1", "999999999.1"):
            with self.g1.events(after=unknown) as events:
                self.assertEqual(events.next()[1], "reset", unknown)
        # A list says where to continue.
        position = self.g1.call("GET", "/instances").headers["portway-event-id"]
        self.g1.call("PATCH", "/instances/vm-bobs", {"metadata": {"last": "1"}})
        with self.g2.events(after=position, key=self.bob) as events:
            event = events.next()
            self.assertEqual((event[1], event[2]["instance"]["metadata"]["last"]), ("instance.updated", "1"))
        third = self.fleet.gateway()
        third.wait_for_nodes(n1="up", n2="up")
        position = third.call("GET", "/instances").headers["portway-event-id"]
        self.g1.call("PATCH", "/instances/vm-bobs", {"metadata": {"last": "2"}})
        for gateway in (third, *self.gateways):
            with gateway.events(after=position) as events:
                self.assertEqual(events.next()[1], "instance.updated")

    # --- Security.

    def test_nobody_names_a_caller_at_a_gateway(self):
        admin = '{"role":"admin","owner":"ops","scope":"full"}'
        for key in (self.alice, None):
            answer = self.g1.call("GET", "/nodes", key=key, headers={"Portway-Caller": admin})
            self.assertEqual(answer.status, 403, answer)

    def test_a_node_that_does_not_know_the_gateway_is_not_the_callers_fault(self):
        path = self.put("n1", "vm-known")
        stranger = self.fleet.gateway(name="stranger.example.com")
        stranger.wait_for_nodes(n1="up", n2="up")
        answer = stranger.call("GET", path, key=self.alice)
        self.assertEqual((answer.status, answer.json()["code"]), (503, "node_unreachable"), answer)
        self.assertIn("fleet.gateways", answer.json()["detail"])
        usage = stranger.call("GET", "/usage", key=self.alice)
        self.assertEqual((usage.status, usage.json()["unreachable_nodes"]), (200, ["n1"]), usage)
        others = Authority(f"{self.fleet.directory}/others").issue("gateway", "DNS:gateway.example.com")
        unsigned = self.fleet.gateway(certificate=others)
        unsigned.wait_for_nodes(n1="up", n2="up")
        answer = unsigned.call("POST", f"{path}/port-forwards", {"guest_port": 3000}, key=self.alice)
        self.assertEqual((answer.status, answer.json()["code"]), (503, "node_unreachable"), answer)
        self.assertNotIn("certificate", answer.json()["detail"])  # addresses and files are for operators
        self.assertIn("certificate", unsigned.call("GET", path).json()["detail"])

    def test_many_callers_at_once(self):
        path = self.put("n1", "vm-many")
        target, head = f"{path}/port-forwards", f"Host: a\r\nAuthorization: Bearer {self.alice}\r\nConnection: close\r\n\r\n"

        def ask(_):
            with self.g1.send(f"GET {target} HTTP/1.1\r\n{head}".encode(), finish=False) as connection:
                return connection.makefile("rb").read()
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            for answer in pool.map(ask, range(200)):
                self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)


if __name__ == "__main__":
    if "--guest" in sys.argv:
        serve_echo(GUEST_PORT)
    else:
        unittest.main(verbosity=2)

"""Gateways that call a node for others, over TLS with client certificates, with the real daemon."""
import http.client
import json
import os
import ssl
import subprocess
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.certificate import Authority, make_certificate  # noqa: E402
from tests.support.portwayd import Answer, Portwayd, UnixConnection, isolate, require_namespaces, wait_until  # noqa: E402

PLAIN, GATEWAYS = 8080, 8443  # in a namespace of this test's own
NAME = "gateway.example.com"
KEY = "0190b2c0-0000-7000-8000-00000000000"


def caller(role="tenant", owner="alice", scope="full", key="1"):
    return json.dumps({"role": role, "owner": owner, "scope": scope, "key_id": KEY + key}, separators=(",", ":"))


ADMIN = caller("admin", "ops", key="0")


class Gateways(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_namespaces("openssl")
        isolate()

    def setUp(self):
        self.node = node = Portwayd(start=False, config="")
        self.addCleanup(node.end)
        node.settings = [each for each in node.settings if not each.startswith("api.listen=")]
        self.socket, self.pem = f"{node.directory}/api.sock", f"{node.directory}/api.pem"
        make_certificate(self.pem, "node")
        self.clients = Authority(f"{node.directory}/clients")
        self.strangers = Authority(f"{node.directory}/strangers")
        self.gateway = self.clients.issue("gateway", f"DNS:{NAME}")
        self.configure(f'gateways = ["{NAME}"]')
        node.start()

    def configure(self, fleet):
        self.node.write_config(f"""
[guests]
networks = ["198.18.0.0/15"]
[log]
audit = "{self.node.directory}/audit.log"
[[api.listen]]
address = "127.0.0.1:{PLAIN}"
[[api.listen]]
address = "127.0.0.1:{GATEWAYS}"
tls_certificate = "{self.pem}"
tls_private_key = "{self.pem}"
client_ca = "{self.clients.certificate}"
[[api.listen]]
address = "unix:{self.socket}"
admin_uids = [0]
[fleet]
{fleet}
""")

    def connect(self, certificate):
        context = ssl.create_default_context(cafile=f"{self.pem}.crt")
        context.check_hostname = False
        if certificate:
            context.load_cert_chain(certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", GATEWAYS, timeout=30, context=context)
        self.addCleanup(connection.close)
        return connection

    def ask(self, method, target, body=None, who=None, certificate=None, connection=None, headers=None):
        """Over TLS with the gateway's certificate, if nothing else is said."""
        connection = connection or self.connect(certificate or self.gateway)
        headers = {**({"Portway-Caller": who} if who else {}), **(headers or {})}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())

    def put(self, name, owner, address):
        answer = self.ask("PUT", f"/v1/instances/{name}",
                          {"guest_address": address, "tap": f"t-{name}", "owner": owner}, ADMIN)
        self.assertEqual(answer.status, 201, answer)

    def test_tenants_through_one_gateway_stay_apart(self):
        self.put("vm-a", "alice", "198.19.0.2")
        self.put("vm-b", "bob", "198.19.0.3")
        both = self.connect(self.gateway)
        alice, bob, reader = caller(), caller(owner="bob", key="2"), caller(scope="read", key="3")

        def status(who, method, target, body=None):
            return self.ask(method, target, body, who, connection=both).status

        self.assertEqual([status(who, "GET", f"/v1/instances/{name}") for who in (alice, bob) for name in ("vm-a", "vm-b")],
                         [200, 404, 404, 200])
        self.assertEqual(status(reader, "GET", "/v1/instances/vm-a"), 200)
        forwards = "/v1/instances/vm-a/port-forwards"
        self.assertEqual([status(who, "POST", forwards, {"guest_port": 3000}) for who in (reader, bob, alice)], [403, 404, 201])
        self.assertEqual(status(alice, "PUT", "/v1/instances/vm-c", {}), 403)

    def test_the_audit_log_names_the_caller_and_the_gateway(self):
        self.put("vm-a", "alice", "198.19.0.2")
        self.ask("POST", "/v1/instances/vm-a/port-forwards", {"guest_port": 3000}, caller())
        path = f"{self.node.directory}/audit.log"

        def entries():
            with open(path, encoding="utf-8") as file:
                return [json.loads(line) for line in file]

        self.assertTrue(wait_until(lambda: any(each.get("key_id") == KEY + "1" for each in entries())), entries())
        entry = next(each for each in entries() if each.get("key_id") == KEY + "1")
        self.assertEqual((entry["actor"], entry["owner"]), (f"key {KEY}1 via {NAME}", "alice"))

    def test_nobody_else_can_name_a_caller(self):
        self.put("vm-a", "alice", "198.19.0.2")
        other = self.clients.issue("other", "DNS:other.example.com")
        named_in_cn_only = self.clients.issue(NAME, "DNS:other.example.com")
        admin = {"Authorization": f"Bearer {self.node.admin_key()}"}
        unix = UnixConnection(self.socket)
        self.addCleanup(unix.close)
        refused = [self.ask("GET", "/v1/instances", who=ADMIN, certificate=certificate, headers=headers)
                   for certificate in (other, named_in_cn_only) for headers in ({}, admin)]
        refused += [self.ask("GET", "/v1/instances", who=ADMIN, connection=unix),
                    self.node.call("GET", "/v1/instances", headers={"Portway-Caller": ADMIN}),
                    self.node.call("PUT", "/v1/instances/vm-a", {}, headers={"Portway-Caller": ADMIN}, key=None)]
        for answer in refused:
            self.assertEqual(answer.status, 403, answer)
            self.assertIn("fleet.gateways", answer.json()["detail"])
        # With a good key and no word about callers it is a client like others.
        self.assertEqual(self.ask("GET", "/v1/instances", certificate=other, headers=admin).status, 200)

    def test_a_certificate_of_another_authority_does_not_connect(self):
        for certificate in (self.strangers.issue("gateway", f"DNS:{NAME}"), None):
            with self.assertRaises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
                self.ask("GET", "/v1/instances", who=ADMIN, connection=self.connect(certificate))

    def test_a_gateway_that_names_nobody_or_nonsense_is_told(self):
        self.assertEqual(self.ask("GET", "/v1/instances").status, 401)
        self.assertEqual(self.ask("GET", "/healthz").status, 200)
        answer = self.ask("GET", "/v1/instances", who="alice")
        self.assertEqual((answer.status, answer.json()["field"]), (400, "Portway-Caller"))
        connection = self.connect(self.gateway)
        connection.putrequest("GET", "/v1/instances")
        for each in (caller(), ADMIN):
            connection.putheader("Portway-Caller", each)
        connection.endheaders()
        self.assertEqual(connection.getresponse().status, 400)

    def test_a_common_name_counts_if_there_is_no_other(self):
        self.assertEqual(self.ask("GET", "/v1/instances", who=ADMIN, certificate=self.clients.issue(NAME)).status, 200)

    def test_a_reload_takes_a_gateways_right_away(self):
        early = self.connect(self.gateway)
        self.assertEqual(self.ask("GET", "/v1/instances", who=ADMIN, connection=early).status, 200)
        stream = self.connect(self.gateway)
        stream.request("GET", "/v1/events", headers={"Portway-Caller": caller()})
        events = stream.getresponse()
        self.assertEqual(events.status, 200)
        self.configure("gateways = []")
        self.node.reload()
        self.assertEqual(self.ask("GET", "/v1/instances", who=ADMIN, connection=early).status, 403)
        events.read()  # to its end

    def test_the_check_warns_of_gateways_that_cannot_be_known(self):
        for client_ca, warns in ((self.clients.certificate, False), ("", True)):
            said = subprocess.run(
                [self.node.program, "--check", f"--config={self.node.directory}/portway.toml",
                 *(f"--set={each}" for each in self.node.settings), f"--set=api.client_ca={client_ca}",
                 "--set=api.listen=127.0.0.1:8443", f"--set=api.tls_certificate={self.pem}",
                 f"--set=api.tls_private_key={self.pem}"], capture_output=True, text=True, check=True)
            self.assertEqual("fleet.gateways has no effect" in said.stdout + said.stderr, warns, said)


if __name__ == "__main__":
    unittest.main()

"""The product's public page against the real daemon: its three curl commands as they stand there, with host and key
replaced, give its answers, and its rules hold.
"""
import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, isolate  # noqa: E402

HOST = "https://api.firecase.ai"
CREATE = """\
curl -X POST https://api.firecase.ai/instances/{id}/port-forwards \\
  -H "Authorization: Bearer $API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{
    "guest_port": 3000,
    "protocol": "tcp",
    "label": "dev-server"
  }'
"""
LIST = """\
curl https://api.firecase.ai/instances/{id}/port-forwards \\
  -H "Authorization: Bearer $API_KEY"
"""
DELETE = """\
curl -X DELETE https://api.firecase.ai/instances/{id}/port-forwards/{forward_id} \\
  -H "Authorization: Bearer $API_KEY"
"""
FIELDS = ["id", "instance_id", "guest_port", "host_port", "protocol", "label"]
PATH = "/instances/vm-1/port-forwards"


class ProductPage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        isolate()

    def setUp(self):
        self.node = self.enterContext(Portwayd("node.public_hostname=compute-1.firecase.ai"))
        self.assertEqual(self.node.put_instance("vm-1").status, 201)
        self.key = self.node.tenant_key()

    def run_command(self, command, forward_id=""):
        """What the command prints, and the status."""
        command = command.replace(HOST, f"http://127.0.0.1:{self.node.port}")
        command = command.replace("{id}", "vm-1").replace("{forward_id}", forward_id)
        # Only for the status: curl reads it from a file that the command does not name.
        curlrc = f"{self.node.directory}/.curlrc"
        with open(curlrc, "w", encoding="ascii") as file:
            file.write('silent\nwrite-out = "\\n%{http_code}"\n')
        done = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True,
                              env={**os.environ, "API_KEY": self.key, "CURL_HOME": self.node.directory})
        body, _, status = done.stdout.rpartition("\n")
        return body, int(status)

    def create(self, **fields):
        return self.node.call("POST", PATH, fields, key=self.key)

    def assert_refused(self, answer, status, code):
        self.assertEqual((answer.status, answer.json()["code"]), (status, code), answer)

    def test_its_commands_give_its_answers(self):
        body, status = self.run_command(CREATE)
        self.assertEqual(status, 201)
        created = json.loads(body)
        self.assertEqual(list(created), ["port_forward", "hostname"])
        forward = created["port_forward"]
        self.assertEqual(list(forward)[:len(FIELDS)], FIELDS)
        self.assertEqual((forward["instance_id"], forward["guest_port"], forward["protocol"], forward["label"]),
                         ("vm-1", 3000, "tcp", "dev-server"))
        self.assertTrue(20000 <= forward["host_port"] <= 32767)
        self.assertEqual(created["hostname"], "compute-1.firecase.ai")

        body, status = self.run_command(LIST)
        self.assertEqual(status, 200)
        listed = json.loads(body)
        self.assertEqual(list(listed), ["port_forwards", "hostname"])
        self.assertEqual(listed["port_forwards"], [forward])
        self.assertEqual(list(listed["port_forwards"][0]), list(forward))

        self.assertEqual(self.run_command(DELETE, forward["id"]), ("", 204))
        self.assertEqual(json.loads(self.run_command(LIST)[0])["port_forwards"], [])
        self.assertEqual(self.run_command(DELETE, forward["id"])[1], 404)

    def test_only_tcp_is_supported(self):
        self.assert_refused(self.create(guest_port=3000, protocol="udp"), 422, "unsupported_protocol")
        self.assertEqual(self.create(guest_port=3000).json()["port_forward"]["protocol"], "tcp")

    def test_port_22_cannot_be_forwarded_by_anybody(self):
        self.assert_refused(self.create(guest_port=22), 403, "blocked_port")
        self.assert_refused(self.node.call("POST", PATH, {"guest_port": 22}), 403, "blocked_port")

    def test_ports_below_1024_require_admin_permissions(self):
        self.assert_refused(self.create(guest_port=1023), 403, "privileged_port")
        self.assertEqual(self.node.call("POST", PATH, {"guest_port": 1023}).status, 201)
        self.assertEqual(self.create(guest_port=1024).status, 201)

    def test_five_forwards_are_the_default_quota(self):
        for port in range(3000, 3005):
            self.assertEqual(self.create(guest_port=port).status, 201)
        answer = self.create(guest_port=3005)
        self.assert_refused(answer, 409, "quota_exceeded")
        self.assertEqual((answer.json()["limit"], answer.json()["current"]), (5, 5))

    def test_the_vm_must_be_running_and_its_forwards_go_when_it_stops(self):
        self.assertEqual(self.create(guest_port=3000).status, 201)
        self.assertEqual(self.node.call("POST", "/instances/vm-1/stop").status, 200)
        self.assertEqual(self.node.call("GET", PATH, key=self.key).json()["port_forwards"], [])
        self.assert_refused(self.create(guest_port=3000), 409, "instance_not_running")


if __name__ == "__main__":
    unittest.main()

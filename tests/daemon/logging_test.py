"""The daemon's log in each of its formats, and the audit log: who has changed what, by which request."""
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, isolate, require_namespaces, wait_until  # noqa: E402

JOURNAL = "/run/systemd/journal"


def lines(path):
    with contextlib.suppress(FileNotFoundError):
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file.read().splitlines()]
    return []


class Logging(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_namespaces()
        isolate()
        # /run/systemd is this test's own.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
        os.makedirs(JOURNAL)

    def make_node(self, log, *settings, start=True):
        node = Portwayd(*settings, start=False, config="")
        self.addCleanup(node.end)
        node.write_config(f"[guests]\nnetworks = [\"198.18.0.0/15\"]\n[log]\n{log.format(directory=node.directory)}\n")
        if start:
            node.start()
        return node

    def test_each_change_has_a_line_with_actor_and_request(self):
        node = self.make_node('audit = "{directory}/audit.log"')
        alice, bob = node.tenant_key("alice"), node.tenant_key("bob")
        answer = node.put_instance("vm-1", tap="tap0", owner="alice")
        made = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": 3000}, key=alice,
                         headers={"X-Request-Id": "made-by-alice"})
        self.assertEqual(made.status, 201)
        location = made.headers["location"]
        self.assertEqual(node.call("DELETE", location, key=bob, headers={"X-Request-Id": "bobs"}).status, 404)
        self.assertEqual(node.call("PUT", "/instances/vm-2", {}, key=bob, headers={"X-Request-Id": "denied"}).status, 403)
        self.assertEqual(node.call("GET", "/instances/vm-1", key=alice).status, 200)
        self.assertEqual(node.call("DELETE", location, key="pwk_nobody").status, 401)
        path = f"{node.directory}/audit.log"
        self.assertTrue(wait_until(lambda: len(lines(path)) == 6), lines(path))
        keys = [line for line in lines(path) if line["action"] == "POST /api-keys"]
        self.assertEqual([(line["status"], line["result"]) for line in keys], [(201, "ok")] * 2)
        by_request = {line["request_id"]: line for line in lines(path)}
        put = by_request[answer.headers["x-request-id"]]
        self.assertEqual((put["action"], put["target"], put["result"]), ("PUT /instances/{id}", "/instances/vm-1", "ok"))
        forward = by_request["made-by-alice"]
        self.assertEqual((forward["owner"], forward["status"], forward["created"], forward["client"]),
                         ("alice", 201, location, "127.0.0.1"))
        self.assertEqual(forward["actor"], f"key {forward['key_id']}")
        self.assertEqual((by_request["bobs"]["owner"], by_request["bobs"]["result"]), ("bob", "not_found"))
        self.assertEqual(by_request["denied"]["result"], "forbidden")

        node.reload()
        self.assertTrue(wait_until(lambda: lines(path)[-1]["action"] == "SIGHUP"))
        reload = lines(path)[-1]
        self.assertEqual((reload["actor"], reload["client"], reload["result"]), ("uid:0", f"process {os.getpid()}", "ok"))

    def test_denied_calls_sessions_and_keys_have_a_line_with_actor_and_request(self):
        node = self.make_node('format = "json"', start=False)
        with open(f"{node.directory}/json", "ab+") as log:
            node.start(stderr=log, port=0)
            # Where it listens is in the JSON log.
            self.assertTrue(wait_until(lambda: self.find(f"{node.directory}/json", "listens on")))
            node.port = int(self.find(f"{node.directory}/json", "listens on")["message"].split(",")[0].rsplit(":", 1)[1])
            path = f"{node.directory}/json"
            node.put_instance("vm-1", tap="tap0", owner="alice")
            alice = node.tenant_key("alice")
            node.call("GET", "/v1/node", key=alice, headers={"X-Request-Id": "too-curious"})
            node.call("GET", "/v1/node", key="pwk_wrong", headers={"X-Request-Id": "guessed"})
            self.assertTrue(wait_until(lambda: self.of_request(path, "guessed")), lines(path))
            denied = self.of_request(path, "too-curious")
            self.assertEqual((denied["level"], denied["status"], denied["client"]), ("warning", "403", "127.0.0.1"))
            self.assertRegex(denied["actor"], "^key [0-9a-f-]{36}$")
            self.assertEqual(self.of_request(path, "guessed")["status"], "401")
            for what in ("instance vm-1: session", " made by key "):
                line = self.find(path, what)
                self.assertTrue(line["request_id"], line)
                self.assertRegex(line["actor"], "^key ")

    def find(self, path, text):
        return next((line for line in lines(path) if text in line["message"]), None)

    def of_request(self, path, request):
        return next((line for line in lines(path) if line.get("request_id") == request), None)

    def test_level_and_format_follow_a_reload(self):
        node = self.make_node('level = "info"')
        node.write_config('[guests]\nnetworks = ["198.18.0.0/15"]\n[log]\nlevel = "error"\nformat = "json"\n'
                          '[profiles.default]\nmax_forwarded_ports = 7\n')
        node.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: node.call("GET", "/profiles").json()["profiles"][0]["max_forwarded_ports"] == 7))
        before = node.output()
        node.put_instance("vm-1", tap="tap0")
        node.write_config("nonsense")
        node.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: node.output().endswith("\n") and len(node.output()) > len(before)))
        after = [json.loads(line) for line in node.output()[len(before):].splitlines()]
        self.assertEqual([line["level"] for line in after], ["error"])
        self.assertIn("the configuration stays as it was", after[0]["message"])

    def test_the_journal_gets_entries_with_fields(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(f"{JOURNAL}/socket")
            self.addCleanup(os.unlink, f"{JOURNAL}/socket")
            journal.settimeout(30)
            node = self.make_node('format = "journal"', start=False)
            node.start(port=0)
            entries = []

            def hear(text):
                while not any(text in entry for entry in entries):
                    entries.append(journal.recv(65536).decode())
                return next(entry for entry in entries if text in entry)

            begun = hear("listens on")
            self.assertIn("SYSLOG_IDENTIFIER=portwayd\nPRIORITY=6\nMESSAGE=portwayd ", begun)
            node.port = int(begun.split("listens on http://")[1].split(",")[0].rsplit(":", 1)[1])
            node.call("GET", "/v1/node", key="pwk_wrong", headers={"X-Request-Id": "guessed"})
            denied = hear("\nPORTWAY_REQUEST_ID=guessed\n")
            self.assertIn(" 401 ", denied)
            self.assertIn("PRIORITY=4\n", denied)
            self.assertTrue(all(entry.count("MESSAGE") == 1 for entry in entries), entries)

    def test_without_a_journal_the_log_stays_on_standard_error(self):
        node = self.make_node('format = "journal"')
        self.assertIn("log.format: /run/systemd/journal/socket: No such file or directory; the log stays on standard error",
                      node.output())

    def test_a_wrong_level_or_format_names_the_choices(self):
        for line, wanted in (('level = "loud"', '"debug", "info", "warning", "error"'),
                             ('format = "xml"', '"auto", "text", "json", "journal"'),
                             ("audit_max_mib = 0", "it must be 1 to 4096"), ("audit_files = 0", "it must be 1 to 100")):
            with self.subTest(line=line):
                node = self.make_node(line, start=False)
                done = subprocess.run([node.program, f"--config={node.directory}/portway.toml", "--check"], capture_output=True,
                                      text=True, check=False)
                self.assertEqual(done.returncode, 2)
                self.assertIn(wanted, done.stderr)


if __name__ == "__main__":
    unittest.main()

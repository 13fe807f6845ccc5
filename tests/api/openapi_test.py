"""api/openapi.yaml against the real daemon, both ways: what it documents is produced here, status by status, and validated;
what is produced and not documented fails. That the daemon has no route besides is for contract_test.cpp.
"""
import contextlib
import json
import os
import re
import resource
import socket
import sys
import unittest

import jsonschema
import yaml

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import ADMIN, Portwayd, isolate, read_answer, wait_until  # noqa: E402

SOURCE = os.environ["PORTWAY_SOURCE_DIRECTORY"]
METHODS = ("get", "put", "post", "patch", "delete")
UNKNOWN_ID = "0190b2c0-0000-7000-8000-000000000000"

# The codes that no request can provoke, and what covers them.
COVERED_ELSEWHERE = {
    "internal": "ApiServer.AHandlerThatThrowsIsAnsweredWith500 and the like in server_test.cpp",
    "invalid_config": "needs a public address that vanishes between start and request",
    "node_unreachable": "only a gateway answers so: tests/gateway",
}

with open(f"{SOURCE}/api/openapi.yaml", encoding="utf-8") as contract_file:
    DOCUMENT = yaml.safe_load(contract_file)


def resolved(node):
    while "$ref" in node:
        target = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def operations():
    return {(method.upper(), path): item[method]
            for path, item in DOCUMENT["paths"].items() for method in METHODS if method in item}


# Those of a node; tests/gateway/contract_test.cpp has the gateway's.
OPERATIONS = {key: operation for key, operation in operations().items() if operation.get("x-served-by") != "gateway"}


def is_public(operation):
    return operation.get("security") == []


def is_for_admins(operation):
    return operation["summary"].endswith("(admin)")


def explicit_statuses(operation):
    return {int(status) for status in operation["responses"] if status != "default"}


def closed(node):
    """The schemas in `node`, with no member but the documented ones. The document itself leaves answers open: new members are
    no break, and a generated client must not refuse them."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: closed(value) for key, value in node.items()}
    if result.get("type") == "object" and "properties" in result and not {"$ref", "allOf"} & result.keys():
        result.setdefault("additionalProperties", False)
    return result


# Parts of answers that stand in requests too, where a member that is not documented is refused.
SHARED_WITH_REQUESTS = {"#/components/schemas/Target", "#/components/schemas/DefaultTarget",
                        "#/components/schemas/PortForwardRequest"}
CLOSED_COMPONENTS = closed(DOCUMENT["components"])


def validate(instance, schema, components=DOCUMENT["components"]):
    """`schema` may refer to the document's components."""
    jsonschema.Draft202012Validator({**schema, "components": components}).validate(instance)


def validate_answer(instance, schema):
    """As validate(), and nothing is in it that is not documented."""
    validate(instance, closed(schema), CLOSED_COMPONENTS)


class Contract:
    """Checks answers against the document and remembers which of it has been seen."""

    def __init__(self):
        self.produced = set()
        self.codes = set()

    def check(self, method, path, answer):
        """`path` as the document writes it. Returns the answer."""
        what = f"{method} {path}: {answer!r}"
        responses = OPERATIONS[method, path]["responses"]
        assert str(answer.status) in responses, f"not documented: {what}"
        self.produced.add((method, path, answer.status))
        for name in ("RateLimit", "RateLimit-Policy"):  # on any answer to a key
            if name.lower() in answer.headers:
                validate(answer.headers[name.lower()], DOCUMENT["components"]["headers"][name]["schema"])
        self.check_response(resolved(responses[str(answer.status)]), answer, what)
        return answer

    def check_response(self, response, answer, what):
        for name, header in response.get("headers", {}).items():
            header = resolved(header)
            value = answer.headers.get(name.lower())
            assert value is not None or not header.get("required"), f"no {name}: {what}"
            if value is not None:
                validate(value, header["schema"])
        if "content" not in response:
            assert answer.body == b"" and "content-type" not in answer.headers, what
            return
        media = answer.headers["content-type"].partition(";")[0]
        assert media in response["content"], f"{media}: {what}"
        if media.endswith("json"):
            body = answer.json()
            try:
                validate_answer(body, response["content"][media]["schema"])
            except jsonschema.ValidationError as error:
                raise AssertionError(f"{error.message} at {list(error.absolute_path)}: {what}") from error
            if media == "application/problem+json":
                assert body["status"] == answer.status, what
                self.codes.add(body["code"])


CONTRACT = Contract()


def fill(path, **values):
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], "none"), path)


class OpenApi(unittest.TestCase):
    """The tests run by name; the last looks at what the others have seen."""

    @classmethod
    def setUpClass(cls):
        isolate()
        cls.node = Portwayd("profiles.default.max_forwarded_ports=100", "profiles.small.max_forwarded_ports=1",
                            "guests.socket_directories=/run/fc", "guests.networks=198.18.0.0/15,fd00:19::/64")
        cls.node.put_instance("vm-1")
        cls.tenant = cls.node.tenant_key()
        created = cls.node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": 3000}).json()
        cls.forward = created["port_forward"]["id"]

    @classmethod
    def tearDownClass(cls):
        cls.node.end()

    def ask(self, method, path, body=None, status=None, code=None, node=None, query="", **options):
        """Calls and checks; {id} and {forward_id} are vm-1 and its first forward unless given."""
        values = {"id": options.pop("id", "vm-1"), "forward_id": options.pop("forward_id", self.forward)}
        answer = (node or self.node).call(method, fill(path, **values) + query, body, **options)
        CONTRACT.check(method, path, answer)
        if status is not None:
            self.assertEqual(answer.status, status, f"{method} {path}: {answer}")
        if code is not None:
            self.assertEqual(answer.json()["code"], code, f"{method} {path}: {answer}")
        return answer

    def each_with(self, status):
        """The operations that document it."""
        return [(*key, operation) for key, operation in OPERATIONS.items() if status in explicit_statuses(operation)]

    # --- The document itself.

    def test_10_marks_what_only_one_program_serves(self):
        def marks(node):
            if isinstance(node, dict):
                yield from ([node["x-served-by"]] if "x-served-by" in node else [])
                for value in node.values():
                    yield from marks(value)
            elif isinstance(node, list):
                for value in node:
                    yield from marks(value)
        self.assertEqual(set(marks(DOCUMENT)), {"gateway", "node"})
        for (method, path), operation in operations().items():
            if "fleet" in operation["tags"]:
                self.assertEqual(operation["x-served-by"], "gateway", f"{method} {path}")

    def test_10_is_well_formed(self):
        ids = [operation["operationId"] for operation in operations().values()]
        self.assertEqual(len(ids), len(set(ids)))
        tags = {tag["name"] for tag in DOCUMENT["tags"]}
        for (method, path), operation in operations().items():
            self.assertLessEqual(set(operation["tags"]), tags)
            self.assertIn("summary", operation)
            parameters = [resolved(one) for one in
                          DOCUMENT["paths"][path].get("parameters", []) + operation.get("parameters", [])]
            self.assertEqual({one["name"] for one in parameters if one["in"] == "path"},
                             set(re.findall(r"\{(\w+)\}", path)), f"{method} {path}")

    def test_11_has_sound_schemas_and_examples(self):
        def walk(node):
            if isinstance(node, dict):
                if "$ref" in node:
                    resolved(node)
                if isinstance(node.get("schema"), dict):
                    jsonschema.Draft202012Validator.check_schema(node["schema"])
                    for example in node.get("examples", {}).values():
                        validate(example["value"], node["schema"])
                for value in node.values():
                    walk(value)
            elif isinstance(node, list):
                for value in node:
                    walk(value)
        walk(DOCUMENT)
        for schema in DOCUMENT["components"]["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(schema)

    def test_11_has_closed_requests_and_open_answers(self):
        for (method, path), operation in OPERATIONS.items():
            for media in resolved(operation.get("requestBody", {})).get("content", {}).values():
                schema = resolved(media["schema"])
                self.assertIn(False, (schema.get("additionalProperties"), *(
                    one.get("additionalProperties") for one in schema.get("oneOf", []))), f"request of {method} {path}")
            for status, response in operation["responses"].items():
                for media in resolved(response).get("content", {}).values():
                    self.assert_open(media["schema"], f"{status} of {method} {path}")

    def assert_open(self, schema, what, seen=()):
        reference = schema.get("$ref")
        if reference in seen or reference in SHARED_WITH_REQUESTS:
            return
        seen = (*seen, reference) if reference else seen
        self.assertNotEqual(schema.get("additionalProperties"), False, what)
        inner = [resolved(schema)] if reference else []
        inner += schema.get("properties", {}).values()
        inner += [one for key in ("oneOf", "anyOf", "allOf") for one in schema.get(key, [])]
        inner += [schema["items"]] if "items" in schema else []
        for one in inner:
            self.assert_open(one, what, seen)

    def test_12_is_what_the_daemon_serves(self):
        self.assertEqual(self.ask("GET", "/openapi.json", key=None, status=200).json(), DOCUMENT)

    def test_13_explains_each_code_as_the_table_and_the_source_have_it(self):
        documented = {one["const"] for one in DOCUMENT["components"]["schemas"]["ProblemCode"]["oneOf"]}
        with open(f"{SOURCE}/docs/api-errors.md", encoding="utf-8") as file:
            rows = re.findall(r"^\| `(\w+)` \| (\d+) \| [^|]+ \| [^|]+ \|$", file.read(), re.MULTILINE)
        self.assertEqual({code for code, _ in rows}, documented)
        with open(f"{SOURCE}/base/error.cpp", encoding="utf-8") as file:
            names = set(re.findall(r'^    "(\w+)",$', file.read(), re.MULTILINE))
        self.assertEqual(names, documented)
        status_of = dict(rows)
        for name, response in DOCUMENT["components"]["responses"].items():
            content = response.get("content", {}).get("application/problem+json")
            if content is None or name == "Fault":
                continue
            properties = content["schema"]["properties"]
            codes = properties["code"].get("enum") or [properties["code"]["const"]]
            for code in codes:
                self.assertEqual(int(status_of[code]), properties["status"]["const"], f"{name}: {code}")

    def test_14_has_no_route_that_the_daemon_has_not(self):
        for path, item in DOCUMENT["paths"].items():
            methods = {method.upper() for method in METHODS if method in item and (method.upper(), path) in OPERATIONS}
            answer = self.node.call("OPTIONS", fill(path), key=None)
            if not methods:
                continue
            with self.subTest(path):
                self.assertEqual(answer.status, 204)
                expected = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
                self.assertEqual(set(answer.headers["allow"].split(", ")), expected)

    # --- What any operation may be answered.

    def raw(self, method, path, fields="", finish=True, node=None):
        head = f"{method} {fill(path, id='vm-1', forward_id=self.forward)} HTTP/1.1\r\nHost: node\r\n{fields}"
        return (node or self.node).send(head.encode(), finish)

    def test_20_what_is_ambiguous_is_400(self):
        for method, path, _ in self.each_with(400):
            with self.raw(method, path, "Host: other\r\n\r\n") as connection:
                self.assertEqual(CONTRACT.check(method, path, read_answer(connection)).status, 400)

    def test_21_without_a_key_it_is_401(self):
        for method, path, _ in self.each_with(401):
            self.ask(method, path, key=None, status=401)
            self.ask(method, path, key="pwk_unknown", status=401)

    def test_22_with_a_tenants_key_the_orchestrators_calls_are_403(self):
        for method, path, operation in self.each_with(403):
            if is_for_admins(operation):
                self.ask(method, path, key=self.tenant, status=403, code="forbidden")

    def test_22_with_a_key_of_another_scope_it_is_403(self):
        def key_of(scope):
            return self.node.call("POST", "/api-keys", {"role": "admin", "owner": "ops", "scope": scope}).json()["secret"]
        metrics, read = key_of("metrics"), key_of("read")
        for method, path, operation in self.each_with(403):
            if path != "/metrics":
                self.ask(method, path, key=metrics, status=403, code="forbidden")
                if path != "/events":  # has no end
                    answer = self.ask(method, path, key=read)
                    self.assertEqual(answer.status == 403, method != "GET", f"{method} {path}: {answer}")
        self.ask("GET", "/metrics", key=metrics, status=200)

    def test_23_what_is_not_there_is_404_and_so_is_anothers(self):
        self.node.put_instance("vm-mallory", owner="mallory")
        for method, path, operation in self.each_with(404):
            body = {"guest_port": 3000} if operation["operationId"] == "createPortForward" else None
            if operation["operationId"] in ("createPortForwards", "setPortForwards"):
                body = {"port_forwards": [{"guest_port": 3000}]}
            if operation["operationId"] == "updatePortForward":
                body = {"label": "x"}
            if path == "/ui/{file}":
                CONTRACT.check(method, path, self.node.call(method, "/ui/nothing", key=None))
                continue
            if operation["operationId"] == "updateApiKey":
                body = {}
            unknown = UNKNOWN_ID if path.startswith("/api-keys/") else "vm-none"
            self.ask(method, path, body, id=unknown, status=404)
            if "forward_id" in path:
                self.ask(method, path, body, forward_id=UNKNOWN_ID, status=404)
                self.ask(method, path, body, forward_id="x", status=404)
            if not is_for_admins(operation):
                self.ask(method, path, body, id="vm-mallory", key=self.tenant, status=404)

    def test_24_a_large_body_is_413(self):
        for method, path, _ in self.each_with(413):
            with self.raw(method, path, "Content-Length: 65537\r\n\r\n") as connection:
                self.assertEqual(CONTRACT.check(method, path, read_answer(connection)).json()["limit"], 65536)

    def test_25_a_body_that_is_not_said_to_be_json_is_415(self):
        for method, path, _ in self.each_with(415):
            self.ask(method, path, b"{}", headers={"Content-Type": "text/plain"}, status=415)

    def test_26_a_parameter_given_twice_is_422(self):
        for method, path, operation in self.each_with(422):
            key = None if is_public(operation) else ADMIN
            answer = self.ask(method, path, key=key, query="?x=1&x=2", status=422, code="invalid_request")
            self.assertEqual(answer.json()["field"], "x")

    def test_27_a_large_header_is_431(self):
        for method, path, _ in self.each_with(431):
            with self.raw(method, path, f"X-Large: {'x' * 17000}\r\n\r\n") as connection:
                self.assertEqual(CONTRACT.check(method, path, read_answer(connection)).status, 431)

    def test_28_a_slow_request_is_408(self):
        with contextlib.ExitStack() as stack:
            waiting = []
            for method, path, _ in self.each_with(408):
                waiting.append((method, path, stack.enter_context(self.raw(method, path, finish=False))))
            for method, path, connection in waiting:
                self.assertEqual(CONTRACT.check(method, path, read_answer(connection)).status, 408)

    def test_29_a_key_that_calls_too_often_is_429(self):
        with Portwayd("api.rate_limit_per_second=1", "api.rate_limit_burst=1") as node:
            for method, path, operation in self.each_with(429):
                self.assertFalse(is_public(operation))
                for _ in range(50):  # ten times as much for an admin, and it refills while the test runs
                    answer = self.ask(method, path, node=node)
                    self.assertEqual(answer.headers["ratelimit-policy"], '"default";q=10;w=1')
                    if answer.status == 429:
                        self.assertIn(f";t={answer.headers['retry-after']}", answer.headers["ratelimit"])
                        break
                else:
                    self.fail("never 429")

    def test_29_every_operation_that_needs_a_key_can_be_429(self):
        for (method, path), operation in operations().items():
            self.assertEqual("429" in operation["responses"], not is_public(operation), f"{method} {path}")

    def test_30_body_that_is_not_json_is_400(self):
        for method, path, _ in self.each_with(415):
            self.ask(method, path, b'{"guest_port": ', status=400, code="malformed_json")
            self.ask(method, path, b"[]", status=400, code="malformed_json")
            self.ask(method, path, {"nonsense": 1}, status=422, code="unknown_field")

    def test_31_other_paths_and_methods_are_problems_too(self):
        fault = resolved(DOCUMENT["components"]["responses"]["NotFound"])
        CONTRACT.check_response(fault, self.node.call("GET", "/nothing"), "GET /nothing")
        answer = self.node.call("DELETE", "/instances")
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD, OPTIONS"))
        validate(answer.json(), {"$ref": "#/components/schemas/Problem"})
        CONTRACT.codes.add(answer.json()["code"])

    def test_32_too_many_streams_are_429_and_503(self):
        with Portwayd() as node, contextlib.ExitStack() as stack:
            def refusal(key):
                connection = stack.enter_context(node.send(
                    f"GET /events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n".encode(), finish=False))
                head = connection.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL)
                return None if head.endswith(b"200") else read_answer(connection)

            for tenant in range(8):  # 48 are not kept for admins, and 6 of one owner can be event streams
                key = node.tenant_key(f"tenant-{tenant}")
                self.assertEqual([refusal(key) for _ in range(6)], [None] * 6)
                answer = CONTRACT.check("GET", "/events", refusal(key))
                self.assertEqual((answer.status, answer.json()["code"]), (429, "stream_limit"))
                self.assertIn("retry-after", answer.headers)
            answer = refusal(node.tenant_key("another"))
            CONTRACT.check_response(resolved(DOCUMENT["components"]["responses"]["Fault"]), answer, "too many streams")
            self.assertEqual((answer.status, answer.json()["code"]), (503, "connection_limit"))
            self.assertIn("retry-after", answer.headers)
            self.assertIsNone(refusal(node.admin_key()))

    # --- What each is for.

    def test_40_instances(self):
        body = {"guest_address": "198.19.0.3", "tap": "tap0", "owner": "alice", "vmm_pid": self.node.process.pid}
        answer = self.ask("PUT", "/instances/{id}", body, id="vm-2", status=201)
        self.assertEqual(answer.headers["location"], "/instances/vm-2")
        for same in (body, {**body, "guest_addresses": ["198.19.0.3"]},
                     {**body, "guest_address": None, "guest_addresses": ["198.19.0.3"]}):
            again = self.ask("PUT", "/instances/{id}", same, id="vm-2", status=200)
            self.assertEqual(again.json(), answer.json())
        self.ask("GET", "/instances/{id}", id="vm-2", status=200)
        page = self.ask("GET", "/instances", query="?limit=1", status=200).json()
        self.ask("GET", "/instances", query=f"?cursor={page['next_cursor']}", status=200)
        self.ask("GET", "/instances/{id}/activity", id="vm-2", status=200)
        page = self.ask("GET", "/usage", query="?limit=1", status=200).json()
        self.ask("GET", "/usage", query=f"?cursor={page['next_cursor']}", status=200)
        session = answer.json()["instance"]["session_id"]
        another = "?session_id=0190b2c0-5a3e-7c11-9d2f-6f0a4c1b8e59"
        changed = self.ask("PUT", "/instances/{id}", {**body, "owner": "bob"}, id="vm-2", query=f"?session_id={session}", status=200)
        self.assertEqual(changed.json()["instance"]["session_id"], session)
        for method, path, content in (("POST", "/instances/{id}/stop", None), ("DELETE", "/instances/{id}", None),
                                      ("PUT", "/instances/{id}", body),
                                      ("PATCH", "/instances/{id}", {"guest_address": "198.19.0.4"})):
            self.ask(method, path, content, id="vm-2", query=another, status=412, code="session_mismatch")
            self.ask(method, path, content, id="vm-2", query="?session_id=1", status=422, code="invalid_request")
        self.ask("PUT", "/instances/{id}", body, id="vm-new", query=another, status=412, code="session_mismatch")
        for method, path, content in (("POST", "/instances/{id}/stop", None), ("DELETE", "/instances/{id}", None),
                                      ("PUT", "/instances/{id}", body), ("PATCH", "/instances/{id}", {"profile": "default"})):
            self.ask(method, path, content, id="vm-2", headers={"If-Match": '"1"'}, status=412, code="precondition_failed")
            self.ask(method, path, content, id="vm-2", headers={"If-Match": "1"}, status=422, code="invalid_request")
        self.ask("PUT", "/instances/{id}", body, id="vm-2", headers={"If-None-Match": "*"}, status=412, code="precondition_failed")
        self.ask("PATCH", "/instances/{id}", {"owner": "alice"}, id="vm-2", headers={"If-Match": changed.headers["etag"]}, status=200)
        self.ask("POST", "/instances/{id}/stop", id="vm-2", query=f"?session_id={session}", status=200)
        self.ask("GET", "/instances/{id}", id="vm-2", status=200)
        self.ask("POST", "/instances/{id}/port-forwards", {"guest_port": 3000}, id="vm-2", status=409,
                 code="instance_not_running")
        self.ask("DELETE", "/instances/{id}", id="vm-2", status=204)
        other = {**body, "tap": "t-vm-1"}
        self.ask("PUT", "/instances/{id}", other, id="vm-2", status=409, code="tap_in_use")
        routed = {**body, "device": "none"}
        answer = self.ask("PUT", "/instances/{id}", routed, id="vm-2", status=201)
        self.assertEqual(answer.json()["instance"]["device"], "none")
        answer = self.ask("PUT", "/instances/{id}", {**routed, "tap": "t-vm-3"}, id="vm-3", status=409, code="guest_address_in_use")
        self.assertEqual(answer.json()["field"], "guest_address")
        self.ask("DELETE", "/instances/{id}", id="vm-2", status=204)
        self.change_guest_addresses(routed)
        for wrong in ({"guest_address": "127.0.0.1"}, {"guest_address": "10.0.0.1"}, {"guest_address": "x"}):
            self.ask("PUT", "/instances/{id}", {**body, **wrong}, id="vm-2", status=422, code="invalid_address")
        both = {"guest_address": None, "guest_addresses": ["198.19.0.3", "198.19.0.4"]}
        answer = self.ask("PUT", "/instances/{id}", {**body, **both}, id="vm-2", status=422, code="invalid_address")
        self.assertEqual(answer.json()["field"], "guest_addresses")
        for wrong in ({"guest_addresses": []}, {"tap": ""}, {"device": ""}, {"device": "a/b"}, {"device": "no-such0"},
                      {"owner": "a b"}, {"profile": "none"}, {"vmm_pid": 1}, {"owner": None}):
            answer = self.ask("PUT", "/instances/{id}", {**body, **wrong}, id="vm-2", status=422, code="invalid_request")
            self.assertEqual(answer.json()["field"], next(iter(wrong)))

    def test_40_instances_target(self):
        path = "/instances/{id}"
        body = {"guest_address": "198.19.0.3", "tap": "tap0", "owner": "alice"}
        socket_target = {"kind": "firecracker_vsock", "socket": "/run/fc/v.sock"}
        for target in (socket_target, {**socket_target, "port": 5000}, {"kind": "unix", "socket": "/run/fc/x"}):
            validate({**body, "target": target}, DOCUMENT["components"]["schemas"]["InstanceRequest"])
            answer = self.ask("PUT", path, {**body, "target": target}, id="vm-2")
            self.assertEqual(answer.json()["instance"]["target"], target)
            self.ask("GET", path, id="vm-2", status=200)
        made = self.ask("POST", path + "/port-forwards", {}, id="vm-2", key=self.tenant, status=201).json()["port_forward"]
        self.assertEqual((made["target"], made["guest_port"]), ({"kind": "unix", "socket": "/run/fc/x"}, 0))
        self.ask("POST", path + "/port-forwards", {"guest_port": 3000}, id="vm-2", status=422, code="invalid_port")
        made = self.ask("POST", path + "/port-forwards", {"guest_port": 3000, "target": {"kind": "tcp"}}, id="vm-2", status=201)
        self.assertNotIn("target", made.json()["port_forward"])
        answer = self.ask("PUT", path, {**body, "target": {"kind": "tcp"}}, id="vm-2", status=200)
        self.assertNotIn("target", answer.json()["instance"])
        for target, field in (({"kind": "unix"}, "target.socket"), ({"kind": "x"}, "target.kind"),
                              ({"kind": "unix", "socket": "/run/x"}, "target.socket")):
            answer = self.ask("PUT", path, {**body, "target": target}, id="vm-2", status=422, code="invalid_request")
            self.assertEqual(answer.json()["field"], field)
        self.ask("DELETE", path, id="vm-2", status=204)

    def change_guest_addresses(self, body):
        path = "/instances/{id}"
        session = self.ask("PUT", path, body, id="vm-2", status=201).json()["instance"]["session_id"]
        for change, addresses in (({"guest_address": "198.19.0.4"}, ["198.19.0.4"]), ({}, ["198.19.0.4"]),
                                  ({"guest_address_v6": "fd00:19::4"}, ["198.19.0.4", "fd00:19::4"]),
                                  ({"guest_address_v6": None, "guest_address": "fd00:19::4"}, ["fd00:19::4"]),
                                  ({"guest_address": "198.19.0.5"}, ["198.19.0.5"])):
            answer = self.ask("PATCH", path, change, id="vm-2", query=f"?session_id={session}", status=200)
            self.assertEqual(answer.json()["instance"]["guest_addresses"], addresses)
            self.assertEqual(answer.json()["instance"]["session_id"], session)
        self.ask("PUT", path, {**body, "tap": "t-vm-3"}, id="vm-3", status=201)
        move = {"guest_address": body["guest_address"]}
        answer = self.ask("PATCH", path, move, id="vm-2", status=409, code="guest_address_in_use")
        self.assertEqual(answer.json()["field"], "guest_address")
        for wrong in ({"guest_address": "x"}, {"guest_address": "10.0.0.1"}, {"guest_address_v6": "198.19.0.6"}):
            answer = self.ask("PATCH", path, wrong, id="vm-2", status=422, code="invalid_address")
            self.assertEqual(answer.json()["field"], next(iter(wrong)))
        self.ask("PATCH", path, {"guest_address": None}, id="vm-2", status=422, code="invalid_request")
        self.ask("PATCH", path, move, id="vm-none", status=404, code="not_found")
        self.ask("POST", "/instances/{id}/stop", id="vm-2", status=200)
        self.ask("PATCH", path, move, id="vm-2", status=409, code="instance_not_running")
        for instance in ("vm-2", "vm-3"):
            self.ask("DELETE", path, id=instance, status=204)

    def test_41_port_forwards(self):
        path = "/instances/{id}/port-forwards"
        created = self.ask("POST", path, {"guest_port": 3001, "protocol": "tcp", "label": "dev"}, status=201)
        forward = created.json()["port_forward"]
        self.assertEqual(created.headers["location"], f"/instances/vm-1/port-forwards/{forward['id']}")
        now = self.ask("GET", path + "/{forward_id}", forward_id=forward["id"], status=200).json()
        self.assertEqual(now, created.json())
        for method, body in (("PATCH", {"label": "x"}), ("DELETE", None)):
            self.ask(method, path + "/{forward_id}", body, forward_id=forward["id"], headers={"If-Match": '"1"'}, status=412,
                     code="precondition_failed")
        page = self.ask("GET", path, query="?limit=1", status=200).json()
        self.ask("GET", path, query=f"?cursor={page['next_cursor']}&label=dev", status=200)
        for query in ("?limit=0", "?limit=1001", "?cursor=x", "?nonsense=1"):
            self.ask("GET", path, query=query, status=422)
            self.ask("GET", "/port-forwards", query=query, status=422)
        wanted = {"port_forwards": [{"guest_port": 3001, "label": "dev"}]}
        planned = self.ask("PUT", path, wanted, query="?dry_run=true", status=200).json()
        self.assertEqual([each["id"] for each in planned["unchanged"]], [forward["id"]])
        self.ask("PUT", path, {"port_forwards": [{"guest_port": 1}, {"guest_port": 1}]}, status=422, code="invalid_request")
        listed = self.ask("GET", "/port-forwards", query="?label=dev&sort=host_port&order=desc&limit=1", status=200).json()
        self.assertEqual([each["id"] for each in listed["port_forwards"]], [forward["id"]])
        self.ask("GET", "/port-forwards", query=f"?host_port={forward['host_port']}&state=listening", key=self.tenant, status=200)
        self.ask("DELETE", path + "/{forward_id}", forward_id=forward["id"], query="?connections=x", status=422)
        row = {"port_forwards": [{"guest_port": 8000, "host_ports": 2, "metadata": {"row": "1"}, "ttl_seconds": 3600}]}
        row = self.ask("POST", path + ":batch", row, status=201).json()["port_forwards"]
        self.assertEqual(row[0]["host_port"] + 1, row[1]["host_port"])
        self.ask("GET", path, query="?metadata=row%3D1", status=200)
        self.ask("DELETE", path, query="?metadata=row&connections=nonsense", status=422)
        self.assertEqual(self.ask("DELETE", path, query="?metadata=row", status=200).json(), {"deleted": [each["id"] for each in row]})
        self.ask("DELETE", path + "/{forward_id}", forward_id=forward["id"], query="?connections=drain", status=204)

    def test_41_port_forwards_to_sockets(self):
        path = "/instances/{id}/port-forwards"
        for target in ({"kind": "unix", "socket": "/run/fc/x"},
                       {"kind": "firecracker_vsock", "socket": "/run/fc/v.sock", "port": 3000}):
            schema = DOCUMENT["components"]["schemas"]["PortForwardRequest"]
            validate({"target": target}, schema)
            validate({}, schema)  # where the instance says
            for wrong in ({"target": target, "guest_port": 1}, {"target": {"kind": "tcp"}}):
                with self.assertRaises(jsonschema.ValidationError):
                    validate(wrong, schema)
            made = self.ask("POST", path, {"target": target}, status=201).json()["port_forward"]
            self.assertEqual((made["target"], made["guest_port"]), (target, 0))
            self.ask("GET", path + "/{forward_id}/check", forward_id=made["id"], status=200)
            refused = self.ask("POST", path + "/{forward_id}/capture", forward_id=made["id"], status=422)
            self.assertEqual(refused.json()["field"], "target")
            # Its service may believe the header that an admin asked for.
            self.ask("PATCH", path + "/{forward_id}", {"source_mode": "proxy_v2"}, forward_id=made["id"], status=200)
            refused = self.ask("PATCH", path + "/{forward_id}", {"source_mode": "plain"}, forward_id=made["id"], key=self.tenant,
                               status=403, code="forbidden")
            self.assertEqual(refused.json()["field"], "source_mode")
            self.ask("PATCH", path + "/{forward_id}", {"label": "x"}, forward_id=made["id"], key=self.tenant, status=200)
            self.ask("DELETE", path + "/{forward_id}", forward_id=made["id"], status=204)

    def refused_forwards(self):
        """(body, key, status, code, field)."""
        yield {"guest_port": 22}, ADMIN, 403, "blocked_port", "guest_port"
        yield {"guest_port": 80}, self.tenant, 403, "privileged_port", "guest_port"
        yield {"guest_port": 3000, "host_port": 20000}, self.tenant, 403, "forbidden", "host_port"
        yield {"guest_port": 0}, ADMIN, 422, "invalid_port", "guest_port"
        yield {"guest_port": 3000, "host_port": 1}, ADMIN, 422, "invalid_port", "host_port"
        yield {"guest_port": 3000, "label": "x" * 64}, ADMIN, 422, "invalid_label", "label"
        yield {"guest_port": 3000, "protocol": "udp"}, ADMIN, 422, "unsupported_protocol", "protocol"
        yield {"guest_port": 3000, "label": 1}, ADMIN, 422, "invalid_request", "label"
        yield {}, ADMIN, 422, "invalid_request", "guest_port"
        socket_target = {"kind": "unix", "socket": "/run/fc/x"}
        yield {"target": socket_target}, self.tenant, 403, "forbidden", "target"
        yield {"target": socket_target, "guest_port": 3000}, ADMIN, 422, "invalid_port", "guest_port"
        yield {"target": {"kind": "unix", "socket": "/run/x"}}, ADMIN, 422, "invalid_request", "target.socket"
        yield {"target": {**socket_target, "port": 1}}, ADMIN, 422, "unknown_field", "target.port"

    def test_42_refused_port_forwards(self):
        path = "/instances/{id}/port-forwards"
        for body, key, status, code, field in self.refused_forwards():
            with self.subTest(body):
                answer = self.ask("POST", path, body, key=key, status=status, code=code)
                self.assertEqual(answer.json()["field"], field)
        taken = self.ask("POST", path, {"guest_port": 3000}, status=201).json()["port_forward"]["host_port"]
        self.ask("POST", path, {"guest_port": 3000, "host_port": taken}, status=409, code="host_port_taken")
        self.node.put_instance("vm-small", profile="small")
        self.ask("POST", path, {"guest_port": 3000}, id="vm-small", status=201)
        self.ask("POST", path, {"guest_port": 3001}, id="vm-small", status=409, code="quota_exceeded")
        two = {"port_forwards": [{"guest_port": 3000}, {"guest_port": 3001}]}
        self.ask("PUT", path, two, id="vm-small", status=409, code="quota_exceeded")

    def test_43_keys(self):
        made = self.ask("POST", "/api-keys", {"role": "tenant", "owner": "bob"}, status=201)
        self.assertEqual(made.headers["location"], f"/api-keys/{made.json()['api_key']['id']}")
        one = "/api-keys/{id}"
        key = made.json()["api_key"]["id"]
        self.ask("GET", "/api-keys", status=200)
        self.assertEqual(self.ask("GET", one, id=key, status=200).json()["api_key"], made.json()["api_key"])
        self.ask("PATCH", one, {"description": "of a job", "expires_at": "2999-01-01T00:00:00+01:00"}, id=key, status=200)
        self.ask("GET", "/whoami", key=made.json()["secret"], status=200)
        rotated = self.ask("POST", one + "/rotate", {"overlap_seconds": 60}, id=key, status=200).json()
        self.assertIn("old_secret_valid_until", rotated["api_key"])
        self.assertIn("last_used_at", rotated["api_key"])
        for secret in (made.json()["secret"], rotated["secret"]):
            who = self.ask("GET", "/v1/whoami", key=secret, status=200).json()["whoami"]
            self.assertEqual((who["key_id"], "secret_valid_until" in who), (key, secret != rotated["secret"]))
        limited = self.ask("POST", "/api-keys", {"role": "tenant", "owner": "alice", "instance_id": "vm-1", "scope": "read",
                                                 "ttl_seconds": 60, "description": None}, status=201).json()
        self.ask("GET", "/v1/whoami", key=limited["secret"], status=200)
        self.ask("GET", "/instances/{id}", key=limited["secret"], status=200)
        self.ask("DELETE", "/api-keys/{id}", id=key, status=204)
        page = self.ask("GET", "/api-keys", query="?limit=1", status=200).json()
        self.ask("GET", "/api-keys", query=f"?cursor={page['next_cursor']}", status=200)
        with Portwayd() as node:
            while (answer := self.ask("POST", "/api-keys", {"role": "tenant", "owner": "bob"}, node=node)).status == 201:
                pass
            self.assertEqual((answer.status, answer.json()["current"]), (409, 1000))
        for wrong in ({"role": "root", "owner": "bob"}, {"role": "tenant", "owner": ""},
                      {"role": "tenant", "owner": "bob", "scope": "metrics"},
                      {"role": "admin", "owner": "bob", "instance_id": "vm-1"},
                      {"role": "tenant", "owner": "bob", "expires_at": "2000-01-01T00:00:00Z"}):
            self.ask("POST", "/api-keys", wrong, status=422, code="invalid_request")

    def test_44_the_node(self):
        self.ask("GET", "/profiles", status=200)
        self.ask("GET", "/v1/info", status=200)
        self.ask("GET", "/v1/node", status=200)
        with Portwayd() as node:
            for method, draining in (("POST", True), ("POST", True), ("DELETE", False), ("DELETE", False), ("POST", True)):
                answer = self.ask(method, "/v1/node/drain", status=200, node=node).json()["node"]
                self.assertEqual(answer["draining"], draining)
            self.assertTrue(self.ask("GET", "/v1/node", status=200, node=node).json()["node"]["draining"])
            self.ask("GET", "/readyz", status=503, code="draining", node=node, key=None)
            self.ask("PUT", "/instances/{id}", {"guest_address": "198.19.0.2", "tap": "t0", "owner": "alice"}, status=503,
                     code="draining", node=node)
        with Portwayd("proxy.handover_timeout_s=0") as node:
            self.ask("POST", "/v1/node/upgrade", status=409, code="upgrade_not_possible", node=node)
        with Portwayd() as node:
            node.upgrade(lambda: self.ask("POST", "/v1/node/upgrade", status=202, node=node))
            taken = self.ask("GET", "/v1/node", status=200, node=node).json()["process"]["taken_over_from"]
            self.assertEqual(taken["end"], "upgrade")
        backup = self.ask("POST", "/v1/node/backup", status=200)
        self.assertEqual((backup.body[:16], int(backup.headers["content-length"])), (b"SQLite format 3\0", len(backup.body)))
        for scope in ("", "?scope=node", "?scope=forwards"):
            self.ask("GET", "/metrics", query=scope, status=200)
        self.ask("GET", "/connections/recent", status=200)
        for file in os.listdir(os.path.join(os.environ["PORTWAY_SOURCE_DIRECTORY"], "api/ui")):
            self.assertEqual(self.node.call("GET", f"/ui/{file}", key=None).status, 200)
        CONTRACT.check("GET", "/ui/{file}", self.node.call("GET", "/ui/app.js", key=None))
        for path in ("/healthz", "/readyz", "/version", "/ui"):
            self.ask("GET", path, key=None, status=200)

    def test_45_head_is_get_without_the_body(self):
        for (method, path), _ in OPERATIONS.items():
            if method != "GET" or path in ("/events", "/ui/{file}"):
                continue
            with self.subTest(path):
                keys = self.node.call("GET", "/api-keys").json()["api_keys"]
                target = fill(path, id=keys[0]["id"] if path == "/api-keys/{id}" else "vm-1", forward_id=self.forward)
                head, get = self.node.call("HEAD", target), self.node.call("GET", target)
                self.assertEqual((head.status, head.body), (200, b""))
                self.assertEqual(head.headers["content-type"], get.headers["content-type"])

    def test_50_update(self):
        path = "/instances/{id}/port-forwards/{forward_id}"
        answer = self.ask("PATCH", path, {"label": "staging"}, status=200)
        self.assertEqual(answer.json()["port_forward"]["label"], "staging")
        self.assertEqual(self.ask("PATCH", path, {}, status=200).json(), answer.json())
        self.assertEqual(self.ask("GET", path).json(), answer.json())
        self.ask("PATCH", path, {"label": "x" * 64}, status=422, code="invalid_label")
        self.ask("PATCH", path, {"host_port": 1}, status=422, code="unknown_field")
        self.ask("PATCH", path, {"guest_port": 0}, status=422, code="invalid_port")
        self.ask("PATCH", path, {"guest_port": 22}, status=403, code="blocked_port")
        self.ask("PATCH", path, {"guest_port": 80}, key=self.tenant, status=403, code="privileged_port")
        life = {"guest_port": 3999, "metadata": {"env": "dev"}, "expires_at": "2999-01-01T00:00:00Z", "enabled": False}
        now = self.ask("PATCH", path, life, status=200).json()["port_forward"]
        self.assertEqual((now["guest_port"], now["metadata"], now["state"]), (3999, {"env": "dev"}, "disabled"))
        with socket.create_server(("", now["host_port"])):
            self.ask("PATCH", path, {"enabled": True}, status=409, code="host_port_taken")
        self.ask("PATCH", path, {"enabled": True, "expires_at": None, "metadata": {"env": None}}, status=200)
        limits = {"allowed_cidrs": ["203.0.113.0/24"], "max_connections": 7, "max_bytes_per_second": 1000000}
        limited = self.ask("PATCH", path, limits, status=200).json()["port_forward"]
        self.assertEqual({name: limited[name] for name in limits}, limits)
        self.assertEqual(set(limited["admin_limits"]), set(limits))
        refused = self.ask("PATCH", path, {"max_connections": None}, key=self.tenant, status=403, code="forbidden").json()
        self.assertEqual(refused["field"], "max_connections")
        self.ask("PATCH", path, dict.fromkeys(limits), status=200)
        self.ask("PATCH", path, {"max_connections": 3}, key=self.tenant, status=200)
        self.ask("PATCH", path, {"allowed_cidrs": ["nowhere"]}, status=422, code="invalid_request")

    def test_51_batch(self):
        path = "/instances/{id}/port-forwards:batch"
        before = self.ask("GET", "/instances/{id}/port-forwards", query="?limit=1000").json()
        for body, key, status, code, field in self.refused_forwards():
            with self.subTest(body):
                entries = [{"guest_port": 4000}, {"guest_port": 4001}, body]
                answer = self.ask("POST", path, {"port_forwards": entries}, key=key, status=status, code=code)
                self.assertEqual(answer.json()["field"], f"port_forwards[2].{field}")
        self.node.put_instance("vm-tiny", profile="small")
        two = {"port_forwards": [{"guest_port": 4000}, {"guest_port": 4001}]}
        self.ask("POST", path, two, id="vm-tiny", status=409, code="quota_exceeded")
        for wrong in ([], [{"guest_port": 4000}] * 1001, "x"):
            self.ask("POST", path, {"port_forwards": wrong}, status=422, code="invalid_request")
        after = self.ask("GET", "/instances/{id}/port-forwards", query="?limit=1000").json()
        self.assertEqual(before, after, "a refused batch left something")
        made = self.ask("POST", path, two, status=201).json()["port_forwards"]
        self.assertEqual([one["guest_port"] for one in made], [4000, 4001])

    def test_52_idempotency(self):
        path, key = "/instances/{id}/port-forwards", {"Idempotency-Key": "once"}
        first = self.ask("POST", path, {"guest_port": 5000}, headers=key, status=201)
        self.assertNotIn("idempotency-replayed", first.headers)
        again = self.ask("POST", path, {"guest_port": 5000}, headers=key, status=201)
        self.assertEqual((again.body, again.headers["idempotency-replayed"]), (first.body, "true"))
        self.assertEqual(again.headers["location"], first.headers["location"])
        self.ask("POST", path, {"guest_port": 5001}, headers=key, status=422, code="idempotency_key_reused")
        self.ask("POST", path, {"guest_port": 5002}, key=self.tenant, headers=key, status=201)
        made = first.json()["port_forward"]["id"]
        self.ask("DELETE", "/instances/{id}/port-forwards/{forward_id}", forward_id=made, status=204)
        self.ask("POST", path, {"guest_port": 5000}, headers=key, status=409, code="idempotent_answer_gone")
        for wrong in ("x" * 256, "\u00e4"):
            self.ask("POST", path, {"guest_port": 5003}, headers={"Idempotency-Key": wrong}, status=422,
                     code="invalid_request")
        self.ask("POST", "/api-keys", {"role": "tenant", "owner": "bob"}, headers=key, status=422, code="invalid_request")

    def test_53_events(self):
        def stream(fields="", key=None):
            token = key or self.node.admin_key()
            return self.raw("GET", "/events", f"Authorization: Bearer {token}\r\n{fields}\r\n", finish=False)

        def events(connection):
            """(headers, then each event as a dictionary)."""
            reader = connection.makefile("rb")
            status = reader.readline().split()[1]
            headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(reader.readline, b"\r\n"))
            yield int(status), headers
            event = {}
            for line in reader:
                name, separator, value = line.decode().strip().partition(":")
                if separator and name:
                    event[name] = value.strip()
                elif not line.strip() and "event" in event:
                    yield event
                    event = {}

        with stream() as connection:
            seen = events(connection)
            status, headers = next(seen)
            self.assertEqual((status, headers["content-type"].partition(";")[0]), (200, "text/event-stream"))
            CONTRACT.produced.add(("GET", "/events", 200))
            created = self.ask("POST", "/instances/{id}/port-forwards", {"guest_port": 6000}).json()["port_forward"]
            event = next(one for one in seen if one["event"] == "forward.created")
            data = json.loads(event["data"])
            validate(data, {"$ref": "#/components/schemas/EventData"})
            self.assertIn(created["id"], event["data"])
            self.ask("DELETE", "/instances/{id}/port-forwards/{forward_id}", forward_id=created["id"])
        with stream(f"Last-Event-ID: {event['id']}\r\n") as connection:
            seen = events(connection)
            next(seen)
            self.assertEqual(next(seen)["event"], "forward.deleted")
        listed = self.ask("GET", "/port-forwards").headers["portway-event-id"]
        with stream(f"Last-Event-ID: {listed}\r\n") as connection:
            seen = events(connection)
            next(seen)
            created = self.ask("POST", "/instances/{id}/port-forwards", {"guest_port": 6000}).json()["port_forward"]
            event = next(seen)
            self.assertEqual(event["event"], "forward.created")
            self.assertEqual(json.loads(event["data"])["port_forward"]["id"], created["id"])
            self.ask("DELETE", "/instances/{id}/port-forwards/{forward_id}", forward_id=created["id"])
        with stream("Last-Event-ID: nonsense\r\n") as connection:
            seen = events(connection)
            next(seen)
            event = next(seen)
            self.assertEqual(event["event"], "reset")
            data = json.loads(event["data"])
            validate(data, {"$ref": "#/components/schemas/EventData"})
            self.assertEqual(data["code"], "unknown_id")

    def test_54_looking_into_a_forward(self):
        path = "/instances/{id}/port-forwards/{forward_id}"
        check = self.ask("GET", path + "/check", query="?client=203.0.113.9", status=200).json()["check"]
        self.assertEqual([one["step"] for one in check["steps"]], ["listener", "source", "tap"])
        self.assertFalse(check["ok"])
        self.ask("GET", path + "/check", query="?client=x", status=422)
        self.ask("POST", path + "/capture", query="?seconds=0", status=422)
        self.ask("POST", path + "/capture", status=409, code="instance_not_running")  # there is no such tap
        self.ask("GET", path + "/connections", query="?state=closed", status=200)
        self.ask("GET", path + "/connections", query="?state=x", status=422)

    def test_55_connections(self):
        path = "/instances/{id}/port-forwards/{forward_id}"
        with self.silent_guest() as (node, forward):
            options = {"node": node, "forward_id": forward["id"]}
            capture = self.ask("POST", path + "/capture", query="?seconds=1", status=200, **options)
            self.assertEqual(capture.body[:4], (0xa1b23c4d).to_bytes(4, sys.byteorder))
            for end in (lambda one: f"/connections/{one['id']}", lambda one: "/connections"):
                with socket.create_connection(("127.0.0.1", forward["host_port"])):
                    connections = []
                    self.assertTrue(wait_until(lambda: connections.extend(
                        self.ask("GET", path + "/connections", status=200, **options).json()["connections"]) or connections))
                    self.assertEqual(connections[0]["state"], "connecting")
                    target = end(connections[0])
                    answer = node.call("DELETE", fill(path, id="vm-1", forward_id=forward["id"]) + target)
                    template = path + ("/connections/{connection_id}" if target != "/connections" else target)
                    self.assertEqual(CONTRACT.check("DELETE", template, answer).status, 204)
            closed = []
            self.assertTrue(wait_until(lambda: closed.append(
                self.ask("GET", path + "/connections", query="?state=closed", **options).json()["connections"])
                or len(closed[-1]) == 2))
            self.assertEqual({one["how"] for one in closed[-1]}, {"killed"})
            self.assertEqual(self.ask("GET", "/connections/recent", node=node).json()["connections"], closed[-1])
            check = self.ask("GET", path + "/check", status=200, **options).json()["check"]
            self.assertEqual([one["ok"] for one in check["steps"]], [True, True, True, True, False])

    @contextlib.contextmanager
    def silent_guest(self):
        """A daemon, and a forward to a guest that never answers."""
        if os.system("ip -4 addr show dev tap0 | grep -q 198.19") != 0:
            for command in ("addr add 198.19.0.1/24 dev tap0",
                            "neigh add 198.19.0.2 lladdr 02:00:00:00:00:02 dev tap0"):
                self.assertEqual(os.system(f"ip {command}"), 0)
        with Portwayd("proxy.connect_timeout_ms=60000") as node:
            node.put_instance("vm-1", tap="tap0")
            answer = self.ask("POST", "/instances/{id}/port-forwards", {"guest_port": 3000}, node=node)
            yield node, answer.json()["port_forward"]

    # --- 503, by taking something away from the daemon.

    @contextlib.contextmanager
    def limited(self, node, what, soft):
        before = resource.prlimit(node.process.pid, what)
        resource.prlimit(node.process.pid, what, (soft, before[1]))
        try:
            yield
        finally:
            resource.prlimit(node.process.pid, what, before)

    def test_60_a_disk_that_takes_nothing_is_503_and_nothing_is_changed(self):
        bodies = {
            "createPortForward": {"guest_port": 3000},
            "createPortForwards": {"port_forwards": [{"guest_port": 3000}]},
            "setPortForwards": {"port_forwards": [{"guest_port": 3000}]},
            "updatePortForward": {"label": "other"},
            "putInstance": {"guest_address": "198.19.0.9", "tap": "tap0", "owner": "alice"},
            "changeInstance": {"guest_address": "198.19.0.9"},
            "createApiKey": {"role": "tenant", "owner": "alice"},
            "updateApiKey": {"description": "x"},
        }
        lists = ("/instances", "/api-keys", "/instances/vm-1/port-forwards")
        keys = self.node.call("GET", "/api-keys").json()["api_keys"]
        key = next(one["id"] for one in keys if one["role"] == "tenant")

        def state():
            answers = [self.node.call("GET", path).json() for path in lists]
            for one in answers[1]["api_keys"]:
                one.pop("last_used_at", None)
            return answers

        before = state()
        with self.limited(self.node, resource.RLIMIT_FSIZE, 0):
            for method, path, operation in self.each_with(503):
                if operation["operationId"] == "isReady":
                    continue
                self.ask(method, path, bodies.get(operation["operationId"]),
                         id=key if path.startswith("/api-keys/") else "vm-1", status=503, code="store_unavailable")
        self.assertEqual(before, state())
        self.ask("POST", "/instances/{id}/port-forwards", {"guest_port": 3000}, status=201)

    def test_61_no_port_or_descriptor_left_is_503(self):
        path = "/instances/{id}/port-forwards"
        with Portwayd("ports.range=20000-20001") as node:
            node.put_instance("vm-1")
            taken = set(map(int, os.listdir(f"/proc/{node.process.pid}/fd")))
            with self.limited(node, resource.RLIMIT_NOFILE, next(fd for fd in range(1000) if fd not in taken)):
                self.ask("POST", path, {"guest_port": 3000}, node=node, status=503, code="resource_exhausted")
            for _ in range(2):
                self.ask("POST", path, {"guest_port": 3000}, node=node, status=201)
            answer = self.ask("POST", path, {"guest_port": 3000}, node=node, status=503, code="port_pool_exhausted")
            self.assertEqual(answer.json()["current"], 2)

    def test_62_a_daemon_that_is_going_down_is_503(self):
        with self.silent_guest() as (node, forward):  # its connection is one to wait for
            with socket.create_connection(("127.0.0.1", forward["host_port"])):
                self.assertTrue(wait_until(lambda: re.search(
                    rb"^portway_connections(_active)?\S* 1$", node.call("GET", "/metrics").body, re.MULTILINE)))
                node.process.terminate()
                self.assertTrue(wait_until(lambda: node.call("GET", "/readyz").status == 503))
                self.ask("GET", "/readyz", node=node, key=None, status=503, code="draining")
                for path, body in (("/instances/{id}/port-forwards", {"guest_port": 3000}),
                                   ("/instances/{id}/port-forwards:batch", {"port_forwards": [{"guest_port": 3000}]})):
                    self.ask("POST", path, body, node=node, status=503, code="draining")
                self.ask("PUT", "/instances/{id}", {"guest_address": "198.19.0.4", "tap": "tap1", "owner": "alice"},
                         id="vm-9", node=node, status=503, code="draining")

    # --- What has not been seen.

    def test_99_everything_documented_was_produced(self):
        documented = {(*key, status) for key, operation in OPERATIONS.items() for status in explicit_statuses(operation)}
        self.assertEqual(documented - CONTRACT.produced, set())
        codes = {one["const"] for one in DOCUMENT["components"]["schemas"]["ProblemCode"]["oneOf"]}
        self.assertEqual(codes - CONTRACT.codes, set(COVERED_ELSEWHERE))


if __name__ == "__main__":
    unittest.main()

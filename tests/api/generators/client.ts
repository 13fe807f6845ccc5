// A client whose types are generated from api/openapi.yaml (portway.d.ts): what a control plane does in an instance's life,
// against the daemon at PORTWAY_URL with the key in PORTWAY_KEY. Fails at the first answer that is not as expected.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./portway.js";

type Problem = components["schemas"]["Problem"];
type PortForward = components["schemas"]["PortForward"];

function setting(name: string): string {
  const value = process.env[name];
  assert.ok(value, `${name} is not set`);
  return value;
}

const url = setting("PORTWAY_URL");
const admin = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${setting("PORTWAY_KEY")}` } });
const instance = { path: { id: "vm-1" } };

/** The problem document of an answer that is an error. */
function problem(answer: { error?: Problem; response: Response }, status: number): Problem {
  assert.equal(answer.response.status, status);
  assert.equal(answer.response.headers.get("content-type"), "application/problem+json");
  assert.ok(answer.error, "no problem document");
  assert.equal(answer.error.status, status);
  return answer.error;
}

async function listed(): Promise<PortForward[]> {
  const { data, response } = await admin.GET("/instances/{id}/port-forwards", { params: instance });
  assert.ok(data, `the list is answered with ${response.status}`);
  return data.port_forwards;
}

const registered = await admin.PUT("/instances/{id}", {
  params: instance,
  body: { guest_address: "198.18.0.2", tap: "tap0", owner: "alice" },
});
assert.equal(registered.response.status, 201);
assert.equal(registered.data?.instance.state, "running");

const key = await admin.POST("/api-keys", { body: { role: "tenant", owner: "alice" } });
assert.ok(key.data);
const tenant = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key.data.secret}` } });

const created = await tenant.POST("/instances/{id}/port-forwards", {
  params: { ...instance, header: { "Idempotency-Key": "once" } },
  body: { guest_port: 3000, protocol: "tcp", label: "dev-server" },
});
assert.equal(created.response.status, 201);
assert.ok(created.data);
const forward: PortForward = created.data.port_forward;
assert.equal(forward.guest_port, 3000);
assert.equal(created.data.hostname, "compute-1.test");
assert.deepEqual((await listed()).map((each) => [each.id, each.host_port, each.label]),
                 [[forward.id, forward.host_port, "dev-server"]]);

const one = { path: { id: "vm-1", forward_id: forward.id } };
const changed = await tenant.PATCH("/instances/{id}/port-forwards/{forward_id}", {
  params: one,
  body: { max_connections: 5 },
});
assert.equal(changed.data?.port_forward.max_connections, 5);

const blocked = problem(await tenant.POST("/instances/{id}/port-forwards", { params: instance, body: { guest_port: 22 } }), 403);
assert.equal(blocked.code, "blocked_port");
assert.ok(blocked.detail.length > 0);
const stranger = createClient<paths>({ baseUrl: url });
assert.equal(problem(await stranger.GET("/instances"), 401).code, "unauthorized");

const deleted = await tenant.DELETE("/instances/{id}/port-forwards/{forward_id}", { params: one });
assert.equal(deleted.response.status, 204);
assert.equal(problem(await tenant.GET("/instances/{id}/port-forwards/{forward_id}", { params: one }), 404).code, "not_found");
assert.deepEqual(await listed(), []);
assert.equal((await admin.DELETE("/instances/{id}", { params: instance })).response.status, 204);
console.log("The generated client works.");

"""Pages of a gateway's lists, of a fleet at random, beside what a simple reading of the same fleet says. PORTWAY_SEED chooses
the fleet.
"""
import json
import os
import random
import subprocess
import sys
import unittest
import uuid

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.fleet import Fleet, require_fleet  # noqa: E402
from tests.support.moments import SEED  # noqa: E402
from tests.support.portwayd import isolate, wait_until  # noqa: E402

INSTANCES, FORWARDS, QUERIES = 40, 200, 150
PUTS_OF_A_TRANSACTION = 100
OWNERS, NODES, LABELS = ("alice", "bob", "carol"), ("n1", "n2", "n3"), ("web", "db", "")


class GatewayPagesTest(unittest.TestCase):
    """Nobody's node is there: what is in etcd is listed."""

    @classmethod
    def setUpClass(cls):
        require_fleet()
        isolate()
        cls.random = random.Random(SEED)
        cls.fleet = cls.enterClassContext(Fleet())
        cls.make_instances()
        cls.make_forwards()
        cls.gateway = cls.fleet.gateway()
        assert wait_until(lambda: cls.gateway.call("GET", "/readyz").status == 200)
        cls.keys = {owner: cls.gateway.tenant_key(owner) for owner in OWNERS}

    @classmethod
    def make_instances(cls):
        cls.instances = {f"vm-{i:02}": {"id": f"vm-{i:02}", "owner": cls.random.choice(OWNERS), "state": "running",
                                        "metadata": {"env": cls.random.choice(("dev", "prod"))}} for i in range(INSTANCES)}
        cls.node_of = {name: cls.random.choice(NODES) for name in cls.instances}
        cls.put({f"/portway/state/{cls.node_of[name]}/instances/{name}": each for name, each in cls.instances.items()})

    @classmethod
    def make_forwards(cls):
        cls.forwards = []
        for _ in range(FORWARDS):
            cls.forwards.append({"id": str(uuid.UUID(int=cls.random.getrandbits(128))),
                                 "instance_id": cls.random.choice(list(cls.instances)),
                                 "guest_port": cls.random.randrange(3000, 3004),
                                 "host_port": cls.random.randrange(20000, 20050), "label": cls.random.choice(LABELS),
                                 "state": cls.random.choice(("listening", "unavailable")),
                                 "metadata": {"tier": str(cls.random.randrange(3))}})
        cls.put({f"/portway/state/{cls.node_of[each['instance_id']]}/forwards/{each['instance_id']}/{each['id']}": each
                 for each in cls.forwards})

    @classmethod
    def put(cls, values):
        lines = [f"put {key} {json.dumps(value, separators=(',', ':'))}" for key, value in values.items()]
        for i in range(0, len(lines), PUTS_OF_A_TRANSACTION):
            text = "\n" + "\n".join(lines[i:i + PUTS_OF_A_TRANSACTION]) + "\n\n\n"
            done = subprocess.run(["etcdctl", f"--endpoints={cls.fleet.etcd.url}", "txn"], input=text, text=True, check=True,
                                  capture_output=True, env={**os.environ, "ETCDCTL_API": "3"})
            assert done.stdout.startswith("SUCCESS"), done

    def pages(self, target, name, who):
        """All pages, of a random size each."""
        found, cursor = [], ""
        while True:
            limit = self.random.choice((1, 2, 7, 50, 100))
            answer = self.gateway.call("GET", f"{target}limit={limit}&cursor={cursor}", key=self.keys.get(who, "admin"))
            self.assertEqual(answer.status, 200, answer)
            body = answer.json()
            self.assertLessEqual(len(body[name]), limit)
            found += [each["id"] for each in body[name]]
            if "next_cursor" not in body:
                return found
            self.assertEqual(len(body[name]), limit, target)
            cursor = body["next_cursor"]

    def owner_of(self, forward):
        return self.instances[forward["instance_id"]]["owner"]

    def test_forwards(self):
        one = self.forwards[0]
        filters = {
            "owner=bob": lambda each: self.owner_of(each) == "bob",
            f"instance_id={one['instance_id']}": lambda each: each["instance_id"] == one["instance_id"],
            "label=web": lambda each: each["label"] == "web",
            "guest_port=3001": lambda each: each["guest_port"] == 3001,
            f"host_port={one['host_port']}": lambda each: each["host_port"] == one["host_port"],
            "state=listening": lambda each: each["state"] == "listening",
            "metadata=tier%3D1": lambda each: each["metadata"]["tier"] == "1",
        }
        orders = {"created_at": lambda each: each["id"], "host_port": lambda each: (each["host_port"], each["id"])}
        for _ in range(QUERIES):
            who = self.random.choice((*OWNERS, None))
            chosen = self.random.sample(list(filters), self.random.choice((0, 0, 1, 1, 2, 3)))
            sort, order = self.random.choice(list(orders)), self.random.choice(("asc", "desc"))
            wanted = [each["id"] for each in sorted(self.forwards, key=orders[sort], reverse=order == "desc")
                      if who in (None, self.owner_of(each)) and all(filters[name](each) for name in chosen)]
            target = f"/port-forwards?{'&'.join([*chosen, f'sort={sort}', f'order={order}'])}&"
            self.assertEqual(self.pages(target, "port_forwards", who), wanted, (who, target, SEED))

    def test_instances(self):
        filters = {"metadata=env%3Ddev": lambda each: each["metadata"]["env"] == "dev",
                   "node=n2": lambda each: self.node_of[each["id"]] == "n2"}
        for who in (*OWNERS, None):
            for chosen in ((), *((name,) for name in filters), tuple(filters)):
                wanted = [name for name, each in self.instances.items()
                          if who in (None, each["owner"]) and all(filters[word](each) for word in chosen)]
                self.assertEqual(self.pages(f"/instances?{''.join(word + '&' for word in chosen)}", "instances", who), wanted, (who, chosen, SEED))


if __name__ == "__main__":
    unittest.main(verbosity=2)

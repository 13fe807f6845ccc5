"""The daemon killed with SIGKILL, at calls that change a file of its store (tests/support/moments.py) and at random times
under load: what it had acknowledged is there after a restart, and what it had not is there whole or not at all.
"""
import concurrent.futures
import contextlib
import http.client
import multiprocessing
import os
import random
import socket
import sys
import threading
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.moments import SEED, some_of  # noqa: E402
from tests.support.portwayd import Ended, Portwayd, isolate  # noqa: E402

SETTINGS = ["profiles.default.max_forwarded_ports=1000", "proxy.drain_timeout_s=0"]
GONE = (OSError, http.client.HTTPException)
RANDOM_ROUNDS = 8
CALLS_MAX = 48
RANDOM_CLIENTS = 4


class World:
    """What is there, as far as answers have reported: instances with their sessions, forwards with their ids and ports."""

    def __init__(self):
        self.instances = {}  # id -> (state, session)
        self.forwards = {}  # (instance, guest port) -> (label, id, host port)
        self.owners = set()  # of keys

    def copy(self):
        other = World()
        other.instances, other.forwards = dict(self.instances), dict(self.forwards)
        other.owners = set(self.owners)
        return other

    def add_forward(self, instance, port, label, answer=None):
        self.forwards[instance, port] = (label, *((answer["id"], answer["host_port"]) if answer else (None, None)))

    def set_instance(self, name, state, session=None):
        self.instances[name] = (state, session)

    def drop_forwards(self, instance):
        self.forwards = {key: value for key, value in self.forwards.items() if key[0] != instance}

    @staticmethod
    def read(node, names=None):
        world = World()
        for instance in node.call("GET", "/instances?limit=1000").json()["instances"]:
            if names is not None and instance["id"] not in names:
                continue
            world.set_instance(instance["id"], instance["state"], instance["session_id"])
            path = f"/instances/{instance['id']}/port-forwards?limit=1000"
            for forward in node.call("GET", path).json()["port_forwards"]:
                world.add_forward(instance["id"], forward["guest_port"], forward["label"], forward)
                assert forward["state"] not in ("failed", "disabled", "expired"), forward
                # It does listen: whatever becomes of the connection, it is not refused.
                with contextlib.suppress(ConnectionResetError):
                    socket.create_connection(("127.0.0.1", forward["host_port"]), timeout=10).close()
        world.owners = {key["owner"] for key in node.call("GET", "/api-keys").json()["api_keys"]} - {"admin"}
        return world

    def matches(self, found):
        """Is this what was found? None here stands for what no answer has reported."""
        def alike(mine, theirs):
            return mine.keys() == theirs.keys() and all(
                all(known is None or known == real for known, real in zip(mine[key], theirs[key])) for key in mine)
        return (alike(self.instances, found.instances) and alike(self.forwards, found.forwards)
                and self.owners == found.owners)

    def __repr__(self):
        return f"instances {self.instances}, forwards {self.forwards}, owners {self.owners}"


class Caller:
    """Makes changes and keeps two worlds: what was acknowledged, and what is true if the last call was carried out."""

    def __init__(self, node):
        self.node = node
        self.known = World()
        self.hoped = World()

    def step(self, expected, hope, method, target, body=None, headers=None, key=None):
        """`hope(world, answer)` is what the call does; with None for an answer that did not come."""
        self.hoped = self.known.copy()
        hope(self.hoped, None)
        answer = self.node.call(method, target, body, headers=headers, **({"key": key} if key else {}))
        assert answer.status == expected, f"{method} {target}: {answer}"
        hope(self.known, answer)
        self.hoped = self.known.copy()
        return answer

    def put_instance(self, name, tap=None):
        self.step(201, lambda world, answer: world.set_instance(
            name, "running", answer.json()["instance"]["session_id"] if answer else None),
            "PUT", f"/instances/{name}", {"guest_address": "198.19.0.2", "tap": tap or f"t-{name}", "owner": "alice"})

    def create_key(self, owner):
        self.step(201, lambda world, _: world.owners.add(owner), "POST", "/api-keys", {"role": "tenant", "owner": owner})

    def create(self, name, port, label="", headers=None):
        def hope(world, answer):
            world.add_forward(name, port, label, answer.json()["port_forward"] if answer else None)
        return self.step(201, hope, "POST", f"/instances/{name}/port-forwards", {"guest_port": port, "label": label},
                         headers)

    def create_batch(self, name, ports):
        def hope(world, answer):
            answers = {one["guest_port"]: one for one in answer.json()["port_forwards"]} if answer else {}
            for port in ports:
                world.add_forward(name, port, "", answers.get(port))
        self.step(201, hope, "POST", f"/instances/{name}/port-forwards:batch",
                  {"port_forwards": [{"guest_port": port} for port in ports]})

    def update(self, name, port, label):
        _, forward_id, host_port = self.known.forwards[name, port]

        def hope(world, _):
            world.forwards[name, port] = (label, forward_id, host_port)
        self.step(200, hope, "PATCH", f"/instances/{name}/port-forwards/{forward_id}", {"label": label})

    def delete(self, name, port):
        forward_id = self.known.forwards[name, port][1]
        self.step(204, lambda world, _: world.forwards.pop((name, port)), "DELETE",
                  f"/instances/{name}/port-forwards/{forward_id}")

    def stop(self, name):
        def hope(world, _):
            world.set_instance(name, "stopped", world.instances[name][1])
            world.drop_forwards(name)
        self.step(200, hope, "POST", f"/instances/{name}/stop")

    def delete_instance(self, name):
        def hope(world, _):
            world.instances.pop(name)
            world.drop_forwards(name)
        self.step(204, hope, "DELETE", f"/instances/{name}")


def scenario(caller):
    """Every call that changes something."""
    caller.put_instance("vm-1", "tap0")
    caller.create_key("alice")
    for port in (3000, 3001, 3002):
        caller.create("vm-1", port, "web")
    caller.create_batch("vm-1", [4000, 4001, 4002])
    caller.update("vm-1", 3000, "staging")
    caller.delete("vm-1", 3001)
    once = {"Idempotency-Key": "once"}
    first = caller.create("vm-1", 5000, headers=once)
    again = caller.create("vm-1", 5000, headers=once)
    assert again.headers.get("idempotency-replayed") == "true" and again.body == first.body
    caller.put_instance("vm-2", "tap1")
    caller.create("vm-2", 3000)
    caller.stop("vm-2")
    caller.delete_instance("vm-2")


def crash_at(call, half=False):
    """Runs the scenario on a new store with a kill at the given call; returns how many calls there were, and whether it
    came through to the end."""
    with Portwayd(*SETTINGS, start=False) as node:
        caller = Caller(node)
        calls = f"{node.directory}/calls"
        shim = {"LD_PRELOAD": os.environ["PORTWAY_CRASH_SHIM"], "PORTWAY_CRASH_AT": str(call),
                "PORTWAY_CRASH_PATH": f"{node.directory}/portway.db", "PORTWAY_CRASH_LOG": calls,
                # The shim comes before the sanitizers' runtime, and does not mind.
                "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0"}
        if half:
            shim["PORTWAY_CRASH_HALF"] = "1"
        whole = False
        try:
            node.start(shim)
            scenario(caller)
            whole = node.stop() == 0
        except (*GONE, Ended):
            pass
        if node.process.wait(60) != -9 and not whole:
            raise AssertionError(f"call {call}: not killed: {node.output()}")
        node.close_connection()
        node.start()
        assert "is lost" not in node.output(), node.output()  # the end of a log is no damage
        found = World.read(node)
        if not caller.known.matches(found) and not caller.hoped.matches(found):
            raise AssertionError(f"killed at call {call}, half: {half}\nknown: {caller.known}\n or   {caller.hoped}\nfound: {found}")
        # And it can continue.
        caller.known = found
        caller.put_instance("vm-9")
        caller.create("vm-9", 3000)
        return os.path.getsize(calls), whole


def crash_at_both_ways(call):
    return crash_at(call), crash_at(call, half=True)


class Crash(unittest.TestCase):
    def test_at_calls_that_change_the_store(self):
        isolate()
        calls, whole = crash_at(0)
        self.assertTrue(whole)
        self.assertGreater(calls, 50, "the shim does not see the store's calls")
        # Each worker has a network namespace of its own: ports are nobody else's.
        with concurrent.futures.ProcessPoolExecutor(
                min(4, os.cpu_count()), multiprocessing.get_context("fork"), isolate) as pool:
            points = some_of(range(1, calls + 1), CALLS_MAX, "store")
            for call, results in zip(points, pool.map(crash_at_both_ways, points)):
                for made, whole in results:
                    self.assertEqual((made, whole), (call, False))

    def test_at_random_times_under_load(self):
        isolate()
        with Portwayd(*SETTINGS) as node:
            callers = [Caller(node) for _ in range(RANDOM_CLIENTS)]
            for round_number in range(RANDOM_ROUNDS):
                rng = random.Random(SEED * 1000 + round_number)
                self.run_until_killed(node, callers, rng)
                node.start()
                for i, caller in enumerate(callers):
                    found = World.read(node, self.names(i))
                    found.owners = caller.known.owners
                    self.assertTrue(caller.known.matches(found) or caller.hoped.matches(found),
                                    f"seed {SEED}, round {round_number}\nknown: {caller.known}\n or   {caller.hoped}\n"
                                    f"found: {found}")
                    caller.known = found

    @staticmethod
    def names(client):
        return {f"vm-{client}-{i}" for i in range(RANDOM_ROUNDS)}

    def run_until_killed(self, node, callers, rng):
        """Each caller changes instances of its own, on a connection of its own, until the daemon is gone."""
        answered = threading.Semaphore(0)
        failures = []

        def run(number, caller, random_number):
            view = Portwayd.__new__(Portwayd)  # the same daemon over another connection
            view.__dict__.update(node.__dict__, connection=None)
            caller.node = view
            try:
                self.change(caller, number, random_number, answered)
            except GONE:
                pass
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)
            finally:
                view.close_connection()

        threads = [threading.Thread(target=run, args=(i, caller, random.Random(rng.random())))
                   for i, caller in enumerate(callers)]
        for thread in threads:
            thread.start()
        # At an answer's time, and then a little later than that: in the middle of the next calls.
        for _ in range(rng.randrange(20, 200)):
            if not answered.acquire(timeout=30):
                break
        threading.Event().wait(rng.random() * 0.005)
        node.kill()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    @staticmethod
    def change(caller, number, rng, answered):
        while True:
            names = list(caller.known.instances)
            running = [name for name in names if caller.known.instances[name][0] == "running"]
            forwards = list(caller.known.forwards)
            choice = rng.random()
            if not running or choice < 0.03 and len(names) < RANDOM_ROUNDS:
                fresh = next((f"vm-{number}-{i}" for i in range(RANDOM_ROUNDS) if f"vm-{number}-{i}" not in names), None)
                if fresh is None:
                    caller.delete_instance(names[0])
                    continue
                caller.put_instance(fresh)
            elif choice < 0.06:
                caller.stop(rng.choice(running))
            elif choice < 0.08:
                caller.delete_instance(rng.choice(names))
            elif choice < 0.4 and forwards:
                caller.delete(*rng.choice(forwards))
            elif choice < 0.5 and forwards:
                caller.update(*rng.choice(forwards), label=f"label-{rng.random()}")
            else:
                name = rng.choice(running)
                free = [port for port in range(3000, 3100) if (name, port) not in caller.known.forwards]
                if not free:
                    caller.stop(name)
                elif choice > 0.9 and len(free) > 3:
                    caller.create_batch(name, rng.sample(free, 3))
                else:
                    caller.create(name, rng.choice(free))
            answered.release()


if __name__ == "__main__":
    unittest.main()

"""What a daemon made for its guests' packets (rules, route, filters) is gone when it has stopped, and what one left that
was killed is gone when the next one has started, whatever that one's configuration says.
"""
import contextlib
import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, isolate, require_namespaces, wait_until  # noqa: E402

PROTOCOL = "210"
GUESTS = {"vm-1": ("198.19.0.2", "tap0"), "vm-2": ("fd00:1::2", "tap1")}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def tcx_programs(name):
    """What is attached at a link's ingress by tcx, as tc does not list it; as "tcx program ID"."""
    query, tcx_ingress = 16, 46  # BPF_PROG_QUERY, BPF_TCX_INGRESS
    ids = (ctypes.c_uint32 * 64)()
    attributes = ctypes.create_string_buffer(struct.pack("=IIIIQI", socket.if_nametoindex(name), tcx_ingress, 0, 0,
                                                         ctypes.addressof(ids), len(ids)), 64)
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    if ctypes.CDLL(None, use_errno=True).syscall(number, query, attributes, len(attributes)) != 0:
        if ctypes.get_errno() == errno.EINVAL:
            return []  # a kernel without tcx
        raise OSError(ctypes.get_errno(), "BPF_PROG_QUERY")
    return [f"tcx program {ids[i]}" for i in range(struct.unpack_from("=I", attributes, 24)[0])]


def links():
    return {link["ifname"] for link in json.loads(run("ip", "-j", "link"))}


def state():
    """What the kernel has of Portway's, and of everybody's hooks."""
    found = []
    for family in ("-4", "-6"):
        found += [f"rule {family} {rule}" for rule in run("ip", "-N", family, "rule", "show").splitlines()
                  if f"proto {PROTOCOL}" in rule]
        found += [f"route {family} {route}" for route in
                  run("ip", "-N", family, "route", "show", "table", "all", "proto", PROTOCOL).splitlines()]
    for name in sorted(links()):
        hooks = [line for line in run("tc", "qdisc", "show", "dev", name).splitlines() if "clsact" in line]
        filters = [line for line in run("tc", "filter", "show", "dev", name, "ingress").splitlines() if "handle" in line]
        found += [f"{name}: {line}" for line in hooks + filters + tcx_programs(name)]
    return found


def without(*capabilities):
    """For a daemon's start: it never has these."""
    return ["setpriv", "--bounding-set", ",".join(f"-{name}" for name in capabilities)]


@contextlib.contextmanager
def daemon(*settings):
    with Portwayd("proxy.drain_timeout_s=0", "guests.networks=198.18.0.0/15,fd00:1::/64", *settings) as node:
        yield node


class LeftBehind(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_namespaces("ip", "tc", "setpriv")

    def setUp(self):
        isolate()
        run("ip", "address", "add", "198.19.0.1/24", "dev", "tap0")
        run("ip", "-6", "address", "add", "fd00:1::1/64", "dev", "tap1", "nodad")

    def serve(self, node):
        for name, (address, tap) in GUESTS.items():
            answer = node.put_instance(name, guest_address=address, tap=tap)
            self.assertIn(answer.status, (200, 201), answer)
        self.assertTrue(wait_until(lambda: {"tap0", "tap1"} <= {line.partition(":")[0] for line in state()}), state())

    def test_a_clean_stop_leaves_nothing(self):
        for mode in ("transparent", "plain"):
            with self.subTest(mode), daemon(f"proxy.source_mode={mode}") as node:
                self.serve(node)
                self.assertEqual(node.stop(), 0)
                self.assertEqual(state(), [])

    def test_the_start_after_a_kill_removes_what_it_does_not_use(self):
        for mode in ("plain", "proxy_v2", "auto"):
            for lacking in ((), ("bpf", "perfmon", "sys_admin")):
                with self.subTest(f"{mode}, without {lacking}"), daemon("proxy.source_mode=transparent") as node:
                    self.serve(node)
                    node.kill()
                    left = state()
                    self.assertTrue(any("rule" in line for line in left) and any("route" in line for line in left), left)
                    run("ip", "link", "set", "tap0", "name", "other0")
                    run("ip", "link", "set", "other0", "name", "tap0")
                    node.settings.append(f"proxy.source_mode={mode}")
                    node.start(wrapper=without(*lacking) if lacking else [])
                    if mode != "auto":
                        self.assertFalse([line for line in state() if "rule" in line or "route" in line])
                        if lacking:
                            self.assertEqual(state(), [])
                    node.stop()
                    self.assertEqual(state(), [])

    def test_the_start_after_a_kill_removes_what_has_other_numbers(self):
        with daemon("proxy.source_mode=transparent", "proxy.source_rule_preference=1200", "proxy.source_route_table=70000",
                    "proxy.source_mark_bit=3") as node:
            self.serve(node)
            node.kill()
            left = state()
            for number in ("1199:", "1200:", "fwmark 0x8/0x8", "lookup 70000", "table 70000"):
                self.assertTrue([line for line in left if number in line], (number, left))
            node.settings = [setting for setting in node.settings if not setting.startswith("proxy.source_")]
            node.start()
            self.serve(node)
            self.assertFalse([line for line in state() if "70000" in line or "0x8/0x8" in line], state())
            self.assertTrue([line for line in state() if "lookup 5210" in line], state())
            node.stop()
            self.assertEqual(state(), [])

    def test_what_a_running_daemon_and_other_programs_have_stays(self):
        run("ip", "rule", "add", "pref", "5210", "fwmark", "0x80000/0xff0000", "lookup", "main")
        run("ip", "rule", "add", "pref", "5211", "fwmark", "0x40000/0xff0000", "lookup", "5210")
        run("ip", "route", "add", "local", "default", "dev", "lo", "table", "5211")
        run("tc", "qdisc", "add", "dev", "tap0", "clsact")
        run("tc", "filter", "add", "dev", "tap0", "ingress", "pref", "7", "protocol", "ip", "bpf", "da", "bytecode",
            "1,6 0 0 4294967295,")

        def others():
            return (run("ip", "-N", "rule", "show"), run("ip", "-N", "route", "show", "table", "5211"),
                    run("tc", "filter", "show", "dev", "tap0", "ingress"))

        before = others()
        with daemon("proxy.source_mode=transparent") as first:
            self.serve(first)
            serving = state(), others()
            for mode in ("plain", "auto"):
                with self.subTest(mode), daemon(f"proxy.source_mode={mode}") as second:
                    self.assertEqual((state(), others()), serving)
                    self.assertEqual(second.stop(), 0)
                    self.assertEqual((state(), others()), serving)
            first.kill()
            with daemon("proxy.source_mode=plain") as next_one:
                self.assertEqual(others(), before)
                self.assertEqual(next_one.stop(), 0)
            self.assertEqual(others(), before)


if __name__ == "__main__":
    unittest.main()

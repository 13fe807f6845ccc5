"""Least privilege: the daemon keeps the capabilities of its table and no others, and what it does with each set of them is
what the table, its API and `portway doctor` say.
"""
import contextlib
import glob
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.portwayd import (  # noqa: E402
    Portwayd, descendants_of, isolate, name_of, require_namespaces, wait_until)

USER = 65532
SERVICE = 7000
PRIVILEGED_PORT = 777  # of a client
BYTES = random.Random(1).randbytes(1 << 20)
NUMBERS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8,
           "NET_BIND_SERVICE": 10, "NET_BROADCAST": 11, "NET_ADMIN": 12, "NET_RAW": 13, "IPC_LOCK": 14, "SYS_CHROOT": 18, "SYS_PTRACE": 19,
           "SYS_ADMIN": 21, "SYS_NICE": 23, "SYS_RESOURCE": 24, "MKNOD": 27, "AUDIT_WRITE": 29, "SETFCAP": 31, "BPF": 39}
DOCKER = {"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
          "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"}
# The table (docs/operating.md; a unit test compares it with base/capabilities.h).
with open(f"{os.environ['PORTWAY_SOURCE_DIRECTORY']}/docs/operating.md", encoding="utf-8") as handbook:
    TABLE = set(re.findall(r"^\| `CAP_(\w+)`", handbook.read(), re.MULTILINE))
SETS = {
    "none": set(),
    "NET_BIND_SERVICE only": {"NET_BIND_SERVICE"},
    "NET_ADMIN without BPF": {"NET_ADMIN"},
    "NET_ADMIN and NET_BIND_SERVICE": {"NET_ADMIN", "NET_BIND_SERVICE"},
    "NET_ADMIN and BPF": {"NET_ADMIN", "BPF"},
    "what Docker gives": DOCKER,
    "all of the table": TABLE,
}


# --- The guest, and the clients.

def run_guest():
    """Answers with whom it sees, and then with what it gets."""
    listener = socket.create_server(("0.0.0.0", SERVICE), backlog=100)
    print("ready", flush=True)
    while True:
        connection, (address, port) = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(f"{address} {port}\n".encode())
            while data := connection.recv(65536):
                connection.sendall(data)


def run_clients():
    """For each line "PORT OWN_PORT": connects there, from its own port, and says what the guest has seen and echoed."""
    for line in sys.stdin:
        port, own_port = map(int, line.split())
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.settimeout(30)
            client.bind((guest.CLIENT_ADDRESS, own_port))
            client.connect((guest.NODE_ADDRESS, port))
            received = client.makefile("rb")
            seen = received.readline().decode().strip()
            sender = threading.Thread(target=lambda: (client.sendall(BYTES), client.shutdown(socket.SHUT_WR)))
            sender.start()
            echoed = received.read()
            sender.join()
            print(f"{seen} {len(echoed) if echoed == BYTES else 'other bytes'}", flush=True)


# --- What a process has.

def mask(names):
    return sum(1 << NUMBERS[name] for name in names)


def status_of(pid, thread):
    with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file.read().splitlines())
    return {"name": fields["Name"].strip(), "NoNewPrivs": int(fields["NoNewPrivs"]), "Seccomp": int(fields["Seccomp"]),
            **{name: int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")}}


# What this machine gives its root.
AVAILABLE = {name for name, number in NUMBERS.items() if status_of(os.getpid(), os.getpid())["CapEff"] >> number & 1}


def threads_of(pid):
    return [status_of(pid, int(os.path.basename(path))) for path in glob.glob(f"/proc/{pid}/task/*")]


def as_user(names, bounding=True):
    """A command that starts another one as a user with these capabilities."""
    listed = ",".join(f"+{name.lower()}" for name in sorted(names))
    capabilities = f"-all,{listed}" if listed else "-all"
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", f"--inh-caps={capabilities}",
            f"--ambient-caps={capabilities}", *([f"--bounding-set={capabilities}"] if bounding else []),
            "--pdeathsig=KILL"]


class Node(Portwayd):
    """Runs as a user, or as root with `user` None."""

    def __init__(self, *settings, user=USER, config=None):
        super().__init__(f"node.public_addresses=127.0.0.1,{guest.NODE_ADDRESS}", *settings, start=False,
                         config=config or 'guests.networks = ["198.18.0.0/15"]\n')
        if user is not None:
            os.chmod(self.directory, 0o755)
            for path in (self.directory, *glob.glob(f"{self.directory}/*")):
                os.chown(path, user, user)

    def start(self, *args, **kwargs):
        before = os.umask(0)  # the socket of READY=1 is the test's, and whoever may write to it can use it
        try:
            super().start(*args, **kwargs)
        finally:
            os.umask(before)

    def doctor(self):
        answer = subprocess.run(
            [os.environ["PORTWAY_CLIENT"], "doctor", "--output", "json", "--config", f"{self.directory}/portway.toml",
             "--server", f"http://127.0.0.1:{self.port}", "--key-file", f"{self.directory}/admin.key"],
            capture_output=True, text=True, check=False)
        return json.loads(answer.stdout)

    def keeper(self):
        return next(each for each in descendants_of(self.process.pid) if name_of(each) == "portway-keeper")


class PrivilegesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_namespaces("setpriv")
        isolate()
        cls.guest = guest.start_guest(__file__)
        cls.clients = guest.start_clients(__file__)

    @classmethod
    def tearDownClass(cls):
        guest.end_clients(cls.clients)
        guest.end(cls.guest)

    def forward(self, node):
        node.put_instance("vm-1", tap="tap0", owner="alice", guest_address=guest.GUEST_ADDRESS)
        self.assertTrue(wait_until(
            lambda: node.call("GET", "/instances/vm-1").json()["instance"]["tap_state"] == "up"))
        answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": SERVICE})
        self.assertEqual(answer.status, 201, answer)
        return answer.json()["port_forward"]

    def connect(self, forward, own_port=0):
        """Whom the guest has seen: address and port."""
        print(forward["host_port"], own_port, file=self.clients.stdin, flush=True)
        address, port, echoed = self.clients.stdout.readline().split()
        self.assertEqual(int(echoed), len(BYTES))
        return address, int(port)

    def expect_capabilities(self, pid, names, bounding):
        """In every thread."""
        for thread in threads_of(pid):
            with self.subTest(thread=thread["name"]):
                for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                    self.assertEqual(thread[kind], mask(names), kind)
                if bounding:
                    self.assertEqual(thread["CapBnd"], mask(names), "CapBnd")
                self.assertEqual(thread["NoNewPrivs"], 1)

    def test_each_set_gives_what_the_table_says(self):
        for name, given in SETS.items():
            with self.subTest(name), Node() as node:
                given = given & AVAILABLE
                node.start(wrapper=as_user(given))
                # Nothing of others is named in the configuration.
                self.expect_what(node, given & TABLE - {"DAC_OVERRIDE"})

    def expect_what(self, node, held):
        self.expect_capabilities(node.process.pid, held, bounding=False)
        forward = self.forward(node)
        transparent = "NET_ADMIN" in held
        info = node.call("GET", "/v1/info").json()
        self.assertEqual(info["source_mode"], "transparent" if transparent else "plain")
        self.assertEqual(info.get("return_path"), ("bpf" if "BPF" in held else "rules") if transparent else None)
        self.assertEqual(info["source_guard"], {"NET_ADMIN", "BPF"} <= held)
        address, _ = self.connect(forward)
        self.assertEqual(address, guest.CLIENT_ADDRESS if transparent else "198.19.0.1")
        address, port = self.connect(forward, PRIVILEGED_PORT)
        self.assertEqual(address, guest.CLIENT_ADDRESS if transparent else "198.19.0.1")
        self.assertEqual(port == PRIVILEGED_PORT, transparent and "NET_BIND_SERVICE" in held)
        # A capture, and a machine in a network namespace of its own.
        answer = node.call("POST", f"/instances/vm-1/port-forwards/{forward['id']}/capture?seconds=1")
        self.assertEqual(answer.status, 200 if "NET_RAW" in held else 403, answer)
        if "NET_RAW" not in held:
            self.assertIn("CAP_NET_RAW", answer.json()["detail"])
        answer = node.put_instance("vm-2", netns="vmm_pid", vmm_pid=self.guest.pid, tap="guest0",
                                   guest_address="198.19.0.3")
        missing = {"SYS_PTRACE", "SYS_ADMIN", "NET_ADMIN", "NET_BROADCAST"} - held
        self.assertEqual(answer.status, 503 if missing else 201, answer)
        if missing:
            self.assertTrue(any(f"CAP_{each}" in answer.json()["detail"] for each in missing), answer)
        self.expect_of_doctor(node, held, info)

    def expect_of_doctor(self, node, held, info):
        answer = node.doctor()
        rows = [row for row in answer["capabilities"] if node.process.pid in row["processes"]]
        self.assertEqual({row["name"] for row in rows}, {f"CAP_{each}" for each in TABLE})
        self.assertEqual({row["name"] for row in rows if row["held"]}, {f"CAP_{each}" for each in held})
        self.assertTrue(all(row["feature"] and row["without_it"] for row in rows))
        found = next(check for check in answer["checks"]
                     if check["name"] == "capabilities" and f"process {node.process.pid})" in check["detail"])
        self.assertEqual("node's address" in found["detail"], info["source_mode"] == "plain", found)
        self.assertEqual("each other's source addresses" in found["detail"] or "NET_ADMIN" not in held,
                         not info["source_guard"], found)
        self.assertEqual("CAP_NET_RAW" in found["detail"].partition("but not")[2], "NET_RAW" not in held, found)

    def test_the_api_has_a_privileged_port_only_with_the_capability(self):
        with Node("api.listen=127.0.0.1:80") as node:
            node.start(wrapper=as_user(set()), port=80)
            self.assertTrue(wait_until(lambda: re.search(r"fault: api 127.0.0.1:80: .*CAP_NET_BIND_SERVICE", node.output())))
            node.kill()
            node.start(wrapper=as_user({"NET_BIND_SERVICE"}))
            self.assertEqual(node.port, 80)
            self.assertEqual(node.call("GET", "/healthz").status, 200)

    def test_root_drops_what_is_not_in_the_table(self):
        kept = TABLE & AVAILABLE - {"DAC_OVERRIDE"}
        with Node(user=None) as node:
            node.start()
            self.expect_capabilities(node.process.pid, kept, bounding=True)
            self.expect_capabilities(node.keeper(), {"NET_ADMIN", "SYS_PTRACE", "SYS_RESOURCE"} & AVAILABLE, bounding=False)
            self.assertEqual(self.connect(self.forward(node))[0], guest.CLIENT_ADDRESS)
            for disturb in (Portwayd.upgrade, Portwayd.kill_and_start):
                with self.subTest(disturb.__name__):
                    disturb(node)
                    self.expect_capabilities(node.process.pid, kept, bounding=True)
                    self.assertTrue(node.call("GET", "/v1/info").json()["source_guard"])

    def test_root_keeps_the_right_to_files_of_others_that_are_configured(self):
        with Node(user=None) as node:
            node.start()
            node.kill()
            os.chown(f"{node.directory}/admin.key", USER, USER)
            node.start()
            self.expect_capabilities(node.process.pid, TABLE & AVAILABLE, bounding=True)
            self.assertEqual(node.call("GET", "/instances").status, 200)

    def test_root_keeps_the_right_to_write_logs_in_directories_of_others(self):
        for log in ("access", "audit"):
            with self.subTest(log=log), Node(user=None) as node:
                os.mkdir(f"{node.directory}/logs", 0o700)
                os.chown(f"{node.directory}/logs", USER, USER)
                node.settings.append(f"log.{log}={node.directory}/logs/{log}.log")
                node.start()
                self.expect_capabilities(node.process.pid, TABLE & AVAILABLE, bounding=True)
                self.assertEqual(node.call("GET", "/readyz").json(), {"status": "ready"})
                self.assertTrue(os.path.exists(f"{node.directory}/logs/{log}.log"))

    def test_a_user_with_everything_keeps_no_more_than_root(self):
        with Node() as node:
            node.start(wrapper=as_user(AVAILABLE))
            self.expect_capabilities(node.process.pid, TABLE & AVAILABLE - {"DAC_OVERRIDE"}, bounding=True)

    def test_an_upgrade_and_a_supervised_daemon_have_what_the_first_had(self):
        given = {"NET_ADMIN", "BPF", "NET_RAW"}
        with Node() as node:
            node.start(wrapper=as_user(given | {"KILL"}))
            node.upgrade()
            self.expect_capabilities(node.process.pid, given, bounding=False)
            self.assertTrue(node.call("GET", "/v1/info").json()["source_guard"])
        with Node() as node:
            node.start(wrapper=as_user(given | {"KILL"}), arguments=["--supervise"])
            self.expect_capabilities(node.process.pid, given, bounding=False)
            first = node.daemon_below()
            self.expect_capabilities(first, given, bounding=False)
            begun = node.begun()
            os.kill(first, signal.SIGKILL)
            self.assertTrue(wait_until(lambda: node.begun() > begun), node.output())
            self.expect_capabilities(node.daemon_below(), given, bounding=False)

    def test_capabilities_of_the_file_survive_an_upgrade(self):
        given = {"NET_ADMIN", "BPF"}
        with Node() as node:
            node.program = f"{node.directory}/portwayd"
            shutil.copy(os.environ["PORTWAY_DAEMON"], node.program)
            # linux/capability.h, struct vfs_cap_data: revision 2, effective; permitted and inheritable, low and high words.
            low, high = mask(given) & 0xFFFFFFFF, mask(given) >> 32
            os.setxattr(node.program, "security.capability", struct.pack("<5I", 0x02000001, low, 0, high, 0))
            node.start(wrapper=as_user(set(), bounding=False))
            self.expect_capabilities(node.process.pid, given, bounding=False)
            node.upgrade()
            self.expect_capabilities(node.process.pid, given, bounding=False)
            self.assertTrue(node.call("GET", "/v1/info").json()["source_guard"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--guest"]:
        run_guest()
    elif sys.argv[1:] == ["--clients"]:
        run_clients()
    else:
        unittest.main()

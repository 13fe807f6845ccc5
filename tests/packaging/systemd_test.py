"""The package on a machine with a real systemd: installed, booted, reloaded, killed, upgraded, downgraded, removed, purged.

The machine is a container of systemd-nspawn on an overlay of this machine's files, without this machine's units, in a network
namespace of the test's. Everything ends with the test: the mounts are its own mount namespace's.

    systemd_test.py DIRECTORY_WITH_THE_PACKAGES
"""
import contextlib
import ctypes
import glob
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.namespace import Namespace  # noqa: E402
from tests.support.portwayd import Portwayd, children_of, die_with_parent, isolate, require_namespaces, wait_until  # noqa: E402

CLONE_NEWNS = 0x20000
ECHO = 7000
API = 8080
CLIENT = "198.18.0.2"
CAPABILITIES = {"cap_net_admin": 12, "cap_bpf": 39, "cap_net_raw": 13, "cap_net_bind_service": 10, "cap_sys_resource": 24}

_libc = ctypes.CDLL(None, use_errno=True)


def run_guest():
    """An echo that says first whom it sees."""
    listener = socket.create_server(("0.0.0.0", ECHO))
    print("ready", flush=True)

    def serve(connection, peer):
        with contextlib.suppress(OSError), connection:
            connection.sendall(f"{peer[0]}\n".encode())
            while data := connection.recv(65536):
                connection.sendall(data)

    while True:
        threading.Thread(target=serve, args=listener.accept(), daemon=True).start()


class Failed(Exception):
    """A command; with what it printed."""


def run(*command, **options):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False, timeout=180, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}:\n{done.stdout}")
    return done.stdout


class Machine:
    """Of this machine's files: what is written is in memory, and goes with it."""

    def __init__(self, directory):
        self.root = f"{directory}/root"
        self.container = None
        for name in ("root", "changes"):
            os.mkdir(f"{directory}/{name}")
        run("mount", "-t", "tmpfs", "tmpfs", f"{directory}/changes")
        upper, work = (f"{directory}/changes/{name}" for name in ("upper", "work"))
        os.mkdir(work)
        # Nothing of this machine's own is started: what is below does not show through.
        for each in ("etc/systemd/system", "etc/init.d", *(f"etc/rc{i}.d" for i in "0123456S")):
            os.makedirs(f"{upper}/{each}")
            os.setxattr(f"{upper}/{each}", "trusted.overlay.opaque", b"y")
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", self.root)
        for each in glob.glob(f"{self.root}/etc/systemd/system-generators/*") + glob.glob(
                f"{self.root}/lib/systemd/system-generators/postgresql*") + [f"{self.root}/usr/sbin/policy-rc.d"]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each)
        Path(f"{self.root}/etc/machine-id").write_text("", encoding="ascii")
        Path(f"{self.root}/etc/fstab").write_text("", encoding="ascii")
        Path(f"{self.root}/etc/dpkg/dpkg.cfg.d").mkdir(exist_ok=True)
        for each in glob.glob(f"{self.root}/etc/dpkg/dpkg.cfg.d/*"):  # an image may leave out documents
            os.unlink(each)

    def nspawn(self, *words):
        return ["systemd-nspawn", "--quiet", "-D", self.root, "--register=no", "--keep-unit",
                f"--network-namespace-path=/proc/{os.getpid()}/ns/net", "--capability=all", "--system-call-filter=bpf",
                "--link-journal=no", "--resolv-conf=off", "--timezone=off", *words]

    def run_before_boot(self, *command):
        return run(*self.nspawn("--pipe", "--as-pid2", *command))

    def boot(self):
        self.container = subprocess.Popen(
            self.nspawn("--boot", "--console=pipe", "systemd.unit=multi-user.target", "systemd.journald.forward_to_console=0"),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
        assert wait_until(lambda: self.state() in ("running", "degraded"), 120), f"it does not boot: {self.state()}"

    def state(self):
        return self.ask("systemctl", "is-system-running") if children_of(self.container.pid) else ""

    def inside(self, *command):
        leader = children_of(self.container.pid)[0]
        return ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--", *command]

    def do(self, *command):
        """Raises if it fails; what it printed, errors as well."""
        return run(*self.inside(*command),
                   env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"})

    def ask(self, *command):
        """What it prints, whether it succeeds or not."""
        return subprocess.run(self.inside(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, check=False, timeout=60).stdout.strip()

    def unit(self, name):
        return self.ask("systemctl", "show", "--value", "-p", name, "portwayd")

    def log(self):
        return self.ask("journalctl", "--no-pager", "-o", "cat", "-u", "portwayd")

    def end(self):
        if self.container is not None:
            self.container.terminate()  # it shuts down
            try:
                self.container.wait(30)
            except subprocess.TimeoutExpired:
                self.container.kill()
                self.container.wait()


class Node(Portwayd):
    """The daemon of the machine, as tests/support calls it."""

    def __init__(self, machine):
        super().__init__(start=False)
        self.machine = machine
        self.port = API

    def admin_key(self):
        return Path(f"{self.machine.root}/etc/portway/admin.key").read_text(encoding="ascii").strip()


def package_with(package, directory, version, change=None):
    """The same package with another version, after change(its files)."""
    tree = f"{directory}/{version}"
    run("dpkg-deb", "--raw-extract", package, tree)
    control = Path(tree, "DEBIAN/control")
    text = re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text(encoding="utf-8"))
    control.write_text(text, encoding="utf-8")
    if change is not None:
        change(tree)
    made = f"{directory}/portway_{version}.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made)
    shutil.rmtree(tree)
    return made


def refuse_to_begin(tree):
    program = Path(tree, "usr/bin/portwayd")
    program.write_text("#!/bin/sh\necho it refuses to begin >&2\nexit 2\n", encoding="ascii")


class SystemdTest(unittest.TestCase):
    def setUp(self):
        require_namespaces("systemd-nspawn", "dpkg-deb", "logrotate", "/lib/systemd/systemd")
        packages = [each for each in glob.glob(f"{PACKAGES}/portway_*.deb")]
        if not packages:
            self.skipTest("the packages are not built")
        isolate()
        if _libc.unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
        run("mount", "--make-rprivate", "/")
        self.directory = tempfile.mkdtemp(prefix="portway-machine-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        run("mount", "-t", "tmpfs", "tmpfs", self.directory)
        self.addCleanup(run, "umount", "--recursive", self.directory)
        self.guest = guest.start_guest(__file__)
        self.addCleanup(guest.end, self.guest)
        self.client = Namespace()
        run("ip", "link", "add", "net0", "type", "veth", "peer", "name", "client0")
        run("ip", "address", "add", "198.18.0.1/24", "dev", "net0")
        run("ip", "link", "set", "net0", "up")
        self.client.take("client0", f"{CLIENT}/24")
        self.machine = Machine(self.directory)
        self.addCleanup(self.machine.end)
        self.package = self.copy(packages[0])
        self.version = run("dpkg-deb", "--field", self.package, "Version").strip()
        self.node = Node(self.machine)
        self.addCleanup(self.node.end)

    def copy(self, package):
        """Into the machine; its path there is the same below its root."""
        target = f"{self.machine.root}/root/{os.path.basename(package)}"
        shutil.copy(package, target)
        return target

    def install(self, package):
        return self.machine.do("dpkg", "--install", package.removeprefix(self.machine.root))

    def main_pid(self):
        return int(self.machine.unit("MainPID") or 0)

    def serves(self):
        try:
            return self.machine.unit("ActiveState") == "active" and self.node.call("GET", "/readyz").status == 200
        except OSError:
            return False

    def becomes_another(self, before):
        self.assertTrue(wait_until(lambda: self.main_pid() not in (0, before), 60), self.machine.log())
        self.node.close_connection()
        self.assertTrue(wait_until(self.serves), self.machine.log())

    def restart(self):
        """As it is configured now. Its connections end."""
        before = self.main_pid()
        self.machine.do("systemctl", "daemon-reload")
        self.machine.do("systemctl", "restart", "portwayd")
        self.becomes_another(before)

    def connect(self):
        with self.client:
            connection = socket.create_connection(("198.18.0.1", self.host_port), timeout=60)
        seen = connection.recv(64)
        self.assertEqual(seen.decode(), f"{CLIENT}\n", "the guest does not see its client's address")
        return connection

    def transfer(self, connection, size=1 << 20):
        sent = os.urandom(size)
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        got = b""
        while len(got) < size:
            data = connection.recv(1 << 16)
            self.assertTrue(data, "it has ended")
            got += data
        sender.join()
        self.assertEqual(got, sent)

    def test_the_life_of_the_package(self):
        for step in (self.install_and_boot, self.runs_with_what_it_needs, self.reload_and_forward, self.kill, self.watchdog,
                     self.socket_activation, self.read_only_var, self.guests_in_network_namespaces, self.rotate_logs,
                     self.upgrade, self.upgrade_to_one_that_cannot_begin, self.downgrade, self.remove, self.purge,
                     self.first_install_starts_it):
            print(f"{step.__name__} ...", flush=True)
            with self.subTest(step.__name__):
                step()
            if self._outcome.result.failures or self._outcome.result.errors:
                break

    def install_and_boot(self):
        self.machine.run_before_boot("dpkg", "--install", self.package.removeprefix(self.machine.root))
        self.machine.boot()
        self.assertTrue(wait_until(self.serves), self.machine.log())
        self.assertIn("valid", self.machine.do("runuser", "-u", "portway", "--", "portwayd", "--check", "--config",
                                               "/etc/portway/portway.toml"))

    def runs_with_what_it_needs(self):
        status = dict(line.split(":", 1) for line in
                      self.machine.ask("cat", f"/proc/{self.main_pid()}/status").splitlines())
        self.assertEqual(self.machine.ask("stat", "-c", "%U", f"/proc/{self.main_pid()}"), "portway")
        ours = int(re.search(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text(encoding="ascii"))[1], 16)
        expected = sum(1 << bit for bit in CAPABILITIES.values()) & ours  # a container may lack one of them
        for each in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
            self.assertEqual(int(status[each], 16), expected, each)
        self.assertEqual((status["NoNewPrivs"].strip(), status["Seccomp"].strip()), ("1", "2"))
        self.assertEqual(self.machine.ask("stat", "-c", "%a %U %G", "/etc/portway", "/etc/portway/admin.key",
                                          "/etc/portway/portway.toml", "/var/lib/portway", "/var/log/portway").splitlines(),
                         ["1770 root portway", "600 portway portway", "644 root root", "750 portway portway",
                          "750 portway portway"])
        self.assertIn("uring", self.machine.log())
        self.assertEqual(self.machine.ask("journalctl", "-q", "-o", "cat", "-p", "err", "-u", "portwayd"), "")
        # What the unit refuses must not be what the daemon needs to confine itself.
        warnings = self.machine.ask("journalctl", "-q", "-o", "cat", "-p", "warning", "-u", "portwayd").splitlines()
        self.assertEqual([each for each in warnings if not re.match("guests.networks is empty|RLIMIT_NOFILE is", each)], [])
        self.assertTrue(wait_until(lambda: self.machine.unit("StatusText") == "0 forwards of 0 instances"))

    def reload_and_forward(self):
        config = Path(f"{self.machine.root}/etc/portway/portway.toml")
        text = config.read_text(encoding="utf-8").replace('networks = []', 'networks = ["198.18.0.0/15"]')
        config.write_text(text.replace('access = ""', 'access = "/var/log/portway/access.log"'), encoding="utf-8")
        self.assertEqual(self.node.put_instance("vm-1", tap="tap0").status, 422)
        self.machine.do("systemctl", "reload", "portwayd")
        self.assertTrue(wait_until(lambda: "configuration reloaded" in self.machine.log()))
        answer = self.node.put_instance("vm-1", tap="tap0")
        self.assertIn(answer.status, (200, 201), answer)
        self.host_port = self.node.call("POST", "/instances/vm-1/port-forwards",
                                        {"guest_port": ECHO}).json()["port_forward"]["host_port"]
        self.assertEqual(self.node.call("GET", "/v1/node", key="pwk_wrong", headers={"X-Request-Id": "guessed"}).status, 401)
        self.assertTrue(wait_until(lambda: "401 unauthorized" in self.machine.ask(
            "journalctl", "-q", "-o", "cat", "-u", "portwayd", "PORTWAY_REQUEST_ID=guessed", "PRIORITY=4")))
        self.restart()  # for log.access
        self.connection = self.connect()
        self.addCleanup(self.connection.close)
        self.transfer(self.connection)

    def kill(self):
        for number in ("KILL", "ABRT"):
            before = self.main_pid()
            self.machine.do("systemctl", "kill", "--kill-whom=main", f"--signal={number}", "portwayd")
            self.becomes_another(before)
            self.transfer(self.connection)

    def watchdog(self):
        if self.machine.unit("WatchdogUSec") in ("0", "infinity"):
            print("  the unit has no WatchdogSec=")
            return
        drop_in = "/run/systemd/system/portwayd.service.d"
        self.machine.do("mkdir", "-p", drop_in)
        Path(f"{self.machine.root}/root/watchdog.conf").write_text("[Service]\nWatchdogSec=2s\n", encoding="ascii")
        self.machine.do("cp", "/root/watchdog.conf", drop_in)
        self.restart()
        with contextlib.closing(self.connect()) as connection:
            before = self.main_pid()
            self.machine.do("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "portwayd")
            self.becomes_another(before)
            self.transfer(connection)
        self.machine.do("rm", "-r", drop_in)
        self.restart()
        self.connection = self.connect()
        self.addCleanup(self.connection.close)

    def socket_activation(self):
        """A client that comes while the daemon is away waits for it."""
        self.machine.do("cp", "/usr/share/doc/portway/examples/portwayd.socket", "/etc/systemd/system")
        self.machine.do("systemctl", "daemon-reload")
        self.machine.do("systemctl", "stop", "portwayd")
        self.machine.do("systemctl", "enable", "--now", "portwayd.socket")
        self.node.close_connection()
        self.assertEqual(self.machine.unit("ActiveState"), "inactive")
        self.assertEqual(self.node.call("GET", "/readyz").status, 200)  # which starts it
        before = self.main_pid()
        self.machine.do("systemctl", "kill", "--kill-whom=main", "--signal=USR2", "portwayd")
        self.becomes_another(before)  # and its successor has the socket
        for _ in range(2):
            self.machine.do("systemctl", "restart", "portwayd")
            self.node.close_connection()
            self.assertEqual(self.node.call("GET", "/readyz").status, 200)
        self.machine.do("systemctl", "stop", "portwayd.socket", "portwayd")
        self.machine.do("systemctl", "disable", "portwayd.socket")
        self.machine.do("rm", "/etc/systemd/system/portwayd.socket")
        self.machine.do("systemctl", "daemon-reload")
        self.machine.do("systemctl", "start", "portwayd")
        self.assertTrue(wait_until(self.serves), self.machine.log())

    def read_only_var(self):
        """As after errors of a disk: what is in memory here is on another filesystem there."""
        self.machine.do("systemctl", "stop", "portwayd")
        self.machine.do("cp", "--archive", "/var/lib/portway", "/root/store")
        self.machine.do("mount", "-t", "tmpfs", "-o", "mode=750,uid=portway,gid=portway", "tmpfs", "/var/lib/portway")
        self.machine.do("cp", "--archive", "/root/store/.", "/var/lib/portway")
        self.make_filesystem("ro", "/var/lib/portway")
        self.machine.do("systemctl", "start", "portwayd")
        self.assertEqual(self.machine.unit("ActiveState"), "active")
        with contextlib.closing(self.connect()) as connection:
            self.transfer(connection)
        self.node.close_connection()
        self.assertEqual(self.node.call("GET", "/readyz").status, 503)
        self.assertIn("mount its filesystem writable", self.machine.ask(
            "journalctl", "-q", "-o", "cat", "-p", "err", "-u", "portwayd"))
        self.make_filesystem("rw", "/var/lib/portway")
        self.assertTrue(wait_until(self.serves), self.machine.log())
        self.machine.do("systemctl", "stop", "portwayd")
        self.machine.do("umount", "/var/lib/portway")
        self.machine.do("systemctl", "start", "portwayd")
        self.assertTrue(wait_until(self.serves), self.machine.log())
        self.connection = self.connect()
        self.addCleanup(self.connection.close)

    def make_filesystem(self, mode, path):
        """Read-only or not as the kernel does after errors: no mount changes, of which a unit has its own."""
        self.machine.do(sys.executable, "-c", f"""
import ctypes
fspick, fsconfig, set_flag, reconfigure = 433, 431, 0, 7
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(fspick, -100, b"{path}", 0)
for command, key in ((set_flag, b"{mode}"), (reconfigure, None)):
    assert libc.syscall(fsconfig, fd, command, key, None, 0) == 0, ctypes.get_errno()
""")

    def guests_in_network_namespaces(self):
        """They need the drop-in of the examples. The daemon sees a namespace that is made while it runs."""
        self.machine.do("ip", "netns", "add", "vm-2")
        self.machine.do("ip", "-n", "vm-2", "link", "add", "tap2", "type", "veth", "peer", "name", "guest2")
        for device in ("tap2", "guest2"):
            self.machine.do("ip", "-n", "vm-2", "link", "set", device, "up")
        fields = {"tap": "tap2", "guest_address": "198.19.2.2", "netns": "/run/netns/vm-2"}
        refused = self.node.put_instance("vm-2", **fields)
        self.assertEqual((refused.status, refused.json()["field"]), (503, "netns"), refused)
        drop_in = f"{os.environ['PORTWAY_SOURCE_DIRECTORY']}/packaging/guest-namespaces.conf"
        directory = Path(f"{self.machine.root}/etc/systemd/system/portwayd.service.d")
        directory.mkdir(parents=True)
        shutil.copy(drop_in, directory)
        self.restart()
        answer = self.node.put_instance("vm-2", **fields)
        self.assertIn(answer.status, (200, 201), answer)
        self.machine.do("ip", "netns", "add", "vm-3")
        self.machine.do("ip", "-n", "vm-3", "link", "add", "tap2", "type", "veth", "peer", "name", "guest2")
        for device in ("tap2", "guest2"):
            self.machine.do("ip", "-n", "vm-3", "link", "set", device, "up")
        answer = self.node.put_instance("vm-3", **{**fields, "netns": "/run/netns/vm-3"})
        self.assertIn(answer.status, (200, 201), answer)
        for name in ("vm-2", "vm-3"):
            self.node.call("DELETE", f"/instances/{name}")
            self.machine.do("ip", "netns", "delete", name)
        shutil.rmtree(directory)
        self.restart()
        self.connection = self.connect()
        self.addCleanup(self.connection.close)

    def rotate_logs(self):
        log = Path(f"{self.machine.root}/var/log/portway/access.log")
        with contextlib.closing(self.connect()):
            pass
        self.assertTrue(wait_until(lambda: log.exists() and log.stat().st_size > 0))
        self.machine.do("logrotate", "--force", "/etc/logrotate.d/portway")
        self.assertTrue(wait_until(lambda: log.exists() and log.stat().st_size == 0), "it has not opened a new one")
        with contextlib.closing(self.connect()):
            pass
        self.assertTrue(wait_until(lambda: log.stat().st_size > 0))
        self.assertGreater(Path(f"{log}.1").stat().st_size, 0)

    def upgrade(self):
        before, restarts = self.main_pid(), self.machine.unit("NRestarts")
        said = self.install(self.copy(package_with(self.package, self.directory, f"{self.version}+1")))
        self.assertIn("has taken over from process", said)
        self.becomes_another(before)
        self.transfer(self.connection)
        self.assertEqual(self.machine.unit("NRestarts"), restarts, "it was started again")

    def upgrade_to_one_that_cannot_begin(self):
        before = self.main_pid()
        said = self.install(self.copy(package_with(self.package, self.directory, f"{self.version}+2", refuse_to_begin)))
        self.assertIn("the daemon of the version before continues to run", said)
        self.assertIn("systemctl restart portwayd", said)
        self.assertEqual(self.main_pid(), before)
        self.transfer(self.connection)

    def downgrade(self):
        store = f"{self.machine.root}/var/lib/portway/portway.db"
        before = self.main_pid()
        said = self.install(self.package)  # its schema is the same
        self.assertIn("has taken over from process", said)
        self.becomes_another(before)
        self.transfer(self.connection)
        self.connection.close()
        self.install(f"{self.machine.root}/root/portway_{self.version}+1.deb")
        self.machine.do("systemctl", "stop", "portwayd")
        self.machine.do("systemctl", "mask", "--runtime", "portwayd")  # dpkg starts it again after each refusal
        database = sqlite3.connect(store)
        schema = database.execute("PRAGMA user_version").fetchone()[0]
        known = run(f"{os.environ['PORTWAY_SOURCE_DIRECTORY']}/packaging/store-schema.sh").strip()
        self.assertEqual(str(schema), known)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        # A newer one has changed it: first in the write-ahead log only, then in the file itself.
        database.execute(f"PRAGMA user_version = {schema + 1}")
        with open(store, "rb") as file:
            self.assertEqual(int.from_bytes(file.read(64)[60:], "big"), schema)
        self.is_refused(schema + 1)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.is_refused(schema + 1)
        database.execute(f"PRAGMA user_version = {schema}")
        database.close()
        self.install(self.package)
        self.machine.do("systemctl", "unmask", "--runtime", "portwayd")
        self.machine.do("systemctl", "start", "portwayd")
        self.assertTrue(wait_until(self.serves), self.machine.log())

    def is_refused(self, schema):
        with self.assertRaisesRegex(Failed, rf"its schema is {schema}, .*\n.*Nothing has been changed"):
            self.install(self.package)
        self.assertEqual(self.machine.do("dpkg-query", "--show", "--showformat=${Status} ${Version}", "portway"),
                         f"install ok installed {self.version}+1")

    def remove(self):
        before = self.main_pid()
        self.install(f"{self.machine.root}/root/portway_{self.version}+1.deb")  # its process is one of an upgrade
        self.becomes_another(before)
        self.connect().close()
        self.machine.do("dpkg", "--remove", "portway")
        self.assertNotIn("with signal SIGKILL", self.machine.log(), "it was not let stop by itself")
        self.assertEqual(self.main_pid(), 0)
        self.assertEqual(self.machine.ask("pgrep", "-l", "portway"), "", "a process is left")
        for kept in ("/var/lib/portway/portway.db", "/etc/portway/portway.toml", "/etc/portway/admin.key"):
            self.assertTrue(os.path.exists(self.machine.root + kept), kept)

    def purge(self):
        self.machine.do("dpkg", "--purge", "portway")
        left = self.machine.ask("find", "/etc", "/usr", "/var", "/run", "-iname", "*portway*", "-not", "-path", "/var/cache/*",
                                "-not", "-path", "/var/log/journal/*")
        self.assertEqual(left, "")
        self.assertNotIn("5210", run("ip", "rule") + run("ip", "-6", "rule"))
        self.assertEqual(run("tc", "filter", "show", "dev", "tap0", "ingress"), "")

    def first_install_starts_it(self):
        self.install(self.package)
        self.node.close_connection()
        self.assertTrue(wait_until(self.serves), self.machine.log())
        self.machine.do("dpkg", "--purge", "portway")
        self.assertEqual(self.main_pid(), 0)


if __name__ == "__main__":
    if "--guest" in sys.argv:
        run_guest()
    else:
        PACKAGES = sys.argv.pop()
        unittest.main()

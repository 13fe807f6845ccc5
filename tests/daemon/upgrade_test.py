"""An upgrade whatever is installed by then, and whatever happens meanwhile: one process has the connections, and nothing
else is left.

PORTWAY_OTHER_DAEMON: the build that is installed; by default the one that runs.
"""
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.moments import some_of  # noqa: E402
from tests.support.portwayd import Adopted, Portwayd, end_all, isolate, name_of, wait_until  # noqa: E402

DAEMON = os.environ["PORTWAY_DAEMON"]
OTHER_DAEMON = os.environ.get("PORTWAY_OTHER_DAEMON", DAEMON)
ECHO = 7000
CALLS_MAX = 6
LIMIT_S = 10  # much less than a keeper waits for a successor
# The shim comes before the sanitizers' runtime, and does not mind.
SANITIZERS = {"ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0"}


def run_guest():
    listener = socket.create_server(("0.0.0.0", ECHO))
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            with contextlib.suppress(ConnectionResetError):
                while data := connection.recv(65536):
                    connection.sendall(data)
            os._exit(0)
        connection.close()


class Node(Portwayd):
    """Its program is a file in its directory, and one connection goes through it. A context."""

    def __init__(self, *arguments):
        super().__init__("proxy.workers=2", "proxy.drain_timeout_s=1", start=False)
        self.program = f"{self.directory}/portwayd"
        self.install(DAEMON)
        self.start(arguments=arguments)
        self.put_instance("vm-1", tap="tap0")
        made = self.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO}).json()["port_forward"]
        self.client = socket.create_connection(("127.0.0.1", made["host_port"]), timeout=30)
        self.talk()

    def start(self, *arguments, **options):
        super().start(*arguments, **{"environment": SANITIZERS, **options})

    def install(self, content, mode=0o755):
        """In place of the program: a file's copy, or a text."""
        new = f"{self.program}.new"
        if content.startswith("/"):
            shutil.copyfile(content, new)
        else:
            with open(new, "w", encoding="ascii") as file:
                file.write(content)
        os.chmod(new, mode)
        os.replace(new, self.program)

    def install_version(self, version):
        """The program is a link to the file of a version, which is returned."""
        file = f"{self.program}-{version}"
        shutil.copy(OTHER_DAEMON, file)
        os.symlink(file, f"{file}.link")
        os.replace(f"{file}.link", self.program)
        return file

    def install_striking(self, moment, check="", start="", **shim):
        """A program that becomes the other build. It runs `check` or `start` in a shell before, if that is the moment, or
        has the shim strike at the call of that number."""
        shim = {"LD_PRELOAD": os.environ["PORTWAY_CRASH_SHIM"], "PORTWAY_CRASH_PATH": f"{self.directory}/portway.db",
                "PORTWAY_CRASH_LOG": f"{self.directory}/calls", "PORTWAY_CRASH_AT": moment if isinstance(moment, int) else 0, **shim}
        self.install(f"""#!/bin/sh
case "$*" in
*--check*)
  {check if moment == "check" else ":"} ;;
*--take-over*)
  echo $$ > {self.directory}/successor
  {start if moment == "start" else ":"}
  export {" ".join(f"{name}={value}" for name, value in shim.items())} ;;
esac
exec {OTHER_DAEMON} "$@"
""")

    def talk(self):
        message = os.urandom(64)
        self.client.sendall(message)
        assert self.client.recv(64, socket.MSG_WAITALL) == message

    def pids(self):
        """Of all that are its, or come from it."""
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", encoding="utf-8") as arguments:
                if self.directory in arguments.read():
                    yield pid

    def processes(self):
        return sorted(filter(None, map(name_of, self.pids())))

    def is_alone(self):
        alone = wait_until(lambda: self.processes() == ["portway-keeper", "portwayd"] and not self.has_socket(), LIMIT_S)
        return alone or f"{self.processes()}, a socket: {self.has_socket()}"

    def has_socket(self):
        return os.path.exists(f"{self.directory}/portway.db.handover")

    def successor(self):
        """The process that was started last to take over, if there was one; this process's child once its parent has ended."""
        with contextlib.suppress(FileNotFoundError), open(f"{self.directory}/successor", encoding="ascii") as file:
            return int(file.read())
        return None

    def end(self):
        """Also of an upgrade that did not go as it should."""
        self.client.close()
        end_all(sorted(self.pids(), key=lambda pid: name_of(pid) != "portway-keeper"))
        super().end()


class UpgradeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        isolate()
        cls.guest = guest.start_guest(__file__)
        cls.addClassCleanup(guest.end, cls.guest)

    def test_the_installed_program_takes_over(self):
        with Node() as node:
            for program in (OTHER_DAEMON, DAEMON, OTHER_DAEMON):
                before = os.stat(f"/proc/{node.process.pid}/exe")
                node.install(program)
                node.upgrade()
                after = os.stat(f"/proc/{node.process.pid}/exe")
                self.assertNotEqual(after.st_ino, before.st_ino)
                self.assertEqual(after.st_ino, os.stat(node.program).st_ino)
                node.talk()
            self.assertIs(node.is_alone(), True)

    def test_a_link_leads_to_the_version_that_is_installed_now(self):
        with Node() as node:
            for version in "12":
                file = node.install_version(version)
                node.upgrade()
                self.assertEqual(os.readlink(f"/proc/{node.process.pid}/exe"), file)
                node.talk()

    def test_a_supervisor_starts_what_a_link_leads_to_now(self):
        with Node() as node:
            node.stop()
            node.install_version("1")
            node.start(arguments=["--supervise"])
            before, begun = node.daemon_below(), node.begun()
            file = node.install_version("2")
            os.kill(before, signal.SIGKILL)
            self.assertTrue(wait_until(lambda: node.begun() > begun), node.output())
            self.assertEqual(os.readlink(f"/proc/{node.daemon_below()}/exe"), file)

    def continues(self, node, why):
        """The process that runs, when it is told to upgrade."""
        before = node.output().count("this process continues")
        node.process.send_signal(signal.SIGUSR2)
        self.assertTrue(wait_until(lambda: node.output().count("this process continues") > before), node.output())
        self.assertRegex(node.output().split("this process continues")[-1], why)
        node.talk()
        self.assertIsNone(node.process.poll())
        self.assertIs(node.is_alone(), True)

    def test_a_version_that_hands_over_something_else_is_refused_before_anything_pauses(self):
        with Node() as node:
            node.install(f"""#!/bin/sh
for word; do
  case "$word" in --reads-handover=*) word=--reads-handover=0.0 ;; esac
  set -- "$@" "$word"
  shift
done
exec {OTHER_DAEMON} "$@"
""")
            self.continues(node, "refuses to begin")
            self.assertIn("it hands over version 0.0, and this one reads", node.output())
            self.assertNotIn("takes over", node.output())

    def test_what_is_no_daemon_changes_nothing(self):
        with Node() as node:
            with open(DAEMON, "rb") as file:
                whole = file.read()
            for size in (100, 1 << 16):
                part = f"{node.directory}/part"
                with open(part, "wb") as file:
                    file.write(whole[:size])
                node.install(part)
                self.continues(node, "Exec format error|refuses to begin, as the log says: it (ended with|was ended by signal)")
            node.install("#!/bin/sh\nexit 1\n")
            self.continues(node, "it ended with 1")
            node.install('#!/bin/sh\ncase "$*" in *--check) exit 0;; *) exit 3;; esac\n')
            self.continues(node, "does not begin: it ended with 3")
            node.install('#!/bin/sh\ncase "$*" in *--check) exit 0;; *) exec sleep 1000;; esac\n')
            self.continues(node, "does not begin: it was ended by signal 9")
            node.install(DAEMON, mode=0o644)
            self.continues(node, "Permission denied")
            os.unlink(node.program)
            self.continues(node, "No such file")
            node.install(OTHER_DAEMON)
            node.upgrade()
            node.talk()

    def test_two_signals_are_one_upgrade(self):
        with Node() as node:
            node.process.send_signal(signal.SIGUSR2)
            node.upgrade()
            node.talk()
            self.assertIs(node.is_alone(), True)
            self.assertEqual(node.output().count("takes over"), 1)

    # --- At each moment: while the new program checks, when it is started, and at each call of its start that changes the
    # store or the socket of the succession.

    @staticmethod
    def moments():
        with Node() as node:
            node.install_striking(None)
            node.upgrade()
            calls = range(1, os.path.getsize(f"{node.directory}/calls") + 1)
            return ["check", "start", *some_of(calls, CALLS_MAX, "upgrade")]

    def at_each_moment(self, number, outcome):
        """The process that runs gets a signal."""
        for moment in self.moments():
            with self.subTest(moment=moment), Node() as node:
                strike = f"kill -{number} $PPID"
                node.install_striking(moment, check=strike, start=strike, PORTWAY_CRASH_PARENT=int(number))
                outcome(node)

    def test_sighup_is_harmless(self):
        self.at_each_moment(signal.SIGHUP, self.upgraded_once)

    def test_sigusr2_is_harmless(self):
        self.at_each_moment(signal.SIGUSR2, self.upgraded_once)

    def upgraded_once(self, node):
        node.upgrade()
        node.talk()
        self.assertIs(node.is_alone(), True)
        self.assertEqual(node.output().count("takes over"), 1)

    def test_sigterm_stops_both(self):
        self.at_each_moment(signal.SIGTERM, self.stopped)

    def stopped(self, node):
        node.process.send_signal(signal.SIGUSR2)
        self.assertEqual(node.process.wait(60), 0)
        with self.assertRaises(ConnectionResetError):
            node.client.recv(1)
        self.assertTrue(wait_until(lambda: not node.processes(), LIMIT_S), node.processes())
        self.assertFalse(node.has_socket())

    def test_the_process_is_killed(self):
        self.at_each_moment(signal.SIGKILL, self.killed)

    def killed(self, node):
        begun = node.begun()
        node.process.send_signal(signal.SIGUSR2)
        self.assertEqual(node.process.wait(60), -signal.SIGKILL)
        successor = node.successor()
        self.assertTrue(successor is None or wait_until(lambda: node.begun() > begun or Adopted(successor).poll() is not None))
        if node.begun() > begun:
            node.adopt(successor)
        else:
            node.start()
        self.goes_on(node)

    def test_the_successor_is_killed(self):
        for moment in self.moments():
            with self.subTest(moment=moment), Node() as node:
                strike = "kill -KILL $$"
                node.install_striking(moment, check=strike, start=strike)
                begun = node.begun()
                node.process.send_signal(signal.SIGUSR2)
                self.assertTrue(wait_until(lambda: "this process continues" in node.output() or node.process.poll() is not None))
                if node.process.poll() is not None:
                    self.assertTrue(wait_until(lambda: "portwayd" not in node.processes()))
                    # Whoever watches this process must start it again.
                    self.assertTrue(node.process.poll() != 0 or node.begun() > begun, node.output())
                    node.start()
                self.goes_on(node)

    def test_supervised_one_process_serves(self):
        """The daemon is killed, not its supervisor."""
        for moment in self.moments():
            with self.subTest(moment=moment), Node("--supervise") as node:
                strike = "kill -KILL $PPID"
                node.install_striking(moment, check=strike, start=strike, PORTWAY_CRASH_PARENT=int(signal.SIGKILL))
                begun = node.begun()
                node.process.send_signal(signal.SIGUSR2)
                self.assertTrue(wait_until(lambda: node.begun() > begun), node.output())
                node.talk()
                self.assertTrue(wait_until(lambda: node.processes() == ["portway-keeper", "portwayd", "portwayd"]), node.processes())
                self.assertEqual(node.begun(), begun + 1)
                self.assertEqual(node.stop(), 0)
                self.assertTrue(wait_until(lambda: not node.processes(), LIMIT_S), node.processes())

    def goes_on(self, node):
        node.talk()
        self.assertIs(node.is_alone(), True)
        node.install(OTHER_DAEMON)
        node.upgrade()
        node.talk()
        node.client.shutdown(socket.SHUT_WR)
        self.assertEqual(node.client.recv(1), b"")
        self.assertNotIn(" reset (", "".join(re.findall("connections continue.*", node.output())))


if __name__ == "__main__":
    if "--guest" in sys.argv:
        run_guest()
    else:
        unittest.main()

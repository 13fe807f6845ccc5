"""Under a real systemd: the unit's main process is the one that serves, through kills, upgrades and a stop.

systemd is the first process of namespaces of this test's own, with the unit as docs/operating.md says.
"""
import contextlib
import os
import socket
import subprocess
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.portwayd import Portwayd, children_of, die_with_parent, isolate, require_namespaces, wait_until  # noqa: E402

SYSTEMD = "/lib/systemd/systemd"
ECHO = 7000
UNIT = """
[Unit]
DefaultDependencies=no
[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=kill -HUP $MAINPID
Restart=on-failure
RestartSec=0
StartLimitIntervalSec=0
KillMode=process
OOMPolicy=continue
LimitNOFILE=20000
"""
# Nothing of this machine's own is started.
BOOT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /etc/systemd/system
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd/system /run/lock
cp {directory}/portwayd.service /run/systemd/system/
printf '[Unit]\\nDefaultDependencies=no\\nAllowIsolate=yes\\n' > /run/systemd/system/nothing.target
container=portway exec {systemd} --system --unit=nothing.target --log-target=null
"""


def run_guest():
    listener = socket.create_server(("0.0.0.0", ECHO))
    print("ready", flush=True)
    connection, _ = listener.accept()
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            connection.sendall(data)


class SystemdTest(unittest.TestCase):
    def setUp(self):
        require_namespaces(SYSTEMD, "systemctl")
        isolate()
        self.guest = guest.start_guest(__file__)
        self.addCleanup(guest.end, self.guest)
        self.node = Portwayd("api.listen=127.0.0.1:8080", "proxy.drain_timeout_s=1", start=False)
        self.node.port = 8080
        self.addCleanup(self.node.end)
        command = " ".join([os.environ["PORTWAY_DAEMON"], *(f"--set={setting}" for setting in self.node.settings)])
        with open(f"{self.node.directory}/portwayd.service", "w", encoding="ascii") as file:
            file.write(UNIT.format(command=command))
        self.unshare = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--ipc", "--uts", "--", "sh", "-c",
             BOOT.format(directory=self.node.directory, systemd=SYSTEMD)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)
        self.addCleanup(lambda: (self.unshare.kill(), self.unshare.wait()))
        assert wait_until(lambda: self.systemctl("is-system-running") in ("running", "degraded"))

    def systemctl(self, *words):
        inside = children_of(self.unshare.pid)
        if not inside:
            return ""
        done = subprocess.run(["nsenter", "-t", str(inside[0]), "--mount", "--pid", "--cgroup", "--", "systemctl", *words],
                              capture_output=True, text=True, check=False, timeout=60)
        return done.stdout.strip()

    def state(self):
        """Of the unit: whether it runs, and its main process."""
        return self.systemctl("show", "--value", "-p", "ActiveState", "-p", "MainPID", "portwayd").split()

    def becomes_another(self, before):
        def is_another():
            state, pid = sorted(self.state(), reverse=True)
            return state == "active" and pid not in ("0", before)
        return wait_until(is_another)

    def main_pid(self):
        return min(self.state())

    def test_the_main_process_is_the_one_that_serves(self):
        self.systemctl("start", "portwayd")
        self.node.put_instance("vm-1", tap="tap0")
        port = self.node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO}).json()["port_forward"]["host_port"]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            for signal in ("KILL", "USR2", "USR2", "KILL", "USR2", "ABRT"):
                connection.sendall(signal.encode())
                self.assertEqual(connection.recv(64), signal.encode())
                before = self.main_pid()
                self.systemctl("kill", "--kill-who=main", f"--signal={signal}", "portwayd")
                self.assertTrue(self.becomes_another(before), f"{signal}: {self.state()}")
                self.node.close_connection()
                self.assertTrue(wait_until(lambda: self.answers_as(self.main_pid())), f"{signal}: {self.state()}")
            connection.sendall(b"end")
            self.assertEqual(connection.recv(64), b"end")
            self.systemctl("stop", "portwayd")
            self.assertEqual(sorted(self.state()), ["0", "inactive"])
            with self.assertRaises(ConnectionResetError):
                connection.recv(1)
        self.assertEqual(self.systemctl("show", "--value", "-p", "ControlGroup", "portwayd"), "", "its keeper is left")

    def answers_as(self, pid):
        try:
            return self.node.call("GET", "/v1/node").json()["process"]["pid"] == int(pid)
        except OSError:
            return False


if __name__ == "__main__":
    if "--guest" in sys.argv:
        run_guest()
    else:
        unittest.main()

"""The gateway's package on a machine with a real systemd, beside a real etcd: installed, configured, started, reloaded, removed,
purged. The machine is that of systemd_test.py.

    gateway_systemd_test.py DIRECTORY_WITH_THE_PACKAGES
"""
import ctypes
import glob
import json
import os
import shutil
import sys
import tempfile
import unittest
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.packaging.systemd_test import CLONE_NEWNS, Failed, Machine, run  # noqa: E402
from tests.support.etcd import Etcd, require_etcd  # noqa: E402
from tests.support.portwayd import isolate, require_namespaces, wait_until  # noqa: E402

_libc = ctypes.CDLL(None, use_errno=True)


def status_of(path, key=None):
    request = urllib.request.Request(f"http://127.0.0.1:8080{path}", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return 0, None


class GatewaySystemdTest(unittest.TestCase):
    def setUp(self):
        require_namespaces("systemd-nspawn", "dpkg-deb", "/lib/systemd/systemd")
        require_etcd()
        packages = glob.glob(f"{PACKAGES}/portway-gateway_*.deb")
        if not packages:  # Packages.AreBuilt has said why
            self.skipTest("the packages are not built")
        isolate()
        if _libc.unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
        run("mount", "--make-rprivate", "/")
        self.directory = tempfile.mkdtemp(prefix="portway-machine-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        run("mount", "-t", "tmpfs", "tmpfs", self.directory)
        self.addCleanup(run, "umount", "--recursive", self.directory)
        self.etcd = self.enterContext(Etcd())
        self.machine = Machine(self.directory)
        self.addCleanup(self.machine.end)
        shutil.copy(packages[0], f"{self.machine.root}/root/gateway.deb")

    def log(self):
        return self.machine.ask("journalctl", "--no-pager", "-o", "cat", "-u", "portway-gateway")

    def state(self):
        return self.machine.ask("systemctl", "is-active", "portway-gateway")

    def test_the_life_of_the_package(self):
        self.machine.run_before_boot("dpkg", "--install", "/root/gateway.deb")
        self.machine.boot()
        self.assertEqual(self.state(), "inactive", "it is not started before somebody has configured it")
        config = Path(f"{self.machine.root}/etc/portway/gateway.toml")
        with self.assertRaises(Failed):
            self.machine.do("systemctl", "start", "portway-gateway")
        self.assertIn("fleet.etcd is empty", self.log())

        text = config.read_text(encoding="utf-8").replace("etcd = []", f'etcd = ["{self.etcd.url}"]')
        text = text.replace('audit = ""', 'audit = "/var/log/portway-gateway/audit.log"')
        config.write_text(text, encoding="utf-8")
        self.machine.do("systemctl", "reset-failed", "portway-gateway")
        self.machine.do("systemctl", "enable", "--now", "portway-gateway")
        self.assertTrue(wait_until(lambda: status_of("/readyz")[0] == 200), self.log())
        pid = self.machine.ask("systemctl", "show", "--value", "-p", "MainPID", "portway-gateway")
        self.assertEqual(self.machine.ask("stat", "-c", "%U", f"/proc/{pid}"), "portway-gateway")
        status = dict(line.split(":", 1) for line in self.machine.ask("cat", f"/proc/{pid}/status").splitlines())
        self.assertEqual([int(status[each], 16) for each in ("CapEff", "CapPrm", "CapBnd", "CapAmb")], [0, 0, 0, 0])
        self.assertEqual(self.machine.ask("stat", "-c", "%a %U", "/var/lib/portway-gateway/admin.key"), "600 portway-gateway")

        key = Path(f"{self.machine.root}/var/lib/portway-gateway/admin.key").read_text(encoding="ascii").strip()
        code, info = status_of("/v1/info", key)
        self.assertEqual((code, info["role"], info["warm"]), (200, "gateway", True))
        self.machine.do("systemctl", "reload", "portway-gateway")
        self.assertTrue(wait_until(lambda: "configuration reloaded" in self.log()), self.log())
        self.assertTrue(os.path.exists(f"{self.machine.root}/var/log/portway-gateway/audit.log"))
        for complaint in ("Operation not permitted", "fault:"):
            self.assertNotIn(complaint, self.log())

        self.machine.do("dpkg", "--install", "/root/gateway.deb")  # as an upgrade does
        self.assertNotEqual(self.machine.ask("systemctl", "show", "--value", "-p", "MainPID", "portway-gateway"), pid)
        self.assertTrue(wait_until(lambda: status_of("/readyz")[0] == 200), self.log())

        self.machine.do("dpkg", "--remove", "portway-gateway")
        self.assertNotEqual(self.state(), "active")
        self.machine.do("dpkg", "--purge", "portway-gateway")
        for gone in ("/var/lib/portway-gateway", "/var/log/portway-gateway", "/etc/portway/gateway.toml"):
            self.assertFalse(os.path.exists(self.machine.root + gone), gone)


if __name__ == "__main__":
    PACKAGES = sys.argv.pop()
    unittest.main()

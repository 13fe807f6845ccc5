"""A real etcd of three members for tests in Python, in the test's network namespace."""
import os
import shutil
import subprocess
import tempfile

from tests.support.portwayd import die_with_parent, wait_until

ADDRESSES = ("198.18.6.1", "198.18.6.2", "198.18.6.3")


class EtcdCluster:
    """It serves when the constructor returns. The data of a member outlive its process. A context."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="portway-etcd-")
        for address in ADDRESSES:
            subprocess.run(["ip", "address", "replace", f"{address}/32", "dev", "lo"], check=True)
        self.urls = [f"http://{address}:2379" for address in ADDRESSES]
        self.processes = [None] * len(ADDRESSES)
        for member in range(len(ADDRESSES)):
            self.start(member, wait=False)
        assert wait_until(self.is_healthy, 60), self.log(0)

    def start(self, member, wait=True):
        address = ADDRESSES[member]
        cluster = ",".join(f"m{number}=http://{each}:2380" for number, each in enumerate(ADDRESSES))
        with open(f"{self.directory}/log{member}", "ab") as log:
            self.processes[member] = subprocess.Popen(
                ["etcd", "--name", f"m{member}", "--data-dir", f"{self.directory}/data{member}", "--listen-client-urls",
                 self.urls[member], "--advertise-client-urls", self.urls[member], "--listen-peer-urls",
                 f"http://{address}:2380", "--initial-advertise-peer-urls", f"http://{address}:2380", "--initial-cluster",
                 cluster, "--logger", "zap", "--log-outputs", "stderr"], stdout=log, stderr=log, preexec_fn=die_with_parent)
        if wait:
            assert wait_until(self.is_healthy, 60), self.log(member)

    def kill(self, member):
        self.processes[member].kill()
        self.processes[member].wait()

    def is_healthy(self):
        """All members have a leader and take writes."""
        done = subprocess.run(["etcdctl", f"--endpoints={','.join(self.urls)}", "endpoint", "health"], capture_output=True,
                              check=False, timeout=60, env={**os.environ, "ETCDCTL_API": "3"})
        return done.returncode == 0

    def log(self, member):
        with open(f"{self.directory}/log{member}", encoding="utf-8", errors="replace") as log:
            return log.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for member, process in enumerate(self.processes):
            if process.poll() is None:
                self.kill(member)
        shutil.rmtree(self.directory)

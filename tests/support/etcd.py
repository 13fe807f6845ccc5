"""A real etcd of one member for tests in Python, in the test's network namespace."""
import os
import shutil
import subprocess
import tempfile

from tests.support.portwayd import die_with_parent, require_namespaces, wait_until

ADDRESS = "198.18.5.1"


def require_etcd(*tools):
    require_namespaces("etcd", "etcdctl", *tools)


class Etcd:
    """It serves when the constructor returns. Its data outlive its process. A context.

    `certificate`: paths that end with .crt and .key are made from it: etcd then speaks TLS at localhost, with a certificate
    of its own authority with this name, which clients must have, too."""

    def __init__(self, certificate=None, name="O=Portway"):
        self.directory = tempfile.mkdtemp(prefix="portway-etcd-")
        subprocess.run(["ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo"], check=True)
        self.certificate = certificate
        self.url = "https://127.0.0.1:2379" if certificate else f"http://{ADDRESS}:2379"
        if certificate:
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                            "-days", "1", "-subj", f"/{name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                            "-keyout", f"{certificate}.key", "-out", f"{certificate}.crt"], check=True,
                           capture_output=True)
        self.urls = [self.url]
        self.process = None
        self.start()

    def start(self, token="etcd-cluster"):
        """With another token and without data it is another cluster."""
        tls = []
        if self.certificate:
            tls = ["--cert-file", f"{self.certificate}.crt", "--key-file", f"{self.certificate}.key",
                   "--client-cert-auth", "--trusted-ca-file", f"{self.certificate}.crt"]
        with open(f"{self.directory}/log", "wb") as log:
            self.process = subprocess.Popen(
                ["etcd", "--name", "m1", "--data-dir", f"{self.directory}/data", "--listen-client-urls", self.url,
                 "--advertise-client-urls", self.url, "--listen-peer-urls", f"http://{ADDRESS}:2380",
                 "--initial-advertise-peer-urls", f"http://{ADDRESS}:2380", "--initial-cluster",
                 f"m1=http://{ADDRESS}:2380", "--initial-cluster-token", token, "--logger", "zap", "--log-outputs", "stderr", *tls],
                stdout=log, stderr=log, preexec_fn=die_with_parent)
        assert wait_until(lambda: "serving client" in self.log() or "serving insecure client" in self.log(), 60), self.log()

    def log(self):
        with open(f"{self.directory}/log", encoding="utf-8", errors="replace") as log:
            return log.read()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def control(self, *words):
        """What etcdctl prints."""
        tls = []
        if self.certificate:
            tls = ["--cert", f"{self.certificate}.crt", "--key", f"{self.certificate}.key", "--cacert",
                   f"{self.certificate}.crt"]
        return subprocess.run(["etcdctl", f"--endpoints={self.url}", *tls, *words], check=True, capture_output=True,
                              text=True, timeout=60,
                              env={**os.environ, "ETCDCTL_API": "3"}).stdout

    def values(self, prefix):
        """Keys that begin so, and their values."""
        lines = self.control("get", "--prefix", prefix).splitlines()
        return dict(zip(lines[::2], lines[1::2]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        shutil.rmtree(self.directory)

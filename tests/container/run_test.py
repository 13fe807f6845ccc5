"""What docs/containers.md says to run, run: the daemon under runc with the capabilities, the user, the seccomp profile and the
read-only file system of `docker run` and of the DaemonSet. No image is built: the container's file system has the programs
of this build and the libraries that they load. Or it is PORTWAY_CONTAINER_ROOT, a folder with that of an image."""
import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.container import documented  # noqa: E402
from tests.support import guest  # noqa: E402
from tests.support.portwayd import (Portwayd, children_of, die_with_parent, isolate, name_of,  # noqa: E402
                                    require_namespaces, wait_until)

ECHO = 7000
API = 8080  # api.listen's default; the network is the test's own
NODE_AT_THE_GUEST = "198.19.0.1"
CONFIG = "/etc/portway/portway.toml"
SECRET = "pwk_" + 64 * "a"
PROGRAMS = {"/usr/bin/portwayd": os.environ["PORTWAY_DAEMON"], "/usr/bin/portway": os.environ["PORTWAY_CLIENT"],
            **{f"/usr/bin/{name}": f"/usr/bin/{name}" for name in ("setpriv", "install", "unshare")}, "/bin/sh": "/bin/dash"}
DOCKERS_OWN = ("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
               "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT")
USERS = "root:x:0:0::/root:/bin/sh\nportway:x:65532:65532::/var/lib/portway:/usr/sbin/nologin\n"
GROUPS = "root:x:0:\nportway:x:65532:\n"


def run_guest():
    """Says whom it sees, then repeats what it gets."""
    listener = socket.create_server(("0.0.0.0", ECHO))
    print("ready", flush=True)
    while True:
        connection, peer = listener.accept()
        with connection, contextlib.suppress(ConnectionResetError):
            connection.sendall(peer[0].encode() + b"\n")
            while data := connection.recv(4096):
                connection.sendall(data)


def run_client():
    """One connection to the port in the first line; then each line goes through it and back."""
    with socket.create_connection((guest.NODE_ADDRESS, int(sys.stdin.readline())), timeout=30) as connection:
        lines = connection.makefile("r")
        print(lines.readline(), end="", flush=True)
        for line in sys.stdin:
            connection.sendall(line.encode())
            print(lines.readline(), end="", flush=True)


def status_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def capabilities_of(pid):
    with open("/usr/include/linux/capability.h", encoding="ascii") as file:
        numbers = re.findall(r"^#define CAP_(\w+)\s+(\d+)$", file.read(), re.MULTILINE)
    held = int(status_of(pid)["CapPrm"], 16)
    return {name for name, number in numbers if held >> int(number) & 1}


def without(command, capabilities):
    """For a machine on which not even root has them, as in a container."""
    for name in capabilities:
        command = [word.replace(f",+{name.lower()}", "") for word in command]
    return command


class Container:
    """A container as Docker or the kubelet would have runc make it: root has the `capabilities`, and another user has none."""

    def __init__(self, directory, command, capabilities, mounts, user, seccomp=None):
        self.directory = directory
        self.name = os.path.basename(directory)
        self.process = None
        root = os.environ.get("PORTWAY_CONTAINER_ROOT") or self.make_root()
        ids = dict(zip(("uid", "gid"), map(int, user.split(":"))))
        missing = set(capabilities) - capabilities_of("self")
        command = without(command, missing)
        held = [f"CAP_{name}" for name in capabilities if name not in missing]
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        spec = {
            "ociVersion": "1.0.2",
            "root": {"path": root, "readonly": True},
            "process": {
                "user": ids, "cwd": "/", "args": command, "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "capabilities": {"bounding": held, **({} if ids["uid"] else {"permitted": held, "effective": held})},
                "noNewPrivileges": True,
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": descriptors, "hard": descriptors}]},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
                *mounts],
            "linux": {
                "cgroupsPath": f"/{self.name}",
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],  # the network is the node's
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
                "seccomp": seccomp or documented.seccomp(),
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]}}
        with open(f"{directory}/config.json", "w", encoding="ascii") as file:
            json.dump(spec, file)

    def make_root(self):
        root = f"{self.directory}/root"
        for folder in ("usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "etc/portway", "var/lib/portway", "run/portway",
                       "run/secrets/portway", "proc", "sys", "dev", "tmp"):
            os.makedirs(f"{root}/{folder}")
        for name in ("bin", "lib", "lib64", "sbin"):
            os.symlink(f"usr/{name}", f"{root}/{name}")
        for name, text in (("passwd", USERS), ("group", GROUPS)):
            with open(f"{root}/etc/{name}", "w", encoding="ascii") as file:
                file.write(text)
        libraries = set()
        for target, source in PROGRAMS.items():
            shutil.copy(source, root + target)
            loaded = subprocess.run(["ldd", source], capture_output=True, text=True, check=True).stdout
            libraries.update(re.findall(r"(?:=> |^\s)(/\S+)", loaded, re.MULTILINE))
        for library in libraries:
            os.makedirs(os.path.dirname(root + library), exist_ok=True)
            shutil.copy(library, root + library)
        return root

    def start(self):
        """In a process namespace that ends with the test, and in it everything that runc has started."""
        with open(f"{self.directory}/log", "ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--", "runc", "--root",
                 f"{self.directory}/state", "run", "--bundle", self.directory, self.name],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)

    def run(self):
        """To its end."""
        self.start()
        return self.process.wait(60)

    def runc(self, *words):
        runc, = children_of(self.process.pid)
        return subprocess.run(["nsenter", "-t", str(runc), "--mount", "--pid", "--", "runc", "--root", f"{self.directory}/state",
                               *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=60, check=False)

    def execute(self, *command, user=None):
        return self.runc("exec", *(["--user", user] if user else []), self.name, *command)

    def supervisor(self):
        """The container's first process."""
        runc, = children_of(self.process.pid)
        inside = int(json.loads(self.runc("state", self.name).stdout)["pid"])
        pid, = [pid for task in os.listdir(f"/proc/{runc}/task") for pid in children_of(runc, task)
                if status_of(pid)["NSpid"].split()[-2:] == [str(inside), "1"]]
        return pid

    def daemons(self):
        return [pid for pid in children_of(self.supervisor()) if name_of(pid) == "portwayd"]

    def output(self):
        with open(f"{self.directory}/log", encoding="utf-8", errors="replace") as log:
            return log.read()

    def end(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.runc("delete", "--force", self.name)
        self.process.kill()
        self.process.wait()


class RunTest(unittest.TestCase):
    def setUp(self):
        require_namespaces("runc", "ldd", "setpriv")
        isolate()
        self.guest = guest.start_guest(__file__)
        self.addCleanup(guest.end, self.guest)
        self.client = guest.start_clients(__file__)
        self.addCleanup(guest.end_clients, self.client)
        self.directory = tempfile.mkdtemp(prefix="portway-container-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.node = f"{self.directory}/node"  # stands for / of the node
        os.mkdir(self.node)
        os.makedirs(f"{self.node}/etc")
        os.makedirs(f"{self.node}/var/lib")
        self.api = Portwayd(start=False)  # for its calls only
        self.api.port = API
        self.addCleanup(self.api.end)

    def make(self, name, *arguments):
        directory = f"{self.directory}/{name}-{os.getpid()}"
        os.mkdir(directory)
        container = Container(directory, *arguments)
        self.addCleanup(container.end)
        return container

    def docker_mounts(self):
        """Those of the `docker run` command, on a node prepared as the document says."""
        for line in re.findall(r"^    (install .*)$", documented.CONTAINERS.read_text(), re.MULTILINE):
            words = [f"{self.node}{word}" if word.startswith("/") else word for word in line.split()]
            subprocess.run(words, cwd=documented.ROOT, check=True)
        self.write_networks(f"{self.node}{CONFIG}")
        self.api.admin_key = lambda: self.read(f"{self.node}/etc/portway/admin.key").strip()
        run = documented.docker_run()
        mounts = []
        for volume in run.options["--volume"]:
            source, target = volume.split(":")
            mounts.append({"destination": target, "type": "bind", "source": self.node + source, "options": ["rbind", "rw"]})
        for tmpfs in run.options["--tmpfs"]:
            target, _, options = tmpfs.partition(":")
            mounts.append({"destination": target, "type": "tmpfs", "source": "tmpfs",
                           "options": ["nosuid", "nodev", "noexec", *filter(None, options.split(","))]})
        return mounts

    def docker_run(self, also=""):
        """`also`: in docs/containers.md's table, what is added for a feature."""
        run = documented.docker_run()
        row = re.search(rf"^\| {re.escape(also)} \|(.*)\|$", documented.CONTAINERS.read_text(), re.MULTILINE)[1] if also else ""
        kept = "".join(f",{names}" for names in re.findall(r"`(\+[^`]*)`", row))
        command = [word + kept if word.startswith(("--inh-caps", "--ambient-caps")) else word for word in run.command()]
        mounts = self.docker_mounts()
        for source, target, propagation in re.findall(r"--volume (\S+?):(\S+?):(\w+)`", row):
            mounts.append({"destination": target, "type": "bind", "source": source, "options": ["rbind", propagation]})
        return self.make("docker", command, run.options["--cap-add"] + re.findall(r"--cap-add (\w+)", row), mounts,
                         run.one("--user"))

    def plain_docker_run(self):
        """Without any option: what the image says, the capabilities that Docker lets a container have, and a seccomp profile that
        refuses io_uring, as Docker's own does."""
        image = documented.dockerfile()[-1]
        user, = [rest for name, rest in image if name == "USER"]
        profile = documented.seccomp()
        profile["syscalls"] = [rule for rule in profile["syscalls"] if "io_uring_setup" not in rule["names"]]
        return self.make("plain", documented.last_of(image, "ENTRYPOINT") + documented.last_of(image, "CMD"), DOCKERS_OWN,
                         self.docker_mounts(), user, profile)

    @staticmethod
    def read(path):
        with open(path, encoding="ascii") as file:
            return file.read()

    @staticmethod
    def write_networks(path):
        text = RunTest.read(path)
        assert "networks = []" in text
        with open(path, "w", encoding="ascii") as file:
            file.write(text.replace("networks = []", 'networks = ["198.18.0.0/15"]'))

    def pod(self):
        """The containers of the DaemonSet's pod: the one that prepares, and the daemon's."""
        spec = documented.manifest_of("DaemonSet")["spec"]["template"]["spec"]
        for name in ("config", "state", "run", "tmp", "admin-key"):
            os.mkdir(f"{self.node}/{name}", 0o755)
        for name in ("run", "tmp"):
            os.chmod(f"{self.node}/{name}", 0o777)  # as the kubelet makes an emptyDir
        with open(f"{self.node}/config/portway.toml", "w", encoding="ascii") as file:
            file.write(documented.manifest_of("ConfigMap")["data"]["portway.toml"])
        with open(f"{self.node}/admin-key/admin.key", "w", encoding="ascii") as file:
            file.write(SECRET)
        os.chmod(f"{self.node}/admin-key/admin.key", 0o400)
        self.api.admin_key = lambda: SECRET
        made = []
        for each in (*spec["initContainers"], *spec["containers"]):
            context = each["securityContext"]
            mounts = [{"destination": mount["mountPath"], "type": "bind", "source": f"{self.node}/{mount['name']}",
                       "options": ["rbind", "ro" if mount.get("readOnly") else "rw"]} for mount in each["volumeMounts"]]
            made.append(self.make(each["name"], each["command"] + each.get("args", []), context["capabilities"]["add"], mounts,
                                  f"{context['runAsUser']}:{context['runAsGroup']}"))
        return made

    def start(self, container):
        container.start()
        self.assertTrue(wait_until(lambda: container.process.poll() is not None or self.answers()), container.output())
        self.assertIsNone(container.process.poll(), container.output())

    def answers(self):
        self.api.close_connection()
        try:
            return self.api.call("GET", "/healthz", key=None).status == 200
        except OSError:
            return False

    def forward(self, seen_as=guest.CLIENT_ADDRESS, **instance):
        """Its id; the client has a connection through it, and the guest sees it come from that address."""
        put = self.api.put_instance("vm-1", tap="tap0", **instance)
        self.assertIn(put.status, (200, 201), put)
        made = self.api.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO})
        self.assertEqual(made.status, 201, made)
        self.client.stdin.write(f"{made.json()['port_forward']['host_port']}\n")
        self.client.stdin.flush()
        self.assertEqual(self.client.stdout.readline().strip(), seen_as)
        return made.json()["port_forward"]["id"]

    def echoes(self, text):
        self.client.stdin.write(f"{text}\n")
        self.client.stdin.flush()
        self.assertEqual(self.client.stdout.readline().strip(), text)

    def runs_with(self, backend, source_mode):
        node = self.api.call("GET", "/v1/info").json()
        self.assertEqual((node["io_backend"], node["source_mode"]), (backend, source_mode), node)

    def has_everything(self, container):
        self.runs_with("uring", "transparent")
        held = (set(documented.docker_run().options["--cap-add"]) & capabilities_of("self")) - {"SETUID"}
        for pid in (container.supervisor(), *container.daemons()):
            status = status_of(pid)
            self.assertEqual(set(status["Uid"].split()) | set(status["Gid"].split()), {"65532"})
            self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))
            # The daemon may have given up some by itself; it never has more.
            self.assertLessEqual(capabilities_of(pid), held)
        self.assertEqual(capabilities_of(container.supervisor()), held)

    def test_docker_run(self):
        container = self.docker_run()
        self.start(container)
        self.has_everything(container)
        forward = self.forward()
        for method, word in (("GET", "check"), ("POST", "capture?seconds=1")):
            answer = self.api.call(method, f"/instances/vm-1/port-forwards/{forward}/{word}")
            self.assertEqual(answer.status, 200, answer)
        done = container.execute(*documented.health_check())
        self.assertEqual(done.returncode, 0, done.stdout)
        done = container.execute("/usr/bin/portway", "--key-file", "/etc/portway/admin.key", "node", "status", user="65532")
        self.assertEqual(done.returncode, 0, done.stdout)

        with self.subTest("a crash and an upgrade inside the container"):
            for number in ("KILL", "USR2"):
                self.echoes(f"before {number}")
                before = container.daemons()
                target = container.supervisor() if number == "USR2" else before[0]
                subprocess.run(["kill", f"-{number}", str(target)], check=True)
                self.assertTrue(wait_until(lambda: not set(before) & set(container.daemons()) and self.answers()),
                                container.output())
                self.echoes(f"after {number}")
            self.has_everything(container)

        with self.subTest("what is not allowed"):
            for command in ("echo > /usr/bin/x", "echo > /etc/x", "unshare --user true", "unshare --net true"):
                self.assertNotEqual(container.execute("/bin/sh", "-c", command).returncode, 0, command)

        self.client.stdin.close()
        container.runc("kill", container.name, "TERM")
        self.assertEqual(container.process.wait(60), 0, container.output())

    def test_a_guest_in_a_network_namespace(self):
        name = f"portway-{os.getpid()}"
        guest.ip("netns", "add", name)
        self.addCleanup(guest.ip, "netns", "delete", name)
        guest.ip("link", "set", "tap0", "netns", name)
        for words in (("address", "add", f"{NODE_AT_THE_GUEST}/24", "dev", "tap0"), ("link", "set", "tap0", "up"),
                      ("link", "set", "lo", "up")):
            guest.ip("-n", name, *words)
        self.start(self.docker_run(also="guests in network namespaces (`netns`, `tap_netns`)"))
        self.forward(netns=f"/run/netns/{name}")
        self.echoes("hello")

    def test_the_image_without_options(self):
        container = self.plain_docker_run()
        self.start(container)
        self.runs_with("epoll", "plain")
        self.assertEqual(capabilities_of(container.supervisor()), set())
        self.forward(seen_as=NODE_AT_THE_GUEST)
        self.echoes("hello")
        done = container.execute(*documented.health_check())
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_the_pod(self):
        prepare, daemon = self.pod()
        for _ in range(2):  # a pod that is replaced finds what the one before left
            self.assertEqual(prepare.run(), 0, prepare.output())
            key = os.stat(f"{self.node}/run/admin.key")
            self.assertEqual((key.st_uid, key.st_gid, key.st_mode & 0o7777), (65532, 65532, 0o600))
            state = os.stat(f"{self.node}/state")
            self.assertEqual((state.st_uid, state.st_gid, state.st_mode & 0o7777), (65532, 65532, 0o750))
        self.start(daemon)
        self.has_everything(daemon)
        self.forward()
        self.echoes("hello")
        spec = documented.manifest_of("DaemonSet")["spec"]["template"]["spec"]["containers"][0]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            done = daemon.execute(*spec[probe]["exec"]["command"])
            self.assertEqual(done.returncode, 0, f"{probe}: {done.stdout}")
        reload = re.search(r"POD -- (setpriv .*)$", documented.CONTAINERS.read_text(), re.MULTILINE)[1]
        done = daemon.execute("/bin/sh", "-c", reload)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertTrue(wait_until(lambda: "configuration reloaded" in daemon.output()), daemon.output())


class TraceTest(unittest.TestCase):
    def test_every_call_of_a_daemon_is_in_the_profile(self):
        """Also those whose refusal it would put up with."""
        require_namespaces("strace")
        isolate()
        calls = self.enterContext(tempfile.TemporaryDirectory()) + "/calls"
        node = self.enterContext(Portwayd(start=False))
        node.start(wrapper=("strace", "-D", "-f", "-qq", "-c", "-U", "name,calls", "-o", calls))
        node.put_instance("vm-1", tap="tap0")
        made = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": ECHO}).json()["port_forward"]
        node.call("GET", f"/instances/vm-1/port-forwards/{made['id']}/check")
        node.call("POST", f"/instances/vm-1/port-forwards/{made['id']}/capture?seconds=1")
        node.call("GET", "/metrics")
        self.assertEqual(node.stop(), 0)
        self.assertTrue(wait_until(lambda: os.path.exists(calls) and "\ntotal" in self.text(calls)))
        used = set(re.findall(r"^ *(\w+) +\d+$", self.text(calls), re.MULTILINE)) - {"total"}
        self.assertLessEqual({"io_uring_enter", "bpf", "clone"}, used)
        self.assertEqual(used - documented.allowed_calls() - {"clone3"}, set())

    @staticmethod
    def text(path):
        with open(path, encoding="ascii") as file:
            return file.read()


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("--guest", "--clients"):
        {"--guest": run_guest, "--clients": run_client}[sys.argv[1]]()
    else:
        unittest.main()

"""The real portwayd for tests in Python: started on a directory of its own, asked over HTTP, killed and started again.

A test calls isolate() first: it then runs in a network namespace of its own, in which tap0 and tap1 stand for guests' taps.
Everything that a test starts ends with it, whatever way it ends.
"""
import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import re
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
START_TIMEOUT_S = 60
LISTENS = r"listens on http://[^\s,]*:(\d+)[,\n]"  # also a gateway
ADMIN = "admin"  # stands for the admin key of the daemon's own file

_libc = ctypes.CDLL(None, use_errno=True)


def require_namespaces(*tools):
    """Skips the test where namespaces cannot be made, or one of the programs is missing; on CI that is a failure."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if os.geteuid() == 0 and not missing:
        return
    reason = f"there is no {', '.join(missing)}" if missing else "network namespaces need root: run the tests with sudo"
    if "CI" in os.environ:
        raise AssertionError(reason)
    raise unittest.SkipTest(reason)


def die_with_parent():
    """For preexec_fn: the process does not outlive the test, however that ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def isolate():
    require_namespaces()
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # for what a daemon starts: its keeper, and the next one
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for i in (0, 1):
        subprocess.run(["ip", "link", "add", f"tap{i}", "type", "veth", "peer", "name", f"guest{i}"], check=True)
        for device in (f"tap{i}", f"guest{i}"):
            subprocess.run(["ip", "link", "set", device, "up"], check=True)


def hold_tap(name):
    """A machine's end of a persistent tap: the tap has a carrier while the descriptor is open."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body.decode(errors='replace')}"


class UnixConnection(http.client.HTTPConnection):
    """To an HTTP server at a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)  # blocking: with a timeout it would not wait for room in the backlog
        self.sock.settimeout(30)


class Portwayd:
    """Running when the constructor returns, unless `start` is False. With a `config` its guests.networks are what that text
    says, and write_config() and SIGHUP can change them. A context."""

    tries_forbidden_calls = False  # a test that wants them refused sets it

    def __init__(self, *settings, start=True, config=None):
        self.directory = tempfile.mkdtemp(prefix="portway-test-")
        self.config = config
        if config is not None:
            self.write_config(config)
        self.settings = [
            "node.public_hostname=compute-1.test", "node.public_addresses=127.0.0.1", "api.listen=127.0.0.1:0",
            "api.rate_limit_per_second=0", f"api.admin_key_file={self.directory}/admin.key",
            f"store.path={self.directory}/portway.db", "proxy.workers=1",
            *([] if config is not None else ["guests.networks=198.18.0.0/15"]), *settings]
        self.program = os.environ["PORTWAY_DAEMON"]
        self.process = None
        self.connection = None
        if start:
            self.start()

    def start(self, environment=None, stderr=None, port=None, wrapper=(), arguments=()):
        """Raises Ended when it ends before it is ready. With a descriptor for its log, `port` is where its API listens. The
        command `wrapper` starts it, if there is one, with more `arguments`."""
        ready_path = f"{self.directory}/notify"
        if os.path.exists(ready_path):
            os.unlink(ready_path)
        with contextlib.ExitStack() as stack:
            ready = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            ready.bind(ready_path)
            log = stack.enter_context(open(f"{self.directory}/log", "ab"))
            began = log.tell()
            command = [*wrapper, self.program, *(f"--set={setting}" for setting in self.settings), *arguments]
            if self.config is not None:
                command.append(f"--config={self.directory}/portway.toml")
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log if stderr is None else stderr, cwd=self.directory,
                preexec_fn=die_with_parent,
                env={**os.environ, "NOTIFY_SOCKET": ready_path, **(environment or {})})
            pidfd = os.pidfd_open(self.process.pid)
            events = readable([ready, pidfd], START_TIMEOUT_S)
            os.close(pidfd)

            def printed():
                # By a descriptor of its own: the daemon moves the offset of the one that it shares.
                with open(f"{self.directory}/log", "rb") as file:
                    file.seek(began)
                    return file.read().decode()

            if ready not in events:
                self.kill()
                raise Ended(f"portwayd did not become ready:\n{printed()}")
            self.port = port
            if port is not None:
                return
            # The log is written by a thread of its own, soon.
            said = re.compile(LISTENS)
            assert wait_until(lambda: said.search(printed()) or self.process.poll() is not None), printed()
            if not said.search(printed()):
                self.kill()
                raise Ended(f"portwayd ended when it was ready:\n{printed()}")
            self.port = int(said.search(printed())[1])

    def write_config(self, text):
        with open(f"{self.directory}/portway.toml", "w", encoding="utf-8") as file:
            file.write(text)

    def reload(self):
        """Returns when SIGHUP has been followed."""
        done = self.output().count("configuration reloaded")
        self.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: self.output().count("configuration reloaded") > done)

    def kill(self):
        self.close_connection()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def kill_and_start(self):
        self.kill()
        self.start()

    def upgrade(self, ask=None):
        """By SIGUSR2, unless `ask` asks for it in another way; returns when another process has taken over. This one's end is
        the next one's orphan: end() finds it."""
        begun = self.begun()
        if ask is None:
            self.process.send_signal(signal.SIGUSR2)
        else:
            ask()
        self.process.wait(60)
        assert wait_until(lambda: self.begun() > begun), self.output()
        took = int(re.findall(r"upgrade: process (\d+) takes over", self.output())[-1])
        assert took != self.process.pid
        self.adopt(took)

    def begun(self):
        """How often it, or a successor, has begun to listen."""
        return self.output().count("listens on http://")

    def adopt(self, pid):
        """Another process is the daemon now."""
        self.process = Adopted(pid)
        self.find_port()

    def find_port(self):
        """Of the daemon that has begun last."""
        self.port = int(re.findall(LISTENS, self.output())[-1])
        self.close_connection()

    def daemon_below(self):
        """With --supervise, the process that is the daemon now; None: there is none at the moment."""
        return next((child for child in children_of(self.process.pid) if name_of(child) == "portwayd"), None)

    def stop(self, number=signal.SIGTERM):
        self.close_connection()
        self.process.send_signal(number)
        return self.process.wait(60)

    def output(self):
        with open(f"{self.directory}/log", "rb") as log:
            return log.read().decode(errors="replace")

    def admin_key(self):
        with open(f"{self.directory}/admin.key", encoding="ascii") as file:
            return file.read().strip()

    def close_connection(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def call(self, method, target, body=None, key=ADMIN, headers=None):
        """`body` is sent as JSON, or as it is when it is bytes. One connection is kept open for all calls."""
        headers = dict(headers or {})
        if key:
            headers["Authorization"] = f"Bearer {self.admin_key() if key == ADMIN else key}"
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            self.connection.request(method, target, data, headers)
            response = self.connection.getresponse()
            answer = Answer(response.status, response.getheaders(), response.read())
        except (OSError, http.client.HTTPException):
            self.close_connection()
            raise
        return answer

    def send(self, data, finish=True):
        """Bytes as they are on a connection of their own; returns it."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        if finish:
            connection.shutdown(socket.SHUT_WR)
        return connection

    def put_instance(self, name, **fields):
        return self.call("PUT", f"/instances/{name}",
                         {"guest_address": "198.19.0.2", "tap": f"t-{name}", "owner": "alice", **fields})

    def tenant_key(self, owner="alice"):
        return self.call("POST", "/api-keys", {"role": "tenant", "owner": owner}).json()["secret"]

    def end(self):
        """Nothing is left of it: its keeper goes first, which would wait for the next one, and its supervisor before the
        daemon, which it would start again."""
        below = descendants_of(self.process.pid) if self.process is not None else []
        keepers = {each for each in below if name_of(each) == "portway-keeper"}.union(self.keepers())
        end_all(keepers)
        self.kill()
        end_all(set(below).union(self.keepers()).difference(keepers))
        started = os.path.exists(f"{self.directory}/log")
        refused = re.findall(r".* was refused \w+\(2\)", self.output()) if started else []
        shutil.rmtree(self.directory)
        # Whatever else a test looks at: the lists of calls are derived from the suite, and this says what they lack.
        assert self.tries_forbidden_calls or not refused, refused

    def keepers(self):
        """Also those of daemons that have died: they are whoever's children now, and may use the directory."""
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
                if name_of(pid) == "portway-keeper" and working_directory_of(pid) == self.directory]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and not issubclass(kind, unittest.SkipTest):
            print(f"--- portwayd printed:\n{self.output()}---")
        self.end()


class Adopted:
    """As subprocess.Popen, of a process that another one has started; it became this process's child when that one ended."""

    def __init__(self, pid):
        self.pid = pid
        self.returncode = None

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid != 0:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=60):
        assert wait_until(lambda: self.poll() is not None, timeout)
        return self.returncode


def readable(files, seconds):
    """Which of them are; also with descriptors that are too high for select(2)."""
    with selectors.DefaultSelector() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(seconds)]


def children_of(pid, thread=None):
    """Those that one thread has started, the first one unless another is named."""
    try:
        with open(f"/proc/{pid}/task/{thread or pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def descendants_of(pid):
    below = children_of(pid)
    return below + [each for child in below for each in descendants_of(child)]


def name_of(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="ascii") as file:
        return file.read().strip()
    return None


def working_directory_of(pid):
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd")
    return None


def end_all(pids):
    """Returns when they have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            signal.pidfd_send_signal(process, signal.SIGKILL)
            readable([process], START_TIMEOUT_S)
            os.close(process)


class Ended(Exception):
    """The daemon is gone."""


def read_answer(connection):
    """The next answer on a connection of send()."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, response.getheaders(), response.read())


def wait_until(condition, seconds=30):
    """For changes that no event reports."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True

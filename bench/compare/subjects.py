"""The forwarders that are compared: how each is configured, started and checked, one worker thread each.

A subject serves the load server's three ports at its site (network.py). start(), facts() and stop() are called in the
namespace of the site's host.
"""
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import network

SERVICES = {"sink": 7000, "source": 7001, "echo": 7002}  # ports of the load server in the guest
PUBLIC_PORTS = {"sink": 8000, "source": 8001, "echo": 8002}
FIRST_IDLE_PORT = 20000  # of the subjects that do not choose ports themselves
START_TIMEOUT_S = 30
OTHER_DESCRIPTORS = 500  # that a proxy needs besides those of its connections and forwards
CPU_CONTROLLER = "/sys/fs/cgroup/cpu"  # cgroup v1


def printed_by(*command):
    """The lines of both its streams."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.strip().split("\n")


class SubjectError(Exception):
    pass


class Subject:
    """Base: nothing runs, clients reach the guest by the route through the host."""

    name = "direct"
    title = "direct route"
    program = None  # what must be installed
    idle_forwards = 0  # a descriptor each
    descriptors_per_connection = 2
    accounted = False  # its own CPU time is known
    site = None  # where it runs

    def __init__(self, options):
        self.options = options

    def missing(self):
        """Why the subject cannot be run here; None when it can."""
        if self.program and not shutil.which(self.program):
            return f"{self.program} is not installed"
        return None

    def version(self):
        return ""

    def connections_allowed(self, descriptors):
        return (descriptors - OTHER_DESCRIPTORS - self.idle_forwards) // self.descriptors_per_connection

    def start(self, connections_max):
        pass

    def stop(self):
        pass

    def target(self, service):
        return f"{self.site.guest_address}:{SERVICES[service]}"

    def pids(self):
        return []

    def facts(self):
        """What the subject says of itself after a run, for the results file."""
        return {}

    def check(self, kind, facts):
        """A sentence when the facts show that a run of this kind was not what it should be."""
        return None


class Process(Subject):
    """A subject that is a process with a config file."""

    accounted = True

    def __init__(self, options):
        super().__init__(options)
        self.process = None

    def target(self, service):
        return f"{self.site.public}:{PUBLIC_PORTS[service]}"

    def forwards(self):
        """(port, port of the guest) of each, the idle ones included."""
        return [(port, SERVICES[service]) for service, port in PUBLIC_PORTS.items()] + [
            (FIRST_IDLE_PORT + number, SERVICES["echo"]) for number in range(self.idle_forwards)]

    def path(self, name):
        return os.path.join(self.options.scratch, f"{self.name}-{name}")

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)

    def launch(self, *command, **environment):
        with open(self.path("log"), "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**os.environ, **environment})

    def wait_until(self, ready, what):
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if self.process.poll() is not None:
                raise SubjectError(f"{self.name} ended at once:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise SubjectError(f"{self.name}: {what} within {START_TIMEOUT_S} s:\n{self.log_tail()}")
            time.sleep(0.02)

    def log_tail(self):
        with open(self.path("log"), encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-10:])

    def wait_for_ports(self):
        # A look at the listening sockets: a probing connection would already be load.
        wanted = {f":{port:04X}" for port in PUBLIC_PORTS.values()}

        def listening():
            with open("/proc/net/tcp", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
            return wanted <= {row[1][-5:] for row in rows if row[3] == "0A"}

        self.wait_until(listening, "is not listening")

    def stop(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def pids(self):
        """The process and its descendants."""
        parents = {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
        family = [self.process.pid]
        for pid in family:
            family += [child for child, parent in parents.items() if parent == pid]
        return family


class Portway(Process):
    backend = "uring"
    api = "127.0.0.1:8080"
    range = network.FORWARD_PORTS
    source_mode = "plain"
    forward_options = {}  # of those that are used
    workers = None  # other than the comparison's

    def __init__(self, options):
        super().__init__(options)
        self.targets = {}
        self.held = []  # cgroups of its workers
        self.idle_forwards = max(self.idle_forwards, options.forwards - len(SERVICES))

    @property
    def program(self):
        return self.options.portwayd

    def version(self):
        return printed_by(self.program, "--version")[0]

    def connections_allowed(self, descriptors):
        """It keeps an eighth of a small limit for listeners and other descriptors, and of the rest an eighth for pipes."""
        kept = descriptors // 8
        listeners_beyond = max(0, self.idle_forwards + len(SERVICES) - max(0, kept - 1024))
        return min(super().connections_allowed(descriptors), (descriptors - kept) * 7 // 16 - (listeners_beyond + 1) // 2)

    def more_of_guests(self):
        """More lines of [guests]."""
        return ""

    def place(self):
        """Where the guest is, if not behind its tap in the node's namespace."""
        return {}

    def start(self, connections_max):
        for leftover in ("store.db", "admin.key"):
            if os.path.exists(self.path(leftover)):
                os.unlink(self.path(leftover))
        config = self.write("portway.toml", f"""
[node]
public_hostname = "benchmark"
public_addresses = {json.dumps([address.strip("[]") for address in self.site.public_addresses()])}
[api]
listen = "{self.api}"
admin_key_file = "{self.path('admin.key')}"
rate_limit_per_second = 0
[ports]
range = "{self.range}"
[guests]
networks = ["198.19.0.0/16"]
{self.more_of_guests()}[store]
path = "{self.path('store.db')}"
[proxy]
workers = {self.workers or self.options.workers}
io_backend = "{self.backend}"
source_mode = "{self.source_mode}"
connections_max = {connections_max}
[profiles.default]
max_forwarded_ports = 20000
""")
        # One guest has all the load. By the environment, since an older build to compare with does not know the key.
        self.launch(self.program, "--config", config, PORTWAY_PROXY_INSTANCE_SHARE_PERCENT="100")
        self.wait_until(self._healthy, "does not answer /healthz")
        with open(self.path("admin.key"), encoding="ascii") as file:
            self.key = file.read().strip()
        self.call("PUT", "/instances/guest", {"guest_address": self.site.guest_address, "tap": network.GUEST_DEVICE,
                                              "owner": "benchmark"} | self.place())
        for service, port in SERVICES.items():
            request = {"guest_port": port, "label": service} | self.forward_options
            answer = self.call("POST", "/instances/guest/port-forwards", request)
            self.targets[service] = f"{self.site.public}:{answer['port_forward']['host_port']}"
        instance = "guest"
        if self.site.idle_guest_address:
            instance = "idle"
            self.call("PUT", "/instances/idle",
                      {"guest_address": self.site.idle_guest_address, "tap": network.IDLE_DEVICE, "owner": "benchmark"})
        idle = self.idle_forwards
        while idle > 0:
            batch = [{"guest_port": SERVICES["echo"]}] * min(idle, 1000)
            self.call("POST", f"/instances/{instance}/port-forwards:batch", {"port_forwards": batch})
            idle -= len(batch)

        if self.options.hold:
            self.hold_workers()

    def hold_workers(self):
        """Each to a share of a processor, by the cpu controller: what more workers add shows where the load needs all cores."""
        for task in glob.glob(f"/proc/{self.process.pid}/task/*"):
            with open(f"{task}/comm", encoding="ascii") as file:
                if not file.read().startswith("worker-"):
                    continue
            thread = os.path.basename(task)
            self.held.append(f"{CPU_CONTROLLER}/portway-bench-{self.name}-{thread}")
            os.mkdir(self.held[-1])
            for name, value in (("cpu.cfs_period_us", 10_000), ("cpu.cfs_quota_us", 100 * self.options.hold), ("tasks", thread)):
                with open(f"{self.held[-1]}/{name}", "w", encoding="ascii") as file:
                    file.write(str(value))

    def stop(self):
        super().stop()
        for group in self.held:
            os.rmdir(group)
        self.held = []

    def target(self, service):
        return self.targets[service]

    def scrape(self):
        self.request("GET", "/metrics")

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def facts(self):
        wanted = ("portway_pipes_in_use", "portway_pipes_open", "portway_pipes_clamped", "portway_bytes_spliced_total",
                  "portway_bytes_copied_total", "portway_connections_active", "portway_io_backend_info",
                  "portway_source_mode_connections_total")
        lines = self.request("GET", "/metrics").decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if line.startswith(wanted))

    def check(self, kind, facts):
        if not any(f'backend="{self.backend}"' in name for name in facts):
            return f"{self.name} does not run on {self.backend}"
        if not any(f'mode="{self.source_mode}",fallback=""' in name and int(count) > 0 for name, count in facts.items()):
            return f"{self.name} does not run with source_mode {self.source_mode}"
        if kind == "idle" and facts["portway_pipes_in_use"] != "0":
            return f"idle connections hold {facts['portway_pipes_in_use']} pipes"
        return None

    def _healthy(self):
        try:
            self.key = ""
            self.request("GET", "/healthz")
            return True
        except OSError:
            return False

    def call(self, method, path, body):
        try:
            return json.loads(self.request(method, path, body))
        except urllib.error.HTTPError as error:
            raise SubjectError(f"{self.name}: {method} {path}: {error.read().decode()}") from error

    def request(self, method, path, body=None):
        request = urllib.request.Request(f"http://{self.api}{path}", method=method,
                                         data=None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as answer:
            return answer.read()


class PortwayUring(Portway):
    name = "portway-uring"
    title = "Portway, io_uring"


class PortwayTransparent(Portway):
    name = "portway-transparent"
    title = "Portway, io_uring, transparent"
    source_mode = "transparent"


class PortwayNetns(Portway):
    name = "portway-netns"
    title = "Portway, io_uring, the guest's tap in a namespace"
    netns = None

    def more_of_guests(self):
        return f'netns_directories = ["{self.options.scratch}"]\n'

    def place(self):
        self.netns = network.Namespace()
        self.site.move_guest_link(self.netns)
        with open(self.path("netns"), "w", encoding="ascii"):
            subprocess.run(["mount", "--bind", self.netns.path(), self.path("netns")], check=True)
        return {"netns": self.path("netns")}

    def stop(self):
        super().stop()
        if self.netns is not None:
            subprocess.run(["umount", self.path("netns")], check=True)
            self.netns.close()
            self.netns = None


class PortwayNetnsTransparent(PortwayNetns):
    name = "portway-netns-transparent"
    title = "Portway, io_uring, transparent, the guest's tap in a namespace"
    source_mode = "transparent"


class PortwayTwoWorkers(Portway):
    name = "portway-2-workers"
    title = "Portway, io_uring, 2 workers"
    workers = 2


class Portway1000(Portway):
    name = "portway-1000"
    title = "Portway, io_uring, 1,000 idle forwards"
    idle_forwards = 1_000


class Portway10000(Portway):
    name = "portway-10000"
    title = "Portway, io_uring, 10,000 idle forwards"
    idle_forwards = 10_000


class PortwayEpoll(Portway):
    name = "portway-epoll"
    title = "Portway, epoll"
    backend = "epoll"


class OtherPortway(Portway):
    """Another build, as compare.py's --other says."""

    def __init__(self, options, name, program, backend):
        super().__init__(options)
        self.name, self.title, self.backend = name, f"Portway {name}, {backend}", backend
        self.other_program = program

    @property
    def program(self):
        return self.other_program


class Haproxy(Process):
    name = "haproxy"
    title = "HAProxy"
    program = "haproxy"
    # `option splice-auto` never engages on such streams: only the two explicit options make HAProxy splice.
    splice_options = ""
    maxpipes = 0

    def __init__(self, options):
        super().__init__(options)
        self.older = []  # that had to go, and do when their connections have ended

    def version(self):
        return printed_by("haproxy", "-v")[0]

    def command(self):
        return "haproxy", "-db", "-f", self.path("haproxy.cfg")

    def start(self, connections_max):
        # HAProxy refuses to start when two descriptors a connection and two a pipe exceed RLIMIT_NOFILE.
        config = f"""
global
    nbthread {self.options.workers}
    maxconn {connections_max}
    {f"maxpipes {self.maxpipes}" if self.maxpipes else ""}
    stats socket {self.path('socket')} level admin
defaults
    mode tcp
    maxconn {connections_max}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    {self.splice_options}
"""
        for number, (port, guest_port) in enumerate(self.forwards()):
            binds = "".join(f"    bind {address}:{port}\n" for address in self.site.public_addresses())
            config += f"listen forward{number}\n{binds}    server guest {self.site.guest_address}:{guest_port}\n"
        self.write("haproxy.cfg", config)
        self.launch(*self.command())
        self.wait_for_ports()

    def ask(self, command):
        with socket.socket(socket.AF_UNIX) as stats:
            stats.connect(self.path("socket"))
            stats.sendall(command)
            return b"".join(iter(lambda: stats.recv(65536), b"")).decode()

    def scrape(self):
        self.ask(b"show stat\n")

    def reload(self):
        """A new process, as its master would start it; the old one keeps its connections."""
        self.older.append(self.process)
        self.launch(*self.command(), "-sf", str(self.process.pid))

    def stop(self):
        super().stop()
        for self.process in self.older:
            super().stop()
        self.older = []

    def facts(self):
        info = dict(line.split(": ", 1) for line in self.ask(b"show info\n").splitlines() if ": " in line)
        wanted = ("Maxconn", "Maxpipes", "PipesUsed", "PipesFree", "TotalSplicdedBytesOut")
        return {key: info.get(key) for key in wanted}

    def spliced(self, facts):
        return int(facts["TotalSplicdedBytesOut"]) > 0  # spelt so by HAProxy itself

    def check(self, kind, facts):
        return f"{self.name} spliced" if self.spliced(facts) else None


class HaproxySplice(Haproxy):
    name = "haproxy-splice"
    title = "HAProxy, splicing forced"
    splice_options = "option splice-request\n    option splice-response"
    maxpipes = 100  # more than any load here splices at a time

    def check(self, kind, facts):
        return f"{self.name} did not splice" if kind == "bulk" and not self.spliced(facts) else None


class Nginx(Process):
    name = "nginx"
    title = "nginx stream"
    program = "nginx"
    module = "/usr/lib/nginx/modules/ngx_stream_module.so"

    def missing(self):
        if not os.path.exists(self.module):
            return "libnginx-mod-stream is not installed"
        return super().missing()

    def version(self):
        return printed_by("nginx", "-v")[0]

    def start(self, connections_max):
        servers = "".join(f"""
    server {{
        {" ".join(f"listen {address}:{port} backlog=4096;" for address in self.site.public_addresses())}
        proxy_pass {self.site.guest_address}:{guest_port};
        proxy_timeout 1h;
    }}""" for port, guest_port in self.forwards())
        config = self.write("nginx.conf", f"""
load_module {self.module};
daemon off;
worker_processes {self.options.workers};
pid {self.path('pid')};
error_log stderr error;
events {{ worker_connections {2 * connections_max + 2 * self.idle_forwards + 100}; }}
stream {{{servers}
}}
""")
        self.launch("nginx", "-e", "stderr", "-c", config)
        self.wait_for_ports()

    def reload(self):
        self.process.send_signal(signal.SIGHUP)


class PerPort(Process):
    """A program that serves one port: one process for each service."""

    def __init__(self, options):
        super().__init__(options)
        self.processes = []

    def command(self, service):
        raise NotImplementedError

    def start(self, connections_max):
        for service in SERVICES:
            self.launch(*self.command(service))
            self.processes.append(self.process)
        self.wait_for_ports()

    def stop(self):
        for self.process in self.processes:
            super().stop()
        self.processes = []

    def pids(self):
        family = []
        for self.process in self.processes:
            family += super().pids()
        return family


class SocketProxyd(PerPort):
    name = "socket-proxyd"
    title = "systemd-socket-proxyd"
    descriptors_per_connection = 6  # two sockets and two pipes
    program = "systemd-socket-activate"
    proxyd = "/usr/lib/systemd/systemd-socket-proxyd"

    def version(self):
        return printed_by(self.proxyd, "--version")[0]

    def command(self, service):
        return ("systemd-socket-activate", "-l", f"{self.site.public}:{PUBLIC_PORTS[service]}", self.proxyd,
                "--connections-max=20000", f"{self.site.guest_address}:{SERVICES[service]}")


class DockerProxy(PerPort):
    name = "docker-proxy"
    title = "docker-proxy"
    descriptors_per_connection = 6  # two sockets and, since Go splices, two pipes
    program = "docker-proxy"  # of package docker.io

    def launch(self, *command):
        # It notifies its parent on descriptor 3 when it listens.
        reader, writer = os.pipe()
        with open(self.path("log"), "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(3,),
                                            preexec_fn=lambda: os.dup2(writer, 3))
        os.close(reader)
        os.close(writer)

    def command(self, service):
        return ("docker-proxy", "-proto", "tcp", "-host-ip", self.site.public, "-host-port",
                str(PUBLIC_PORTS[service]), "-container-ip", self.site.guest_address, "-container-port", str(SERVICES[service]))


class Socat(PerPort):
    name = "socat"
    title = "socat (a process a connection)"
    accounted = False  # processes come and go
    program = "socat"

    def version(self):
        return printed_by("socat", "-V")[1]

    def command(self, service):
        return ("socat", f"TCP-LISTEN:{PUBLIC_PORTS[service]},bind={self.site.public},fork,reuseaddr,backlog=4096,nodelay",
                f"TCP:{self.site.guest_address}:{SERVICES[service]},nodelay")


class RootlessKit(Process):
    """Its builtin driver connects from a network namespace that it makes itself, so that one gets the link to the guest.

    Its network driver, slirp4netns, must be there but carries nothing."""

    name = "rootlesskit"
    title = "RootlessKit, builtin driver"
    descriptors_per_connection = 8  # as docker-proxy, and the guest's socket comes from another process
    program = "rootlesskit"

    def missing(self):
        if not shutil.which("slirp4netns"):
            return "slirp4netns is not installed"
        return super().missing()

    def version(self):
        return printed_by("rootlesskit", "--version")[0]

    def start(self, connections_max):
        # It wants identifiers for its user namespace: in our own mount namespace, so in nobody else's files.
        identifiers = self.write("identifiers", "root:100000:65536\n")
        for file in ("/etc/subuid", "/etc/subgid"):
            subprocess.run(["mount", "--bind", identifiers, file], check=True)
        published = [f"--publish={self.site.public}:{port}:{self.site.guest_address}:{SERVICES[service]}/tcp"
                     for service, port in PUBLIC_PORTS.items()]
        try:
            self.launch("rootlesskit", f"--state-dir={self.path('state')}", "--net=slirp4netns", "--disable-host-loopback",
                        "--copy-up=/etc", "--port-driver=builtin", *published, "sleep", "infinity")
            self.wait_for_ports()
        finally:
            for file in ("/etc/subuid", "/etc/subgid"):
                subprocess.run(["umount", file], check=True)
        with open(os.path.join(self.path("state"), "child_pid"), encoding="ascii") as file:
            inner = network.Namespace(int(file.read()))
        self.site.move_guest_link(inner)
        inner.close()


class Bare(Process):
    name = "bare"
    title = "bare relay loop"

    def start(self, connections_max):
        forwards = [f"--forward={port}={self.site.guest_address}:{SERVICES[service]}" for service, port in PUBLIC_PORTS.items()]
        self.launch(self.options.load, "relay", *forwards)
        self.wait_for_ports()


class NftDnat(Subject):
    name = "nft-dnat"
    title = "nft DNAT (kernel)"
    program = "nft"

    def version(self):
        return printed_by("nft", "--version")[0]

    def start(self, connections_max):
        rules = "".join(f"ip daddr {self.site.public} tcp dport {port} dnat to {self.site.guest_address}:{SERVICES[service]}\n"
                        for service, port in PUBLIC_PORTS.items())
        table = f"table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat\n{rules} }}\n }}\n"
        loaded = subprocess.run(["nft", "-f", "-"], input=table, capture_output=True, text=True, check=False)
        if loaded.returncode != 0:
            raise SubjectError(f"nft: {loaded.stderr.strip()}")
        # Ended connections must not fill the conntrack table.
        with open("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", "w", encoding="ascii") as file:
            file.write("1")

    def target(self, service):
        return f"{self.site.public}:{PUBLIC_PORTS[service]}"


ALL = [Subject, NftDnat, Bare, PortwayUring, PortwayTwoWorkers, Portway1000, Portway10000, PortwayTransparent, PortwayNetns,
       PortwayNetnsTransparent, PortwayEpoll, HaproxySplice, Haproxy, Nginx, SocketProxyd, DockerProxy,
       Socat, RootlessKit]

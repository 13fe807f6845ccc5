"""Sessions of real services outlive their daemon, killed or upgraded: a PostgreSQL transaction, and SSH."""
import concurrent.futures
import glob
import os
import random
import select
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support import guest  # noqa: E402
from tests.support.portwayd import Portwayd, die_with_parent, isolate, require_namespaces, wait_until  # noqa: E402

POSTGRES, SSH = 5432, 2222  # port 22 cannot be forwarded
POSTGRES_PROGRAMS = (sorted(glob.glob("/usr/lib/postgresql/*/bin")) or ["/usr/bin"])[-1]
POSTGRES_USER = 1000  # in the guest; PostgreSQL does not run as root
# The guest's accounts, whatever the machine's are.
PASSWD = """root:x:0:0::{home}:/bin/sh
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
postgres:x:1000:1000::{home}:/bin/sh
"""
SSHD_CONFIG = """ListenAddress 0.0.0.0:2222
HostKey {home}/host_key
AuthorizedKeysFile {home}/client_key.pub
PidFile none
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
"""
BLOCK = random.Random(1).randbytes(1 << 20)
DISTURBANCES = (Portwayd.kill_and_start, Portwayd.upgrade)
LIMIT_S = 60


# --- The guest. It has its own mounts and processes: they go with it.

def run_guest():
    home = sys.stdin.readline().strip()
    bind("accounts", "/etc/passwd", PASSWD.format(home=home), home)
    bind("shadow", "/etc/shadow", "root:*:19000:0:99999:7:::\n", home)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    os.mkdir("/run/sshd", 0o755)
    start_postgres(home)
    start_sshd(home)
    print("ready", flush=True)
    sys.stdin.read()


def bind(name, path, content, home):
    with open(f"{home}/{name}", "w", encoding="ascii") as file:
        file.write(content)
    subprocess.run(["mount", "--bind", f"{home}/{name}", path], check=True)


def start_postgres(home):
    data = f"{home}/data"
    os.mkdir(data)
    os.chown(data, POSTGRES_USER, POSTGRES_USER)
    own = {"user": POSTGRES_USER, "group": POSTGRES_USER, "extra_groups": (), "cwd": data}
    subprocess.run([f"{POSTGRES_PROGRAMS}/initdb", "--pgdata", data, "--no-sync", "--auth=trust", "--username=portway",
                    "--locale=C"], check=True, stdout=subprocess.DEVNULL, **own)
    with open(f"{data}/pg_hba.conf", "a", encoding="ascii") as file:
        file.write("host all all 198.18.0.0/15 trust\n")
    start_service([f"{POSTGRES_PROGRAMS}/postgres", "-D", data, "-c", "listen_addresses=*", "-c", "fsync=off",
                   "-c", "unix_socket_directories="], f"{home}/postgres.log", "ready to accept connections", **own)


def start_sshd(home):
    with open(f"{home}/sshd_config", "w", encoding="ascii") as file:
        file.write(SSHD_CONFIG.format(home=home))
    start_service(["/usr/sbin/sshd", "-D", "-e", "-f", f"{home}/sshd_config"], f"{home}/sshd.log", "Server listening")


def start_service(command, log_path, ready, **options):
    with open(log_path, "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)

    def printed():
        with open(log_path, encoding="utf-8") as file:
            return file.read()
    assert wait_until(lambda: ready in printed() or process.poll() is not None, LIMIT_S) and process.poll() is None, printed()


# --- The clients.

class Session:
    """A client program in the clients' namespace, asked by lines."""

    def __init__(self, namespace, *command):
        self.process = subprocess.Popen(["nsenter", "-t", str(namespace), "-n", *command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, preexec_fn=die_with_parent)

    def ask(self, line):
        """The line that it prints then."""
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        return self.read_line()

    def read_line(self):
        line = b""
        while not line.endswith(b"\n"):
            data = self.read(1)
            assert data, f"it has ended after {line}"
            line += data
        return line[:-1].decode()

    def read(self, size):
        if not select.select([self.process.stdout], [], [], LIMIT_S)[0]:
            raise TimeoutError(f"nothing for {LIMIT_S} s")
        return os.read(self.process.stdout.fileno(), size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# --- The test.

class HandoverServicesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        require_namespaces("ssh", "/usr/sbin/sshd", f"{POSTGRES_PROGRAMS}/postgres")
        isolate()
        home = tempfile.TemporaryDirectory(prefix="portway-guest-")
        cls.addClassCleanup(home.cleanup)
        cls.home = home.name
        os.chmod(cls.home, 0o755)
        for key in ("host_key", "client_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{cls.home}/{key}"], check=True)
        with open(f"{cls.home}/block", "wb") as file:
            file.write(BLOCK)
        services = guest.run_in_namespace(__file__, "--guest", "--mount", "--pid", "--ipc", "--fork", "--kill-child")
        cls.addClassCleanup(guest.end, services)
        services.stdin.write(f"{cls.home}\n")
        services.stdin.flush()
        guest.connect_guest(services)
        cls.clients = guest.start_clients(__file__)
        cls.addClassCleanup(guest.end_clients, cls.clients)

    def node(self, **settings):
        node = Portwayd(f"node.public_addresses={guest.NODE_ADDRESS}", "proxy.workers=2",
                        *(f"proxy.{name}={value}" for name, value in settings.items()))
        node.put_instance("vm-1", tap="tap0")
        return node

    def forward(self, node, port):
        answer = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": port})
        self.assertEqual(answer.status, 201, answer)
        return str(answer.json()["port_forward"]["host_port"])

    def psql(self, port):
        return Session(self.clients.pid, f"{POSTGRES_PROGRAMS}/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1",
                       "-h", guest.NODE_ADDRESS, "-p", port, "-U", "portway", "-d", "postgres")

    def ssh(self, port, *command):
        with open(f"{self.home}/host_key.pub", encoding="ascii") as key, \
                open(f"{self.home}/known_hosts", "w", encoding="ascii") as known:
            known.write(f"[{guest.NODE_ADDRESS}]:{port} {key.read()}")
        options = (f"IdentityFile={self.home}/client_key", "IdentitiesOnly=yes", "BatchMode=yes",
                   f"UserKnownHostsFile={self.home}/known_hosts", "StrictHostKeyChecking=yes")
        return Session(self.clients.pid, "ssh", "-F", "none", *(f"-o{option}" for option in options), "-T", "-p", port,
                       f"root@{guest.NODE_ADDRESS}", *command)

    def transaction(self, **settings):
        with self.node(**settings) as node:
            port = self.forward(node, POSTGRES)
            with self.psql(port) as session, self.psql(port) as other:
                self.assertEqual(session.ask("CREATE TABLE notes (words text); SELECT 1;"), "1")
                whose = session.ask("SELECT pg_backend_pid();")
                for number, (first, second) in enumerate((DISTURBANCES, DISTURBANCES[::-1])):
                    session.ask(f"BEGIN; INSERT INTO notes VALUES ('note {number}'); SELECT 1;")
                    first(node)
                    self.assertEqual(session.ask(f"SELECT count(*) FROM notes WHERE words = 'note {number}';"), "1")
                    self.assertEqual(other.ask("SELECT count(*) FROM notes;"), str(number))
                    second(node)
                    self.assertEqual(session.ask("COMMIT; SELECT pg_backend_pid();"), whose)
                    self.assertEqual(other.ask("SELECT count(*) FROM notes;"), str(number + 1))
                self.assertEqual(session.ask("DROP TABLE notes; SELECT 1;"), "1")

    def test_a_transaction_goes_on_uring(self):
        self.transaction(io_backend="uring")

    def test_a_transaction_goes_on_epoll_plain(self):
        self.transaction(io_backend="epoll", source_mode="plain")

    def shell(self, **settings):
        with self.node(**settings) as node:
            port = self.forward(node, SSH)
            with self.ssh(port) as shell:
                self.assertEqual(shell.ask("x=1; echo $x $SSH_CLIENT").split()[:2], self.client_seen(settings))
                whose = shell.ask("echo $$")
                for number, disturb in enumerate(DISTURBANCES * 2, 1):
                    disturb(node)
                    self.assertEqual(shell.ask("x=$((x + 1)); echo $x $$"), f"{number + 1} {whose}")

    @staticmethod
    def client_seen(settings):
        return ["1", "198.19.0.1" if settings.get("source_mode") == "plain" else guest.CLIENT_ADDRESS]

    def test_a_shell_goes_on_uring(self):
        self.shell(io_backend="uring")

    def test_a_shell_goes_on_epoll_plain(self):
        self.shell(io_backend="epoll", source_mode="plain")

    def stream(self, **settings):
        """A command prints the same block again and again, until it is told to end."""
        with self.node(**settings) as node:
            block = f"{self.home}/block"
            command = f"(while [ ! -e {block}.end ]; do cat {block}; done) & read end; touch {block}.end; wait; rm {block}.end"
            with self.ssh(self.forward(node, SSH), command) as session:
                self.assertEqual(self.read_block(session), len(BLOCK))
                meanwhile = 0
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    disturbed = pool.submit(lambda: [disturb(node) for disturb in DISTURBANCES * 2])
                    while not disturbed.done():
                        meanwhile += self.read_block(session)
                disturbed.result()
                session.process.stdin.write(b"end\n")
                session.process.stdin.flush()
                while size := self.read_block(session):
                    self.assertEqual(size, len(BLOCK))
                self.assertEqual(session.process.wait(LIMIT_S), 0)
                print(settings, f"{meanwhile >> 20} MiB meanwhile")

    def read_block(self, session):
        """0 at the stream's end."""
        block = b""
        while len(block) < len(BLOCK) and (data := session.read(len(BLOCK) - len(block))):
            block += data
        self.assertTrue(not block or block == BLOCK, "the stream is not whole")
        return len(block)

    def test_a_commands_output_goes_on_uring(self):
        self.stream(io_backend="uring")

    def test_a_commands_output_goes_on_epoll_plain(self):
        self.stream(io_backend="epoll", source_mode="plain")


if __name__ == "__main__":
    if "--guest" in sys.argv:
        run_guest()
    elif "--clients" in sys.argv:
        sys.stdin.read()
    else:
        unittest.main()

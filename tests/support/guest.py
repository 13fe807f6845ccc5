"""A guest and clients of a daemon in Python tests: processes of a test's own file, in network namespaces of their own.

  client0 198.18.0.2 --veth-- 198.18.0.1 net0, the test's namespace, 198.19.0.1 tap0 --veth-- 198.19.0.2 guest0

The test has called isolate() (tests/support/portwayd.py).
"""
import contextlib
import os
import socket
import subprocess
import sys
import threading

from tests.support.portwayd import die_with_parent, wait_until

NODE_ADDRESS, CLIENT_ADDRESS, GUEST_ADDRESS = "198.18.0.1", "198.18.0.2", "198.19.0.2"


def run_in_namespace(script, role, *options):
    """The file again, with `role` as its argument; `options` of unshare(1): what else it has of its own."""
    return subprocess.Popen(["unshare", "--net", *options, "--", sys.executable, script, role], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)


def ip(*words, pid=None):
    subprocess.run([*(["nsenter", "-t", str(pid), "-n"] if pid else []), "ip", *words], check=True)


def wait_for_namespace(pid):
    own = os.stat("/proc/self/ns/net").st_ino
    assert wait_until(lambda: os.stat(f"/proc/{pid}/ns/net").st_ino != own)


def serve_echo(port):
    """What a guest's process does: each client gets back what it sends, for ever."""
    def one(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)
    listener = socket.create_server(("0.0.0.0", port), backlog=1000)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=one, args=(connection,), daemon=True).start()


def start_guest(script):
    guest = run_in_namespace(script, "--guest")
    connect_guest(guest)
    return guest


def connect_guest(guest):
    """Returns when the guest has said "ready". It reaches clients through the node."""
    wait_for_namespace(guest.pid)
    ip("link", "set", "guest0", "netns", str(guest.pid))
    ip("address", "add", "198.19.0.1/24", "dev", "tap0")
    for words in (("address", "add", f"{GUEST_ADDRESS}/24", "dev", "guest0"), ("link", "set", "guest0", "up"),
                  ("link", "set", "lo", "up"), ("route", "add", "default", "via", "198.19.0.1")):
        ip(*words, pid=guest.pid)
    said = guest.stdout.readline()
    assert said == "ready\n", said


def start_clients(script):
    clients = run_in_namespace(script, "--clients")
    wait_for_namespace(clients.pid)
    ip("link", "add", "net0", "type", "veth", "peer", "name", "client0")
    ip("link", "set", "client0", "netns", str(clients.pid))
    ip("address", "add", f"{NODE_ADDRESS}/24", "dev", "net0")
    ip("link", "set", "net0", "up")
    for words in (("address", "add", f"{CLIENT_ADDRESS}/24", "dev", "client0"), ("link", "set", "client0", "up")):
        ip(*words, pid=clients.pid)
    return clients


def end_clients(clients):
    end(clients)
    assert wait_until(lambda: "net0" not in (name for _, name in socket.if_nameindex()))  # the namespace goes a bit later


def end(process):
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        pipe.close()

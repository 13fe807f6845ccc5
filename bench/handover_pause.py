"""How long clients wait while the daemon is replaced: a 64 B ping-pong on ten connections beside N silent ones, over upgrades
(SIGUSR2) and over SIGKILL with an immediate new start. Prints the longest wait of each pinging connection in each round: median,
99th percentile and worst. Needs root.

    PORTWAY_DAEMON=$PWD/build/release/portwayd PORTWAY_SOURCE_DIRECTORY=$PWD python3 bench/handover_pause.py [N [ROUNDS [SETTING...]]]
"""
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, die_with_parent, isolate  # noqa: E402

PINGING = 10
PORT = 7000
SETTLE_S = 0.3  # of pings before and after, as they are without a hand-over


def run_guest():
    sys.stdin.readline()
    listener = socket.create_server(("0.0.0.0", PORT), backlog=4096)
    print("ready", flush=True)
    poll, connections = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                connection, _ = listener.accept()
                connections[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
            elif data := connections[fd].recv(65536):
                connections[fd].sendall(data)
            else:
                connections.pop(fd).close()


def start_guest():
    guest = subprocess.Popen(["unshare", "--net", "--", sys.executable, __file__, "--guest"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
    own = os.stat("/proc/self/ns/net").st_ino
    while os.stat(f"/proc/{guest.pid}/ns/net").st_ino == own:
        time.sleep(0.01)
    inside = f"nsenter -t {guest.pid} -n ip"
    for command in ("ip address add 198.19.0.1/24 dev tap0", f"ip link set guest0 netns {guest.pid}",
                    f"{inside} address add 198.19.0.2/24 dev guest0", f"{inside} link set guest0 up",
                    f"{inside} route add default via 198.19.0.1"):
        subprocess.run(command.split(), check=True)
    guest.stdin.write("go\n")
    guest.stdin.flush()
    assert guest.stdout.readline() == "ready\n"
    return guest


class Pinger(threading.Thread):
    def __init__(self, connection):
        super().__init__(daemon=True)
        self.connection, self.worst, self.count, self.stopped = connection, 0.0, 0, False

    def run(self):
        while not self.stopped:
            began = time.monotonic()
            self.connection.sendall(bytes(64))
            assert len(self.connection.recv(64, socket.MSG_WAITALL)) == 64
            self.worst = max(self.worst, time.monotonic() - began)
            self.count += 1
            time.sleep(0.001)  # or ten of them would keep a processor busy


def main():
    silent, rounds = (int(word) for word in (sys.argv[1:3] + ["1000", "20"][len(sys.argv[1:3]):]))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    isolate()
    guest = start_guest()
    with Portwayd("proxy.workers=2", "proxy.instance_share_percent=100", *sys.argv[3:]) as node:
        node.put_instance("vm-1", tap="tap0")
        made = node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": PORT}).json()
        address = ("127.0.0.1", made["port_forward"]["host_port"])
        connections = [socket.create_connection(address) for _ in range(silent)]
        for connection in connections:
            connection.sendall(b"x")
        for connection in connections:
            assert connection.recv(1) == b"x"
        pingers = [Pinger(socket.create_connection(address)) for _ in range(PINGING)]
        for pinger in pingers:
            pinger.start()

        def kill():
            node.kill()
            node.start()

        for name, disturb in (("upgrade", node.upgrade), ("kill", kill)):
            waits = []
            for _ in range(rounds):
                time.sleep(SETTLE_S)
                for pinger in pingers:
                    pinger.worst = 0.0
                disturb()
                time.sleep(SETTLE_S)
                waits += [1000 * pinger.worst for pinger in pingers]
            assert all(pinger.is_alive() for pinger in pingers)
            cut = statistics.quantiles(waits, n=100)
            print(f"{name}, {silent} silent connections, {rounds} rounds: p50 {cut[49]:.0f} ms, p99 {cut[98]:.0f} ms, "
                  f"worst {max(waits):.0f} ms")
        for pinger in pingers:
            pinger.stopped = True
        for connection in connections:
            connection.sendall(b"y")
            assert connection.recv(1) == b"y", "a silent connection has ended"
    guest.kill()
    guest.wait()


if __name__ == "__main__":
    run_guest() if "--guest" in sys.argv else main()

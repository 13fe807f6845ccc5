"""Kernel DNAT is the specification: the same scenarios through an nft rule and through Portway on each of its Io back
ends, and what client and guest observe compared. docs/dnat-fidelity.md has the outcome; with
PORTWAY_UPDATE_REFERENCE=1 in the environment this test regenerates it.
"""
import concurrent.futures
import itertools
import os
import sys
import traceback
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.conformance import network  # noqa: E402
from tests.conformance.lab import Lab, SocketLab  # noqa: E402
from tests.conformance.scenarios import SCENARIOS, SOCKET_SCENARIOS, SOCKETS  # noqa: E402
from tests.conformance.subjects import Dnat, Portway, Sockets  # noqa: E402
from tests.support.portwayd import require_namespaces  # noqa: E402

REFERENCE = os.path.join(os.environ["PORTWAY_SOURCE_DIRECTORY"], "docs/dnat-fidelity.md")

HEAD = """# DNAT fidelity
A kernel DNAT rule is Portway's specification. `tests/conformance` runs the same scenarios through a real nft DNAT rule and through Portway, in network namespaces (client,
host, guests), on both Io back ends (io_uring and epoll, which must not differ), and writes down what client and guest observe. `Conformance.*` of the tests fails when this page
is not what it sees, or when a difference has no reason. This regenerates the page, as root:

    PORTWAY_UPDATE_REFERENCE=1 ctest --preset dev -R Conformance.Dnat

The rule is `ip daddr PUBLIC tcp dport PORT dnat ip to GUEST:PORT` in prerouting and output, without masquerade; the host forwards packets. Portway has its defaults, but
`proxy.connect_timeout_ms = 2000` and `proxy.drain_timeout_s = 1`, and runs with `--supervise`. It is upgraded with SIGUSR2 and killed with SIGKILL; DNAT's rules are loaded again instead.
"""
INTRODUCTIONS = {SOCKETS: """The service behind the rule is at a TCP port of the guest; the service behind Portway is at a Unix socket of the node, or at a port of a guest's
vsock (the test is the Firecracker). Both kinds of socket must be alike, on both back ends. `docs/sockets.md` has what is observed of the sockets themselves.

"""}
TAIL = """
## Not measured here
- conntrack forgets a half-closed connection after 60-120 s and an idle one after 5 days; Portway after an hour without a byte (`proxy.half_close_timeout_s`), and never
  (`proxy.idle_timeout_s`). Where connections run short, half-closed ones get conntrack's time, and the silent ones among them give way to new ones, first of all to those of the same instance.
  A full conntrack table drops everybody's SYNs; Portway resets the clients of those who have more than their share (`proxy.instance_share_percent`).
- A client that the guest refuses is refused by the node for as long as it tries again within 3 s; later it is accepted and reset once more. Where guests see
  their clients' addresses, a refusal affects no other client: each one is accepted and reset once.
- The node has a socket on each side (`proxy.guest_receive_buffer_kib`, `proxy.client_receive_buffer_kib`, `proxy.unsent_max_kib`) and a pipe of 256 KiB between them, where DNAT only
  forwards: a sender notices some 100 KiB later that its receiver does not read.
- A later change of a connection's DSCP, and the guest's own, stay on their side of the node. So do TCP options of the SYN: each side has a connection of its own.
- ICMP errors from the guest's side act on the guest's side: a refusal at connect resets the client, and an MTU is obeyed, without the client hearing of either. Not with the rules of a node without
  CAP_BPF: there a refusal by ICMP takes `proxy.connect_timeout_ms`, and guests behind a smaller MTU need one on their tap.
- A client that Portway has just accepted when it is killed may be connected to the guest twice if the guest does not see its address and port: the guest sees a connection that is reset before its first
  byte, and then another one.
- Connections wait while no process carries them, and are reset if none is started for `proxy.handover_timeout_s` (30 s); conntrack's are the kernel's.
- Virtual machines instead of namespaces, paused ones among them: `tests/e2e`.
- Without CAP_BPF the return path is a rule for each forwarded port instead of a program: then the guest's own connections from a forwarded port number, and routed ones to it, do not
  work.

## Other forwarders
What the README's table says of these was measured once, on 2026-11-28; no test repeats it. A client, a node and a guest in network namespaces, links of veth, a small client and server on
sockets, three rounds, which did not differ. A reset is a close with SO_LINGER 0, at once, after 100,000 bytes, in the middle of a download and while the client sends.

| observed | nft DNAT | HAProxy | docker-proxy | RootlessKit |
|---|---|---|---|---|
| guest sees | the client's address, its port | the node's address | the node's address | 127.0.0.1 |
| client half-closes: guest reads | 1,000 bytes, then FIN | the same | the same | the same |
| the guest's answer afterwards: client reads | 1 MiB, then FIN | the same | the same | the same |
| guest half-closes: client reads | 1,000 bytes, then FIN | the same | the same | the same |
| the client's bytes afterwards: guest reads | 1 MiB, then FIN | the same | the same | the same |
| guest resets: client reads | ECONNRESET | FIN | FIN | FIN |
| guest resets, client sends | ECONNRESET | EPIPE | EPIPE | EPIPE |
| guest closes with bytes unread: client reads | ECONNRESET | FIN | FIN | FIN |
| client resets: guest reads | ECONNRESET | ECONNRESET | FIN | FIN |
| closed port: client | ECONNREFUSED | connected, after 3 s FIN | connected, then FIN [a] | connected, then FIN [a] |

[a] Usually ECONNRESET instead, if the client has sent something.

- HAProxy 2.6.12, `mode tcp`, otherwise defaults. With `option nolinger` in frontend and backend the client still reads FIN, and the guest reads ECONNRESET after the client's half-close.
- docker-proxy of docker.io 20.10.24, without dockerd: `-proto tcp -host-ip NODE -host-port PORT -container-ip GUEST -container-port 80`.
- RootlessKit 1.1.0, as an ordinary user: `--net=slirp4netns --port-driver=builtin -p NODE:PORT:80/tcp`, the server inside. With `--port-driver=slirp4netns` the server sees the client's address and
  port, reads ECONNRESET after the client's reset, and a client that sends into the guest's reset gets ECONNRESET; a client that reads gets FIN all the same.
"""


class Row:
    def __init__(self, scenario, what, dnat, portway):
        self.section, self.title, self.what = scenario.section, scenario.title, what
        self.dnat, self.portway = dnat, portway  # portway: by back end
        self.differs = {dnat} != set(portway)
        self.reason = scenario.reasons.get(what, scenario.reasons.get("all")) if self.differs else None

    def __str__(self):
        return f"{self.title}: {self.what}: DNAT {self.dnat!r}, Portway {', '.join(map(repr, self.portway))}"


def run_scenario(scenario, subject):
    """The observations by what is observed."""
    seen = {}
    try:
        with (SocketLab if isinstance(subject, Sockets) else Lab)(subject) as lab:
            seen.update(scenario.run(lab))
    except Exception:  # pylint: disable=broad-except
        traceback.print_exc()
        raise AssertionError(f"{scenario.title}, {subject.name}: could not be run; see above") from None
    return seen


def run_all():
    rows = []
    subjects = []
    try:
        for make in (Dnat, lambda: Portway("uring"), lambda: Portway("epoll")):
            subjects.append(make())
        of_sockets = subjects[:1] + [Sockets(portway, kind) for portway in subjects[1:] for kind in ("unix", "firecracker_vsock")]
        with concurrent.futures.ThreadPoolExecutor(len(of_sockets)) as pool:
            for scenario in SCENARIOS + SOCKET_SCENARIOS:
                who = subjects if scenario in SCENARIOS else of_sockets
                dnat, *portway = pool.map(run_scenario, itertools.repeat(scenario), who)
                rows += [Row(scenario, what, dnat[what], [one[what] for one in portway]) for what in dnat]
    finally:
        for subject in subjects:
            subject.close()
    return rows


def page(rows):
    text, reasons = HEAD, []
    for section, of_section in itertools.groupby(rows, lambda row: row.section):
        text += (f"\n## {section}\n{INTRODUCTIONS.get(section, '')}| scenario | observed | nft DNAT | Portway | differs |\n"
                 "|---|---|---|---|---|\n")
        title = None
        for row in of_section:
            note = ""
            if row.differs:
                if row.reason not in reasons:
                    reasons.append(row.reason)
                note = f"[{reasons.index(row.reason) + 1}]"
            portway = "the same" if not row.differs else " / ".join(dict.fromkeys(row.portway))
            text += f"| {row.title if row.title != title else ''} | {row.what} | {row.dnat} | {portway} | {note} |\n"
            title = row.title
    text += "\n## Every difference and its reason\n"
    text += "".join(f"{number}. {reason}\n" for number, reason in enumerate(reasons, 1))
    return text + TAIL


class Conformance(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        require_namespaces(*network.TOOLS)
        cls.rows = run_all()
        if "PORTWAY_UPDATE_REFERENCE" in os.environ:
            with open(REFERENCE, "w", encoding="utf-8") as file:
                file.write(page(cls.rows))

    def test_both_back_ends_are_alike(self):
        self.assertEqual([str(row) for row in self.rows if len(set(row.portway)) > 1], [])

    def test_every_difference_has_a_reason(self):
        self.assertEqual([str(row) for row in self.rows if row.differs and not row.reason], [])

    def test_every_reason_has_a_difference(self):
        used = {row.reason for row in self.rows}
        unused = [f"{one.title}: {reason}" for one in SCENARIOS + SOCKET_SCENARIOS for reason in one.reasons.values()
                  if reason not in used]
        self.assertEqual(unused, [])

    def test_the_page_reports_what_is_observed(self):
        with open(REFERENCE, encoding="utf-8") as file:
            self.assertEqual(file.read(), page(self.rows), "PORTWAY_UPDATE_REFERENCE=1 regenerates the page")


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""What one tenant's load does to another: the round trips of a bystander, beside a disturbance on another forward.

    bench/compare/isolation.py --build build/release                   # everything: 6 minutes
    bench/compare/isolation.py --build build/release --subjects portway-uring,haproxy --disturbances churn-plain,end --rounds 1

The bystander sends 64 bytes every millisecond, whether or not the echo before has come, and an echo's time counts from when
its message was due: a stall of 300 ms is 300 late answers, not one. It and its echo have real-time priority, and the thread
that moves a subject's bytes has a processor without the load, where there are two, and nice -20: what is measured is how long
the subject lets the bystander wait, not how the scheduler shares out a processor that is too small. nft DNAT, which has no thread, shows what
the rest of the machine adds. A run in which a processor stood still for more than 5 ms, for a thread of real-time priority,
is made again.

In a round all subjects are fresh processes, each on a host of its own (network.py), and take turns with each disturbance.
Needs root.
"""
import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import time

import compare
import network
import report
import subjects as all_subjects
from subjects import SubjectError

DEFAULT_SUBJECTS = ["nft-dnat", "portway-uring", "portway-epoll", "haproxy", "nginx"]
REALTIME = ("chrt", "--fifo", "50")
LOAD = ("nice", "--adjustment=-10")
MOVER_NICE = -20  # what else the machine does is not to be measured
CONNECTIONS_MAX = 10_000
PAUSE_MAX_US = 5_000  # a processor that stands still for longer spoils a run
TRIES = 4
SETTLE_TIMEOUT_S = 30
RELOAD_PERIOD_S = 0.5


class Disturbance:
    """Base: none. prepare() comes before the bystander, begin() and go_on() while it measures, finish() after it."""

    title = "nothing"
    unit = ""
    once = False  # it cannot be had again
    few = True  # connections_max of a subject is for `end`; else it has `--forwards` idle forwards

    def __init__(self, options, net, subject):
        self.options, self.net, self.subject = options, net, subject

    @staticmethod
    def suits(_):
        """Whether a subject can have it."""
        return True

    def prepare(self):
        pass

    def begin(self):
        pass

    def go_on(self):
        """Again and again until the bystander has ended."""
        time.sleep(0.01)

    def finish(self):
        """How much there was of it: a number, or None."""

    def load(self, mode, target, *options, **streams):
        """bench_load as a client that ends when its standard input does."""
        return self.net.client.popen(*LOAD, self.options.load, mode, "--target", target, "--from", self.subject.site.client_first,
                                     "--from-count", str(network.CLIENT_COUNT), *options, stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, **streams)

    def hold(self, service, connections):
        process = self.load("hold", self.subject.target(service), "--connections", str(connections))
        if process.stdout.readline() != b"ready\n":
            raise SubjectError(f"{self.subject.name} did not take {connections} connections")
        return process


class Churn(Disturbance):
    title = "connections that come and go, 64 at a time"
    unit = "connections/s"
    process = None

    def target(self):
        return self.subject.target("sink")

    def begin(self):
        self.process = self.load("churn", self.target())

    def finish(self):
        if not self.process:
            return None
        answer = self.process.communicate(timeout=SETTLE_TIMEOUT_S)[0]
        if self.process.returncode != 0:
            raise SubjectError("the churn broke off")
        done = json.loads(answer)
        return done["connections"] / done["seconds"]


class ChurnTransparent(Churn):
    """The guest sees the clients' addresses. nft DNAT never does otherwise; the peers cannot without the node's routing."""

    title = "transparent connections that come and go, 64 at a time"

    @staticmethod
    def suits(subject):
        return isinstance(subject, all_subjects.Portway)

    def target(self):
        with self.subject.site:
            answer = self.subject.call("POST", "/instances/guest/port-forwards",
                                       {"guest_port": all_subjects.SERVICES["sink"], "source_mode": "transparent"})
        return f"{self.subject.site.public}:{answer['port_forward']['host_port']}"


class ChurnIpv6(Churn):
    title = "connections from IPv6 to IPv4 that come and go, 64 at a time"

    @staticmethod
    def suits(subject):
        return isinstance(subject, all_subjects.Process)

    def target(self):
        return f"[{self.subject.site.public6}]:{self.subject.target('sink').rpartition(':')[2]}"


class End(Disturbance):
    title = "all connections of another forward end at once"
    unit = "connections"
    held = None
    count = 0

    def prepare(self):
        self.count = min(self.options.connections, self.subject.connections_allowed(self.options.descriptors) - 100)
        before = sockets_in_use(self.net.guest)
        self.held = self.hold("sink", self.count)
        wait_until(lambda: sockets_in_use(self.net.guest) >= before + self.count, "connections have not arrived at the guest")

    def begin(self):
        self.held.stdin.close()

    def finish(self):
        if self.held:
            self.held.stdin.close()
            self.held.wait(SETTLE_TIMEOUT_S)
        return self.count


class Stalled(Disturbance):
    title = "clients of downloads who do not read"
    unit = "clients"
    held = None

    def begin(self):
        self.held = self.hold("source", self.options.stalled)

    def finish(self):
        if self.held:
            self.held.communicate(timeout=SETTLE_TIMEOUT_S)
        return self.options.stalled


class WithForwards(Disturbance):
    few = False
    times = 0

    @staticmethod
    def suits(subject):
        return isinstance(subject, (all_subjects.Portway, all_subjects.Haproxy, all_subjects.Nginx))

    def finish(self):
        return self.times or None


class QuietForwards(WithForwards):
    title = "nothing, with idle forwards"


class Scrape(WithForwards):
    """As Prometheus would, but one after the other without a pause: Portway's /metrics, HAProxy's `show stat`."""

    title = "metrics of all forwards read again and again"
    unit = "times"

    @staticmethod
    def suits(subject):
        return isinstance(subject, (all_subjects.Portway, all_subjects.Haproxy))

    def go_on(self):
        with self.subject.site:
            self.subject.scrape()
        self.times += 1


class Reload(WithForwards):
    title = "configuration with idle forwards reloaded twice a second"
    unit = "times"

    def go_on(self):
        with self.subject.site:
            self.subject.reload()
        self.times += 1
        time.sleep(RELOAD_PERIOD_S)


class Delete(WithForwards):
    once = True
    title = "all forwards of another guest deleted"
    unit = "forwards"

    @staticmethod
    def suits(subject):
        return isinstance(subject, all_subjects.Portway)

    def begin(self):
        with self.subject.site:
            self.subject.request("DELETE", "/instances/idle")
        self.times = self.subject.idle_forwards


# In this order: what reloads leaves another process behind, what deletes leaves nothing to delete.
DISTURBANCES = {
    "quiet": Disturbance,
    "churn-transparent": ChurnTransparent,
    "churn-plain": Churn,
    "churn-ipv6": ChurnIpv6,
    "end": End,
    "stalled": Stalled,
    "quiet-forwards": QuietForwards,
    "scrape": Scrape,
    "reload": Reload,
    "delete": Delete,
}


def wait_until(true, what):
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while not true():
        if time.monotonic() > deadline:
            raise SubjectError(f"{what} within {SETTLE_TIMEOUT_S} s")
        time.sleep(0.02)


def sockets_in_use(namespace):
    """TCP sockets of IPv4 that are not closed."""
    namespace.enter()
    try:
        with open("/proc/net/sockstat", encoding="ascii") as file:
            return next(int(line.split()[2]) for line in file if line.startswith("TCP:"))
    finally:
        network.HOME.enter()


class Room:
    """The network with the guest's two servers: one for the load, one for the bystander."""

    def __init__(self, options, count, few, cleanup):
        self.net = cleanup.enter_context(network.Network(count))
        for site in self.net.sites:
            if few:  # many forwards with two addresses each are more listeners than RLIMIT_NOFILE allows
                site.add_ipv6(self.net.client)
            else:
                site.add_idle_guest()
        services = all_subjects.SERVICES
        for command in ((*LOAD, options.load, "server", "--sink", str(services["sink"]), "--source", str(services["source"]), "--echo", "0"),
                        (*REALTIME, options.load, "server", "--sink", "0", "--source", "0", "--echo", str(services["echo"]))):
            cleanup.callback(network.stop, self.net.guest.popen_ready(*command))


def come_first():
    """Where the kernel makes a group of each session, a nice value counts within the group only; the group has one too."""
    os.setsid()
    with contextlib.suppress(FileNotFoundError), open("/proc/self/autogroup", "w", encoding="ascii") as file:
        file.write("-20")


def favour_mover(options, subject):
    """The thread that moves bytes comes before what else the machine does, on a processor without the load."""
    for pid in subject.pids():
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{pid}/task/{thread}/comm", encoding="utf-8") as file:
                    moves = file.read().startswith("worker-") or not isinstance(subject, all_subjects.Portway)
                if moves:
                    os.setpriority(os.PRIO_PROCESS, int(thread), MOVER_NICE)
                if options.load_processors:
                    os.sched_setaffinity(int(thread), options.processors[:1] if moves else options.processors)


def measure(options, net, subject, disturbance):
    """The bystander's round trips beside a disturbance, as bench_load reports them."""
    base = sockets_in_use(net.guest)
    work = DISTURBANCES[disturbance](options, net, subject)
    favour_mover(options, subject)
    try:
        work.prepare()
        bystander = net.client.popen(*REALTIME, options.load, "bystander", "--target", subject.target("echo"), "--seconds",
                                     str(options.seconds), "--watch", str(options.processors[0]), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            if bystander.stdout.readline() == b"ready\n":
                work.begin()
                while bystander.poll() is None:
                    work.go_on()
            answer, complaint = bystander.communicate(timeout=SETTLE_TIMEOUT_S)
        finally:
            bystander.kill()
            bystander.wait()
    finally:
        amount = work.finish()
    if bystander.returncode != 0:
        raise SubjectError(complaint.decode().strip() or f"the bystander ended with {bystander.returncode}")
    wait_until(lambda: sockets_in_use(net.guest) <= base, "connections are left in the guest")
    values = json.loads(answer)
    values["amount"] = amount
    return values


def measure_undisturbed(options, net, subject, disturbance):
    """Of some tries the first without a pause of the machine, else the one with the shortest."""
    tries = []
    for _ in range(1 if DISTURBANCES[disturbance].once else TRIES):
        tries.append(measure(options, net, subject, disturbance))
        if tries[-1]["paused_us"] <= PAUSE_MAX_US:
            break
    return min(tries, key=lambda values: values["paused_us"]) | {"tries": len(tries)}


def run_round(options, chosen, round_number, runs):
    names = {few: [name for name in options.disturbances if DISTURBANCES[name].few is few] for few in (True, False)}
    for few, wanted in names.items():
        fit = [subject for subject in chosen if any(DISTURBANCES[name].suits(subject) for name in wanted)]
        if fit:
            run_group(options, fit, wanted, few, round_number, runs)


def run_group(options, chosen, names, few, round_number, runs):
    with contextlib.ExitStack() as cleanup:
        room = Room(options, len(chosen), few, cleanup)
        running = []
        for subject, site in zip(chosen, room.net.sites):
            subject.site, subject.idle_forwards = site, 0 if few else options.forwards
            if isinstance(subject, all_subjects.Portway):  # a node that can do both
                subject.source_mode, subject.forward_options = "transparent", {"source_mode": "plain"}
            cleanup.callback(subject.stop)
            error = compare.attempt(lambda: start(options, subject))
            if error:
                note(runs, round_number, subject, ",".join(names), {"error": error})
            else:
                running.append(subject)
        for name in names:
            suited = [subject for subject in running if DISTURBANCES[name].suits(subject)]
            random.shuffle(suited)
            for subject in suited:
                outcome = {}
                error = compare.attempt(lambda: outcome.update(values=measure_undisturbed(options, room.net, subject, name)))
                note(runs, round_number, subject, name, {"error": error} if error else outcome)


def start(options, subject):
    connections_max = min(options.connections + 100, subject.connections_allowed(options.descriptors))
    if isinstance(subject, all_subjects.Portway):  # cuts it to what the descriptors allow, and takes its listeners off
        connections_max = CONNECTIONS_MAX
    with subject.site:
        os.sched_setaffinity(0, options.processors)
        try:
            subject.start(connections_max)
        finally:
            os.sched_setaffinity(0, options.load_processors or options.processors)


def note(runs, round_number, subject, disturbance, outcome):
    runs.append({"round": round_number, "subject": subject.name, "metric": disturbance, **outcome})
    values = outcome.get("values")
    text = outcome.get("error") or (f"p50 {values['p50_us'] / 1e3:7.2f}  p99 {values['p99_us'] / 1e3:7.2f}  worst "
                                    f"{values['worst_us'] / 1e3:7.2f} ms at {values['worst_at_s']:.2f} s"
                                    + (f"  ({values['amount']:,.0f})" if values["amount"] else ""))
    print(f"round {round_number}  {subject.name:20} {disturbance:18} {text}", file=sys.stderr, flush=True)


def parse_arguments():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    known = {subject.name: subject for subject in all_subjects.ALL}
    parser = argparse.ArgumentParser(description="A bystander beside disturbances; see the head of this file.")
    parser.add_argument("--build", default=os.path.join(root, "build/release"), help="build directory with portwayd and bench_load")
    parser.add_argument("--portwayd", help="another portwayd than the build directory's")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=PORTWAYD[,BACKEND]",
                        help="a further subject: another build of Portway; BACKEND: uring (unless told), epoll")
    parser.add_argument("--output", default=".", help="directory for isolation.md, isolation.json and isolation.svg")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of the bystander beside each disturbance")
    parser.add_argument("--subjects", default=",".join(DEFAULT_SUBJECTS), help=f"of {','.join(known)}")
    parser.add_argument("--disturbances", default=",".join(DISTURBANCES), help=f"of {','.join(DISTURBANCES)}")
    parser.add_argument("--connections", type=int, default=7000, help="of `end`; less where RLIMIT_NOFILE is low")
    parser.add_argument("--stalled", type=int, default=230, help="clients of `stalled`")
    parser.add_argument("--forwards", type=int, default=10_000, help="of scrape, reload and delete")
    parser.add_argument("--workers", type=int, default=1, help="threads of each subject; with more, no thread is bound to a processor")
    options = parser.parse_args()
    for text, names in ((options.subjects, known), (options.disturbances, DISTURBANCES)):
        for name in filter(None, text.split(",")):
            if name not in names:
                parser.error(f"unknown: {name}; known are {', '.join(names)}")
    options.subjects = [name for name in options.subjects.split(",") if name]
    options.disturbances = [name for name in DISTURBANCES if name in options.disturbances.split(",")]
    options.others = [(name, *((program + ",uring").split(",")[:2])) for name, _, program in
                      (text.partition("=") for text in options.other)]
    options.portwayd = options.portwayd or os.path.join(options.build, "portwayd")
    options.load = os.path.join(options.build, "bench/compare/bench_load")
    if not os.path.exists(options.load):
        parser.error(f"{options.load} is missing: cmake --build {options.build} --target bench_load portwayd")
    options.scratch, options.hold = compare.SCRATCH, 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options.descriptors = hard
    options.processors = sorted(os.sched_getaffinity(0))
    several = len(options.processors) > 1 and options.workers == 1
    options.load_processors = options.processors[1:] if several else None
    return options


def main():
    options = parse_arguments()
    if os.geteuid() != 0:
        sys.exit("isolation.py: needs root, to make network namespaces")
    network.isolate(compare.SCRATCH)
    come_first()
    chosen = [subject(options) for subject in all_subjects.ALL if subject.name in options.subjects]
    chosen += [all_subjects.OtherPortway(options, *other) for other in options.others]
    skipped = {subject.name: reason for subject in chosen if (reason := subject.missing())}
    chosen = [subject for subject in chosen if subject.name not in skipped]
    meta = compare.describe_machine() | {
        "rounds": options.rounds, "seconds": options.seconds, "workers": options.workers, "descriptors": options.descriptors, "forwards": options.forwards,
        "background_cpu": compare.background_cpu(), "skipped": skipped,
        "versions": {subject.name: subject.version() for subject in chosen},
    }
    runs = []
    for round_number in range(1, options.rounds + 1):
        run_round(options, chosen, round_number, runs)
    results = {"meta": meta, "runs": runs, "summary": report.in_order(report.summarize(runs), options.disturbances,
                                                                       [subject.name for subject in chosen])}
    titles = {subject.name: subject.title for subject in chosen}
    metrics = {name: report.Titled("isolation", disturbance.title, disturbance.unit) for name, disturbance in DISTURBANCES.items()}
    text = report.isolation_markdown(results, metrics, titles)
    report.write(options.output, "isolation", results, text, report.plot(results, metrics, titles))
    print(text)
    return 1 if any("error" in run for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())

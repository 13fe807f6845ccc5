#!/usr/bin/env python3
"""Runs TCP forwarders side by side and writes a table and a plot: the direct route, nft DNAT, Portway and its peers.

    bench/compare/compare.py --build build/release            # an hour: every metric, every subject, 3 rounds
    bench/compare/compare.py --build build/release --metrics bulk1,ping64x64,close --rounds 3
    bench/compare/compare.py --build build/release --quick    # under 2 minutes: does it work

Needs root and a quiet machine. In a round all subjects run at once, each a fresh process (subjects.py) on a host of its own
between one client and one guest (network.py). One load generator goes from one to the next every few tens of milliseconds:
a machine that is faster in one second than in another is so for all of them, and a ratio is one of neighbours.

Everything runs inside a process namespace of its own: whichever way this program ends, the kernel ends all that it
started, and the network namespaces go with that.
"""
import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

import network
import report
import subjects as all_subjects

SCRATCH = "/dev/shm"  # covered by a tmpfs that only our processes see: nothing of it stays


@dataclass(frozen=True)
class Metric:
    kind: str  # of report.VALUES
    title: str
    mode: str  # of bench_load
    service: str
    connections: int
    message_bytes: int = 64
    slice_s: float = 0.05
    lead_in_s: float = 0.015


def ping(connections, size, name):
    return Metric("ping", f"Ping-pong, {name} on {connections:,} connection{'s' if connections > 1 else ''}", "ping", "echo",
                  connections, size)


def bulk(streams, mode, service):
    # The streams are new in each slice: time to get going.
    return Metric("bulk", f"Bulk {mode}, {streams} stream{'s' if streams > 1 else ''}", mode, service, streams, slice_s=0.2, lead_in_s=0.06)


SIZES = {"64": (64, "64 B"), "4k": (4096, "4 KiB"), "16k": (16384, "16 KiB")}
METRICS = {
    **{f"bulk{n}": bulk(n, "download", "source") for n in (1, 8, 64)},
    **{f"bulk{n}_up": bulk(n, "upload", "sink") for n in (1, 8, 64)},
    **{f"ping{n}x{size}": ping(n, *SIZES[size]) for size in SIZES for n in (1, 64, 1000)},
    "close": Metric("close", "Connect, 64 bytes, echo, close; 32 at a time", "close", "echo", 32),
    "storm": Metric("close", "The same, 1,000 at a time on one forward", "close", "echo", 1000),
    # Long enough for a scheduler's time slices, which are what a message waits for here.
    "mix": Metric("mix", "Ping-pong, 64 B on 64 connections, beside one bulk download", "mix", "echo", 64, slice_s=0.2,
                  lead_in_s=0.06),
    "idle": Metric("idle", "Idle connections", "idle", "echo", 10_000),
    "idle50k": Metric("idle", "50,000 idle connections", "idle", "echo", 50_000),
}
QUICK_METRICS = ["bulk1", "bulk8", "ping64x64", "close", "idle"]


def parse_arguments():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    subject_names = [subject.name for subject in all_subjects.ALL]
    parser = argparse.ArgumentParser(description="Compare TCP forwarders; see the head of this file.")
    parser.add_argument("--build", default=os.path.join(root, "build/release"),
                        help="build directory with portwayd and bench_load")
    parser.add_argument("--portwayd", help="another portwayd than the build directory's")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=PORTWAYD[,BACKEND]",
                        help="a further subject: another build of Portway, to be compared with; BACKEND: uring (the default), epoll")
    parser.add_argument("--output", default=".", help="directory for compare.md, compare.json and compare.svg")
    parser.add_argument("--quick", action="store_true", help="one round of 1 s, downloads only, 2,000 idle connections")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--seconds", type=float, help="of each subject in each metric and round; default: 3")
    parser.add_argument("--connections", type=int, help="idle ones; default: 10000, less where RLIMIT_NOFILE is low")
    parser.add_argument("--forwards", type=int, default=0, help="of Portway: with idle ones beside those that are used")
    parser.add_argument("--link", choices=("veth", "tap"), default="veth", help="between host and guest")
    parser.add_argument("--workers", type=int, default=1, help="threads of each subject")
    parser.add_argument("--hold", type=int, default=0, metavar="PERCENT",
                        help="of a processor, for each of Portway's workers (needs the cpu controller of cgroup v1)")
    parser.add_argument("--subjects", help=f"of {','.join(subject_names)}")
    parser.add_argument("--metrics", help=f"of {','.join(METRICS)}")
    parser.add_argument("--baseline", help="the subject that ratios refer to; default: the first --other, or haproxy-splice")
    options = parser.parse_args()

    def choose(text, known, default):
        chosen = text.split(",") if text else default
        for name in chosen:
            if name not in known:
                parser.error(f"unknown: {name}; known are {', '.join(known)}")
        return chosen

    options.subjects = choose(options.subjects, subject_names, subject_names)
    options.others = [(name, *((program + ",uring").split(",")[:2])) for name, _, program in
                      (text.partition("=") for text in options.other)]
    options.metrics = choose(options.metrics, METRICS, QUICK_METRICS if options.quick else list(METRICS))
    other_names = [other[0] for other in options.others]
    options.baseline = options.baseline or (other_names + ["haproxy-splice"])[0]
    choose(options.baseline, subject_names + other_names, [])
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1.0 if options.quick else 3.0)
    options.portwayd = options.portwayd or os.path.join(options.build, "portwayd")
    options.load = os.path.join(options.build, "bench/compare/bench_load")
    if not os.path.exists(options.load):
        parser.error(f"{options.load} is missing: cmake --build {options.build} --target bench_load portwayd")
    options.scratch = SCRATCH
    # A proxy holds two descriptors a connection, and not every root may raise the limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options.descriptors = hard
    if options.quick and not options.connections:
        options.connections = 2_000
    return options


class Load:
    """bench_load's two sides in a network."""

    def __init__(self, options, net):
        self.options, self.net = options, net
        self.server = net.guest.popen_ready(options.load, "server")

    def stop(self):
        network.stop(self.server)

    def command(self, metric, subjects, connections):
        command = [self.options.load, metric.mode, "--from-count", str(network.CLIENT_COUNT), "--connections", str(connections),
                   "--message-bytes", str(metric.message_bytes)]
        for subject in subjects:
            target = [subject.target(metric.service), subject.site.client_first, *map(str, subject.pids())]
            command += ["--target", ",".join(target)]
        return command

    def measure(self, metric, subjects):
        """What bench_load says of each subject."""
        command = self.command(metric, subjects, metric.connections)
        for subject in subjects if metric.kind == "mix" else []:
            command += ["--beside", subject.target(METRICS["bulk1"].service)]
        slices = max(1, round(self.options.seconds / metric.slice_s))
        command += ["--slices", str(slices), "--slice", str(metric.slice_s), "--lead-in", str(metric.lead_in_s)]
        limit = 30 + 2 * len(subjects) * (self.options.seconds + slices * metric.lead_in_s)
        try:
            done = subprocess.run(command, preexec_fn=self.net.client.enter, capture_output=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired as error:
            raise all_subjects.SubjectError(f"bench_load did not end within {limit:.0f} s") from error
        if done.returncode != 0:
            raise all_subjects.SubjectError(done.stderr.decode().strip() or f"bench_load ended with {done.returncode}")
        return json.loads(done.stdout)

    def measure_idle(self, metric, subject):
        """Memory that the connections added, after one connection has been through everything."""
        with self.holding(metric, subject, 1):
            pass
        before, slab_before = resident_bytes(subject.pids()), slab_bytes()
        count = idle_connections(self.options, subject, metric)
        with self.holding(metric, subject, count):
            time.sleep(0.5)
            after, slab_after = resident_bytes(subject.pids()), slab_bytes()
            with subject.site:
                facts = subject.facts()
        return {"held": count, "rss_bytes": (after - before) / count, "rss_mib": after / 2**20,
                "slab_bytes": (slab_after - slab_before) / count}, facts

    def holding(self, metric, subject, connections):
        return HeldConnections(self.net.client.popen(*self.command(metric, [subject], connections), stdin=subprocess.PIPE,
                                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE))


class HeldConnections:
    def __init__(self, process):
        self.process = process

    def __enter__(self):
        if not self.process.stdout.readline():
            raise all_subjects.SubjectError(self.process.stderr.read().decode().strip())

    def __exit__(self, *_):
        self.process.communicate()


def idle_connections(options, subject, metric):
    """As many as asked for, or as the subject can hold under RLIMIT_NOFILE."""
    return min(options.connections or metric.connections, subject.connections_allowed(options.descriptors))


def slab_bytes():
    """Of the whole kernel: the load's two ends are in it too."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Slab:"))


def resident_bytes(pids):
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # of an earlier connection, just ended
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return total


def run_round(options, subjects, names, round_number, runs):
    """Measures fresh starts of the subjects in a fresh network; what fails is noted and does not stop the others."""
    with contextlib.ExitStack() as cleanup:
        net = cleanup.enter_context(network.Network(len(subjects), options.load if options.link == "tap" else None))
        load = Load(options, net)
        cleanup.callback(load.stop)
        running = []
        for subject, site in zip(subjects, net.sites):
            subject.site = site
            cleanup.callback(subject.stop)
            error = attempt(lambda: start(options, subject, names))
            if error:
                note(runs, subject, ",".join(names), round_number, {"error": error})
            else:
                running.append(subject)
        for name in names:
            error = attempt(lambda: run_metric(load, running, name, round_number, runs))
            for subject in running if error else []:
                note(runs, subject, name, round_number, {"error": error})


def attempt(work):
    """What was wrong, or None."""
    try:
        work()
        return None
    except (all_subjects.SubjectError, OSError, subprocess.SubprocessError, ArithmeticError, ValueError) as error:
        return str(error)


def start(options, subject, names):
    connections_max = max([2_500] + [idle_connections(options, subject, METRICS[name]) + 50
                                     for name in names if METRICS[name].kind == "idle"])
    with subject.site:
        subject.start(connections_max)


def run_metric(load, subjects, name, round_number, runs):
    metric = METRICS[name]
    if metric.kind == "idle":
        for subject in subjects:
            values, facts = load.measure_idle(metric, subject)
            conclude(runs, subject, name, round_number, values, facts)
        return
    for subject, raw in zip(subjects, load.measure(metric, subjects)):
        if "error" in raw:
            note(runs, subject, name, round_number, raw)
            continue
        with subject.site:
            facts = subject.facts()
        conclude(runs, subject, name, round_number, report.derive(metric.kind, raw), facts)


def conclude(runs, subject, name, round_number, values, facts):
    problem = subject.check(METRICS[name].kind, facts)
    note(runs, subject, name, round_number, {"error": problem} if problem else {"values": values, "facts": facts})


def note(runs, subject, name, round_number, outcome):
    runs.append({"round": round_number, "subject": subject.name, "metric": name, **outcome})
    key = {"bulk": "gbit_s", "idle": "rss_bytes"}.get(METRICS[name].kind if name in METRICS else "", "per_s")
    text = outcome.get("error") or f"{outcome['values'][key]:,.1f} {key}"
    print(f"round {round_number}  {subject.name:20} {name:10} {text}", file=sys.stderr, flush=True)


def background_cpu():
    """Processors in use while we do nothing, over one second."""
    def busy():
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    before = busy()
    time.sleep(1)
    return busy() - before


def processor_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(": ", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe_machine():
    return {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "kernel": platform.release(),
            "processors": os.cpu_count(), "processor": processor_name()}


def main():
    options = parse_arguments()
    if os.geteuid() != 0:
        sys.exit("compare.py: needs root, to make network namespaces")
    network.isolate(SCRATCH)

    chosen = [subject(options) for subject in all_subjects.ALL if subject.name in options.subjects]
    chosen += [all_subjects.OtherPortway(options, *other) for other in options.others]
    skipped = {subject.name: reason for subject in chosen if (reason := subject.missing())}
    chosen = [subject for subject in chosen if subject.name not in skipped]
    results = {
        "meta": describe_machine() | {
            "rounds": options.rounds, "seconds": options.seconds, "workers": options.workers,
            "baseline": options.baseline, "link": options.link, "descriptors": options.descriptors,
            "background_cpu": background_cpu(), "skipped": skipped,
            "versions": {subject.name: subject.version() for subject in chosen},
        },
        "runs": [],
    }
    moving = [name for name in options.metrics if METRICS[name].kind != "idle"]
    for round_number in range(1, options.rounds + 1):
        run_round(options, chosen, moving, round_number, results["runs"])
    # Memory does not vary from run to run, and only a fresh process shows it.
    for name in (name for name in options.metrics if METRICS[name].kind == "idle"):
        for subject in chosen:
            if isinstance(subject, all_subjects.Process):
                run_round(options, [subject], [name], 1, results["runs"])
    results["summary"] = report.summarize(results["runs"])
    write_results(options, results, chosen)
    return 1 if any("error" in run for run in results["runs"]) else 0


def write_results(options, results, chosen):
    titles = {subject.name: subject.title for subject in chosen} | {subject.name: subject.title for subject in all_subjects.ALL}
    unaccounted = {subject.name for subject in chosen if not subject.accounted}
    order = [subject.name for subject in chosen]
    results["summary"] = report.in_order(results["summary"], results["summary"], order)
    text = report.markdown(results, METRICS, titles, unaccounted)
    report.write(options.output, "compare", results, text, report.plot(results, METRICS, titles))
    print(text)


if __name__ == "__main__":
    sys.exit(main())

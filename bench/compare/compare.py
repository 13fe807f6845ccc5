#!/usr/bin/env python3
"""Runs TCP forwarders side by side and writes a table and a plot: the direct route, nft DNAT, Portway and its peers.

    bench/compare/compare.py --build build/release            # hours: every metric, every subject, 5 rounds
    bench/compare/compare.py --build build/release --metrics bulk1,ping64x64,close --rounds 3
    bench/compare/compare.py --build build/release --quick    # under 2 minutes: does it work

Needs root and a quiet machine. Every run of a subject has its own fresh network namespaces (network.py) and its own
process (subjects.py); the subjects take turns, round after round, in changing order, so that what else the machine does
meets all of them. The load is bench_load's, one thread on either side.

Everything runs inside a process namespace of its own: whichever way this program ends, the kernel ends all that it
started, and the network namespaces go with that.
"""
import argparse
import datetime
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

import network
import report
import subjects as all_subjects

SCRATCH = "/dev/shm"  # covered by a tmpfs that only our processes see: nothing of it stays
CLIENT_TIMEOUT_S = 120
FD_RESERVE = 500  # descriptors a proxy needs besides two a connection


@dataclass(frozen=True)
class Metric:
    kind: str  # of report.VALUES
    title: str
    mode: str  # of bench_load
    service: str
    connections: int
    message_bytes: int = 64


def ping(connections, size, name):
    return Metric("ping", f"Ping-pong, {name} on {connections:,} connection{'s' if connections > 1 else ''}", "ping", "echo",
                  connections, size)


SIZES = {"64": (64, "64 B"), "4k": (4096, "4 KiB"), "16k": (16384, "16 KiB")}
METRICS = {
    **{f"bulk{n}": Metric("bulk", f"Bulk download, {n} stream{'s' if n > 1 else ''}", "download", "source", n)
       for n in (1, 8, 64)},
    **{f"bulk{n}_up": Metric("bulk", f"Bulk upload, {n} stream{'s' if n > 1 else ''}", "upload", "sink", n)
       for n in (1, 8, 64)},
    **{f"ping{n}x{size}": ping(n, *SIZES[size]) for size in SIZES for n in (1, 64, 1000)},
    "close": Metric("close", "Connect, 64 bytes, echo, close; 32 at a time", "close", "echo", 32),
    "storm": Metric("close", "The same, 1,000 at a time on one forward", "close", "echo", 1000),
    "mix": Metric("mix", "Ping-pong, 64 B on 64 connections, beside one bulk download", "ping", "echo", 64),
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
    parser.add_argument("--output", default=".", help="directory for compare.md, compare.json and compare.svg")
    parser.add_argument("--quick", action="store_true", help="one round of 1 s, downloads only, 2,000 idle connections")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--seconds", type=float, help="of each measurement; default: 3")
    parser.add_argument("--connections", type=int, help="idle ones; default: 10000, less where RLIMIT_NOFILE is low")
    parser.add_argument("--forwards", type=int, default=0, help="of Portway: with idle ones beside those that are used")
    parser.add_argument("--link", choices=("veth", "tap"), default="veth", help="between host and guest")
    parser.add_argument("--workers", type=int, default=1, help="threads of each subject")
    parser.add_argument("--subjects", help=f"of {','.join(subject_names)}")
    parser.add_argument("--metrics", help=f"of {','.join(METRICS)}")
    parser.add_argument("--baseline", default="haproxy-splice", help="the subject that ratios refer to")
    options = parser.parse_args()

    def choose(text, known, default):
        chosen = text.split(",") if text else default
        for name in chosen:
            if name not in known:
                parser.error(f"unknown: {name}; known are {', '.join(known)}")
        return chosen

    options.subjects = choose(options.subjects, subject_names, subject_names)
    options.metrics = choose(options.metrics, METRICS, QUICK_METRICS if options.quick else list(METRICS))
    choose(options.baseline, subject_names, [])
    options.rounds = options.rounds or (1 if options.quick else 5)
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

    def command(self, metric, subject, connections):
        command = [self.options.load, metric.mode, "--target", subject.target(metric.service),
                   "--from", network.CLIENT_FIRST, "--from-count", str(network.CLIENT_COUNT),
                   "--connections", str(connections),
                   "--message-bytes", str(metric.message_bytes), "--seconds", str(self.options.seconds)]
        for pid in subject.pids():
            command += ["--subject", str(pid)]
        return command

    def measure_mix(self, metric, subject):
        bulk = self.net.client.popen(*self.command(METRICS["bulk1"], subject, 1), "--warm-up", "2", stdout=subprocess.DEVNULL)
        try:
            before, began = bytes_from_guest(), time.monotonic()
            values = self.measure(metric, subject)
            # How much the bulk stream moved meanwhile: a subject could serve the pingers by starving it.
            values["beside_gbit_s"] = (bytes_from_guest() - before) * 8 / 1e9 / (time.monotonic() - began)
            return values
        finally:
            bulk.kill()
            bulk.wait()

    def measure(self, metric, subject):
        done = subprocess.run(self.command(metric, subject, metric.connections), preexec_fn=self.net.client.enter,
                              capture_output=True, timeout=CLIENT_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise all_subjects.SubjectError(done.stderr.decode().strip() or f"bench_load ended with {done.returncode}")
        return report.derive(metric.kind, json.loads(done.stdout))

    def measure_idle(self, metric, subject):
        """Memory that the connections added, after one connection has been through everything."""
        with self.holding(metric, subject, 1):
            pass
        before, slab_before = resident_bytes(subject.pids()), slab_bytes()
        count = idle_connections(self.options, subject, metric)
        with self.holding(metric, subject, count):
            time.sleep(0.5)
            after, slab_after = resident_bytes(subject.pids()), slab_bytes()
            facts = subject.facts()
        return {"held": count, "rss_bytes": (after - before) / count, "rss_mib": after / 2**20,
                "slab_bytes": (slab_after - slab_before) / count}, facts

    def holding(self, metric, subject, connections):
        return HeldConnections(self.net.client.popen(*self.command(metric, subject, connections), stdin=subprocess.PIPE,
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
    """As many as asked for, or as RLIMIT_NOFILE allows: a proxy holds two descriptors a connection."""
    allowed = (options.descriptors - FD_RESERVE - subject.idle_forwards) // 2
    return min(options.connections or metric.connections, allowed)


def bytes_from_guest():
    with open("/proc/net/dev", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.split()[0] == f"{network.GUEST_DEVICE}:")


def slab_bytes():
    """Of the whole kernel: the load's two ends are in it too."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Slab:"))


def resident_bytes(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            total += int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return total


def run_subject(options, subject, names, round_number, runs):
    """Measures on a fresh start of the subject in a fresh network; what fails is noted and does not stop the others."""
    connections_max = max([2_500] + [idle_connections(options, subject, METRICS[name]) + 50
                                     for name in names if METRICS[name].kind == "idle"])
    try:
        with network.Network(options.load if options.link == "tap" else None) as net:
            load = Load(options, net)
            try:
                subject.start(connections_max)
                for name in names:
                    run_metric(load, subject, name, round_number, runs)
            finally:
                subject.stop()
                load.stop()
    except (all_subjects.SubjectError, OSError, subprocess.SubprocessError) as error:
        note(runs, subject, ",".join(names), round_number, {"error": str(error)})


def run_metric(load, subject, name, round_number, runs):
    metric = METRICS[name]
    try:
        if metric.kind == "idle":
            values, facts = load.measure_idle(metric, subject)
        else:
            measure = load.measure_mix if metric.kind == "mix" else load.measure
            values, facts = measure(metric, subject), subject.facts()
        problem = subject.check(metric.kind, facts)
        note(runs, subject, name, round_number, {"error": problem} if problem else {"values": values, "facts": facts})
    except (all_subjects.SubjectError, OSError, subprocess.SubprocessError, ZeroDivisionError) as error:
        note(runs, subject, name, round_number, {"error": str(error)})


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


def main():
    options = parse_arguments()
    if os.geteuid() != 0:
        sys.exit("compare.py: needs root, to make network namespaces")
    network.isolate(SCRATCH)

    chosen = [subject(options) for subject in all_subjects.ALL if subject.name in options.subjects]
    skipped = {subject.name: reason for subject in chosen if (reason := subject.missing())}
    chosen = [subject for subject in chosen if subject.name not in skipped]
    results = {
        "meta": {
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "kernel": platform.release(), "processors": os.cpu_count(), "processor": processor_name(),
            "rounds": options.rounds, "seconds": options.seconds, "workers": options.workers,
            "baseline": options.baseline, "link": options.link, "descriptors": options.descriptors,
            "background_cpu": background_cpu(), "skipped": skipped,
            "versions": {subject.name: subject.version() for subject in chosen},
        },
        "runs": [],
    }
    moving = [name for name in options.metrics if METRICS[name].kind != "idle"]
    for round_number in range(1, options.rounds + 1):
        # Another order in each round: the kernel takes the namespaces of a subject down while the next one runs.
        for subject in random.Random(round_number).sample(chosen, len(chosen)):
            run_subject(options, subject, moving, round_number, results["runs"])
    # Memory does not vary from run to run, and only a fresh process shows it.
    for name in (name for name in options.metrics if METRICS[name].kind == "idle"):
        for subject in chosen:
            if isinstance(subject, all_subjects.Process):
                run_subject(options, subject, [name], 1, results["runs"])
    results["summary"] = report.summarize(results["runs"])
    write_results(options, results, chosen)
    return 1 if any("error" in run for run in results["runs"]) else 0


def write_results(options, results, chosen):
    titles = {subject.name: subject.title for subject in all_subjects.ALL}
    processless = {subject.name for subject in chosen if not isinstance(subject, all_subjects.Process)}
    order = [subject.name for subject in chosen]
    for metric, by_subject in results["summary"].items():
        results["summary"][metric] = {name: by_subject[name] for name in order if name in by_subject}
    os.makedirs(options.output, exist_ok=True)
    text = report.markdown(results, METRICS, titles, processless)
    with open(os.path.join(options.output, "compare.svg"), "w", encoding="utf-8") as file:
        file.write(report.plot(results, METRICS, titles))
    with open(os.path.join(options.output, "compare.json"), "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    with open(os.path.join(options.output, "compare.md"), "w", encoding="utf-8") as file:
        file.write(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Derives the lists in allowed_calls.h from what the test suite's daemons call.

    derive_calls.py record BUILD DIRECTORY [ctest's arguments]   runs the tests in BUILD with each daemon under strace
    derive_calls.py compare DIRECTORY                            prints what was called and is in no list, and the reverse
    derive_calls.py wrapper DIRECTORY                            prints the program to give tests as their PORTWAY_DAEMON

The daemons run with process.sandbox = false: what is refused would not be seen. A worker's calls and the store's all count, and
the control thread's from READY=1 on.
"""
import collections
import json
import os
import re
import stat
import subprocess
import sys

FOLDER = os.path.dirname(os.path.realpath(__file__))
# strace -f -Y -y=off: "PID<comm> call(arguments) = result", and for a call that lasted "PID<comm> <... call resumed>".
LINE = re.compile(r"^(\d+)<([^>]*)> (?:<\.\.\. )?([a-z_0-9]+)(?:\(| resumed>)(.*)")
BEFORE = {"sched_setattr"}  # what the store's thread does first, and once
KINDS = {"worker": "kCallsOfWorkers", "store": "kCallsOfTheStore", "control": "kCallsOfTheControlThread"}


def write_wrapper(directory, program):
    """As the daemon's name, so that tests find the process by it; strace is its grandchild (-D)."""
    os.makedirs(directory, exist_ok=True)
    path = f"{os.path.abspath(directory)}/wrapper"
    with open(path, "w", encoding="ascii") as file:
        file.write('#!/bin/sh\ncase "$*" in *--check*|*--version*|*--help*) exec ' + program + ' "$@" ;; esac\n'
                   "export PORTWAY_PROCESS_SANDBOX=false\n"
                   f"exec strace -D -f -q -q --decode-pids=comm -s 16 -e signal=none -o {os.path.abspath(directory)}/trace.$$ "
                   + program + ' "$@"\n')
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path


def record(build, directory, arguments):
    program = write_wrapper(directory, os.path.abspath(f"{build}/portwayd"))
    tests = subprocess.run(["ctest", "--test-dir", build, "--show-only=json-v1", *arguments], check=True,
                           capture_output=True, text=True).stdout
    for test in json.loads(tests)["tests"]:
        settings = next((p["value"] for p in test["properties"] if p["name"] == "ENVIRONMENT"), [])
        environment = {**os.environ, **dict(each.split("=", 1) for each in settings), "PORTWAY_DAEMON": program}
        print(test["name"], flush=True)
        done = subprocess.run(test["command"], env=environment, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"  failed under strace, which may be its slowness:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def calls_of(directory):
    """Of each kind of thread."""
    found = collections.defaultdict(collections.Counter)
    for name in os.listdir(directory):
        if not name.startswith("trace."):
            continue
        ready = set()
        with open(f"{directory}/{name}", encoding="utf-8", errors="replace") as file:
            for line in file:
                match = LINE.match(line)
                if not match:
                    continue
                pid, comm, call, rest = match.groups()
                if comm.startswith("worker-"):
                    kind = "worker"
                elif comm == "store":
                    kind = "store"
                elif comm == "portwayd":
                    # Threads that have no name yet are this, too: only the main one says that it is ready.
                    if "READY=1" in rest:
                        ready.add(pid)
                    if pid not in ready:
                        continue
                    kind = "control"
                else:
                    continue
                if call not in BEFORE:
                    found[kind][call] += 1
    return found


def lists():
    with open(f"{FOLDER}/allowed_calls.h", encoding="ascii") as file:
        text = file.read()
    return {name: set("".join(re.findall(r'"([^"]*)"', body)).split())
            for name, body in re.findall(r"string_view (\w+) =\n((?:\s+\"[^\"]*\"\n?)+)", text)}


def compare(directory):
    allowed, found = lists(), calls_of(directory)
    for kind, name in KINDS.items():
        may = allowed[name] | allowed["kCallsOfAnyThread"]
        lacks = {call: count for call, count in sorted(found[kind].items()) if call not in may}
        unused = sorted(allowed[name] - set(found[kind]))
        print(f"{name}\n  lacks: {' '.join(lacks) or 'nothing'}\n  was not seen to need: {' '.join(unused) or 'nothing'}")
    seen = set().union(*found.values())
    print(f"kCallsOfAnyThread\n  was not seen to need: {' '.join(sorted(allowed['kCallsOfAnyThread'] - seen)) or 'nothing'}")
    return any(call not in allowed[name] | allowed["kCallsOfAnyThread"] for kind, name in KINDS.items() for call in found[kind])


def main():
    match sys.argv[1:]:
        case ["record", build, directory, *arguments]:
            record(build, directory, arguments)
        case ["compare", directory]:
            sys.exit(compare(directory))
        case ["wrapper", directory]:
            print(write_wrapper(directory, os.environ["PORTWAY_DAEMON"]))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()

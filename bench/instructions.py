#!/usr/bin/python3
"""Guards the cost of the data plane where times are too noisy: the instructions that code of proxy/ takes for a message
and for a connection, counted by callgrind in the simulator, beside the figures of instructions.json.

    bench/instructions.py build/dev/bench/portway_instructions

Each figure is the difference between many and twice as many, so that start and end do not count, nor do the simulator
and the libraries: only instructions that came from a line of proxy/. The same compiler and flags give the same count;
PORTWAY_UPDATE_REFERENCE=1 takes over what is measured.
"""
import json
import os
import subprocess
import sys
import tempfile

REFERENCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "instructions.json")
COUNT = 1000
TOLERANCE = 0.03


def instructions(path):
    """Of lines in proxy/, from callgrind's output (format: valgrind.org/docs/manual/cl-format.html)."""
    names, total, ours, skip = {}, 0, False, False
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(("fl=", "fi=", "fe=")):
                number, _, name = line[3:].strip().partition(" ")
                if name:
                    names[number] = name
                ours = "/proxy/" in names[number] and "/tests/" not in names[number]
            elif line.startswith("cfi=") or line.startswith("cfl="):
                number, _, name = line[4:].strip().partition(" ")
                if name:
                    names[number] = name
            elif line.startswith("calls="):
                skip = True  # the next line is the callee's cost
            elif line[0] in "0123456789+-*":
                if ours and not skip:
                    total += int(line.split()[1])
                skip = False
    return total


def measure(program, what, count):
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, "out")
        subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", program, what, str(count)],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return instructions(out)


def main():
    program = sys.argv[1]
    measured = {what: round((measure(program, what, 2 * COUNT) - measure(program, what, COUNT)) / COUNT, 1)
                for what in ("messages", "connections")}
    if os.environ.get("PORTWAY_UPDATE_REFERENCE"):
        with open(REFERENCE, "w", encoding="utf-8") as file:
            json.dump(measured, file, indent=1)
            file.write("\n")
    with open(REFERENCE, encoding="utf-8") as file:
        reference = json.load(file)
    failed = False
    for what, count in measured.items():
        ratio = count / reference[what]
        failed |= abs(ratio - 1) > TOLERANCE
        print(f"{what}: {count:.0f} instructions of proxy/ each, {ratio:.3f} of the reference's {reference[what]:.0f}")
    if failed:
        sys.exit(f"More than {TOLERANCE:.0%} off: find out why, or take it over with PORTWAY_UPDATE_REFERENCE=1 in the "
                 "commit that says so.")


if __name__ == "__main__":
    main()

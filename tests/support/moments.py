"""Which of very many moments a test strikes at: some of them, which PORTWAY_SEED chooses (1), or all with PORTWAY_EVERY_CALL.
PORTWAY_SAMPLE_DIVISOR: where a test takes so many times longer (sanitizers)."""
import os
import random

EVERY_CALL = "PORTWAY_EVERY_CALL" in os.environ
SEED = int(os.environ.get("PORTWAY_SEED", "1"))
DIVISOR = int(os.environ.get("PORTWAY_SAMPLE_DIVISOR", "1"))


def some_of(points, at_most, what):
    """In their order."""
    points = list(points)
    count = min(max(1, at_most // DIVISOR), len(points))
    if EVERY_CALL or count == len(points):
        return points
    return [points[i] for i in sorted(random.Random(f"{SEED} {what}").sample(range(len(points)), count))]

"""How Portway is run in a container, as the documents say it: the Dockerfile, docs/containers.md's `docker run`, the DaemonSet,
and the seccomp profile that both name. Read once, for the tests that compare them and for the one that runs them."""
import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS = ROOT / "docs/containers.md"
DOCKERFILE = ROOT / "Dockerfile"
SECCOMP = ROOT / "packaging/container/seccomp.json"
MANIFEST = ROOT / "packaging/kubernetes/portway.yaml"

# What `docker run` is given without a value; all other options here have one.
FLAGS = {"--detach", "--read-only"}


class DockerRun(NamedTuple):
    options: dict  # each with the list of its values
    image: str
    arguments: list

    def one(self, option):
        value, = self.options[option]
        return value

    def command(self):
        return [self.one("--entrypoint"), *self.arguments]


def docker_run():
    """The command in full that docs/containers.md has."""
    block = re.search(r"^    docker run --detach (?:.*\\\n)+.*\n", CONTAINERS.read_text(), re.MULTILINE)[0]
    words = shlex.split(block.replace("\\\n", " "))
    assert words[:2] == ["docker", "run"]
    options = {}
    rest = iter(words[2:])
    for word in rest:
        if not word.startswith("--"):
            return DockerRun(options, word, list(rest))
        options.setdefault(word, []).append(None if word in FLAGS else next(rest))
    raise AssertionError("docker run without an image")


def dockerfile():
    """Its instructions as (name, rest of the line), continued lines joined, in one list for each stage."""
    stages = []
    text = "".join(line + "\n" for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#"))
    for line in filter(None, re.sub(r"\\\n\s*", "", text).splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest))
    return stages


def last_of(stage, instruction):
    """An exec-form instruction of the Dockerfile, as its list of words."""
    return json.loads([rest for name, rest in stage if name == instruction][-1])


def health_check():
    """The command in the image's HEALTHCHECK."""
    line, = [rest for name, rest in dockerfile()[-1] if name == "HEALTHCHECK"]
    return json.loads(line.partition("CMD ")[2])


def manifest():
    return [each for each in yaml.safe_load_all(MANIFEST.read_text()) if each]


def manifest_of(kind):
    found, = [each for each in manifest() if each["kind"] == kind]
    return found


def seccomp():
    return json.loads(SECCOMP.read_text())


def allowed_calls():
    """The names that the profile allows, with all arguments or with some."""
    return {name for rule in seccomp()["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}

"""Writes what is inside the packages, as CycloneDX 1.5: every file with its SHA-256, the shared libraries that the programs
load, and the Debian packages whose code is compiled into them (headers and static libraries).

    sbom.py BUILD_DIRECTORY VERSION PACKAGE_TREE... > portway.cdx.json

It asks the build (ninja's record of what each source includes), the programs (readelf) and dpkg, no list of its own. Called by
packaging/debian/rules.
"""
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

# Debian's short names (copyright-format 1.0) of what SPDX calls otherwise.
SPDX = {"Expat": "MIT", "GPL-2": "GPL-2.0-only", "GPL-2+": "GPL-2.0-or-later", "GPL-3": "GPL-3.0-only",
        "GPL-3+": "GPL-3.0-or-later", "LGPL-2.1": "LGPL-2.1-only", "LGPL-2.1+": "LGPL-2.1-or-later",
        "BSD-2-clause": "BSD-2-Clause", "BSD-3-clause": "BSD-3-Clause", "Boost-1.0": "BSL-1.0"}
KNOWN = {*SPDX.values(), "Apache-2.0", "BSL-1.0", "MIT", "Zlib"}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_program(path):
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def included_files(build):
    """Every file outside of the source tree that is compiled into the programs."""
    source = build.resolve().parents[1]
    paths = {os.path.normpath(build / line.strip()) for line in run("ninja", "-C", build, "-t", "deps").splitlines()
             if line.startswith("    ")}
    return {path for path in paths if not Path(path).is_relative_to(source)}


def loaded_libraries(programs):
    """The files of the shared libraries that the programs name themselves."""
    libraries = set()
    for program in programs:
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "--dynamic", "--wide", program)))
        found = dict(re.findall(r"^\s*(\S+) => (\S+)", run("ldd", program), re.MULTILINE))
        libraries |= {found[name] for name in needed if name in found}
    return libraries


def packages_of(paths):
    """dpkg knows a file by its name before or after the merge of / and /usr."""
    found = set()
    candidates = {each for path in paths for each in (path, os.path.realpath(path), path.removeprefix("/usr"))}
    done = subprocess.run(["dpkg-query", "--search", *sorted(candidates)], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if not line.startswith("diversion "):
            found |= {name.split(":")[0].strip() for name in line.rpartition(": ")[0].split(",")}
    return found


def licences_of(package):
    """Of most of its files, if its copyright file says so in the machine-readable format."""
    try:
        text = Path(f"/usr/share/doc/{package}/copyright").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    stanza = re.search(r"^Files:\s*\*\s*\n(?:.*\n)*?License:[ \t]*(\S.*)$", text, re.MULTILINE)
    if not text.startswith("Format:") or not stanza:
        return []
    name = SPDX.get(stanza[1].strip(), stanza[1].strip())
    return [{"license": {"id" if name in KNOWN else "name": name}}]


def library(package, how):
    version, architecture, source = run(
        "dpkg-query", "--show", "--showformat=${Version}\t${Architecture}\t${source:Package}", package).split("\t")
    purl = f"pkg:deb/debian/{package.replace('+', '%2B')}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={architecture}"
    component = {"type": "library", "bom-ref": purl, "name": package, "version": version, "purl": purl}
    if licences := licences_of(package):
        component["licenses"] = licences
    component["properties"] = [{"name": "portway:source-package", "value": source}] + [
        {"name": "portway:linked", "value": each} for each in sorted(how)]
    return component


def main():
    build, version, trees = Path(sys.argv[1]), sys.argv[2], [Path(each) for each in sys.argv[3:]]
    files, programs = [], []
    for tree in trees:
        for path in sorted(each for each in tree.rglob("*") if each.is_file() and not each.is_symlink()):
            name = f"/{path.relative_to(tree)}"
            if name.startswith("/DEBIAN/"):
                continue
            if is_program(path):
                programs.append(path)
            files.append({"type": "file", "bom-ref": f"file:{tree.name}:{name}", "name": name,
                          "hashes": [{"alg": "SHA-256", "content": sha256(path)}],
                          "properties": [{"name": "portway:package", "value": tree.name}]})
    linked = {}
    for how, packages in (("compiled in", packages_of(included_files(build))),
                          ("dynamically", packages_of(loaded_libraries(programs)))):
        for package in packages:
            linked.setdefault(package, set()).add(how)
    libraries = [library(package, linked[package]) for package in sorted(linked)]
    this = f"pkg:generic/portway@{version}"
    components = libraries + files
    time = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
    serial = uuid.uuid5(uuid.NAMESPACE_URL, this + json.dumps(components))
    json.dump({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": f"urn:uuid:{serial}", "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "application", "bom-ref": this, "name": "portway", "version": version, "purl": this,
                          "licenses": [{"license": {"name": "LicenseRef-Portway"}}]},
            "properties": [{"name": "portway:compiler", "value": run("c++", "--version").splitlines()[0]}]},
        "components": components,
        "dependencies": [{"ref": this, "dependsOn": [each["bom-ref"] for each in libraries]}],
    }, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()

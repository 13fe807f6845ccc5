"""What is in the packages, that they can be made again, how far the unit is locked down, and what a release is made of.

    packages_test.py DIRECTORY_WITH_THE_PACKAGES Contents | Reproducible | Unit | Release
"""
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SOURCE = Path(os.environ["PORTWAY_SOURCE_DIRECTORY"])
PACKAGES = Path(sys.argv.pop(1))
NAMES = ("portway", "portway-client", "portway-client-dbgsym", "portway-dbgsym", "portway-gateway", "portway-gateway-dbgsym")
WITH_PROGRAMS = tuple(name for name in NAMES if not name.endswith("-dbgsym"))
EXPOSURE_MAX = {"portwayd.service": 2.0, "portway-gateway.service": 1.2}


def run(*command, **options):
    """Returns what it prints; fails with that if it fails."""
    done = subprocess.run(list(map(str, command)), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False, **options)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} ends with {done.returncode}:\n{done.stdout}")
    return done.stdout


def skip(reason):
    if "CI" in os.environ:
        raise AssertionError(reason)
    raise unittest.SkipTest(reason)


def packages(directory=PACKAGES):
    return {path.name.split("_")[0]: path for path in sorted(directory.glob("*.deb"), key=lambda path: path.name.split("_"))}


def version():
    return re.search(r"^project\(portway VERSION (\S+)", (SOURCE / "CMakeLists.txt").read_text(), re.MULTILINE)[1]


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def setUpModule():
    if not packages():
        skip("the packages are not built: ./install-packages.sh build packaging")


class WithDirectory(unittest.TestCase):
    def setUp(self):
        self.directory = Path(tempfile.mkdtemp(prefix="portway-packages-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def unpack(self, name):
        tree = self.directory / name
        run("dpkg-deb", "--extract", packages()[name], tree)
        return tree


class Contents(WithDirectory):
    def test_they_are_of_the_version_of_the_project(self):
        self.assertEqual(tuple(packages()), NAMES)
        for path in packages().values():
            self.assertEqual(run("dpkg-deb", "--field", path, "Version").strip(), f"{version()}-1")

    def test_lintian_finds_nothing(self):
        done = run("lintian", "--allow-root", "--fail-on", "error,warning", *packages().values())
        self.assertNotRegex(done, "(?m)^[EW]:")

    def test_the_configuration_is_a_conffile(self):
        for name, file in (("portway", "portway.toml"), ("portway-gateway", "gateway.toml")):
            self.assertIn(f"/etc/portway/{file}", run("dpkg-deb", "--info", packages()[name], "conffiles").split())

    def test_the_configuration_of_the_gateway_is_valid_once_it_names_etcd(self):
        tree = self.unpack("portway-gateway")
        command = (tree / "usr/bin/portway-gateway", "--config", tree / "etc/portway/gateway.toml", "--check")
        with self.assertRaisesRegex(AssertionError, "ends with 2(?s:.*)fleet.etcd is empty"):
            run(*command)
        run(*command, "--set", "fleet.etcd=http://127.0.0.1:2379", "--set", f"api.admin_key_file={self.directory}/admin.key")

    def test_the_configuration_of_the_gateway_has_every_key_with_its_default(self):
        import tomllib
        ours = tomllib.loads((SOURCE / "packaging/gateway.toml").read_text())
        all_keys = tomllib.loads((SOURCE / "config/portway.toml").read_text())
        self.assertEqual(set(ours), {"node", "api", "owners", "log", "metrics", "fleet", "gateway"})
        for table, values in ours.items():
            for key, value in values.items():
                if key != "admin_key_file":
                    self.assertEqual(value, all_keys[table][key], f"{table}.{key}")

    def test_the_client_needs_no_daemon(self):
        self.assertNotRegex(run("dpkg-deb", "--field", packages()["portway-client"], "Depends"), r"\bportway\b")

    def test_has_pages_completions_and_documents(self):
        files = {path.removeprefix(str(tree)) for tree in map(self.unpack, WITH_PROGRAMS)
                 for path in glob.glob(f"{tree}/**", recursive=True)}
        expected = ("/usr/bin/portwayd", "/usr/bin/portway", "/usr/share/man/man1/portway.1.gz",
                    "/usr/share/man/man5/portway.toml.5.gz", "/usr/share/man/man8/portwayd.8.gz",
                    "/usr/share/bash-completion/completions/portway", "/usr/share/fish/vendor_completions.d/portway.fish",
                    "/usr/share/zsh/vendor-completions/_portway", "/usr/lib/sysusers.d/portway.conf",
                    "/usr/lib/tmpfiles.d/portway.conf", "/etc/logrotate.d/portway", "/lib/systemd/system/portwayd.service",
                    "/usr/share/doc/portway/operating.md.gz", "/usr/share/doc/portway/portway.cdx.json",
                    "/usr/bin/portway-gateway", "/usr/share/man/man8/portway-gateway.8.gz",
                    "/lib/systemd/system/portway-gateway.service", "/usr/lib/sysusers.d/portway-gateway.conf")
        self.assertEqual([each for each in expected if each not in files], [])

    def test_what_is_listed_is_what_is_inside(self):
        sbom = json.loads(next(PACKAGES.glob("*.cdx.json")).read_text())
        trees = {name: self.unpack(name) for name in WITH_PROGRAMS}
        self.assertEqual(sbom, json.loads((trees["portway"] / "usr/share/doc/portway/portway.cdx.json").read_text()))
        self.assertEqual(sbom["metadata"]["component"]["version"], version())
        listed = {(each["properties"][0]["value"], each["name"]): each["hashes"][0]["content"] for each in sbom["components"]
                  if each["type"] == "file"}
        found = {(name, f"/{path.relative_to(tree)}"): sha256(path) for name, tree in trees.items()
                 for path in tree.rglob("*") if path.is_file() and path.name != "portway.cdx.json"}
        self.assertEqual(listed, found)
        libraries = {each["name"]: each for each in sbom["components"] if each["type"] == "library"}
        loaded = set()
        for program in (trees["portway"] / "usr/bin/portwayd", trees["portway-client"] / "usr/bin/portway",
                        trees["portway-gateway"] / "usr/bin/portway-gateway"):
            loaded |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "--dynamic", "--wide", program)))
        owners = set()
        known = run("ldconfig", "-p")
        for each in loaded:
            owners.add(self.owner(re.search(rf"^\s*{re.escape(each)} .* => (\S+)$", known, re.MULTILINE)[1]))
        dynamically = {name for name, each in libraries.items()
                       if {"name": "portway:linked", "value": "dynamically"} in each["properties"]}
        self.assertEqual(dynamically, owners)
        for name, each in libraries.items():
            installed = run("dpkg-query", "--show", "--showformat=${Version}", name)
            self.assertEqual(each["version"], installed)
        for compiled_in in ("libboost1.81-dev", "libsqlitecpp-dev", "libstdc++-12-dev"):
            self.assertIn({"name": "portway:linked", "value": "compiled in"}, libraries[compiled_in]["properties"])

    def owner(self, path):
        for each in (path, os.path.realpath(path), path.removeprefix("/usr"), f"/usr{path}"):
            done = subprocess.run(["dpkg-query", "--search", each], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout.split(":")[0]
        raise AssertionError(f"no package has {path}")

    def test_the_list_is_valid_cyclonedx(self):
        import jsonschema
        if not shutil.which("npm"):
            skip("npm is needed: ./install-packages.sh test")
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / "tests/packaging/schema" / name, self.directory)
        try:
            run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--legacy-peer-deps",
                "--loglevel=error", cwd=self.directory, timeout=240)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            skip(f"the schema cannot be installed: {error}")
        schemas = self.directory / "node_modules/@cyclonedx/cyclonedx-library/res/schema"
        schema, *others = (json.loads((schemas / f"{name}.SNAPSHOT.schema.json").read_text())
                           for name in ("bom-1.5", "spdx", "jsf-0.82"))
        named = zip(("spdx", "jsf-0.82"), others)
        store = {f"http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json": each for name, each in named}
        resolver = jsonschema.RefResolver.from_schema(schema, store=store)
        sbom = json.loads(next(PACKAGES.glob("*.cdx.json")).read_text())
        jsonschema.Draft7Validator(schema, resolver=resolver).validate(sbom)
        with self.assertRaises(jsonschema.ValidationError):
            jsonschema.Draft7Validator(schema, resolver=resolver).validate({**sbom, "components": [{"type": "library"}]})


class Reproducible(WithDirectory):
    def test_the_same_programs_make_the_same_packages_elsewhere(self):
        """check-reproducible.sh compiles them twice as well."""
        source = self.directory / "a copy of the source"
        source.mkdir()
        files = run("git", "-C", SOURCE, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        for each in filter(None, files):
            if (SOURCE / each).exists():
                (source / each).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(SOURCE / each, source / each)
                os.utime(source / each, (0, 10 ** 9))
        date = run("git", "-C", SOURCE, "log", "-1", "--format=%ct").strip()
        (self.directory / "t").mkdir()
        run(source / "packaging/build-deb.sh", self.directory / "again", umask=0o077,
            env={**os.environ, "PORTWAY_BUILD": str(PACKAGES.parent), "SOURCE_DATE_EPOCH": date,
                 "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": str(self.directory), "TMPDIR": str(self.directory / "t"),
                 "PORTWAY_KEEP": ""})
        first = {path.name: sha256(path) for path in PACKAGES.iterdir() if path.is_file()}
        self.assertEqual({path.name: sha256(path) for path in (self.directory / "again").iterdir()}, first)


class Unit(WithDirectory):
    def setUp(self):
        super().setUp()
        if not shutil.which("systemd-analyze"):
            skip("systemd is needed: ./install-packages.sh services")
        for unit in EXPOSURE_MAX:
            shutil.copy(SOURCE / "packaging" / unit, self.directory)

    def exposure(self, unit):
        said = run("systemd-analyze", "security", "--offline=true", "--no-pager", self.directory / unit)
        return float(re.search(rf"Overall exposure level for {unit}: (\S+)", said)[1])

    def test_exposes_little(self):
        for unit, most in EXPOSURE_MAX.items():
            self.assertLessEqual(self.exposure(unit), most, unit)

    def test_systemd_knows_every_line_of_the_gateways(self):
        tree = self.unpack("portway-gateway")
        unit = self.directory / "portway-gateway.service"
        unit.write_text(unit.read_text().replace("/usr/bin/portway-gateway", str(tree / "usr/bin/portway-gateway")))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
        self.assertEqual([line for line in (done.stdout + done.stderr).splitlines() if "portway-gateway" in line], [])

    def test_systemd_knows_every_line_also_those_of_the_examples(self):
        tree = self.unpack("portway")
        shutil.copytree(tree / "lib", self.directory / "root/usr/lib")
        unit = self.directory / "portwayd.service"
        text = unit.read_text()
        drop_ins = self.directory / "portwayd.service.d"
        drop_ins.mkdir()
        for each in ("captures.conf", "guest-namespaces.conf", "guest-sockets.conf"):
            shutil.copy(tree / "usr/share/doc/portway/examples" / each, drop_ins)
        unit.write_text(text.replace("/usr/bin/portwayd", str(tree / "usr/bin/portwayd")))
        sockets = self.directory / "portwayd.socket"
        shutil.copy(tree / "usr/share/doc/portway/examples/portwayd.socket", sockets)
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit), str(sockets)], capture_output=True, text=True,
                              check=False)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "portwayd" in line or ".conf" in line]
        self.assertEqual(said, [])


class Release(WithDirectory):
    """release.sh in a repository of its own, in which a package is a file."""

    def setUp(self):
        super().setUp()
        self.top = self.directory / "source"
        (self.top / "packaging").mkdir(parents=True)
        shutil.copy(SOURCE / "packaging/release.sh", self.top / "packaging")
        build = self.top / "packaging/build-deb.sh"
        build.write_text('#!/bin/sh\ncp "$(dirname "$0")/../CHANGELOG.md" "$1/portway_1.2.3-1_all.deb"\n')
        build.chmod(0o755)
        (self.top / "CMakeLists.txt").write_text("project(portway VERSION 1.2.3 LANGUAGES C CXX)\n")
        self.git("init", "--quiet")
        self.commit("# Changelog\n\n## Unreleased\n\n## 1.2.3 - 2026-01-01\n- All of it.\n")

    def git(self, *words):
        return run("git", "-c", "user.name=t", "-c", "user.email=t@t.invalid", "-C", self.top, *words)

    def commit(self, changelog):
        (self.top / "CHANGELOG.md").write_text(changelog)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "A commit")

    def release(self, *words):
        output = self.directory / f"out{len(list(self.directory.iterdir()))}"
        return run(self.top / "packaging/release.sh", *words, output), output

    def test_has_the_source_the_packages_and_checksums(self):
        _, output = self.release()
        self.assertEqual(sorted(path.name for path in output.iterdir()),
                         ["SHA256SUMS", "portway-1.2.3.tar.gz", "portway_1.2.3-1_all.deb"])
        self.assertEqual(run("sha256sum", "--check", "SHA256SUMS", cwd=output).count("OK"), 2)
        self.assertIn("portway-1.2.3/packaging/release.sh", run("tar", "tzf", output / "portway-1.2.3.tar.gz"))

    def test_is_the_same_again(self):
        _, first = self.release()
        _, second = self.release()
        self.assertEqual((first / "SHA256SUMS").read_text(), (second / "SHA256SUMS").read_text())

    def test_is_refused_with_changes_that_are_not_committed(self):
        (self.top / "stray").write_text("")
        self.is_refused("not committed")

    def test_is_refused_without_a_section_of_the_changelog(self):
        self.commit("# Changelog\n\n## 1.2.30 - 2026-01-01\n- Another.\n")
        self.is_refused('no section "## 1.2.3"')

    def test_is_refused_with_changes_that_no_version_has(self):
        self.commit("# Changelog\n\n## Unreleased\n- New.\n\n## 1.2.3 - 2026-01-01\n- All of it.\n")
        self.is_refused("under Unreleased")

    def is_refused(self, why):
        with self.assertRaisesRegex(AssertionError, why):
            self.release()
        said, output = self.release("--dry-run")
        self.assertIn(why, said)
        self.assertTrue((output / "SHA256SUMS").exists())


if __name__ == "__main__":
    unittest.main(verbosity=2)

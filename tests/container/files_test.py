"""The files that make and run a container, held against each other and against what their readers accept. An image cannot be
built where the tests run; run_test.py runs what is in it.

    files_test.py [Dockerfile | SeccompProfile | Manifest | Consistency]
"""
import os
import re
import shutil
import subprocess
import sys
import tomllib
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.container import documented  # noqa: E402
from tests.container.documented import ROOT  # noqa: E402

SKIPPED = 77  # ctest's SKIP_RETURN_CODE
USER = "65532"


class Dockerfile(unittest.TestCase):
    """What hadolint looks for, and what is ours."""

    def setUp(self):
        self.stages = documented.dockerfile()
        self.image = self.stages[-1]

    def all(self, *names):
        return [rest for stage in self.stages for name, rest in stage if name in names]

    def test_instructions_are_known_and_in_capitals(self):
        known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
        self.assertLessEqual({name for stage in self.stages for name, _ in stage}, known)  # so no ADD and no MAINTAINER

    def test_the_base_images_are_of_the_debian_that_the_packages_are_for(self):
        self.assertEqual([rest.split()[0] for rest in self.all("FROM")], ["debian:12", "debian:12-slim"])

    def test_package_lists_are_removed_in_the_layer_that_fetched_them(self):
        fetching = [run for run in self.all("RUN") if "apt-get" in run or "install-packages.sh" in run]
        self.assertEqual(len(fetching), 2)
        for run in fetching:
            self.assertTrue(run.endswith("&& rm -rf /var/lib/apt/lists/*"), run)

    def test_apt_asks_nothing_and_installs_nothing_that_is_only_recommended(self):
        for run in self.all("RUN"):
            self.assertNotRegex(run, r"\bapt (install|update)|dist-upgrade|apt-get upgrade|sudo|\bcd ")
            for install in re.findall(r"apt-get install([^&]*)", run):
                self.assertIn("--yes --no-install-recommends", install)

    def test_our_packages_say_themselves_what_they_need(self):
        installs = re.findall(r"apt-get install([^&]*)", " ".join(self.all("RUN")))
        self.assertEqual([[word for word in install.split() if not word.startswith("-")] for install in installs],
                         [["systemd-standalone-sysusers", "systemd-standalone-tmpfiles"],  # instead of systemd
                          ["/packages/portway_*.deb", "/packages/portway-client_*.deb",
                           "/packages/portway-gateway_*.deb"]])

    def test_the_packages_are_built_as_on_any_machine(self):
        self.assertEqual([rest for name, rest in self.stages[0] if name == "RUN"],
                         ["./install-packages.sh build packaging && rm -rf /var/lib/apt/lists/*",
                          "packaging/build-deb.sh /out"])
        self.assertIn("--mount=type=bind,from=packages,source=/out,target=/packages", " ".join(self.all("RUN")))

    def test_no_service_is_started_and_no_file_is_changed_behind_the_packages_back(self):
        for name, rest in self.image:
            if name == "RUN":
                self.assertNotRegex(rest, r"systemctl|service |invoke-rc|setcap|chmod|\bcp ")
            self.assertNotEqual(name, "COPY")

    def test_paths_are_absolute_and_what_is_copied_exists(self):
        for path in self.all("WORKDIR"):
            self.assertTrue(path.startswith("/"), path)
        for line in self.all("COPY"):
            *sources, target = line.split()
            self.assertTrue(len(sources) == 1 or target.endswith("/"), line)
            for source in sources:
                self.assertTrue((ROOT / source).exists(), source)

    def test_what_the_build_stage_runs_is_not_kept_out_of_it(self):
        ignored = (ROOT / ".dockerignore").read_text().split()
        self.assertEqual(ignored, [".git", "build"])

    def test_commands_are_lists_of_words(self):
        self.assertEqual(documented.last_of(self.image, "ENTRYPOINT"), ["/usr/bin/portwayd", "--supervise"])
        self.assertEqual(documented.last_of(self.image, "CMD"), ["--config", "/etc/portway/portway.toml"])
        self.assertEqual(documented.health_check(), ["/usr/bin/portway", "healthcheck", "--config", "/etc/portway/portway.toml"])

    def test_it_does_not_run_as_root_unless_it_is_told_to(self):
        self.assertEqual([rest for name, rest in self.image if name == "USER"], [f"{USER}:{USER}"])
        names = [name for name, _ in self.image]
        users, packages = [i for i, name in enumerate(names) if name == "RUN"]
        self.assertIn(f"useradd --system --uid {USER} --gid {USER} ", self.image[users][1])
        self.assertIn("apt-get install", self.image[packages][1])
        self.assertLess(packages, names.index("USER"))


class SeccompProfile(unittest.TestCase):
    def setUp(self):
        self.profile = documented.seccomp()
        self.rules = self.profile["syscalls"]

    def test_has_only_what_oci_runtimes_docker_and_the_kubelet_read(self):
        self.assertEqual(set(self.profile), {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"})
        self.assertEqual((self.profile["defaultAction"], self.profile["defaultErrnoRet"]), ("SCMP_ACT_ERRNO", 1))
        self.assertEqual(self.profile["architectures"], ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"])
        for rule in self.rules:
            self.assertLessEqual({"comment", "names", "action"}, set(rule))
            self.assertLessEqual(set(rule), {"comment", "names", "action", "args", "errnoRet"})
            self.assertIn(rule["action"], ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"))
            for argument in rule.get("args", []):
                self.assertIn(argument["op"], ("SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"))
                self.assertLess(argument["index"], 6)

    def test_each_call_is_named_once_and_exists(self):
        names = [name for rule in self.rules for name in rule["names"] if name != "socket"]
        self.assertEqual(sorted(names), sorted(set(names)))
        for rule in self.rules:
            self.assertEqual(rule["names"], sorted(rule["names"]))
        for name in names:
            number = subprocess.run(["scmp_sys_resolver", name], capture_output=True, text=True, check=True).stdout.strip()
            self.assertNotEqual(number, "-1", name)

    def test_calls_that_change_the_node_are_not_among_them(self):
        self.assertFalse(documented.allowed_calls() & {
            "acct", "add_key", "chroot", "delete_module", "finit_module", "init_module", "ioperm", "iopl", "kcmp",
            "kexec_file_load", "kexec_load", "keyctl", "mount", "move_mount", "open_by_handle_at", "perf_event_open",
            "personality", "pidfd_getfd", "pivot_root", "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "reboot",
            "request_key", "sethostname", "settimeofday", "swapon", "syslog", "umount2", "unshare", "userfaultfd"})

    def test_new_namespaces_are_refused(self):
        rules = {name: rule for rule in self.rules for name in rule["names"]}
        every_new_namespace = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
        self.assertEqual(rules["clone"]["args"], [
            {"index": 0, "value": every_new_namespace, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 0}])
        self.assertEqual((rules["clone3"]["action"], rules["clone3"]["errnoRet"]), ("SCMP_ACT_ERRNO", 38))  # ENOSYS


class Manifest(unittest.TestCase):
    def setUp(self):
        self.pod = documented.manifest_of("DaemonSet")["spec"]["template"]["spec"]
        self.daemon, = self.pod["containers"]
        self.prepare, = self.pod["initContainers"]

    def test_what_is_named_is_there(self):
        names = {(each["kind"], each["metadata"]["name"]) for each in documented.manifest()}
        self.assertIn(("ServiceAccount", self.pod["serviceAccountName"]), names)
        for each in documented.manifest():
            if each["kind"] != "Namespace":
                self.assertIn(("Namespace", each["metadata"]["namespace"]), names)
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        self.assertIn(("ConfigMap", volumes["config"]["configMap"]["name"]), names)
        mounted = {mount["name"] for each in (self.daemon, self.prepare) for mount in each["volumeMounts"]}
        self.assertEqual(mounted, set(volumes))
        self.assertIn(volumes["admin-key"]["secret"]["secretName"], documented.CONTAINERS.read_text())
        self.assertIn("/var/lib/kubelet/seccomp/" + self.pod["securityContext"]["seccompProfile"]["localhostProfile"],
                      documented.CONTAINERS.read_text())
        spec = documented.manifest_of("DaemonSet")["spec"]
        self.assertEqual(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"])

    def test_no_token_and_no_more_of_the_node_than_needed(self):
        self.assertIs(documented.manifest_of("ServiceAccount")["automountServiceAccountToken"], False)
        self.assertIs(self.pod["automountServiceAccountToken"], False)
        self.assertIs(self.pod["hostNetwork"], True)
        self.assertFalse({"hostPID", "hostIPC", "hostUsers"} & set(self.pod))
        self.assertEqual([volume["hostPath"]["path"] for volume in self.pod["volumes"] if "hostPath" in volume],
                         ["/var/lib/portway"])
        for each in (self.daemon, self.prepare):
            context = each["securityContext"]
            self.assertIs(context["allowPrivilegeEscalation"], False)
            self.assertIs(context["readOnlyRootFilesystem"], True)
            self.assertEqual(context["capabilities"]["drop"], ["ALL"])
            self.assertNotIn("privileged", context)
            self.assertIn("memory", each["resources"]["limits"])
            self.assertNotIn("cpu", each["resources"]["limits"])  # a throttled data plane stalls every connection

    def test_probes_run_the_image_s_health_check(self):
        check = documented.health_check()
        ready = [*check[:2], "--ready", *check[2:]]
        self.assertEqual(self.daemon["startupProbe"]["exec"]["command"], check)
        self.assertEqual(self.daemon["livenessProbe"]["exec"]["command"], check)
        self.assertEqual(self.daemon["readinessProbe"]["exec"]["command"], ready)

    def test_connections_get_their_time_to_end(self):
        reference = tomllib.loads((ROOT / "config/portway.toml").read_text())
        drain = reference["proxy"]["drain_timeout_s"]
        self.assertGreater(self.pod["terminationGracePeriodSeconds"], drain)
        self.assertGreater(int(documented.docker_run().one("--stop-timeout")), drain)

    def test_the_configuration_has_only_keys_that_exist(self):
        reference = tomllib.loads((ROOT / "config/portway.toml").read_text())
        config = tomllib.loads(documented.manifest_of("ConfigMap")["data"]["portway.toml"])
        for table, keys in config.items():
            self.assertLessEqual(set(keys), set(reference[table]))
        mounts = {mount["mountPath"] for mount in self.daemon["volumeMounts"]}
        self.assertIn(os.path.dirname(config["api"]["admin_key_file"]), mounts)
        self.assertIn(config["api"]["admin_key_file"], self.prepare["args"][0])


class Consistency(unittest.TestCase):
    """The unit, `docker run` and the DaemonSet give the daemon the same."""

    def setUp(self):
        self.docker = documented.docker_run()
        self.daemon, = documented.manifest_of("DaemonSet")["spec"]["template"]["spec"]["containers"]

    def test_the_command_is_the_same(self):
        self.assertEqual(self.docker.command(), self.daemon["command"])
        image = documented.dockerfile()[-1]
        plain = documented.last_of(image, "ENTRYPOINT") + documented.last_of(image, "CMD")
        self.assertEqual(self.docker.command()[-len(plain):], plain)

    def test_the_image_is_of_this_version(self):
        version = re.search(r"project\(portway VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
        images = {self.docker.image, *re.findall(r"image: (\S+)", documented.MANIFEST.read_text())}
        self.assertEqual(images, {f"portway:{version}"})

    def test_capabilities_are_those_of_the_unit_and_what_setpriv_needs(self):
        added = set(self.docker.options["--cap-add"])
        self.assertEqual(self.docker.options["--cap-drop"], ["ALL"])
        self.assertEqual(added, set(self.daemon["securityContext"]["capabilities"]["add"]))
        kept = {name.split("=", 1)[0]: name.split("=", 1)[1].split(",")
                for name in self.docker.arguments if name.startswith(("--inh-caps", "--ambient-caps"))}
        self.assertEqual(kept["--inh-caps"], kept["--ambient-caps"])
        self.assertEqual(kept["--inh-caps"][0], "-all")
        daemons = {name.removeprefix("+").upper() for name in kept["--inh-caps"][1:]}
        self.assertEqual(added, daemons | {"SETUID"})
        unit = ROOT / "packaging/portwayd.service"
        if unit.exists():
            for setting in ("AmbientCapabilities", "CapabilityBoundingSet"):
                words = re.search(rf"^{setting}=(.*)$", unit.read_text(), re.MULTILINE)[1].split()
                self.assertEqual({word.removeprefix("CAP_") for word in words}, daemons, setting)
        text = (ROOT / "docs/operating.md").read_text()
        for name in daemons:
            self.assertIn(f"| `CAP_{name}` |", text)

    def test_the_user_is_the_image_s_and_the_group_is_its_from_the_start(self):
        self.assertEqual(self.docker.one("--user"), f"0:{USER}")
        context = self.daemon["securityContext"]
        self.assertEqual((context["runAsUser"], context["runAsGroup"]), (0, int(USER)))
        self.assertIn(f"--reuid={USER}", self.docker.command())

    def test_what_can_be_written_is_the_same(self):
        self.assertIn("--read-only", self.docker.options)
        written = {volume.split(":")[1] for volume in self.docker.options["--volume"]}
        written |= {tmpfs.split(":")[0] for tmpfs in self.docker.options["--tmpfs"]}
        self.assertEqual(written, {mount["mountPath"] for mount in self.daemon["volumeMounts"]})
        self.assertEqual({volume.split(":")[1] for volume in self.docker.options["--volume"]},
                         set(documented.last_of(documented.dockerfile()[-1], "VOLUME")))

    def test_docker_is_told_the_rest(self):
        self.assertEqual(self.docker.options["--network"], ["host"])
        self.assertEqual(self.docker.options["--security-opt"], ["no-new-privileges", "seccomp=/etc/portway/seccomp.json"])
        limit = int(self.docker.one("--ulimit").removeprefix("nofile=").split(":")[0])
        proxy = tomllib.loads((ROOT / "config/portway.toml").read_text())["proxy"]
        self.assertGreater(limit, 2 * proxy["connections_max"] + 2 * proxy["pipes_max"])


if __name__ == "__main__":
    if shutil.which("scmp_sys_resolver") is None and "SeccompProfile" in sys.argv:
        print("scmp_sys_resolver is not installed: apt-get install seccomp")
        sys.exit(1 if "CI" in os.environ else SKIPPED)
    unittest.main(verbosity=2)

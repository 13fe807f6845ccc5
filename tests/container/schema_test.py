"""packaging/kubernetes against the types of the Kubernetes API: a field that does not exist, one of a wrong type and a missing
one are errors of the TypeScript compiler. tests/container/kubernetes pins the types, which come from npm.

    schema_test.py DIRECTORY     they are installed into DIRECTORY
"""
import copy
import json
import os
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.container import documented  # noqa: E402
from tests.support.npm import Packages  # noqa: E402

PACKAGES = Packages(str(Path(__file__).parent / "kubernetes"), os.path.abspath(sys.argv.pop(1)))
MODULES = {"v1": "core/v1", "apps/v1": "apps/v1"}  # of each apiVersion


def setUpModule():
    PACKAGES.install()


class Schema(unittest.TestCase):
    @staticmethod
    def compile(objects):
        lines = []
        for i, each in enumerate(objects):
            kind, module = each["kind"], MODULES[each["apiVersion"]]
            lines.append(f'import type {{{kind} as Kind{i}}} from "kubernetes-types/{module}.d.ts";')
            lines.append(f"export const object{i}: Kind{i} = {json.dumps(each, indent=2)};")
        with open(f"{PACKAGES.directory}/manifest.ts", "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        PACKAGES.run(PACKAGES.tool("tsc"), "--project", "tsconfig.json")

    def test_the_manifest_is_what_kubernetes_reads(self):
        self.compile(documented.manifest())

    def test_a_mistake_would_be_found(self):
        daemon_set = documented.manifest_of("DaemonSet")
        wrong = []
        for change in (lambda pod, daemon: daemon["securityContext"].update(readonlyRootFilesystem=True),
                       lambda pod, daemon: pod.update(terminationGracePeriodSeconds="45"),
                       lambda pod, daemon: daemon.pop("name"),
                       lambda pod, daemon: daemon["securityContext"]["capabilities"].update(add="BPF")):
            wrong.append(copy.deepcopy(daemon_set))
            pod = wrong[-1]["spec"]["template"]["spec"]
            change(pod, pod["containers"][0])
        with self.assertRaises(AssertionError) as failed:
            self.compile([daemon_set, *wrong])
        message = str(failed.exception)
        self.assertEqual(message.count("error TS"), len(wrong), message)


if __name__ == "__main__":
    unittest.main(verbosity=2)  # with the reason why something is skipped

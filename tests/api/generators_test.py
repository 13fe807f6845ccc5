"""api/openapi.yaml in the tools of those who use it: two linters with their recommended rules, and a TypeScript client that is
generated, compiled and run against the real daemon. tests/api/generators pins the tools, which come from npm.

    generators_test.py DIRECTORY [TEST]     the tools are installed into DIRECTORY
"""
import os
import sys
import unittest

SOURCE = os.environ["PORTWAY_SOURCE_DIRECTORY"]
sys.path.insert(0, SOURCE)
from tests.support.npm import Packages  # noqa: E402
from tests.support.portwayd import Portwayd, isolate  # noqa: E402

CONTRACT = f"{SOURCE}/api/openapi.yaml"
PACKAGES = Packages(f"{SOURCE}/tests/api/generators", os.path.abspath(sys.argv.pop(1)))
run, tool = PACKAGES.run, PACKAGES.tool


def setUpModule():
    PACKAGES.install()


class Lint(unittest.TestCase):
    def test_spectral_finds_nothing(self):
        run(tool("spectral"), "lint", "--ruleset=.spectral.yaml", "--fail-severity=hint", CONTRACT)

    def test_redocly_finds_nothing(self):
        output = run(tool("redocly"), "lint", "--config=redocly.yaml", "--format=stylish", CONTRACT,
                     env={**os.environ, "REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"})
        self.assertNotIn("warning", output)  # it succeeds with warnings


class TypeScript(unittest.TestCase):
    def test_a_generated_client_compiles_and_works(self):
        run(tool("openapi-typescript"), CONTRACT, "--output=portway.d.ts", "--default-non-nullable=false")
        run(tool("tsc"), "--project", "tsconfig.json")
        isolate()
        node = self.enterContext(Portwayd())
        output = run("node", "compiled/client.js", timeout=60,
                     env={**os.environ, "PORTWAY_URL": f"http://127.0.0.1:{node.port}", "PORTWAY_KEY": node.admin_key()})
        self.assertIn("The generated client works.", output)


if __name__ == "__main__":
    unittest.main(verbosity=2)  # with the reason why something is skipped

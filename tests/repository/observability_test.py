"""The rules, the dashboard and the runbook: they parse, the alerts ring when they should, and every metric that they name is
one that the daemon has.
"""
import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = os.environ["PORTWAY_SOURCE_DIRECTORY"]
RULES = f"{ROOT}/metrics/prometheus"


def read(path):
    with open(f"{ROOT}/{path}", encoding="utf-8") as file:
        return file.read()


class Observability(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if shutil.which("promtool") is None:
            if "CI" in os.environ:
                raise AssertionError("promtool is missing: install the package prometheus")
            raise unittest.SkipTest("promtool is missing: install the package prometheus")
        cls.dashboard = json.loads(read("metrics/grafana/portway.json"))

    def promtool(self, *arguments):
        done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def expressions(self):
        for panel in self.dashboard["panels"]:
            for target in panel.get("targets", []):
                yield target["expr"].replace("$__rate_interval", "5m").replace("$node", ".*")

    def test_the_rules_are_sound_and_ring_when_they_should(self):
        self.promtool("check", "rules", "portway.rules.yml", "portway.alerts.yml")
        self.promtool("test", "rules", "portway_test.yml")

    def test_the_dashboards_expressions_parse(self):
        rules = [{"record": f"panel:{i}", "expr": expression} for i, expression in enumerate(self.expressions())]
        self.assertGreater(len(rules), 20)
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)  # JSON is YAML
            file.flush()
            self.promtool("check", "rules", file.name)
        ids = [panel["id"] for panel in self.dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))

    def test_every_metric_that_is_named_exists(self):
        known = set(re.findall(r"^\| `((?:portway|process)_\w+)`", read("metrics/metrics.md"), re.MULTILINE))
        texts = {"dashboard": "\n".join(self.expressions()), "runbook": read("docs/runbook.md")}
        for name in ("portway.rules.yml", "portway.alerts.yml"):
            texts[name] = read(f"metrics/prometheus/{name}")
        for place, text in texts.items():
            for metric in re.findall(r"(?<![\w:])(?:portway|process)_[a-z_]+", text):
                name = re.sub(r"_(bucket|sum|count)$", "", metric)
                self.assertTrue(name in known or metric in known, f"{place} names {metric}")

    def test_every_alert_has_its_section_in_the_runbook(self):
        alerts = set(re.findall(r"alert: (\w+)", read("metrics/prometheus/portway.alerts.yml")))
        links = set(re.findall(r"docs/runbook\.md#(\w+)", read("metrics/prometheus/portway.alerts.yml")))
        sections = set(re.findall(r"^## (\w+)$", read("docs/runbook.md"), re.MULTILINE))
        self.assertEqual(sections, alerts)
        self.assertEqual(links, {alert.lower() for alert in alerts})


if __name__ == "__main__":
    unittest.main()

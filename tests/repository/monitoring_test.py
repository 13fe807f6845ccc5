"""What operators load beside the daemon: Prometheus rules and alerts, the Grafana dashboard, the runbook. They must be well-formed, and name
only metrics and labels that metrics/metrics.md and metrics/gateway.md have, which tests hold to the programs.

    monitoring_test.py [PrometheusRules | GrafanaDashboard | Runbook]
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "metrics/prometheus/portway.rules.yml"
ALERTS = ROOT / "metrics/prometheus/portway.alerts.yml"
RULE_TESTS = ROOT / "metrics/prometheus/portway_test.yml"
DASHBOARD = ROOT / "metrics/grafana/portway.json"
RUNBOOK = ROOT / "docs/runbook.md"

SKIPPED = 77  # ctest's SKIP_RETURN_CODE
TARGET_LABELS = {"job", "instance"}  # from Prometheus, on every series


def rules_of(path):
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alerts():
    return [rule for rule in rules_of(ALERTS) if "alert" in rule]


def exported():
    """Each series' name, with the labels it has."""
    names = {"up": TARGET_LABELS}
    pages = [(ROOT / "metrics" / name).read_text() for name in ("metrics.md", "gateway.md")]
    for line in "\n".join(pages).splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 5 or not re.fullmatch(r"`\w+`", cells[1]):
            continue
        name = cells[1].strip("`")
        labels = TARGET_LABELS | set(re.findall(r"`(\w+)`", cells[3]))
        if cells[2] == "histogram":
            names |= {name + "_bucket": labels | {"le"}, name + "_count": labels, name + "_sum": labels}
        else:
            names[name] = labels
    return names


def unknown_in(text):
    """What `text`, of PromQL or prose with PromQL, names and does not exist."""
    series = exported()
    recorded = {rule["record"] for rule in rules_of(RULES)}
    wrong = []
    for name in re.findall(r"\b\w+:\w+:\w+\b", text):
        if name not in recorded:
            wrong.append(name)
    for name, matchers in re.findall(r"(?<![\w:/.])((?:portway|process)_\w+)(?!\w*:)(?:{([^}]*)})?", text):
        if name not in series:
            wrong.append(name)
            continue
        wrong += [f"{name}{{{label}}}" for label in re.findall(r"(\w+)\s*[=!]", re.sub(r'"[^"]*"', '""', matchers))
                  if label not in series[name]]
    return wrong


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    return done.returncode, done.stdout


class PrometheusRules(unittest.TestCase):
    def test_promtool_takes_them(self):
        status, output = promtool("check", "rules", RULES, ALERTS)
        self.assertEqual(status, 0, output)

    def test_their_own_tests_pass(self):
        status, output = promtool("test", "rules", RULE_TESTS)
        self.assertEqual(status, 0, output)

    def test_they_read_only_what_exists(self):
        for rule in rules_of(RULES) + alerts():
            self.assertEqual(unknown_in(rule["expr"]), [], rule)

    def test_every_alert_waits_and_explains_itself(self):
        for alert in alerts():
            with self.subTest(alert["alert"]):
                self.assertIn("for", alert)
                self.assertIn(alert["labels"]["severity"], ("critical", "warning"))
                self.assertEqual(set(alert["annotations"]), {"summary", "description", "runbook_url"})

    def test_every_alert_is_seen_to_fire_and_to_stay_silent(self):
        cases = [case for test in yaml.safe_load(RULE_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
        for alert in alerts():
            outcomes = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == alert["alert"]}
            self.assertEqual(outcomes, {True, False}, alert["alert"])


class Runbook(unittest.TestCase):
    def test_has_a_section_for_each_alert_and_no_other(self):
        sections = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
        self.assertEqual(sections, [alert["alert"] for alert in alerts()])
        for alert in alerts():
            self.assertEqual(alert["annotations"]["runbook_url"], "docs/runbook.md#" + alert["alert"].lower())

    def test_every_section_says_what_it_means_how_to_confirm_what_to_do_and_when_to_escalate(self):
        for section in RUNBOOK.read_text().split("\n## ")[1:]:
            parts = re.findall(r"^\*\*(\w+)\*\*", section, re.MULTILINE)
            self.assertEqual(parts, ["Means", "Confirm", "Do", "Escalate"], section.splitlines()[0])

    def test_names_only_metrics_that_exist(self):
        self.assertEqual(unknown_in(RUNBOOK.read_text()), [])


class GrafanaDashboard(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dashboard = json.loads(DASHBOARD.read_text())
        cls.panels = cls.dashboard["panels"]
        cls.exprs = [target["expr"] for panel in cls.panels for target in panel.get("targets", [])]
        cls.exprs += [annotation["expr"] for annotation in cls.dashboard["annotations"]["list"]]

    def test_every_query_parses(self):
        rules = []
        for i, expr in enumerate(self.exprs):
            expr = expr.replace("$__rate_interval", "5m").replace("$node", ".*")
            self.assertNotIn("$", expr)
            rules.append({"record": f"query_{i}", "expr": expr})
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)  # JSON is YAML
            file.flush()
            status, output = promtool("check", "rules", file.name)
        self.assertEqual(status, 0, output)
        self.assertIn(f"{len(self.exprs)} rules found", output)

    def test_reads_only_what_exists(self):
        for expr in self.exprs:
            self.assertEqual(unknown_in(expr), [], expr)

    def test_every_query_is_of_the_nodes_and_the_source_that_were_chosen(self):
        variables = {variable["name"] for variable in self.dashboard["templating"]["list"]}
        self.assertEqual(variables, {"datasource", "node"})
        for expr in self.exprs:
            self.assertIn('instance=~"$node"', expr)
        for panel in self.panels:
            if panel["type"] != "row":
                self.assertEqual({part["datasource"]["uid"] for part in [panel, *panel["targets"]]}, {"${datasource}"})

    def test_panels_have_their_own_ids_and_places(self):
        self.assertEqual(len({panel["id"] for panel in self.panels}), len(self.panels))
        cells = set()
        for panel in self.panels:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            own = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                   for y in range(place["y"], place["y"] + place["h"])}
            self.assertFalse(cells & own, panel["title"])
            cells |= own


if __name__ == "__main__":
    if shutil.which("promtool") is None:
        print("promtool is not installed: apt-get install prometheus")
        sys.exit(1 if "CI" in os.environ else SKIPPED)
    unittest.main(verbosity=2)

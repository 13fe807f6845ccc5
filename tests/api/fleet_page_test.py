"""The page at a gateway's /ui in a real browser, with a real etcd and two real nodes."""
import contextlib
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.browser import Browser, need_browser  # noqa: E402
from tests.support.fleet import Fleet, require_fleet  # noqa: E402
from tests.support.page import CONTRAST, PageTest  # noqa: E402
from tests.support.portwayd import isolate  # noqa: E402


class FleetPage(PageTest):
    @classmethod
    def setUpClass(cls):
        need_browser()
        require_fleet()
        isolate()
        cls.stack = contextlib.ExitStack()
        cls.addClassCleanup(cls.stack.close)
        cls.browser = cls.stack.enter_context(Browser())

    def setUp(self):
        of_test = self.enterContext(contextlib.ExitStack())  # it ends what a test has left running
        self.fleet = of_test.enter_context(Fleet())
        self.nodes = {f"n{i}": self.fleet.node(i) for i in (1, 2)}
        self.node = self.fleet.gateway()
        self.node.wait_for_nodes(n1="up", n2="up")
        self.forwards = {}
        for i in (1, 2):
            put = self.node.put_on(f"n{i}", f"vm-{i}", tap=f"tap{i - 1}", guest_address=f"198.19.0.{i + 1}")
            self.assertEqual(put.status, 201, put)
            self.forwards[f"n{i}"] = self.create(f"vm-{i}", f"of-n{i}")
        super().setUp()

    def create(self, instance, label):
        answer = self.node.call("POST", f"/instances/{instance}/port-forwards", {"guest_port": 3000, "label": label})
        self.assertEqual(answer.status, 201, answer)
        return answer.json()["port_forward"]

    def shown(self, selector):
        """The text of each cell that is seen."""
        return self.browser.run("return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())"
                                ".map((e) => e.textContent)", selector)

    def node_row(self, node, column):
        names = self.shown("#nodes td:first-child")
        return f"#nodes tr:nth-child({names.index(node) + 1}) td:nth-child({column})"

    def test_the_fleet_is_shown_with_the_node_of_each_entry(self):
        self.show_page()
        self.assertEqual((self.text("#node-title"), self.text("#hostname")), ("Fleet", "api.test"))
        self.has("#health", "2 up, 0 draining, 0 lost")
        self.assertEqual(self.shown("#nodes td:first-child"), ["n1", "n2"])
        self.assertEqual(self.shown("#nodes td:nth-child(3)"), ["compute-1.test", "compute-2.test"])
        self.await_row(self.forwards["n2"])
        self.assertEqual(self.text(self.row(self.forwards["n2"]) + " .node"), "n2")
        self.assertEqual(self.shown("#forwards .count, #forwards .rate, #charts, #closes-of-node"), [])
        self.assertEqual(sorted(self.shown("#instances td:nth-child(2)")), ["n1", "n2"])
        self.open_detail(self.forwards["n2"])
        self.assertEqual(self.text("#detail-title"), f"compute-2.test:{self.forwards['n2']['host_port']} · of-n2")
        self.has("#detail-usage", "Connections now0")
        self.browser.click("#detail-close")

    def test_what_happens_on_any_node_is_seen_at_once(self):
        self.show_page()
        self.browser.run("""
            const real = window.fetch;
            window.fetch = (target, options) => target.startsWith("/port-forwards?") ? new Promise(() => {}) : real(target, options);""")
        forward = self.nodes["n2"].call("POST", "/instances/vm-2/port-forwards", {"guest_port": 80, "label": "new"}).json()["port_forward"]
        self.await_row(forward)
        self.assertEqual(self.text(self.row(forward) + " .node"), "n2")
        self.open_detail(forward)
        self.assertIn("compute-2.test:", self.text("#detail-title"))
        self.browser.click("#detail-close")
        self.nodes["n2"].call("PATCH", f"/instances/vm-2/port-forwards/{forward['id']}", {"enabled": False})
        self.has(self.row(forward) + " .state", "disabled")
        self.nodes["n2"].call("DELETE", f"/instances/vm-2/port-forwards/{forward['id']}")
        self.await_page(f"document.querySelector({self.row(forward)!r}) === null")

    def test_a_forward_is_created_on_the_node_of_its_instance(self):
        self.show_page()
        self.browser.click("#create-open")
        self.browser.type("#create-instance", "vm-2")
        self.browser.type("#create-port", "8080")
        self.browser.click("#create-form [type=submit]")
        self.await_page("!document.querySelector('#create').open")
        self.has("#status", "Created compute-2.test:")
        self.await_page("document.querySelector('#forwards tr.new') !== null")

    def test_a_node_is_drained_when_that_is_confirmed(self):
        self.show_page()
        self.browser.click(self.node_row("n1", 8) + " button")
        self.has("#confirm-title", "Drain n1?")
        self.assertIn("instances: 1, forwards: 1.", self.text("#confirm-text"))
        self.assertEqual(self.nodes["n1"].call("GET", "/v1/node").json()["node"]["draining"], False)
        self.browser.click("#confirm-go")
        self.has(self.node_row("n1", 2), "draining")
        self.assertEqual(self.nodes["n1"].call("GET", "/v1/node").json()["node"]["draining"], True)
        self.has(self.row(self.forwards["n1"]) + " .node", "n1: draining")
        # Somebody else ends it.
        self.has(self.node_row("n1", 8), "Undrain")
        self.assertEqual(self.node.call("DELETE", "/nodes/n1/drain").status, 200)
        self.has(self.node_row("n1", 2), "up")
        self.has(self.node_row("n1", 8), "Drain…")

    def test_a_lost_node_and_a_lost_etcd_are_marked(self):
        self.show_page()
        self.nodes["n2"].kill()
        self.has(self.node_row("n2", 2), "lost")
        self.assertEqual(self.shown(self.node_row("n2", 8) + " button"), [])
        self.has(self.row(self.forwards["n2"]) + " .node", "n2: lost")
        self.has(self.row(self.forwards["n2"]) + " .state", "its node is lost")
        self.has("#instances", "its node is lost")
        self.assertNotIn("lost", self.text(self.row(self.forwards["n1"])))
        self.assertEqual(self.shown("#stale"), [])
        self.fleet.etcd.kill()
        self.await_page("document.querySelector('#stale').checkVisibility()")
        self.look("lost")
        self.fleet.etcd.start()
        self.await_page("!document.querySelector('#stale').checkVisibility()")

    def test_a_tenant_sees_its_own_and_no_nodes(self):
        key = self.node.tenant_key()
        self.show_page(key)
        self.assertEqual(self.shown("#nodes-of-fleet"), [])
        self.await_row(self.forwards["n1"])
        self.assertEqual(self.text(self.row(self.forwards["n1"]) + " .node"), "n1")
        self.open_detail(self.forwards["n1"])
        self.has("#detail-title", "compute-1.test:")
        self.browser.click("#detail-close")

    def look(self, name):
        """At the width of a phone and of a desk, in both schemes."""
        directory = os.environ.get("PORTWAY_SCREENSHOTS") or self.enterContext(tempfile.TemporaryDirectory())
        self.addCleanup(self.emulate, "")
        for width, height in ((360, 740), (1280, 1100)):
            self.browser.resize(width, height)
            for scheme in ("light", "dark"):
                self.emulate(scheme)
                self.browser.screenshot(f"{directory}/fleet-{name}-{width}-{scheme}.png")
                self.assertEqual(self.browser.run(CONTRAST), [], f"{name} {scheme}")
            self.assertTrue(self.browser.run("const e = document.scrollingElement; return e.scrollWidth === e.clientWidth"))

    def test_can_be_read_on_a_phone_and_on_a_desk(self):
        self.show_page()
        self.await_row(self.forwards["n2"])
        self.look("page")


if __name__ == "__main__":
    unittest.main()

"""The page at /ui in a real browser, with a real guest behind it."""
import contextlib
import os
import socket
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.browser import Browser, need_browser  # noqa: E402
from tests.support.portwayd import ADMIN, Portwayd, isolate, wait_until  # noqa: E402

GUEST_PORT = 3000
EVIL = "<img src=x onerror=alert(1)>"

# Text against what is behind it, as WCAG 2.1 (1.4.3) has it; returns what is too weak.
CONTRAST = """
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('h1, h1 span, h2, p, label, button, input, dt, dd, caption, th, td, figcaption')]
    .filter((e) => e.offsetParent !== null)
    .map((e) => [e, light(colour(getComputedStyle(e).color)), light(behind(e))])
    .map(([e, a, b]) => [`${e.tagName} ${e.className} ${e.textContent.slice(0, 20)}`, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)])
    .filter(([, ratio]) => ratio < 4.5);
"""


class Guest:
    """Behind tap0, in a network namespace of its own: sends to whoever connects, as much as they take."""

    def __init__(self):
        self.process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-c", f"""
import os, socket, sys, threading
sys.stdin.readline()
listener = socket.create_server(("0.0.0.0", {GUEST_PORT}))
print("ready", flush=True)
def serve(client):
    try:
        while True:
            client.sendall(bytes(65536))
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        # unshare(1) has made the namespace when Python, which it becomes, can be seen to be in another than ours.
        assert wait_until(lambda: os.readlink(f"/proc/{self.process.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        enter = ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "ip"]
        for command in (["ip", "link", "set", "guest0", "netns", str(self.process.pid)],
                        ["ip", "address", "add", "198.19.0.1/24", "dev", "tap0"],
                        [*enter, "address", "add", "198.19.0.2/24", "dev", "guest0"],
                        [*enter, "link", "set", "guest0", "up"]):
            subprocess.run(command, check=True)
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"ready\n"

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        need_browser()
        isolate()
        cls.stack = contextlib.ExitStack()
        cls.addClassCleanup(cls.stack.close)
        cls.guest = Guest()
        cls.stack.callback(cls.guest.end)
        cls.node = cls.stack.enter_context(Portwayd("profiles.default.max_forwarded_ports=100", "guests.socket_directories=/run"))
        assert wait_until(lambda: cls.node.put_instance("vm-1", tap="tap0").json()["instance"]["tap_state"] == "up")
        cls.browser = cls.stack.enter_context(Browser())

    def setUp(self):
        self.browser.resize(1280, 900)
        self.browser.open(f"http://127.0.0.1:{self.node.port}/ui")

    def tearDown(self):
        # The page asks for every instance it was told of: it must be gone before a clean-up deletes one.
        self.browser.open("about:blank")
        # A wrong key, and a tenant's, which may not ask for the node's metrics: the browser says so.
        unexpected = [one for one in self.browser.problems() if "401" not in one and "/metrics?scope=node" not in one]
        self.assertEqual(unexpected, [])

    def create(self, label):
        answer = self.node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": GUEST_PORT, "label": label})
        self.assertEqual(answer.status, 201)
        return answer.json()["port_forward"]

    def log_in(self, key=ADMIN):
        self.browser.type("#key", self.node.admin_key() if key == ADMIN else key)
        self.browser.click("button[type=submit]")

    def text(self, selector):
        return self.browser.run("return document.querySelector(arguments[0]).textContent", selector)

    def await_page(self, script, seconds=30):
        self.assertTrue(wait_until(lambda: self.browser.run(f"return {script}"), seconds),
                        f"{script}\nstatus: {self.text('#status')}")

    def test_a_wrong_key_is_reported_and_the_right_one_shows_the_node(self):
        self.log_in("pwk_wrong")
        self.await_page("document.querySelector('#status').className === 'bad' && document.querySelector('#main').hidden")
        self.assertIn("not known", self.text("#status"))
        self.log_in()
        self.await_page("!document.querySelector('#main').hidden")
        self.assertIn("vm-1", self.text("#instances"))
        self.assertIn("Descriptors", self.text("#health"))
        self.assertIn("compute-1.test", self.text("h1"))

    def test_an_instance_shows_where_its_forwards_lead(self):
        answer = self.node.put_instance("vm-of-vsock", tap="t-vsock",
                                        target={"kind": "firecracker_vsock", "socket": "/run/v-of-vsock.sock"})
        self.assertIn(answer.status, (200, 201), answer)
        self.addCleanup(self.node.call, "DELETE", "/instances/vm-of-vsock")
        self.log_in()
        self.await_page("document.querySelector('#instances').textContent.includes('198.19.0.2, /run/v-of-vsock.sock')")

    def test_a_new_forward_is_there_within_two_seconds_and_its_label_is_text(self):
        self.log_in()
        self.await_page("!document.querySelector('#main').hidden")
        forward = self.create(EVIL)
        self.await_page(f"document.querySelector('#forwards').textContent.includes('{forward['host_port']}')", 2)
        self.assertIn(EVIL, self.text("#forwards"))
        self.assertIn(", ".join(forward["bind_addresses"]), self.text("#forwards"))
        self.assertEqual(self.browser.run("return document.querySelectorAll('main img').length"), 0)

    def test_charts_and_talkers_move_under_load_and_closes_are_reported(self):
        forward = self.create("load")
        self.log_in()
        self.await_page("!document.querySelector('#main').hidden")
        stop = threading.Event()
        with socket.create_connection(("127.0.0.1", forward["host_port"])) as client:
            def read():
                while not stop.is_set() and client.recv(1 << 20):
                    pass
            reader = threading.Thread(target=read)
            reader.start()
            try:
                chart = "document.querySelector('#throughput .sent').getAttribute('d')"
                before = self.browser.run(f"return {chart}")
                self.await_page(f"{chart} !== {before!r} && /\\d [kMGT]B\\/s to clients/"
                                ".test(document.querySelector('#throughput-now').textContent)")
                self.await_page("document.querySelector('#talkers').textContent.includes('127.0.0.1:')")
                self.assertIn("Connections: 1", self.text("#connections-now"))
                if "PORTWAY_SCREENSHOTS" in os.environ:
                    self.browser.screenshot(os.environ["PORTWAY_SCREENSHOTS"] + "/wide.png")
            finally:
                stop.set()
                reader.join()
        self.await_page("document.querySelector('#closes').textContent.includes('vm-1')")
        self.assertIn("client", self.text("#closes"))

    def test_a_tenant_sees_its_own_without_the_nodes_metrics(self):
        self.log_in(self.node.tenant_key())
        self.await_page("!document.querySelector('#main').hidden")
        self.assertIn("vm-1", self.text("#instances"))
        self.assertFalse(self.browser.run("return document.querySelector('#closes-note').hidden"))

    def test_the_key_is_kept_nowhere_and_nothing_comes_from_elsewhere(self):
        self.log_in()
        self.await_page("!document.querySelector('#main').hidden")
        kept = self.browser.run("return [document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage), "
                                "location.href, document.documentElement.outerHTML, document.querySelector('#key').value].join()")
        self.assertNotIn(self.node.admin_key(), kept)
        origins = self.browser.run("return [...new Set(performance.getEntriesByType('resource').map((e) => new URL(e.name).origin))]")
        self.assertEqual(origins, [f"http://127.0.0.1:{self.node.port}"])
        policy = self.node.call("GET", "/ui", key=None).headers["content-security-policy"]
        self.assertIn("default-src 'none'", policy)
        self.browser.click("#forget")
        self.await_page("document.querySelector('#main').hidden")

    # --- One after the other.

    def two_users(self):
        """The admin sees two instances, a talker and closes; bob sees his own instance. Returns bob's key."""
        self.node.put_instance("vm-of-bob", owner="bob", tap="t-bob")
        self.node.call("POST", "/instances/vm-of-bob/port-forwards", {"guest_port": GUEST_PORT, "label": "of-bob"})
        self.addCleanup(self.node.call, "DELETE", "/instances/vm-of-bob")
        forward = self.create("of-alice")
        with socket.create_connection(("127.0.0.1", forward["host_port"])) as closed:
            closed.recv(1)
        talker = socket.create_connection(("127.0.0.1", forward["host_port"]))
        self.addCleanup(talker.close)
        talker.recv(1)
        return self.node.tenant_key("bob")

    def expect_only_bobs(self):
        for selector, text in (("#instances", "vm-of-bob"), ("#forwards", "of-bob")):
            self.assertIn(text, self.text(selector))
        everything = self.text("body")
        for text in ("vm-1", "of-alice", "Descriptors", "198.19.0.2:", "127.0.0.1:"):
            self.assertNotIn(text, everything)
        self.assertEqual(self.text("#closes"), "")
        self.assertEqual(self.text("#talkers"), "")

    def test_what_one_user_saw_is_gone_before_the_next_one_comes(self):
        bob = self.two_users()
        page = "return document.querySelector('header').outerHTML + document.querySelector('main').outerHTML"
        blank = self.browser.run(page)
        self.log_in()
        self.await_page("document.querySelector('#closes').textContent.includes('vm-1')"
                        " && document.querySelector('#talkers').textContent.includes('127.0.0.1:')")
        self.browser.type("#filter", "of-alice")
        self.await_page("[...document.querySelectorAll('#forwards tr')].every((one) => one.textContent.includes('of-alice'))")
        self.browser.click("#forget")
        self.await_page("document.querySelector('#main').hidden")
        self.assertEqual(self.browser.run(page), blank)
        self.assertEqual(self.browser.run("return document.querySelector('#filter').value"), "")
        self.log_in(bob)
        self.await_page("!document.querySelector('#main').hidden")
        self.expect_only_bobs()

    def hold(self, key, path):
        """From now on the page gets no answer to that key's requests for the path, until release(); as a slow node's."""
        self.browser.run("""
            const [key, path] = arguments;
            window.realFetch ??= window.fetch;
            window.held = [];
            window.settled = 0;
            window.fetch = (target, options) => {
              if (!target.startsWith(path) || options.headers.Authorization !== `Bearer ${key}`) return realFetch(target, options);
              return new Promise((resolve, reject) => held.push(
                () => realFetch(target, {...options, signal: undefined}).then(resolve, reject).finally(() => ++settled)));
            };""", key, path)

    def release(self):
        count = self.browser.run("const count = held.length; held.forEach((go) => go()); return count")
        self.await_page(f"settled === {count} && window.realFetch !== undefined")
        # What was resolved last has been dealt with once a later answer has been.
        self.await_page("(window.after ??= realFetch('/healthz').then((a) => a.text()).then(() => { window.afterDone = true; })) && "
                        "window.afterDone === true")

    def test_answers_that_come_late_are_not_shown_to_the_next_user(self):
        bob = self.two_users()
        admin = self.node.admin_key()
        forwards = "/instances/vm-1/port-forwards"
        for path in ("/v1/info", "/instances?", forwards + "?", "/metrics", "/connections/recent", forwards + "/"):
            with self.subTest(path):
                self.browser.open(f"http://127.0.0.1:{self.node.port}/ui")
                self.hold(admin, path)
                self.log_in()
                self.await_page("held.length > 0")
                self.log_in(bob)
                self.await_page("!document.querySelector('#main').hidden")
                self.release()
                self.expect_only_bobs()

    def test_a_key_that_is_refused_late_does_not_log_out_the_next_user(self):
        bob = self.two_users()
        gone = self.node.tenant_key("carol")
        keys = {key["owner"]: key["id"] for key in self.node.call("GET", "/api-keys").json()["api_keys"]}
        self.hold(gone, "/v1/info")
        self.log_in(gone)
        self.await_page("held.length > 0")
        self.assertEqual(self.node.call("DELETE", f"/api-keys/{keys['carol']}").status, 204)
        self.log_in(bob)
        self.await_page("!document.querySelector('#main').hidden")
        self.release()
        self.assertFalse(self.browser.run("return document.querySelector('#main').hidden"))
        self.assertIn("Up to date", self.text("#status"))

    def test_fits_a_phone(self):
        self.log_in()
        self.await_page("!document.querySelector('#main').hidden")
        self.browser.resize(360, 740)
        self.await_page("innerWidth === 360")
        self.assertLessEqual(self.browser.run("return document.scrollingElement.scrollWidth"), 360)
        if "PORTWAY_SCREENSHOTS" in os.environ:
            self.browser.screenshot(os.environ["PORTWAY_SCREENSHOTS"] + "/phone.png")

    def test_can_be_read_and_used_by_everybody(self):
        self.log_in()
        self.await_page("!document.querySelector('#main').hidden")
        run = self.browser.run
        self.assertEqual(run("return document.documentElement.lang"), "en")
        self.assertEqual(run("return document.querySelectorAll('h1').length"), 1)
        self.assertEqual(run("return [...document.querySelectorAll('input')].filter((e) => e.labels.length === 0).length"), 0)
        self.assertEqual(run("return [...document.querySelectorAll('button')].filter((e) => !e.textContent.trim()).length"), 0)
        self.assertEqual(run("return [...document.querySelectorAll('table')].filter((e) => !e.caption).length"), 0)
        self.assertEqual(run("return [...document.querySelectorAll('th')].filter((e) => !e.scope).length"), 0)
        for scheme in ("light", "dark"):
            self.browser.chrome("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            self.assertEqual(run(CONTRAST), [], scheme)
        reached = set()
        run("document.activeElement.blur()")
        for _ in range(12):
            self.browser.press("\ue004")  # Tab
            reached.add(run("return document.activeElement.id || document.activeElement.tagName"))
        self.assertLessEqual({"key", "forget", "filter"}, reached)


if __name__ == "__main__":
    unittest.main()

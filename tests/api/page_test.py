"""The page at /ui in a real browser, with a real guest behind it."""
import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.browser import Browser, need_browser  # noqa: E402
from tests.support.page import CONTRAST, PageTest  # noqa: E402
from tests.support.portwayd import ADMIN, Portwayd, isolate, wait_until  # noqa: E402

GUEST_PORT = 3000
EVIL = "<img src=x onerror=alert(1)>"

# From now on window.calls has what the page asks for, and when.
RECORD = """
  const real = window.fetch;
  window.calls = [];
  window.fetch = (target, options) => {
    calls.push({path: target, method: options.method, at: performance.now()});
    return real(target, options);
  };
"""
LISTS = ("/whoami", "/port-forwards?", "/instances?", "/v1/info", "/metrics", "/connections/recent")


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
                        [*enter, "link", "set", "guest0", "up"],
                        [*enter, "route", "add", "default", "via", "198.19.0.1"]):
            subprocess.run(command, check=True)
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"ready\n"

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Page(PageTest):
    @classmethod
    def setUpClass(cls):
        need_browser()
        isolate()
        cls.stack = contextlib.ExitStack()
        cls.addClassCleanup(cls.stack.close)
        cls.guest = Guest()
        cls.stack.callback(cls.guest.end)
        cls.node = cls.stack.enter_context(Portwayd("profiles.default.max_forwarded_ports=600", "guests.socket_directories=/run"))
        assert wait_until(lambda: cls.node.put_instance("vm-1", tap="tap0").json()["instance"]["tap_state"] == "up")
        cls.browser = cls.stack.enter_context(Browser())

    def setUp(self):
        super().setUp()
        # What a test provokes; the browser reports each. The connections of a forward may be asked for while it is deleted.
        self.refusals |= {"/connections?limit=100 - Failed to load resource: the server responded with a status of 404",
                         "/connections?state=closed&limit=20 - Failed to load resource: the server responded with a status of 404"}

    def create(self, label, **fields):
        answer = self.node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": GUEST_PORT, "label": label, **fields})
        self.assertEqual(answer.status, 201, answer)
        return answer.json()["port_forward"]

    def forwards_with(self, label):
        return self.node.call("GET", f"/port-forwards?label={label}").json()["port_forwards"]

    def connect(self, forward):
        """A connection that has got through to the guest, and ends with the test."""
        connection = socket.create_connection(("127.0.0.1", forward["host_port"]))
        self.addCleanup(connection.close)
        self.assertEqual(len(connection.recv(1)), 1)
        return connection

    def fill_in(self, **fields):
        """Of the dialog that creates a forward."""
        for field, text in fields.items():
            self.browser.run("document.querySelector(arguments[0]).value = ''", f"#create-{field}")
            self.browser.type(f"#create-{field}", text)

    def ports_shown(self):
        return self.browser.run("return [...document.querySelectorAll('#forwards .port button')].map((e) => Number(e.textContent))")

    def test_a_wrong_key_is_reported_and_the_right_one_shows_the_node(self):
        self.log_in("pwk_wrong")
        self.await_page("document.querySelector('#status').className === 'bad' && document.querySelector('#main').hidden")
        self.assertIn("not known", self.text("#status"))
        self.show_page()
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
        self.show_page()
        forward = self.create(EVIL)
        self.await_page(f"document.querySelector('#forwards').textContent.includes('{forward['host_port']}')", 2)
        self.assertIn(EVIL, self.text("#forwards"))
        self.open_detail(forward)
        self.assertIn(EVIL, self.text("#detail-title"))
        self.browser.click("#delete")
        self.has("#confirm-title", EVIL)
        self.assertEqual(self.browser.run("return document.querySelectorAll('main img').length"), 0)

    def test_charts_move_under_load_and_closes_are_reported(self):
        forward = self.create("load")
        self.show_page()
        stop = threading.Event()
        with socket.create_connection(("127.0.0.1", forward["host_port"])) as client:
            def read():
                while not stop.is_set() and client.recv(1 << 20):
                    pass
            reader = threading.Thread(target=read)
            reader.start()
            try:
                chart = "(document.querySelector('#throughput .sent').getAttribute('d') ?? '')"
                before = self.browser.run(f"return {chart}")
                self.await_page(f"{chart} !== {before!r} && /\\d [kMGT]B\\/s to clients/"
                                ".test(document.querySelector('#throughput-now').textContent)")
                self.has("#connections-now", "Connections: 1")
                self.await_page(f"document.querySelector({self.row(forward) + ' path'!r}).getAttribute('d')")
            finally:
                stop.set()
                reader.join()
        self.has("#closes", "vm-1")
        self.assertIn("client", self.text("#closes"))

    def test_a_tenant_sees_its_own_and_asks_for_nothing_of_the_node(self):
        self.browser.run(RECORD)
        self.show_page(self.node.tenant_key())
        self.assertIn("vm-1", self.text("#instances"))
        self.assertFalse(self.browser.run("return document.querySelector('#closes-note').hidden"))
        asked = self.browser.run("return calls.map((one) => one.path)")
        self.assertEqual([path for path in asked if path.startswith(("/metrics", "/connections"))], [])

    # --- Calls, and changes that come without one.

    def node_wide(self):
        """When the page asked for something of the whole node, in seconds."""
        calls = self.browser.run("return calls")
        self.assertEqual([one["path"] for one in calls if not one["path"].startswith((*LISTS, "/events"))], [])
        return [one["at"] / 1000 for one in calls if one["path"].startswith(LISTS)]

    def test_there_is_one_call_a_second_however_many_instances_there_are(self):
        for i in range(100):
            self.assertEqual(self.node.put_instance(f"vm-of-many-{i}").status, 201)
            self.addCleanup(self.node.call, "DELETE", f"/instances/vm-of-many-{i}")
            self.node.call("POST", f"/instances/vm-of-many-{i}/port-forwards", {"guest_port": GUEST_PORT})
        self.browser.run(RECORD)
        self.show_page()
        burst = len(LISTS)  # so that the first view is complete
        self.assertGreaterEqual(len(self.node_wide()), burst)
        # Changes of instances make the page read them again, in its time.
        for i in range(5):
            self.node.call("POST", f"/instances/vm-of-many-{i}/stop")
        self.await_page(f"calls.filter((one) => one.path !== '/events').length >= {burst + 9}")
        times = self.node_wide()
        self.assertLessEqual(len(times), times[-1] - times[0] + burst + 1)
        apart = [after - before for before, after in zip(times[burst - 1:], times[burst:])]
        self.assertGreater(min(apart), 0.99)
        self.has("#instances", "stopped")
        there = self.node.call("GET", "/port-forwards?limit=1000").json()["port_forwards"]
        self.assertEqual(self.browser.run("return document.querySelectorAll('#forwards tr').length"), min(250, len(there)))

    def test_a_page_that_nobody_sees_asks_for_nothing(self):
        self.browser.run(RECORD)
        self.show_page()
        self.browser.run("""
            Object.defineProperty(document, "hidden", {value: true, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
            window.hiddenAt = performance.now();""")
        forward = self.create("unseen")
        # A page that is seen would ask twice meanwhile.
        self.await_page("performance.now() > hiddenAt + 2500")
        self.assertEqual(self.browser.run("return calls.filter((one) => one.at > hiddenAt).length"), 0)
        self.browser.run("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        self.await_row(forward)
        self.await_page("calls.some((one) => one.at > hiddenAt && one.path.startsWith('/events?last_event_id='))")

    def test_the_page_waits_as_long_as_the_node_asks_it_to(self):
        self.browser.run(RECORD)
        self.show_page()
        self.browser.run("""
            const real = window.fetch;
            window.fetch = (target, options) => {
              window.fetch = real;
              window.refusedAt = performance.now();
              return Promise.resolve(new Response(JSON.stringify({detail: "Ask less often."}),
                {status: 429, headers: {"Retry-After": "3", "Content-Type": "application/problem+json"}}));
            };""")
        self.has("#status", "Ask less often.")
        self.await_page("calls.some((one) => one.at > refusedAt)")
        self.assertGreater(self.browser.run("return calls.find((one) => one.at > refusedAt).at - refusedAt"), 2990)
        self.await_page("document.querySelector('#status').textContent === ''")

    def test_what_others_change_is_seen_without_a_call(self):
        self.show_page()
        self.hold(self.node.admin_key(), "/")
        self.await_page("held.length > 0")
        forward = self.create("by-another")
        self.await_row(forward)
        path = f"/instances/vm-1/port-forwards/{forward['id']}"
        self.assertEqual(self.node.call("PATCH", path, {"label": "renamed", "enabled": False}).status, 200)
        self.has(self.row(forward), "renamed")
        self.has(self.row(forward) + " .state", "disabled")
        self.assertEqual(self.node.call("DELETE", path).status, 204)
        self.await_page(f"document.querySelector({self.row(forward)!r}) === null")
        self.node.put_instance("vm-by-another")
        self.has("#instances", "vm-by-another")
        self.node.call("DELETE", "/instances/vm-by-another")
        self.await_page("!document.querySelector('#instances').textContent.includes('vm-by-another')")

    def test_an_answer_that_is_older_than_an_event_undoes_nothing(self):
        goes = self.create("goes")
        self.show_page()
        self.await_row(goes)
        self.hold(self.node.admin_key(), "/port-forwards?", answered=True)
        self.await_page("held.length > 0 && answered === held.length")
        comes = self.create("comes")
        self.node.call("DELETE", f"/instances/vm-1/port-forwards/{goes['id']}")
        self.await_row(comes)
        self.await_page(f"document.querySelector({self.row(goes)!r}) === null")
        self.browser.run("""
            window.undone = false;
            new MutationObserver(() => {
              undone ||= document.querySelector(arguments[0]) === null || document.querySelector(arguments[1]) !== null;
            }).observe(document.querySelector("#forwards"), {childList: true});""", self.row(comes), self.row(goes))
        self.release()
        last = self.create("last")
        self.await_row(last)
        self.assertFalse(self.browser.run("return undone"))

    def test_a_list_in_pages_is_whole_and_true_even_without_a_stream(self):
        forwards = [self.create(f"paged-{i}") for i in range(11)]
        self.browser.run("""
            const real = window.fetch;
            window.fetch = (target, options) => target.startsWith("/events") ? new Promise(() => {})
              : real(target.replace("limit=1000", "limit=10"), options);""")
        self.show_page()
        for forward in forwards:
            self.await_row(forward)
        there = self.node.call("GET", "/port-forwards?limit=1000").json()["port_forwards"]
        self.await_page(f"document.querySelectorAll('#forwards tr').length === {len(there)}")
        self.node.call("DELETE", f"/instances/vm-1/port-forwards/{forwards[0]['id']}")
        self.await_page(f"document.querySelector({self.row(forwards[0])!r}) === null")
        self.await_row(self.create("paged-last"))

    def test_a_restart_of_the_daemon_is_survived(self):
        forward = self.create("restarted")
        self.show_page()
        self.await_row(forward)
        port = self.node.port
        settings = self.node.settings
        self.node.settings = [f"api.listen=127.0.0.1:{port}" if one.startswith("api.listen=") else one for one in settings]
        self.addCleanup(setattr, self.node, "settings", settings)
        self.refusals |= {"ERR_"}
        self.node.kill_and_start()
        self.assertEqual(self.node.port, port)
        self.assertEqual(self.node.call("DELETE", f"/instances/vm-1/port-forwards/{forward['id']}").status, 204)
        self.await_page(f"document.querySelector({self.row(forward)!r}) === null")
        after = self.create("after")
        self.await_row(after)

    # --- The table.

    def test_why_a_forward_is_not_served_is_said_in_words(self):
        forward = self.create("refused", guest_port=GUEST_PORT + 1)
        self.show_page()
        self.await_row(forward)
        with socket.create_connection(("127.0.0.1", forward["host_port"])) as client:
            with contextlib.suppress(ConnectionResetError):
                client.recv(1)
        self.has(self.row(forward) + " .state", "unavailable")
        now = self.node.call("GET", f"/instances/vm-1/port-forwards/{forward['id']}").json()["port_forward"]
        self.assertEqual(now["cause"], "guest_refusing")
        for text in ("guest refusing", now["reason"]):
            self.assertIn(text, self.text(self.row(forward)))
        self.open_detail(forward)
        self.has("#detail-state", now["reason"])
        self.browser.click("#check")
        self.has("#detail-said", "A client would not be served.")
        self.assertIn("guest fails: ", self.text("#check-steps"))
        self.assertIn("listener is good: ", self.text("#check-steps"))

    def test_search_and_order(self):
        forwards = [self.create(f"found-{name}", metadata={"env": name}, max_connections=10 + i)
                    for i, name in enumerate(("b", "c", "a"))]
        talker = self.connect(forwards[1])
        self.show_page()
        self.assertEqual(self.ports_shown()[:3], [one["host_port"] for one in reversed(forwards)])  # newest first
        self.browser.type("#search", "found")
        self.assertEqual(len(self.ports_shown()), 3)
        for by, first, last in (("label", forwards[2], forwards[1]), ("label", forwards[1], forwards[2]),
                                ("port", min(forwards, key=lambda one: one["host_port"]), max(forwards, key=lambda one: one["host_port"]))):
            self.browser.click(f"th button[data-sort={by}]")
            shown = self.ports_shown()
            self.assertEqual((shown[0], shown[-1]), (first["host_port"], last["host_port"]), by)
        self.browser.click("th button[data-sort=connections]")
        self.await_page(f"document.querySelector('#forwards .port').textContent === '{forwards[1]['host_port']}'")
        self.assertEqual(self.browser.run("return [...document.querySelectorAll('th[aria-sort]')].map((e) => [e.textContent, e.ariaSort])"),
                         [["Connections", "descending"]])
        talker.close()
        for words in ("env=a", f"{forwards[2]['host_port']}", "alice vm-1 found-a listening"):
            self.browser.run("const e = document.querySelector('#search'); e.value = ''; e.dispatchEvent(new Event('input'))")
            self.browser.type("#search", words)
            self.assertEqual(self.ports_shown(), [forwards[2]["host_port"]], words)
        self.browser.type("#search", " and not this")
        self.assertEqual(self.ports_shown(), [])

    def test_five_hundred_forwards_are_all_there_and_a_quiet_second_touches_none(self):
        self.assertEqual(self.node.put_instance("vm-full").status, 201)
        self.addCleanup(self.node.call, "DELETE", "/instances/vm-full")
        for first in range(0, 500, 100):
            answer = self.node.call("POST", "/instances/vm-full/port-forwards:batch", {"port_forwards": [
                {"guest_port": 4000 + i, "label": f"many-{i}"} for i in range(first, first + 100)]})
            self.assertEqual(answer.status, 201, answer)
        self.browser.run(RECORD)
        self.show_page()
        self.browser.type("#search", "vm-full")
        rows = "document.querySelectorAll('#forwards tr').length"
        self.assertEqual(self.browser.run(f"return {rows}"), 250)
        self.browser.click(".tall .more")
        self.assertEqual(self.browser.run(f"return {rows}"), 500)
        self.browser.run("""
            window.touched = 0;
            window.asked = calls.length;
            new MutationObserver((all) => {
              // An age counts up, once a minute.
              touched += all.filter(({target}) => !(target.parentElement ?? target).closest('.age') && !target.closest?.('.age')).length;
            }).observe(document.querySelector('#forwards'), {subtree: true, childList: true, characterData: true, attributes: true});""")
        self.await_page("calls.slice(asked).filter(({path}) => path.startsWith('/port-forwards')).length > 3")
        self.assertEqual(self.browser.run("return touched"), 0)
        # Another order moves rows, and makes none.
        self.browser.run("window.aRow = document.querySelector('#forwards tr')")
        self.browser.click("th button[data-sort=guest]")
        self.assertTrue(self.browser.run("return aRow.isConnected"))
        self.assertEqual(self.browser.run("return document.querySelector('#forwards .guest').textContent"), "4000")
        self.browser.type("#search", " many-499")
        self.assertEqual(self.browser.run(f"return {rows}"), 1)

    # --- One forward.

    def test_details_show_connections_and_limits_and_a_connection_can_be_ended(self):
        forward = self.create("detailed", max_connections=7, metadata={"team": "blue"})
        self.connect(forward).close()
        live = self.connect(forward)
        client = "127.0.0.1:" + str(live.getsockname()[1])
        for key in (ADMIN, self.node.tenant_key()):
            with self.subTest(key):
                self.browser.open(f"http://127.0.0.1:{self.node.port}/ui")
                self.show_page(key)
                self.open_detail(forward)
                for address in forward["bind_addresses"]:
                    self.assertIn(f"{address}:{forward['host_port']}", self.text("#detail-facts"))
                self.assertIn("198.19.0.2 port 3000", self.text("#detail-facts"))
                self.assertIn("team=blue", self.text("#detail-facts"))
                self.assertIn("7, set by an admin", self.text("#detail-limits"))
                self.has("#live", client)
                self.await_page("document.querySelectorAll('#ended tr').length === 1")
                self.browser.press("\ue00c")  # Escape
                self.await_page("!document.querySelector('#detail').open")
                self.assertTrue(self.browser.run("return document.activeElement === document.querySelector(arguments[0])",
                                                 self.row(forward) + " button"))
        self.open_detail(forward)
        self.has("#live", client)
        self.browser.click("#live button")
        self.has("#confirm-title", client)
        self.browser.click("#confirm-cancel")
        self.browser.click("#live button")
        self.browser.click("#confirm-go")
        self.await_page("document.querySelectorAll('#live tr').length === 0 && document.querySelectorAll('#ended tr').length === 2")
        with self.assertRaises(ConnectionResetError):
            while live.recv(1 << 20):
                pass

    def test_a_forward_is_disabled_and_enabled(self):
        forward = self.create("switched")
        self.show_page()
        self.open_detail(forward)
        self.browser.click("#switch")
        self.browser.click("#confirm-go")
        self.has("#detail-state", "disabled")
        self.has(self.row(forward) + " .state", "disabled")
        self.browser.click("#switch")
        self.has("#detail-state", "listening")

    def test_what_the_api_refuses_is_said_beside_the_field(self):
        self.refusals |= {"403", "422"}
        self.show_page()
        self.browser.click("#create-open")
        self.fill_in(instance="vm-1", port="22")
        self.browser.click("#create-form [type=submit]")
        refused = self.node.call("POST", "/instances/vm-1/port-forwards", {"guest_port": 22}).json()
        self.has("#create-problem", refused["detail"])
        self.assertEqual(self.browser.run("return [...document.querySelectorAll('[aria-invalid]')].map((e) => e.id)"), ["create-port"])
        self.fill_in(port=str(GUEST_PORT), cidrs="everywhere")
        self.browser.click("#create-form [type=submit]")
        self.await_page("document.querySelector('#create-cidrs').hasAttribute('aria-invalid')")
        self.assertIn("everywhere", self.text("#create-problem"))

    def test_a_forward_is_created_once_however_often_it_is_clicked_and_deleted_when_that_is_confirmed(self):
        self.show_page()
        self.browser.type("#search", "something else")
        self.browser.click("#create-open")
        self.fill_in(instance="vm-1", port=str(GUEST_PORT), label="clicked", max="5", cidrs="127.0.0.0/8, 192.0.2.0/24", ttl="2")
        self.browser.run("const go = document.querySelector('#create-form [type=submit]'); go.click(); go.click(); go.click()")
        self.await_page("!document.querySelector('#create').open")
        self.assertEqual(len(self.forwards_with("clicked")), 1)
        forward = self.forwards_with("clicked")[0]
        self.assertEqual((forward["max_connections"], forward["allowed_cidrs"]), (5, ["127.0.0.0/8", "192.0.2.0/24"]))
        self.assertIn("expires_at", forward)
        self.has("#status", f"compute-1.test:{forward['host_port']}")
        self.await_row(forward)
        self.connect(forward)

        self.open_detail(forward)
        self.browser.click("#delete")
        self.has("#confirm-title", "clicked")
        self.assertIn(str(forward["host_port"]), self.text("#confirm-title"))
        self.assertIn("1 connection is open", self.text("#confirm-text"))
        self.browser.click("#confirm-cancel")
        self.assertEqual(len(self.forwards_with("clicked")), 1)
        self.browser.click("#delete")
        self.await_page("document.querySelector('#confirm').open")
        self.browser.click("#confirm-go")
        self.has("#status", "Deleted clicked")
        self.assertEqual(self.forwards_with("clicked"), [])
        self.await_page(f"document.querySelector({self.row(forward)!r}) === null && !document.querySelector('#detail').open")

    def test_a_request_that_got_no_answer_is_repeated_without_a_second_forward(self):
        self.show_page()
        self.browser.click("#create-open")
        self.fill_in(instance="vm-1", port=str(GUEST_PORT), label="repeated")
        self.browser.run("""
            const real = window.fetch;
            window.fetch = async (target, options) => {
              const answer = await real(target, options);
              if (options.method !== "POST") return answer;
              window.fetch = real;
              throw new TypeError("The answer is lost");
            };""")
        self.browser.click("#create-form [type=submit]")
        self.has("#create-problem", "The answer is lost")
        self.browser.click("#create-form [type=submit]")
        self.await_page("!document.querySelector('#create').open")
        self.assertEqual(len(self.forwards_with("repeated")), 1)

    def test_what_has_changed_since_the_question_is_not_deleted_and_what_is_gone_is_fine(self):
        self.refusals |= {"404", "412"}
        forward = self.create("disputed")
        path = f"/instances/vm-1/port-forwards/{forward['id']}"
        self.show_page()
        self.open_detail(forward)
        self.browser.click("#delete")
        self.await_page("document.querySelector('#confirm').open")
        self.assertEqual(self.node.call("PATCH", path, {"label": "needed"}).status, 200)
        self.browser.click("#confirm-go")
        self.await_page("document.querySelector('#confirm-problem').textContent !== ''")
        self.assertEqual(len(self.forwards_with("needed")), 1)
        self.browser.click("#confirm-cancel")
        self.browser.click("#delete")
        self.has("#confirm-title", "needed")
        self.node.call("DELETE", path)
        self.browser.click("#confirm-go")
        self.has("#status", "was gone already")

    def test_a_key_for_reading_is_offered_no_change(self):
        key = self.node.call("POST", "/api-keys", {"role": "tenant", "owner": "alice", "scope": "read"}).json()["secret"]
        forward = self.create("read-only")
        live = self.connect(forward)
        self.show_page(key)
        self.open_detail(forward)
        self.has("#live", str(live.getsockname()[1]))
        offered = self.browser.run("return [...document.querySelectorAll('main button')].filter((e) => e.checkVisibility())"
                                   ".map((e) => e.id || e.dataset.sort || e.className)")
        self.assertLessEqual({"check", "detail-close"}, set(offered))
        self.assertEqual({"create-open", "delete", "switch"} & set(offered), set())
        self.assertEqual(self.browser.run("return document.querySelectorAll('#live button').length"), 0)

    def test_the_key_is_kept_nowhere_and_nothing_comes_from_elsewhere(self):
        self.show_page()
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
        """The admin sees two instances, connections and closes; bob sees his own instance. Returns bob's key and a forward that
        is not his."""
        self.node.put_instance("vm-of-bob", owner="bob", tap="t-bob")
        self.node.call("POST", "/instances/vm-of-bob/port-forwards", {"guest_port": GUEST_PORT, "label": "of-bob"})
        self.addCleanup(self.node.call, "DELETE", "/instances/vm-of-bob")
        forward = self.create("of-alice")
        self.connect(forward).close()
        self.connect(forward)
        return self.node.tenant_key("bob"), forward

    def expect_only_bobs(self):
        for selector, text in (("#instances", "vm-of-bob"), ("#forwards", "of-bob")):
            self.assertIn(text, self.text(selector))
        everything = self.text("body")
        for text in ("vm-1", "of-alice", "Descriptors", "198.19.0.2:", "127.0.0.1:"):
            self.assertNotIn(text, everything)
        for selector in ("#closes", "#live", "#ended", "#detail-title", "#create-instances"):
            self.assertEqual(self.text(selector), "")
        self.assertEqual(self.browser.run("return document.querySelectorAll('dialog[open]').length"), 0)

    def test_what_one_user_saw_is_gone_before_the_next_one_comes(self):
        bob, forward = self.two_users()
        page = "return document.querySelector('header').outerHTML + document.querySelector('main').outerHTML"
        blank = self.browser.run(page)
        self.show_page()
        self.has("#closes", "vm-1")
        self.open_detail(forward)
        self.has("#live", "127.0.0.1:")
        self.has("#ended", "127.0.0.1:")
        self.browser.click("#detail-close")
        self.browser.click("#create-open")
        self.browser.type("#create-label", "of-alice")
        self.browser.click("#create-cancel")
        self.browser.type("#search", "of-alice")
        self.await_page("[...document.querySelectorAll('#forwards tr')].every((one) => one.textContent.includes('of-alice'))")
        self.browser.click("#forget")
        self.await_page("document.querySelector('#main').hidden")
        self.assertEqual(self.browser.run(page), blank)
        self.assertEqual(self.browser.run("return [...document.querySelectorAll('input')].map((e) => e.value).join('')"), "")
        self.show_page(bob)
        self.expect_only_bobs()

    def hold(self, key, path, answered=False):
        """From now on the page gets no answer to that key's requests for the path, until release(); as a slow node's. If
        `answered`, the node answers at once, and the answer is on its way until then."""
        self.browser.run("""
            const [key, path, isAnswered] = arguments;
            window.realFetch ??= window.fetch;
            window.held = [];
            window.settled = 0;
            window.answered = 0;
            window.fetch = (target, options) => {
              if (!target.startsWith(path) || options.headers.Authorization !== `Bearer ${key}`) return realFetch(target, options);
              const ask = () => realFetch(target, {...options, signal: undefined});
              const early = isAnswered ? ask() : undefined;
              early?.then(() => ++answered);
              return new Promise((resolve, reject) => held.push(
                () => (early ?? ask()).then(resolve, reject).finally(() => ++settled)));
            };""", key, path, answered)

    def release(self):
        count = self.browser.run("const count = held.length; window.fetch = realFetch; held.forEach((go) => go()); return count")
        self.await_page(f"settled === {count}")
        # What was resolved last has been dealt with once a later answer has been.
        self.browser.run("window.after = false; realFetch('/healthz').then((a) => a.text()).then(() => { window.after = true; })")
        self.await_page("after")

    def replace_user(self, key):
        """Even while a dialog is open, which nobody can see past."""
        self.browser.run("document.querySelector('#key').value = arguments[0]; document.querySelector('#login').requestSubmit()", key)
        self.await_page("!document.querySelector('#main').hidden")

    def test_answers_that_come_late_are_not_shown_to_the_next_user(self):
        bob, _ = self.two_users()
        admin = self.node.admin_key()
        for path in LISTS:
            with self.subTest(path):
                self.browser.open(f"http://127.0.0.1:{self.node.port}/ui")
                self.hold(admin, path)
                self.log_in()
                self.await_page("held.length > 0")
                self.show_page(bob)
                self.release()
                self.expect_only_bobs()

    def test_answers_to_a_dialog_that_come_late_are_not_shown_to_the_next_user(self):
        bob, forward = self.two_users()
        path = f"/instances/vm-1/port-forwards/{forward['id']}"

        def look_at_connections():
            self.open_detail(forward)

        def check():
            self.open_detail(forward)
            self.browser.click("#check")

        def ask_to_delete():
            self.open_detail(forward)
            self.browser.click("#delete")

        def create():
            self.browser.click("#create-open")
            self.fill_in(instance="vm-1", port=str(GUEST_PORT), label="of-alice")
            self.browser.click("#create-form [type=submit]")

        for act, asked in ((look_at_connections, path + "/connections"), (check, path + "/check"), (ask_to_delete, path),
                           (create, "/instances/vm-1/port-forwards")):
            with self.subTest(act.__name__):
                self.browser.open(f"http://127.0.0.1:{self.node.port}/ui")
                self.show_page()
                self.await_row(forward)
                self.hold(self.node.admin_key(), asked)
                act()
                self.await_page("held.length > 0")
                self.replace_user(bob)
                self.release()
                self.expect_only_bobs()
                self.assertEqual(self.text("#status"), "")

    def test_a_key_that_is_refused_late_does_not_log_out_the_next_user(self):
        bob, _ = self.two_users()
        gone = self.node.tenant_key("carol")
        keys = {key["owner"]: key["id"] for key in self.node.call("GET", "/api-keys").json()["api_keys"]}
        self.hold(gone, "/whoami")
        self.log_in(gone)
        self.await_page("held.length > 0")
        self.assertEqual(self.node.call("DELETE", f"/api-keys/{keys['carol']}").status, 204)
        self.show_page(bob)
        self.release()
        self.assertFalse(self.browser.run("return document.querySelector('#main').hidden"))
        self.assertIn("Up to date", self.text("#updated"))

    def test_a_key_that_is_deleted_takes_its_dialogs_along(self):
        forward = self.create("of-alice")
        key = self.node.call("POST", "/api-keys", {"role": "tenant", "owner": "alice"}).json()
        self.show_page(key["secret"])
        self.open_detail(forward)
        self.assertEqual(self.node.call("DELETE", f"/api-keys/{key['api_key']['id']}").status, 204)
        self.await_page("document.querySelector('#main').hidden")
        self.assertEqual(self.browser.run("return document.querySelectorAll('dialog[open]').length"), 0)
        self.assertNotIn("of-alice", self.text("body"))

    # --- For everybody.

    def in_each_dialog(self, forward, look):
        """Looks at the page, and at each of its dialogs."""
        look("page")
        self.open_detail(forward)
        self.browser.click("#check")
        self.await_page("!document.querySelector('#check-steps').hidden && document.querySelectorAll('#live tr').length > 0")
        look("detail")
        self.browser.click("#delete")
        self.await_page("document.querySelector('#confirm').open")
        look("delete")
        self.browser.click("#confirm-cancel")
        self.browser.click("#detail-close")
        self.browser.click("#create-open")
        look("create")
        self.browser.click("#create-cancel")

    def test_screenshots_at_the_width_of_a_phone_and_of_a_desk(self):
        directory = os.environ.get("PORTWAY_SCREENSHOTS") or self.enterContext(tempfile.TemporaryDirectory())
        self.addCleanup(self.emulate, "")
        forward = self.create("a-label-of-which-one-can-say-that-it-is-rather-long-for-a-phone", metadata={"key/" + "k" * 50: "v" * 200})
        self.connect(forward).close()
        self.connect(forward)
        self.show_page()

        for width, height in ((360, 740), (1280, 900)):
            self.browser.resize(width, height)
            self.await_page(f"innerWidth === {width}")
            for scheme in ("light", "dark"):
                self.emulate(scheme)

                def look(name):
                    path = f"{directory}/{name}-{width}-{scheme}.png"
                    self.browser.screenshot(path)
                    with open(path, "rb") as file:
                        head = file.read(24)
                    self.assertEqual(head[:8], b"\x89PNG\r\n\x1a\n")
                    self.assertEqual(struct.unpack(">I", head[16:20])[0], width)
                    wide = self.browser.run("return [document.scrollingElement, ...document.querySelectorAll('dialog[open]')]"
                                            ".filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.outerHTML.slice(0, 50))")
                    self.assertEqual(wide, [], f"{name} {width}")

                self.in_each_dialog(forward, look)

    def test_can_be_read_and_used_by_everybody(self):
        self.addCleanup(self.emulate, "")
        refused = self.create("refused-too", guest_port=GUEST_PORT + 1)
        with socket.create_connection(("127.0.0.1", refused["host_port"])) as client, contextlib.suppress(ConnectionResetError):
            client.recv(1)
        forward = self.create("for-everybody")
        self.connect(forward)
        self.show_page()
        self.has(self.row(refused), "unavailable")
        run = self.browser.run
        self.assertEqual(run("return document.documentElement.lang"), "en")
        self.assertEqual(run("return document.querySelectorAll('h1').length"), 1)

        def look(name):
            self.assertEqual(run("return [...document.querySelectorAll('input, select')]"
                                 ".filter((e) => e.labels.length === 0 && !e.ariaLabel).length"), 0)
            self.assertEqual(run("return [...document.querySelectorAll('button')]"
                                 ".filter((e) => e.checkVisibility() && !e.textContent.trim()).length"), 0)
            self.assertEqual(run("return [...document.querySelectorAll('table')].filter((e) => !e.caption).length"), 0)
            self.assertEqual(run("return [...document.querySelectorAll('th')].filter((e) => !e.scope).length"), 0)
            self.assertEqual(run("return [...document.querySelectorAll('dialog[open]')]"
                                 ".filter((e) => !document.getElementById(e.getAttribute('aria-labelledby'))?.textContent).length"), 0)
            for scheme in ("light", "dark"):
                self.emulate(scheme)
                self.assertEqual(run(CONTRAST), [], f"{name} {scheme}")

        self.in_each_dialog(forward, look)
        run("document.querySelector('#key').focus()")
        reached = set()
        for _ in range(16):
            self.browser.press("\ue004")  # Tab
            reached.add(run("return document.activeElement.id || document.activeElement.dataset.sort || document.activeElement.className"))
        self.assertLessEqual({"forget", "search", "create-open", "state", "link"}, reached)
        # With the keyboard alone.
        run("document.querySelector(arguments[0]).focus()", self.row(forward) + " button")
        self.browser.press("\ue007")  # Enter
        self.await_page("document.querySelector('#detail').open && document.querySelector('#detail').contains(document.activeElement)")
        run("document.querySelector('#check').focus()")
        self.browser.press("\ue007")
        self.has("#detail-said", "A client would be served.")
        self.assertEqual(run("return document.activeElement.id"), "check")
        self.browser.press("\ue00c")  # Escape
        self.await_page("!document.querySelector('#detail').open")


if __name__ == "__main__":
    unittest.main()

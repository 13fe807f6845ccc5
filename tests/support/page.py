"""What the tests of the page at /ui have in common."""
import unittest

from tests.support.portwayd import ADMIN, wait_until

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
  return [...document.querySelectorAll('h1, h2, h3, p, li, span, label, button, input, select, dt, dd, caption, th, td, figcaption')]
    .filter((e) => e.offsetParent !== null)
    .map((e) => [e, light(colour(getComputedStyle(e).color)), light(behind(e))])
    .map(([e, a, b]) => [`${e.tagName} ${e.className} ${e.textContent.slice(0, 20)}`, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)])
    .filter(([, ratio]) => ratio < 4.5);
"""


class PageTest(unittest.TestCase):
    """A subclass has `browser`, and the `node` or gateway whose page it looks at."""

    def setUp(self):
        self.browser.resize(1280, 900)
        self.browser.open(f"http://127.0.0.1:{self.node.port}/ui")
        self.refusals = {"401"}  # what a test provokes: the browser reports each

    def tearDown(self):
        # The page asks for what it was told of: it must be gone before a clean-up deletes it.
        self.browser.open("about:blank")
        unexpected = [one for one in self.browser.problems() if not any(each in one for each in self.refusals)]
        self.assertEqual(unexpected, [])

    def log_in(self, key=ADMIN):
        self.browser.type("#key", self.node.admin_key() if key == ADMIN else key)
        self.browser.click("#login button[type=submit]")

    def show_page(self, key=ADMIN):
        self.log_in(key)
        self.await_page("!document.querySelector('#main').hidden")

    def text(self, selector):
        return self.browser.run("return document.querySelector(arguments[0]).textContent", selector)

    def has(self, selector, text):
        self.await_page(f"document.querySelector({selector!r}).textContent.includes({text!r})")

    def row(self, forward):
        return f"#forwards tr[data-id='{forward['id']}']"

    def await_row(self, forward):
        self.await_page(f"document.querySelector({self.row(forward)!r}) !== null")

    def open_detail(self, forward):
        self.await_row(forward)
        self.browser.click(self.row(forward) + " button")
        self.await_page("document.querySelector('#detail').open")

    def await_page(self, script, seconds=30):
        self.assertTrue(wait_until(lambda: self.browser.run(f"return {script}"), seconds),
                        f"{script}\nstatus: {self.text('#status')}")

    def emulate(self, scheme):
        self.browser.chrome("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

"""Chromium without a screen, driven by chromedriver over W3C WebDriver (https://www.w3.org/TR/webdriver2/), without a library."""
import base64
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
START_TIMEOUT_S = 60
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def need_browser():
    """Skips the test where there is none; on CI that is a failure."""
    for program in (CHROMIUM, DRIVER):
        if not os.path.exists(program):
            reason = f"{program} is missing: ./install-packages.sh test"
            if "CI" in os.environ:
                raise AssertionError(reason)
            raise unittest.SkipTest(reason)


class Browser:
    """A context. Everything of it ends with it."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="portway-browser-")
        self.driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       env={**os.environ, "HOME": self.profile})
        self.session = None
        printed, deadline = "", time.monotonic() + START_TIMEOUT_S
        while (found := re.search(r"successfully on port (\d+)", printed)) is None:
            if time.monotonic() > deadline or self.driver.poll() is not None:
                self.end()
                raise AssertionError(f"chromedriver did not start: {printed}")
            if select.select([self.driver.stdout], [], [], 0.1)[0]:
                printed += os.read(self.driver.stdout.fileno(), 4096).decode()
        self.base = f"http://127.0.0.1:{found[1]}"
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync",
                     "--disable-features=BackForwardCache",  # a page that was left keeps no stream open
                     f"--user-data-dir={self.profile}/data"]
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"}}}})
        self.session = f"/session/{answer['sessionId']}"

    def _call(self, method, path, body=None):
        request = urllib.request.Request(self.base + path, method=method, headers={"Content-Type": "application/json"},
                                         data=None if body is None else json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:2000]}") from error

    def open(self, url):
        self._call("POST", self.session + "/url", {"url": url})

    def run(self, script, *arguments):
        """The value that the script returns."""
        return self._call("POST", self.session + "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector):
        return self._call("POST", self.session + "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def type(self, selector, text):
        self._call("POST", f"{self.session}/element/{self.find(selector)}/value", {"text": text})

    def click(self, selector):
        self._call("POST", f"{self.session}/element/{self.find(selector)}/click", {})

    def press(self, key):
        """A key for whatever has the focus."""
        self._call("POST", self.session + "/actions", {"actions": [{"type": "key", "id": "keys", "actions": [
            {"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]}]})

    def chrome(self, command, **parameters):
        """A command of the DevTools protocol."""
        return self._call("POST", self.session + "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width, height):
        self.chrome("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def problems(self):
        """What the console has said that was not good, since the last call."""
        log = self._call("POST", self.session + "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self._call("GET", self.session + "/screenshot")))

    def end(self):
        if self.session is not None:
            try:
                self._call("DELETE", self.session)
            except (OSError, AssertionError):
                pass
        self.driver.kill()
        self.driver.wait()
        self.driver.stdout.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

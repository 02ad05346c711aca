"""A headless Chromium or Chrome, driven by the WebDriver protocol without further packages."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.request

# Where both are, as on GitHub's runners, the driver is Chrome's.
CHROMIUM, DRIVER = shutil.which("google-chrome") or shutil.which("chromium"), shutil.which("chromedriver")
_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Browser:
    """One session."""

    def __init__(self, address, profile, width, dark):
        options = {
            "binary": CHROMIUM,
            "args": [*_ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={width},1000"],
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._address = address
        self._session = self._ask("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
        self("goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": scheme})

    def _ask(self, path, values=None, method=None):
        data = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(self._address + path, data, method=method)
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)["value"]

    def __call__(self, command, values=None, method=None):
        """One command of the session."""
        return self._ask(f"/session/{self._session}/{command}", values, method)

    def close(self):
        """End the session and its browser."""
        self._ask(f"/session/{self._session}", method="DELETE")

    def run(self, script, *arguments):
        """What a function body returns on the page."""
        return self("execute/sync", {"script": script, "args": list(arguments)})

    def messages(self):
        """Whatever the console was told, refused requests and policy violations included."""
        return [entry["message"] for entry in self("se/log", {"type": "browser"})]

    def names(self, selector):
        """Accessible names of elements, as a screen reader would say them."""
        found = self("elements", {"using": "css selector", "value": selector})
        return [self(f"element/{next(iter(e.values()))}/computedlabel") for e in found]


@contextlib.contextmanager
def browser(page, profile, *, width=1280, dark=False):
    """A session that shows a file."""
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            port = next(m[1] for line in driver.stdout if (m := re.search(r"started successfully on port (\d+)", line)))
            session = Browser(f"http://127.0.0.1:{port}", profile, width, dark)
            session("url", {"url": page.as_uri()})
            yield session
            session.close()
        finally:
            driver.terminate()

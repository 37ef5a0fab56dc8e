"""A private JupyterLab as `make lab` starts it, and a Chromium that cannot leave this machine."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = [
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
LOCAL = ("http://127.0.0.1", "http://localhost", "ws://127.0.0.1", "data:", "blob:", "file:")
# Every cell in the page, nothing saved behind the test's back.
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension/plugin.jupyterlab-settings": {"autosave": False},
    # else it asks in a corner, over what lies there
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}
START_S = 90


@dataclass(frozen=True)
class Server:
    """A running JupyterLab."""

    url: str
    token: str

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the server's REST interface."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}api/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            text = reply.read()
        return json.loads(text) if text else None


@contextmanager
def lab(
    home: Path,
    *options: str,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """`workbench lab --no-browser` with its configuration under `home`, stopped at the end.

    Args:
        settings: more of JupyterLab's settings files, by name.
        environment: more variables, for the server and its kernels.
    """
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "workbench", "lab", "--no-browser", "--allow-root"]
    flags = ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--IdentityProvider.token={token}"]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *flags, *options],
            env={**_environment(home, settings or {}), **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield _wait_until_up(process, home, token)
        finally:
            _stop(process)


def _environment(home: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    names = ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
    names += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    folders = {name: home / name.lower() for name in names}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    for name, value in {**SETTINGS, **settings}.items():
        file = folders["JUPYTERLAB_SETTINGS_DIR"] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, **{k: str(v) for k, v in folders.items()}, "PYTHONPATH": paths}


def _wait_until_up(process: subprocess.Popen[bytes], home: Path, token: str) -> Server:
    deadline = time.monotonic() + START_S
    written = home / "jupyter_runtime_dir" / f"jpserver-{process.pid}.json"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail((home / "server.log").read_text()[-3000:])
        try:  # the file is written when the port is bound; the first reply comes a little later
            server = Server(json.loads(written.read_text())["url"], token)
            server.api("GET", "status")
            return server
        except (OSError, ValueError):
            time.sleep(0.1)
    pytest.fail("JupyterLab did not start\n" + (home / "server.log").read_text()[-3000:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    for wait_s, harder in ((5, signal.SIGTERM), (10, signal.SIGKILL)):
        try:
            process.wait(wait_s)
            return
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, harder)
    process.wait()


@dataclass
class Seen:
    """What a page asked for and complained about."""

    requests: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def browser(profile: Path, **options: Any) -> Iterator[tuple[Any, Seen]]:
    """A page of a fresh headless Chromium with every outside request aborted and noted."""
    from playwright.sync_api import sync_playwright

    seen = Seen()
    with sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=CHROMIUM_FLAGS, **options
        )
        context.route(re.compile(""), lambda route: _only_local(route, seen))
        page = context.new_page()
        watch(page, seen)
        try:
            yield page, seen
        finally:
            context.close()


def watch(page: Any, seen: Seen) -> None:
    """Note what goes wrong in a page."""
    page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))


def _only_local(route: Any, seen: Seen) -> None:
    url = route.request.url
    seen.requests.append(url)
    if url.startswith(LOCAL):
        route.continue_()
    else:
        seen.external.append(url)
        route.abort()


def require_chromium() -> None:
    """Skip where there is no Chromium; fail in CI, where .ci/run installs it."""
    if CHROMIUM.exists():
        return
    if os.environ.get("CI") == "true":
        pytest.fail("CI has no /usr/bin/chromium: .ci/run should have installed it")
    pytest.skip("no /usr/bin/chromium (tests/SKIPS.md)")

"""The server extension and the settings that `workbench lab` brings, in a server as a person starts it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application
from tornado.websocket import WebSocketHandler, websocket_connect
from traitlets.config import Config

from tests.e2e import harness
from workbench import cli, doctor
from workbench.lab import server

PROBE = """
import socket
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

class Probe(ZMQChannelsWebsocketConnection):
    def connect(self):
        held = self.websocket_handler.ws_connection.stream.socket
        set_to = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        self.log.info("probe: nodelay=%s", set_to)
        return super().connect()
"""
WIDGETS = "@jupyter-widgets/jupyterlab-manager:plugin"
OTHERS = ("jupyter_lsp", "jupyter_server_terminals", "jupyterlab", "notebook_shim")


def application(nodelay: bool | None = None, connection: Any = object) -> Any:
    """What the extension sees of a server."""
    config = Config() if nodelay is None else Config({"WorkbenchServer": {"nodelay": nodelay}})
    app = server.WorkbenchServer(config=config)  # a Configurable to be the parent
    web = SimpleNamespace(settings={server.CLASS: connection})
    app.web_app, app.log = web, logging.getLogger("lab")  # pyright: ignore
    return app


class Connection:
    """A connection class as a server configures one."""

    def __init__(self, handler: Any) -> None:
        self.websocket_handler = handler

    async def connect(self) -> str:
        return "connected"


async def option_after_connecting(make: Any) -> tuple[int, int, str]:
    """TCP_NODELAY of a real websocket before and after `connect`, and what that returned."""
    seen: list[Any] = []
    ended = asyncio.Event()

    class Handler(WebSocketHandler):
        def nodelay(self) -> int:
            held = self.ws_connection.stream.socket  # pyright: ignore
            return held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

        async def open(self) -> None:
            before = self.nodelay()
            said = await make(self).connect()
            seen.extend((before, self.nodelay(), said))
            ended.set()

    held, port = bind_unused_port()
    running = HTTPServer(Application([("/", Handler)]))
    running.add_socket(held)
    client = await websocket_connect(f"ws://127.0.0.1:{port}/")
    await asyncio.wait_for(ended.wait(), 10)
    client.close()
    running.stop()
    await running.close_all_connections()
    return tuple(seen)


def test_connecting_sets_the_option_on_the_real_socket() -> None:
    app = application(connection=Connection)
    server._load_jupyter_server_extension(app)
    quick = app.web_app.settings[server.CLASS]
    assert issubclass(quick, Connection)
    before, after, said = asyncio.run(option_after_connecting(quick))
    assert before == 0
    assert after != 0
    assert said == "connected"


def test_a_socket_that_refuses_is_connected_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    refusing = SimpleNamespace()  # has no set_nodelay at all
    quick = server.without_delay(Connection, logging.getLogger("lab"))
    assert asyncio.run(quick(refusing).connect()) == "connected"
    assert "no TCP_NODELAY on this kernel websocket" in caplog.text


@pytest.mark.parametrize(
    ("environment", "option", "on"),
    [
        (None, None, True),
        ("1", None, True),
        ("0", None, False),
        ("off", None, False),
        (None, False, False),
        ("0", True, True),  # what a person says now is above what the environment says
    ],
)
def test_the_switch(
    environment: str | None,
    option: bool | None,
    on: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv(server.SWITCH, raising=False)
    if environment is not None:
        monkeypatch.setenv(server.SWITCH, environment)
    app = application(option, Connection)
    with caplog.at_level(logging.INFO):
        server._load_jupyter_server_extension(app)
    assert (app.web_app.settings[server.CLASS] is not Connection) == on
    assert [record.message.split(" for ")[0].split(":")[1] for record in caplog.records] == [
        " TCP_NODELAY on" if on else " TCP_NODELAY off"
    ]


def test_the_extension_needs_no_torch() -> None:
    code = "import sys, workbench.lab.server; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_our_configuration_is_looked_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/first")
    paths = cli.lab_config_path()
    assert paths[0] == "/first"
    assert paths[-1] == str(Path(cli.__file__).parent / "lab" / "jupyter")
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", paths[-1])  # a lab started from a lab's terminal
    assert cli.lab_config_path().count(paths[-1]) == 1


@pytest.mark.parametrize(
    ("sizes", "ok", "said"),
    [
        ({"lens": 9, "strip": 100}, True, "2 modules, the largest 100 kB"),
        ({"lens": 9, "strip": 101}, False, "strip is 101 kB"),
        ({"lens": 9, "strip": None}, False, "strip is not built"),
        ({}, False, "0 modules"),
    ],
)
def test_the_doctor_weighs_the_built_modules(
    sizes: dict[str, int | None],
    ok: bool,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, kb in sizes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "widget.py").write_text("")
        if kb is not None:
            (tmp_path / name / "widget.js").write_bytes(bytes(1000 * kb))
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(doctor.util, "find_spec", lambda _: found)
    check = doctor.widget_modules()
    assert check.ok == ok
    assert said in check.found


def test_the_doctor_misses_widgets_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.util, "find_spec", lambda _: None)
    check = doctor.widget_modules()
    assert not check.ok
    assert "workbench_widgets is not installed" in check.found


def test_the_doctor_says_whether_nodelay_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server.SWITCH, raising=False)
    assert doctor.server_extension().found.startswith("NODELAY on; ")
    monkeypatch.setenv(server.SWITCH, "0")
    check = doctor.server_extension()
    assert check.ok
    assert check.found.startswith("NODELAY off (WORKBENCH_NODELAY); ")


def get(running: harness.Server, path: str) -> str:
    request = urllib.request.Request(
        f"{running.url}{path}", headers={"Authorization": f"token {running.token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read().decode()


def save_state(running: harness.Server) -> bool:
    schema = json.loads(get(running, f"lab/api/settings/{WIDGETS}"))["schema"]
    return schema["properties"]["saveState"]["default"]


def open_kernel(running: harness.Server) -> None:
    """Open a kernel's websocket as the page does, and end the kernel."""
    from websocket import create_connection

    kernel = running.api("POST", "kernels", {"name": "python3"})["id"]
    address = f"{running.url.replace('http', 'ws', 1)}api/kernels/{kernel}/channels"
    channel = create_connection(f"{address}?token={running.token}&session_id=x", timeout=60)
    header = {"msg_id": "1", "msg_type": "kernel_info_request", "session": "x", "username": ""}
    message = {"header": {**header, "date": "", "version": "5.3"}, "parent_header": {}}
    channel.send(json.dumps({**message, "metadata": {}, "content": {}, "channel": "shell"}))
    while json.loads(channel.recv())["msg_type"] != "kernel_info_reply":
        pass
    channel.close()
    running.api("DELETE", f"kernels/{kernel}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a server, with a connection class that reads the socket's option."""
    (tmp_path / "nodelay_probe.py").write_text(PROBE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv(server.SWITCH, raising=False)
    monkeypatch.delenv("JUPYTER_CONFIG_PATH", raising=False)
    return tmp_path


PROBED = "--ServerApp.kernel_websocket_connection_class=nodelay_probe.Probe"


def test_workbench_lab_sets_the_option_and_saves_widgets(home: Path) -> None:
    with harness.lab(home, PROBED) as running:
        open_kernel(running)
        assert save_state(running) is True
        page = get(running, "lab")
    log = (home / "server.log").read_text()
    assert "workbench: TCP_NODELAY on for kernel websockets" in log
    assert re.findall(r"probe: nodelay=(\d+)", log) in (["1"], ["4"])
    for name in (*OTHERS, "workbench.lab.server"):
        assert f"{name} | extension was successfully loaded" in log
    shown = json.loads(re.findall(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.S)[0])
    names = {extension["name"] for extension in shown["federated_extensions"]}
    assert {"anywidget", "@jupyter-widgets/jupyterlab-manager", "jupyterlab-plotly"} <= names
    assert shown["disabledExtensions"] == []


def test_no_nodelay_leaves_the_socket_and_a_persons_settings_win(home: Path) -> None:
    own = home / "jupyter_config_dir" / "labconfig" / "default_setting_overrides.json"
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps({WIDGETS: {"saveState": False}}))
    with harness.lab(home, "--no-nodelay", PROBED) as running:
        open_kernel(running)
        assert save_state(running) is False
    log = (home / "server.log").read_text()
    assert "workbench: TCP_NODELAY off" in log
    assert re.findall(r"probe: nodelay=(\d+)", log) == ["0"]

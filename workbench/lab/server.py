"""Jupyter server extension: a kernel's messages leave its websocket at once.

Small frames otherwise wait until the browser has acknowledged the one before, which costs each step
of a slider about 40 ms. Off with the environment variable `WORKBENCH_NODELAY=0`, with
`workbench lab --no-nodelay`, or with `c.WorkbenchServer.nodelay = False` in a Jupyter configuration.
"""

from __future__ import annotations

import os
from logging import Logger
from typing import Any

from traitlets import Bool, default
from traitlets.config import Configurable

SWITCH = "WORKBENCH_NODELAY"
CLASS = "kernel_websocket_connection_class"


class WorkbenchServer(Configurable):
    """Options of this extension, read where every Jupyter option is."""

    nodelay = Bool(help=f"Set TCP_NODELAY on kernel websockets; {SWITCH}=0 turns it off.").tag(
        config=True
    )

    @default("nodelay")
    def _nodelay_of_environment(self) -> bool:
        return os.environ.get(SWITCH, "").strip().lower() not in ("0", "false", "no", "off")


def without_delay(base: Any, log: Logger) -> Any:
    """A subclass of the connection class `base` that sets TCP_NODELAY as it connects.

    A socket that refuses the option is logged and connected all the same.
    """

    class WithoutDelay(base):
        def connect(self) -> Any:
            try:
                self.websocket_handler.set_nodelay(True)
            except Exception as error:  # an option of speed must never cost the connection
                log.warning("workbench: no TCP_NODELAY on this kernel websocket: %r", error)
            return super().connect()

    return WithoutDelay


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "workbench.lab.server"}]


def _load_jupyter_server_extension(app: Any) -> None:
    if not WorkbenchServer(parent=app).nodelay:
        app.log.info("workbench: TCP_NODELAY off: kernel websockets are as Jupyter opens them")
        return
    # Whatever class is configured, a gateway's included, keeps its own behaviour.
    settings = app.web_app.settings
    settings[CLASS] = without_delay(settings[CLASS], app.log)
    app.log.info("workbench: TCP_NODELAY on for kernel websockets (off: %s=0)", SWITCH)

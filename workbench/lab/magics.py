"""`%load_ext workbench` and then `%wb status | cancel [key] | device [cpu|cuda]`.

Everything here has an equal function: `workbench.lab.status.status` and `cancel`, `Model.to`,
`workbench.lab.devices.describe` and `move`. It works while a widget computes, because that happens
on the worker's thread.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from workbench.errors import WorkbenchError, unknown

COMMANDS = {"status": 0, "cancel": 1, "device": 1}
"""Each subcommand and how many words may follow it."""


@magics_class
class WorkbenchMagics(Magics):
    """The `%wb` magic."""

    @line_magic
    def wb(self, line: str) -> None:
        """`%wb status`: jobs, times, memory. `%wb cancel [key]`: stop one or all.

        `%wb device`: devices and the models on them. `%wb device cuda`: move this notebook's models.
        """
        try:
            said = answer(line, self.shell.user_ns if self.shell is not None else {})
        except WorkbenchError as error:  # one line for a mistake of the user's, not a traceback
            raise UsageError(str(error)) from None
        sys.stdout.write(said + "\n")


def answer(line: str, namespace: Mapping[str, Any]) -> str:
    """What `%wb <line>` prints in a notebook whose variables are `namespace`.

    Raises:
        WorkbenchError: no such subcommand, key or device, or too many words.
    """
    from workbench.lab import devices, status

    name, *words = line.split() or ["status"]
    if name not in COMMANDS:
        raise unknown("%wb", "subcommand", name, COMMANDS)
    if len(words) > COMMANDS[name]:
        raise WorkbenchError(
            f"%wb {name}",
            "has too many words",
            expected=f"at most {COMMANDS[name]} after {name}",
            got=" ".join(words),
            do="write %wb status, %wb cancel [key] or %wb device [cpu|cuda]",
        )
    if name == "status":
        return status.status()
    if name == "cancel":
        return status.cancel(*words)
    return devices.move(namespace, *words) if words else devices.describe(namespace)

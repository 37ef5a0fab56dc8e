"""A notebook as one self-contained page, or with static pictures: run, drawn, stamped, written.

`execute` runs it, `outputs`, `prose` and `mount` draw it, `build` writes the page, `share` the notebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.reporting.build import report

__all__ = ["report"]


def __getattr__(name: str) -> Any:
    # The kernel loads `ledger` from here, and nothing of what writes pages.
    if name == "report":
        from workbench.reporting.build import report

        return report
    raise AttributeError(f"module 'workbench.reporting' has no attribute {name!r}")

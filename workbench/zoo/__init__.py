"""The shipped models and the small world they learn, made by ``python -m workbench.zoo build``."""

from __future__ import annotations

from workbench.zoo.build import build

__all__ = ["build"]

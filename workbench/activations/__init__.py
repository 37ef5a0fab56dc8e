"""Activations as rows: record them, pool positions into rows, keep them on disk."""

from __future__ import annotations

from workbench.activations.record import record
from workbench.activations.store import load

__all__ = ["load", "record"]

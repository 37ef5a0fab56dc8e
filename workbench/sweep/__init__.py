"""Sweeps: one edit over many settings, each computed once."""

from __future__ import annotations

from workbench.sweep.strength_by_layer import BASE, Cell, Point, StrengthByLayer

__all__ = ["BASE", "Cell", "Point", "StrengthByLayer"]

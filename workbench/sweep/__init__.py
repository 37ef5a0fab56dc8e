"""Sweeps: one edit over many settings, each computed once."""

from __future__ import annotations

from workbench.sweep.methods import MethodPoint, MethodSweep
from workbench.sweep.next_token import NextToken, next_token
from workbench.sweep.strength_by_layer import BASE, Cell, Point, StrengthByLayer

__all__ = [
    "BASE",
    "Cell",
    "MethodPoint",
    "MethodSweep",
    "NextToken",
    "Point",
    "StrengthByLayer",
    "next_token",
]

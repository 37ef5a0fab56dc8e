"""Prompts: contrast pairs, files of prompts, chat templates.

pairs = prompts.pairs(positive=["I love it"], negative=["I hate it"])
many = prompts.read("questions.jsonl")
"""

from __future__ import annotations

from workbench.prompts.contrast import classes, completions, pairs
from workbench.prompts.files import read, write

__all__ = ["classes", "completions", "pairs", "read", "write"]

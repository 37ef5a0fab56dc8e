"""Prompts: contrast pairs, files of prompts, published steering data, chat templates.

pairs = prompts.pairs(positive=["I love it"], negative=["I hate it"])
many = prompts.read("questions.jsonl")
questions = prompts.read_caa("generate_dataset.json")
facts = prompts.read_statements("cities.csv")
"""

from __future__ import annotations

from workbench.prompts.contrast import classes, completions, pairs
from workbench.prompts.counterfactuals import counterfactuals
from workbench.prompts.datasets import (
    read_caa,
    read_persona,
    read_repe_emotion,
    read_repe_facts,
    read_repeng,
    read_truthfulqa,
)
from workbench.prompts.files import read, write
from workbench.prompts.statements import read_statements

__all__ = [
    "classes",
    "completions",
    "counterfactuals",
    "pairs",
    "read",
    "read_caa",
    "read_persona",
    "read_repe_emotion",
    "read_repe_facts",
    "read_repeng",
    "read_statements",
    "read_truthfulqa",
    "write",
]

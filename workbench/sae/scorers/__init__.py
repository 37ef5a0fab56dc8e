"""Scorers: which features of a dictionary have to do with something. One file, one scorer.

    found = sae.search("activation_difference", dictionary, model, labelled)      # by a contrast of labels
    found = sae.search("attribution", dictionary, model, cases, positions="last") # by a logit difference
    found = sae.search(scorers.TokenMatch(r"\\d"), dictionary, model, texts)       # by text

Every class found in this folder is a name here; `workbench methods scorers` lists them. `search` runs the
model; it lives on a higher floor and loads when used.
"""

from __future__ import annotations

from typing import Any

from workbench import registry
from workbench.sae.scorers.base import Block, FeatureScores, Labels, Scorer, Spelled

_VERBS = {"search": "workbench.sae.ranking"}

__all__ = ["Block", "FeatureScores", "Labels", "Scorer", "Spelled", "search"]


def __getattr__(name: str) -> Any:
    return registry.attribute("scorers", name, _VERBS)


def __dir__() -> list[str]:
    return [*__all__, *registry.classes("scorers")]

"""Run a localiser on prompts: make its cases, hand it what it needs, turn its scores into a map.

found = locate.find("activation_patching", model, cases)
found = locate.find(locate.HeadAblation(value="mean"), model, prompts)
"""

from __future__ import annotations

import importlib
from functools import partial
from inspect import signature
from typing import Any

import torch

from workbench import registry
from workbench.errors import WorkbenchError
from workbench.locate.base import Localiser
from workbench.model.run import handed_run
from workbench.patching.cases import cases_of
from workbench.patching.map import Map, as_map


def find(
    method: str | Localiser, model: Any, prompts: Any, *, progress: bool = True, **handed: Any
) -> Map:
    """Where `method` finds what the prompts ask for.

    Args:
        method: a registry name of the family `locate`, or a localiser with options.
        prompts: texts, prompts, `wb.prompts.counterfactuals(...)`, or `Cases`.
        progress: show bars.
        handed: what the method needs and a model cannot give.

    Returns:
        A Map: a Table of a row per place and measure with 95 % intervals over cases.

    Raises:
        UnknownName: no such method.
        WorkbenchError: prompts lack what the method reads, a need is neither given nor a model's, or
            something was handed that the method does not take.
        PromptError: see `workbench.patching.cases`.
    """
    if isinstance(method, str):
        method = registry.get("locate", method)()
    with torch.inference_mode(False):  # where the caller is in it, no gradient could be taken
        cases = cases_of(model, prompts, method.reads)
        scores = method.find(cases, **needed(method, model, handed, progress))
    return as_map(scores, cases, method, model)


def needed(method: Localiser, model: Any, handed: dict[str, Any], progress: bool) -> dict[str, Any]:
    """What the method asked for, by keyword."""
    made = {
        "dims": lambda: model.dims,
        "run": lambda: partial(handed_run, model),
        "patched": lambda: _made("patcher", "Patched", model, progress),
        "gradients": lambda: _made("gradients", "Gradients", model, progress),
        "head": lambda: _made("head", "Head", model, progress),
        "edges": lambda: _made("edges", "Edges", model, progress),
        "generate": lambda: model.generate,
        "decode": lambda: lambda id_: model.tokenizer.decode([int(id_)]),
    }
    missing = [need for need in method.needs if need not in made and need not in handed]
    if missing:
        raise WorkbenchError(
            f"locate.find({type(method).__name__})",
            f"needs {', '.join(missing)}, which no model has",
            expected=f"{missing[0]}=...",
            got=sorted(handed) or "nothing",
            do=f"pass {missing[0]}= to locate.find",
        )
    _check_taken(method, handed)
    return {n: handed[n] if n in handed else made[n]() for n in method.needs} | handed


def _check_taken(method: Localiser, handed: dict[str, Any]) -> None:
    parameters = signature(method.find).parameters
    taken = list(parameters)[1:]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in handed:
        if name not in taken and not anything:
            kind = type(method).__name__
            raise WorkbenchError(
                f"locate.find({kind})",
                f"does not take {name}=",
                expected=f"{', '.join(taken)}; options are the method's own",
                got=name,
                do=f"for an option, pass locate.{kind}({name}=...) instead of the name",
            )


def _made(module: str, name: str, *arguments: Any) -> Any:
    """An object of `workbench.patching.<module>`, loaded when a method asks for it."""
    return getattr(importlib.import_module(f"workbench.patching.{module}"), name)(*arguments)

"""Which arms a comparison has: those asked for, the baseline, a random control of every edit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workbench.errors import WorkbenchError
from workbench.interventions.control import random_control
from workbench.records import Prompt
from workbench.tensors import Arm, Intervention


def complete(arms: list[Arm], control: bool, seed: int) -> tuple[list[Arm], str, list[str]]:
    """All arms, baseline first; the baseline's name; and notes on what could not be controlled.

    Raises:
        WorkbenchError: two arms of one name.
    """
    base = next((arm for arm in arms if _is_base(arm)), None) or Arm("base")
    others = [arm for arm in arms if arm is not base]
    everyone, notes = [base], []
    for arm in others:
        everyone.append(arm)
        twin = _control(arm, seed) if control else None
        if twin:
            everyone.append(twin)
        elif control and arm.edits:
            notes.append(
                f"no random control for {arm.name}: its edits have no direction, or none but their own"
            )
    names = [arm.name for arm in everyone]
    if len(set(names)) < len(names):
        raise WorkbenchError(
            "compare",
            "two arms have one name",
            expected="different names",
            got=sorted({n for n in names if names.count(n) > 1}),
            do="rename one (a baseline is added as 'base', a control as '<name> (random control)')",
        )
    return everyone, base.name, notes


def refuse_mixed_units(arms: list[Arm]) -> None:
    """WorkbenchError where edits count strength in several units and are not all calibrated to one
    target.
    """
    edits = [e for arm in arms for e in arm.edits if "control_of" not in e.params and not e.is_zero]
    units = {e.unit for e in edits}
    loose = [e.label for e in edits if not calibrated(e)]
    if len(units) < 2:
        return
    if loose:
        raise WorkbenchError(
            "compare",
            "edits count their strength in different units, so their effects do not compare",
            expected="one unit, or every edit calibrated",
            got=f"{sorted(units)}; not calibrated at their present strength, scope, sites: {loose}",
            do="calibrate each: wb.calibrate(edit, model, prompts, target_kl_nats=...)",
        )
    targets = {e.params["calibration"]["target_kl_nats"] for e in edits}
    if len(targets) > 1:
        raise WorkbenchError(
            "compare",
            "edits in different units are calibrated to different targets",
            expected="one target",
            got=f"{sorted(targets)} nats",
            do="calibrate all to one target_kl_nats, or compare one target at a time",
        )


def refuse_other_words(arms: list[Arm], model: Any) -> None:
    """WorkbenchError where an arm's own model has another vocabulary: its ids mean other tokens."""
    for arm in arms:
        if arm.model and arm.model.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            raise WorkbenchError(
                f"compare, arm {arm.name!r}",
                "its model has another vocabulary, so the base model cannot read its tokens",
                expected=f"the vocabulary of {model.name}",
                got=f"that of {arm.model.name}",
                do="compare models that share a tokenizer",
            )


def calibrated(edit: Intervention) -> bool:
    """Whether the edit was calibrated and still has the strength, the scope and the sites of it."""
    record = edit.params.get("calibration") or {}
    present = {"strength": edit.strength, "scope": str(edit.scope), "sites": list(edit.sites)}
    return all(record.get(key) == value for key, value in present.items())


def prefixed(prompt: Prompt, prefix: str) -> Prompt:
    """The prompt with `prefix` before its text, or before its first user message."""
    if not prefix:
        return prompt
    if prompt.messages is None:
        return replace(prompt, text=prefix + (prompt.text or ""))
    turns = [dict(turn) for turn in prompt.messages]
    first = next((t for t in turns if t["role"] == "user"), turns[0])
    first["content"] = prefix + first["content"]
    return replace(prompt, messages=tuple(turns))


def _is_base(arm: Arm) -> bool:
    return not (arm.edits or arm.prefix or arm.model or arm.decoder)


def _control(arm: Arm, seed: int) -> Arm | None:
    """The arm with every edit turned at random; None where no edit can be."""
    twins = [random_control(edit, seed) for edit in arm.edits]
    if not any(twins):
        return None
    edits = [twin or edit for twin, edit in zip(twins, arm.edits, strict=True)]
    return Arm(f"{arm.name} (random control)", edits, arm.decoder, arm.model, arm.prefix)

"""A PatchGrid as a cell of Python: the cases, the map, the edit of the chosen place, and its effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from workbench import registry
from workbench.errors import UnknownName
from workbench.locate.base import Cases, Localiser
from workbench.model.model import Model
from workbench.patching.map import Map
from workbench.records import Prompt
from workbench_widgets.cells import list_code, model_line, prompt_code

_PLAIN = (str, int, float, bool, tuple, list, type(None))


def cell(
    model: Model,
    cases: Cases,
    method: Localiser | None,
    found: Map,
    place: Mapping[str, Any] | None,
    strength: float,
) -> str:
    """The text of the cell; it gives `found`, and `edit` and `p` where a place is chosen."""
    lines = [
        "import workbench as wb",
        "from workbench import locate",
        "",
        model_line(model),
        f"cases = {cases_code(cases)}",
        find_line(method, found),
    ]
    if place is None:
        return "\n".join([*lines, "found", ""])
    at = ", ".join(f"{k}={v!r}" for k, v in place.items())
    base = "corrupted" if _starts_corrupted(found, cases) else "clean"
    return "\n".join(
        [
            *lines,
            f"edit = found.edit({at}).at({strength!r})",
            f"base = [p for p in cases if p.meta.get('role', 'clean') == {base!r}]",
            "p = model.run(base, edits=edit, logits='last').logits[:, -1].softmax(-1)  # [case, token]",
            "p.mean(0).topk(5)",
            "",
        ]
    )


def _starts_corrupted(found: Map, cases: Cases) -> bool:
    from workbench_widgets.patch_grid.maps import direction

    return cases.corrupted is not None and direction(found) == "denoising"


def cases_code(cases: Cases) -> str:
    """Prompts that make the same cases; answers and foils as token ids."""
    answer, foil = (None if ids is None else ids.tolist() for ids in (cases.answer, cases.foil))
    if cases.corrupted is None:
        rows = zip(cases.clean.prompts, _each(answer, cases), _each(foil, cases), strict=True)
        return list_code(_with_meta(*row) for row in rows)
    if answer is None:  # counterfactuals are asked something
        return list_code(
            f"{prompt_code(prompt)[:-1]}, meta={{'role': {role!r}}})"
            for role, side in (("clean", cases.clean), ("corrupted", cases.corrupted))
            for prompt in side.prompts
        )
    align = cases.clean.prompts[0].meta.get("align")
    said = [f"{name}={_prompts(side)}" for name, side in
            (("clean", cases.clean.prompts), ("corrupted", cases.corrupted.prompts))]  # fmt: skip
    said.append(f"answers={answer!r}")
    said += [f"foils={foil!r}"] if foil is not None else []
    said += [f"align={align!r}"] if align else []
    inner = ",\n    ".join(said)
    return f"wb.prompts.counterfactuals(\n    {inner},\n)"


def _each(ids: list[int] | None, cases: Cases) -> list[Any]:
    return [None] * len(cases) if ids is None else ids


def _with_meta(prompt: Prompt, answer: int | None, foil: int | None) -> str:
    meta = {k: v for k, v in (("answer", answer), ("foil", foil)) if v is not None}
    code = prompt_code(prompt)
    return f"{code[:-1]}, meta={meta!r})" if meta else code


def _prompts(many: tuple[Prompt, ...]) -> str:
    if all(prompt.text is not None for prompt in many):
        return repr([prompt.text for prompt in many])
    return f"[{', '.join(map(prompt_code, many))}]"


def find_line(method: Localiser | None, found: Map) -> str:
    """The line that makes `found`, or a comment that says who has to."""
    name = found.provenance.get("method", "")
    options = asdict(method) if method is not None else found.provenance.get("options") or {}
    try:
        cls = registry.get("locate", name)
    except UnknownName:
        return f"# found = locate.find(..., model, cases): {name!r} is a method of your own"
    plain = all(isinstance(v, _PLAIN) for v in options.values())
    if not plain:
        return f"# found = locate.find(locate.{cls.__name__}(...), model, cases): with your options"
    said = ", ".join(f"{k}={v!r}" for k, v in options.items())
    return f"found = locate.find(locate.{cls.__name__}({said}), model, cases)"

"""A ProbeStrip as a cell of Python: the shown text, and the probe's score at each of its tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

from workbench import registry
from workbench.model.model import Model
from workbench.probes.base import FittedProbe
from workbench.probes.places import JOIN
from workbench.probing.store import save
from workbench.records import Prompt
from workbench.sites import parse
from workbench.tensors import Intervention
from workbench_widgets.cells import FOLDER, edit_code, list_code, model_line, prompt_code
from workbench_widgets.probe_strip.scores import sites_of, width


def cell(
    model: Model,
    prompt: Prompt,
    probe: FittedProbe,
    edit: Intervention | None,
    own_scope: str | None,
    max_new_tokens: int,
    folder: str | Path = FOLDER,
) -> str:
    """The text of the cell; it gives `score`, one number a token.

    Args:
        own_scope: where the probe's own direction is added; None for an edit that was given.
    """
    sites = list(dict.fromkeys(sites_of(probe)))
    lines = [
        "import torch",
        "",
        "import workbench as wb",
        "",
        model_line(model),
        f"prompt = {prompt_code(prompt)}",
        f"probe = wb.load_probe({_saved(probe, Path(folder)).as_posix()!r})",
        f"edits = {list_code([] if edit is None else [_edit(edit, own_scope, folder)])}",
        f"(text,) = model.generate([prompt], edits=edits, max_new_tokens={max_new_tokens})",
        f"trace = model.run([prompt], record={sites!r}, edits=edits, completions=[text.ids], "
        "logits='none')",
        f"rows = {_rows(probe)}  # [token, d]",
        f"score = {_score(probe)}  # [token]",
        "score",
        "",
    ]
    return "\n".join(lines)


def _edit(edit: Intervention, own_scope: str | None, folder: str | Path) -> str:
    if own_scope is None:
        return edit_code(edit, folder)
    within = "" if own_scope == "all" else f".within({own_scope!r})"
    return f"probe.edit(){within}.at({float(edit.strength)!r})"


def _rows(probe: FittedProbe) -> str:
    """The probe's own rows among what the trace holds."""
    whole = lambda site: f"trace[{site!r}][0].flatten(1).float().cpu()"  # noqa: E731
    if JOIN in probe.site:
        return f"torch.cat([{', '.join(map(whole, sites_of(probe)))}], -1)"
    head = parse(probe.site, 10**6)[0].selector("head")
    said = whole(sites_of(probe)[0])
    if not isinstance(head, int):
        return said
    d = width(probe)
    return f"{said}[:, {head * d} : {(head + 1) * d}]"


def _score(probe: FittedProbe) -> str:
    if registry.get("probes", probe.method).reads != "tokens":
        return "probe.score(rows)"
    return "torch.cat([probe.score(rows[None, : t + 1]) for t in range(len(rows))])"


def _saved(probe: FittedProbe, folder: Path) -> Path:
    """The probe's file, named by what is in it: the same probe is written once."""
    digest = hashlib.sha256(f"{probe.method}{probe.site}{sorted(probe.params.items())}".encode())
    for name, tensor in probe.tensors.items():
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    stem = "".join(c if c.isalnum() else "_" for c in f"probe_{probe.method}_{probe.site}")[:60]
    path = folder / f"{stem}-{digest.hexdigest()[:8]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save(probe, path)
    return path

"""Whether a dictionary belongs to a model: its width, depth, place and name."""

from __future__ import annotations

from typing import Any

from workbench import sites
from workbench.errors import WorkbenchError
from workbench.sae.dictionary import Dictionary
from workbench.tensors import Fingerprint


def check_fits(dictionary: Dictionary, model: Any, where: str, *, force: bool = False) -> None:
    """Refuse a dictionary whose codes on this model would mean nothing.

    Args:
        dictionary, model: which two.
        where: what the error names.
        force: accept another model of the same width, such as one that was trained on from it, or the
            same one in another dtype.

    Raises:
        WorkbenchError: another width, a layer that the model lacks, or another model.
        SiteUnavailable: a site that the model's backend cannot read.
    """
    for site in sites.parse_all([dictionary.site, dictionary.target], model.n_layers):
        model.backend.check(site, write=False)
    ends = (dictionary.site, "reads", dictionary.d), (dictionary.target, "writes", dictionary.d_out)
    for place, does, found in ends:
        width = _width(place, model.dims)
        if width is not None and width != found:
            raise WorkbenchError(
                where,
                f"the dictionary {does} another width than {place} has",
                expected=f"{width}, as in {model.name}",
                got=f"{found}, from {dictionary.name or 'a dictionary'}",
                do="take a dictionary of this model; force=True cannot help",
            )
    made_for = dictionary.model
    if not force and made_for is not None and not _same(made_for, model):
        raise WorkbenchError(
            where,
            "the dictionary was trained on another model, or on this one with other weights or dtype",
            expected=f"{made_for.name} {made_for.weights}".strip(),
            got=f"{model.name} {model.fingerprint.weights if made_for.weights else ''}".strip(),
            do="load its own model, or say force=True to read this one with it all the same",
        )


def _width(site: str, dims: Any) -> int | None:
    if site.startswith("hf:"):
        return None
    part = site.partition(".")[2].partition("[")[0] or site
    widths = {"z": dims.n_heads * dims.d_head, "mlp_post": dims.d_mlp, "mlp_pre": dims.d_mlp}
    if part in ("q", "k", "v", "expert", "router_logits", "logits"):
        return None
    return widths.get(part, dims.d_model)


def _same(made_for: Fingerprint, model: Any) -> bool:
    if made_for.weights:
        return made_for.weights == model.fingerprint.weights
    return _plain(made_for.name) == _plain(model.name)


def _plain(name: str) -> str:
    """A model's name without its owner; TransformerLens' "gpt2-small" is the hub's "gpt2"."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    return {"gpt2-small": "gpt2"}.get(last, last)

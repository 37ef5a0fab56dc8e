"""Where a neuron or a direction is most active: tokens of prompts with what stands around them.

A neuron's activation is its own value. A direction's is what is read along it: `weight . h + bias` of a
read-out or a linear probe, and for an addition `h . shift / |shift|`, the component along its vector.

Shapes: activations `[pos]` per prompt, in the site's own columns.
Units: the activation's own, or the probe's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from workbench import sites
from workbench.errors import WorkbenchError
from workbench.model.model import Model
from workbench.probes.base import FittedProbe, check_model
from workbench.records import Prompt
from workbench.sites import Site
from workbench.tensors import Intervention, Readout
from workbench_widgets.pieces import pieces

AROUND = 14
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Feature:
    """Something that is more or less active at every token.

    Attributes:
        name: what a title calls it.
        site: where it is read, without a position.
        read: activations `[batch, pos, ...]` of the site to `[batch, pos]`.
        unit: of what is read.
    """

    name: str
    site: str
    read: Callable[[Tensor], Tensor]
    unit: str = "activation"


def feature(model: Model, given: Any) -> Feature:
    """A neuron's site text, a Readout, a linear FittedProbe or an addition as a feature.

    Raises:
        WorkbenchError: anything else, a neuron or site that the model lacks, or several sites.
    """
    if isinstance(given, str):
        return _neuron(model, given)
    if isinstance(given, FittedProbe):
        check_model(given, model.fingerprint)
        return replace(_line(model, given.readout), name=f"{given.method} probe", unit="logits")
    if isinstance(given, Readout):
        return _line(model, given)
    if isinstance(given, Intervention) and given.is_addition and len(given.sites) == 1:
        (text,) = given.sites
        shift = given.tensors[text]["shift"].float()
        norm = float(shift.norm())
        if norm > 0:
            return replace(_line(model, Readout(text, shift / norm)), name=given.label)
    raise WorkbenchError(
        "HeadBoard(neuron=)",
        "is nothing that can be read at every token",
        expected="'L3.mlp_post[neuron=12]', a Readout, a linear FittedProbe, or an addition at one site",
        got=repr(given)[:80],
        do="for an edit of several sites take edit.only(site)",
    )


def _neuron(model: Model, text: str) -> Feature:
    found = sites.parse(text.strip(), model.n_layers)
    site = _without_pos(found[0])
    index = site.selector("neuron")
    if len(found) != 1 or not isinstance(index, int) or site.axes != ("pos", "neuron"):
        raise WorkbenchError(
            f"neuron {text!r}",
            "names no single neuron",
            expected="such as 'L3.mlp_post[neuron=12]'",
            got=text,
            do="name a layer, mlp_post or mlp_pre, and one neuron",
        )
    return Feature(str(site), str(site), lambda h: h.float())


def _line(model: Model, readout: Readout) -> Feature:
    found = sites.parse(readout.site, model.n_layers)
    site = _without_pos(found[0])
    if len(found) != 1 or site.axes[0] != "pos":
        raise WorkbenchError(
            f"direction at {readout.site}",
            "is not read at one place of every token",
            expected="one site with positions, such as 'L3.resid_post'",
            got=readout.site,
            do="take one site",
        )

    def read(h: Tensor) -> Tensor:
        rows, weight = h.flatten(2).float(), readout.weight.to(h.device).float()
        if rows.shape[-1] != weight.numel():
            raise WorkbenchError(
                f"direction at {site}",
                "has another width than the site",
                expected=f"{rows.shape[-1]}",
                got=weight.numel(),
                do="make it on this model",
            )
        return rows @ weight.flatten() + float(readout.bias)

    return Feature(f"direction at {site}", str(site), read)


def _without_pos(site: Site) -> Site:
    kept = tuple((k, v) for k, v in site.selectors if k != "pos")
    return Site(site.layer, site.part, kept)


def most_active(
    model: Model,
    prompts: Sequence[Prompt],
    one: Feature,
    top: int,
    check: Callable[[int, int], None] = lambda _done, _of: None,
) -> list[dict[str, Any]]:
    """The `top` prompts by their most active token, with up to 14 tokens on both sides of it.

    A prompt comes once; the first token, where every residual stream is large, counts like the others.

    Args:
        check: called with (prompts done, prompts) after each batch; may raise to stop.

    Returns:
        Rows of `prompt` (index), `value`, `at` (place of the token in `pieces`), `pieces`, `values`, and
        how many tokens are `before` and `after` what is shown.
    """
    found: list[tuple[float, int, Tensor, list[int]]] = []
    for start, stop in _batches(model, prompts):
        tokens = model.tokens(list(prompts[start:stop]))
        values = one.read(model.run(tokens, [one.site], logits="none")[one.site]).cpu()
        for row in range(stop - start):
            mask = tokens.mask[row].cpu()
            own = values[row][mask]
            found.append((float(own.max()), start + row, own, tokens.ids[row].cpu()[mask].tolist()))
        found = sorted(found, key=lambda x: (-x[0], x[1]))[:top]
        check(stop, len(prompts))
    return [_row(model, *row) for row in found]


def _batches(model: Model, prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
    """Runs of prompts whose padded batch stays below a number of tokens."""
    found, start, widest = [], 0, 0
    for i, prompt in enumerate(prompts):
        length = model.tokens(prompt).ids.shape[1]
        if i > start and max(widest, length) * (i + 1 - start) > TOKENS_AT_ONCE:
            found.append((start, i))
            start, widest = i, 0
        widest = max(widest, length)
    return [*found, (start, len(prompts))]


def _row(model: Model, value: float, prompt: int, own: Tensor, ids: list[int]) -> dict[str, Any]:
    at = int(own.argmax())
    start, stop = max(0, at - AROUND), min(len(ids), at + AROUND + 1)
    return {
        "prompt": prompt,
        "value": value,
        "at": at - start,
        "pieces": pieces(model.tokenizer, ids[start:stop], ids[max(0, start - 1) : start]),
        "values": own[start:stop].tolist(),
        "before": start,
        "after": len(ids) - stop,
    }

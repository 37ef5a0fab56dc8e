"""Fit a steering method on prompts: record what it reads, hand it what it needs, check the labels.

    edit = steering.fit("mean_difference", model, prompts.pairs(positive=[...], negative=[...]))
    edit = steering.fit(steering.Iti(n_heads=4), model, pairs, "L1-2.z")

Prompts are labelled: pairs, classes, or prompts with a wanted and an unwanted completion
(`workbench.prompts.completions`), which are read behind their prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from scipy.stats import binomtest

from workbench import registry
from workbench.activations.record import record
from workbench.errors import WorkbenchError
from workbench.linalg import mean_difference
from workbench.model.run import handed_run
from workbench.model.shadow import gradient
from workbench.model.tokens import as_prompts
from workbench.records import Prompt
from workbench.shapes import Float, Rows, Tensor
from workbench.steering.base import SteeringMethod
from workbench.tensors import Activations, Contrast, Intervention

ENOUGH_PAIRS = 12
"""Fewer rows in a half say too little about a sign."""


def fit(
    method: str | SteeringMethod,
    model: Any,
    prompts: Sequence[Prompt],
    sites: str | Iterable[str] | None = None,
    *,
    pool: str | None = None,
    positive: Any = True,
    negative: Any = False,
    batch_size: int | None = None,
    progress: bool = True,
    **handed: Any,
) -> Intervention:
    """The intervention that `method` makes of the two classes of `prompts`.

    Args:
        method: a registry name of the family `steering`, or a method with options.
        prompts: labelled `positive` or `negative`; where `meta["completion"]` is set it is read
            behind the prompt.
        sites: where rows are read and the edit acts; the method's own by default.
        pool: which positions become rows; the method's own by default.
        progress: show bars; False also silences a method that trains.
        handed: what the method needs and a model cannot give, such as `dictionary=`.

    Raises:
        UnknownName: no such method, site or pool.
        WorkbenchError: a class is empty, rows cannot be fitted (see `steering.base.sites_of`), or a
            need is neither given nor a model's.

    Warns:
        UserWarning: directions fitted on one half of the rows do not tell the other half apart, or
            tell them apart the wrong way round: labels may be swapped.
    """
    if isinstance(method, str):
        method = registry.get("steering", method)()
    asked = as_prompts(prompts)
    chosen = _chosen(method, sites)
    options = {"batch_size": batch_size, "progress": progress}
    read = partial(contrast_of, model, asked, pool=pool or method.pool, **options)
    with torch.inference_mode(False):  # where the caller is in it, nothing could be trained
        contrast = read(chosen, positive=positive, negative=negative)
        warn_of_swapped_labels(method, contrast)
        fitting = method if progress else quiet(method)
        return fitting.fit(contrast, **needed(method, model, handed, batch_size))


def quiet(method: SteeringMethod) -> SteeringMethod:
    """The method without a bar of its own, which those that train have."""
    return replace(method, progress=False) if getattr(method, "progress", False) else method  # pyright: ignore


def _chosen(method: SteeringMethod, sites: str | Iterable[str] | None) -> list[str]:
    asked = method.sites if sites is None else sites
    many = [asked] if isinstance(asked, str) else list(asked)
    return [site for site in many if site]


def contrast_of(
    model: Any,
    prompts: list[Prompt],
    sites: list[str],
    *,
    pool: str,
    positive: Any,
    negative: Any,
    **options: Any,
) -> Contrast:
    """Rows of both classes; the prompts alone where no sites are read."""
    many = [p for p in prompts if p.label in (positive, negative)]
    acts = _recorded(model, many or prompts, sites or ["embed"], pool, **options)
    found = acts.contrast(positive, negative)
    return found if sites else replace(found, positive={}, negative={})


def _recorded(
    model: Any, prompts: list[Prompt], sites: Any, pool: str, **options: Any
) -> Activations:
    """Rows of prompts, each read with its completion where any has one."""
    tails = None
    if any("completion" in p.meta for p in prompts):
        tails = [_ids(model, p.meta.get("completion", "")) for p in prompts]
    return record(model, prompts, sites, pool, completions=tails, **options)


def _ids(model: Any, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def needed(
    method: SteeringMethod, model: Any, handed: dict[str, Any], batch_size: int | None
) -> dict[str, Any]:
    """What the method asked for, by keyword."""
    made = {
        "dims": model.dims,
        "run": partial(handed_run, model),
        "rows": partial(_rows, model, batch_size),
        "generate": model.generate,
        "encode": partial(_ids, model),
        "parameters": dict(model.hf.named_parameters()),
        "gradient": partial(gradient, model),
    } | handed
    missing = [need for need in method.needs if need not in made]
    if missing:
        raise WorkbenchError(
            f"steering.fit({type(method).__name__})",
            f"needs {', '.join(missing)}, which no model has",
            expected=f"{missing[0]}=...",
            got=sorted(handed) or "nothing",
            do=f"pass {missing[0]}= to steering.fit",
        )
    extra = {name: value for name, value in handed.items() if name not in method.needs}
    return {need: made[need] for need in method.needs} | extra


def _rows(
    model: Any,
    batch_size: int | None,
    prompts: Sequence[Prompt],
    sites: Any,
    edits: Iterable[Intervention] = (),
    pool: str = "last",
) -> dict[str, Rows]:
    options = {"edits": edits, "batch_size": batch_size, "progress": False}
    return dict(_recorded(model, as_prompts(prompts), sites, pool, **options).values)


def warn_of_swapped_labels(method: SteeringMethod, contrast: Contrast) -> None:
    """Fit a mean difference on every other row and look at the sign on the rest.

    Said only where no site tells the halves apart: a layer may well not know the concept.
    """
    paired = contrast.paired
    signs = [_sign(p, contrast.negative[site], paired) for site, p in contrast.positive.items()]
    known = [sign for sign in signs if sign is not None]
    if not known or any(right > 0.5 and certain for right, certain in known):
        return
    right, certain = min(known) if any(c for _, c in known) else max(known)
    said = "the wrong way round: are labels swapped in a part of them?" if certain else "by chance"
    warnings.warn(
        f"steering.fit({type(method).__name__}): a direction from one half of the rows sorts the "
        f"other half {said} ({right:.0%} right at its best site); expected a direction that holds "
        "out; got none; check the labels, the sites and the position that is read",
        UserWarning,
        stacklevel=3,
    )


def _sign(
    positive: Rows, negative: Float[Tensor, "other d"], paired: bool
) -> tuple[float, bool] | None:
    """Share of held-out rows (pairs) on the right side, and whether that is certain."""
    few = min(len(positive), len(negative)) < 2 * ENOUGH_PAIRS
    if few or not (positive.isfinite().all() and negative.isfinite().all()):
        return None
    v = mean_difference(positive[::2], negative[::2])
    held = positive[1::2].double() @ v, negative[1::2].double() @ v
    if paired:
        sorted_right = held[0] > held[1]
    else:
        middle = (positive[::2].double().mean(0) + negative[::2].double().mean(0)) @ v / 2
        sorted_right = torch.cat([held[0] > middle, held[1] < middle])
    right, total = int(sorted_right.sum()), len(sorted_right)
    return right / total, float(binomtest(right, total).pvalue) < 0.01

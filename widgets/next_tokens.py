"""What several runs of the same cases say next, side by side: top tokens, answer, foil, logit difference.

Shapes: a run's logits are `[case, vocab]`, of the last position; everything else is a mean over cases.
Units: probabilities; logits for the difference; nats for KL(base || run).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.comparison.stats import mean_intervals
from workbench.locate.base import Cases
from workbench.model.model import Model
from workbench.tensors import Tokens
from workbench_widgets.pieces import alternatives


def rows_of(tokens: Tokens, rows: list[int]) -> Tokens:
    """Some rows of a batch, in its own columns."""
    return replace(
        tokens,
        ids=tokens.ids[rows],
        mask=tokens.mask[rows],
        prompts=tuple(tokens.prompts[i] for i in rows),
        prompt_lengths=tuple(tokens.prompt_lengths[i] for i in rows),
    )


def cases_at(cases: Cases, rows: list[int]) -> Cases:
    """Some of the cases, in their own columns."""
    pick = lambda tensor: None if tensor is None else tensor[rows]  # noqa: E731
    return Cases(
        rows_of(cases.clean, rows),
        None if cases.corrupted is None else rows_of(cases.corrupted, rows),
        pick(cases.answer),
        pick(cases.foil),
        pick(cases.columns),
    )


def next_tokens(
    model: Model, cases: Cases, runs: Mapping[str, Tensor], top: int = 6
) -> dict[str, Any]:
    """What each run gives the tokens that any of them finds most probable.

    Args:
        runs: logits `[case, vocab]` by name; the first is the base of KL.
        top: tokens of each run.

    Returns:
        `runs`, their names; `tokens`, rows of text, mark ("answer", "foil" or "") and a probability per
        run; `difference`, per run mean, low and high of the logit difference over cases, or None without
        an answer; `kl`, per run the mean KL from the base.
    """
    means, differences, kls, base = [], [], [], None
    for logits in runs.values():
        logits = logits.float()
        logp = logits.log_softmax(-1)
        base = logp if base is None else base
        # a token ruled out has probability 0 in both, which is no difference
        gap = torch.where(base.isfinite(), base.exp() * (base - logp), 0.0)
        kls.append(max(0.0, float(gap.sum(-1).mean())))
        means.append(logp.exp().mean(0))
        differences.append(_difference(cases, logits))
    p = torch.stack(means)
    return {
        "runs": [*runs],
        "tokens": _marked(model, cases, runs) + _top(model, cases, p, top),
        "difference": differences,
        "kl": kls,
    }


def _difference(cases: Cases, logits: Tensor) -> list[float] | None:
    if cases.answer is None:
        return None
    values = cases.metric(logits, "logit_difference").double().cpu().numpy()
    mean, low, high, _ = mean_intervals(values[:, None])
    return [float(mean[0]), float(low[0]), float(high[0])]


def _shared(ids: Tensor | None) -> int | None:
    """The one token that all cases have, or None."""
    found = set() if ids is None else set(ids.tolist())
    return found.pop() if len(found) == 1 else None


def _marked(model: Model, cases: Cases, runs: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    rows = []
    for mark, ids in (("answer", cases.answer), ("foil", cases.foil)):
        if ids is None:
            continue
        p = [
            float(z.float().softmax(-1).gather(-1, ids.to(z.device)[:, None]).mean())
            for z in runs.values()
        ]
        one = _shared(ids)
        text = "each case's own" if one is None else _texts(model, cases, [one])[0]
        rows.append({"text": text, "mark": mark, "own": one is None, "p": p})
    return rows


def _top(model: Model, cases: Cases, p: Tensor, top: int) -> list[dict[str, Any]]:
    ids = p.topk(min(top, p.shape[-1]), -1).indices.flatten().unique()
    shown = {_shared(cases.answer), _shared(cases.foil)}
    order = p[:, ids].amax(0).argsort(descending=True, stable=True)
    kept = [i for i in ids[order].tolist() if i not in shown][: top + 2]
    texts = _texts(model, cases, kept)
    return [
        {"text": text, "mark": "", "own": False, "p": p[:, i].tolist()}
        for i, text in zip(kept, texts, strict=True)
    ]


def _texts(model: Model, cases: Cases, ids: list[int]) -> list[str]:
    return alternatives(model.tokenizer, ids, cases.clean.ids[0, -1:].tolist())

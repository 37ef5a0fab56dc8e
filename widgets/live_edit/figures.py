"""What a setting of the sliders shows: the next token's figures, and two continuations token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench import tasks
from workbench.errors import EditError
from workbench.interventions.rollout import continuation_logprobs
from workbench.model.model import Model
from workbench.records import Generation, Prompt
from workbench.tensors import Intervention
from workbench_widgets.pieces import alternatives, pieces


def logprobs(logits: Tensor, edits: list[Intervention]) -> Tensor:
    """`[vocab]` in nats, from the last position.

    Raises:
        EditError: they are not finite, which an edit did.
    """
    last = logits[0, -1].float()
    if bool(last.isnan().any()) or not bool(last.isfinite().any()):
        raise EditError(
            "the edited run",
            "gives logits that are no numbers",
            expected="finite logits",
            got=f"{int(last.isnan().sum())} of {len(last)} NaN with {[e.label for e in edits]}",
            do="lower the strength, or correct the edit's tensors",
        )
    return last.log_softmax(-1)


def next_token(
    model: Model, before: Sequence[int], base: Tensor, edited: Tensor, top: int
) -> dict[str, Any]:
    """The most probable next tokens of either run, and KL(edited || base).

    Args:
        before: ids of the prompt.
        base, edited: log-probabilities `[vocab]` in nats.
    """
    ids = dict.fromkeys([*base.topk(top).indices.tolist(), *edited.topk(top).indices.tolist()])
    order = sorted(ids, key=lambda i: -max(float(base[i]), float(edited[i])))[:top]
    return {
        "ids": order,
        "tokens": alternatives(model.tokenizer, order, before),
        "base": base[order].exp().tolist(),
        "edited": edited[order].exp().tolist(),
        "kl_nats": kl_nats(edited, base).item(),
    }


def kl_nats(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats over the last axis, of log-probabilities."""
    terms = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True)
    # 0 log 0 is 0: a token that a model rules out
    return terms.where(p > -torch.inf, 0.0).sum(-1)


def continuation(
    model: Model, prompt: Prompt, generation: Generation, edits: list[Intervention]
) -> dict[str, Any]:
    """A finished continuation: its tokens, log-probabilities under both runs, KL and verdict.

    `logprobs` are those of the run that generated it, `base_logprobs` those of the model without edits;
    `kl_nats` is KL(edited || base) at each of its positions.
    """
    ids = list(generation.ids)
    own = next(continuation_logprobs(model, [prompt], [ids], edits))
    base = next(continuation_logprobs(model, [prompt], [ids])) if edits else own
    index = torch.tensor(ids, dtype=torch.long)[:, None]
    return {
        "ids": ids,
        "tokens": pieces(model.tokenizer, ids, model.tokens([prompt]).ids[0].tolist()),
        "text": generation.text,
        "stop": generation.stop,
        "logprobs": list(generation.logprobs),
        "base_logprobs": base.gather(1, index)[:, 0].tolist(),
        "kl_nats": kl_nats(own, base).tolist(),
        "right": tasks.check(prompt, generation.text) if prompt.task else None,
    }

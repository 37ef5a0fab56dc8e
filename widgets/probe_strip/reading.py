"""One prompt and its greedy continuation, and the rows that probes read at every token of both.

The forward that chooses a token is the one whose rows are read: no token costs a second forward, but the
last one, which `generate` itself never reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.decoding import Greedy
from workbench.errors import EditError, WorkbenchError
from workbench.model.model import Model
from workbench.model.run import gradients_off, usable
from workbench.records import Prompt
from workbench.tensors import Intervention

SHOW_EVERY_S = 0.08

OnToken = Callable[[int, Callable[[], "Text"]], None]


@dataclass
class Text:
    """What is there of a prompt and its continuation.

    Attributes:
        ids: of both; tokens chosen but not read yet are not among them.
        n_prompt: how many of them are the prompt's.
        rows: `[pos, d]` by site, heads flattened; float32 on the CPU.
        stop: "eos" or "length"; "" while it goes on.
    """

    ids: list[int]
    n_prompt: int
    rows: dict[str, Tensor] = field(default_factory=dict)
    stop: str = ""


def read(
    model: Model,
    prompt: Prompt,
    sites: Iterable[str],
    edits: Sequence[Intervention],
    max_new_tokens: int,
    on_token: OnToken | None = None,
) -> Text:
    """Continue the prompt greedily, as `model.generate` does, and keep the rows of every token.

    Args:
        on_token: called after each forward with its number and what makes the text so far.

    Raises:
        EditError: an edit that is decided step by step, one that did nothing, or that gives NaN.
        PromptError: the prompt leaves no room for so many tokens.
    """
    _refuse_stepwise(edits)
    tokens, sites = model.tokens([prompt], room=max_new_tokens), list(dict.fromkeys(sites))
    session = model.session(tokens, edits, sites)
    ids, positions, every = tokens.ids, tokens.positions, tokens.ids[0].tolist()
    n_prompt, cache, stop = len(every), model.backend.new_cache(), ""
    kept: dict[str, list[Tensor]] = {site: [] for site in sites}
    text = lambda: Text(list(every), n_prompt, _joined(kept), stop)  # noqa: E731
    with session.attached(), gradients_off(model):
        for step in range(max_new_tokens + 1):
            session.advance(ids, positions, padded=False)
            made = model.backend.forward(
                ids, mask=None, positions=None, cache=cache, use_cache=True, keep=1
            )
            cache, logits = made.cache, made.logits[:, -1].float()
            for site in sites:
                kept[site].append(session.values[site][0].flatten(1).float().cpu())
            _check(logits, edits)
            if on_token:
                on_token(step, text)
            if stop or step == max_new_tokens:
                break
            chosen = int(Greedy().choose(logits, None)[0])
            every.append(chosen)
            stop = "eos" if chosen in model.eos_ids else ""
            ids, positions = ids.new_tensor([[chosen]]), positions[:, -1:] + 1
    session.receipts()
    stop = stop or "length"
    return text()


def at_times(show: Callable[[Text], None]) -> OnToken:
    """Show the first token at once and then what is there, at most every `SHOW_EVERY_S`."""
    told = [-1.0]

    def on_token(_step: int, text: Callable[[], Text]) -> None:
        if time.monotonic() - told[0] >= SHOW_EVERY_S:
            show(text())
            told[0] = time.monotonic()

    return on_token


def _joined(kept: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {site: usable(torch.cat(parts)) for site, parts in kept.items()}


def _check(logits: Tensor, edits: Sequence[Intervention]) -> None:
    if not bool(logits.isnan().any()) and bool(logits.isfinite().any()):
        return
    raise (EditError if edits else WorkbenchError)(
        "ProbeStrip",
        "the model's logits are no numbers" + (" any more" if edits else ""),
        expected="finite logits",
        got="NaN or infinity",
        do="choose a smaller strength" if edits else "look at the model: this is without edits",
    )


def _refuse_stepwise(edits: Sequence[Intervention]) -> None:
    for edit in edits:
        if "stepwise" in edit.params and not edit.is_zero:
            raise EditError(
                f"ProbeStrip, edit {edit.label!r}",
                "is decided anew at every token, which this widget cannot read along",
                expected="an edit whose strength stays",
                got=edit.params["stepwise"],
                do="use LiveEdit, or model.generate and then model.run",
            )

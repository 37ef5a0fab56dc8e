"""Log-probabilities of given continuations, at the positions that decide them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from workbench.model.generate import replay
from workbench.records import Prompt
from workbench.shapes import Float, Tensor
from workbench.tensors import Intervention

LOGITS_BYTES = 256 * 2**20


@torch.no_grad()
def continuation_logprobs(
    model: Any,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[int]],
    edits: Iterable[Intervention] = (),
    batch_size: int | None = None,
) -> Iterator[Float[Tensor, "generated vocab"]]:
    """Per prompt, log-probabilities in nats `[generated, vocab]` of every token at each generated
    position, the continuation being read as if the model had generated it. float32, on the CPU.

    Row i is the distribution that token i of the continuation was drawn from, so row 0 comes from
    the last prompt position.
    """
    edits = list(edits)
    if any("stepwise" in edit.params and not edit.is_zero for edit in edits):
        yield from replay(model, list(prompts), completions, edits, batch_size)
        return
    size = batch_size or _fitting(model, list(prompts), completions)
    for start in range(0, len(prompts), size):
        part = list(completions[start : start + size])
        trace = model.run(
            list(prompts[start : start + size]),
            edits=[edit.for_rows(start, len(part)) for edit in edits],
            completions=part,
        )
        for row, ids in enumerate(part):
            # left padding: every row ends in the last column, which decides a token nobody drew
            logits = trace.logits[row, -len(ids) - 1 : -1] if len(ids) else trace.logits[row, :0]
            yield logits.float().log_softmax(-1).cpu()


def _fitting(model: Any, prompts: list[Prompt], completions: Sequence[Sequence[int]]) -> int:
    """Rows whose logits, at every position, stay within `LOGITS_BYTES`."""
    longest = max(map(len, completions), default=0)
    positions = max(model.tokens(prompts).prompt_lengths) + longest
    return max(
        1,
        min(
            model.fitting_batch(prompts, longest),
            LOGITS_BYTES // (4 * positions * model.dims.n_vocab),
        ),
    )

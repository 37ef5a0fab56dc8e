"""Packed branches against one call per prefix and answer.

A 200-token chain, 20 prefixes, 4 answers of 4 tokens each. The calls are plain transformers without a
cache, on exactly prefix + answer, unembedding only the positions that are read.

    speedup   time of the 80 calls over that of one `score_branches`
    max_diff  largest difference of a token's log-probability, in nats
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import workbench as wb
from tests.benchmarks import measure, models
from tests.benchmarks.measure import Figure

LENGTH, PREFIXES, ANSWERS, ANSWER = 200, 20, 4, 4


class Case:
    """One model's chain and answers, scored both ways."""

    def __init__(self, model: wb.Model):
        draw = torch.Generator().manual_seed(0)
        top = min(96, model.dims.n_vocab)
        self.model = model
        self.chain = torch.randint(3, top, (LENGTH,), generator=draw)
        self.answers = torch.randint(3, top, (ANSWERS, ANSWER), generator=draw)
        self.prefixes = [(i + 1) * LENGTH // PREFIXES for i in range(PREFIXES)]

    def packed(self) -> Any:
        return wb.score_branches(self.model, self.chain, self.prefixes, list(self.answers))

    @torch.no_grad()
    def one_by_one(self) -> torch.Tensor:
        found = torch.zeros(PREFIXES, ANSWERS, ANSWER)
        for i, prefix in enumerate(self.prefixes):
            for j, answer in enumerate(self.answers):
                ids = torch.cat([self.chain[:prefix], answer])[None]
                logits = self.model.hf(
                    input_ids=ids, use_cache=False, logits_to_keep=ANSWER + 1
                ).logits[0, :-1]
                found[i, j] = logits.log_softmax(-1).gather(1, answer[:, None])[:, 0]
        return found

    def difference(self) -> float:
        return float((self.packed().logprobs - self.one_by_one()).abs().max())


def measured(quick: bool) -> dict[str, Figure]:
    """Both figures; `quick` leaves GPT-2 out."""
    cases = {"reasoner": (Case(models.reasoner()), 4 if quick else 20)}
    if not quick:
        cases["gpt2"] = (Case(models.gpt2()), 20)
    speedups, differences = {}, {}
    for name, (case, seconds) in cases.items():
        differences[name] = case.difference()
        times = measure.alternate({"packed": case.packed, "calls": case.one_by_one}, seconds)
        speedups[name] = measure.ratio(times, "calls", "packed")
    return {
        "speedup": measure.worst(speedups, 10.0, "higher"),
        "max_diff": measure.worst(differences, 1e-4),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick, _ = measure.asked()
    sys.exit(not measure.report("branches", measured(quick)))

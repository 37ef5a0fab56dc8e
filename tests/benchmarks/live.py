"""Moving one edit, and a sweep, against running everything again.

excess    the edit sits at `resid_pre` of layer l of L, so that L - l blocks have to run, and moves.
          Time of `Live.run` without the unembedding, over the time of all blocks, less (L - l) / L.
          The blocks' time is that of calling them one after the other, and nothing else.
max_diff  largest difference of any logit or kept value from a fresh `model.run`; 0 is bit for bit
sweep16   `Live.sweep` over 16 strengths at the middle layer over 16 edited `model.run`, 32 tokens,
          both reading the last logits; with all of them, in the cases, unembedding is half the work
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch

import workbench as wb
from tests.benchmarks import measure, models
from tests.benchmarks.measure import Figure

LENGTH, STRENGTHS = 32, 16


def blocks_alone(model: wb.Model, tokens: wb.Tokens) -> Callable[[], Any]:
    """All blocks in a row, called as the model calls them."""
    seen: list[tuple[tuple, dict]] = []
    blocks = model.hf.get_submodule(model.layout.blocks)
    handles = [
        b.register_forward_pre_hook(lambda _m, a, k: seen.append((a, k)), with_kwargs=True)
        for b in blocks
    ]
    with torch.no_grad():
        model.hf(input_ids=tokens.ids, use_cache=False)
    for handle in handles:
        handle.remove()
    first = seen[0][0][0] if seen[0][0] else seen[0][1]["hidden_states"]

    @torch.no_grad()
    def run() -> Any:
        h = first
        for block, (args, options) in zip(blocks, seen, strict=True):
            h = block(h, *args[1:], **options)
        return h

    return run


def unembedding(model: wb.Model, rows: int) -> Callable[[], Any]:
    """The last norm and the unembedding of one position a row."""
    norm = model.hf.get_submodule(model.layout.outside["final_norm"].module)
    head, h = model.hf.get_output_embeddings(), torch.randn(rows, 1, model.d_model)
    return torch.no_grad()(lambda: head(norm(h)))


def excess(model: wb.Model, rows: int, seconds: float) -> dict[str, float]:
    """Excess by layer."""
    tokens = models.batch(model, rows, LENGTH)
    runs = {"blocks": blocks_alone(model, tokens), "head": unembedding(model, rows)}
    for layer in range(model.n_layers):
        live = wb.Live(model, tokens)
        edit, step = models.edit(model, f"L{layer}.resid_pre"), itertools.count(1)
        runs[f"L{layer}"] = lambda live=live, edit=edit, step=step: live.run(
            [edit.at(1 + next(step) / 64)]
        )
    times = measure.alternate(runs, seconds, least=5)
    found = {}
    for layer in range(model.n_layers):
        cost = [
            (ours - head) / blocks
            for ours, head, blocks in zip(
                times[f"L{layer}"], times["head"], times["blocks"], strict=True
            )
        ]
        found[f"L{layer}"] = measure.middle(cost) - (model.n_layers - layer) / model.n_layers
    return found


def difference(model: wb.Model) -> float:
    """Largest difference between a live run and a fresh one while edits come, move and go."""
    tokens, worst = models.batch(model, 2, LENGTH), 0.0
    live, record = wb.Live(model, tokens), [f"L{model.n_layers - 1}.resid_post"]
    parts = ("resid_post", "resid_pre", "mlp_out", "attn_out")
    sites = [f"L{layer}.{part}" for layer in range(model.n_layers) for part in parts]
    for number, site in enumerate(sites):
        edits = [models.edit(model, site, 1 + number), models.edit(model, sites[-number], 2.0)]
        ours, fresh = live.run(edits, record), model.run(tokens, record, edits, logits="last")
        for a, b in ((ours.logits, fresh.logits), (ours[record[0]], fresh[record[0]])):
            worst = max(worst, float((a - b).abs().max()))
    return worst


def sweep(model: wb.Model, seconds: float, read: str) -> float:
    """Time of the sweep over that of the runs."""
    tokens, edit = models.batch(model, 1, LENGTH), models.edit(model)
    strengths = [1 + i / 4 for i in range(STRENGTHS)]
    live = wb.Live(model, tokens)
    live.run()
    runs = {
        "sweep": lambda: live.sweep(edit, strengths, logits=read),
        "runs": lambda: [model.run(tokens, (), [edit.at(s)], logits=read) for s in strengths],
    }
    return measure.ratio(measure.alternate(runs, seconds), "sweep", "runs")


def measured(quick: bool) -> dict[str, Figure]:
    """Every figure."""
    small, large = models.reasoner(), models.gpt2()
    found = {
        f"{name} b{rows} {layer}": value
        for name, model, rows, seconds in (
            ("reasoner", small, 1, 4 if quick else 15),
            ("reasoner", small, 16, 4 if quick else 30),
            ("gpt2", large, 1, 1 if quick else 30),
        )
        for layer, value in excess(model, rows, seconds).items()
    }
    differences = {"reasoner": difference(small), "gpt2": 0.0 if quick else difference(large)}
    sweeps = {"gpt2, last logits": sweep(large, 1 if quick else 15, "last")}
    whole = 0.0 if quick else round(sweep(large, 15, "all"), 4)
    return {
        "excess": measure.worst(found, 0.10),
        "max_diff": measure.worst(differences, 0.0),
        "sweep16": measure.worst(sweeps, 0.4, **({"all logits, no limit": whole} if whole else {})),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick, _ = measure.asked()
    sys.exit(not measure.report("live", measured(quick)))

"""Fitting beside steering-vectors and repeng, and a sweep beside a loop of TransformerLens runs.

    fit_vs_steering_vectors  their time over ours: mean difference at all layers from 256 pairs, both at
                             their defaults (theirs reads a pair at a time)
    fit_vs_repeng            their time over ours: PCA of the pairs' differences at all layers from the
                             same pairs, both with 32 prompts at once
    sweep_vs_tl              their time over ours: next-token logits of an edit at 12 layers and 8
                             strengths; a loop of `run_with_hooks` of a TransformerBridge, and
                             `next_token`

All on random weights in GPT-2's shape. Pairs are of 8 to 24 tokens, so that batches need padding. The first
two libraries live in .venv-peers (`make peers`), in a process that takes turns with this one; without it
their figures are 0, which does not hold, and their cases say why. `--quick` fits 24 pairs and sweeps 4
layers. In the cases: how far the two sides' numbers are apart; further than `CLOSE`, and nothing is
reported, since a time for other numbers says nothing.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from tests.benchmarks import measure, models
from tests.benchmarks.measure import Figure
from workbench import steering
from workbench.sweep import next_token

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
N_PAIRS, BATCH, LENGTH = 256, 32, 32
CLOSE = 1e-3
STRENGTHS = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
Timed = tuple[float, Any]


def pairs(count: int) -> list[tuple[str, str]]:
    """Texts of mixed lengths that differ in their last half."""
    draw = random.Random(0)

    def text(k: int) -> str:
        return "".join(draw.choices("0123456789+=", k=k))

    heads = [(text(draw.randint(3, 11)), draw.randint(4, 12)) for _ in range(count)]
    return [(head + text(k), head + text(k)) for head, k in heads]


def labelled(data: list[tuple[str, str]]) -> list[wb.Prompt]:
    """The pairs as prompts."""
    return wb.prompts.pairs(positive=[p for p, _ in data], negative=[n for _, n in data])


class Peer:
    """The other process: `peer(name)` lets it fit once, and waits."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process

    def __call__(self, name: str) -> Timed:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the peers' process ended: see {ROOT / 'tests' / 'peers' / 'timing.py'}"
        said = json.loads(line)
        return said["seconds"], torch.tensor(said["vectors"])


@contextmanager
def peer(model: wb.Model, data: list[tuple[str, str]]) -> Iterator[Peer]:
    """The peers' process around the same weights, tokenizer and pairs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.hf.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        job = json.dumps({"pairs": data, "batch": BATCH})
        (folder / "pairs.json").write_text(job, "utf-8")
        command = [str(PEERS), "-W", "ignore", str(ROOT / "tests/peers/timing.py"), name]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            yield Peer(process)
            assert process.stdin is not None
            process.stdin.close()


def timed(run: Callable[[], Any]) -> Timed:
    """CPU seconds and what came out."""
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def alternated(
    ours: Callable[[], Timed], theirs: Callable[[], Timed], rounds: int
) -> tuple[float, Any, Any]:
    """Median of their time over ours by round, and the last results; who begins changes."""
    ratios, a, b = [], (0.0, None), (0.0, None)
    for r in range(rounds):
        if r % 2:
            b, a = theirs(), ours()
        else:
            a, b = ours(), theirs()
        ratios.append(b[0] / a[0])
    return measure.middle(ratios), a[1], b[1]


def fits(quick: bool) -> dict[str, Figure]:
    """Both fits."""
    model, data = models.gpt2(), pairs(24 if quick else N_PAIRS)
    prompts = labelled(data)

    def ours(method: str | steering.SteeringMethod, **options: Any) -> Callable[[], Timed]:
        def fit() -> torch.Tensor:
            edit = steering.fit(method, model, prompts, progress=False, **options)
            return torch.stack([weights["shift"] for weights in edit.tensors.values()])

        return lambda: timed(fit)

    found = {}
    with peer(model, data) as other, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights tell no classes apart
        other("warm")
        steering.fit("mean_difference", model, labelled(data[:4]), progress=False)
        measure.to_stderr("steering: fits beside steering-vectors")
        value, a, b = alternated(
            ours("mean_difference"), lambda: other("steering_vectors"), 1 if quick else 3
        )
        apart = close((a - b).norm(dim=-1).max() / b.norm(dim=-1).min())
        found["fit_vs_steering_vectors"] = figure(value, 3.0, len(data), apart=apart)
        measure.to_stderr("steering: fits beside repeng")
        value, a, b = alternated(
            ours(steering.Pca(centred=True), batch_size=BATCH),
            lambda: other("repeng"),
            2 if quick else 3,
        )
        # their last row is the final norm's output, and signs are chosen in another way
        cosines = torch.cosine_similarity(a, b.to(a), dim=-1)[:-1].abs()
        apart = close(1 - cosines.min())
        found["fit_vs_repeng"] = figure(value, 1.3, len(data), batch=BATCH, apart=apart)
    return found


def close(apart: torch.Tensor) -> str:
    """How far numbers are apart, after a check that they are the same numbers."""
    assert float(apart) < CLOSE, f"the two sides' numbers are {float(apart):.1e} apart"
    return f"{float(apart):.1e}"


def figure(value: float, limit: float, count: int, **detail: Any) -> Figure:
    """A ratio that has to be at least `limit`."""
    return Figure(round(value, 4), limit, "higher", "ratio", {"pairs": count, **detail})


def sweep(quick: bool) -> Figure:
    """The sweep."""
    model = models.gpt2()
    tokens = models.batch(model, 1, LENGTH)
    layers = [0, 4, 8, 11] if quick else list(range(model.n_layers))
    shift = models.shift(models.edit(model))
    bridge = wb.load(model.hf, model.tokenizer, backend="transformer_lens", proof=False).unwrap()

    @torch.no_grad()
    def loop(layers: list[int]) -> torch.Tensor:
        found = []
        for y in layers:
            for s in STRENGTHS:
                hooks = [(f"blocks.{y}.hook_resid_post", lambda h, hook, s=s: h + s * shift)]
                found.append(bridge.run_with_hooks(tokens.ids, fwd_hooks=hooks)[:, -1])
        return torch.stack(found).unflatten(0, (len(layers), -1))

    def ours(layers: list[int]) -> torch.Tensor:
        prompts = list(tokens.prompts)
        edits = {y: models.edit(model, f"L{y}.resid_post") for y in layers}
        done = next_token(
            model, prompts, edits.__getitem__, STRENGTHS, layers=layers, progress=False
        )
        return done.logits

    ours([11]), loop([11])
    measure.to_stderr("steering: sweep beside TransformerLens")
    value, a, b = alternated(
        lambda: timed(lambda: ours(layers)), lambda: timed(lambda: loop(layers)), 2 if quick else 3
    )
    detail = {"layers": len(layers), "strengths": len(STRENGTHS)}
    detail["max_abs_diff"] = close((a - b).abs().max())
    return Figure(round(value, 4), 4.0, "higher", "ratio", detail)


def measured(quick: bool) -> dict[str, Figure]:
    """Every figure that can be taken here."""
    found = fits(quick) if PEERS.exists() else absent()
    return {**found, "sweep_vs_tl": sweep(quick)}


def absent() -> dict[str, Figure]:
    """Both fits where the other libraries are not installed."""
    why = {"not measured": "no .venv-peers; run `make peers`"}
    limits = {"fit_vs_steering_vectors": 3.0, "fit_vs_repeng": 1.3}
    return {key: Figure(0.0, limit, "higher", "ratio", why) for key, limit in limits.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick, _ = measure.asked()
    sys.exit(not measure.report("steering", measured(quick)))

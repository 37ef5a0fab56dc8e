"""Locating and probing beside TransformerLens and scikit-learn.

    patch_vs_tl           their time over ours: a map of the residual stream over 12 layers and 24 positions;
                          `get_act_patch_resid_pre` of a TransformerBridge with the clean run's cache,
                          and `locate.find("activation_patching")` without its control, recordings of
                          both runs included on both sides
    attribution_forwards  forwards of the model that plain attribution patching takes, a backward pass
                          counted as one more
    probes_vs_sklearn     their time over ours: a logistic probe at each of 12 layers, 2,000 rows x 768,
                          fp32, C = 1, standardised rows; a loop of scikit-learn's pipeline with its
                          fastest solver that ends at the same coefficients ("newton-cholesky"), and
                          `Logistic().fit_many`. The cases say how the default solver at its default
                          tolerance does, which ends further off

The first two on random weights in GPT-2's shape and one pair of prompts of 24 tokens. The rows of the probes
have a spectrum that falls off, as activations do, and overlapping classes. `--quick` patches a
model of 4 layers and fits 2. In the cases: how far the two sides' numbers are apart; further than 1e-4
(maps) or 1e-3 (coefficients), and nothing is reported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

import workbench as wb
from tests.benchmarks import measure, models
from tests.benchmarks.measure import Figure
from tests.benchmarks.steering import alternated, timed
from workbench import locate
from workbench.locate import ActivationPatching, AttributionPatching
from workbench.patching.cases import cases_of
from workbench.probes import Logistic
from workbench.probes.base import Data

LENGTH, LAYERS, ROWS, WIDTH = 24, 12, 2000, 768
CLOSE_MAP, CLOSE_WEIGHTS = 1e-4, 1e-3


def pair() -> wb.Prompts:
    """One clean and one corrupted prompt that differ in their second half."""
    clean, corrupted = (str(p.text) for p in models.prompts(2, LENGTH))
    head = LENGTH // 2
    return wb.prompts.counterfactuals(
        clean=[clean], corrupted=[clean[:head] + corrupted[head:]], answers=[5], foils=[6]
    )


def patching(quick: bool) -> Figure:
    """The map. A quick run cuts the model to its last layers on both sides."""
    from transformer_lens import patching as theirs_patching

    model = shallow() if quick else models.gpt2()
    cases = cases_of(model, pair())
    assert cases.corrupted is not None and cases.clean.ids.shape == (1, LENGTH)
    clean, corrupted = cases.clean.ids, cases.corrupted.ids
    bridge = wb.load(model.hf, model.tokenizer, backend="transformer_lens", proof=False).unwrap()
    method = ActivationPatching(control="none")

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return cases.metric(logits[:, -1], "logit_difference")[0]

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        _, cache = bridge.run_with_cache(clean)
        return theirs_patching.get_act_patch_resid_pre(bridge, corrupted, cache, metric)

    def ours() -> torch.Tensor:
        found = locate.find(method, model, cases, progress=False)
        return found.scores.values["logit_difference"][0]

    measure.to_stderr("locate: activation patching beside TransformerLens")
    value, a, b = alternated(lambda: timed(ours), lambda: timed(theirs), 1 if quick else 3)
    detail = {"layers": model.n_layers, "positions": LENGTH}
    return Figure(
        round(value, 4), 5.0, "higher", "ratio", detail | {"max_abs_diff": close(a - b, CLOSE_MAP)}
    )


def shallow() -> wb.Model:
    """GPT-2's shape with 4 layers."""
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    config = GPT2Config(n_layer=4, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval()
    return wb.load(model, models.gpt2().tokenizer)


def close(apart: torch.Tensor, limit: float) -> str:
    """How far numbers are apart, after a check that they are the same numbers."""
    found = float(apart.abs().max())
    assert found < limit, f"the two sides' numbers are {found:.1e} apart"
    return f"{found:.1e}"


def attribution() -> Figure:
    """Forwards of the module and backward passes of autograd while plain attribution patching runs."""
    model = models.gpt2()
    counted = {"forward": 0, "backward": 0}
    grad, backward = torch.autograd.grad, torch.autograd.backward

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counted["backward"] += 1
            return function(*args, **options)

        return call

    def forward(*_: Any) -> None:
        counted["forward"] += 1

    cases = cases_of(model, pair())
    handle = model.hf.register_forward_pre_hook(forward)
    torch.autograd.grad, torch.autograd.backward = counting(grad), counting(backward)
    try:
        locate.find(AttributionPatching(exact=0), model, cases, progress=False)
    finally:
        torch.autograd.grad, torch.autograd.backward = grad, backward
        handle.remove()
    assert counted["backward"], "attribution patching took no gradient"
    return Figure(float(sum(counted.values())), 4.0, "lower", "forwards", counted)


def layers(count: int) -> dict[str, Data]:
    """Rows per layer; classes overlap, so that the optimum is finite and far from separating."""
    draw = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, WIDTH + 1).float() ** -0.5
    found = {}
    for layer in range(count):
        mix = torch.randn(WIDTH, WIDTH, generator=draw) / WIDTH**0.5
        rows = (torch.randn(ROWS, WIDTH, generator=draw) * spectrum) @ mix
        signal = rows @ torch.randn(WIDTH, generator=draw)
        noise = signal.std() * torch.randn(ROWS, generator=draw)
        found[f"L{layer}.resid_post"] = Data(rows, (signal + noise > 0).float())
    return found


def probes(quick: bool) -> Figure:
    """The fits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = layers(2 if quick else LAYERS)

    def theirs(solver: str) -> torch.Tensor:
        found = []
        for one in data.values():
            line = LogisticRegression(C=1.0, max_iter=1000, solver=solver)
            pipe = make_pipeline(StandardScaler(), line)
            pipe.fit(one.rows.numpy(), one.targets.numpy())
            found.append(torch.from_numpy(line.coef_[0] / pipe.steps[0][1].scale_))
        return torch.stack(found)

    def ours() -> torch.Tensor:
        return torch.stack([t["weight"] for t in Logistic().fit_many(data).values()])

    ours()
    measure.to_stderr("locate: probes beside scikit-learn")
    # in units of standardised rows, in which scikit-learn's coefficients are
    scale = torch.stack([one.rows.std(0, correction=0) for one in data.values()])
    rounds, newton, plain = 2 if quick else 5, "newton-cholesky", "lbfgs"
    value, a, b = alternated(lambda: timed(ours), lambda: timed(lambda: theirs(newton)), rounds)
    apart = close((a.double() - b) * scale, CLOSE_WEIGHTS)
    other, a, b = alternated(lambda: timed(ours), lambda: timed(lambda: theirs(plain)), rounds)
    detail: dict[str, Any] = {"layers": len(data), "rows": ROWS, "width": WIDTH}
    detail |= {"max_abs_diff": apart, "default solver": round(other, 4)}
    detail["its max_abs_diff"] = f"{float(((a.double() - b) * scale).abs().max()):.1e}"
    return Figure(round(value, 4), 1.0, "higher", "ratio", detail)


def measured(quick: bool) -> dict[str, Figure]:
    """Every figure."""
    return {
        "patch_vs_tl": patching(quick),
        "attribution_forwards": attribution(),
        "probes_vs_sklearn": probes(quick),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick, _ = measure.asked()
    sys.exit(not measure.report("locate", measured(quick)))

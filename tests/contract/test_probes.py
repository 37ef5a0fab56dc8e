"""What every probe keeps, run on all of them: a new file in workbench/probes is tested by existing."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from workbench import probes, registry
from workbench.errors import WorkbenchError
from workbench.probes.base import Probe
from workbench.probing.table import ProbeTable
from workbench.records import Prompt
from workbench.tensors import Activations, Fingerprint

NAMES = registry.names("probes")
GIVEN: dict[str, dict[str, Any]] = {
    "attention_pooled": {"steps": 15},
    "contrast_consistent": {"restarts": 3, "epochs": 80, "lr": 0.05},
    "magnitude_mean": {"epochs": 40, "hidden": 16},
    "mlp": {"steps": 60},
    "quantile": {"epochs": 40, "hidden": 16},
}
"""Options that keep a probe quick, by its name."""
MODEL = Fingerprint("planted", "llama", 8, 2, "abc")
SITE, OTHER = "L1.resid_post", "L0.resid_post"
D, N = 8, 120
DIRECTION = torch.nn.functional.normalize(
    torch.arange(1.0, D + 1) * torch.tensor([1, -1] * 4), dim=0
)

every = pytest.mark.parametrize("name", NAMES)


def method(name: str) -> Probe:
    return registry.get("probes", name)(**GIVEN.get(name, {}))


def planted(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Activations:
    """Rows in the form that a probe reads, whose target lies along DIRECTION; another site is noise."""
    made = {"rows": _rows, "tokens": _tokens, "pairs": _pairs}[method(name).reads]
    generator = torch.Generator().manual_seed(seed)
    prompts, rows, positions = made(generator, method(name).target)
    noise = torch.randn(rows.shape, generator=generator)
    pool = "all" if method(name).reads == "tokens" else "last"
    values = {OTHER: noise.to(dtype), SITE: rows.to(dtype)}
    return Activations(values, tuple(prompts), tuple(positions), pool, MODEL)


def _rows(generator: torch.Generator, target: str) -> tuple[list[Prompt], torch.Tensor, list[int]]:
    rows = torch.randn(N, D, generator=generator)
    if target == "class":
        labels = [i % 2 == 0 for i in range(N)]
        rows += 4 * torch.tensor(labels)[:, None].float() * DIRECTION
    else:
        rows += 2 * torch.randn(N, 1, generator=generator) * DIRECTION
        labels = [float(x) for x in 50 + 10 * (rows @ DIRECTION)]
    return [Prompt(text=f"text {i}", label=y) for i, y in enumerate(labels)], rows, [3] * N


def _tokens(
    generator: torch.Generator, target: str
) -> tuple[list[Prompt], torch.Tensor, list[int]]:
    single, rows, _ = _rows(generator, target)
    lengths = [3 + i % 3 for i in range(N)]
    owner = torch.repeat_interleave(torch.arange(N), torch.tensor(lengths))
    noise = 0.3 * torch.randn(len(owner), D, generator=generator)
    positions = [p for n in lengths for p in range(n)]
    return [single[i] for i in owner.tolist()], rows[owner] + noise, positions


def _pairs(generator: torch.Generator, target: str) -> tuple[list[Prompt], torch.Tensor, list[int]]:
    truth = torch.rand(N // 2, generator=generator) > 0.5
    labels = torch.stack([truth, ~truth], 1).flatten()
    shared = torch.randn(N // 2, 1, D, generator=generator).expand(-1, 2, -1).reshape(N, D)
    rows = 0.5 * shared + 0.5 * torch.randn(N, D, generator=generator)
    rows += 3 * (labels[:, None].float() - 0.5) * DIRECTION
    rows[::2] += 1.0  # the wording of the first side
    prompts = [Prompt(text=f"text {i}", label=bool(labels[i]), pair=i // 2) for i in range(N)]
    return prompts, rows, [3] * N


@cache
def judged(name: str) -> ProbeTable:
    shuffles = 4 if method(name).target == "class" else 1
    return probes.evaluate(method(name), planted(name), folds=3, shuffles=shuffles)


@cache
def fitted(name: str) -> dict[str, probes.FittedProbe]:
    return probes.fit(method(name), planted(name))


@every
def test_what_is_planted_is_found_and_noise_is_not(name: str) -> None:
    table = judged(name)
    found, noise = table.at(SITE), table.at(OTHER)
    if method(name).target == "class":
        assert found.loc["accuracy", "low"] > 0.85
        assert noise.loc["accuracy", "low"] <= 0.5 <= noise.loc["accuracy", "high"] + 0.03
        assert found.loc["auroc", "low"] > 0.9
    else:
        assert found.loc["r2", "low"] > 0.4 and found.loc["spearman", "low"] > 0.75
        assert noise.loc["r2", "low"] <= 0.05
    assert table.best().site == SITE == table.best(nested=True).site


@every
def test_shuffled_targets_give_chance(name: str) -> None:
    table = judged(name)
    for site in (SITE, OTHER):
        control = table.at(site, "shuffled labels")
        if method(name).target == "class":
            row = control.loc["accuracy"]  # 95 % of one interval, and here are many
            assert row["low"] - 0.05 <= 0.5 <= row["high"] + 0.05 and row["n"] == 12, row
        else:
            assert control.loc["r2", "low"] <= 0.02
    if method(name).reads != "pairs":  # whose labels decide a sign alone: all is right or wrong
        assert table.at(SITE).loc["selectivity", "low"] > 0.1
    assert table.at(OTHER).loc["selectivity", "low"] <= 0.1


@every
def test_it_is_deterministic_and_leaves_its_data_alone(name: str) -> None:
    acts, same = planted(name), planted(name)
    again = probes.fit(method(name), acts)
    for site, probe in fitted(name).items():
        for key, tensor in probe.tensors.items():
            assert torch.equal(again[site].tensors[key], tensor)
            assert tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        assert torch.equal(acts[site], same[site])
    assert acts.rows == same.rows


@every
def test_it_is_the_same_from_a_file(name: str, tmp_path: Path) -> None:
    probe, acts = fitted(name)[SITE], planted(name, seed=1)
    back = wb.load_probe(wb.save_probe(probe, tmp_path / "probe.safetensors"))
    assert torch.equal(back.score(acts), probe.score(acts))
    assert (back.site, back.pool, back.classes, back.model) == (
        SITE,
        acts.pool,
        probe.classes,
        MODEL,
    )
    assert json.loads(json.dumps(dict(back.params))) == json.loads(json.dumps(dict(probe.params)))


@every
def test_it_scores_every_example_of_its_own_place_alone(name: str) -> None:
    acts, probe = planted(name, seed=1), fitted(name)[SITE]
    assert probe.score(acts).shape == (N,)
    narrow = {site: rows[:, :-1] for site, rows in acts.values.items()}
    wrong = {
        "model": replace(acts, model=replace(MODEL, weights="xyz", name="another")),
        "site": acts.at(OTHER),
        "pool": replace(acts, pool="mean"),
        "width": replace(acts, values=narrow),
    }
    for other in wrong.values():
        with pytest.raises(WorkbenchError, match="fitted on something else"):
            probe.score(other)


@every
def test_bad_targets_and_rows_are_refused_in_words(name: str) -> None:
    acts = planted(name)
    with pytest.raises(WorkbenchError, match="needs (two classes|numbers that vary)"):
        probes.fit(method(name), acts, targets=[1] * N)
    with pytest.raises(WorkbenchError, match="not one per example"):
        probes.fit(method(name), acts, targets=[0, 1])
    spoilt = acts[SITE].clone()
    spoilt[4, 2] = float("nan")
    with pytest.raises(WorkbenchError, match="NaN"):
        probes.fit(method(name), replace(acts, values={SITE: spoilt}))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_half_precision_do(name: str, dtype: torch.dtype) -> None:
    probe = probes.fit(method(name), planted(name, dtype=dtype), SITE)[SITE]
    full, half = planted(name, seed=1), planted(name, seed=1, dtype=dtype)
    scores = [probe.score(acts).double() for acts in (full, half)]
    assert all(t.dtype == torch.float32 for t in probe.tensors.values())
    assert float(torch.corrcoef(torch.stack(scores))[0, 1]) > 0.999


@every
def test_a_line_is_the_score_and_an_edit_along_it_raises_the_score_by_its_strength(
    name: str,
) -> None:
    probe = fitted(name)[SITE]
    rows = torch.randn(5, D, generator=torch.Generator().manual_seed(2))
    if probe._probe.line(probe.tensors, probe.params) is None:
        with pytest.raises(WorkbenchError, match="no direction"):
            probe.edit()
        return
    if method(name).reads == "tokens":
        rows = rows[:, None]
    mask = torch.ones(rows.shape[:2], dtype=torch.bool) if rows.dim() == 3 else None
    weight, bias = probe.readout.weight, probe.readout.bias
    scores = probe.score(rows, mask)
    np.testing.assert_allclose(rows.reshape(5, D) @ weight + bias, scores, rtol=1e-4, atol=1e-4)
    cosine = float(torch.nn.functional.cosine_similarity(weight, DIRECTION, dim=0))
    assert cosine > 0.7
    shift = probe.edit().tensors[SITE]["shift"]
    raised = probe.score(rows + 2.5 * shift, mask)
    np.testing.assert_allclose(raised, scores + 2.5, rtol=1e-3, atol=1e-3)

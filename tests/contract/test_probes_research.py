"""Probes that are trained: attention-pooled, contrast-consistent, numeric distributions, cascades."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as log_loss

from workbench import probes, registry
from workbench.errors import WorkbenchError
from workbench.probes.attention_pooled import AttentionPooled
from workbench.probes.base import Data, FittedProbe, Probe
from workbench.probes.cascade import Cascade
from workbench.probes.contrast_consistent import ContrastConsistent
from workbench.probes.magnitude_mean import MagnitudeMean, exponents
from workbench.probes.pooling import softmax_weights
from workbench.probes.quantile import Quantile, pinball
from workbench.probes.training import Leaves, Loss
from workbench.probing import cascade, numbers
from workbench.records import Prompt
from workbench.tensors import Activations, Fingerprint

D = 12


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def auroc(scores: torch.Tensor, targets: torch.Tensor) -> float:
    gap = scores[targets == 1][:, None] - scores[targets == 0]
    return float((gap > 0).double().mean() + (gap == 0).double().mean() / 2)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


# ------------------------------------------------------------------------------ attention-pooled


def marked(seed: int, n: int = 300, pos: int = 12) -> tuple[Data, torch.Tensor]:
    """One token of each example carries column 0 as a mark and the class in column 1."""
    g = random(seed)
    rows, targets = torch.randn(n, pos, D, generator=g), (torch.arange(n) % 2).double()
    lengths = torch.randint(3, pos + 1, (n,), generator=g)
    at = (torch.rand(n, generator=g) * lengths).long()
    rows[torch.arange(n), at, 0] += 4.0
    rows[torch.arange(n), at, 1] += 2.0 * (2 * targets.float() - 1)
    mask = torch.arange(pos)[None] < lengths[:, None]
    return Data(rows, targets, mask), at


@cache
def attentive() -> tuple[AttentionPooled, dict[str, torch.Tensor]]:
    return AttentionPooled(), AttentionPooled().fit(marked(0)[0])


def test_attention_finds_the_token_that_tells_and_the_mean_does_not() -> None:
    probe, weights = attentive()
    held, at = marked(1)
    attention = probe.attention(weights, probe.params, held.rows, held.mask)
    assert float(attention[torch.arange(len(at)), at].mean()) > 0.6
    learned = auroc(probe.score(weights, probe.params, held.rows, held.mask), held.targets)
    flat = AttentionPooled(temperature=math.inf)
    plain = flat.score(flat.fit(marked(0)[0]), flat.params, held.rows, held.mask)
    assert learned > 0.95 and auroc(plain, held.targets) < 0.9


def test_a_uniform_query_is_mean_pooling_and_a_cold_one_reads_one_token() -> None:
    probe, weights = attentive()
    held, _ = marked(1)
    assert held.mask is not None
    means = torch.stack([r[m].mean(0) for r, m in zip(held.rows, held.mask, strict=True)])
    line = means @ weights["weight"] + weights["bias"]
    for flat in (
        probe.score({**weights, "query": torch.zeros(D)}, probe.params, held.rows, held.mask),
        probe.score(weights, {"temperature": "inf"}, held.rows, held.mask),
        probe.score(weights, {"temperature": "1e9"}, held.rows, held.mask),
    ):
        torch.testing.assert_close(flat, line, atol=1e-4, rtol=1e-4)
    liked = (held.rows @ weights["query"]).masked_fill(~held.mask, -torch.inf).argmax(-1)
    read = held.rows[torch.arange(len(liked)), liked] @ weights["weight"] + weights["bias"]
    for cold in ("0", "1e-6"):
        found = probe.score(weights, {"temperature": cold}, held.rows, held.mask)
        torch.testing.assert_close(found, read, atol=1e-4, rtol=1e-4)


def test_what_stands_on_padding_means_nothing() -> None:
    held, _ = marked(1)
    assert held.mask is not None
    spoilt = held.rows.masked_fill(~held.mask[..., None], float("nan"))
    for probe in (AttentionPooled(steps=5), Cascade(steps=5, window=4)):
        weights = probe.fit(held)
        again = probe.fit(replace(held, rows=spoilt))
        for name, tensor in weights.items():
            torch.testing.assert_close(again[name], tensor)
        scores = probe.score(weights, probe.params, held.rows, held.mask)
        torch.testing.assert_close(probe.score(weights, probe.params, spoilt, held.mask), scores)


def test_a_shift_of_all_tokens_moves_the_score_along_the_weight() -> None:
    held, _ = marked(1)
    shift = torch.randn(D, generator=random(5))
    for probe in (AttentionPooled(steps=5), Cascade(steps=5, window=4)):
        weights = probe.fit(held)
        before = probe.score(weights, probe.params, held.rows, held.mask)
        after = probe.score(weights, probe.params, held.rows + shift, held.mask)
        moved = (weights["weight"] @ shift).expand_as(before)
        torch.testing.assert_close(after - before, moved, atol=1e-3, rtol=1e-3)


def watched(
    kind: type[Probe], monkeypatch: pytest.MonkeyPatch, found: Leaves | None = None
) -> list[tuple[Callable[..., torch.Tensor], dict]]:
    """The loss and the options of every training that a probe starts; none is run."""
    calls: list[tuple[Callable[..., torch.Tensor], dict]] = []

    def train(loss: Loss, start: Leaves, *_n: int, **options: object) -> Leaves:
        calls.append((loss, options))
        return start if found is None else found

    for name in ("descend", "minimise"):
        monkeypatch.setattr(sys.modules[kind.__module__], name, train, raising=False)
    return calls


def standardised(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a mean of 0 and a spread of 1 over tokens, and which of them are tokens."""
    assert data.mask is not None
    tokens = data.rows[data.mask].double()
    return (data.rows - tokens.mean(0)) / tokens.std(0, correction=0), data.mask


def of_other_sizes(data: Data) -> Data:
    d = data.rows.shape[-1]
    return replace(data, rows=data.rows * torch.linspace(0.2, 3.0, d) + torch.arange(d) / 5)


@pytest.mark.parametrize("temperature", [0.5, math.inf])
def test_the_loss_of_attention_by_hand(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    query, weight = torch.randn(2, D, generator=random(8)).double()
    leaves = {"query": query.float(), "weight": weight.float(), "bias": torch.tensor(0.7)}
    calls = watched(AttentionPooled, monkeypatch, leaves)
    data = of_other_sizes(marked(0, n=40)[0])
    probe = AttentionPooled(temperature=temperature, l2=0.3, steps=7)
    raw = probe.fit(data)
    rows, mask = standardised(data)
    attention = (rows @ query / temperature).masked_fill(~mask, -torch.inf).softmax(-1)
    logits = (attention[..., None] * rows).sum(1) @ weight + 0.7
    size = query.square().sum() + weight.square().sum()
    ((loss, options),) = calls
    by_hand = log_loss(logits, data.targets) + 0.3 / 2 * size
    assert options["steps"] == 7
    assert float(loss(leaves)) == pytest.approx(float(by_hand), rel=1e-4)
    assert probe.params == {"temperature": str(temperature)}
    scores = probe.score(raw, probe.params, data.rows, mask)
    torch.testing.assert_close(scores.double(), logits, atol=1e-3, rtol=1e-3)
    seen = probe.attention(raw, probe.params, data.rows, mask)
    torch.testing.assert_close(seen.double(), attention, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.5, math.inf])
def test_the_loss_of_a_cascade_by_hand(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(D, generator=random(8)).double()
    leaves = {"weight": weight.float(), "bias": torch.tensor(0.7)}
    calls = watched(Cascade, monkeypatch, leaves)
    data = of_other_sizes(spans(0, n=40))
    raw = Cascade(window=30, temperature=temperature, l2=0.3, steps=7).fit(data)
    rows, mask = standardised(data)
    by_hand = 0.3 / 2 * weight.square().sum()
    largest = []
    for example, length, target in zip(rows, mask.sum(-1).tolist(), data.targets, strict=True):
        logits = example[:length] @ weight + 0.7
        smooth = [logits[max(0, t - 29) : t + 1].mean() for t in range(length)]
        counted = torch.stack(smooth[min(length, 30) - 1 :])  # some are shorter than the window
        largest.append(counted.max())
        pooled = {0.0: counted.max(), math.inf: counted.mean()}.get(temperature)
        if pooled is None:
            pooled = ((counted / temperature).softmax(-1) * counted).sum()
        by_hand += log_loss(pooled, target) / len(rows)
    ((loss, options),) = calls
    assert options["steps"] == 7
    assert float(loss(leaves)) == pytest.approx(float(by_hand), rel=1e-4)
    params = {"window": 30, "smooth": "window"}
    scores = Cascade.score(raw, params, data.rows, mask).double()
    torch.testing.assert_close(scores, torch.stack(largest), atol=1e-3, rtol=1e-3)


def test_probes_of_tokens_that_are_linear_in_one_have_a_line() -> None:
    for probe in (AttentionPooled(), Cascade()):
        weights = {"weight": torch.arange(3.0), "bias": torch.tensor(2.0)}
        line = probe.line(weights, probe.params)
        assert line is not None and line[1] == 2.0 and torch.equal(line[0], weights["weight"])


# --------------------------------------------------------------------------- contrast-consistent


def asserted(
    seed: int, n: int = 150, wording: float = 6.0, true: float = 0.5
) -> tuple[Data, torch.Tensor]:
    """Pairs whose truth lies along column 0; the sides differ by their wording as well."""
    g = random(seed)
    truth = (torch.rand(n, generator=g) < true).double()
    direction = torch.zeros(D).index_fill(0, torch.tensor([0]), 1.0)
    word = torch.zeros(D)
    word[0], word[1] = wording / 3, wording
    sides = [
        0.6 * torch.randn(n, D, generator=g)
        + sign * (word / 2 + 2 * (2 * truth[:, None].float() - 1) * direction)
        for sign in (1, -1)
    ]
    targets = torch.cat([truth, 1 - truth])
    return Data(torch.cat(sides), targets, None, torch.arange(n).repeat(2)), direction


def right(weights: dict[str, torch.Tensor], data: Data, targets: torch.Tensor) -> float:
    scores = ContrastConsistent.score(weights, {}, data.rows)
    return float(((scores > 0) == (targets == 1)).double().mean())


@pytest.mark.parametrize("wording", [0.0, 6.0])
def test_truth_is_found_without_labels_up_to_its_sign(wording: float) -> None:
    data, direction = asserted(0, wording=wording)
    blind = replace(data, targets=torch.full_like(data.targets, torch.nan))
    found = ContrastConsistent().fit(blind)
    assert abs(cosine(found["weight"], direction)) > 0.9
    # the score of a single row is right on both sides, whatever their wording
    held = asserted(1, wording=wording)[0]
    assert max(right(found, held, held.targets), right(found, held, 1 - held.targets)) > 0.97


def test_a_few_labels_decide_the_sign_and_nothing_else() -> None:
    data, _ = asserted(0)
    full = ContrastConsistent().fit(data)
    few = torch.full_like(data.targets, torch.nan)
    few[:3] = data.targets[:3]
    few[150:153] = data.targets[150:153]
    some = ContrastConsistent().fit(replace(data, targets=few))
    other = ContrastConsistent().fit(replace(data, targets=1 - data.targets))
    assert right(full, data, data.targets) > 0.97
    for name in ("weight", "bias"):
        assert torch.equal(some[name], full[name])
        assert torch.equal(other[name], -full[name])


def test_targets_permuted_within_pairs_change_the_sign_at_most() -> None:
    data, _ = asserted(0)
    full = ContrastConsistent().fit(data)
    for seed in range(4):
        turn = torch.rand(150, generator=random(10 + seed)) < 0.5
        mixed = torch.where(turn.repeat(2), 1 - data.targets, data.targets)
        found = ContrastConsistent().fit(replace(data, targets=mixed))
        assert torch.equal(found["weight"].abs(), full["weight"].abs())


def test_sides_that_only_mark_wording_give_no_sign_and_no_answer() -> None:
    data, direction = asserted(0)
    marks = torch.cat([torch.ones(150), torch.zeros(150)]).double()
    sides = ContrastConsistent(normalise="sides").fit(replace(data, targets=marks))
    blind = ContrastConsistent().fit(replace(data, targets=torch.full_like(marks, torch.nan)))
    assert torch.equal(sides["weight"], blind["weight"])  # as found
    assert abs(cosine(sides["weight"], direction)) > 0.9
    # read as (true, false) they are found as such: the wording is then the answer
    for labels in (marks, 1 - marks):
        auto = ContrastConsistent().fit(replace(data, targets=labels))
        assert right(auto, data, labels) > 0.97


@pytest.mark.parametrize(
    ("normalise", "wording"), [("all", 0.0), ("all", 6.0), ("sides", 0.0), ("sides", 6.0)]
)
def test_the_loss_of_contrast_pairs_by_hand(
    normalise: str, wording: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = torch.randn(D, 3, generator=random(1)), torch.tensor([0.3, -1.0, 0.2])
    weight = weight * torch.tensor([3.0, 1.0, 0.5])
    calls = watched(ContrastConsistent, monkeypatch, {"weight": weight, "bias": bias})
    data, _ = asserted(0, n=60, wording=wording)
    data = replace(data, rows=3 * data.rows + 1, targets=data.targets * torch.nan)
    raw = ContrastConsistent(normalise, restarts=3, l2=0.2).fit(data)
    a, b = data.rows.double().view(2, 60, D)
    apart, middle = (a - b).mean(0), data.rows.double().mean(0)
    a, b = (a - a.mean(0), b - b.mean(0)) if normalise == "sides" else (a - middle, b - middle)
    scale = torch.cat([a, b]).var(0, correction=0).mean().sqrt()
    kept = torch.eye(D).double()
    if normalise == "sides" and wording:
        kept -= torch.outer(apart, apart) / apart.square().sum()
    p, q = (torch.sigmoid((x @ kept / scale) @ weight.double() + bias) for x in (a, b))
    unsure = torch.where(p < q, p, q)
    each = ((p - (1 - q)) ** 2 + unsure**2).mean(0) + 0.2 / 2 * (weight**2).sum(0)
    ((loss, _),) = calls
    found = loss({"weight": weight, "bias": bias}, torch.arange(60))
    assert float(found) == pytest.approx(float(each.sum()), rel=1e-4)
    # the start with the lowest loss, for raw rows
    best = int(each.argmin())
    line = kept @ weight[:, best].double() / scale
    assert best > 0
    torch.testing.assert_close(raw["weight"].double(), line, atol=1e-5, rtol=1e-4)
    assert float(raw["bias"]) == pytest.approx(float(bias[best] - line @ middle), abs=1e-3)


def test_bad_rows_and_constant_labels_of_pairs_are_refused() -> None:
    data, _ = asserted(0, n=20)
    spoilt = data.rows.clone()
    spoilt[3, 2] = math.nan
    unknown = torch.full_like(data.targets, torch.nan)
    with pytest.raises(WorkbenchError, match="NaN or infinite"):
        ContrastConsistent().fit(replace(data, rows=spoilt, targets=unknown))
    unknown[:2] = 1.0
    with pytest.raises(WorkbenchError, match="needs two classes"):
        ContrastConsistent().fit(replace(data, targets=unknown))
    ContrastConsistent(l2=0.0, epochs=2).fit(data)


def test_the_weight_is_orthogonal_to_a_wording() -> None:
    data, _ = asserted(0)
    a, b = data.rows.view(2, 150, D)
    for epochs in (3, 100):
        found = ContrastConsistent(restarts=2, epochs=epochs).fit(data)["weight"]
        assert abs(cosine(found, (a - b).mean(0))) < 1e-5


def test_pairs_of_true_and_false_without_a_wording_are_found() -> None:
    data, direction = asserted(0, wording=0.0, true=1.0)
    found = ContrastConsistent().fit(data)
    assert cosine(found["weight"], direction) > 0.9
    assert right(found, data, data.targets) > 0.97


def test_uneven_truth_among_the_firsts_does_not_hide_it() -> None:
    data, direction = asserted(0, wording=0.0, true=0.7)
    assert cosine(ContrastConsistent().fit(data)["weight"], direction) > 0.9


def test_the_order_of_pairs_does_not_matter_and_broken_pairs_are_refused() -> None:
    data, _ = asserted(0, n=40)
    order = torch.arange(80).view(2, 40).mT.flatten()  # each pair's two rows together
    full, other = (ContrastConsistent().fit(d) for d in (data, data.at(order)))
    torch.testing.assert_close(full["weight"], other["weight"], atol=1e-3, rtol=1e-2)
    for broken in (replace(data, pairs=None), data.at(torch.arange(79))):
        with pytest.raises(WorkbenchError, match="needs pairs"):
            ContrastConsistent().fit(broken)


def test_pairs_that_are_all_alike_are_refused() -> None:
    data, _ = asserted(0, n=1)
    with pytest.raises(WorkbenchError, match="do not vary"):
        ContrastConsistent(normalise="sides").fit(data)


# --------------------------------------------------------------------------- numeric distributions


def test_the_pinball_loss_is_least_at_the_quantiles_of_a_known_distribution() -> None:
    g = random(0)
    targets = -torch.rand(4000, generator=g).log()  # exponential: quantile q is -log(1 - q)
    levels = torch.tensor(Quantile().levels)
    truth = -(1 - levels).log()
    best = pinball(truth.expand(4000, -1), targets, levels)
    for wrong in (truth * 1.3, truth + 0.2, truth.flip(0), targets.mean().expand(7)):
        assert pinball(wrong.expand(4000, -1), targets, levels) > best
    rows = torch.randn(4000, 2, generator=g)  # they know nothing of the targets
    probe = Quantile(hidden=0, batch=4000, held_out=0.0)
    weights = probe.fit(Data(rows, targets.double()))
    found = probe.spread(weights, probe.params, torch.zeros(1, 2))
    for level, value in found.items():
        error = (level * (1 - level) / 4000) ** 0.5 / (1 - level)  # of a sample quantile here
        assert abs(float(value) + math.log(1 - level)) < 4 * error + 0.02, level


def uneven(seed: int, n: int) -> tuple[Data, torch.Tensor]:
    """Numbers whose mean and spread both depend on the row."""
    g = random(seed)
    rows = torch.randn(n, 6, generator=g)
    spread = 10 * (0.5 * rows[:, 2]).exp()
    y = 50 + 30 * rows[:, 0] + 10 * rows[:, 1] + spread * torch.randn(n, generator=g)
    return Data(rows, y.double()), spread


@cache
def spread_probe() -> tuple[Quantile, dict[str, torch.Tensor]]:
    return Quantile(), Quantile().fit(uneven(0, 3000)[0])


def test_quantiles_cover_held_out_numbers_and_widen_where_the_numbers_do() -> None:
    probe, weights = spread_probe()
    held, spread = uneven(1, 400)
    found = probe.spread(weights, probe.params, held.rows)
    for promised, share in numbers.coverage(found, held.targets.float()).items():
        error = (promised * (1 - promised) / len(held)) ** 0.5
        assert abs(share - promised) < 3 * error + 0.015, (promised, share)
    width = found[0.75] - found[0.25]
    assert float(torch.corrcoef(torch.stack([width, spread]))[0, 1]) > 0.6
    assert torch.equal(probe.score(weights, probe.params, held.rows), found[0.5])


@pytest.mark.parametrize("kind", [Quantile, MagnitudeMean, ContrastConsistent])
def test_options_of_the_training_loop_reach_it(
    kind: type[Quantile | MagnitudeMean | ContrastConsistent], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watched(kind, monkeypatch)
    given = {"epochs": 7, "lr": 0.5, "patience": 3, "seed": 4}
    if kind is not ContrastConsistent:
        given |= {"weight_decay": 0.7, "batch": 5, "halve": 9, "held_out": 0.3}
    kind(**given).fit(asserted(0)[0] if kind is ContrastConsistent else wide(0, 60))
    for _, options in calls:
        assert given.items() <= options.items()
    assert len(calls) == (2 if kind is MagnitudeMean else 1)


def test_seeds_and_sizes_of_networks_count() -> None:
    data = wide(0, 60)
    for kind, net in ((Quantile, ""), (MagnitudeMean, "value.")):
        few = [kind(hidden=5, epochs=1, seed=seed).fit(data) for seed in (0, 0, 1)]
        name = f"{net}weight"
        assert few[0][name].shape[0] == 5 and torch.equal(few[0][name], few[1][name])
        assert not torch.allclose(few[0][name], few[2][name], atol=0.1)
    few = [
        ContrastConsistent(restarts=1, epochs=1, seed=seed).fit(asserted(0)[0]) for seed in (0, 1)
    ]
    assert abs(cosine(few[0]["weight"], few[1]["weight"])) < 0.9


def test_networks_of_numbers_start_at_the_targets_own_distribution() -> None:
    data = wide(0, 200)
    data = replace(data, rows=data.rows + 7)
    probe = Quantile(epochs=1, lr=1e-9)
    found = probe.spread(probe.fit(data), probe.params, data.rows[:1])
    for level, value in found.items():
        assert float(value) == pytest.approx(float(data.targets.quantile(level)), rel=1e-3)
    start = MagnitudeMean(epochs=1, lr=1e-9, hidden=0).fit(data)
    powers = exponents(data.targets)
    torch.testing.assert_close(start["bias"], powers.bincount().add(1).log().float())
    every = torch.arange(3)
    factors = (data.targets[:, None] / 10.0**every).clamp(-10, 10)
    assert float(start["value.bias"]) == pytest.approx(float(factors.mean()), rel=1e-4)


def test_the_published_sizes_are_those_of_the_source() -> None:
    shared = {"hidden": 512, "epochs": 600, "lr": 1e-5, "patience": 200, "halve": 100}
    for probe, own in (
        (Quantile.published(), {"weight_decay": 0.1}),
        (MagnitudeMean.published(), {"weight_decay": 1.0, "everywhere": False, "top": 3}),
    ):
        assert {name: getattr(probe, name) for name in (*shared, *own)} == {**shared, **own}
        assert type(probe).published(lr=0.1, hidden=3, halve=5).halve == 5
        assert type(probe).published(lr=0.1).lr == 0.1
    assert Quantile().levels == (0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975)


@pytest.mark.parametrize("everywhere", [True, False])
def test_the_losses_of_both_heads_by_hand(
    everywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watched(MagnitudeMean, monkeypatch)
    g = random(0)
    rows = torch.randn(60, 3, generator=g) * torch.tensor([0.5, 1.0, 4.0]) + 2
    y = 10 ** (1.2 + 0.8 * (rows[:, 1].double() - 2)) * rows[:, 0].double().sub(2).sign()
    MagnitudeMean(everywhere, hidden=0).fit(Data(rows, y))
    z, power = ((rows - rows.mean(0)) / rows.std(0, correction=0)).double(), exponents(y)
    every = torch.arange(int(power.min()), int(power.max()) + 1)
    assert len(every) > 2 and float((y[:, None] / 10.0**every).abs().max()) > 10
    chosen = torch.tensor([4, 50, 7, 22, 31])
    weight, bias = torch.randn(len(every), 3, generator=g), torch.randn(len(every), generator=g)
    logits = z[chosen] @ weight.double().T + bias
    right = logits[torch.arange(5), (power - every[0])[chosen]]
    expected = 100 * (logits.logsumexp(-1) - right).mean()
    found = calls[0][0]({"weight": weight, "bias": bias}, chosen)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)

    weight, bias = torch.randn(1, 4, generator=g), torch.tensor([0.7])
    said = (z[chosen] @ weight[0, :3].double())[:, None] + bias
    said = said + weight[0, 3] * (every - every.double().mean())
    error = (said - (y[chosen, None] / 10.0**every).clamp(-10, 10)).square()
    asked = torch.ones_like(error).bool() if everywhere else every == power[chosen, None]
    found = calls[1][0]({"weight": weight, "bias": bias}, chosen)
    assert float(found) == pytest.approx(50 * float(error[asked].mean()), rel=1e-4)


def test_heads_of_a_number_are_folded_back_to_raw_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    g, data = random(0), wide(0, 60)
    data = replace(data, rows=4 * data.rows + 3)
    heads = [
        {"weight": torch.randn(3, 6, generator=g), "bias": torch.randn(3, generator=g)},
        {"weight": torch.randn(1, 7, generator=g), "bias": torch.tensor([2.0])},
    ]
    left = iter(heads)
    monkeypatch.setattr(
        sys.modules[MagnitudeMean.__module__], "descend", lambda *_a, **_k: next(left)
    )
    probe = MagnitudeMean(hidden=0, top=1)
    assert probe.params == {"top": 1}
    found = probe.score(probe.fit(data), probe.params, data.rows)
    z = (data.rows - data.rows.mean(0)) / data.rows.std(0, correction=0)
    power = (z @ heads[0]["weight"].T + heads[0]["bias"]).argmax(-1)
    factor = torch.cat([z, power[:, None] - 1.0], -1) @ heads[1]["weight"][0] + 2
    torch.testing.assert_close(found, factor * 10.0**power, rtol=1e-3, atol=1e-3)


def test_crossing_quantiles_are_counted_and_sorted_on_request() -> None:
    weights = {"weight": torch.tensor([[0.0], [1.0], [0.0]]), "bias": torch.tensor([-1.0, 0, 1])}
    params = {"levels": [0.25, 0.5, 0.75], "sort": False}
    rows = torch.tensor([[0.0], [0.5], [2.0], [-3.0]])  # the last two cross
    assert Quantile.crossing(weights, params, rows) == 0.5
    assert numbers.crossing_rate(Quantile.spread(weights, params, rows)) == 0.5
    tidy = {**params, "sort": True}
    assert Quantile.crossing(weights, tidy, rows) == 0.5  # of what was predicted
    found = Quantile.spread(weights, tidy, rows)
    assert numbers.crossing_rate(found) == 0.0
    assert found[0.5].tolist() == [0.0, 0.5, 1.0, -1.0]


def test_coverage_by_hand() -> None:
    ends = {0.9: torch.ones(3), 0.1: torch.zeros(3), 0.7: torch.ones(3), 0.3: 0.5 * torch.ones(3)}
    found = numbers.coverage(ends, torch.tensor([0.0, 0.5, 1.0]))
    assert found == {0.4: pytest.approx(2 / 3), 0.8: 1.0} and list(found) == [0.4, 0.8]
    assert numbers.crossing_rate({0.9: torch.ones(2), 0.1: torch.zeros(2)}) == 0.0
    assert (
        numbers.crossing_rate({0.1: torch.ones(2), 0.9: torch.ones(2)}) == 0.0
    )  # level, not crossed
    spread = {0.25: torch.tensor([0.0, 0, 0, 0]), 0.5: torch.zeros(4), 0.75: torch.ones(4)}
    assert numbers.coverage(spread, torch.tensor([0.5, 1.0, 2.0, -1.0])) == {0.5: 0.5}
    with pytest.raises(WorkbenchError, match="no central interval"):
        numbers.coverage({0.5: torch.zeros(2)}, torch.zeros(2))


def test_exponents_hold_at_powers_of_ten_and_zero_takes_the_smallest() -> None:
    powers = torch.tensor([10.0**k for k in range(-3, 9)], dtype=torch.float64)
    assert exponents(powers).tolist() == list(range(-3, 9))
    assert exponents(-powers).tolist() == list(range(-3, 9))
    under = torch.nextafter(powers, torch.zeros_like(powers))  # whose logarithm rounds up
    assert exponents(under).tolist() == list(range(-4, 8))
    assert exponents(torch.tensor([0.0, 420.0, 1e5], dtype=torch.float64)).tolist() == [2, 2, 5]
    below = torch.tensor([9.999999, 999.99999, 0.0, 42.0], dtype=torch.float64)
    assert exponents(below).tolist() == [0, 2, 0, 1]


def wide(seed: int, n: int) -> Data:
    """Numbers from 1 to 1000, evenly over their logarithm, negative where column 1 is."""
    rows = torch.randn(n, 6, generator=random(seed))
    share = 0.5 + 0.5 * torch.erf(rows[:, 0].double() / 2**0.5)
    return Data(rows, 10 ** (3 * share))


def test_a_number_over_three_powers_of_ten_is_read_better_than_by_its_size_alone() -> None:
    probe, held = MagnitudeMean(), wide(1, 500)
    weights = probe.fit(wide(0, 800))
    right = (probe.magnitude(weights, {}, held.rows) == exponents(held.targets)).double().mean()
    assert float(right) > 0.9
    scores = probe.score(weights, probe.params, held.rows)
    error = ((scores - held.targets) / held.targets).abs().median()
    rows = torch.cat([held.rows, torch.ones(500, 1)], 1).double()
    line = rows @ torch.linalg.lstsq(rows, held.targets[:, None]).solution
    linear = ((line[:, 0] - held.targets) / held.targets).abs().median()
    assert float(error) < 0.2 and float(linear) > 1.0


def test_the_prediction_averages_over_the_likeliest_exponents_only() -> None:
    every = torch.tensor([0.0, 1.0, 2.0, 3.0])
    logits = torch.tensor([0.0, 2.0, 1.0, 0.5])
    weights = {
        "weight": torch.zeros(4, 1), "bias": logits, "exponents": every,
        "value.weight": torch.tensor([[0.0, 1.0]]), "value.bias": torch.tensor([4.0]),
    }  # fmt: skip
    factors = 4.0 + every - every.mean()
    for top in (1, 3, 9):
        chosen = logits.topk(min(top, 4)).indices
        by_hand = (logits[chosen].softmax(0) * factors[chosen] * 10.0 ** every[chosen]).sum()
        found = MagnitudeMean.score(weights, {"top": top}, torch.zeros(2, 1))
        torch.testing.assert_close(found, by_hand.expand(2))


@pytest.mark.parametrize(
    ("text", "last", "mean"),
    [
        ("3+4=", 4.0, 3.5),
        ("7-3", 3.0, 5.0),
        ("from -2.5 to 10", 10.0, 3.75),
        ("(-4)", -4.0, -4.0),
        ("1,234,567 of 1,000", 1000.0, (1234567 + 1000) / 2),
        ("[1,2,3]", 3.0, 2.0),
        ("6e3 and 1.5E-1", 0.15, 3000.075),
        ("x = 12.", 12.0, 12.0),
        ("L3 has none", None, None),
        ("p = .05 or \u22122", -2.0, -0.975),
        ("version 1.2.3", 1.2, 1.2),
        ("", None, None),
    ],
)
def test_numbers_in_a_prompt(text: str, last: float | None, mean: float | None) -> None:
    assert numbers.last_number(text) == last
    found = numbers.mean_number(text)
    assert found == mean or (mean is not None and found == pytest.approx(mean))


# -------------------------------------------------------------------------------------- cascades


def spans(seed: int, n: int = 240, pos: int = 40) -> Data:
    """In class 1 a run of 16 tokens is shifted along column 0; padding behind."""
    g = random(seed)
    rows, targets = torch.randn(n, pos, D, generator=g), (torch.arange(n) % 2).double()
    lengths = torch.randint(20, pos + 1, (n,), generator=g)
    starts = (torch.rand(n, generator=g) * (lengths - 15)).long()
    inside = (torch.arange(pos) >= starts[:, None]) & (torch.arange(pos) < starts[:, None] + 16)
    rows[..., 0] += 1.5 * (inside & (targets[:, None] == 1))
    return Data(rows, targets, torch.arange(pos)[None] < lengths[:, None])


@cache
def fitted(smooth: str = "window", window: int = 16) -> tuple[Cascade, dict[str, torch.Tensor]]:
    probe = Cascade(window=window, smooth=smooth)
    return probe, probe.fit(spans(0))


@pytest.mark.parametrize("smooth", ["window", "ema"])
def test_a_planted_run_of_tokens_is_found(smooth: str) -> None:
    probe, weights = fitted(smooth)
    held = spans(1)
    assert cosine(weights["weight"], torch.eye(D)[0]) > 0.9
    score = auroc(probe.score(weights, probe.params, held.rows, held.mask), held.targets)
    rough = auroc(
        probe.score(weights, {**probe.params, "window": 1}, held.rows, held.mask), held.targets
    )
    assert score > 0.98 and 1 - rough > 5 * (1 - score)


@pytest.mark.parametrize("smooth", ["window", "ema"])
@pytest.mark.parametrize("window", [1, 5, 16])
def test_streaming_and_batch_scores_agree(smooth: str, window: int) -> None:
    probe, weights = fitted(smooth, window)
    held = spans(1, n=12)
    assert held.mask is not None
    batch = probe.score(weights, probe.params, held.rows, held.mask)
    many = probe.stream(weights, probe.params, held.rows)
    for i, length in enumerate(held.mask.sum(1).tolist()):
        rows = held.rows[i, :length]
        so_far = probe.stream(weights, probe.params, rows)
        torch.testing.assert_close(so_far[-1], batch[i])
        torch.testing.assert_close(so_far, many[i, :length])
        assert bool((so_far[window - 1 :].diff() >= 0).all())
        one_by_one = cascade.Stream(
            FittedProbe("cascade", "L0.resid_post", "all", weights, probe.params)
        )
        pushed = [one_by_one.push(row) for row in rows]
        np.testing.assert_allclose(pushed, so_far, atol=1e-4)
        for t in (0, 7, length - 1):  # and each is the score of the rows so far
            torch.testing.assert_close(
                probe.score(weights, probe.params, rows[None, : t + 1])[0], so_far[t]
            )


def test_the_window_is_the_mean_of_the_last_tokens_and_the_average_decays() -> None:
    weights = {"weight": torch.tensor([1.0]), "bias": torch.tensor(0.5)}
    rows = torch.tensor([1.0, 3.0, 8.0, 2.0])[:, None]
    window = Cascade.stream(weights, {"window": 2, "smooth": "window"}, rows)
    assert window.tolist() == [1.5, 2.5, 6.0, 6.0]
    # the first token alone is no full window, so its 9.5 is forgotten
    loud = torch.tensor([9.0, 1.0, 1.0])[:, None]
    assert Cascade.stream(weights, {"window": 2, "smooth": "window"}, loud).tolist() == [
        9.5,
        5.5,
        5.5,
    ]
    ema = Cascade.stream(weights, {"window": 3, "smooth": "ema"}, rows)
    assert ema.tolist() == [1.5, 2.5, 5.5, 5.5]
    lengths = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    short = Cascade.score(
        weights, {"window": 2, "smooth": "window"}, loud[None].expand(3, 3, 1), lengths
    )
    assert short.tolist() == [9.5, 5.5, 5.5]


def test_softmax_pooling_goes_from_the_largest_to_the_mean() -> None:
    values = torch.randn(6, 9, generator=random(0))
    mask = torch.arange(9)[None] < torch.tensor([9, 4, 1, 7, 2, 5])[:, None]
    largest = values.masked_fill(~mask, -torch.inf).max(-1).values
    mean = torch.stack([v[m].mean() for v, m in zip(values, mask, strict=True)])

    def pooled(temperature: float) -> torch.Tensor:
        weights = softmax_weights(values, mask, temperature)
        torch.testing.assert_close(weights.sum(-1), torch.ones(6))
        assert bool((weights[~mask] == 0).all())
        return (weights * values).sum(-1)

    for temperature, limit in ((0.0, largest), (1e-4, largest), (1e6, mean), (math.inf, mean)):
        torch.testing.assert_close(pooled(temperature), limit, atol=1e-4, rtol=1e-4)
    falling = [pooled(t) for t in (0.0, 0.1, 0.5, 1.0, 3.0, math.inf)]
    assert all(bool((a >= b - 1e-6).all()) for a, b in zip(falling, falling[1:], strict=False))


def two_stages(n: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = random(3)
    targets = (torch.arange(n) % 4 == 0).double()
    first = 2 * targets - 2 + torch.randn(n, generator=g)
    return first, 4 * targets - 2 + torch.randn(n, generator=g), targets


def test_a_threshold_of_minus_infinity_is_stage_two_on_every_item() -> None:
    first, second, targets = two_stages()
    asked: list[int] = []

    def classify(items: list[int]) -> torch.Tensor:
        asked.extend(items)
        return second[items]

    for mix in ((0.55, 0.45), (0.0, 1.0)):
        asked.clear()
        all_of_it = cascade.Cascade(classify, -math.inf, costs=(0.01, 1.0), mix=mix)
        found = all_of_it.run(first, range(len(first)))
        mixed = mix[0] * first.double() + mix[1] * second.double()
        torch.testing.assert_close(found.final, mixed)
        assert torch.equal(found.flagged, mixed >= 0) and asked == list(range(len(first)))
        assert found.cost == pytest.approx(1.01) and found.rate.mean == 1.0
    alone = (second[targets == 1] >= 0).double().mean()
    assert found.recall(targets).mean == pytest.approx(float(alone))


def test_a_threshold_of_infinity_never_escalates() -> None:
    first, _, targets = two_stages()

    def classify(items: list[int]) -> torch.Tensor:
        raise AssertionError("asked")

    found = cascade.Cascade(classify, math.inf, costs=(0.01, 1.0)).run(first, range(len(first)))
    assert not bool(found.escalated.any()) and not bool(found.flagged.any())
    assert found.cost == pytest.approx(0.01) and found.recall(targets).mean == 0.0


def test_cost_and_recall_follow_the_threshold() -> None:
    first, second, targets = two_stages()
    thresholds = [-math.inf, -2, -1, 0, 1, 2, math.inf]
    options = {"costs": (0.1, 2.0), "decision": -1.5}  # low, so that the threshold decides
    table = cascade.cascade_curve(first, second, targets, thresholds, **options)
    wide = table.frame().pivot(index="threshold", columns="measure", values="mean").loc[thresholds]
    for measure in ("recall", "false alarms", "cost", "escalated"):
        assert bool((wide[measure].diff().dropna() <= 0).all()) and wide[measure].nunique() > 3
    np.testing.assert_allclose(wide["cost"], 0.1 + 2.0 * wide["escalated"])
    shares = [float((first >= t).double().mean()) for t in thresholds]
    np.testing.assert_allclose(wide["escalated"], shares)
    ends = table.frame()
    assert bool((ends["low"] <= ends["mean"]).all() and (ends["mean"] <= ends["high"]).all())


def test_what_is_not_escalated_is_never_flagged() -> None:
    everything = cascade.Cascade(lambda items: [0.0] * len(items), 0.0, decision=-math.inf)
    assert everything.run(torch.tensor([-1.0, 1.0]), "ab").flagged.tolist() == [False, True]


def test_shares_of_a_cascade_by_hand_are_shares_with_intervals_of_shares() -> None:
    flagged = torch.tensor([True, True, False, True, True])
    found = cascade.Outcome(torch.zeros(5), torch.ones(5).bool(), torch.zeros(5), flagged, 1.0)
    targets = [1, 1, 1, 0, 0]
    shares = found.recall(targets), found.false_alarms(targets), found.rate
    assert [share.n for share in shares] == [3, 2, 5]
    assert [share.mean for share in shares] == pytest.approx([2 / 3, 1.0, 1.0])
    for share in shares:  # that all of a few were is no proof that all are
        assert 0 <= share.low < 0.95 and share.mean <= share.high <= 1


def test_scores_at_the_threshold_and_at_the_decision_count() -> None:
    both = cascade.Cascade(lambda items: [1.0] * len(items), 1.0, decision=1.0, mix=(0.5, 0.5))
    found = both.run(torch.tensor([1.0, 0.99]), "ab")
    assert found.escalated.tolist() == [True, False] == found.flagged.tolist()
    assert float(found.final[1]) == -math.inf and found.cost == 0.5


def test_the_classifier_is_asked_only_what_passes() -> None:
    seen: list[str] = []

    def classify(items: list[str]) -> list[float]:
        seen.extend(items)
        return [3.0] * len(items)

    found = cascade.Cascade(classify, 0.0).run(torch.tensor([-1.0, 0.0, 2.0]), ["a", "b", "c"])
    assert seen == ["b", "c"]
    np.testing.assert_allclose(found.final, [-math.inf, 0.45 * 3, 0.55 * 2 + 0.45 * 3])


def test_a_threshold_for_a_rate_lets_no_more_through() -> None:
    scores = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0])
    for rate, through in ((0.0, 0), (0.1, 1), (0.2, 1), (0.3, 1), (0.4, 4), (0.5, 5), (1.0, 10)):
        threshold = cascade.threshold_for(scores, rate)
        assert int((scores >= threshold).sum()) == through
    assert cascade.threshold_for(torch.arange(100.0), 0.29) == 71.0  # 0.29 x 100 is below 29
    for bad, rate in ((scores, 1.5), (scores, -0.1), (scores[:0], 0.5)):
        with pytest.raises(WorkbenchError, match="no such share"):
            cascade.threshold_for(bad, rate)
    with pytest.raises(WorkbenchError, match="1 NaN"):
        cascade.threshold_for(torch.tensor([0.0, math.nan]), 0.5)


@pytest.mark.parametrize(
    ("probe", "data"),
    [
        (AttentionPooled(), marked(0)[0]),
        (Cascade(), spans(0)),
        (ContrastConsistent(), asserted(0)[0]),
        (Quantile(epochs=3), wide(0, 100)),
        (MagnitudeMean(epochs=3), wide(0, 100)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Probe) else "",
)
def test_rows_of_another_origin_are_read_alike(probe: Probe, data: Data) -> None:
    far = replace(data, rows=data.rows + torch.arange(data.rows.shape[-1]))
    scores = [probe.score(probe.fit(d), probe.params, d.rows, d.mask) for d in (data, far)]
    torch.testing.assert_close(scores[1], scores[0], rtol=0.05, atol=0.05 * float(scores[0].std()))


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("scores", "options", "answer", "said"),
    [
        ([1.0, float("nan")], {}, [0.0], "without NaN"),
        ([1.0], {}, [0.0], "1 scores, 2 items"),
        ([1.0, 2.0], {"costs": (-1.0, 1.0)}, [0.0, 0.0], "costs of 0 or more"),
        ([1.0, 2.0], {"costs": (0.0, math.inf)}, [0.0, 0.0], "costs of 0 or more"),
        ([1.0, 2.0], {"decision": math.nan}, [0.0, 0.0], "threshold is NaN"),
        ([1.0, 2.0], {"threshold": float("nan")}, [0.0, 0.0], "threshold is NaN"),
        ([1.0, 2.0], {}, [0.0], "no logit for some items"),
        ([1.0, 2.0], {}, [0.0, float("nan")], "no logit for some items"),
    ],
)
def test_a_cascade_refuses_what_it_cannot_run_on(
    scores: list[float], options: dict[str, object], answer: list[float], said: str
) -> None:
    with pytest.raises(WorkbenchError, match=said):
        cascade.Cascade(lambda _: answer, **options).run(torch.tensor(scores), ["a", "b"])  # pyright: ignore[reportArgumentType]


def test_targets_and_streams_of_another_size_are_refused() -> None:
    found = cascade.Cascade(lambda items: [0.0] * len(items)).run(torch.tensor([1.0, 2.0]), [1, 2])
    with pytest.raises(WorkbenchError, match="not one per item"):
        found.recall([1])
    probe, weights = fitted()
    stream = cascade.Stream(FittedProbe("cascade", "L0.resid_post", "all", weights, probe.params))
    with pytest.raises(WorkbenchError, match="another width"):
        stream.push(torch.zeros(D + 1))
    with pytest.raises(WorkbenchError, match="1 not finite"):
        stream.push(torch.zeros(D).index_fill(0, torch.tensor([2]), math.nan))
    with pytest.raises(WorkbenchError, match="no running score"):
        cascade.Stream(FittedProbe("quantile", "L0.resid_post", "last", weights))


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (AttentionPooled(temperature=0.0), "out of range"),
        (AttentionPooled(l2=-1.0), "out of range"),
        (AttentionPooled(steps=0), "steps"),
        (Cascade(window=0), "window"),
        (Cascade(smooth="median"), "unknown smoothing"),
        (Cascade(temperature=float("nan")), "out of range"),
        (ContrastConsistent(normalise="both"), "unknown choice"),
        (ContrastConsistent(restarts=0), "restarts"),
        (ContrastConsistent(l2=-1.0), "out of range"),
        (Quantile(levels=(0.1, 0.9)), "0.5 among them"),
        (Quantile(levels=(0.5, 0.1)), "rising"),
        (Quantile(levels=(0.0, 0.5)), "between 0 and 1"),
        (Quantile(hidden=-1), "hidden"),
        (Quantile(held_out=1.0), "held_out"),
        (Quantile(lr=0.0), "lr"),
        (MagnitudeMean(top=0), "top"),
        (MagnitudeMean(hidden=-1), "hidden"),
        (Cascade(l2=-1.0), "out of range"),
        (Quantile(levels=(0.5, 1.0)), "between 0 and 1"),
        (Quantile(levels=(0.5, 0.5)), "rising"),
        (MagnitudeMean(epochs=-2), "epochs"),
    ],
)
def test_options_out_of_range_are_refused_in_words(probe: Probe, said: str) -> None:
    data = {"tokens": spans(0, n=8), "pairs": asserted(0, n=8)[0]}.get(probe.reads, wide(0, 20))
    with pytest.raises(WorkbenchError, match=said):
        probe.fit(data)


def test_tokens_are_refused_in_words_where_they_do_not_fit() -> None:
    data = spans(0, n=8)
    assert data.mask is not None
    for probe in (AttentionPooled(), Cascade()):
        with pytest.raises(WorkbenchError, match="pool='all'"):
            probe.fit(Data(data.rows[:, 0], data.targets))
        with pytest.raises(WorkbenchError, match="has no tokens"):
            probe.fit(replace(data, mask=data.mask & (torch.arange(8) > 0)[:, None]))
    with pytest.raises(WorkbenchError, match="padding stands before"):
        Cascade().fit(
            replace(data, mask=data.mask.flip(-1).clone().index_fill(1, torch.tensor([0]), False))
        )


@pytest.mark.parametrize(
    "name", ["attention_pooled", "cascade", "contrast_consistent", "magnitude_mean", "quantile"]
)
def test_it_is_registered_with_its_source_in_its_text(name: str) -> None:
    entry = next(e for e in registry.entries("probes") if e.name == name)
    module = __import__(entry.cls.__module__, fromlist=["x"])
    assert entry.citation.url in (module.__doc__ or "")
    assert "Differs from the paper:" in (module.__doc__ or "")


@pytest.mark.parametrize("method", ["logistic", "lda", "ridge"])
def test_a_warning_names_the_line_that_called_the_library(method: str) -> None:
    rows = torch.randn(8, 20, generator=random(0))
    prompts = tuple(Prompt(text=f"text {i}", label=i % 2) for i in range(8))
    model = Fingerprint("planted", "llama", 20, 2, "abc")
    acts = Activations({"L1.resid_post": rows}, prompts, (3,) * 8, "last", model)
    with pytest.warns(UserWarning, match="20 features and only 8 rows") as said:
        probes.fit(method, acts)
    assert {warning.filename for warning in said} == {__file__}

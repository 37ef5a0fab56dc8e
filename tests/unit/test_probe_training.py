"""The training loops of probes, on losses that are known by hand."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.probes import training
from workbench.probes.training import (
    Leaves,
    check_options,
    descend,
    minimise,
    moments,
    run_net,
    start_net,
    unstandardised,
)
from workbench.shapes import Tensor

LOOP = {"where": "here", "epochs": 20, "lr": 0.1, "batch": 4, "patience": 3}


class Watched:
    """A loss that falls with x in training; on evaluation it is what `says` gives for the epoch."""

    def __init__(self, says: list[float]):
        self.says, self.trained, self.evaluated = says, [[]], []

    def __call__(self, leaves: Leaves, chosen: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.trained[-1].append(chosen.tolist())
            return leaves["x"].sum()
        self.evaluated.append(chosen.tolist())
        self.trained.append([])
        return torch.tensor(self.says[len(self.evaluated) - 1], dtype=torch.float64)


def x(value: float = 0.0) -> dict[str, Tensor]:
    return {"x": torch.tensor(value)}


def test_it_stops_after_its_patience_and_keeps_the_first_best_epoch() -> None:
    flat = Watched([1.0] * 20)
    found = descend(flat, x(), 4, **LOOP)
    assert len(flat.evaluated) == 1 + 3
    assert float(found["x"]) == pytest.approx(-0.1)  # one step of Adam is as long as lr
    best = Watched([3.0, 1.0, 2.0, 0.5, 0.7, 0.8, 0.9])
    assert float(descend(best, x(), 4, **LOOP)["x"]) == pytest.approx(-0.4)
    assert len(best.evaluated) == 7


@pytest.mark.parametrize(("share", "epochs"), [(1e-5, 4), (1e-3, 20)])
def test_a_loss_must_fall_by_a_ten_thousandth_to_go_on(share: float, epochs: int) -> None:
    falling = Watched([(1 - share) ** k for k in range(20)])
    descend(falling, x(), 4, **LOOP)
    assert len(falling.evaluated) == epochs


def test_every_epoch_sees_all_in_a_new_order_and_never_what_is_put_aside() -> None:
    watched = Watched([-float(k) for k in range(20)])
    descend(watched, x(), 10, **LOOP, held_out=0.25)
    held = watched.evaluated[0]
    assert len(held) == 2 and watched.evaluated == [held] * 20
    orders = [sum(pieces, []) for pieces in watched.trained[:20]]
    for pieces, order in zip(watched.trained[:20], orders, strict=True):
        assert [len(piece) for piece in pieces] == [4, 4]
        assert sorted([*order, *held]) == list(range(10))
    assert len({tuple(order) for order in orders}) > 15
    other = Watched([-float(k) for k in range(20)])
    descend(other, x(), 10, **LOOP, held_out=0.25, seed=1)
    assert other.trained != watched.trained


def test_one_example_is_left_to_train_on() -> None:
    watched = Watched([0.0] * 20)
    descend(watched, x(), 2, **LOOP, held_out=0.9)
    assert len(watched.evaluated[0]) == 1 == len(watched.trained[0][0])


def test_the_rate_is_halved_and_the_penalty_pulls_to_zero() -> None:
    falling = [-float(k) for k in range(20)]
    found = descend(Watched(falling), x(), 4, **{**LOOP, "epochs": 5}, halve=2)
    assert float(found["x"]) == pytest.approx(-0.1 * (1 + 1 + 0.5 + 0.5 + 0.25))
    start = x(5.0)
    leaves = descend(
        lambda leaves, _: 0 * leaves["x"], start, 4, **{**LOOP, "epochs": 1}, weight_decay=1.0
    )
    assert float(leaves["x"]) == pytest.approx(4.9) and float(start["x"]) == 5.0


def test_it_is_adam() -> None:
    targets = torch.tensor([1.0, 2.0, 6.0])
    loss = lambda leaves, i: (leaves["x"] - targets[i]).square().mean()  # noqa: E731
    found = descend(loss, x(), 3, **{**LOOP, "epochs": 7})
    own = torch.zeros((), requires_grad=True)
    adam = torch.optim.Adam([own], lr=0.1)
    for _ in range(7):
        adam.zero_grad()
        (own - targets).square().mean().backward()
        adam.step()
    torch.testing.assert_close(found["x"], own.detach())
    assert not found["x"].requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(WorkbenchError, match="not finite in epoch 1"):
        descend(Watched([1.0, bad]), x(), 4, **LOOP)
    with pytest.raises(WorkbenchError, match="not finite at the end"):
        minimise(lambda leaves: leaves["x"] * 0 + bad, x(), where="here", steps=3)


@pytest.mark.parametrize("option", ["epochs", "lr", "batch", "patience"])
@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_options_of_the_loop_are_refused_by_name(option: str, bad: float) -> None:
    with pytest.raises(WorkbenchError, match=rf"here\({option}\)"):
        check_options("here", **{option: bad})
    if bad == 0:
        with pytest.raises(WorkbenchError, match=rf"here\({option}\)"):
            descend(Watched([1.0]), x(), 4, **{**LOOP, option: 0})


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_share_put_aside_is_below_one(share: float) -> None:
    with pytest.raises(WorkbenchError, match="held_out"):
        descend(Watched([1.0]), x(), 4, **LOOP, held_out=share)


def test_the_mean_loss_counts_examples_not_pieces() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0])
    mean = training._mean(lambda _, i: values[i].mean(), {}, torch.arange(5), 2)
    assert mean == pytest.approx(12.0)


def test_minimise_goes_to_the_minimum_in_as_many_steps_as_allowed() -> None:
    def valley(leaves: Leaves) -> Tensor:
        a, b = leaves["x"].unbind()
        return (1 - a).square() + 100 * (b - a.square()).square()

    start = {"x": torch.tensor([-1.2, 1.0])}
    losses = [
        float(valley(minimise(valley, start, where="here", steps=n))) for n in (1, 5, 20, 200)
    ]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 4
    assert losses[0] > 1.0 and losses[-1] < 1e-5
    assert start["x"].tolist() == pytest.approx([-1.2, 1.0])
    with pytest.raises(WorkbenchError, match="steps"):
        minimise(valley, start, where="here", steps=0)


def test_columns_that_do_not_vary_keep_their_size() -> None:
    rows = torch.stack(
        [
            torch.tensor([1.0, 3.0, 1.0, 3.0]),
            torch.full((4,), 0.0),
            torch.tensor([1e4, 1e4, 1e4, 1e4 + 0.001]),  # rounding of float32
            100 + torch.tensor([0.0, 0.02, 0.0, 0.02]),  # little, but more than that
            torch.tensor([0.0, 2e-20, 0.0, 2e-20]),
        ],
        -1,
    )
    mean, scale = moments(rows)
    torch.testing.assert_close(mean, rows.double().mean(0).float())
    torch.testing.assert_close(scale[:4], torch.tensor([1.0, 1.0, 1.0, 0.01]), rtol=1e-2, atol=0)
    assert float(scale[4]) == pytest.approx(1e-20)


def test_a_network_starts_at_its_bias_and_is_read_as_it_says() -> None:
    g = torch.Generator().manual_seed(0)
    bias, rows = torch.tensor([0.5, -2.0]), torch.randn(7, 400, generator=g)
    for hidden in (0, 300):
        torch.testing.assert_close(
            run_net(start_net(400, hidden, bias, 0), rows), bias.expand(7, 2)
        )
    net = start_net(400, 300, bias, 0)
    assert float(net["weight"].std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert not torch.equal(net["weight"], start_net(400, 300, bias, 1)["weight"])
    net = {**net, "bias": torch.randn(300, generator=g), "out": torch.randn(2, 300, generator=g)}
    units = (rows @ net["weight"].T + net["bias"]).clamp(min=0)
    torch.testing.assert_close(run_net(net, rows), units @ net["out"].T + bias)
    mean, scale = torch.randn(400, generator=g), 0.5 + torch.rand(400, generator=g)
    torch.testing.assert_close(
        run_net(unstandardised(net, mean, scale), rows * scale + mean),
        run_net(net, rows),
        rtol=1e-3,
        atol=1e-2,
    )

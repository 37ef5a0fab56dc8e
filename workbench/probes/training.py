"""Training of the probes that have no closed form: on a few tensors, seeded, until it stops paying.

    leaves = minimise(loss, start, where="Cascade", steps=100)                       L-BFGS, all examples
    leaves = descend(loss, start, n, where="Quantile", epochs=300, lr=1e-3)          Adam, in batches

In `descend`, `loss` takes the leaves and the numbers of some examples, and gives their mean loss. Where
examples are put aside (`held_out`), the epoch with the lowest loss on them is kept; without, the one with
the lowest loss on all of them. The examples put aside are drawn without regard to groups: they say when to
stop, and nothing else.

Source: Kingma and Ba (2015), Adam, https://arxiv.org/abs/1412.6980; Liu and Nocedal (1989), On the
    Limited Memory BFGS Method for Large Scale Optimization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from workbench.errors import WorkbenchError
from workbench.shapes import Float, Rows, Tensor, Vector
from workbench.tensors import finite

Leaves = Mapping[str, Tensor]
Loss = Callable[[Leaves, Tensor], Tensor]

PAYS = 1e-4
"""The loss must fall by this share of itself for an epoch to count as progress."""


def descend(
    loss: Loss,
    start: Leaves,
    n: int,
    *,
    where: str,
    epochs: int,
    lr: float | int,
    batch: int = 256,
    weight_decay: float | int = 0.0,
    held_out: float = 0.0,
    patience: int = 20,
    halve: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The leaves of the best epoch, detached; the same seed gives the same bits on one machine.

    Args:
        start: the tensors to begin with, left as they are.
        n: number of examples.
        where: who trains, for error messages.
        batch: examples per step; every epoch sees all in a new order.
        weight_decay: L2 penalty as Adam adds it to the gradient.
        held_out: share of the examples that decides when to stop, and is not trained on.
        patience: epochs without progress before it stops.
        halve: the learning rate is halved every so many epochs; None to leave it.

    Raises:
        WorkbenchError: options out of range, or a loss that is not finite.
    """
    check_options(where, epochs=epochs, lr=lr, batch=batch, patience=patience)
    generator = torch.Generator().manual_seed(seed)
    train, held = _split(n, held_out, where, generator)
    leaves = {k: v.detach().clone().requires_grad_() for k, v in start.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=float(lr), weight_decay=float(weight_decay))
    kept, best, since = _copy(leaves), float("inf"), 0
    for epoch in range(epochs):
        if halve and epoch and epoch % halve == 0:
            optimiser.param_groups[0]["lr"] /= 2
        _epoch(loss, leaves, optimiser, train, batch, generator)
        with torch.no_grad():
            now = _mean(loss, leaves, held if len(held) else train, max(batch, 1024))
        _finite(where, f"in epoch {epoch}", now)
        since = 0 if now < best - PAYS * abs(best) or best == float("inf") else since + 1
        if now < best:
            kept, best = _copy(leaves), now
        if since >= patience:
            break
    return kept


def minimise(
    loss: Callable[[Leaves], Tensor], start: Leaves, *, where: str, steps: int
) -> dict[str, Tensor]:
    """The leaves at a minimum of `loss`, detached, by L-BFGS with a line search; nothing is random.

    Args:
        loss: of the leaves, over all examples.
        start: the tensors to begin with, left as they are.
        steps: the most; it ends before where the gradient or the change is nothing.

    Raises:
        WorkbenchError: `steps` out of range, or a loss that is not finite.
    """
    check_options(where, steps=steps)
    leaves = {k: v.detach().clone().requires_grad_() for k, v in start.items()}
    optimiser = torch.optim.LBFGS(
        leaves.values(),
        max_iter=steps,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def value() -> Tensor:
        with torch.enable_grad():
            optimiser.zero_grad()
            found = loss(leaves)
            found.backward()
        return found.detach()

    optimiser.step(value)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        _finite(where, "at the end", float(loss(leaves)))
    return _copy(leaves)


def check_options(where: str, **limits: float | int) -> None:
    """Refuse an option that is not a finite number above 0.

    Raises:
        WorkbenchError: one is not; the message names it.
    """
    for option, value in limits.items():
        if finite(f"{where}({option})", float(value)) <= 0:
            raise WorkbenchError(
                f"{where}({option})",
                "is out of range",
                expected="more than 0",
                got=value,
                do="correct it",
            )


def moments(rows: Rows) -> tuple[Vector, Vector]:
    """Mean and standard deviation of every column, float32; a column that never varies gets scale 1."""
    rows = rows.double()
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    # what is left of a constant column is rounding, which must not be blown up to size 1
    still = scale <= 1e-6 * mean.abs().clamp(min=1e-30)
    return mean.float(), torch.where(still, 1.0, scale).float()


def start_net(d: int, hidden: int, bias: Vector, seed: int) -> dict[str, Tensor]:
    """First tensors of a network with one hidden layer, or of a linear map where `hidden` is 0.

    The last layer starts at zero, so that the network starts at its output's `bias`.
    """
    if not hidden:
        return {"weight": torch.zeros(len(bias), d), "bias": bias}
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(hidden, d, generator=generator) * (2 / d) ** 0.5
    last = {"out": torch.zeros(len(bias), hidden), "out_bias": bias}
    return {"weight": first, "bias": torch.zeros(hidden), **last}


def run_net(leaves: Leaves, rows: Rows) -> Float[Tensor, "row out"]:
    """One hidden layer of ReLU, or none."""
    found = rows @ leaves["weight"].mT + leaves["bias"]
    return torch.relu(found) @ leaves["out"].mT + leaves["out_bias"] if "out" in leaves else found


def unstandardised(leaves: Leaves, mean: Vector, scale: Vector) -> dict[str, Tensor]:
    """The network that gives on rows what `leaves` give on `(rows - mean) / scale`."""
    weight = leaves["weight"] / scale
    return {**leaves, "weight": weight, "bias": leaves["bias"] - weight @ mean}


def _split(n: int, share: float, where: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if not 0 <= share < 1:
        raise WorkbenchError(
            f"{where}(held_out)",
            "is no share of the examples",
            expected="0 <= held_out < 1",
            got=share,
            do="0.1 holds out a tenth",
        )
    order = torch.randperm(n, generator=generator)
    held = min(round(share * n), n - 1)
    return order[held:].sort().values, order[:held].sort().values


def _epoch(
    loss: Loss,
    leaves: Leaves,
    optimiser: torch.optim.Optimizer,
    train: Tensor,
    batch: int,
    generator: torch.Generator,
) -> None:
    order = train[torch.randperm(len(train), generator=generator)]
    for piece in order.split(batch):
        with torch.enable_grad():
            optimiser.zero_grad()
            loss(leaves, piece).backward()
        optimiser.step()


def _mean(loss: Loss, leaves: Leaves, examples: Tensor, batch: int) -> float:
    return sum(float(loss(leaves, piece)) * len(piece) for piece in examples.split(batch)) / len(
        examples
    )


def _finite(where: str, when: str, value: float) -> None:
    if value - value != 0:
        raise WorkbenchError(
            where,
            f"the loss is not finite {when}",
            expected="a finite number",
            got=value,
            do="lower lr, raise the penalty, or look for huge values in the rows",
        )


def _copy(leaves: Leaves) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in leaves.items()}

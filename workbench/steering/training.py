"""Training loop of edits that are learned: AdamW over the edit's own tensors, the model untouched.

    trained = train(build, start, examples, run, steps=100, lr=5e-3, batch=16, seed=0)

`build` makes an intervention of the tensors; gradients are taken with respect to those tensors
alone (`torch.autograd.grad`), so no gradient is ever left on a parameter of the model. What is
minimised is a function of the trace, by default the cross-entropy of the completions.

Source: Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization,
    https://arxiv.org/abs/1711.05101.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.records import Prompt
from workbench.tensors import Intervention, finite


class Example(NamedTuple):
    """One thing to learn from: a prompt, the ids read behind it, and whatever a loss wants beside."""

    prompt: Prompt
    ids: tuple[int, ...]
    extra: Any = None


Build = Callable[[Mapping[str, Tensor]], Intervention]
Loss = Callable[[Any, Sequence[Example]], Tensor]
"""From the batch's trace and its examples to one number, in the order of the rows."""


@dataclass(frozen=True)
class Trained:
    """What training left.

    Attributes:
        tensors: the learned tensors, detached, by the names they started under.
        losses: the loss before each step, in the loss's own unit (nats per token by default).
    """

    tensors: dict[str, Tensor]
    losses: tuple[float, ...]


def train(
    build: Build,
    start: Mapping[str, Tensor],
    examples: Sequence[Example],
    run: Callable[..., Any],
    *,
    steps: int,
    lr: float | int,
    batch: int,
    seed: int = 0,
    weight_decay: float | int = 0.0,
    clip: float | int | None = None,
    loss: Loss | None = None,
    before: Sequence[Intervention] = (),
    record: Iterable[str] = (),
    progress: bool = True,
    name: str = "training",
) -> Trained:
    """`steps` steps of AdamW from `start`; the same seed gives the same bits on one machine.

    Args:
        build: an intervention of the tensors; called at every step.
        start: the tensors to begin with, left as they are.
        examples: visited in a new random order in every epoch, `batch` at a time.
        run: the model's `run`, as `workbench.steering.fit` hands it.
        clip: longest gradient over all tensors together; None for no limit.
        loss: from the trace and its examples to one number; `completion_loss` by default.
        before: edits that are fixed and act first.
        record: sites the loss reads.

    Raises:
        WorkbenchError: no examples, options out of range, or a loss that is not finite.
    """
    _check(name, examples, steps, lr, batch, weight_decay, clip)
    measure = completion_loss if loss is None else loss
    leaves = {k: v.detach().clone().requires_grad_() for k, v in start.items()}
    order = _batches(len(examples), batch, seed)
    optimiser = torch.optim.AdamW(leaves.values(), lr=float(lr), weight_decay=float(weight_decay))
    losses: list[float] = []
    with tqdm(total=steps, unit="step", desc=name, disable=not progress) as bar:
        for step in range(steps):
            chosen = [examples[i] for i in next(order)]
            with torch.enable_grad():
                edits = [*before, _quiet(build(leaves))]
                value = measure(_run(run, chosen, edits, record), chosen)
                losses.append(_finite(name, step, value))
                _descend(optimiser, list(leaves.values()), value, clip)
            bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)
            bar.update()
    return Trained({k: v.detach().clone() for k, v in leaves.items()}, tuple(losses))


def completion_loss(trace: Any, examples: Sequence[Example]) -> Tensor:
    """Cross-entropy of the completions in nats, averaged over their tokens in the batch.

    Rows are padded on the left, so the last `len(ids)` positions of a row are its completion, and
    each is predicted from the position before it.
    """
    told = [trace.logits[i, -len(e.ids) - 1 : -1] for i, e in enumerate(examples)]
    wanted = torch.tensor([token for e in examples for token in e.ids], device=told[0].device)
    return torch.nn.functional.cross_entropy(torch.cat(told).float(), wanted)


def completions_of(
    prompts: Iterable[Prompt], encode: Callable[[str], Sequence[int]], where: str
) -> list[Example]:
    """Prompts with the completion they should learn, as ids.

    Raises:
        WorkbenchError: a prompt has no completion.
    """
    many = list(prompts)
    found = [Example(p, tuple(encode(p.meta.get("completion") or ""))) for p in many]
    bare = [i for i, example in enumerate(found) if not example.ids]
    if bare or not found:
        raise WorkbenchError(
            where,
            "learns to make completions likely, and there are prompts without one",
            expected="meta['completion'] in every positive prompt",
            got=f"{len(bare)} of {len(found)} prompts without" if found else "no prompts",
            do="make them with workbench.prompts.completions(prompts, positive=, negative=)",
        )
    return found


def _check(
    name: str,
    examples: Sequence[Example],
    steps: int,
    lr: float | int,
    batch: int,
    weight_decay: float | int,
    clip: float | int | None,
) -> None:
    limits = {"steps": steps, "lr": lr, "batch": batch, "examples": len(examples)}
    if clip is not None:
        limits["clip"] = clip
    for option, value in limits.items():
        if finite(f"{name}({option})", float(value)) <= 0:
            raise WorkbenchError(
                f"{name}({option})",
                "is out of range",
                expected="more than 0",
                got=value,
                do="correct it",
            )
    if finite(f"{name}(weight_decay)", float(weight_decay)) < 0:
        raise WorkbenchError(
            f"{name}(weight_decay)",
            "is negative",
            expected="0 or more",
            got=weight_decay,
            do="correct it",
        )


def _batches(n: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Indices, epoch after epoch; the last batch of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for piece in torch.randperm(n, generator=generator).split(batch):
            yield piece.tolist()


def _quiet(edit: Intervention) -> Intervention:
    """An edit that starts at the identity changes nothing, which is no mistake while it trains."""
    return replace(edit, conditional=True)


def _run(
    run: Callable[..., Any], chosen: list[Example], edits: list[Intervention], record: Iterable[str]
) -> Any:
    tails = [list(e.ids) for e in chosen] if any(e.ids for e in chosen) else None
    return run(
        [e.prompt for e in chosen],
        record=list(record),
        edits=edits,
        completions=tails,
        logits="all",
        grad=True,
    )


def _finite(name: str, step: int, value: Tensor) -> float:
    number = float(value.detach())
    if number - number != 0:
        raise WorkbenchError(
            name,
            f"the loss is not finite at step {step}",
            expected="a finite number",
            got=number,
            do="lower lr, set clip, or train the model in float32 or bfloat16",
        )
    return number


def _descend(
    optimiser: torch.optim.Optimizer, leaves: list[Tensor], value: Tensor, clip: float | int | None
) -> None:
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = torch.zeros_like(leaf) if gradient is None else gradient
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(leaves, float(clip))
    optimiser.step()

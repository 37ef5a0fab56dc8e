"""Tuned lens: the logit lens behind a trained affine map per block, which learns that block's basis.

    logits_l = unembed(final_norm(h_l + h_l A_l^T + b_l)),  A_l = b_l = 0 at the start
    A_l, b_l minimise the mean of KL(model's own distribution || softmax(logits_l)) over positions

Behind the last block nothing is trained: there the lens is the model itself.

Shapes: A `[layer - 1, d, d]`, b `[layer - 1, d]`; measures `[case, layer]`, with positions="all"
    `[case, layer, pos]`, NaN for cases that were trained on.
Units: nats; `kl_saved` is the logit lens' KL less the tuned lens', in each case; `kl_constant` is the
    control: the KL of one prediction for all places, the mean over what was trained on.
Source: Belrose et al. (2023), Eliciting Latent Predictions from Transformers with the Tuned Lens,
    https://arxiv.org/abs/2303.08112.
Differs from the paper: AdamW without weight decay and a linearly falling rate in place of SGD with
    Nesterov momentum, on single positions drawn from the prompts in place of whole texts. The paper's
    maps are fitted on a large corpus; fitted on few prompts, they learn those prompts' answers too,
    so measures are of cases that were held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.linalg import kl_divergence
from workbench.locate.base import Cases, Localiser, Need, Scores
from workbench.locate.reading import (
    UNITS,
    divergence_from,
    lens_axes,
    mean_prediction,
    read_streams,
    rows_of,
    some_rows,
    statistics,
    target_of,
)
from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor
from workbench.tensors import above_zero


@dataclass(frozen=True)
class Lens:
    """Trained maps of one model, to be kept and handed to `locate.find(..., lens=)` again.

    Attributes:
        weight: A of every block but the last.
        bias: b.
        mean: `[vocab]`, log of the mean prediction over what it was trained on; None where untrained.
        losses: the mean KL over blocks before each step, in nats.
    """

    weight: Float[Tensor, "layer d d"]
    bias: Float[Tensor, "layer d"]
    mean: Float[Tensor, " vocab"] | None = None
    losses: tuple[float, ...] = ()

    @classmethod
    def identity(cls, n_layers: int, d_model: int, device: Any = None) -> Lens:
        """Maps that change nothing: the logit lens."""
        weight = torch.zeros(n_layers - 1, d_model, d_model, device=device)
        return cls(weight, torch.zeros(n_layers - 1, d_model, device=device))

    def through(self, layer: int) -> Callable[[Tensor], Tensor]:
        """What rows behind a block go through before the head, in float32."""
        if layer == len(self.weight):
            return lambda rows: rows
        weight, bias = self.weight[layer], self.bias[layer]
        return lambda rows: _mapped(rows.float(), weight.to(rows.device), bias.to(rows.device))


@dataclass(frozen=True)
class TunedScores(Scores):
    """Scores with the lens that made them.

    Attributes:
        lens: keep it, and hand it to `locate.find(..., lens=)`.
    """

    lens: Lens | None = field(default=None)


@register(
    "locate",
    Citation(
        "Belrose et al.",
        "Eliciting Latent Predictions from Transformers with the Tuned Lens",
        2023,
        "https://arxiv.org/abs/2303.08112",
    ),
)
@dataclass(frozen=True)
class TunedLens(Localiser):
    """What each layer already says of the next token, read through a trained affine map.

    Without `train=` (prompts) or `lens=` (a `Lens` that was kept) handed to `locate.find`, it is trained
    on a part of the cases; measures are of the others. Equal prompts stay on one side.

    Attributes:
        positions: "last" of each prompt, or "all".
        steps: training steps; 0 leaves the logit lens.
        lr: learning rate at the start; it falls linearly to 0.
        batch: positions per step.
        held_out: the share of cases that is not trained on.
        seed: of the split and the batches.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "head", "dims", "decode")
    positions: str = "last"
    steps: int = 300
    lr: float | int = 1e-3
    batch: int = 64
    held_out: float | int = 0.5
    seed: int = 0

    def find(
        self,
        cases: Cases,
        *,
        run: Callable[..., Any],
        head: Any,
        dims: Any,
        decode: Callable[[int], str],
        train: Any = None,
        lens: Lens | None = None,
    ) -> TunedScores:
        """Every layer's prediction through its map, with the logit lens beside it.

        Args:
            train: prompts to train on; cases that are among them are left out of the measures.
            lens: maps of this model that were trained before; all cases are measured then, those it was
                trained on too.

        Raises:
            WorkbenchError: options out of range, no case is left to train on or to measure, the
                lens is of another model, or both a lens and prompts to train on were handed.
        """
        handed = lens
        kept, lens = self._ready(cases, run, head, dims, train, handed)
        streams = read_streams(cases, run, self.positions)
        maps = [lens.through(layer) for layer in range(dims.n_layers)]
        tuned = statistics(streams, head, maps)
        bare = statistics(streams, head)["kl"]
        measured = {"kl": tuned.pop("kl"), "kl_logit_lens": bare}
        if lens.mean is not None:
            measured["kl_constant"] = divergence_from(streams, head, lens.mean)
        measured |= {"kl_saved": bare - measured["kl"], **tuned}
        what = "prompts it was not trained on" if handed is None else "prompts"
        values = {name: _only(streams.placed(v), kept) for name, v in measured.items()}
        return TunedScores(
            values,
            lens_axes(cases, dims.n_layers, self.positions, decode),
            {name: UNITS.get(name, "nats") for name in values},
            figure="lines" if self.positions == "last" else "heat",
            caption=f"Tuned lens on {target_of(cases)}: mean over {len(kept)} {what}.",
            lens=lens,
        )

    def _ready(
        self, cases: Cases, run: Any, head: Any, dims: Any, train: Any, lens: Lens | None
    ) -> tuple[list[int], Lens]:
        """The cases that are measured, and the lens."""
        if lens is not None:
            if train is not None:
                raise WorkbenchError(
                    "tuned_lens",
                    "is handed a trained lens and prompts to train another",
                    expected="train= or lens=",
                    got="both",
                    do="leave one of them away",
                )
            return list(range(len(cases))), fitting(lens, dims)
        self._check()
        if train is None:
            learnt, kept = _split(_contents(cases.clean), self.held_out, self.seed)
            train = some_rows(cases.clean, learnt)
        else:
            # as the run sees them, since prompts may come in any form
            train = run(train).tokens
            known = set(_contents(train))
            kept = [i for i, ids in enumerate(_contents(cases.clean)) if ids not in known]
        if not kept:
            raise _too_few("no case is left to measure, all were trained on", len(cases))
        return kept, self.trained(rows_of(train, run), head)

    def trained(self, rows: Float[Tensor, "layer row d"], head: Any) -> Lens:
        """A lens for every block but the last, trained on the streams behind all blocks."""
        start = Lens.identity(rows.shape[0], rows.shape[-1], rows.device)
        leaves = [t.requires_grad_() for t in (start.weight, start.bias)]
        mean = mean_prediction(rows[-1], head)
        if not self.steps or rows.shape[0] == 1:
            return Lens(*(t.detach() for t in leaves), mean)
        # no foreach: it adds up in another order where tensors lie otherwise in memory
        optimiser = torch.optim.AdamW(leaves, lr=float(self.lr), weight_decay=0.0, foreach=False)
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / self.steps)
        losses: list[float] = []
        drawn = _batches(rows.shape[1], self.batch, self.seed)
        with tqdm(
            total=self.steps, unit="step", desc="tuned lens", disable=not head.progress
        ) as bar:
            for _ in range(self.steps):
                at = next(drawn).to(rows.device)
                losses.append(_gradients(leaves, rows[:, at], head))
                optimiser.step()
                rate.step()
                bar.set_postfix(kl=f"{losses[-1]:.4g}", refresh=False)
                bar.update()
        return Lens(*(t.detach() for t in leaves), mean, tuple(losses))

    def _check(self) -> None:
        above_zero("tuned_lens(lr)", self.lr)
        for name, least in (("steps", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise _option(name, f"at least {least}", getattr(self, name))
        if not 0 < self.held_out < 1:
            raise _option("held_out", "a share between 0 and 1", self.held_out)


def _mapped(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return rows + rows @ weight.mT + bias


def _gradients(leaves: list[Tensor], rows: Float[Tensor, "layer row d"], head: Any) -> float:
    """Gradients of the summed KL onto the leaves alone; a few blocks at a time. The mean KL."""
    own = head.unembed(rows[-1]).float().log_softmax(-1)
    total, n_maps = 0.0, len(leaves[0])
    slopes = [torch.empty_like(leaf) for leaf in leaves]
    for part in head.chunks(n_maps, rows.shape[1]):
        # a few maps as leaves of their own: a gradient of the whole would be zeros but for them
        maps = [leaf.detach()[part].requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            seen = _mapped(rows[:-1][part].float(), maps[0], maps[1][:, None])
            logp = head.unembed(seen, grad=True).float().log_softmax(-1)
            loss = kl_divergence(own, logp).mean(-1).sum()
        for slope, found in zip(slopes, torch.autograd.grad(loss, maps), strict=True):
            slope[part] = found
        total += float(loss.detach())
    for leaf, slope in zip(leaves, slopes, strict=True):
        leaf.grad = slope
    return total / n_maps


def _batches(n: int, size: int, seed: int) -> Iterator[Tensor]:
    """Positions in a new random order in every round."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < min(size, n):
            left = torch.cat([left, torch.randperm(n, generator=generator)])
        yield left[:size]
        left = left[size:]


def _contents(tokens: Any) -> list[tuple[int, ...]]:
    """Each row's ids without padding."""
    return [tuple(ids[mask].tolist()) for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def _split(
    contents: list[tuple[int, ...]], held_out: float | int, seed: int
) -> tuple[list[int], ...]:
    """Cases to train on, in the order of their contents, and cases to measure.

    What is drawn are contents, not places, so that the order of cases and repeats do not matter.
    """
    unique = sorted(set(contents))
    n = min(max(1, round(held_out * len(unique))), len(unique) - 1)
    if n < 1:
        raise _too_few("cannot be trained on one part and measured on another", len(unique))
    order = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {unique[i] for i in order[:n]}
    learnt = [i for i, ids in enumerate(contents) if ids not in chosen]
    kept = [i for i, ids in enumerate(contents) if ids in chosen]
    return sorted(learnt, key=lambda i: contents[i]), kept


def _only(values: Tensor, kept: list[int]) -> Tensor:
    """NaN for every other case."""
    found = torch.full_like(values, float("nan"))
    found[kept] = values[kept]
    return found


def fitting(lens: Lens, dims: Any) -> Lens:
    """The lens; WorkbenchError where it cannot be one of a model of these sizes."""
    wanted = (dims.n_layers - 1, dims.d_model, dims.d_model)
    vocab = dims.n_vocab if lens.mean is None else len(lens.mean)
    if tuple(lens.weight.shape) != wanted or vocab != dims.n_vocab:
        raise WorkbenchError(
            "tuned_lens(lens=)",
            "the lens is of another model",
            expected=f"weights {wanted} and a vocabulary of {dims.n_vocab}",
            got=f"weights {tuple(lens.weight.shape)} and a vocabulary of {vocab}",
            do="train one on this model: leave lens= away",
        )
    return lens


def _too_few(wrong: str, n: int) -> WorkbenchError:
    return WorkbenchError(
        "tuned_lens",
        wrong,
        expected="at least two different prompts, or train= with others",
        got=n,
        do="pass prompts to train on as train=",
    )


def _option(name: str, expected: str, got: object) -> WorkbenchError:
    return WorkbenchError(
        f"tuned_lens({name})", "is out of range", expected=expected, got=got, do="correct it"
    )

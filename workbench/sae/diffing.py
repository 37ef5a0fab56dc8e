"""Model diffing: what a dictionary's features do in a model before and after it was changed.

    drift = sae.drift(dictionary, before, after, prompts, control=seed_twin)
    drift                         # largest changes with intervals, who appears, vanishes, rotates
    drift.figure(); drift.scatter()

Both models read the same text, and one dictionary encodes both. Per feature f:

    change    = mean over prompts of (mean f after - mean f before), both means over the prompt's tokens
    noise     = c se(change), where c is passed by max |change / se| over features in 5 % of the
                data sets in which before and after are exchanged in every other prompt at random
    rotation  = angle between u_before and u_after,   u_m = sum_t w_t (h_t(m) - mean h(m)),
                w_t = min(f_t(before), f_t(after)):   what f answers to, its weighted mean input
    floor     = the rotation that no feature passes by chance in 95 % of the data sets in which before and
                after are exchanged in every other prompt at random
    direction = cosine of mean h(after) - mean h(before) and the feature's decoder row

The floor needs no data sets to be drawn. An exchange in prompt p turns the sign of its part d_p of
u_after - u_before = sum_p d_p, and leaves u_before + u_after as it is. The squared length of the sum has
the mean E = sum_p |d_p|^2 over all signs and, of many prompts, passes z^2 E no more often than a normal
variable passes z in size: the worst case is d_p along one line. With z at 5 % of all features together
(Bonferroni),

    floor = 2 atan(z sqrt(E) / |u_before + u_after|)

Where the d_p scatter over many directions this is strict, and many active tokens are needed to pass it.
A feature that is active in fewer than z^2 prompts (12 for 64 features, 25 for 65,536) cannot pass it.

Shapes: arrays are `[feature]`.
Units: activations count lengths of decoder rows; angles are degrees.
Source: Bricken et al. (2024), Stage-Wise Model Diffing,
    https://transformer-circuits.pub/2024/model-diffing/, for features that rotate; Chichilnisky (2001), A
    simple white noise analysis of neuronal light responses, https://doi.org/10.1080/713663221, for
    reading what a unit answers to off the mean of its inputs, weighted by its answers; Westfall and Young
    (1993), Resampling-Based Multiple Testing, for the largest statistic under exchange; Székely and
    Bakirov (2003), Extremal Probabilities for Gaussian Quadratic Forms,
    https://doi.org/10.1007/s00440-003-0262-6, for the worst case of the floor.
Differs from Bricken et al.: there the dictionary is fine-tuned along with the model, and its decoder rows
    rotate; here it is left as it is, and what drives it rotates. With `second`, a dictionary of the model
    after, features are matched one to one and the cosine of their decoder rows is given as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from workbench.comparison.layout import interval
from workbench.comparison.provenance import versions
from workbench.comparison.stats import LEVEL, mean_intervals
from workbench.comparison.table import Figure, Table
from workbench.errors import WorkbenchError, unknown
from workbench.sae.dictionary import Dictionary
from workbench.sae.fitting import check_fits
from workbench.sae.matching import by_chance, matched
from workbench.sae.reading import Part, stream
from workbench.shapes import Codes, Rows, Tensor
from workbench.tensors import Arm, Intervention

FLIPS = 1000
"""Data sets in which before and after are exchanged."""
BAD_FIT = 2.0
"""Times the FVU before: beyond it, a dictionary does not describe the model after."""
KINDS = ("change", "density", "rotation", "direction")
UNITS = {
    "change": "activation per token",
    "noise": "activation per token",
    "density_before": "fraction of tokens",
    "density_after": "fraction of tokens",
    "mean_before": "activation where active",
    "mean_after": "activation where active",
    "rotation": "degrees",
    "floor": "degrees",
    "direction": "cosine",
    "control": "activation per token",
    "control_rotation": "degrees",
}


def drift(
    dictionary: Dictionary,
    before: Any,
    after: Any,
    prompts: Any,
    *,
    control: Any = None,
    second: Dictionary | None = None,
    completions: Sequence[Sequence[int]] | None = None,
    edits_before: Sequence[Intervention] = (),
    edits_after: Sequence[Intervention] = (),
    special: bool = False,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Drift:
    """How every feature has changed from `before` to `after`, on the same text.

    Args:
        dictionary: of the model before.
        before, after: models, or `Arm`s: an arm without a model is the other one's, with the arm's edits.
            Anything with a `.model`, such as a trained arm, is that model.
        prompts: text, prompts, or a list of either.
        control: a model that differs from `before` as `after` does but for what matters, such as one
            trained as long on shuffled answers: its changes and rotations are shown beside. A twin that
            was trained alike with another seed shows which changes repeat instead.
        second: a dictionary of the model after. It encodes that model, and its features are matched with
            those of `dictionary`.
        completions: ids read after each prompt.
        edits_before, edits_after: applied while the models read.
        special: count tokens such as the first one of a text.
        seed: of the exchanges and the bootstrap.
        force: read a model `before` that the dictionary was not trained on; the one after always is.
        progress: show bars over prompts.

    Returns:
        A Drift: a row per feature. `fits` is False where the dictionary leaves more than twice as much of
        the model after unexplained.

    Raises:
        WorkbenchError: a dictionary that does not fit; models whose tokens differ; an arm with a decoder
            or a prefix; one prompt.
        PromptError: a prompt that is empty or longer than the context.
    """
    sides = {
        "before": _side(before, after, edits_before),
        "after": _side(after, before, edits_after),
    }
    if control is not None:
        sides["control"] = _side(control, before, ())
    check_fits(dictionary, sides["before"][0], "sae.drift", force=force)
    _same_words(sides)
    match = None if second is None else matched(dictionary, second)
    options = {"completions": completions, "special": special, "progress": progress}
    base = sides.pop("before")
    compared = {}
    for name, side in sides.items():
        own, order = (second, match) if name == "after" and second and match else (dictionary, None)
        parts = zip(
            stream(dictionary, base[0], prompts, edits=base[1], force=force, **options),
            stream(own, side[0], prompts, edits=side[1], force=True, **options),
            strict=True,
        )
        sums = _Sums(dictionary, own, None if order is None else torch.tensor(order[0]), seed)
        for pair in parts:
            sums.add(*pair)
        compared[name] = sums
    about = {
        "dictionary": dictionary.name,
        "site": dictionary.site,
        "before": base[0].name,
        "after": sides["after"][0].name,
        "prompts": compared["after"].n_prompts,
        "tokens": compared["after"].tokens,
        "seed": seed,
        "versions": versions(),
    }
    chance = None if match is None else by_chance(dictionary, seed)
    return _made(compared, match, chance, about)


@dataclass(frozen=True, repr=False)
class Drift(Table):
    """A Table with a row per feature; see the module for what its columns mean.

    Attributes:
        control_change: change of every feature in the control; None without one.
        chance_cosine: cosine of every feature with its match among random directions; None with one
            dictionary.
    """

    control_change: np.ndarray | None = None
    chance_cosine: np.ndarray | None = None

    @property
    def fvu(self) -> dict[str, float]:
        """Fraction of variance unexplained "before", "after", of the "control"; empty for a transcoder."""
        return dict(self.provenance.get("fvu", {}))

    @property
    def fits(self) -> bool:
        """Whether the dictionary describes the model after about as well as the one before."""
        return not self.fvu or self.fvu["after"] <= BAD_FIT * self.fvu["before"]

    @property
    def appeared(self) -> list[int]:
        """Features active nowhere before and somewhere after, most active first."""
        return self._in_state("appears", "density_after")

    @property
    def vanished(self) -> list[int]:
        """Features active somewhere before and nowhere after, formerly most active first."""
        return self._in_state("vanishes", "density_before")

    @property
    def rotated(self) -> list[int]:
        """Features whose input has turned by more than the floor, the most first."""
        frame = self.frame()
        frame = frame[frame["rotation"] > frame["floor"]]
        return frame.sort_values("rotation", ascending=False)["feature"].tolist()

    def top(self, n: int = 10, by: str = "change") -> Any:
        """The `n` features that changed most, as a DataFrame: by change, density, rotation or direction.

        Raises:
            UnknownName: no such order.
        """
        frame = self.frame()
        if by not in KINDS:
            raise unknown("Drift.top(by=...)", "order", by, KINDS)
        size = {
            "change": frame["change"].abs(),
            "density": (frame["density_after"] - frame["density_before"]).abs(),
            "rotation": frame["rotation"],
            "direction": frame["direction"].abs(),
        }[by]
        order = size.sort_values(ascending=False, kind="stable", na_position="last").index
        return frame.loc[order[:n]].reset_index(drop=True)

    def figure(self) -> Figure:
        """The largest changes with their intervals."""
        n = self.provenance.get("prompts")
        caption = (
            f"Change of features{self._where}; 95 % intervals over {n} prompts. {self._warning}"
        )
        axes = [{"name": "feature", "labels": [], "shown": None}]
        spec = {"kind": "ranked", "measure": "change", "unit": UNITS["change"], "axes": axes}
        return Figure(self, spec, caption.strip())

    def scatter(self, of: str = "mean") -> Figure:
        """Every feature after against before: `of` "mean" or "density"; those beyond noise in colour.

        Raises:
            UnknownName: neither of these.
        """
        if of not in ("mean", "density"):
            raise unknown("Drift.scatter(of=...)", "quantity", of, ("mean", "density"))
        caption = f"Features{self._where}; in colour, a change beyond the noise. {self._warning}"
        spec = {"kind": "before_after", "of": of, "unit": UNITS[f"{of}_before"]}
        return Figure(self, spec, caption.strip())

    def _in_state(self, state: str, order: str) -> list[int]:
        frame = self.frame()
        found = frame[frame["state"] == state].sort_values(order, ascending=False, kind="stable")
        return found["feature"].tolist()

    @property
    def _where(self) -> str:
        about = self.provenance
        return f" of {about.get('dictionary')} from {about.get('before')} to {about.get('after')}"

    @property
    def _warning(self) -> str:
        if self.fits:
            return ""
        return (
            f"The dictionary does not fit the model after: FVU {self.fvu['after']:.3g} against "
            f"{self.fvu['before']:.3g} before, so its features may mean something else there."
        )

    @property
    def _shown(self) -> Any:  # as `figures.ranked` and `figures.before_after` read it
        frame = self.frame()
        frame["measure"], frame["mean"] = "change", frame["change"]
        return frame

    def _about(self) -> list[str]:
        about, frame = self.provenance, self.frame()
        beyond = int((frame["change"].abs() > frame["noise"]).sum())
        fvu = ", ".join(f"{name} {value:.3g}" for name, value in self.fvu.items())
        lines = [
            f"Drift{self._where}: {about.get('tokens')} tokens of {about.get('prompts')} prompts",
            f"FVU {fvu}" if fvu else "FVU unknown: a transcoder reconstructs another site",
            f"{beyond} of {len(frame)} features change beyond noise, {len(self.appeared)} appear, "
            f"{len(self.vanished)} vanish, {len(self.rotated)} rotate beyond the floor",
        ]
        if self.control_change is not None:
            largest = float(np.abs(self.control_change).max())
            over = int((frame["change"].abs() > largest).sum())
            lines.append(f"{over} change more than any does in the control ({largest:.3g})")
        if self.chance_cosine is not None:
            own, chance = float(np.median(frame["cosine"])), float(np.median(self.chance_cosine))
            lines.append(f"median cosine of matches {own:.3g}, of random directions {chance:.3g}")
        return [*lines, *([f"WARNING: {self._warning}"] if self._warning else [])]

    def _head(self) -> Any:
        frame = self.top(10)
        ends = zip(frame["low"], frame["high"], frame["n"], strict=True)
        frame["95 %"] = [interval(low, high, int(n)) for low, high, n in ends]
        columns = ["feature", "change", "95 %", "noise", "density_before", "density_after"]
        columns += ["mean_before", "mean_after", "rotation", "floor", "state"]
        return frame[[*columns, *(c for c in ("match", "cosine") if c in frame)]]

    def __repr__(self) -> str:
        table = self._head().to_string(index=False, float_format="%.3g")
        return "\n".join([*self._about(), table])

    def _repr_html_(self) -> str:
        from html import escape

        about = "<br>".join(map(escape, self._about()))
        table = self._head().to_html(index=False, float_format=lambda x: f"{x:.3g}")
        return f"<div>{about}{table}</div>"


class _Fit:
    """Sums of which the fraction of variance unexplained is made."""

    def __init__(self) -> None:
        self.error = self.squares = 0.0
        self.n, self.total = 0, torch.zeros(())

    def add(self, dictionary: Dictionary, rows: Rows) -> None:
        self.n, self.total = self.n + len(rows), self.total + rows.double().cpu().sum(0)
        self.squares += float(rows.float().pow(2).sum())
        if dictionary.site == dictionary.target:
            self.error += float((rows.float() - dictionary.reconstruct(rows)).pow(2).sum())

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.n, 1)

    @property
    def fvu(self) -> float:
        variance = self.squares - self.n * float(self.mean.pow(2).sum())
        return self.error / variance if variance > 1e-10 else float("nan")


class _Sums:
    """Sums over tokens and prompts of two models that read the same text."""

    def __init__(self, first: Dictionary, second: Dictionary, order: Tensor | None, seed: int):
        self.first, self.second, self.order = first, second, order
        self.seed, n = seed, first.n_features
        self.fits = _Fit(), _Fit()
        self.active = [torch.zeros(n, dtype=torch.double) for _ in range(2)]
        self.size = [torch.zeros(n, dtype=torch.double) for _ in range(2)]
        # by w: h before, its move, and its move by w times the sum of w over the prompt
        self.inputs = [torch.zeros(n, first.d, dtype=torch.double) for _ in range(3)]
        # over prompts: the sum of w, its square, and the squared length of the move by w
        self.weight, self.square, self.length = (torch.zeros(n).double() for _ in range(3))
        self.shift: Tensor | None = None
        self.changes: list[Tensor] = []

    def add(self, one: Part, two: Part) -> None:
        """One part of the corpus, as both models read it."""
        if not torch.equal(one.ids, two.ids):
            raise _other_tokens("read other tokens of the same text")
        later = two.codes if self.order is None else two.codes[:, self.order.to(two.codes.device)]
        later = later.to(one.codes)
        for i, (dictionary, part, codes) in enumerate(
            ((self.first, one, one.codes), (self.second, two, later))
        ):
            self.fits[i].add(dictionary, part.rows)
            self.active[i] += (codes != 0).sum(0).cpu()
            self.size[i] += codes.sum(0).double().cpu()
        self._inputs(one.codes, later, one, two.rows.to(one.rows))
        self._changes(later - one.codes, one.prompts)

    def _inputs(self, codes: Codes, later: Codes, one: Part, rows: Rows) -> None:
        """What drives each feature, and its move, on tokens where it is active in both."""
        weights = torch.minimum(codes, later).clamp(min=0).float()
        before = one.rows.to(weights)
        moves = rows.to(weights) - before
        if self.shift is None and len(moves):
            self.shift = moves.mean(0)  # a move that all share would cost digits
        if self.shift is not None:
            moves = moves - self.shift
        inverse = one.prompts.unique(return_inverse=True)[1].to(weights.device)
        numbers = inverse.unique()
        each = weights.new_zeros(len(numbers), weights.shape[1]).index_add_(0, inverse, weights)
        sums = (weights, before), (weights, moves), (weights * each[inverse], moves)
        for i, (w, values) in enumerate(sums):
            self.inputs[i] += (w.T @ values).double().cpu()
        self.weight += each.sum(0).double().cpu()
        self.square += each.double().square().sum(0).cpu()
        for number in numbers:
            some, move = weights[inverse == number], moves[inverse == number]
            # |move.T @ some|^2 of each feature, without [feature, d]
            self.length += ((move @ move.T @ some) * some).sum(0).double().cpu()

    def _changes(self, change: Codes, prompts: Tensor) -> None:
        """Mean change of each prompt `[prompt, feature]`; prompts without tokens have none."""
        numbers, inverse, counts = prompts.unique(return_inverse=True, return_counts=True)
        sums = change.new_zeros(len(numbers), change.shape[1])
        sums.index_add_(0, inverse.to(change.device), change)
        self.changes.append((sums / counts[:, None].to(sums)).cpu())

    @property
    def tokens(self) -> int:
        return self.fits[0].n

    @property
    def n_prompts(self) -> int:
        return sum(map(len, self.changes))

    @property
    def rotation(self) -> np.ndarray:
        """Degrees between the weighted inputs before and after."""
        before, moved, _ = self._driven
        return _angle(before, before + moved)

    @property
    def floor(self) -> np.ndarray:
        """Degrees that no feature turns by chance in 95 % of exchanged data sets; NaN as rotation."""
        before, moved, spread = self._driven
        z = NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * len(spread)))
        both = (2 * before + moved).norm(dim=1)
        angle = 2 * torch.atan2(z * spread.sqrt(), both)
        return angle.rad2deg().masked_fill(both == 0, torch.nan).numpy()

    @property
    def _driven(self) -> tuple[Tensor, Tensor, Tensor]:
        """u before and its move `[feature, d]`, and the sum of squared moves of prompts `[feature]`."""
        inputs, moved, cross = self.inputs
        mean, shift = self.fits[0].mean, torch.zeros(())
        if self.shift is not None:
            shift = self.fits[1].mean - mean - self.shift.double().cpu()
        lengths = self.length - 2 * (cross * shift).sum(1) + self.square * shift.square().sum()
        weight = self.weight[:, None]
        return inputs - weight * mean, moved - weight * shift, lengths.clamp(min=0)

    @property
    def direction(self) -> np.ndarray:
        """Cosine of the mean move of the activations with each decoder row; NaN where nothing moves."""
        if self.first.site != self.first.target:
            return np.full(self.first.n_features, np.nan)
        move = (self.fits[1].mean - self.fits[0].mean)[None]
        rows = self.first.decoder.double().cpu()
        return (_unit(rows) @ _unit(move)[0]).numpy()


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1; NaN for zeros."""
    return rows / rows.norm(dim=1, keepdim=True)


def _angle(first: Tensor, second: Tensor) -> np.ndarray:
    """Degrees between rows, exactly 0 for equal ones; NaN where either is zero."""
    a, b = _unit(first), _unit(second)
    angle = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))
    return angle.rad2deg().numpy()


def _made(
    compared: dict[str, _Sums],
    match: tuple[np.ndarray, np.ndarray] | None,
    chance: np.ndarray | None,
    about: dict[str, Any],
) -> Drift:
    sums = compared["after"]
    changes = torch.cat(sums.changes).numpy()
    if len(changes) < 2:
        raise WorkbenchError(
            "sae.drift",
            "there are too few prompts for an interval",
            expected="at least two prompts with tokens that count",
            got=len(changes),
            do="pass more prompts",
        )
    mean, low, high, n = mean_intervals(changes.astype(float), sums.seed)
    alive = [count.numpy() > 0 for count in sums.active]
    states = np.array([["never active", "appears"], ["vanishes", "active"]])
    columns: dict[str, Any] = {
        "feature": np.arange(len(mean)),
        "change": mean,
        "low": low,
        "high": high,
        "n": n,
        "noise": _noise(changes, sums.seed),
        "state": states[alive[0].astype(int), alive[1].astype(int)],
        "rotation": sums.rotation,
        "floor": sums.floor,
        "direction": sums.direction,
    }
    for name, active, size in zip(("before", "after"), sums.active, sums.size, strict=True):
        columns[f"density_{name}"] = (active / max(sums.tokens, 1)).numpy()
        columns[f"mean_{name}"] = (size / active).numpy()
    if match is not None:
        columns |= {"match": match[0], "cosine": match[1].astype(float)}
    control = compared.get("control")
    fvu = {} if sums.first.site != sums.first.target else _fvu(sums, control)
    still = None
    if control is not None:
        still = torch.cat(control.changes).double().mean(0).numpy()
        columns |= {"control": still, "control_rotation": control.rotation}
    plain = {name: list(column.tolist()) for name, column in columns.items()}
    return Drift(plain, UNITS, about | {"fvu": fvu}, control_change=still, chance_cosine=chance)


def _fvu(sums: _Sums, control: _Sums | None) -> dict[str, float]:
    found = {"before": sums.fits[0].fvu, "after": sums.fits[1].fvu}
    return found if control is None else found | {"control": control.fits[1].fvu}


def _noise(changes: np.ndarray, seed: int) -> np.ndarray:
    """Half the width `[feature]` of the band that no feature leaves by chance in 95 % of data sets."""
    n = len(changes)
    squares = (changes.astype(float) ** 2).sum(0)
    largest = np.zeros(FLIPS)
    signs = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), (FLIPS, n))
    for block in np.array_split(np.arange(changes.shape[1]), max(1, changes.shape[1] // 1000)):
        means = signs @ changes[:, block] / n
        error = _standard_error(means, squares[block], n)
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.where(means == 0, 0.0, np.abs(means) / error)
        largest = np.maximum(largest, t.max(1))
    # infinite where so few prompts agree by chance too often
    passed = float(np.quantile(largest, LEVEL, method="higher"))
    error = _standard_error(changes.mean(0), squares, n)
    return passed * error if np.isfinite(passed) else np.full(len(error), np.inf)


def _standard_error(means: np.ndarray, squares: np.ndarray, n: int) -> np.ndarray:
    """Of means of n numbers with this sum of squares."""
    return np.sqrt(np.maximum(squares - n * means**2, 0) / (n * (n - 1)))


Side = tuple[Any, tuple[Intervention, ...]]


def _side(given: Any, other: Any, edits: Sequence[Intervention]) -> Side:
    """A model and its edits."""
    if not isinstance(given, Arm):
        # a trained arm holds its model
        return (given.model if hasattr(given, "model") else given), tuple(edits)
    if given.decoder is not None or given.prefix:
        raise WorkbenchError(
            "sae.drift",
            f"the arm {given.name!r} has a decoder or a prefix, and both sides read the same text",
            expected="an arm with edits, a model, or both",
            got=f"decoder {given.decoder!r}, prefix {given.prefix!r}",
            do="put the prefix into the prompts of both sides, and pass completions=",
        )
    model = given.model or (other.model if isinstance(other, Arm) else other)
    if model is None:
        raise WorkbenchError(
            "sae.drift",
            "neither side has a model",
            expected="a model on at least one side",
            got=f"arms {given.name!r} and {other.name!r}",
            do="pass the model itself as one side",
        )
    return _side(model, None, (*given.edits, *edits))


def _same_words(sides: dict[str, Side]) -> None:
    first = sides["before"][0]
    for name, (model, _) in sides.items():
        if model.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise _other_tokens(f"have other vocabularies ({name})")


def _other_tokens(wrong: str) -> WorkbenchError:
    return WorkbenchError(
        "sae.drift",
        f"the models {wrong}",
        expected="models that share a tokenizer",
        got="other ids",
        do="compare a model with a checkpoint of its own",
    )

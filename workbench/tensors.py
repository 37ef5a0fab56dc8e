"""The records that hold tensors: tokens in, traces and activations out, interventions between."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from workbench import sites
from workbench.errors import EditError, WorkbenchError
from workbench.records import Prompt, Receipt
from workbench.scopes import Scope
from workbench.shapes import Float, Ids, Mask, Rows


@dataclass(frozen=True)
class Fingerprint:
    """Which model something was made on or for.

    Attributes:
        name: folder or hub name, "in-memory" where there is none.
        family: Hugging Face `model_type`.
        d_model, n_layers: width and depth; an intervention fits only where both agree.
        weights: short hash of the configuration and a sample of every weight.
    """

    name: str
    family: str
    d_model: int
    n_layers: int
    weights: str


@dataclass(frozen=True)
class Tokens:
    """A left-padded batch.

    Attributes:
        ids, mask: `[batch, pos]`; `mask` is False on padding.
        prompts: where each row comes from.
        prompt_lengths: tokens of each row's prompt; later tokens count as generated.
    """

    ids: Ids
    mask: Mask
    prompts: tuple[Prompt, ...]
    prompt_lengths: tuple[int, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, padding not counted."""
        return self.mask.sum(-1).tolist()

    @property
    def positions(self) -> Ids:
        """Absolute position of each column in its row; negative on padding."""
        pads = (~self.mask).sum(-1, keepdim=True)
        return torch.arange(self.ids.shape[1], device=self.ids.device) - pads

    def __len__(self) -> int:
        return self.ids.shape[0]


@dataclass(frozen=True)
class Trace:
    """One forward pass.

    Attributes:
        tokens: what went in.
        logits: `[batch, pos, vocab]`, or only the positions that were asked for.
        values: recorded tensors by site text, axes as in `workbench.sites.PARTS`, after any edit there.
        receipts: what each edit did.
    """

    tokens: Tokens
    logits: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)
    receipts: tuple[Receipt, ...] = ()

    def __getitem__(self, site: str) -> Tensor:
        if site in self.values:
            return self.values[site]
        found = (
            [key for key in map(str, sites.parse(site, 10**6)) if key in self.values]
            if ("*" not in site)
            else []
        )
        if len(found) == 1:
            return self.values[found[0]]
        raise WorkbenchError(
            f"trace[{site!r}]",
            "was not recorded",
            expected=f"one of {list(self.values)}",
            got=site,
            do="name it in record=[...]; use .stack for several layers",
        )

    def stack(self, part: str) -> Tensor:
        """All recorded layers of a part as `[layer, batch, ...]`, lowest layer first."""
        found = [v for k, v in self.values.items() if k.partition(".")[2] == part]
        if not found:
            raise WorkbenchError(
                f"trace.stack({part!r})",
                "was not recorded",
                expected=f"one of {sorted({k.partition('.')[2] for k in self.values})}",
                got=part,
                do=f"run with record=['L*.{part}']",
            )
        return torch.stack(found)


@dataclass(frozen=True)
class Contrast:
    """Two sets of activations at several sites: `positive[site]` and `negative[site]` are `[row, d]`.

    Attributes:
        paired: row i of both belongs to one pair.
        model: where they come from.
        prompts: the prompt of each positive row and of each negative row, for methods that read more
            than rows; None where rows came alone.
    """

    positive: Mapping[str, Rows]
    negative: Mapping[str, Float[Tensor, "other d"]]
    paired: bool
    model: Fingerprint | None = None
    prompts: tuple[tuple[Prompt, ...], tuple[Prompt, ...]] | None = None


@dataclass(frozen=True)
class Activations:
    """Recorded rows.

    Attributes:
        values: `[row, d]` per site text (heads flattened into d).
        rows: the prompt of each row.
        positions: absolute token position of each row.
        pool: how positions became rows: "last", "first", "mean" or "all".
        model: where they come from.
    """

    values: Mapping[str, Rows]
    rows: tuple[Prompt, ...]
    positions: tuple[int, ...]
    pool: str
    model: Fingerprint

    @property
    def labels(self) -> list[Any]:
        """The label of each row's prompt."""
        return [p.label for p in self.rows]

    def __getitem__(self, site: str) -> Rows:
        if site not in self.values:
            raise WorkbenchError(
                f"activations[{site!r}]",
                "was not recorded",
                expected=f"one of {list(self.values)}",
                got=site,
                do="record it",
            )
        return self.values[site]

    def at(self, *site_texts: str) -> Activations:
        """Only these sites."""
        return replace(self, values={s: self[s] for s in site_texts})

    def where(self, keep: Sequence[bool]) -> Activations:
        """Only the rows where `keep` is true."""
        index = torch.tensor([i for i, k in enumerate(keep) if k], dtype=torch.long)
        return replace(
            self,
            values={s: v[index] for s, v in self.values.items()},
            rows=tuple(self.rows[i] for i in index.tolist()),
            positions=tuple(self.positions[i] for i in index.tolist()),
        )

    def contrast(self, positive: Any = True, negative: Any = False) -> Contrast:
        """Split rows by label. Rows are paired when every `pair` has exactly one row of each.

        Raises:
            WorkbenchError: a class has no rows.
        """
        pos = [i for i, p in enumerate(self.rows) if p.label == positive]
        neg = [i for i, p in enumerate(self.rows) if p.label == negative]
        for name, rows in (("positive", pos), ("negative", neg)):
            if not rows:
                raise WorkbenchError(
                    "Activations.contrast",
                    f"the {name} class is empty",
                    expected=f"rows labelled {positive!r} and {negative!r}",
                    got=f"labels {sorted({str(p.label) for p in self.rows})}",
                    do="say contrast(positive=..., negative=...)",
                )
        pairs = [self.rows[i].pair for i in pos], [self.rows[i].pair for i in neg]
        paired = None not in pairs[0] and sorted(pairs[0]) == sorted(pairs[1])
        paired = paired and len(set(pairs[0])) == len(pos)
        if paired:
            pos = sorted(pos, key=lambda i: self.rows[i].pair or 0)
            neg = sorted(neg, key=lambda i: self.rows[i].pair or 0)
        return Contrast(
            {s: v[pos] for s, v in self.values.items()},
            {s: v[neg] for s, v in self.values.items()},
            paired,
            self.model,
            (tuple(self.rows[i] for i in pos), tuple(self.rows[i] for i in neg)),
        )


@dataclass(frozen=True)
class Intervention:
    """An edit as data: it loads without its training data and acts on every backend.

    Attributes:
        method: registry name of the method that made it, or "custom".
        operation: one of `workbench.operations.OPERATIONS`.
        tensors: per site text, the operation's tensors by name.
        strength: a number, or one per row (`[batch]`, what a sweep uses). 0 is no edit, bit for bit.
        unit: what one unit of strength is, in words.
        scope: at which positions it acts.
        params: plain JSON values the operation reads.
        model: the model it was made on; None fits any model of the same width.
        name: what tables and receipts call it.
        conditional: whether doing nothing is legitimate (a gate); the receipt then says so.
    """

    method: str
    operation: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    strength: float | Tensor = 1.0
    unit: str = "multiples of the fitted vector"
    scope: Scope = field(default_factory=Scope.all)
    params: Mapping[str, Any] = field(default_factory=dict)
    model: Fingerprint | None = None
    name: str = ""
    conditional: bool = False

    def __post_init__(self) -> None:
        strength = self.strength
        per_row = isinstance(strength, Tensor)
        if not (bool(strength.isfinite().all()) if per_row else math.isfinite(strength)):
            raise EditError(
                f"Intervention({self.label})",
                "strength is not a finite number",
                expected="a finite number",
                got=self.strength,
                do="choose another strength",
            )

    @property
    def label(self) -> str:
        """Its name, or the method's where it has none."""
        return self.name or self.method

    @property
    def sites(self) -> tuple[str, ...]:
        """Site texts it acts on."""
        return tuple(self.tensors)

    @property
    def is_zero(self) -> bool:
        """Whether it is switched off: strength 0 in every row."""
        if isinstance(self.strength, Tensor):
            return not bool(self.strength.any())
        return self.strength == 0

    def at(self, strength: float | Tensor) -> Intervention:
        """The same edit at another strength."""
        return replace(self, strength=strength)

    def for_rows(self, start: int, n: int) -> Intervention:
        """The same edit for `n` rows of a larger batch: per-row strengths are cut, one stays one."""
        if not isinstance(self.strength, Tensor):
            return self
        return self.at(self.strength[start : start + n])

    def within(self, scope: Scope | str) -> Intervention:
        """The same edit at other positions."""
        return replace(self, scope=Scope.parse(scope))

    def only(self, *site_texts: str) -> Intervention:
        """The same edit at some of its sites."""
        missing = [s for s in site_texts if s not in self.tensors]
        if missing:
            raise EditError(
                f"Intervention({self.label}).only",
                "has no such site",
                expected=f"some of {list(self.tensors)}",
                got=missing,
                do="name sites it was fitted on",
            )
        return replace(self, tensors={s: self.tensors[s] for s in site_texts})

    def named(self, name: str) -> Intervention:
        """The same edit under another name."""
        return replace(self, name=name)

    @property
    def is_addition(self) -> bool:
        """Whether it adds one vector per site and does nothing else, such as deciding when."""
        only_shifts = all(set(tensors) == {"shift"} for tensors in self.tensors.values())
        return self.operation == "affine" and only_shifts and "stepwise" not in self.params

    def __mul__(self, factor: Any) -> Intervention:
        """The same edit at `factor` times its strength."""
        if not isinstance(factor, float | int):
            return NotImplemented
        return self.at(self.strength * float(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Intervention:
        """The same edit at its strength divided by `divisor`."""
        if not isinstance(divisor, float | int):
            return NotImplemented
        return self.at(self.strength / float(divisor))

    def __neg__(self) -> Intervention:
        """The same edit the other way."""
        return self * -1.0

    def __add__(self, other: Any) -> Intervention:
        """One addition that does both at their strengths; its own is 1, or 0 where both are 0.

        Raises:
            EditError: either does more than add, or they differ in sites, scope, unit, width or
                model; `interventions.compose` puts such edits in an order instead.
        """
        return _sum(self, other) if isinstance(other, Intervention) else NotImplemented

    def __sub__(self, other: Any) -> Intervention:
        """`self + -other`."""
        return _sum(self, -other) if isinstance(other, Intervention) else NotImplemented

    def __repr__(self) -> str:
        strength = self.strength if isinstance(self.strength, float | int) else "per row"
        return (
            f"Intervention({self.label}: {self.operation} at {', '.join(self.sites)}, "
            f"strength {strength} {self.unit}, scope {self.scope})"
        )


SUM_UNIT = "multiples of the summed vectors"


def _sum(a: Intervention, b: Intervention) -> Intervention:
    """The addition of both vectors at their strengths, summed in float64."""
    _check_addends(a, b)
    terms = _terms(a) + _terms(b)
    tensors = {
        site: {
            "shift": sum(
                float(e.strength) * e.tensors[site]["shift"].double() for e in (a, b)
            ).float()
        }
        for site in a.tensors
    }
    return replace(
        a,
        method="custom",
        tensors=tensors,
        strength=0.0 if a.is_zero and b.is_zero else 1.0,
        unit=SUM_UNIT,
        params={"terms": terms},
        model=a.model or b.model,
        name=" + ".join(f"{factor:g} {label}" for factor, label in terms),
        conditional=a.conditional or b.conditional,
    )


def _terms(edit: Intervention) -> list[list[Any]]:
    """What a sum is of: strengths and labels, those of a sum scaled by its own strength."""
    inner = edit.params.get("terms", [[1.0, edit.label]]) if edit.unit == SUM_UNIT else None
    return [[float(edit.strength) * k, label] for k, label in inner or [[1.0, edit.label]]]


def _check_addends(a: Intervention, b: Intervention) -> None:
    faults = {
        "one of them does more than add a vector": not (a.is_addition and b.is_addition),
        "one of them has a strength per row": any(isinstance(e.strength, Tensor) for e in (a, b)),
        "they act at different sites": set(a.sites) != set(b.sites),
        "they act at different positions": a.scope != b.scope,
        "their strengths are in different units": len({a.unit, b.unit} - {SUM_UNIT}) > 1,
        "they were made on different models": a.model != b.model and bool(a.model and b.model),
    }
    faults["their vectors differ in width"] = not any(faults.values()) and any(
        a.tensors[site]["shift"].shape != b.tensors[site]["shift"].shape for site in a.sites
    )
    for wrong in (fault for fault, found in faults.items() if found):
        raise EditError(
            f"{a.label} + {b.label}",
            wrong,
            expected="two additions at the same sites, positions and unit, of one model",
            got=f"{a!r} and {b!r}",
            do="use edit.only(...) and edit.within(...), or interventions.compose for an order",
        )


@dataclass(frozen=True)
class Readout:
    """A linear read-out at one site: score = weight . h + bias."""

    site: str
    weight: Float[Tensor, " d"]
    bias: float = 0.0


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a name, its edits, its decoder, and its model where it differs."""

    name: str
    edits: tuple[Intervention, ...] = ()
    decoder: Any = None
    model: Any = None
    prefix: str = ""

    def __init__(
        self,
        name: str,
        edits: Iterable[Intervention] = (),
        decoder: Any = None,
        model: Any = None,
        prefix: str = "",
    ):
        """`prefix` is put before every prompt: the prompting arm of a steering comparison."""
        for key, value in dict(
            name=name, edits=tuple(edits), decoder=decoder, model=model, prefix=prefix
        ).items():
            object.__setattr__(self, key, value)


def finite(where: str, value: float) -> float:
    """`value`, or an error where it is not a finite number."""
    if not math.isfinite(value):
        raise EditError(
            where, "is not finite", expected="a finite number", got=value, do="correct it"
        )
    return value


def above_zero(where: str, value: float | int) -> float:
    """`value`, or an error where it is not a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise EditError(
            where, "is not above 0", expected="a finite number above 0", got=value, do="correct it"
        )
    return float(value)

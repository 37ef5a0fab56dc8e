"""Many methods fitted on the same data: what several of them read is recorded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench import registry
from workbench.errors import EditError, WorkbenchError
from workbench.interventions.calibrate import calibrate
from workbench.interventions.fit import contrast_of, needed, quiet, warn_of_swapped_labels
from workbench.records import Prompt
from workbench.steering.base import SteeringMethod
from workbench.sweep.strength_by_layer import sites_by_layer
from workbench.tensors import Contrast, Intervention
from workbench.worker import Cancelled

MULTIPLES = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Strengths of a method that is given none, times its calibrated strength."""
N_CALIBRATION = 16
"""Prompts that calibrate a method; more hardly move the mean."""

Methods = str | SteeringMethod | Sequence[str | SteeringMethod] | Mapping[str, str | SteeringMethod]


@dataclass
class Fitted:
    """Methods by name, each fitted when it is first asked for, once.

    Attributes:
        sites: per method, other sites than its own.
        handed: per method, what its `needs` ask for and a model cannot give.
        notes: what a reader of the numbers should know, a sentence each.
    """

    model: Any
    data: list[Prompt]
    methods: dict[str, SteeringMethod]
    sites: Mapping[str, Any]
    handed: Mapping[str, Mapping[str, Any]]
    positive: Any = True
    negative: Any = False
    batch_size: int | None = None
    notes: list[str] = field(default_factory=list)
    _edits: dict[str, Intervention] = field(default_factory=dict)
    _errors: dict[str, str] = field(default_factory=dict)
    _contrasts: dict[tuple[Any, ...], Contrast] = field(default_factory=dict)

    def edit(self, name: str) -> Intervention:
        """The method's edit over all its layers, at strength 1.

        Raises:
            EditError: it could not be fitted; the message says why, every time.
        """
        if name not in self._edits and name not in self._errors:
            try:
                self._edits[name] = self._fit(name)
            except Cancelled:  # whoever asks again wants it fitted
                raise
            # a method is anybody's file: whatever it raises is its result, and the others go on
            except Exception as error:
                self._errors[name] = said(error)
        if name in self._errors:
            raise EditError(
                f"sweep, method {name!r}",
                "could not be fitted",
                expected="an edit",
                got=self._errors[name],
                do="see that message, or leave the method out",
            )
        return self._edits[name]

    def fits(self, name: str) -> bool:
        """Whether the method has an edit."""
        return name not in self._errors

    def at_layer(self, name: str, layer: int | None) -> Intervention:
        """The edit's share in one layer, or all of it for None.

        Raises:
            EditError: it could not be fitted, or changes nothing in that layer.
        """
        edit = self.edit(name)
        if layer is None:
            return edit
        places = sites_by_layer(edit, self.model.n_layers)
        if layer not in places:
            raise EditError(
                f"sweep, method {name!r}",
                f"makes no edit in layer {layer}",
                expected=f"one of the layers {sorted(places)}",
                got=layer,
                do="sweep those layers, or give it other sites",
            )
        return edit.only(*places[layer])

    def layerless(self, name: str) -> bool:
        """Whether the method reads no rows, so that there is no layer to choose."""
        return not self.asked_sites(name)

    def asked_sites(self, name: str) -> list[str]:
        """Where the method reads and acts."""
        asked = self.sites.get(name, self.methods[name].sites)
        return [s for s in ([asked] if isinstance(asked, str) else asked) if s]

    def strengths(
        self,
        name: str,
        layers: Sequence[int | None],
        prompts: Sequence[Prompt],
        target_kl_nats: float | int,
    ) -> list[float]:
        """`MULTIPLES` of the strength that reaches the target in the middle one of its layers.

        A method that cannot reach it (its divergence is not monotone, or ends below it) is tried at
        a tenth of the target; where that fails too, it gets multiples of 1. Notes say so.
        None goes past a method's own largest strength.
        """
        try:
            edit = self._middle(name, layers)
        except EditError:
            return [1.0]  # its cells say why
        unit, limit = 1.0, float(edit.params.get("max_strength", float("inf")))
        for target in (target_kl_nats, target_kl_nats / 10):
            try:
                unit = self._calibrated(edit, prompts, float(target))
                break
            except Cancelled:
                raise
            except Exception as error:
                reason = said(error)
                self.notes.append(f"{name} was not calibrated to {target:g} nats: {reason}")
        else:
            self.notes.append(f"strengths of {name} are multiples of 1, not of a divergence")
        return sorted({min(m * unit, limit) for m in MULTIPLES})

    def _calibrated(self, edit: Intervention, prompts: Sequence[Prompt], target: float) -> float:
        few, size = list(prompts)[:N_CALIBRATION], self.batch_size
        found = calibrate(
            edit, self.model, few, target, tolerance=0.1, batch_size=size, progress=False
        )
        return float(found.strength)

    def _middle(self, name: str, layers: Sequence[int | None]) -> Intervention:
        if layers == [None] or layers == (None,):
            return self.edit(name)
        places = sites_by_layer(self.edit(name), self.model.n_layers)
        has = [y for y in layers if y in places] or [None]
        return self.at_layer(name, has[len(has) // 2])

    def _fit(self, name: str) -> Intervention:
        method = self.methods[name]
        contrast = self._contrast(method, tuple(self.asked_sites(name)))
        handed = dict(self.handed.get(name, {}))
        needs = needed(method, self.model, handed, self.batch_size)
        return quiet(method).fit(contrast, **needs)

    def _contrast(self, method: SteeringMethod, sites: tuple[str, ...]) -> Contrast:
        key = (sites, method.pool)
        if key not in self._contrasts:
            found = contrast_of(
                self.model,
                self.data,
                list(sites),
                pool=method.pool,
                positive=self.positive,
                negative=self.negative,
                batch_size=self.batch_size,
                progress=False,
            )
            warn_of_swapped_labels(method, found)
            self._contrasts[key] = found
        return self._contrasts[key]


def said(error: Exception) -> str:
    """What an error says; with its kind where it is not one of ours."""
    return str(error) if isinstance(error, WorkbenchError) else repr(error)


def named_methods(asked: Methods) -> dict[str, SteeringMethod]:
    """Methods by the name that points and tables call them.

    Raises:
        UnknownName: no such method.
        WorkbenchError: none, or two of one name.
    """
    if isinstance(asked, Mapping):
        return {name: _method(one) for name, one in asked.items()} or _none()
    many = [asked] if isinstance(asked, str | SteeringMethod) else list(asked)
    found: dict[str, SteeringMethod] = {}
    for one in many:
        method = _method(one)
        name = type(method).__module__.rpartition(".")[2]
        if name in found:
            raise WorkbenchError(
                "sweep(methods=...)",
                f"has {name!r} twice",
                expected="one of each, or names of your own",
                got=[str(m) for m in many],
                do=f"pass a mapping: {{'{name}, first': ..., '{name}, second': ...}}",
            )
        found[name] = method
    return found or _none()


def _method(asked: str | SteeringMethod) -> SteeringMethod:
    return registry.get("steering", asked)() if isinstance(asked, str) else asked


def _none() -> dict[str, SteeringMethod]:
    raise WorkbenchError(
        "sweep(methods=...)",
        "names no method",
        expected="at least one",
        got="0",
        do=f"name some of {', '.join(registry.names('steering')[:4])}, ...",
    )

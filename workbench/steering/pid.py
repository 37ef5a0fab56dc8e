"""A PID controller over depth: each layer corrects what the edits below it have left over.

    r(k) = mean(h+) - mean(h-)      at the k-th site in depth
    u(k) = Kp r(k) + Ki sum_{j<k} r(j) + Kd (r(k) - r(k-1)),     r(-1) = r(0)
    h' = h + s u(k)                 or, injector "ablate", h' = h - s u^ (u^ . h)

Shapes: rows `[row, d]` per class and site; r(k) and u(k) `[d]`.
Units: strength s counts whole corrections: 1 adds u(k) (removes the component along it).
Source: Nguyen, Vu, Pham, Zhang and Nguyen (2025), Activation Steering with a Feedback Controller,
    https://arxiv.org/abs/2510.04309.
Differs from the paper: it publishes no gains; the defaults here are our reading, and keep the scalar
    plant e' = a e - a u stable for every a up to 1.2. Our reading: closed loop (`sequential`)
    reads the *negative* prompts again with u(0) .. u(k-1) injected at every position, and keeps the
    positive mean as it was without edits; the integral has no anti-windup; the derivative is 0 at the
    first site. A network has few layers, so that the steady state of control theory need not be
    reached: `params["error_norms"]` holds |r(k)| by site, the thing to report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench.errors import WorkbenchError, unknown
from workbench.linalg import mean_difference, unit
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor, Vector
from workbench.sites import depth_of
from workbench.steering.base import Need, SteeringMethod, check_read_again, sites_of
from workbench.tensors import Contrast, Intervention, finite

ReadRows = Callable[..., Mapping[str, Rows]]


def control(errors: Sequence[Any], kp: float | int, ki: float | int, kd: float | int) -> Any:
    """The control at the last of `errors`, r(0) .. r(k): numbers, or vectors of one width."""
    now = errors[-1]
    before = errors[-2] if len(errors) > 1 else now
    return kp * now + ki * sum(errors[:-1]) + kd * (now - before)


@register(
    "steering",
    Citation(
        "Nguyen, Vu, Pham, Zhang, Nguyen",
        "Activation Steering with a Feedback Controller",
        2025,
        "https://arxiv.org/abs/2510.04309",
    ),
)
@dataclass(frozen=True)
class Pid(SteeringMethod):
    """Add the class difference left at each layer, with its sum and its change over depth.

    Attributes:
        kp, ki, kd: gains of the error, of its sum over the sites below, of its change since the last.
        sequential: measure each error with the edits below it at work; False takes all errors from
            unsteered rows.
        injector: "add" the control, or "ablate" the component along it.
    """

    kp: float | int = 0.9
    ki: float | int = 0.1
    kd: float | int = 0.05
    sequential: bool = True
    injector: Literal["add", "ablate"] = "add"

    @property
    def needs(self) -> tuple[Need, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A way to read rows under edits, for the closed loop."""
        return ("rows",) if self.sequential else ()

    def fit(self, contrast: Contrast, *, rows: ReadRows | None = None) -> Intervention:
        """The control at every recorded site, in depth order; a site whose control is 0 is left out.

        Raises:
            WorkbenchError: gains that are not finite or are all 0, rows that cannot be fitted, or a
                closed loop without prompts, or with rows read elsewhere than at the last position.
        """
        self._check(contrast, rows)
        data = {site: (p, n) for site, p, n in sites_of(contrast, "Pid")}
        errors: list[Vector] = []
        tensors: dict[str, dict[str, Tensor]] = {}
        for site in sorted(data, key=depth_of):
            positive, negative = data[site]
            if rows is not None and self.sequential:
                negative = self._read_again(contrast, rows, site, tensors)
            errors.append(mean_difference(positive, negative))
            u = control(errors, self.kp, self.ki, self.kd)
            if bool(u.any()):
                tensors[site] = self._tensors(u)
        return self._edit(contrast, tensors, [float(r.norm()) for r in errors])

    def _check(self, contrast: Contrast, rows: ReadRows | None) -> None:
        for name in ("kp", "ki", "kd"):
            finite(f"Pid({name})", float(getattr(self, name)))
        if not (self.kp or self.ki or self.kd):
            raise WorkbenchError(
                "Pid(kp=0, ki=0, kd=0)",
                "controls nothing",
                expected="at least one gain other than 0",
                got="0 for all three",
                do="leave a gain at its default; strength 0 is no edit",
            )
        if self.injector not in ("add", "ablate"):
            raise unknown("Pid(injector)", "injector", self.injector, ("add", "ablate"))
        if self.sequential and (rows is None or contrast.prompts is None):
            raise WorkbenchError(
                "Pid.fit",
                "the closed loop has no model to read again",
                expected="rows=, and a contrast that holds its prompts",
                got="a contrast of rows alone",
                do="fit through steering.fit, or use Pid(sequential=False)",
            )

    def _tensors(self, u: Vector) -> dict[str, Float[Tensor, ...]]:
        if self.injector == "add":
            return {"shift": u.float()}
        direction = unit(u).float()[None]
        return {"down": direction, "up": -direction}

    def _edit(
        self, contrast: Contrast, tensors: Mapping[str, Mapping[str, Tensor]], norms: list[float]
    ) -> Intervention:
        params: dict[str, Any] = {"kp": self.kp, "ki": self.ki, "kd": self.kd}
        params |= {"sequential": self.sequential, "injector": self.injector, "error_norms": norms}
        if self.injector == "ablate":
            params["max_strength"] = 1.0
        unit_text = {
            "add": "multiples of the control",
            "ablate": "fraction of the component removed",
        }
        return Intervention(
            "pid",
            "affine",
            tensors,
            unit=unit_text[self.injector],
            params=params,
            model=contrast.model,
        )

    def _read_again(
        self,
        contrast: Contrast,
        rows: ReadRows,
        site: str,
        below: Mapping[str, Mapping[str, Tensor]],
    ) -> Rows:
        """The negative rows at `site` under the controls below it."""
        assert contrast.prompts is not None
        if below:
            edit = self._edit(contrast, dict(below), [])
            return rows(contrast.prompts[1], [site], edits=[edit])[site]
        read = rows(contrast.prompts[1], [site])[site]
        check_read_again(f"Pid.fit at {site}", read, contrast.negative[site])
        return read

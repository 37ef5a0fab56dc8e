"""One prompt as it is and with edits whose strengths move, for widgets with a base and an edited side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from workbench.errors import EditError, PromptError, WorkbenchError
from workbench.model.changes import counted, versions
from workbench.model.live import Live
from workbench.model.model import Model
from workbench.tensors import Intervention, Tokens, Trace
from workbench_widgets.pieces import pieces

_MORE = 2.0
_PLACES = 6
"""Decimals of a strength on a slider."""


def one_prompt(model: Model, prompt: Any, where: str) -> Tokens:
    """The tokens of one prompt.

    Raises:
        PromptError: several prompts, none, an empty or too long one.
    """
    tokens = model.tokens(prompt)
    if len(tokens) == 1:
        return tokens
    raise PromptError(
        where, "shows one prompt", expected="one", got=len(tokens), do="make a widget for each"
    )


class Arms:
    """One prompt, base and edited. Each side keeps its residual streams, so a moved edit re-runs
    only the layers above it.

    Args:
        edits: their strengths are where the sliders start.

    Attributes:
        tokens, texts: of the prompt; texts one per token.
        edits: as given.
    """

    def __init__(
        self, model: Model, prompt: Any, edits: Intervention | Iterable[Intervention], where: str
    ):
        self.model, self.where = model, where
        self.edits = (edits,) if isinstance(edits, Intervention) else tuple(edits)
        for edit in self.edits:
            if isinstance(edit.strength, Tensor):
                raise EditError(
                    where, "moves one strength", expected="a number", got="per row", do="use .at(1)"
                )
        self.tokens = one_prompt(model, prompt, where)
        self.texts = pieces(model.tokenizer, self.tokens.ids[0].tolist())
        self._weights = counted([*model.hf.parameters(), *model.hf.buffers()])
        self._lives = {"base": Live(model, self.tokens), "edited": Live(model, self.tokens)}
        if (
            self.edits
        ):  # an edit that does not fit the model is refused here, not in the first frame
            model.session(self.tokens, self.edits, ())

    @property
    def names(self) -> tuple[str, ...]:
        """The sides there are."""
        return ("base", "edited") if self.edits else ("base",)

    @property
    def strengths(self) -> list[float]:
        """Those of the given edits."""
        return [float(edit.strength) for edit in self.edits]

    @property
    def weights(self) -> tuple[int, ...]:
        """Another value as soon as the model's weights are written into: what was read is old then."""
        return versions(self._weights)

    def meta(self) -> list[dict[str, Any]]:
        """What a slider has to know of each edit."""
        found = []
        for edit in self.edits:
            most = max(_MORE, _MORE * abs(float(edit.strength)))
            found.append({"name": edit.label, "unit": edit.unit, "min": -most, "max": most})
        return found

    def at(self, spec: Mapping[str, Any]) -> tuple[Intervention, ...]:
        """The edits at the strengths of a spec.

        Raises:
            WorkbenchError: not one finite number per edit.
        """
        given = spec.get("strengths", [])
        said = [_number(s) for s in given] if isinstance(given, list) else []
        if len(said) != len(self.edits) or None in said or not isinstance(given, list):
            raise WorkbenchError(
                self.where,
                "needs a strength per edit",
                expected=f"{len(self.edits)} finite numbers",
                got=given,
                do="set spec['strengths']",
            )
        return tuple(edit.at(s) for edit, s in zip(self.edits, said, strict=True) if s is not None)

    def grid(self, given: Iterable[float] | None, now: float, count: int) -> list[float]:
        """Strengths of the first edit to compute ahead, rising; `now`, the present one, is among them.

        Args:
            given: as the user wrote them; None for `count` over the slider.

        Raises:
            WorkbenchError: none, or one that is not a finite number.
        """
        about = self.meta()[0]
        step = (about["max"] - about["min"]) / (count - 1)
        wanted = [about["min"] + i * step for i in range(count)] if given is None else given
        try:
            found = [_number(one) for one in wanted]
        except TypeError:
            found = []
        if not found or None in found:
            raise WorkbenchError(
                f"{self.where}.precompute",
                "needs strengths of the first edit",
                expected="a list of finite numbers",
                got=repr(given)[:80],
                do="pass some, or leave it out",
            )
        return sorted({round(one, _PLACES) for one in found if one is not None} | {now})

    def run(
        self, side: str, edits: Sequence[Intervention], record: Sequence[str], logits: Any = "all"
    ) -> Trace:
        """The base without edits, or the edited side with them.

        Raises:
            EditError: the edits make numbers that are none.
            WorkbenchError: the model itself does.
        """
        trace = self._lives[side].run(edits if side == "edited" else (), record, logits=logits)
        good = all(bool(torch.isfinite(values).all()) for values in trace.values.values())
        if good and _are_logits(trace.logits):
            return trace
        edited = side == "edited" and bool(edits)
        raise (EditError if edited else WorkbenchError)(
            f"{self.where}, {side}",
            f"the model's values are not numbers{' any more' if edited else ''}",
            expected="finite activations and logits",
            got="NaN or infinity",
            do="choose a smaller strength, or look at the edit's tensors"
            if edited
            else "look at the model: without edits it computes this too",
        )

    def forget(self, side: str) -> None:
        """Free what the side keeps."""
        self._lives[side].forget()


def _are_logits(logits: Tensor) -> bool:
    """Whether every row has a distribution; minus infinity is a token that the model rules out."""
    finite = logits.isfinite()
    if bool(finite.all()):
        return True
    wrong = logits.isnan() | logits.isposinf()
    return not bool(wrong.any()) and bool(finite.any(-1).all())


def _number(value: Any) -> float | None:
    """A finite number, or None; a text that looks like one is none."""
    if isinstance(value, str | bytes | bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if isfinite(number) else None

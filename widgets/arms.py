"""One prompt as it is and with edits whose strengths move, for widgets with a base and an edited side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.errors import EditError, PromptError, WorkbenchError
from workbench.model.live import Live
from workbench.model.model import Model
from workbench.tensors import Intervention, Tokens, Trace
from workbench_widgets.pieces import pieces

_MORE = 2.0


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
        said = spec.get("strengths", [])
        if not isinstance(said, list) or len(said) != len(self.edits):
            raise WorkbenchError(
                self.where,
                "needs a strength per edit",
                expected=f"{len(self.edits)} numbers",
                got=said,
                do="set spec['strengths']",
            )
        return tuple(edit.at(float(s)) for edit, s in zip(self.edits, said, strict=True))

    def run(
        self, side: str, edits: Sequence[Intervention], record: Sequence[str], logits: Any = "all"
    ) -> Trace:
        """The base without edits, or the edited side with them.

        Raises:
            EditError: the edits make numbers that are none.
        """
        trace = self._lives[side].run(edits if side == "edited" else (), record, logits=logits)
        for values in (trace.logits, *trace.values.values()):
            if not bool(torch.isfinite(values).all()):
                raise EditError(
                    f"{self.where}, {side}",
                    "the model's values are not numbers any more",
                    expected="finite activations and logits",
                    got="NaN or infinity",
                    do="choose a smaller strength, or look at the edit's tensors",
                )
        return trace

    def forget(self, side: str) -> None:
        """Free what the side keeps."""
        self._lives[side].forget()

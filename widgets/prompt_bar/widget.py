"""PromptBar: a prompt as the model reads it, token by token, to edit and to choose positions in."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench import worker
from workbench.errors import WorkbenchError
from workbench.model.model import Model
from workbench.records import Prompt
from workbench.scopes import Scope
from workbench_widgets.align import align
from workbench_widgets.base import Widget
from workbench_widgets.cells import model_line, prompt_code
from workbench_widgets.frames import pack
from workbench_widgets.prompt_bar.tokens import as_prompt, chips, plain
from workbench_widgets.stills.strip import still_strip

Span = tuple[int, int]


@dataclass(frozen=True)
class Pair:
    """Two prompts with their positions matched.

    Attributes:
        prompt, other: the two.
        positions: `(in prompt, in other)` of every position that has a partner, in order.
        differing: those of them whose tokens differ.
        same_length: whether position p stands against position p all along, what patching wants.
    """

    prompt: Prompt
    other: Prompt
    positions: tuple[Span, ...]
    differing: tuple[Span, ...]
    same_length: bool


class PromptBar(Widget):
    """Tokens as chips with ids and positions; edit the text, choose spans, compare two prompts.

    Args:
        model: whose tokenizer and context length count.
        prompt: text, Prompt, or chat messages, which go through the tokenizer's template.
        other: a second prompt, aligned with the first by token id.

    Attributes:
        span: `(start, stop)` chosen in `prompt`, absolute positions, `start <= p < stop`; or None.
        other_span: the same in `other`.

    Raises:
        PromptError: a prompt that is empty, longer than the context or outside the vocabulary.

    Example:
        bar = PromptBar(model, "12+7=")
        edit.within(bar.scope)
    """

    folder = "prompt_bar"

    def __init__(self, model: Model, prompt: Any, other: Any = None, *, link: str = ""):
        self._model = model
        self._given = [as_prompt(prompt)]
        if other is not None:
            self._given.append(as_prompt(other, "PromptBar(other=)"))
        for one in self._given:
            chips(model, one)
        sides = [plain(one) for one in self._given]
        super().__init__(
            spec={"prompt": sides[0], "other": sides[1] if sides[1:] else None}
            | {"span": None, "other_span": None},
            meta={"title": "Prompt", "model": model.name, "n_context": model.dims.n_context},
            link=link,
        )
        self.refresh()

    # --- what was typed and chosen --------------------------------------------------------------

    @property
    def prompt(self) -> Prompt:
        """The prompt as it stands now. Answer, label and the like are kept while it is as it was given.

        Raises:
            PromptError: the text was emptied.
        """
        return self._as_given(0, self.spec["prompt"])

    @property
    def other(self) -> Prompt | None:
        """The second prompt as it stands now."""
        told = self.spec.get("other")
        return None if told is None else self._as_given(1, told)

    @property
    def span(self) -> Span | None:
        """`(start, stop)` chosen in `prompt`."""
        return _span(self.spec.get("span"))

    @property
    def other_span(self) -> Span | None:
        """The partners of `span` in `other`; None where they have none there."""
        return _span(self.spec.get("other_span"))

    @property
    def scope(self) -> Scope:
        """The chosen span as a scope; every prompt position where none is chosen."""
        return Scope.prompt() if self.span is None else Scope.span(*self.span)

    @property
    def pair(self) -> Pair:
        """Both prompts with the positions that correspond.

        Raises:
            WorkbenchError: there is no other prompt.
        """
        prompt, other = self.prompt, self.other
        if other is None:
            raise WorkbenchError(
                "PromptBar.pair",
                "has one prompt",
                expected="PromptBar(model, prompt, other)",
                got="no other",
                do="pass a second prompt",
            )
        a, b = (chips(self._model, one)["ids"] for one in (prompt, other))
        both = tuple((i, j) for i, j in align(a, b).tolist() if i >= 0 and j >= 0)
        differing = tuple((i, j) for i, j in both if a[i] != b[j])
        straight = len(a) == len(b) == len(both)
        return Pair(prompt, other, both, differing, straight)

    def select(self, start: int, stop: int) -> None:
        """Choose positions `start <= p < stop` of `prompt`, and their partners in `other`.

        Raises:
            WorkbenchError: outside the prompt, or empty.
        """
        n = len(chips(self._model, self.prompt)["ids"])
        if not 0 <= start < stop <= n:
            raise WorkbenchError(
                "PromptBar.select",
                "is outside the prompt",
                expected=f"0 <= start < stop <= {n}",
                got=(start, stop),
                do="choose positions it has",
            )
        partners = [j for i, j in self.pair.positions if start <= i < stop] if self.other else []
        found = [partners[0], partners[-1] + 1] if partners else None
        self.ask(span=[start, stop], other_span=found)

    def ask(self, **changes: Any) -> None:
        """Change the spec from Python, as the browser does; another text has no span yet."""
        if any(k in changes and changes[k] != self.spec.get(k) for k in ("prompt", "other")):
            changes = {"span": None, "other_span": None, **changes}
        super().ask(**changes)

    def to_record(self) -> Prompt:
        """The prompt as it stands now; `pair` has both."""
        return self.prompt

    def to_code(self) -> str:
        """A cell with the prompt, its tokens and the scope of the span."""
        lines = ["import workbench as wb", "", model_line(self._model)]
        lines += [f"prompt = {prompt_code(self.prompt)}", "tokens = model.tokens([prompt])"]
        if self.other is not None:
            lines += [f"other = {prompt_code(self.other)}"]
        lines += [f"scope = wb.Scope.parse({str(self.scope)!r})", "tokens, scope", ""]
        return "\n".join(lines)

    def precompute(self, grid: Any = None) -> PromptBar:
        """Tokenise `grid`, a list of prompts, so that a page without a kernel can switch among them."""
        prompts = [as_prompt(one) for one in (grid if grid is not None else [self.prompt])]
        told = self.spec.get("other")
        frames = [self._chips({"prompt": plain(one), "other": told}) for one in prompts]
        self.sweep = pack({"grid": [plain(one) for one in prompts], "frames": frames})
        return self

    # --- the frame ------------------------------------------------------------------------------

    def _frame(self, spec: dict[str, Any], _job: worker.Job) -> Mapping[str, Any]:
        return self._chips(spec)

    def _chips(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        sides = [spec["prompt"], *([spec["other"]] if spec.get("other") else [])]
        found = [chips(self._model, self._as_given(k, one)) for k, one in enumerate(sides)]
        frame: dict[str, Any] = {"sides": found}
        if len(found) > 1:
            frame["pairs"] = align(found[0]["ids"], found[1]["ids"]).tolist()
        return frame

    def _as_given(self, place: int, told: Mapping[str, Any]) -> Prompt:
        if place < len(self._given) and plain(self._given[place]) == dict(told):
            return self._given[place]
        return as_prompt(told["messages"] if told.get("messages") else str(told.get("text", "")))

    def _words(self) -> str:
        sides = self.frame.get("sides", [])
        counts = " against ".join(str(len(side["ids"])) for side in sides) or "no"
        chosen = "" if self.span is None else f", span({self.span[0]}, {self.span[1]})"
        return f"{counts} tokens{chosen}"

    def _still(self) -> str:
        frame = self.frame
        strips = "".join(still_strip(row) for row in _rows(frame))
        ids = "".join(
            f"<p><small>ids: {html.escape(_shortened(side['ids']))}</small></p>"
            for side in frame.get("sides", [])
        )
        return f"<div>{strips}{ids}<p><small>{html.escape(repr(self))}</small></p></div>"


def _rows(frame: Mapping[str, Any]) -> list[list[dict[str, Any] | None]]:
    """Tokens of both prompts as the still draws them, with gaps where they are aligned."""
    sides = frame.get("sides", [])
    if "pairs" not in frame:
        return [_row(side, range(len(side["ids"])), set()) for side in sides]
    a, b = (side["ids"] for side in sides)
    changed = {k for k, (i, j) in enumerate(frame["pairs"]) if i < 0 or j < 0 or a[i] != b[j]}
    return [
        _row(side, [pair[r] for pair in frame["pairs"]], changed) for r, side in enumerate(sides)
    ]


def _row(side: Mapping[str, Any], places: Sequence[int], changed: set[int]) -> list[Any]:
    return [
        {"text": side["text"][i], "shown": side["shown"][i], "changed": k in changed}
        if i >= 0
        else None
        for k, i in enumerate(places)
    ]


def _shortened(ids: Sequence[int], most: int = 64) -> str:
    said = " ".join(map(str, ids[:most]))
    return f"{said} … {len(ids) - most:,} more" if len(ids) > most else said


def _span(told: Any) -> Span | None:
    return None if not told else (int(told[0]), int(told[1]))

"""Add the difference of two short prompts, position by position, to the front of the prompt (ActAdd).

    a_i = h(prompt+)_i - h(prompt-)_i            for the positions i both prompts have
    h'_i = h_i + s a_i                           at position i of the steered prompt

Shapes: h `[pos, d]` of one run of both prompts; one vector `[d]` per position that differs.
Units: strength s counts differences of the two prompts.
Source: Turner, Thiergart, Leech, Udell, Vazquez, Mini and MacDiarmid (2023), Steering Language
    Models With Activation Engineering, https://arxiv.org/abs/2308.10248.
Differs from the paper: the paper adds at one layer it names (6 of 48 in GPT-2 XL, coefficient 5 to
    15); here the sites are the caller's, and by default every block's input. The paper has one pair;
    of several pairs this takes the mean of their differences at each position, where a pair that
    has ended counts as zero. A position without a difference is left out, such as position 0
    where both prompts begin with the tokenizer's own token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench.errors import WorkbenchError
from workbench.records import Prompt
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.shapes import Float, Tensor
from workbench.sites import PARTS, parse
from workbench.steering.base import SteeringMethod
from workbench.tensors import Contrast, Intervention, Trace

Run = Callable[..., Trace]
Encode = Callable[[str], list[int]]


@register(
    "steering",
    Citation(
        "Turner, Thiergart, Leech, Udell, Vazquez, Mini, MacDiarmid",
        "Steering Language Models With Activation Engineering",
        2023,
        "https://arxiv.org/abs/2308.10248",
    ),
)
@dataclass(frozen=True)
class ActAdd(SteeringMethod):
    """Add the difference of two prompts at each of the first positions of the prompt.

    Attributes:
        spaces: the shorter text of a pair is padded with at most this many spaces behind it.
    """

    spaces: int = 64

    needs: ClassVar = ("run", "encode")
    sites: ClassVar[str] = "L*.resid_pre"

    def fit(self, contrast: Contrast, *, run: Run, encode: Encode) -> Intervention:
        """One vector per site and position; conditional, since a prompt may be shorter than the pair.

        Raises:
            WorkbenchError: prompts that are not paired or not text, a site without one vector per
                position, texts that no number of spaces makes equally long in tokens, or two
                prompts whose activations do not differ.
        """
        sites = _sites(contrast)
        pairs = _pairs(contrast)
        found = [_difference(run, self._padded(encode, *pair), sites) for pair in pairs]
        tensors = {
            f"{site}[pos={i}]": {"shift": vector.float()}
            for site in sites
            for i, vector in enumerate(_mean([one[site] for one in found]))
            if bool(vector.any())
        }
        if not tensors:
            raise WorkbenchError(
                "ActAdd.fit",
                "the two prompts have the same activations, so there is no direction",
                expected="prompts that differ in a token",
                got=f"{pairs[0]}",
                do="check the labels",
            )
        return Intervention(
            "act_add",
            "affine",
            tensors,
            unit="multiples of the difference of the two prompts",
            scope=Scope.prompt(),
            params={"pairs": len(pairs)},
            model=contrast.model,
            conditional=True,
        )

    def _padded(self, encode: Encode, positive: str, negative: str) -> tuple[str, str]:
        """Both texts with equally many tokens: the shorter one gets spaces behind it."""
        lengths = [len(encode(text)) for text in (positive, negative)]
        if lengths[0] == lengths[1]:
            return positive, negative
        short = positive if lengths[0] < lengths[1] else negative
        tries = [short + " " * n for n in range(1, self.spaces + 1)]
        reached = [len(encode(text)) for text in tries]
        if max(lengths) not in reached:
            raise WorkbenchError(
                "ActAdd.fit",
                "spaces do not make the two texts equally long in tokens",
                expected=f"{max(lengths)} tokens with up to {self.spaces} spaces",
                got=f"{min(lengths)} tokens for {short!r}, then {sorted(set(reached))}",
                do="choose texts with equally many tokens, or raise ActAdd(spaces=...)",
            )
        filled = tries[reached.index(max(lengths))]
        return (filled, negative) if short is positive else (positive, filled)


def _sites(contrast: Contrast) -> list[str]:
    for text in contrast.positive:
        site = parse(text, 10**6)[0]
        one_vector = site.part.startswith("hf:") or PARTS[site.part].axes == ("pos", "d")
        if site.selectors or not one_vector:
            raise WorkbenchError(
                "ActAdd.fit",
                f"{text} does not hold one vector per position",
                expected="a site such as L6.resid_pre, without selectors",
                got=text,
                do="pass sites='L6.resid_pre' to steering.fit",
            )
    return list(contrast.positive)


def _pairs(contrast: Contrast) -> list[tuple[str, str]]:
    sides = contrast.prompts
    if (
        sides is None
        or not sides[0]
        or not (contrast.paired or len(sides[0]) == len(sides[1]) == 1)
    ):
        raise WorkbenchError(
            "ActAdd.fit",
            "needs pairs of prompts, which it reads again",
            expected="as many positive as negative prompts, matched one to one",
            got="rows alone" if sides is None else f"{[len(side) for side in sides]} prompts",
            do="fit through steering.fit on workbench.prompts.pairs",
        )
    return [(_text(p), _text(n)) for p, n in zip(*sides, strict=True)]


def _text(prompt: Prompt) -> str:
    if prompt.text is None:
        raise WorkbenchError(
            "ActAdd.fit",
            "a chat prompt cannot be padded with spaces",
            expected="plain text",
            got=f"{len(prompt.messages or ())} messages",
            do="write the rendered template as text",
        )
    return prompt.text + str(prompt.meta.get("completion", ""))


def _difference(run: Run, texts: tuple[str, str], sites: list[str]) -> dict[str, Any]:
    """`[pos, d]` per site, in float64; both rows are equally long, so no column is padding."""
    trace = run([Prompt(text) for text in texts], sites)
    both = {site: trace[site].detach().double().cpu() for site in sites}
    return {site: rows[0] - rows[1] for site, rows in both.items()}


def _mean(differences: list[Float[Tensor, "_ d"]]) -> Float[Tensor, "pos d"]:
    """Over pairs of any length, those that have ended counted as zero."""
    return torch.nn.utils.rnn.pad_sequence(differences, batch_first=True).mean(0)

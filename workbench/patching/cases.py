"""From prompts to cases on a model: clean and corrupted side by side, answers as single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.errors import PromptError, WorkbenchError
from workbench.locate.base import Cases, Reads
from workbench.model.tokens import as_prompts, encode
from workbench.records import Prompt
from workbench.tensors import Tokens

WANTED = {
    "answer": "prompts with an answer, a single token",
    "foil": "prompts with a foil, the wrong answer to compare with",
    "corrupted": "clean and corrupted prompts",
}


def cases_of(model: Any, prompts: Any, reads: Sequence[Reads] = ()) -> Cases:
    """The cases that `prompts` make on `model`.

    Args:
        prompts: texts or prompts; those of `wb.prompts.counterfactuals` have a corrupted side. A
            `Cases` is taken as it is.
        reads: what has to be there.

    Raises:
        WorkbenchError: a need of `reads` is missing.
        PromptError: clean and corrupted differ in length and nobody said how to align them, or an
            answer is not one token.
    """
    found = prompts if isinstance(prompts, Cases) else _made(model, prompts, reads)
    missing = [need for need in reads if getattr(found, need) is None]
    if missing:
        raise WorkbenchError(
            "locate.find",
            f"the prompts have no {missing[0]}",
            expected=WANTED[missing[0]],
            got=f"{len(found)} prompts without",
            do="make them with wb.prompts.counterfactuals(clean=, corrupted=, answers=, foils=)",
        )
    return found


def _made(model: Any, prompts: Any, reads: Sequence[Reads]) -> Cases:
    many = as_prompts(prompts)
    clean = [p for p in many if p.meta.get("role") != "corrupted"]
    corrupted = [p for p in many if p.meta.get("role") == "corrupted"]
    tokens = model.tokens(clean)
    answer = _ids(model, clean, "answer", own="answer" in reads)
    foil = _ids(model, clean, "foil")
    if not corrupted:
        return Cases(tokens, None, answer, foil)
    if [p.pair for p in clean] != [p.pair for p in corrupted]:
        raise PromptError(
            "locate.find",
            "clean and corrupted prompts do not match",
            expected="a corrupted prompt for each clean one, in the same order",
            got=f"{len(clean)} clean and {len(corrupted)} corrupted",
            do="make them with wb.prompts.counterfactuals, and cut them as pairs",
        )
    other = model.tokens(corrupted)
    return Cases(tokens, other, answer, foil, _columns(tokens, other))


def _ids(model: Any, prompts: list[Prompt], what: str, own: bool = False) -> Tensor | None:
    """The token that the answer or the foil is after each prompt; None where no prompt has one.

    With `own` the answer of a prompt counts that nobody meant for this, such as a task's.
    """
    texts = [p.meta.get(what, p.answer if own else None) for p in prompts]
    if all(text is None for text in texts):
        return None
    ids = [_one_id(model, p, text, what) for p, text in zip(prompts, texts, strict=True)]
    return torch.tensor(ids, device=model.device)


def _one_id(model: Any, prompt: Prompt, text: Any, what: str) -> int:
    if isinstance(text, int):
        return text
    head = encode(model.tokenizer, prompt)
    whole = encode(model.tokenizer, Prompt((prompt.text or "") + text)) if text else head
    # read behind its prompt, since a tokenizer may spell a word another way at a text's beginning
    tail = whole[len(head) :] if whole[: len(head)] == head else []
    if not tail and text:
        tail = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tail) != 1:
        raise PromptError(
            f"{what} {text!r} of {(prompt.text or '')[-40:]!r}",
            "is not one token",
            expected="a text that is a single token after its prompt, or a token id",
            got=model.tokenizer.convert_ids_to_tokens(tail) or "nothing",
            do="choose another word, or end the prompt before the token that tells them apart",
        )
    return int(tail[0])


def _columns(clean: Tokens, corrupted: Tokens) -> Tensor:
    """Which column of the corrupted batch stands against which of the clean one."""
    found = torch.full(clean.ids.shape, -1)
    widths = clean.ids.shape[1], corrupted.ids.shape[1]
    for row, (n, m) in enumerate(zip(clean.lengths, corrupted.lengths, strict=True)):
        prompt = clean.prompts[row]
        align = prompt.meta.get("align")
        if n != m and align is None:
            raise PromptError(
                f"clean prompt {(prompt.text or '')[:40]!r}",
                "and its corrupted prompt have different lengths",
                expected=f"{n} tokens each",
                got=m,
                do="make them equally long, or say counterfactuals(align='end' or 'start')",
            )
        shared = min(n, m)
        start = (n - shared, m - shared) if align == "end" else (0, 0)
        pads = widths[0] - n + start[0], widths[1] - m + start[1]
        found[row, pads[0] : pads[0] + shared] = torch.arange(pads[1], pads[1] + shared)
    return found.to(clean.ids.device)

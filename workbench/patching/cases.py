"""From prompts to cases on a model: clean and corrupted side by side, answers as single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.errors import PromptError, WorkbenchError
from workbench.locate.base import Cases, Reads
from workbench.model.tokens import as_prompts
from workbench.prompts import chat
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
        PromptError: clean and corrupted differ in length and nobody said how to align them, an
            answer is not one token, or it is its foil.
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
    _check_apart(answer, foil, clean)
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


def _one_id(model: Any, prompt: Prompt, given: Any, what: str) -> int:
    tokenizer, n_vocab = model.tokenizer, model.dims.n_vocab
    tail = [given] if isinstance(given, int) else _read_behind(tokenizer, prompt, given or "")
    known = [id_ for id_ in tail if 0 <= id_ < n_vocab and not _is_unknown(tokenizer, id_)]
    if len(tail) != 1 or not known:
        raise PromptError(
            f"{what} {given!r} of {(prompt.text or str(prompt.messages))[-40:]!r}",
            "is not one token" if isinstance(given, str) else "is no token",
            expected=f"a text that is a single token after its prompt, or an id below {n_vocab}",
            got=tail if isinstance(given, int) else tokenizer.convert_ids_to_tokens(tail) or "none",
            do="choose another word, or end the prompt before the token that tells them apart",
        )
    return int(known[0])


def _read_behind(tokenizer: Any, prompt: Prompt, text: str) -> list[int]:
    """Ids of a text read behind its prompt: a tokenizer may spell a word another way at a beginning.

    Where the two merge into a token across their border, it is read behind a line's end instead.
    """
    before = chat.render(tokenizer, prompt.messages) if prompt.messages else prompt.text or ""
    for front in (before, "\n", ""):
        read = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (front, front + text)]
        head, whole = map(list, read)
        if whole[: len(head)] == head and len(whole) > len(head):
            return whole[len(head) :]
    return []


def _is_unknown(tokenizer: Any, id_: int) -> bool:
    return id_ == tokenizer.unk_token_id != tokenizer.eos_token_id


def _check_apart(answer: Tensor | None, foil: Tensor | None, prompts: list[Prompt]) -> None:
    """An answer that is its foil has a logit difference of 0 whatever the model does."""
    if answer is None or foil is None or not bool((answer == foil).any()):
        return
    row = int((answer == foil).nonzero()[0])
    raise PromptError(
        f"prompt {(prompts[row].text or str(prompts[row].messages))[:40]!r}",
        "has the same token as answer and as foil",
        expected="two tokens",
        got=int(answer[row]),
        do="choose answers and foils that begin with different tokens",
    )


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

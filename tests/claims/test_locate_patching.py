"""What patching says is the cause is the cause: a planted head is found, the carry is followed through
the reasoner, and both are re-obtained by an edit of the place that the map names.

The reasoner reads `add 35 59?\\n5+9+0=` and writes 1 where the units carry. Clean prompts carry, corrupted
ones differ in the lower operand's digit and do not. Which digit it is stands at the digit's own position up
to block 0 and at the last position from block 2 on.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import locate
from workbench.locate import ActivationPatching, HeadAblation
from workbench.patching.cases import cases_of

DIGIT, LAST = 14, 17
"""Positions of the lower operand's digit and of the equals sign in `add 35 59?\\n5+9+0=`."""

PLANTED, LETTERS = (1, 2), "abcdefghijklmnop"


def planted() -> wb.Model:
    """A random GPT-2 of small heads in which one reads the letters and writes them to the logits."""
    hf = tiny.module("gpt2", n_embd=64)
    layer, head = PLANTED
    attention, d = hf.transformer.h[layer].attn, 16  # pyright: ignore
    with torch.no_grad():
        for block in hf.transformer.h:  # pyright: ignore
            for weight in (block.attn.c_proj.weight, block.mlp.c_proj.weight):
                weight.mul_(0.02)
        # what it copies is what tells the letters apart
        letters = tiny.tokenizer().convert_tokens_to_ids(list(LETTERS))
        embedded = hf.transformer.wte.weight  # pyright: ignore
        embedded[letters] -= embedded[letters].mean(0)
        basis = torch.linalg.qr(embedded[letters].T)[0]
        hf.transformer.wpe.weight.mul_(0.1)  # pyright: ignore
        for norm in (hf.transformer.h[layer].ln_1, hf.transformer.ln_f):  # pyright: ignore
            norm.weight.fill_(1)
            norm.bias.zero_()
        at = slice(head * d, head * d + d)
        # queries and keys are 0, so that it reads all positions alike; values are copied through
        for start in (0, 64):
            attention.c_attn.weight[:, start + head * d : start + head * d + d] = 0
            attention.c_attn.bias[start + head * d : start + head * d + d] = 0
        attention.c_attn.weight[:, 128 + head * d : 128 + head * d + d] = basis
        attention.c_proj.weight[at] = 20 * basis.T
    return wb.load(hf, tiny.tokenizer())


def letters(n: int) -> wb.Prompts:
    """Rows of one letter, the corrupted ones of another; the answer is the letter itself."""
    draw = random.Random(0)
    half = [draw.sample(LETTERS, 2) for _ in range(n // 2)]
    # both ways round, so that what the model says of a letter anyway cancels
    pairs = [*half, *([b, a] for a, b in half)]
    return wb.prompts.counterfactuals(
        clean=[f"{a}{a}{a}{a} ?" for a, _ in pairs],
        corrupted=[f"{b}{b}{b}{b} ?" for _, b in pairs],
        answers=[a for a, _ in pairs],
        foils=[b for _, b in pairs],
    )


def test_a_planted_head_is_found_by_patching_and_by_ablation() -> None:
    model, prompts = planted(), letters(60)
    patched = locate.find(ActivationPatching("z"), model, prompts, progress=False)
    ablated = locate.find(HeadAblation(), model, prompts, progress=False)
    for found in (patched, ablated):
        best, second = found.top(2).itertuples()
        assert (best.layer, best.head) == PLANTED
        assert best.low > 0 and best.mean > 3 * abs(second.mean)
    control = patched.also["control"].scores.values
    assert float(control["patch"].mean(0)[0]) > 3 * float(control["random, size"].mean(0)[0])
    # by an edit: without the head the letter is no longer told apart
    cases = cases_of(model, prompts)
    edit = ablated.edit(layer=PLANTED[0], head=PLANTED[1])
    logits = [model.run(cases.clean, edits=e, logits="last").logits[:, -1] for e in ((), (edit,))]
    whole, without = (float(cases.metric(x, "logit_difference").mean()) for x in logits)
    assert without < 0.3 * whole


def sums(n: int, seed: int, lower: tuple[int, int] | None = None) -> wb.Prompts:
    """Pairs of sums: the clean one carries, the corrupted one has a smaller digit and does not.

    `lower` fixes both digits, so that their difference is one direction.
    """
    draw, made = random.Random(seed), []
    while len(made) < n:
        x, y, a = (draw.randint(1, 9) for _ in range(3))
        b, c = lower or (draw.randint(1, 9), draw.randint(1, 9))
        if a + b >= 10 > a + c > 1:
            made.append(
                (f"add {x}{a} {y}{b}?\n{a}+{b}+0=", f"add {x}{a} {y}{c}?\n{a}+{c}+0=", a + c)
            )
    clean, corrupted, other = zip(*made, strict=True)
    return wb.prompts.counterfactuals(
        clean=clean, corrupted=corrupted, answers="1", foils=[str(d) for d in other]
    )


@pytest.fixture(scope="module")
def reasoner() -> wb.Model:
    return wb.load("reasoner")


def test_the_carry_goes_from_the_digit_to_the_last_position(reasoner: wb.Model) -> None:
    found = locate.find(ActivationPatching(), reasoner, sums(24, 0), progress=False)
    grid = found.grid()
    assert grid[0, DIGIT] > 0.9 and abs(grid[0, LAST]) < 0.05
    assert (grid[2:, LAST] > 0.9).all() and (abs(grid[2:, DIGIT]) < 0.1).all()
    # the same digit in the question above is not what is read
    assert abs(grid[:, 9]).max() < 0.05
    others = [p for p in range(18) if p not in (DIGIT, LAST)]
    assert abs(grid[:, others]).max() < 0.1
    control = found.also["control"].scores.values
    assert (control["patch"].mean(0) > 4 * control["random, size"].mean(0)).all()


@pytest.mark.parametrize("place", [(0, DIGIT), (3, LAST)])
def test_the_mean_change_at_the_place_makes_unseen_sums_carry(
    reasoner: wb.Model, place: tuple[int, int]
) -> None:
    """Fitted on some sums of two fixed digits, the edit of the map's cell turns others' answer to 1."""
    layer, pos = place
    found = locate.find(
        ActivationPatching(control="none"), reasoner, sums(24, 0, (8, 2)), progress=False
    )
    unseen = cases_of(reasoner, sums(24, 1, (8, 2)))

    def carries(*edits: Any) -> float:
        logits = reasoner.run(unseen.corrupted, edits=edits, logits="last").logits[:, -1]
        return float(unseen.metric(logits, "probability").mean())

    assert carries() < 0.1
    edit = found.edit(layer=layer, pos=pos)
    assert carries(edit) > 0.9
    # the same at a position that the map says is nothing
    elsewhere = wb.Intervention(
        "custom",
        "affine",
        {f"L{layer}.resid_pre[pos={DIGIT - 1}]": next(iter(edit.tensors.values()))},
    )
    assert carries(elsewhere) < 0.2

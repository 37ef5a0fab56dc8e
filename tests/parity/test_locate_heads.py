"""Head scores beside TransformerLens' head detector, and every attention method on every backend."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from tests.parity import cases
from workbench import locate

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
STORY = "Once upon a time, there was a girl named Lily. Lily loved the sun and the"
LETTERS = "abcadbabxcad"
DETECTORS = {
    "previous_token_head": locate.PreviousTokenHeads(),
    "duplicate_token_head": locate.DuplicateTokenHeads(),
    "induction_head": locate.InductionHeads(on="prompts"),
}
"""TransformerLens' fixed names (it evaluates them, so no text of a user's may come here), and ours."""


@cache
def bridged(which: str) -> wb.Model:
    if which == "gpt2":
        return tiny.model("gpt2", "transformer_lens")
    if not FOLDER.is_dir():
        pytest.skip("the stories260K model is not beside this checkout")
    return wb.load(FOLDER, backend="transformer_lens")


@cache
def plain(which: str) -> wb.Model:
    return tiny.model("gpt2") if which == "gpt2" else wb.load(FOLDER)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(("which", "text"), [("stories", STORY), ("gpt2", LETTERS)])
def test_shares_are_those_of_the_head_detector(which: str, text: str, detector: str) -> None:
    from transformer_lens.head_detector import detect_head

    model = bridged(which)
    bridge: Any = model.unwrap()
    assert bridge.to_tokens(text)[0].tolist() == model.tokens(text).ids[0].tolist()
    theirs = detect_head(bridge, text, detector)  # pyright: ignore[reportArgumentType]
    ours = locate.find(DETECTORS[detector], plain(which), text, progress=False).grid("share")
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    assert ours.std() > 1e-4


def test_a_token_behind_its_equal_is_where_the_definitions_part() -> None:
    """In `aab` the detector takes the second a, which follows the first, for what a should attend to."""
    from transformer_lens.head_detector import detect_head

    model = bridged("gpt2")
    bridge: Any = model.unwrap()
    theirs = detect_head(bridge, "aabcab", "induction_head").numpy()
    ours = locate.find(DETECTORS["induction_head"], model, "aabcab", progress=False).grid("share")
    assert np.abs(ours - theirs).max() > 1e-2


METHODS = {
    "previous_token_heads": locate.PreviousTokenHeads(),
    "induction_heads": locate.InductionHeads(sequences=2),
    "token_alignment_heads": locate.TokenAlignmentHeads(copies="any", masked=1),
    "positional_symbolic": locate.PositionalSymbolic(blocks=3),
    "attention_knockout": locate.AttentionKnockout(window=3),
    "attention_flow": locate.AttentionFlow(value_norms=True),
    "sinks": locate.Sinks(),
}


def asked() -> list[wb.Prompt]:
    """Of different length, so that the batch is padded."""
    ids = tiny.tokenizer()("cba", add_special_tokens=False)["input_ids"]
    return [wb.Prompt(t, meta={"answer": "a", "completion": ids}) for t in ("abcdb", "bcadcb?c")]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("backend", cases.OTHERS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_backend_finds_the_same(name: str, backend: str, family: str) -> None:
    reference = locate.find(METHODS[name], tiny.model(family), asked(), progress=False)
    made = locate.find(METHODS[name], tiny.model(family, backend), asked(), progress=False)
    pairs = [(reference, made), *((reference.also[k], made.also[k]) for k in reference.also)]
    for ours, theirs in pairs:
        for measure in ours.measures:
            np.testing.assert_allclose(
                theirs.grid(measure), ours.grid(measure), atol=2e-4, err_msg=measure
            )

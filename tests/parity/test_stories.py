"""A real pretrained model, made by nobody here, behaves the same on all three backends."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import workbench as wb
from tests.parity import cases

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
BACKENDS = ("transformers", *cases.OTHERS)

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the stories260K model is not beside this checkout"
)


@cache
def stories(backend: str) -> wb.Model:
    """The model on one backend."""
    return wb.load(FOLDER, backend=backend)


def she_over_he(model: wb.Model, text: str) -> float:
    """How much rather the story goes on with She than with He."""
    she, he = model.tokenizer.convert_tokens_to_ids(["▁She", "▁He"])
    last = model.run(text, logits="last").logits[0, -1]
    return float(last[she] - last[he])


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_text_from_the_beginning_of_sequence(backend: str) -> None:
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside"
    model = stories(backend)
    (told,) = model.generate(model.tokenizer.bos_token, max_new_tokens=30)
    assert told.text.strip().startswith(story)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_pronoun_follows_the_name(backend: str) -> None:
    lily = "Once upon a time there was a little girl named Lily."
    tim = "Once upon a time there was a little boy named Tim."
    found = she_over_he(stories(backend), lily), she_over_he(stories(backend), tim)
    assert found == pytest.approx((6.48175, -4.01771), abs=1e-4)


@pytest.mark.parametrize("backend", cases.OTHERS)
def test_a_mean_difference_flips_the_pronoun_alike(backend: str) -> None:
    girl, boy = "a little girl named Lily.", "a little boy named Tim."
    reference = stories("transformers")
    rows = reference.run([girl, boy], ["L2.resid_post[pos=-1]"])["L2.resid_post[pos=-1]"]
    change = wb.Intervention(
        "custom", "affine", {"L2.resid_post": {"shift": rows[1] - rows[0]}}, 2.0
    )
    ours = reference.generate(girl, [change], max_new_tokens=12)[0].ids
    assert stories(backend).generate(girl, [change], max_new_tokens=12)[0].ids == ours
    assert ours != reference.generate(girl, max_new_tokens=12)[0].ids

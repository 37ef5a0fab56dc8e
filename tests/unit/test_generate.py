"""Our generation loop against transformers' own, and what a row may depend on."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from workbench.decoding import Greedy, Sample
from workbench.tensors import Intervention

PROMPTS = ["12+34=", "a longer prompt, 7*8=?", "b", "zz top"]


def _ids(generations: list) -> list[tuple[int, ...]]:
    return [g.ids for g in generations]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_transformers(family: str) -> None:
    model = tiny.model(family)
    tokens = model.tokens(PROMPTS)
    theirs = model.hf.generate(
        tokens.ids, attention_mask=tokens.mask.long(), max_new_tokens=12, do_sample=False
    )[:, tokens.ids.shape[1] :]
    for row, ours in zip(theirs.tolist(), model.generate(PROMPTS, max_new_tokens=12), strict=True):
        assert list(ours.ids) == row[: len(ours.ids)]
        assert ours.stop == ("eos" if ours.ids[-1] == 2 else "length")


def test_finished_rows_are_dropped_and_change_nothing() -> None:
    model = tiny.model()
    alone = [model.generate(p, max_new_tokens=20)[0] for p in PROMPTS]
    # a stop text found in one continuation ends that row early and leaves the others alone
    letter = next(c for c in alone[0].text if sum(c in g.text for g in alone) < len(alone))
    widths: list[int] = []
    together = model.generate(
        PROMPTS,
        max_new_tokens=20,
        stop=letter,
        on_token=lambda _s, rows, _i: widths.append(len(rows)),
    )
    assert widths[0] == len(PROMPTS)
    assert min(widths) < len(PROMPTS)
    for a, b in zip(alone, together, strict=True):
        assert a.ids[: len(b.ids)] == b.ids
        assert (b.stop == "text") == (letter in b.text)


def test_same_seed_same_text_whatever_the_batch() -> None:
    model, decoder = tiny.model(), Sample(temperature=1.3)
    options = dict(decoder=decoder, max_new_tokens=15, seed=3)
    whole = model.generate(PROMPTS, **options)
    assert _ids(whole) == _ids(model.generate(PROMPTS, **options))
    assert _ids(whole) == _ids(model.generate(PROMPTS, batch_size=2, **options))
    assert _ids(whole) != _ids(model.generate(PROMPTS, **options | {"seed": 4}))


def test_logprobs_are_those_of_the_edited_model() -> None:
    model = tiny.model()
    edit = Intervention("custom", "affine", {"L1.resid_post": {"shift": torch.randn(32)}})
    done = model.generate(PROMPTS, [edit], decoder=Sample(temperature=0.5), max_new_tokens=8)
    read = model.run(PROMPTS, edits=[edit], completions=[g.ids for g in done]).logits
    for i, g in enumerate(done):
        n = len(g.ids)
        p = read[i, -n - 1 : -1].log_softmax(-1).gather(1, torch.tensor(g.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(g.logprobs), p, atol=1e-4)


def test_streaming_shows_every_token_in_order() -> None:
    model = tiny.model()
    seen: dict[int, list[int]] = {i: [] for i in range(len(PROMPTS))}

    def collect(step: int, rows: list[int], ids: list[int]) -> None:
        for row, token in zip(rows, ids, strict=True):
            assert len(seen[row]) == step
            seen[row].append(token)

    done = model.generate(PROMPTS, max_new_tokens=9, on_token=collect)
    assert [tuple(v) for v in seen.values()] == _ids(done)


def test_per_row_strengths_follow_their_rows_over_batches() -> None:
    model = tiny.model()
    shift = {"L1.resid_post": {"shift": torch.ones(32)}}
    strengths = torch.tensor([0.0, 3.0, 0.0, -3.0])
    edit = Intervention("custom", "affine", shift, strengths)
    swept = model.generate(PROMPTS, [edit], max_new_tokens=8, batch_size=3)
    for prompt, strength, row in zip(PROMPTS, strengths.tolist(), swept, strict=True):
        one = model.generate(prompt, [edit.at(strength)], max_new_tokens=8)[0]
        assert one.ids == row.ids


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sample(temperature=0.7), {"temperature": 0.7}),
        (Sample(top_k=5), {"top_k": 5}),
        (Sample(top_p=0.6), {"top_p": 0.6}),
        (Sample(min_p=0.2), {"min_p": 0.2}),
        (
            Sample(temperature=1.4, top_k=20, top_p=0.8, min_p=0.05),
            {"temperature": 1.4, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
        ),
    ],
)
def test_truncation_equals_transformers(ours: Sample, theirs: dict) -> None:
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    makers = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    logits = 3 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    expected = logits.clone()
    for key, value in theirs.items():
        expected = makers[key](value)(None, expected)
    assert torch.equal(ours.process(logits).softmax(-1), expected.softmax(-1))


def test_sampling_draws_from_the_distribution() -> None:
    from scipy.stats import chisquare

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_000, 4)
    noise = torch.empty(20_000, 4).exponential_(generator=torch.Generator().manual_seed(0))
    drawn = Sample().choose(logits, noise).bincount(minlength=4).numpy()
    expected = logits[0].double().softmax(-1).numpy() * 20_000
    assert chisquare(drawn, expected).pvalue > 0.001
    assert Greedy().choose(logits, None).eq(0).all()

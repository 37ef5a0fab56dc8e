"""Generation with an edit at every step gives the same tokens on all backends."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.parity import cases

PADDED = ("resid_mid", "pattern", "k_cache", "router_logits", "expert")
SINGLE = ("resid_post", "attn_scores", "v_cache")


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("backend", cases.OTHERS)
@pytest.mark.parametrize("n_prompts", [1, 2], ids=["single", "padded"])
def test_edited_greedy_tokens_are_identical(family: str, backend: str, n_prompts: int) -> None:
    model, prompts = tiny.model(family, backend), cases.PROMPTS[:n_prompts]
    for part in sorted(cases.parts(model).intersection(PADDED if n_prompts > 1 else SINGLE)):
        a = cases.generated(family, part, n_prompts)
        b = model.generate(prompts, [cases.edit(family, part)], max_new_tokens=cases.STEPS)
        assert [g.ids for g in b] == [g.ids for g in a], part
        logprobs = [p for g in a for p in g.logprobs]
        assert [p for g in b for p in g.logprobs] == pytest.approx(logprobs, abs=1e-4), part
        assert [r.fired for r in b.receipts] == [r.fired for r in a.receipts]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("backend", cases.OTHERS)
def test_the_cache_changes_nothing(family: str, backend: str) -> None:
    model, change = (
        tiny.model(family, backend),
        [cases.edit(family, "resid_post", scope="generated")],
    )
    cached = model.generate(cases.PROMPTS, change, max_new_tokens=3)
    fresh = model.generate(cases.PROMPTS, change, max_new_tokens=3, use_cache=False)
    assert [g.ids for g in cached] == [g.ids for g in fresh]

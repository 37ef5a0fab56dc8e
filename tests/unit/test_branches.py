"""Packed branches score as each branch does alone: log-probabilities, edits, receipts, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench as wb
from tests import tiny
from workbench.model import branches, packing

DRAW = torch.Generator().manual_seed(0)
CHAIN = torch.randint(3, tiny.N_VOCAB, (40,), generator=DRAW).tolist()
ANSWERS = [torch.randint(3, tiny.N_VOCAB, (n,), generator=DRAW).tolist() for n in (1, 3, 2, 5)]
PREFIXES = [5, 17, 18, 40]


def shift(site: str, scope: str = "all", strength: float = 2.0) -> wb.Intervention:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(5))
    scope_ = wb.Scope.parse(scope)
    return wb.Intervention("custom", "affine", {site: {"shift": vector}}, strength, scope=scope_)


def alone(
    model: wb.Model, prefix: list[int], answer: list[int], edits=(), n_prompt=5
) -> torch.Tensor:
    """Log-probabilities of one branch by itself, from a plain run."""
    ids = torch.tensor([prefix + answer])
    tokens = wb.Tokens(ids, torch.ones_like(ids).bool(), (wb.Prompt("."),), (n_prompt,))
    # alone, a branch may miss what a scope covers in another
    gentle = [replace(edit, conditional=True) for edit in edits]
    logprobs = model.run(tokens, (), gentle).logits[0].log_softmax(-1)
    at = range(len(prefix) - 1, len(prefix) + len(answer) - 1)
    return logprobs[list(at), answer]


def check(
    model: wb.Model, edits=(), prefixes=PREFIXES, answers=ANSWERS, **options
) -> wb.BranchScores:
    scores = wb.score_branches(model, CHAIN, prefixes, answers, edits, **options)
    for i, prefix in enumerate(prefixes):
        for j, answer in enumerate(answers):
            want = alone(model, CHAIN[:prefix], answer, edits, min(prefixes))
            got = scores.logprobs[i, j]
            torch.testing.assert_close(got[: len(answer)], want, atol=1e-4, rtol=0)
            assert got[len(answer) :].isnan().all()
            assert scores.lengths[i, j] == len(answer)
            torch.testing.assert_close(scores.totals[i, j], want.sum(), atol=1e-4, rtol=0)
    return scores


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_forward_scores_every_branch(family: str) -> None:
    scores = check(tiny.model(family))
    assert scores.forwards == 1 and scores.note == "" and scores.receipts == ()
    means = scores.totals / torch.tensor([len(a) for a in ANSWERS])
    torch.testing.assert_close(scores.means, means)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_edits_act_as_they_do_alone(family: str) -> None:
    model = tiny.model(family)
    edits = [shift("L1.resid_post", "generated"), shift("L0.mlp_out", "span(12, 30)")]
    edits += [shift("L1.attn_out", "prompt-bos"), shift("L2.resid_pre", f"after({CHAIN[20]})")]
    edits += [shift("final_norm"), shift("embed", f"tokens({{{CHAIN[3]}, {ANSWERS[3][2]}}})")]
    scores = check(model, edits)
    assert scores.forwards == 1
    assert [r.fired for r in scores.receipts] == [1] * 6
    covered = {r.site: r.positions for r in scores.receipts}
    columns = 40 + len(PREFIXES) * sum(len(a) - 1 for a in ANSWERS)
    assert covered["final_norm"] == columns and covered["L1.attn_out"] == 5
    assert covered["L1.resid_post"] == columns - 5


def test_edits_of_attention_and_logits() -> None:
    bias = wb.Intervention(
        "custom",
        "score_bias",
        {"L1.attn_scores": {"bias": torch.ones(4)}},
        params={"keys": "span(2, 9)"},
    )
    keys = wb.Intervention("custom", "scale_keys", {"L1.k_cache": {"factor": torch.tensor(0.5)}})
    logits = torch.randn(tiny.N_VOCAB, generator=torch.Generator().manual_seed(1))
    push = wb.Intervention(
        "custom", "affine", {"logits": {"shift": logits}}, scope=wb.Scope.parse("generated")
    )
    assert check(tiny.model(), [bias, keys, push]).forwards == 1


@pytest.mark.parametrize("window", [4, 12, 64])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "qwen2"])
def test_sliding_windows_are_kept_to(family: str, window: int) -> None:
    options = {"sliding_window": window}
    if family == "qwen2":
        options |= {"use_sliding_window": True, "max_window_layers": 1}
    model = wb.load(tiny.module(family, **options), tiny.tokenizer(), proof=False)
    assert check(model, [shift("L1.resid_post", "span(12, 30)")]).note == ""


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prefixes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    room=st.sampled_from([None, 1, 45, 60]),
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "olmoe"])
def test_any_shape_of_branches_and_chunks(family, prefixes, lengths, room) -> None:
    answers = [CHAIN[k : k + n] for k, n in enumerate(lengths)]
    scores = check(tiny.model(family), [shift("L1.mlp_out")], prefixes, answers, max_columns=room)
    assert scores.forwards == (1 if room is None else scores.forwards)


def test_chunks_add_up_to_one_receipt_per_edit() -> None:
    edits = [shift("L1.resid_post", "span(0, 3)"), shift("L1.mlp_out", "span(35, 40)")]
    scores = check(tiny.model(), edits, max_columns=50)
    assert scores.forwards > 1 and len(scores.receipts) == 2
    assert scores.receipts[0].positions == 3 * scores.forwards


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_rows_give_the_same_as_packing(family: str) -> None:
    edits = [shift("L1.resid_post", "generated")]
    packed = wb.score_branches(tiny.model(family), CHAIN, PREFIXES, ANSWERS, edits)
    rows = check(tiny.model(family), edits, pack=False)
    assert rows.note == "pack=False"
    torch.testing.assert_close(packed.totals, rows.totals, atol=1e-4, rtol=0)


def test_texts_and_one_list_per_prefix() -> None:
    model = tiny.model()
    prompt, chain = "ab", "cd\nef"
    scores = wb.score_branches(
        model, prompt, [3, 6, 8], [["x", "yz"], ["x"], ["q"]], completion=chain
    )
    ids = model.tokenizer(prompt + chain)["input_ids"]
    letter = {
        t: model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("x", "yz", "q")
    }
    for i, j, n, text in ((0, 0, 3, "x"), (0, 1, 3, "yz"), (1, 0, 6, "x"), (2, 0, 8, "q")):
        want = alone(model, ids[:n], letter[text], n_prompt=3).sum()
        torch.testing.assert_close(scores.totals[i, j], want, atol=1e-4, rtol=0)
    assert scores.lengths.tolist() == [[1, 2], [1, 0], [1, 0]]
    assert scores.totals[1, 1].isnan() and scores.means[1, 1].isnan()


def test_where_packing_would_be_wrong_rows_are_used_and_it_is_said() -> None:
    model = tiny.model()
    pattern = wb.Intervention("custom", "affine", {"L1.pattern": {"scale": torch.tensor([-0.5])}})
    assert "could join branches" in check(model, [pattern]).note
    flash = wb.load(tiny.module("llama"), tiny.tokenizer(), proof=False)
    flash.hf.config._attn_implementation_internal = "flash_attention_2"
    assert "flash_attention_2" in packing.why_not(flash, [])
    chunked = wb.load(tiny.module("llama"), tiny.tokenizer(), proof=False)
    chunked.hf.config.layer_types = ["chunked_attention"] * 3
    assert "chunked_attention" in packing.why_not(chunked, [])


def test_a_model_that_reads_columns_as_positions_fails_the_trial() -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer(), proof=False)
    rotary = model.hf.model.rotary_emb
    real = rotary.forward
    columns = lambda x, position_ids: real(x, torch.arange(x.shape[1])[None])  # noqa: E731
    rotary.forward = columns
    scores = check(model, pack=True, prefixes=[40], answers=ANSWERS[:1])
    assert "off by" in scores.note and branches._trials[model.hf] == scores.note


@pytest.mark.parametrize(
    ("prefixes", "answers", "said"),
    [
        ([0], ["a"], "not lengths of prefixes"),
        ([41], ["a"], "token counts from 1 to 40"),
        ([], ["a"], "not lengths of prefixes"),
        ([3], [[]], "a continuation is empty"),
        ([3, 4], [["a"]], "one list per prefix"),
        ([3], [], "one list per prefix"),
        ([3], [[tiny.N_VOCAB]], "outside the vocabulary"),
        ([3], ["ä"], "outside the vocabulary"),
        ([40], [[5] * 89], "longer than the context"),
    ],
)
def test_bad_input_is_refused_in_words(prefixes, answers, said: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.score_branches(tiny.model(), CHAIN, prefixes, answers)


def test_edits_that_fit_no_branch_are_refused() -> None:
    model, value = tiny.model(), torch.zeros(40, 32)
    patch = wb.Intervention("custom", "set", {"L1.resid_post": {"value": value}})
    with pytest.raises(wb.WorkbenchError, match="sets a value per position"):
        wb.score_branches(model, CHAIN, PREFIXES, ANSWERS, [patch])
    with pytest.raises(wb.WorkbenchError, match="covered no position"):
        wb.score_branches(model, CHAIN, [5, 6], ANSWERS, [shift("L1.mlp_out", "span(30, 40)")])
    assert all(not m._forward_hooks for m in model.hf.modules())


def test_the_shipped_model() -> None:
    scores = check(wb.load("reasoner", proof=False))
    assert scores.forwards == 1 and scores.note == ""

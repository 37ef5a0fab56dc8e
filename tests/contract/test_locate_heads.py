"""Heads, attention and sinks: planted heads are found, and what each file promises of its numbers holds."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache, partial
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench import locate
from workbench.locate import attending, attention_flow, positional_symbolic, sinks
from workbench.locate import token_alignment_heads as tah
from workbench.patching.cases import cases_of
from workbench.tensors import Trace

N_POS, N_CODE, D, D_HEAD = 24, 16, 96, 48
CODES = slice(N_POS, N_POS + N_CODE)
SLOT = slice(N_POS + N_CODE, N_POS + 2 * N_CODE)
SHARP = 4000.0
Maps = list[tuple[slice, slice, float]]
"""Parts of the stream that a head's query, key or value copies into parts of its own space."""


def planted(heads: dict[tuple[int, int], dict[str, Any]], n_layers: int = 2) -> wb.Model:
    """A GPT-2 whose stream holds position, token code and a slot, with these heads and no other.

    Heads that are not given have zero queries, so that they attend evenly, and write nothing.
    """
    hf: Any = tiny.module("gpt2", n_embd=D, n_layer=n_layers, n_head=2, n_positions=N_POS)
    draw = torch.Generator().manual_seed(0)
    codes = torch.stack(
        [
            torch.ones(N_CODE).index_fill(0, torch.randperm(N_CODE, generator=draw)[:8], -1)
            for _ in range(tiny.N_VOCAB)
        ]
    )
    assert len(codes.unique(dim=0)) == tiny.N_VOCAB
    with torch.no_grad():
        for p in hf.parameters():
            p.zero_()
        for name, p in hf.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                p.fill_(1)
        hf.transformer.wte.weight[:, CODES] = codes
        hf.transformer.wpe.weight[:, :N_POS] = torch.eye(N_POS)
        for (layer, head), how in heads.items():
            _plant(hf.transformer.h[layer].attn, head, **how)
    return wb.load(hf, tiny.tokenizer(), proof=False)  # idle heads move no logits


def _plant(
    attn: Any, head: int, q: Maps, k: Maps, out: slice | None = None, turn: Any = None
) -> None:
    """`turn`: position -> the position its query looks for. `out`: where the token's code is written."""
    start = head * D_HEAD
    for offset, maps in ((0, q), (D, k)):
        for into, part, factor in maps:
            size = part.stop - part.start
            weight = torch.eye(size) * factor
            if turn is not None and offset == 0 and part == slice(0, N_POS):
                weight = torch.zeros(size, size)
                for i in range(size):
                    weight[i, turn(i)] = factor
            columns = slice(offset + start + into.start, offset + start + into.stop)
            attn.c_attn.weight[part, columns] = weight
    if out is not None:
        values = slice(2 * D + start, 2 * D + start + N_CODE)
        attn.c_attn.weight[CODES, values] = torch.eye(N_CODE)
        attn.c_proj.weight[start : start + N_CODE, out] = torch.eye(N_CODE) * 0.3


POSITION, CODE = slice(0, N_POS), slice(N_POS, N_POS + N_CODE)
"""Parts of a head's own space."""


def looks_at(turn: Callable[[int], int], out: slice | None = None) -> dict[str, Any]:
    every = slice(0, N_POS)
    return dict(q=[(POSITION, every, SHARP)], k=[(POSITION, every, 1.0)], out=out, turn=turn)


def previous(i: int) -> int:
    return max(0, i - 1)


SAME = dict(
    q=[(CODE, CODES, SHARP), (POSITION, slice(0, N_POS), -20 * SHARP)],
    k=[(CODE, CODES, 1.0), (POSITION, slice(0, N_POS), 1.0)],
)
"""Attends to the same code, but not to its own position."""
INDUCTION = dict(q=[(CODE, CODES, SHARP)], k=[(CODE, SLOT, 1.0)])


@cache
def circuit() -> wb.Model:
    """0.1 looks one back and copies the code it finds; 1.0 is the induction head, 1.1 finds equals."""
    return planted({(0, 1): looks_at(previous, SLOT), (1, 0): INDUCTION, (1, 1): SAME})


TEXTS = ("abcdefgabcdefg", "xyxz1xy", "q*w*e*")


def found_on(method: Any, prompts: Any = TEXTS, model: Any = None, **handed: Any) -> Any:
    return locate.find(method, model or circuit(), prompts, progress=False, **handed)


PLANTED = {
    "previous_token_heads": (0, 1),
    "duplicate_token_heads": (1, 1),
    "induction_heads": (1, 0),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_head_is_the_best_and_heads_that_do_nothing_are_at_chance(name: str) -> None:
    made = found_on(name)
    best = made.top(1).iloc[0]
    assert (best["layer"], best["head"]) == PLANTED[name]
    assert best["mean"] > 0.98
    grid, level = made.grid(), made.provenance["reference"]["chance"]
    assert 0.01 < level < 0.5
    assert grid[0, 0] == pytest.approx(level, abs=1e-5)  # even attention
    assert made.grid("over chance")[0, 0] == pytest.approx(0, abs=1e-5)


def test_each_score_tells_the_planted_heads_apart() -> None:
    scores = {name: found_on(name).grid() for name in PLANTED}
    for name, place in PLANTED.items():
        for other, elsewhere in PLANTED.items():
            if other != name:
                assert scores[name][place] > 0.9 > 0.5 > scores[name][elsewhere]


def test_induction_needs_the_head_below_it() -> None:
    """The cause, by an edit: without the previous-token head the induction head finds nothing."""
    model = circuit()
    edit = found_on("previous_token_heads").edit(layer=0, head=1)
    without = lambda *a, **k: model.run(*a, **k, edits=[edit], logits="none")  # noqa: E731
    assert found_on("induction_heads", run=without).grid()[1, 0] < 0.3


def test_induction_on_the_prompts_is_their_own_repetition() -> None:
    made = found_on(locate.InductionHeads(on="prompts"))
    assert made.grid()[1, 0] > 0.98
    assert made.provenance["n_cases"] == 3
    assert found_on("induction_heads").provenance["n_cases"] == 16


def test_a_token_behind_its_equal_is_no_induction() -> None:
    """In `aa` what followed the first a is the second itself, which proves nothing."""
    with pytest.raises(wb.WorkbenchError, match="something followed"):
        found_on(locate.InductionHeads(on="prompts"), ["aa"])
    assert np.isfinite(found_on(locate.InductionHeads(on="prompts"), ["aab.a"]).grid()).all()


def test_padding_that_has_a_token_s_id_is_no_repetition() -> None:
    cases = cases_of(circuit(), ["abcab", "ab"])
    ids = cases.clean.ids.clone()
    ids[1, ~cases.clean.mask[1]] = ids[1, -1]  # as where the end of sequence pads
    tokens = wb.tensors.Tokens(
        ids, cases.clean.mask, cases.clean.prompts, cases.clean.prompt_lengths
    )
    for method in (locate.DuplicateTokenHeads(), locate.InductionHeads(on="prompts")):
        values = found_on(method, locate.Cases(tokens)).scores.values["attention"]
        assert bool(values[0].isfinite().all()) and bool(values[1].isnan().all())


def test_what_a_backend_leaves_in_padding_counts_for_nothing() -> None:
    def change(site: str, value: Tensor) -> Tensor:
        value = value.clone()
        value[1, :, :3] = math.nan  # rows of padding
        value[1, :, 3:, :3] = 0.25
        return value

    model, prompts = tiny.model(), ["abcabc", "aba"]
    run = fake_run(real_run(model), change)
    for name in ("previous_token_heads", "duplicate_token_heads", "attention_flow"):
        odd, plain = found_on(name, prompts, model, run=run), found_on(name, prompts, model)
        for measure in plain.measures:
            np.testing.assert_array_equal(odd.grid(measure), plain.grid(measure))


@pytest.mark.parametrize("name", PLANTED)
def test_few_cases_at_a_time_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = found_on(name).grid()
    monkeypatch.setattr(attending, "ROOM", 1)
    np.testing.assert_allclose(found_on(name).grid(), at_once, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        locate.TokenAlignmentHeads(masked=1, replace_by="mean"),
        locate.AttentionFlow(value_norms=True),
        locate.Sinks(),
        locate.PositionalSymbolic(blocks=3),
        locate.AttentionKnockout(window=2),
    ],
    ids=lambda method: type(method).__name__,
)
def test_whatever_fits_into_memory_is_the_same(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tiny.tokenizer()("cba", add_special_tokens=False)["input_ids"]
    texts = ("abcd", "cbx.y")
    prompts = [wb.Prompt(text, answer="a", meta={"completion": ids}) for text in texts]
    at_once = found_on(method, prompts, tiny.model())
    monkeypatch.setattr(attending, "ROOM", 1)
    singly = found_on(method, prompts, tiny.model())
    np.testing.assert_allclose(singly.grid(), at_once.grid(), atol=1e-5)
    if "masked" in at_once.also:
        ours, theirs = at_once.also["masked"], singly.also["masked"]
        for measure in ("zero", "mean"):
            np.testing.assert_allclose(ours.grid(measure), theirs.grid(measure), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "prompts", "said"),
    [
        (locate.DuplicateTokenHeads(), ["abc"], "repeated token"),
        (locate.PreviousTokenHeads(), ["<bos>"], "before another"),
        (lambda: locate.InductionHeads(length=1), None, "no random sequences"),
        (lambda: locate.PositionalSymbolic(blocks=1), None, "no pair"),
        (locate.PositionalSymbolic(), ["abcd"], "too short"),
        (lambda: locate.Sinks(tau=1.5), None, "no share"),
        (locate.Sinks(), ["<bos>"], "single token"),
        (lambda: locate.AttentionKnockout(window=0), None, "cuts no layer"),
        (lambda: locate.AttentionKnockout(rows="everywhere"), None, "unknown"),
        (
            locate.AttentionKnockout(rows="span(50, 60)"),
            [wb.Prompt("ab", answer="a")],
            "no position",
        ),
        (lambda: locate.TokenAlignmentHeads(masked=-1), None, "less than nothing"),
        (lambda: locate.TokenAlignmentHeads(max_new_tokens=0), None, "less than nothing"),
    ],
)
def test_what_cannot_be_done_is_said(method: Any, prompts: Any, said: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=said):
        found_on(method() if prompts is None else method, prompts)


@pytest.mark.parametrize(
    ("method", "option"),
    [
        (locate.InductionHeads(), "on"),
        (locate.AttentionKnockout(), "metric"),
        (locate.TokenAlignmentHeads(), "copies"),
        (locate.TokenAlignmentHeads(), "replace_by"),
    ],
)
def test_an_unknown_word_is_answered_with_the_known_ones(method: Any, option: str) -> None:
    object.__setattr__(method, option, "nothing")  # past the check of types that only tests have
    with pytest.raises(wb.WorkbenchError, match=option):
        method.__post_init__()


# token alignment

SENTENCE = "7b2c9x"
N_PROMPT = 1 + len(SENTENCE)


def reversing(step: int) -> int:
    """The position that step `step` of the reversed sentence comes from."""
    return N_PROMPT - 1 - step


def predicting(row: int) -> int:
    """What a reversing head looks for: row n - 1 + t predicts step t."""
    return reversing(row - N_PROMPT + 1) if row >= N_PROMPT - 1 else 0


@cache
def reverser() -> wb.Model:
    return planted({(1, 1): looks_at(lambda i: min(max(predicting(i), 0), N_POS - 1))})


def reversed_prompts(**meta: Any) -> list[wb.Prompt]:
    ids = tiny.tokenizer()(SENTENCE[::-1], add_special_tokens=False)["input_ids"]
    more = "abcdef"
    other = tiny.tokenizer()(more[::-1], add_special_tokens=False)["input_ids"]
    return [
        wb.Prompt(SENTENCE, meta={"completion": ids, **meta}),
        wb.Prompt(more, meta={"completion": other, **meta}),
    ]


def test_a_permutation_head_scores_one_and_even_heads_score_chance() -> None:
    made = found_on("token_alignment_heads", reversed_prompts(), reverser())
    assert made.grid()[1, 1] == 1
    chance = made.provenance["reference"]["chance"]
    assert chance == pytest.approx(1 / N_PROMPT)
    assert made.grid()[0, 0] == pytest.approx(chance, abs=1e-6)
    steps = made.also["steps"].grid()
    assert steps.shape == (2, 2, len(SENTENCE)) and (steps[1, 1] == 1).all()


def test_one_row_late_the_planted_head_falls_to_chance() -> None:
    made = found_on("token_alignment_heads", reversed_prompts(), reverser())
    late = made.also["one row late"]
    assert late.grid()[1, 1] <= made.provenance["reference"]["chance"] + 1e-6
    assert made.grid()[1, 1] == 1


def test_alignments_come_from_the_prompt_where_it_has_them() -> None:
    right = {t: reversing(t) for t in range(len(SENTENCE))}
    wrong = {str(t): t for t in range(2)}
    prompts = reversed_prompts(alignment=right)
    assert found_on("token_alignment_heads", prompts, reverser()).grid()[1, 1] == 1
    half = {t: reversing(t) for t in (0, 3)}
    made = found_on("token_alignment_heads", reversed_prompts(alignment=half), reverser())
    assert made.grid()[1, 1] == 1  # of the steps that have a gold
    made = found_on("token_alignment_heads", reversed_prompts(alignment=wrong), reverser())
    assert made.grid()[1, 1] == 0
    assert np.isnan(made.also["steps"].grid()[:, :, 2:]).all()


def test_a_token_that_stands_twice_has_no_gold_unless_any_counts() -> None:
    ids = tiny.tokenizer()("ab", add_special_tokens=False)["input_ids"]
    prompt = wb.Prompt("abca", meta={"completion": ids})
    steps = found_on("token_alignment_heads", [prompt]).also["steps"].grid()
    assert np.isnan(steps[..., 0]).all() and np.isfinite(steps[..., 1]).all()
    method = locate.TokenAlignmentHeads(copies="any")
    steps = found_on(method, [prompt]).also["steps"].grid()
    assert steps[0, 0, 0] == pytest.approx(2 / 5)  # even attention, two of five are gold


def test_without_a_completion_it_is_the_model_s_own() -> None:
    asked = []

    def generate(prompts: Any, **options: Any) -> list[Any]:
        asked.append((list(prompts), options))
        return [SimpleNamespace(ids=(5, 6)) for _ in prompts]

    found_on("token_alignment_heads", ["bcd", "cbe"], generate=generate)
    assert [p.text for p in asked[0][0]] == ["bcd", "cbe"]
    assert asked[0][1] == {"max_new_tokens": 24}


def test_masking_the_best_heads_is_shown_beside_random_ones() -> None:
    made = found_on(locate.TokenAlignmentHeads(masked=1), reversed_prompts(), tiny.model("gpt2"))
    masked = made.also["masked"]
    assert masked.measures == ["zero", "mean"] and masked.axes == ("heads",)
    best = made.top(1).iloc[0]
    tokens = (
        tiny.model("gpt2")
        .run(reversed_prompts(), completions=[p.meta["completion"] for p in reversed_prompts()])
        .tokens
    )
    model = tiny.model("gpt2")
    edit = made.edit(layer=best["layer"], head=best["head"])

    def logprob(*edits: Any) -> float:
        logs = model.run(tokens, edits=edits).logits.log_softmax(-1)
        logs = logs[:, -len(SENTENCE) - 1 : -1].gather(-1, tokens.ids[:, -len(SENTENCE) :, None])
        return float(logs.mean())

    row = masked.at(heads="best")
    zero = float(row[row["measure"] == "zero"]["mean"].iloc[0])
    assert zero == pytest.approx(logprob(edit) - logprob(), abs=1e-4)
    method = locate.TokenAlignmentHeads(masked=1, replace_by="mean")
    edit = found_on(method, reversed_prompts(), model).edit(layer=best["layer"], head=best["head"])
    site = f"L{best['layer']}.z"
    outputs = model.run(tokens, record=site)[site][tokens.mask][:, best["head"]].mean(0)
    torch.testing.assert_close(edit.tensors[f"{site}[head={best['head']}]"]["value"], outputs)
    mean = float(row[row["measure"] == "mean"]["mean"].iloc[0])
    assert mean == pytest.approx(logprob(edit) - logprob(), abs=1e-4)
    assert abs(mean - zero) > 1e-6
    assert "masked" not in found_on(locate.TokenAlignmentHeads(masked=0), reversed_prompts()).also


def test_random_heads_are_none_of_the_best() -> None:
    model, silent = tiny.model(), []

    def run(*arguments: Any, edits: Any = (), **options: Any) -> Trace:
        silent.append({site for edit in edits for site in edit.sites})
        return model.run(*arguments, edits=edits, **options)

    made = found_on(locate.TokenAlignmentHeads(masked=3), reversed_prompts(), model, run=run)
    best, *others = [heads for heads in silent if heads][: 1 + tah.DRAWS]
    top = made.top(3)[["layer", "head"]].itertuples(index=False)
    assert best == {f"L{layer}.z[head={head}]" for layer, head in top}
    assert all(len(heads) == 3 and not heads & best for heads in others)
    assert len({frozenset(heads) for heads in others}) > 1


def test_the_mean_output_of_a_head_leaves_padding_out() -> None:
    model, texts = tiny.model(), ("abcdefgh", "xy")
    tokens = model.tokens(list(texts))
    padding = ~tokens.mask[..., None, None]  # zero on this backend, which is no promise
    run = fake_run(real_run(model), lambda _, value: value.masked_fill(padding, 9.0))
    means = tah._mean_outputs(run, tokens, model.dims)
    outputs = [model.run(text, record="L1.z")["L1.z"][0] for text in texts]
    torch.testing.assert_close(means[1], torch.cat(outputs).mean(0))


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"alignment": {0: 40}}, "alignment"),
        ({"alignment": {-1: 2}}, "alignment"),
        ({"alignment": {"first": 2}}, "alignment"),
        ({"alignment": [2, 3]}, "alignment"),
        ({"source": (3, 99)}, "source"),
        ({"source": 3}, "source"),
        ({"completion": "text"}, "completion"),
        ({"completion": None}, "completion"),
    ],
)
def test_meta_that_does_not_fit_is_said(meta: dict[str, Any], said: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=said):
        found_on("token_alignment_heads", reversed_prompts(**meta))
    none = wb.Prompt("abc", meta={"completion": [50]})
    with pytest.raises(wb.WorkbenchError, match="no token of any continuation"):
        found_on("token_alignment_heads", [none])


def test_ties_are_shared() -> None:
    rows = torch.tensor([0.4, 0.4, 0.1, 0.1]).reshape(1, 1, 1, 1, 4)
    gold = torch.tensor([[[False, True, False, False]]])
    source = torch.ones(1, 4, dtype=torch.bool)
    hit, held = tah.alignment(rows, gold, source)
    assert float(hit) == 0.5 and float(held) == pytest.approx(0.4)
    source[0, 0] = False
    assert float(tah.alignment(rows, gold, source)[0]) == 1


# positional and symbolic

N_CONTEXT, M = 32, 8
PAIRS = torch.tensor(list(combinations(range(M), 2)))


def swapped(head: Callable[[Tensor, Tensor], Tensor], seed: int = 0) -> dict[str, float]:
    """The scores of a head given as `logits(contents, positions)`, both `[32, ...]`."""
    draw = torch.Generator().manual_seed(seed)
    contents = torch.randn(N_CONTEXT, 6, generator=draw)
    blocks = torch.arange(N_CONTEXT).reshape(M, -1)

    def means(order: Tensor) -> Tensor:
        return head(contents[order], torch.arange(N_CONTEXT)).softmax(0)[blocks].mean(-1)

    after = []
    for i, j in PAIRS.tolist():
        order = torch.arange(N_CONTEXT)
        order[blocks[i]], order[blocks[j]] = blocks[j], blocks[i]
        after.append(means(order))
    found = positional_symbolic.swap_scores(
        means(torch.arange(N_CONTEXT)), torch.stack(after), PAIRS
    )
    return {name: float(value) for name, value in found.items()}


QUERY = torch.tensor([1.5, -1.0, 0.7, 2.0, -0.4, 1.1])


def by_content(x: Tensor, _: Tensor) -> Tensor:
    return x @ QUERY


def by_position(_: Tensor, at: Tensor) -> Tensor:
    return 2.0 * torch.sin(0.9 * at)


def test_a_head_without_positions_is_symbolic() -> None:
    found = swapped(by_content)
    assert found["symbolic"] == pytest.approx(1, abs=1e-6)
    assert found["positional"] < 0.8 and found["flat"] == 0


def test_a_head_blind_to_content_is_positional() -> None:
    found = swapped(by_position)
    assert found["positional"] == pytest.approx(1, abs=1e-6)
    assert found["symbolic"] < 0.8 and found["flat"] == 0


def test_an_even_head_is_both_and_is_flagged() -> None:
    found = swapped(lambda x, at: 0.0 * at)
    assert found["positional"] == found["symbolic"] == pytest.approx(1, abs=1e-6)
    assert found["flat"] == 1 and found["difference"] == 0


def test_a_head_of_both_is_neither() -> None:
    found = swapped(lambda x, at: by_content(x, at) + 1.5 * by_position(x, at))
    assert found["positional"] < 0.98 and found["symbolic"] < 0.98


def test_a_weak_head_looks_like_both_which_the_flag_says() -> None:
    found = swapped(lambda x, at: 0.1 * by_content(x, at))
    assert found["symbolic"] == pytest.approx(1, abs=1e-6)
    assert found["positional"] > 0.95 and found["flat"] == 1


def test_planted_heads_go_by_position_and_by_content() -> None:
    soft = {"q": [(CODE, CODES, 0.5)], "k": [(CODE, CODES, 1.0)]}
    back = {(0, 0): looks_at(lambda i: max(0, i - 6)), (0, 1): soft}
    made = found_on("positional_symbolic", ["abcdefghijklmnopqb"], planted(back, 1))
    assert made.grid("positional")[0, 0] == pytest.approx(1, abs=1e-5)
    assert made.grid("symbolic")[0, 0] < 0.9
    assert made.grid("symbolic")[0, 1] == pytest.approx(1, abs=1e-5)
    assert made.grid("positional")[0, 1] < 0.9
    assert (made.grid("flat") == 0).all()


def test_a_swap_of_equal_blocks_counts_for_nothing() -> None:
    """`zz` in both places: the prompt stays what it was, which would pass for a positional head."""
    made = found_on(locate.PositionalSymbolic(blocks=2), ["azazb", "azbcx"], circuit())
    values = made.scores.values["positional"]
    assert bool(values[0].isnan().all()) and bool(values[1].isfinite().all())


def test_swaps_are_those_of_the_prompt_s_own_text() -> None:
    """All of it by hand, on the shorter of two prompts: 2 blocks of "ab" and "cd" before the last."""
    method, model = locate.PositionalSymbolic(blocks=2), tiny.model()
    made = found_on(method, ["xyzuvwrst", "abcde"], model)
    before, after = (
        run[0, :, -1, [1, 2, 3, 4]].unflatten(-1, (2, 2)).mean(-1)  # behind the first token
        for run in (model.run(t, record="L1.pattern")["L1.pattern"] for t in ("abcde", "cdabe"))
    )
    for name, turned in (("positional", before), ("symbolic", before.flip(-1))):
        expected = torch.nn.functional.cosine_similarity(after, turned, dim=-1)
        torch.testing.assert_close(made.scores.values[name][1, 1], expected)


# knockout

KNOCKED = dict(clean=["ab cab cab c", "de fde fde f"], corrupted=["ab cxb cab c", "de fye fde f"])


def knocked(**options: Any) -> Any:
    cases = wb.prompts.counterfactuals(**KNOCKED, answers=["a", "d"])
    return found_on(locate.AttentionKnockout(**options), cases, tiny.model())


def test_a_cut_row_sums_to_one_and_has_nothing_on_the_cut_keys() -> None:
    edit = knocked(window=3).edit(layer=1, pos=4)
    patterns = (
        tiny.model().run(KNOCKED["clean"], record="L*.pattern", edits=[edit]).stack("pattern")
    )
    plain = tiny.model().run(KNOCKED["clean"], record="L*.pattern").stack("pattern")
    torch.testing.assert_close(patterns.sum(-1), torch.ones_like(patterns.sum(-1)))
    assert bool((patterns[..., -1, 4] == 0).all()) and bool((plain[..., -1, 4] > 0).all())
    torch.testing.assert_close(patterns[..., :-1, :], plain[..., :-1, :])
    rest = [i for i in range(13) if i != 4]
    kept = plain[0, ..., -1, rest] / plain[0, ..., -1, rest].sum(-1, keepdim=True)
    torch.testing.assert_close(patterns[0, ..., -1, rest], kept)


@pytest.mark.parametrize("metric", ["logprob", "probability", "logit_difference"])
def test_the_edit_of_a_place_gives_the_change_on_the_map(metric: Any) -> None:
    made = knocked(metric=metric, window=2)
    cases = cases_of(tiny.model(), wb.prompts.counterfactuals(**KNOCKED, answers=["a", "d"]))
    read = lambda *edits: cases.metric(  # noqa: E731
        tiny.model().run(cases.clean, edits=edits).logits[:, -1], metric
    )
    edit = made.edit(layer=1, pos=3)
    assert edit.sites == ("L1.attn_scores", "L2.attn_scores")
    change = float((read(edit) - read()).mean())
    assert made.grid()[1, 3] == pytest.approx(change, abs=1e-6)
    assert abs(change) > 1e-7


@pytest.mark.parametrize(
    ("window", "layer", "cut"),
    [(1, 1, [1]), (2, 0, [0, 1]), (2, 2, [2]), (3, 0, [0, 1]), (3, 1, [0, 1, 2]), (None, 0, [0])],
)
def test_a_window_is_centred_and_ends_with_the_model(
    window: int | None, layer: int, cut: list[int]
) -> None:
    edit = locate.AttentionKnockout(window=window).cut(layer, (1, 2), tiny.model().dims)
    assert list(edit.sites) == [f"L{i}.attn_scores" for i in cut]


def test_named_spans_stand_beside_random_ones() -> None:
    model = tiny.model()
    meta = [{"spans": {"word": (1, 3), "end": (9, 12)}}, {"spans": {"word": (4, 6)}}]
    prompts = [
        wb.Prompt(text, answer=answer, meta=m)
        for text, answer, m in zip(KNOCKED["clean"], "ad", meta, strict=True)
    ]
    made = found_on("attention_knockout", prompts, model)
    assert made.axes == ("layer", "span") and made.scores.axes[1].labels == ("word", "end")
    values = made.scores.values["change"]
    assert bool(values[1, :, 1].isnan().all()) and bool(values[:, :, 0].isfinite().all())
    control = made.also["random span"].scores.values["change"]
    assert control.shape == values.shape and not torch.equal(control, values)
    with pytest.raises(wb.WorkbenchError, match="not at the same positions"):
        made.edit(layer=0, span="word")
    assert made.edit(layer=0, span="end").params["keys"] == "span(9, 12)"


def test_cases_with_spans_of_their_own_run_together_and_as_if_alone() -> None:
    """One forward per layer and name, whatever the spans; a map of one case is a row of that of all."""
    model, runs = tiny.model(), []
    spans = [{"word": (1, 3), "end": (4, 6)}, {"word": (5, 9)}, {"word": (1, 3)}]
    prompts = [
        wb.Prompt(text, answer="a", meta={"spans": own})
        for text, own in zip(("abcdef", "de fde fde f", "xyzxyz"), spans, strict=True)
    ]

    def run(*arguments: Any, **options: Any) -> Trace:
        runs.append(len(arguments[0]))
        return model.run(*arguments, **options)

    made = found_on("attention_knockout", prompts, model, run=run)
    assert runs == [3] * (1 + 2 * 2 * model.n_layers)  # whole, and two names with their controls
    for row, prompt in enumerate(prompts):
        alone = found_on("attention_knockout", [prompt], model)
        for ours, theirs in ((made, alone), (made.also["random span"], alone.also["random span"])):
            columns = slice(0, len(theirs.scores.axes[1].labels))
            torch.testing.assert_close(
                ours.scores.values["change"][row, :, columns],
                theirs.scores.values["change"][0],
                atol=1e-5,
                rtol=1e-4,
                equal_nan=True,
            )
    edit = made.edit(layer=1, span="end")
    logs = model.run(prompts[0], edits=[edit]).logits[0, -1].log_softmax(-1)
    plain = model.run(prompts[0]).logits[0, -1].log_softmax(-1)
    answer = tiny.tokenizer().convert_tokens_to_ids("a")
    change = float(made.scores.values["change"][0, 1, 1])
    assert change == pytest.approx(float(logs[answer] - plain[answer]), abs=1e-5)
    assert abs(change) > 1e-6


def test_the_random_span_is_each_prompt_s_own_and_never_the_span_itself() -> None:
    knockout = importlib.import_module("workbench.locate.attention_knockout")
    tokens = tiny.model().tokens([f"abcdefgh{last}klmnop" for last in "0123456789"])
    drawn = [knockout._elsewhere(tokens, row, [(3, 6), None], 0) for row in range(10)]
    assert len({own[0] for own in drawn}) > 2 and all(own[1] is None for own in drawn)
    for (start, stop), _ in drawn:
        assert stop - start == 3 and (stop <= 3 or start >= 6) and start >= 1 and stop < 16
    other = [knockout._elsewhere(tokens, row, [(3, 6), None], 1) for row in range(10)]
    assert other != drawn
    assert knockout._elsewhere(tokens, 0, [(2, 14)], 0) == [None]  # no room


@pytest.mark.parametrize("spans", [[(1, 2)], {"all": 3}, {"all": (1.5, 3)}, {"all": (1, 2, 3)}])
def test_spans_that_are_no_named_pairs_are_refused(spans: Any) -> None:
    prompt = wb.Prompt(KNOCKED["clean"][0], answer="a", meta={"spans": spans})
    with pytest.raises(wb.WorkbenchError, match="span"):
        found_on("attention_knockout", [prompt], tiny.model())


@pytest.mark.parametrize("span", [(0, 13), (5, 5), (9, 40)])
def test_a_span_that_is_no_part_of_the_prompt_is_refused(span: Any) -> None:
    prompt = wb.Prompt(KNOCKED["clean"][0], answer="a", meta={"spans": {"all": span}})
    with pytest.raises(wb.WorkbenchError, match="no part of the prompt"):
        found_on("attention_knockout", [prompt], tiny.model())


def test_the_planted_head_s_key_is_the_one_that_matters() -> None:
    """The last position reads one position alone: cutting that changes the answer, cutting others not."""
    model = planted({(0, 0): looks_at(lambda i: max(0, i - 4), SLOT)}, 1)
    cases = wb.prompts.counterfactuals(
        clean=["abcdefgh"], corrupted=["abcdefgx"], answers="d", foils="x"
    )
    with torch.no_grad():  # what the head writes is read as the token it came from
        hf: Any = model.hf
        attn = hf.transformer.h[0].attn
        attn.c_proj.weight[:N_CODE, CODES] = torch.eye(N_CODE) * 3
    made = found_on(locate.AttentionKnockout(metric="logit_difference"), cases, model)
    changes = made.grid()[0]
    assert changes.argmin() == 4 and changes[4] < -0.1
    others = np.delete(changes, 4)
    assert np.abs(others).max() < 1e-4


# flow


def test_rows_of_attention_and_of_rollout_sum_to_one() -> None:
    prompts = ["abcdefgh", "abc"]
    made = found_on(locate.AttentionFlow(value_norms=True), prompts, tiny.model())
    assert made.measures == ["attention", "rollout", "value-weighted"]
    for measure, values in made.scores.values.items():
        sums = values.nan_to_num(0).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), msg=measure)
    assert bool(made.scores.values["rollout"][1, :, :5].isnan().all())


def test_rollout_follows_a_chain_of_heads() -> None:
    """One back per layer: after three layers the mass is binomial over how many steps it took."""
    width = 5
    heads = torch.zeros(width, width)
    heads[0, 0] = 1
    for i in range(1, width):
        heads[i, i - 1] = 1
    found = attention_flow.rollout(heads.expand(3, -1, -1))
    expected = torch.tensor([0, 1, 3, 3, 1]) / 8
    torch.testing.assert_close(found[2, -1], expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, width))
    torch.testing.assert_close(attention_flow.rollout(heads[None], stream=0.0)[0], heads)


def test_rollout_multiplies_upper_layers_from_the_left() -> None:
    draw = torch.Generator().manual_seed(0)
    heads = torch.rand(2, 4, 4, generator=draw).tril()
    heads = heads / heads.sum(-1, keepdim=True)
    mixed = (heads + torch.eye(4)) / 2
    torch.testing.assert_close(attention_flow.rollout(heads)[1], mixed[1] @ mixed[0])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_flow_is_what_loops_over_heads_and_keys_give(family: str) -> None:
    """On a padded row; a query head takes the values of its own group of key-value heads."""
    model, text = tiny.model(family), "abc?d"
    made = found_on(locate.AttentionFlow(value_norms=True), ["abcdefgh", text], model)
    seen = model.run(text, record=["L*.pattern", "L*.v"])
    pattern, values = seen.stack("pattern")[:, 0], seen.stack("v")[:, 0]
    layers, heads, width, _ = pattern.shape
    group = heads // model.dims.n_kv_heads
    carried, through = torch.zeros(layers, width), torch.eye(width)
    for layer in range(layers):
        for head in range(heads):
            for k in range(width):
                norm = values[layer, k, head // group].norm()
                carried[layer, k] += pattern[layer, head, -1, k] * norm
        through = (pattern[layer].mean(0) + torch.eye(width)) / 2 @ through
        rolled = made.scores.values["rollout"][1, layer, -width:]
        torch.testing.assert_close(rolled, through[-1])
    expected = carried / carried.sum(-1, keepdim=True)
    torch.testing.assert_close(made.scores.values["value-weighted"][1, :, -width:], expected)


def test_attention_is_the_model_s_own() -> None:
    made = found_on("attention_flow", ["abcdefgh", "abc"], tiny.model())
    alone = tiny.model().run("abc", record="L1.pattern")["L1.pattern"][0, :, -1].mean(0)
    torch.testing.assert_close(made.scores.values["attention"][1, 1, 5:], alone)


# sinks


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 100.0])
@pytest.mark.parametrize("shape", [(6, 16), (16, 6), (9, 9), (2, 5)])
def test_the_bounds_hold_on_any_matrix(scale: float, shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(int(scale * 10) + shape[0])
    x = torch.randn(50, *shape, generator=draw).double()
    x[:, 0] *= scale
    for name, slack in sinks.bounds(x.float()).items():
        assert float(slack.min()) > -1e-9, name
    # the spectral ones as the paper writes them
    sigma = torch.linalg.svdvals(x).square()
    m, others = x[:, 0].square().sum(-1), x[:, 1:]
    r = others.square().sum((-2, -1))
    cosine = torch.nn.functional.cosine_similarity(others, x[:, :1], dim=-1)
    alpha = (others.square().sum(-1) * cosine.square()).sum(-1) / r
    c = m / r
    assert bool((sigma[:, 0] >= (m + alpha * r) * (1 - 1e-12)).all())
    rest = sigma[:, 1:].sum(-1)
    assert bool((sigma[:, 0] / rest >= (c + alpha) / (1 - alpha) * (1 - 1e-9)).all())
    shares = sinks.spectrum(x.float())
    torch.testing.assert_close(shares, sigma / sigma.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_entropy_knows_its_ends_and_no_scale() -> None:
    assert float(sinks.entropy(sinks.spectrum(torch.eye(5)))) == pytest.approx(math.log(5))
    one = torch.ones(4, 7)
    assert float(sinks.entropy(sinks.spectrum(one))) == pytest.approx(0, abs=1e-6)
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    h = sinks.entropy(sinks.spectrum(x))
    torch.testing.assert_close(sinks.entropy(sinks.spectrum(1e4 * x)), h, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sinks.entropy(sinks.spectrum(1e-4 * x)), h, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("factor", "ratio"), [(1.0, 4 / 2.5), (10.0, 40 / 2.5)])
def test_the_norm_ratio_is_to_the_middle_of_all_norms(factor: float, ratio: float) -> None:
    stream = torch.tensor([4.0 * factor, 1.0, 2.0, 3.0])[None, :, None].expand(-1, -1, 9)
    found = sinks._measures(stream, torch.zeros(1))
    assert float(found["norm ratio"]) == pytest.approx(ratio)
    assert float(found["first norm"]) == pytest.approx(12.0 * factor)


def test_massive_activations_are_large_in_both_ways() -> None:
    x = torch.ones(3, 40)
    x[0, 3] = 1001.0
    assert float(sinks.massive(x)) == 1
    assert float(sinks.massive(x * 0.09)) == 0  # not above 100
    assert float(sinks.massive(x * 1e3)) == 1
    x[0, 3] = 900.0  # not a thousand times the median
    assert float(sinks.massive(x)) == 0


def fake_run(real: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
    """A run whose recorded values went through `change`."""

    def run(*arguments: Any, **options: Any) -> Trace:
        trace = real(*arguments, **options)
        values = {site: change(site, value) for site, value in trace.values.items()}
        return Trace(trace.tokens, trace.logits, values, trace.receipts)

    return run


def real_run(model: Any) -> Any:
    return partial(model.run, logits="none")


PLAIN = ["abcdefgh", "ij klm nop q"]


def test_a_planted_first_token_drops_entropy_and_the_rest_restores_it() -> None:
    model = tiny.model()

    def plant(factor: float) -> Any:
        def change(site: str, value: Tensor) -> Tensor:
            if not site.startswith("L1.resid_post"):
                return value
            value = value.clone()
            for row, first in enumerate((value.shape[1] - 9, 0)):
                value[row, first] *= factor
            return value

        return found_on("sinks", PLAIN, model, run=fake_run(real_run(model), change))

    plain, huge = found_on("sinks", PLAIN, model), plant(100.0)
    assert huge.grid("entropy share")[1] < 0.1 < 0.3 < plain.grid("entropy share")[1]
    ratio = huge.grid("norm ratio")[1] / plain.grid("norm ratio")[1]
    assert ratio == pytest.approx(100, rel=0.05)
    np.testing.assert_allclose(plant(1.0).grid(), plain.grid(), atol=1e-6)
    for made in (plain, huge):
        for measure in made.also["bounds"].measures:
            assert made.also["bounds"].grid(measure).min() > -1e-6


def test_the_sink_rate_counts_heads_above_tau() -> None:
    """Half of the heads give the first token 0.5 of each later row, the others what the model does."""
    model = tiny.model()

    def change(site: str, value: Tensor) -> Tensor:
        if not site.endswith("pattern"):
            return value
        value = value.clone()
        value[:, :] = 0.01
        for row, first in enumerate((value.shape[-1] - 9, 0)):
            value[row, :2, :, first] = 0.5
            value[row, :, first] = 1.0  # the first row does not count
        return value

    run = fake_run(real_run(model), change)
    assert (found_on("sinks", PLAIN, model, run=run).grid("sink rate") == 0.5).all()
    between = found_on(locate.Sinks(tau=0.53), PLAIN, model, run=run)
    assert (
        between.grid("sink rate") == 0
    ).all()  # with its own first row it would be 0.54 and more
    high = found_on(locate.Sinks(tau=0.6), PLAIN, model, run=run)
    assert (high.grid("sink rate") == 0).all()
    assert "tau = 0.6" in high.scores.caption and high.provenance["options"]["tau"] == 0.6


def test_the_edit_drops_what_the_mlp_writes_to_the_first_token_alone() -> None:
    model = tiny.model()
    edit = found_on("sinks", PLAIN, model).edit(layer=1)
    sites = ["L1.resid_mid", "L1.resid_post"]
    plain, cut = model.run(PLAIN, record=sites), model.run(PLAIN, record=sites, edits=[edit])
    for row, first in enumerate((len(PLAIN[1]) - len(PLAIN[0]), 0)):
        torch.testing.assert_close(
            cut["L1.resid_post"][row, first], plain["L1.resid_mid"][row, first]
        )
        torch.testing.assert_close(
            cut["L1.resid_post"][row, first + 1 :], plain["L1.resid_post"][row, first + 1 :]
        )
    assert not torch.equal(cut["L1.resid_post"], plain["L1.resid_post"])

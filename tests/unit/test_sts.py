"""Shift dimensions and the transferability score: planted, against plain loops, and refused in words."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench import sae
from workbench.errors import PromptError, UnknownName, WorkbenchError
from workbench.model.tokens import encode
from workbench.records import Prompt
from workbench.sae.reading import Part
from workbench.sae.transfer import paired
from workbench.sae.transfer import shifts as transfer
from workbench.sae.transfer.paired import Setting
from workbench.sae.transfer.raw import Coordinates
from workbench.sae.transfer.shifts import Shift, overlap

SITE = "L1.resid_post"
QUERIES = ["add 12 34?\n", "sub 9 4?\n", "mul 3 3?\n", "max 1 7?\n"]
SHOWN = [
    Prompt(text="add 2 2?\n", answer="4", meta={"completion": "2+2+0=4\n#4"}),
    Prompt(text="add 1 5?\n", answer="6"),
]


@dataclass(frozen=True, eq=False, repr=False)
class Small(Coordinates):
    """Forty random ReLU features, made in memory; the first five are 0 everywhere."""

    factor: float = 1.0

    @property
    def n_features(self) -> int:
        return 40

    def _encode(self, rows: Tensor) -> Tensor:
        weight = torch.randn(32, 40, generator=torch.Generator().manual_seed(0))
        weight[:, :5] = 0
        return self.factor * torch.relu(rows.float() @ weight)


def small(**changes: Any) -> Small:
    model = tiny.model()
    made: Any = Small(None, SITE, SITE, model.fingerprint, "small", width=32, at=model.device)
    return replace(made, **changes)


def shift(**options: Any) -> Shift:
    given = {"queries": QUERIES, "demonstrations": SHOWN, "progress": False, "n": 5} | options
    queries, shown = given.pop("queries"), given.pop("demonstrations")
    return sae.shift_dims(small(), tiny.model(), queries, shown, **given)


def rows_of(text: str) -> Tensor:
    """Codes of every token of a text but its first special one, from a run of its own."""
    trace = tiny.model().run([text], [SITE], logits="none")
    return small().encode(trace[SITE][0, 1:])


BEFORE = "add 2 2?\n2+2+0=4\n#4\nadd 1 5?\n6\n"


# planted shifts


def planted(monkeypatch: pytest.MonkeyPatch, moved: Tensor, scale: Tensor, before: str) -> None:
    """Codes that are noise of each token's own, plus `moved` behind demonstrations."""

    def stream(_dictionary: Any, model: Any, prompts: Any, **options: Any) -> Iterator[Part]:
        for i, prompt in enumerate(prompts):
            text = prompt.text.removeprefix(before)
            n = options["last"][i] if options["last"] else len(prompt.text)
            seed = zlib.crc32((text if options["last"] else prompt.text).encode())
            noise = (
                torch.randn(n, len(scale), generator=torch.Generator().manual_seed(seed)) * scale
            )
            codes = noise + moved * (text != prompt.text)
            one = torch.full((n,), i)
            yield Part(codes, codes, one, one, one)

    monkeypatch.setattr(paired, "stream", stream)


def many(n: int = 40) -> list[str]:
    return [f"add {i} {7 * i}?\n" for i in range(10, 10 + n)]


def plant(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Shift:
    """Ten of 200 features of unequal scale move by 0.5."""
    moved = torch.zeros(200)
    moved[:10] = 0.5
    scale = torch.linspace(0.05, 3.0, 200)
    planted(monkeypatch, moved, scale, BEFORE)
    made: Any = Coordinates(None, SITE, SITE, name="planted", width=200)
    found = paired.effects_of(
        made,
        tiny.model(),
        sae.Domain(many(), SHOWN),
        Setting(**options),
        where="here",
        progress=False,
    )
    return transfer.shift_of(found, "planted", "add", "", n=10, excess=True)


@pytest.mark.parametrize("align", ["query_tokens", "pooled"])
def test_planted_shifts_are_exactly_the_dimensions(
    monkeypatch: pytest.MonkeyPatch, align: Any
) -> None:
    found = plant(monkeypatch, align=align)
    assert set(found.dims) == set(range(10))
    torch.testing.assert_close(found.delta[:10], torch.full((10,), 0.25))
    assert found.share == pytest.approx(1.0)


def test_rows_of_other_tokens_find_the_features_of_large_variance_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = plant(monkeypatch, align="row")
    plain = replace(found, excess=False).take(10)
    assert not set(plain.dims) & set(range(10)) and min(plain.dims) > 150
    # E (a - b)^2 of unrelated rows is var a + var b: for the last feature 2 * 3^2
    assert float(found.delta[-1]) == pytest.approx(18, rel=0.2)
    assert found.null is not None and float(found.null[-1]) == pytest.approx(18, rel=0.3)


# against plain loops on a tiny model


def test_delta_is_the_mean_over_queries_of_the_mean_square_over_their_own_tokens() -> None:
    found = shift()
    expected = torch.stack(
        [((rows_of(BEFORE + q)[-len(q) :] - rows_of(q)) ** 2).mean(0) for q in QUERIES]
    ).mean(0)
    torch.testing.assert_close(found.delta, expected, atol=1e-5, rtol=1e-4)
    order = torch.argsort(expected, descending=True)[:5].tolist()
    assert list(found.dims) == order and found.n_tokens == sum(map(len, QUERIES))
    share = expected[order].sum() / expected.sum()
    assert found.share == pytest.approx(float(share), rel=1e-3)


def test_pooled_takes_means_over_tokens_before_it_squares() -> None:
    expected = torch.stack(
        [(rows_of(BEFORE + q)[-len(q) :].mean(0) - rows_of(q).mean(0)) ** 2 for q in QUERIES]
    ).mean(0)
    torch.testing.assert_close(shift(align="pooled").delta, expected, atol=1e-5, rtol=1e-4)


def test_row_takes_row_r_of_both_streams_of_whole_texts() -> None:
    left = torch.cat([rows_of(q) for q in QUERIES])
    right = torch.cat([rows_of(BEFORE + q) for q in QUERIES])[: len(left)]
    found = shift(align="row")
    torch.testing.assert_close(found.delta, ((left - right) ** 2).mean(0), atol=1e-5, rtol=1e-4)
    first, second = (torch.cat([rows_of(q) for q in half]) for half in (QUERIES[:2], QUERIES[2:]))
    n = min(len(first), len(second))
    null = ((first[:n] - second[:n]) ** 2).mean(0)
    assert found.null is not None
    torch.testing.assert_close(found.null, null, atol=1e-5, rtol=1e-4)


def test_parts_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shift(align="row").delta
    monkeypatch.setattr("workbench.sae.reading.PART_BYTES", 4 * 40 * 20)
    torch.testing.assert_close(shift(align="row").delta, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("align", ["query_tokens", "pooled"])
def test_empty_demonstrations_move_nothing_at_all(align: Any) -> None:
    found = shift(demonstrations=[], align=align)
    assert found.dims == () and not found.delta.any()
    assert "nothing moved" in repr(found)
    with pytest.raises(WorkbenchError, match="nothing moved"):
        sae.sts(small(), tiny.model(), QUERIES, found, progress=False)


def test_tokens_of_the_gold_completion_count_where_they_are_asked_for() -> None:
    queries = [Prompt(text=q, answer="#7") for q in QUERIES]
    both = shift(queries=queries, counted="both")
    assert both.n_tokens == sum(map(len, QUERIES)) + 2 * len(QUERIES)
    expected = torch.stack(
        [
            ((rows_of(BEFORE + q + "#7") - 0)[-2:] - rows_of(q + "#7")[-2:]).pow(2).mean(0)
            for q in QUERIES
        ]
    ).mean(0)
    only = shift(queries=queries, counted="completion")
    torch.testing.assert_close(only.delta, expected, atol=1e-5, rtol=1e-4)


def test_joining_ids_reads_the_same_where_nothing_merges() -> None:
    torch.testing.assert_close(shift(join="ids").delta, shift().delta, atol=1e-5, rtol=1e-4)


def test_a_shuffled_null_is_as_long_and_is_taken_off() -> None:
    found = shift(null="shuffled")
    assert found.null is not None and found.null.sum() > 0
    torch.testing.assert_close(found.ranked, found.delta - found.null)
    order = torch.argsort(found.ranked, descending=True)
    assert list(found.dims) == [i for i in order.tolist() if found.ranked[i] > 0][:5]
    plain = shift(null="shuffled", excess=False)
    assert list(plain.dims) == torch.argsort(found.delta, descending=True)[:5].tolist()
    assert list(found.frame()["excess"]) == sorted(found.frame()["excess"], reverse=True)


# scores


def test_act_and_icl_are_what_the_paper_writes() -> None:
    dims, model = [7, 11, 30], tiny.model()
    act = sae.sts(small(), model, QUERIES, dims, progress=False)
    expected = np.array([float(rows_of(q)[:, dims].mean(0).sum()) for q in QUERIES])
    np.testing.assert_allclose(act.values, expected, rtol=1e-4)
    assert act.mean == pytest.approx(expected.mean(), rel=1e-4) and act.low < act.mean < act.high
    icl = sae.sts(small(), model, QUERIES, dims, kind="icl", demonstrations=SHOWN, progress=False)
    moved = [(rows_of(BEFORE + q)[-len(q) :] - rows_of(q))[:, dims] for q in QUERIES]
    expected = np.array([float((one**2).mean(0).sum()) for one in moved])
    np.testing.assert_allclose(icl.values, expected, rtol=1e-4)
    assert (act.power, icl.power) == (1, 2)


@pytest.mark.parametrize("kind", ["act", "icl"])
@pytest.mark.parametrize("power", [1, 2])
def test_scaling_features_scales_scores_by_the_power(kind: Any, power: int) -> None:
    options = {"kind": kind, "power": power, "demonstrations": SHOWN, "progress": False}
    once = sae.sts(small(), tiny.model(), QUERIES, [7, 11], **options)
    thrice = sae.sts(small(factor=3.0), tiny.model(), QUERIES, [7, 11], **options)
    np.testing.assert_allclose(thrice.values, 3**power * once.values, rtol=1e-4)


def test_a_mean_is_a_sum_over_the_number_of_features() -> None:
    total = sae.sts(small(), tiny.model(), QUERIES, [7, 11, 30], progress=False)
    mean = sae.sts(small(), tiny.model(), QUERIES, [7, 11, 30], reduce="mean", progress=False)
    np.testing.assert_allclose(total.values, 3 * mean.values, rtol=1e-5)
    twice = sae.sts(small(), tiny.model(), QUERIES, [7, 7, 11, 30], reduce="mean", progress=False)
    np.testing.assert_allclose(twice.values, mean.values)


def test_a_score_of_whole_texts_weighs_tokens_alike_and_so_does_its_interval() -> None:
    queries = [QUERIES[0] * 6, *QUERIES[1:]]
    found = sae.sts(small(), tiny.model(), queries, [7, 11, 30], align="row", progress=False)
    rows = torch.cat([rows_of(q) for q in queries])[:, [7, 11, 30]]
    assert found.mean == pytest.approx(float(rows.mean(0).sum()), rel=1e-4)
    assert found.low < found.mean < found.high
    ends = np.array([found.low, found.high])
    once = sae.sts(small(), tiny.model(), queries, [7, 11, 30], progress=False)
    assert abs(ends - [once.low, once.high]).min() > 1e-3


# actual shifts


def test_training_that_changed_nothing_shifts_nothing_and_one_that_did_does() -> None:
    model = tiny.model()
    same = sae.actual_shift(small(), model, model, QUERIES, progress=False)
    assert same.dims == () and not same.delta.any()
    other = wb.load(tiny.module("llama", seed=1), tiny.tokenizer())
    found = sae.actual_shift(small(), model, other, QUERIES, n=4, progress=False)
    theirs = [other.run([q], [SITE], logits="none")[SITE][0, 1:] for q in QUERIES]
    expected = torch.stack(
        [
            ((small().encode(h) - rows_of(q)) ** 2).mean(0)
            for h, q in zip(theirs, QUERIES, strict=True)
        ]
    ).mean(0)
    torch.testing.assert_close(found.delta, expected, atol=1e-4, rtol=1e-3)
    assert len(found.dims) == 4 and found.align == "models"


def test_coordinates_are_the_activations_themselves() -> None:
    model = tiny.model()
    found = sae.coordinates(model, SITE)
    assert (found.n_features, found.d, found.site) == (32, 32, SITE)
    moved = sae.shift_dims(found, model, QUERIES, SHOWN, progress=False)
    raw = [
        model.run([t], [SITE], logits="none")[SITE][0, 1:]
        for t in (QUERIES[0], BEFORE + QUERIES[0])
    ]
    expected = (raw[1][-len(raw[0]) :] - raw[0]).pow(2).mean(0)
    one = sae.shift_dims(found, model, [QUERIES[0]] * 2, SHOWN, progress=False)
    torch.testing.assert_close(one.delta, expected, atol=1e-5, rtol=1e-4)
    assert len(moved.dims) == 3  # a tenth of 32


def test_demonstrations_may_be_an_iterator() -> None:
    found = shift(demonstrations=iter(SHOWN), queries=iter(QUERIES))
    torch.testing.assert_close(found.delta, shift().delta)


@pytest.mark.parametrize("name", ["mixtral", "llama"])
def test_models_in_bfloat16_and_of_experts(name: str) -> None:
    model = wb.load(tiny.module(name).bfloat16(), tiny.tokenizer(), proof=False)
    found = sae.coordinates(model, SITE)
    moved = sae.shift_dims(found, model, QUERIES, SHOWN, n=4, progress=False)
    assert len(moved.dims) == 4 and moved.delta.dtype == torch.float32
    score = sae.sts(found, model, QUERIES, moved, power=2, progress=False)
    raw = [model.run([q], [SITE], logits="none")[SITE][0, 1:].float() for q in QUERIES]
    expected = np.mean([float(h[:, list(moved.dims)].pow(2).mean(0).sum()) for h in raw])
    assert score.mean == pytest.approx(expected, rel=0.05)


# a shift and its dimensions


def given(values: list[float], n: int = 2, name: str = "d") -> Shift:
    return Shift((), torch.tensor(values), None, "query_tokens", 9, name, "add").take(n)


def test_another_number_of_dimensions_needs_no_other_run() -> None:
    found = given([0.0, 3.0, 1.0, 2.0, 0.0])
    assert found.dims == (1, 3) and found.take(3).dims == (1, 3, 2)
    assert found.take(5).dims == (1, 3, 2)  # two never moved
    assert found.lowest() == (2, 3) and found.lowest([0, 1, 2]) == (0, 2)
    assert found.share == pytest.approx(5 / 6)


def test_too_many_dimensions_are_clipped_in_words() -> None:
    with pytest.warns(UserWarning, match="has 5 features; all"):
        assert given([5.0, 4.0, 3.0, 2.0, 1.0], n=9).dims == (0, 1, 2, 3, 4)
    with pytest.raises(WorkbenchError, match="must be positive"):
        given([1.0, 2.0], n=0)


@pytest.mark.parametrize(("width", "n"), [(4, 1), (512, 51), (1000, 100), (65536, 100)])
def test_a_small_dictionary_gives_a_tenth_of_its_features(width: int, n: int) -> None:
    found = Shift((), torch.arange(1, width + 1).float(), None, "row", 1, "d", "s").take()
    assert len(found.dims) == n


def test_overlap_beside_what_chance_gives() -> None:
    found = overlap([0, 1, 2], [1, 2, 3, 4], 10)
    # C(3,2) C(7,2) / C(10,4) for two, C(3,3) C(7,1) / C(10,4) for three
    assert (found.shared, found.expected) == (2, 1.2)
    assert found.p == pytest.approx((3 * 21 + 7) / 210)
    assert given([3.0, 2.0, 1.0]).overlap([0, 1]).shared == 2
    with pytest.raises(WorkbenchError, match="two dictionaries"):
        given([1.0, 2.0]).overlap(given([1.0, 2.0], name="other"))


# demonstrations


def test_demonstrations_stand_before_each_prompt_with_their_completions() -> None:
    (first, second) = sae.with_demonstrations([Prompt(text="q?", answer="7"), "r?"], SHOWN)
    assert (first.text, second.text) == (BEFORE + "q?", BEFORE + "r?") and first.answer == "7"
    assert sae.with_demonstrations(["q?"])[0].text == "q?"
    (other,) = sae.with_demonstrations(["q?"], SHOWN[1:], separator=" ")
    assert other.text == "add 1 5?\n6 q?"
    gold = wb.tasks.make("add", 1, seed=3)
    (with_gold,) = sae.with_demonstrations(["q?"], gold)
    assert with_gold.text == wb.tasks.gold(gold[0]).text + "\nq?"


def chatty() -> Any:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    return wb.load(tiny.module("llama"), tokenizer)


def say(text: str, answer: str | None = None) -> Prompt:
    turns = ({"role": "system", "content": "be"}, {"role": "user", "content": text})
    return Prompt(messages=turns, answer=answer)


def test_chats_get_their_demonstrations_as_turns() -> None:
    (one,) = sae.with_demonstrations([say("2+2")], [say("1+1", "2")])
    assert [(m["role"], m["content"]) for m in one.messages or ()] == [
        ("system", "be"),
        ("user", "1+1"),
        ("assistant", "2"),
        ("user", "2+2"),
    ]
    model = chatty()
    queries, shown = [say("2+2"), say("3+33")], [say("1+1", "2")]
    found = sae.shift_dims(small(), model, queries, shown, n=3, progress=False, force=True)
    # from the last turn on: what it says, and the header of the answer
    assert found.n_tokens == len("2+2\nassistant\n") + len("3+33\nassistant\n")
    with pytest.raises(PromptError, match="mixed"):
        sae.with_demonstrations(["2+2"], shown)


def merging() -> Any:
    """A tokenizer that makes one token of "ab"."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {t: i for i, t in enumerate(["<pad>", "a", "b", "c", "ab", "<eos>"])}
    made = Tokenizer(models.BPE(vocab, [("a", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def test_a_tokenizer_that_merges_across_the_border_is_refused() -> None:
    model = wb.load(tiny.module("llama"), merging())
    shown = [Prompt(text="c", answer="ca")]
    options: dict[str, Any] = {"separator": "", "n": 3, "progress": False, "force": True}
    assert encode(model.tokenizer, Prompt(text="ccabc"))[-2:] != encode(
        model.tokenizer, Prompt(text="bc")
    )
    with pytest.raises(PromptError, match="merges across the border"):
        sae.shift_dims(small(), model, ["bc", "bcc"], shown, **options)
    assert sae.shift_dims(small(), model, ["bc", "bcc"], shown, join="ids", **options).n_tokens == 5


def test_demonstrations_longer_than_the_context_say_how_many_fit() -> None:
    shown = [Prompt(text="add 1 1?\n" + "1" * 30, answer="2")] * 5  # 41 tokens each
    with pytest.raises(PromptError, match=r"at most 128 tokens; got \d+; the first 2 fit"):
        shift(demonstrations=shown)
    with pytest.raises(PromptError, match="none fits"):
        shift(demonstrations=[Prompt(text="1" * 126, answer="2")])


# refusals

ASKED = (("add 3 3?\n", "#6"), ("add 4 4?\n", ""))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"queries": QUERIES[:1]}, WorkbenchError, "no interval"),
        ({"align": "rows"}, UnknownName, "align"),
        ({"null": "nothing"}, UnknownName, "null"),
        ({"counted": "answer"}, UnknownName, "counted"),
        ({"join": "tokens"}, UnknownName, "join"),
        ({"align": "row", "counted": "completion"}, WorkbenchError, "whole texts"),
        ({"demonstrations": ["add 1 1?\n"]}, PromptError, "no completion"),
        ({"counted": "both"}, PromptError, "no completion"),
        (
            {"counted": "completion", "queries": [Prompt(text=q, answer=a) for q, a in ASKED]},
            WorkbenchError,
            "no token that counts.*none of query 1",
        ),
    ],
)
def test_bad_input_is_refused_in_words(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        shift(**options)


def test_scores_refuse_what_means_nothing() -> None:
    model = tiny.model()
    with pytest.raises(WorkbenchError, match="another dictionary"):
        sae.sts(small(), model, QUERIES, [40], progress=False)
    with pytest.raises(WorkbenchError, match="another dictionary"):
        sae.sts(small(), model, QUERIES, given([1.0] * 40, name="other"), progress=False)
    with pytest.raises(WorkbenchError, match="no interval"):
        sae.sts(small(), model, QUERIES[:1], [7], progress=False)
    with pytest.raises(WorkbenchError, match="no demonstrations"):
        sae.sts(small(), model, QUERIES, [7], kind="icl", progress=False)
    with pytest.raises(UnknownName, match="power"):
        sae.sts(small(), model, QUERIES, [7], power=3, progress=False)
    with pytest.raises(WorkbenchError, match="another model"):
        foreign = wb.load(tiny.module("llama", seed=1), tiny.tokenizer())
        sae.sts(small(), foreign, QUERIES, [7], progress=False)


def test_nan_activations_are_refused() -> None:
    broken = wb.load(tiny.module("llama"), tiny.tokenizer(), proof=False)
    with torch.no_grad():
        broken.hf.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(WorkbenchError, match="NaN"):
        sae.shift_dims(small(), broken, QUERIES, SHOWN, progress=False, force=True)


def test_a_query_that_is_its_own_demonstration_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="1 of 2 queries are among the demonstrations"):
        shift(queries=["add 2 2?\n", "add 3 3?\n"])

"""Dashboards: everything against plain numpy, a planted dictionary, saving, parts, and bad input."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import workbench as wb
from tests import tiny
from workbench.errors import FileRefused, PromptError, WorkbenchError
from workbench.patching.head import Head
from workbench.sae import reading
from workbench.sae.dashboards import corpus, counting, files
from workbench.sae.dashboards.board import Dashboard, dashboard
from workbench.sae.dashboards.corpus import Corpus
from workbench.sae.dashboards.counting import NOBODY
from workbench.sae.dictionary import Dictionary
from workbench.sae.library import sae_lens

PROMPTS = ["ab cab cab c", "de fdeab cab ", "gh", "x+y=z, and more of it", "ab=ab\ncd=2", "a"]
SITE = "L1.resid_post"
WIDTH = 48


@cache
def random_dictionary() -> Dictionary:
    """Random features, each row of one active on many; the last one never is."""
    lens, draw = sae_lens(), torch.Generator().manual_seed(0)
    sae = lens.StandardSAE(lens.StandardSAEConfig(d_in=32, d_sae=WIDTH))
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=draw))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc[-1] = -1e6
    return Dictionary(sae.eval(), SITE, SITE, name="random")


@cache
def board() -> Dashboard:
    return dashboard(random_dictionary(), tiny.model(), PROMPTS, progress=False)


@cache
def dense() -> np.ndarray:
    """Codes of the same corpus, made without any of the code under test."""
    model, found = tiny.model(), []
    for text in PROMPTS:
        rows = model.run(text, record=[SITE])[SITE][0, 1:]  # without the first, special token
        found.append(random_dictionary().encode(rows))
    return torch.cat(found).numpy()


def planted_codes(rows: int = 60, features: int = 9) -> tuple[Any, np.ndarray, np.ndarray]:
    """Sparse and dense codes with a silent, a lone and a constant feature, and the prompts of rows."""
    draw = np.random.default_rng(0)
    values = draw.random((rows, features)).astype(np.float32)
    values[draw.random((rows, features)) < 0.7] = 0
    values[:, 0] = 0
    values[:, 1] = 0
    values[17, 1] = 0.5
    values[:, 2] = 0.25
    values[[5, 40], 3] = 2.0  # a tie at the top
    prompts = np.sort(draw.integers(0, 7, rows))
    return sparse.csr_array(values).tocsc(), values, prompts


def test_activity_is_numpys() -> None:
    codes, values, _ = planted_codes()
    found = counting.activity(codes)
    on = values > 0
    np.testing.assert_array_equal(found.count, on.sum(0))
    np.testing.assert_allclose(found.density, on.mean(0))
    np.testing.assert_array_equal(found.largest, values.max(0))
    mean = [values[on[:, j], j].mean() if on[:, j].any() else 0 for j in range(values.shape[1])]
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)


@pytest.mark.parametrize("bins", [1, 7, 20])
def test_histograms_are_numpys(bins: int) -> None:
    codes, values, _ = planted_codes()
    found = counting.histogram(codes, counting.activity(codes).largest, bins)
    for j, counts in enumerate(found):
        column = values[values[:, j] > 0, j].astype(float)
        expected = np.histogram(column, bins, (0, column.max()))[0] if len(column) else 0
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("diverse", [True, False])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_top_examples_are_those_of_a_loop(diverse: bool, k: int) -> None:
    codes, values, prompts = planted_codes()
    rows, found = counting.top(codes, prompts, k, diverse=diverse)
    assert rows.shape == found.shape == (values.shape[1], k)
    for j in range(values.shape[1]):
        order = [i for i in np.argsort(-values[:, j], kind="stable") if values[i, j] > 0]
        if diverse:
            order = [i for n, i in enumerate(order) if prompts[i] not in prompts[order[:n]]]
        expected = (order + [NOBODY] * k)[:k]
        assert rows[j].tolist() == expected
        np.testing.assert_array_equal(found[j], [values[i, j] if i >= 0 else 0 for i in expected])


def test_correlations_are_numpys() -> None:
    codes, values, _ = planted_codes()
    ids, r = counting.correlated(codes, np.arange(9), 20)
    alive = [j for j in range(9) if values[:, j].std() > 0]
    expected = np.corrcoef(values[:, alive].astype(float).T)
    for i, j in enumerate(alive):
        others = [n for n in range(len(alive)) if n != i]
        order = sorted(others, key=lambda n: -expected[i, n])
        np.testing.assert_allclose(r[j, : len(order)], expected[i, order], atol=1e-6)
        assert ids[j, : len(order)].tolist() == [alive[n] for n in order]
        assert (ids[j, len(order) :] == NOBODY).all()
    assert (ids[[0, 2]] == NOBODY).all()
    assert not r[[0, 2]].any()


def test_what_does_not_vary_is_told_from_rounding() -> None:
    values = np.zeros((5000, 22), np.float32)
    values[:, :20] = np.arange(1, 21) / 10
    values[::3, 20:] = 1
    ids, r = counting.correlated(sparse.csr_array(values).tocsc(), np.arange(22), 3)
    assert (ids[:20] == NOBODY).all()
    assert not r[:20].any()
    assert ids[20].tolist() == [21, NOBODY, NOBODY]
    assert r[20, 0] == pytest.approx(1)


def test_neighbours_are_cosines_of_the_decoder() -> None:
    decoder = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    decoder[4] = 0
    ids, cosine = counting.neighbours(decoder, np.array([2, 7]), 3)
    unit = torch.nn.functional.normalize(decoder.double(), dim=1)
    for row, feature in enumerate((2, 7)):
        expected = unit @ unit[feature]
        expected[feature] = -2
        best = expected.topk(3)
        assert ids[row].tolist() == best.indices.tolist()
        np.testing.assert_allclose(cosine[row], best.values.numpy(), atol=1e-6)


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, _, _ = planted_codes()
    whole = counting.correlated(codes, np.arange(9), 4)
    monkeypatch.setattr(
        counting, "blocks_of", lambda n, _: (slice(i, i + 2) for i in range(0, n, 2))
    )
    for a, b in zip(whole, counting.correlated(codes, np.arange(9), 4), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_corpus_is_what_was_read() -> None:
    found = board().corpus
    tokenizer = tiny.tokenizer()
    assert "".join(found.pieces) == "".join(PROMPTS)
    assert found.ids.tolist() == [i for p in PROMPTS for i in tokenizer(p)["input_ids"][1:]]
    assert found.positions.tolist() == [i + 1 for p in PROMPTS for i in range(len(p))]
    assert found.prompts.tolist() == [i for i, p in enumerate(PROMPTS) for _ in p]
    assert "6 prompts" in repr(found)


def test_a_dashboard_is_what_dense_codes_say() -> None:
    made, codes = board(), dense()
    assert made.features == list(range(WIDTH))
    assert made.n_tokens == len(codes)
    np.testing.assert_allclose(made.codes.toarray(), codes, atol=1e-5)
    np.testing.assert_allclose(made.density, (codes > 0).mean(0))
    np.testing.assert_allclose(made.largest, codes.max(0), atol=1e-5)
    np.testing.assert_allclose(made.example_values[:, 0], codes.max(0), atol=1e-5)
    assert made.histogram.sum(1).tolist() == (codes > 0).sum(0).tolist()
    alive = np.flatnonzero(codes.std(0) > 0)
    assert len(alive) > WIDTH / 2
    r = np.corrcoef(codes[:, alive].astype(float).T) - 2 * np.eye(len(alive))
    np.testing.assert_allclose(made.correlated_values[alive, 0], r.max(1), atol=1e-5)
    assert made.correlated_ids[alive, 0].tolist() == alive[r.argmax(1)].tolist()


def test_a_feature_that_never_fires_is_an_empty_row() -> None:
    made, silent = board(), WIDTH - 1
    assert made.density[silent] == made.largest[silent] == made.mean[silent] == 0
    assert not made.histogram[silent].any()
    assert (made.example_rows[silent] == NOBODY).all()
    assert made.n_examples(silent) == 0
    assert made.labels[silent] == "unlabelled"
    assert not made.activations(silent).any()
    for field in fields(made):
        value = getattr(made, field.name)
        if isinstance(value, np.ndarray):
            assert np.isfinite(value).all(), field.name
    with pytest.raises(WorkbenchError, match="no such example"):
        made.example(silent, 0)


def test_an_example_is_a_window_with_its_codes() -> None:
    made, codes = board(), dense()
    feature = int(codes.max(0).argmax())
    for rank in range(made.n_examples(feature)):
        row = int(made.example_rows[feature, rank])
        found = made.example(feature, rank, before=3, after=2)
        text, position = PROMPTS[found.prompt], found.position - 1
        assert found.pieces == list(text[max(0, position - 3) : position + 3])
        assert found.pieces[found.peak] == text[position]
        assert found.values[found.peak] == made.example_values[feature, rank]
        near = codes[row - found.peak : row - found.peak + len(found.values), feature]
        np.testing.assert_allclose(found.values, near, atol=1e-5)
        assert f"[{text[position]}]".replace("\n", "\u21b5") in str(found)
    prompts = [made.example(feature, k).prompt for k in range(made.n_examples(feature))]
    assert len(set(prompts)) == len(prompts)
    np.testing.assert_allclose(made.activations(feature), codes[:, feature], atol=1e-5)


def same(a: Dashboard, b: Dashboard, rows: Any = slice(None)) -> None:
    """Every array of `a`, and of it the given rows, is `b`'s."""
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one[rows], other, err_msg=field.name)
    np.testing.assert_array_equal(a.codes.toarray()[:, rows], b.codes.toarray())
    assert np.array(a.labels)[rows].tolist() == b.labels


def test_chosen_features_have_the_rows_of_the_whole() -> None:
    chosen = [7, 2, WIDTH - 1, 30]
    found = dashboard(random_dictionary(), tiny.model(), PROMPTS, features=chosen, progress=False)
    assert found.features == chosen
    same(board(), found, chosen)
    assert found.promoted(2) == board().promoted(2)
    assert str(found.example(2, 0)) == str(board().example(2, 0))
    with pytest.raises(WorkbenchError, match="does not describe"):
        found.example(3, 0)


def test_parts_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, dictionary = planted()
    whole = dashboard(dictionary, model, PROMPTS, progress=False)
    monkeypatch.setattr(reading, "PART_BYTES", 1)  # a prompt each
    assert len(list(reading.stream(dictionary, model, PROMPTS, progress=False))) == len(PROMPTS)
    same(whole, dashboard(dictionary, model, PROMPTS, progress=False))
    found = dashboard(random_dictionary(), tiny.model(), PROMPTS, progress=False)
    np.testing.assert_allclose(found.codes.toarray(), board().codes.toarray(), atol=1e-5)


def test_dense_codes_of_one_part_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    monkeypatch.setattr(reading, "PART_BYTES", 1)
    alive, most, encode = [], [], Dictionary.encode

    def watched(self: Dictionary, rows: torch.Tensor) -> torch.Tensor:
        codes = encode(self, rows)
        most.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(codes))
        return codes

    monkeypatch.setattr(Dictionary, "encode", watched)
    corpus.read(random_dictionary(), tiny.model(), PROMPTS, progress=False)
    assert len(most) == len(PROMPTS)
    assert max(most) == 0


def planted(site: str = "L0.resid_pre") -> tuple[wb.Model, Dictionary]:
    """A model that embeds 'a' to 'j' along one axis each, 3 long, and a dictionary of these axes."""
    hf = tiny.module("llama")
    with torch.no_grad():
        hf.get_input_embeddings().weight.zero_()
        for axis in range(10):
            hf.get_input_embeddings().weight[4 + axis, axis] = 3.0
    lens = sae_lens()
    sae = lens.StandardSAE(lens.StandardSAEConfig(d_in=32, d_sae=16))
    with torch.no_grad():
        for p in sae.parameters():
            p.zero_()
        sae.W_enc.copy_(torch.eye(32)[:, :16])
        sae.W_dec.copy_(torch.eye(32)[:16])
    model = wb.load(hf, tiny.tokenizer())
    return model, Dictionary(sae.eval(), site, site, model.fingerprint, "planted")


def test_a_planted_dictionary_is_found_out() -> None:
    model, dictionary = planted()
    texts = ["abca", "bcde", "aa=j", "fgab", "ja12"] * 3
    found = dashboard(dictionary, model, texts, examples=4, bins=4, progress=False)
    whole = "".join(texts)
    assert np.isfinite(found.promoted_values).all()  # although some streams are 0 and have no scale
    assert found.promoted_values[:, 0].all()
    for feature, letter in enumerate("abcdefghij"):
        assert found.density[feature] == pytest.approx(whole.count(letter) / len(whole))
        count = whole.count(letter)
        assert found.histogram[feature].tolist() == [0, 0, 0, count]
        if not count:
            continue
        assert found.largest[feature] == found.mean[feature] == pytest.approx(3.0)
        first = [i for i, text in enumerate(texts) if letter in text][:4]
        examples = [found.example(feature, k) for k in range(found.n_examples(feature))]
        assert [e.prompt for e in examples] == first
        assert {e.pieces[e.peak] for e in examples} == {letter}
        assert examples[0].position == texts[first[0]].index(letter) + 1
        if count >= 5:
            assert found.labels[feature] == f"token '{letter}' (F1 1.00)"
    assert whole.count("d") == 3  # too few tokens to say
    assert found.labels[3] == found.labels[15] == "unlabelled"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "mixtral"])
def test_effects_are_the_formula_of_each_family(family: str) -> None:
    model = tiny.model(family)
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    streams = model.run("ab=cd", record=["L2.resid_post"])["L2.resid_post"][0]
    found = Head(model).effects(directions, streams)
    norm: Any = model.hf.get_submodule(model.layout.outside["final_norm"].module)
    inner, moved, gamma = streams.double(), directions.double(), norm.weight.double()
    if family in ("gpt2", "gpt_neox"):
        inner, moved = (x - x.mean(-1, keepdim=True) for x in (inner, moved))
    if family == "gemma2":
        gamma = 1 + gamma
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    scale = (inner.square().mean(-1) + eps).rsqrt().median()
    expected = (moved * scale * gamma) @ model.hf.get_output_embeddings().weight.double().T
    expected = expected - expected.mean(-1, keepdim=True)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


def test_effects_agree_with_the_readout_of_a_pair() -> None:
    model = tiny.model()
    stream = model.run("ab=cd", record=["L2.resid_post"])["L2.resid_post"][0, -1:]
    directions = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    line, _ = Head(model).readout(stream, torch.tensor([7]), torch.tensor([9]))
    found = Head(model).effects(directions, stream)
    torch.testing.assert_close(
        found[:, 7] - found[:, 9], directions @ line[0], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(found.mean(1), torch.zeros(4), atol=1e-5, rtol=0)


def test_promoted_tokens_are_the_largest_effects() -> None:
    model, made = tiny.model(), board()
    acts = model.record(PROMPTS, "L2.resid_post", pool="all", progress=False)["L2.resid_post"]
    logits = Head(model).effects(random_dictionary().decoder, acts)
    top = logits.topk(8, dim=1)
    np.testing.assert_array_equal(made.promoted_ids, top.indices.numpy())
    np.testing.assert_allclose(made.promoted_values, top.values.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        made.suppressed_values, logits.sort(dim=1).values[:, :8].numpy(), atol=1e-5
    )
    text, value = made.promoted(5)[0]
    assert text == tiny.tokenizer().decode([int(top.indices[5, 0])])
    assert value == pytest.approx(float(top.values[5, 0]), abs=1e-5)


def test_the_norm_is_asked_at_few_tokens_of_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, effects = [], Head.effects

    def watched(self: Head, directions: torch.Tensor, resid: torch.Tensor) -> torch.Tensor:
        seen.append(resid)
        return effects(self, directions, resid)

    monkeypatch.setattr(Head, "effects", watched)
    monkeypatch.setattr("workbench.sae.dashboards.board.SCALE_ROWS", 5)
    found = dashboard(random_dictionary(), tiny.model(), PROMPTS, progress=False)
    site = "L2.resid_post"
    acts = tiny.model().record(PROMPTS, site, pool="all", progress=False)[site]
    torch.testing.assert_close(seen[0], acts[::13])
    assert len(seen[0]) == 5
    assert found.promoted_ids[0].tolist() == board().promoted_ids[0].tolist()


def test_a_bf16_model_and_dictionary_give_about_the_same() -> None:
    model = wb.load(tiny.module("llama").to(torch.bfloat16), tiny.tokenizer())
    coarse = random_dictionary().to("cpu", torch.bfloat16)
    found = dashboard(coarse, model, PROMPTS, progress=False)
    assert found.codes.dtype == np.float32
    np.testing.assert_allclose(found.codes.toarray(), dense(), atol=0.15)
    np.testing.assert_allclose(found.promoted_values, board().promoted_values, atol=0.02)
    same(found, dashboard(coarse, model, PROMPTS, progress=False))


def test_a_transcoder_promotes_by_what_it_writes() -> None:
    across = replace(random_dictionary(), site="L1.mlp_norm_out", target="L1.mlp_out")
    found = dashboard(across, tiny.model(), PROMPTS, progress=False)
    np.testing.assert_array_equal(found.promoted_ids, board().promoted_ids)
    assert (found.density != board().density).any()
    beside = replace(random_dictionary(), target="L1.mlp_norm_out")
    assert dashboard(beside, tiny.model(), PROMPTS, progress=False).promoted(0) == []


def test_a_dictionary_beside_the_stream_promotes_nothing() -> None:
    aside = replace(random_dictionary(), site="L1.z", target="L1.z")
    found = dashboard(aside, tiny.model(), PROMPTS, progress=False)
    assert found.promoted_ids.shape == (WIDTH, 0)
    assert found.promoted(0) == found.suppressed(0) == []
    none = dashboard(random_dictionary(), tiny.model(), PROMPTS, promoted=0, progress=False)
    assert none.promoted_ids.shape == (WIDTH, 0)


def test_nothing_is_shared_between_options_and_rows() -> None:
    found = dashboard(
        random_dictionary(), tiny.model(), PROMPTS[2], examples=3, bins=2, correlated=0,
        neighbours=WIDTH + 5, promoted=500, special=True, progress=False,
    )  # fmt: skip
    assert found.n_tokens == 3
    assert found.corpus.pieces[0] == "<bos>"
    assert found.correlated_ids.shape == (WIDTH, 0)
    assert found.neighbour_ids.shape == (WIDTH, WIDTH + 5)
    assert (found.neighbour_ids[:, WIDTH - 1 :] == NOBODY).all()
    assert found.promoted_ids.shape == (WIDTH, tiny.N_VOCAB)
    assert found.frame()["correlated"].tolist() == [NOBODY] * WIDTH


def test_completions_are_read_too() -> None:
    ids = [4, 5, 6]
    found = dashboard(random_dictionary(), tiny.model(), ["xy"], completions=[ids], progress=False)
    assert "".join(found.corpus.pieces) == "xyabc"


def test_saved_and_read_back(tmp_path: Path) -> None:
    path = board().save(tmp_path / "board.safetensors")
    back = Dashboard.load(path)
    same(board(), back)
    assert back.corpus.pieces == board().corpus.pieces
    assert repr(back) == repr(board())
    assert back.frame().equals(board().frame())
    assert back.example(3, 1) == board().example(3, 1)


@pytest.mark.parametrize("damage", ["cut", "other", "version", "garbage", "missing", "pickle"])
def test_damaged_files_are_refused(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "board.safetensors"
    if damage == "version":
        monkeypatch.setattr(files, "VERSION", 99)
    board().save(path)
    monkeypatch.undo()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    elif damage == "garbage":
        path.write_bytes(b"no dashboard at all")
    elif damage == "missing":
        path.unlink()
    elif damage == "pickle":
        path = path.rename(path.with_suffix(".pkl"))
    with pytest.raises(FileRefused):
        Dashboard.load(path)


def test_the_page_is_escaped_and_short() -> None:
    text = replace(board(), dictionary_name="<b>&")._repr_html_()
    assert "48 features" in text
    assert "never fire" in text
    assert "<script" not in text
    assert text.count("<tr>") == 13
    assert "&lt;b&gt;&amp;" in text


def test_the_frame_has_a_row_per_feature() -> None:
    frame = board().frame()
    assert frame["feature"].tolist() == board().features
    assert frame["neighbour"].tolist() == board().neighbour_ids[:, 0].tolist()
    assert frame["example"].iloc[-1] == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features": [WIDTH]}, "not features of this dictionary"),
        ({"features": [-1]}, "not features of this dictionary"),
        ({"features": []}, "not features of this dictionary"),
        ({"features": [1, 1]}, "each once"),
        ({"features": [True]}, "not features of this dictionary"),
        ({"examples": 0}, "at least 1"),
        ({"bins": 0}, "at least 1"),
        ({"correlated": -1}, "at least 0"),
        ({"promoted": -1}, "at least 0"),
        ({"neighbours": True}, "no such count"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        dashboard(random_dictionary(), tiny.model(), PROMPTS, progress=False, **options)


def test_bad_prompts_and_models() -> None:
    with pytest.raises(PromptError, match="none"):
        dashboard(random_dictionary(), tiny.model(), [], progress=False)
    with pytest.raises(PromptError, match="special"):
        dashboard(random_dictionary(), tiny.model(), ["<bos>"], progress=False)
    other = replace(random_dictionary(), model=replace(tiny.model().fingerprint, weights="other"))
    with pytest.raises(WorkbenchError, match="another model"):
        dashboard(other, tiny.model(), PROMPTS, progress=False)
    forced = dashboard(other, tiny.model(), PROMPTS, force=True, progress=False)
    assert forced.n_tokens == board().n_tokens


@pytest.mark.parametrize(
    ("weights", "said"), [("W_enc", r"NaN or infinite.*\[3\]"), ("W_dec", "decoder holds NaN")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_dictionary_is_no_silent_one(weights: str, said: str, value: float) -> None:
    import copy

    broken = replace(random_dictionary(), sae=copy.deepcopy(random_dictionary().sae))
    with torch.no_grad():
        matrix = getattr(broken.sae, weights)
        (matrix[:, 3] if weights == "W_enc" else matrix[3]).fill_(value)
    with pytest.raises(WorkbenchError, match=said):
        dashboard(broken, tiny.model(), PROMPTS, progress=False)


def test_no_window_backwards() -> None:
    for option in ({"before": -1}, {"after": -1}):
        with pytest.raises(WorkbenchError, match="at least 0"):
            board().example(3, 0, **option)


def test_too_many_active_codes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "STORE_BYTES", 1000)
    with pytest.raises(WorkbenchError, match="too many features are active"):
        dashboard(random_dictionary(), tiny.model(), PROMPTS, progress=False)


def test_windows_stay_inside_their_prompt() -> None:
    found = Corpus(
        np.arange(5), np.array([0, 0, 3, 3, 3]), np.arange(5), {i: "x" for i in range(5)}
    )
    assert found.window(1, 5, 5) == slice(0, 2)
    assert found.window(2, 5, 1) == slice(2, 4)

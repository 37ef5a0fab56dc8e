"""Recording: the right rows with their prompts, and folders that survive interruptions."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from tests import tiny
from workbench.activations import load, record
from workbench.activations.pool import POOLS, pool
from workbench.activations.record import CPU_TOKENS
from workbench.activations.store import StoredValues
from workbench.errors import FileRefused, PromptError, SiteUnavailable, UnknownName
from workbench.prompts import pairs
from workbench.records import Prompt
from workbench.tensors import Intervention

TEXTS = ["abc", "hello there", "900+7=", "Q", "a much longer line of text than the others"]
SITES = ["L0.resid_post", "L2.mlp_out", "L1.z"]


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return tiny.model(request.param)


def alone(model, text: str, site: str) -> torch.Tensor:
    return model.run([text], record=[site])[site][0].flatten(1)


@pytest.mark.parametrize("how", ["last", "first", "mean", "all"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_rows_are_those_of_each_prompt_alone(model, how: str, batch_size: int) -> None:
    acts = record(model, TEXTS, SITES, pool=how, batch_size=batch_size, progress=False)
    for site in SITES:
        each = [alone(model, t, site) for t in TEXTS]
        want = {
            "last": [e[-1:] for e in each],
            "first": [e[:1] for e in each],
            "mean": [e.mean(0, keepdim=True) for e in each],
            "all": each,
        }[how]
        torch.testing.assert_close(acts[site], torch.cat(want), atol=1e-5, rtol=1e-4)


def test_rows_carry_their_prompt_and_absolute_position(model) -> None:
    acts = record(model, TEXTS, "L0.resid_post", pool="all", batch_size=2, progress=False)
    lengths = model.tokens(TEXTS).lengths
    each = zip(TEXTS, lengths, strict=True)
    assert [p.text for p in acts.rows] == [text for text, n in each for _ in range(n)]
    assert list(acts.positions) == [i for n in lengths for i in range(n)]
    last = record(model, TEXTS, "L0.resid_post", progress=False)
    assert list(last.positions) == [n - 1 for n in lengths]


def test_labels_and_pairs_reach_the_contrast(model) -> None:
    prompts = pairs(positive=["good", "better day"], negative=["bad", "worse day"])
    contrast = record(model, prompts, "L1.resid_post", progress=False).contrast()
    assert contrast.paired
    assert contrast.model == model.fingerprint
    want = torch.cat([alone(model, t, "L1.resid_post")[-1:] for t in ("good", "better day")])
    torch.testing.assert_close(contrast.positive["L1.resid_post"], want, atol=1e-5, rtol=1e-4)


def test_site_patterns_and_heads(model) -> None:
    acts = record(model, TEXTS, ["L*.resid_post", "L1.z[head=2]"], progress=False)
    assert list(acts.values) == [f"L{i}.resid_post" for i in range(3)] + ["L1.z[head=2]"]
    whole = record(model, TEXTS, "L1.z", progress=False)["L1.z"]
    torch.testing.assert_close(acts["L1.z[head=2]"], whole.unflatten(1, (4, 8))[:, 2])


def test_bf16_stays_bf16_on_disk_too(tmp_path) -> None:
    import workbench as wb

    model = wb.load(tiny.module("llama").to(torch.bfloat16), tiny.tokenizer())
    acts = record(model, TEXTS, SITES, pool="mean", path=tmp_path / "acts", progress=False)
    assert acts[SITES[0]].dtype == torch.bfloat16
    assert torch.equal(load(tmp_path / "acts")[SITES[0]], acts[SITES[0]])


def test_pooling_never_reads_padding() -> None:
    values = torch.full((2, 4, 3), float("nan"))
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    values[mask] = torch.arange(18.0).reshape(6, 3)
    for how in ("last", "first", "mean", "all"):
        assert torch.isfinite(pool(values, mask, how).values).all(), how


def test_it_says_rows_and_bytes_before_it_starts(model, capsys) -> None:
    record(model, TEXTS, SITES)
    said = capsys.readouterr().err
    assert f"5 rows x 3 sites, {5 * 3 * 32 * 4 / 1000:.3g} kB" in said
    assert said.index("5 rows") < said.index("0/5")


@pytest.mark.parametrize("site", ["L0.pattern", "L0.attn_scores", "L0.resid_post[pos=-1]"])
def test_sites_without_rows_are_refused(model, site: str) -> None:
    with pytest.raises(SiteUnavailable, match="no rows by position"):
        record(model, TEXTS, site)


def test_bad_requests_are_refused(model) -> None:
    with pytest.raises(UnknownName, match="nearest: mean"):
        record(model, TEXTS, SITES, pool="meen")
    with pytest.raises(UnknownName, match="resid_post"):
        record(model, TEXTS, "L0.resid_pos")
    with pytest.raises(PromptError, match="there are none"):
        record(model, [], SITES)
    with pytest.raises(PromptError, match="longer than the context"):
        record(model, ["a" * 500], SITES)


# --- on disk --------------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Two prompts a shard."""
    # the package's name `record` is the function
    module = importlib.import_module("workbench.activations.record")
    monkeypatch.setattr(module, "SHARD_BYTES", 2 * 3 * 32 * 4)


@pytest.mark.parametrize("how", ["last", "all"])
def test_a_folder_gives_back_what_memory_would(model, tmp_path, small_shards, how: str) -> None:
    labelled = [Prompt(text=t, label=i % 2 == 0, choices=("x", "y")) for i, t in enumerate(TEXTS)]
    want = record(model, labelled, SITES, pool=how, progress=False)
    acts = record(model, labelled, SITES, pool=how, path=tmp_path / "acts", progress=False)
    assert isinstance(acts.values, StoredValues)
    assert len(list((tmp_path / "acts").glob("shard-*"))) > 1
    for found in (acts, load(tmp_path / "acts")):
        assert found.rows == want.rows
        assert found.positions == want.positions
        assert (found.pool, found.model) == (how, model.fingerprint)
        for site in SITES:
            torch.testing.assert_close(found[site], want[site], atol=1e-5, rtol=1e-4)
        assert len(found.contrast().positive[SITES[0]]) == sum(bool(p.label) for p in want.rows)


class Interrupted(RuntimeError):
    pass


def interrupt_after(monkeypatch, batches: int) -> list[int]:
    """Make the model fail after some batches; the list counts them."""
    model = tiny.model("llama")
    run, seen = model.run, [0]

    def counted(prompts, *args, **kwargs):
        if len(prompts) > 0 and kwargs.get("logits") == "none":
            seen[0] += 1
            if seen[0] > batches:
                raise Interrupted
        return run(prompts, *args, **kwargs)

    monkeypatch.setattr(model, "run", counted)
    return seen


def test_an_interrupted_recording_goes_on_where_it_stopped(
    tmp_path, small_shards, monkeypatch
) -> None:
    model, folder = tiny.model("llama"), tmp_path / "acts"
    want = record(model, TEXTS, SITES, progress=False)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, 3)  # one to measure a row, two shards
        record(model, TEXTS, SITES, path=folder, progress=False)
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json", "shard-00000.safetensors", "shard-00001.safetensors",
    ]  # fmt: skip
    with pytest.raises(FileRefused, match="is unfinished; expected 3 shards; got 2"):
        load(folder)
    with monkeypatch.context() as patch:
        seen = interrupt_after(patch, 99)
        acts = record(model, TEXTS, SITES, path=folder, progress=False)
    assert seen[0] == 2  # one to measure a row, one for the missing shard
    torch.testing.assert_close(acts[SITES[0]], want[SITES[0]], atol=1e-5, rtol=1e-4)


def test_a_damaged_shard_is_refused_and_computed_again(tmp_path, small_shards) -> None:
    model, folder = tiny.model("llama"), tmp_path / "acts"
    want = record(model, TEXTS, SITES, path=folder, progress=False)[SITES[1]]
    shard = folder / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(FileRefused, match="corrupt or half-written"):
        load(folder)
    again = record(model, TEXTS, SITES, path=folder, progress=False)
    assert torch.equal(again[SITES[1]], want)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": TEXTS[:4]}, "other n_prompts"),
        ({"prompts": [*TEXTS[:4], "another"]}, "other prompts_hash"),
        ({"sites": SITES[:2]}, "other sites"),
        ({"pool": "mean"}, "other pool"),
        ({"model": "gpt2"}, "another model"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, change, said: str) -> None:
    asked = {"model": "llama", "prompts": TEXTS, "sites": SITES, "pool": "last"}
    options = {"path": tmp_path / "acts", "progress": False}

    def go(model, prompts, sites, pool) -> None:
        record(tiny.model(model), prompts, sites, pool=pool, **options)

    go(**asked)
    before = {p.name: p.read_bytes() for p in (tmp_path / "acts").iterdir()}
    with pytest.raises(FileRefused, match=said):
        go(**asked | change)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "acts").iterdir()}


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(FileRefused, match="holds no recording"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileRefused, match="is not empty"):
        record(tiny.model("llama"), TEXTS, SITES, path=tmp_path, progress=False)
    (tmp_path / "manifest.json").write_text("{half")
    with pytest.raises(FileRefused, match="damaged manifest"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text(
        json.dumps({"format": "workbench.activations", "version": 9})
    )
    with pytest.raises(FileRefused, match="another format or version"):
        load(tmp_path)


@pytest.mark.parametrize("how", ["last", "first", "mean", "all"])
def test_logits_are_recorded_at_every_position(model, how: str) -> None:
    acts = record(model, TEXTS, "logits", pool=how, batch_size=2, progress=False)
    each = [model.run([t]).logits[0] for t in TEXTS]
    want = {
        "last": [e[-1:] for e in each],
        "first": [e[:1] for e in each],
        "mean": [e.mean(0, keepdim=True) for e in each],
        "all": each,
    }[how]
    torch.testing.assert_close(acts["logits"], torch.cat(want), atol=1e-5, rtol=1e-4)


def test_no_batch_is_larger_than_asked(model, monkeypatch) -> None:
    from workbench.model import tokens

    pad, sizes = tokens._pad, []
    monkeypatch.setattr(
        tokens, "_pad", lambda rows, *a: (sizes.append(len(rows)), pad(rows, *a))[1]
    )
    record(model, TEXTS, SITES, batch_size=2, progress=False)
    assert max(sizes) == 2


@pytest.mark.parametrize("how", POOLS)
def test_rows_keep_the_order_of_the_prompts(how) -> None:
    """Prompts of like lengths are read together; nobody sees that."""
    model = tiny.model("llama")
    texts = ["1234567", "1", "12345", "12", "1234567890", "9", "98765"]
    together = record(model, texts, SITES, how, batch_size=2, progress=False)
    alone = [record(model, text, SITES, how, progress=False) for text in texts]
    assert [p.text for p in together.rows] == [p.text for one in alone for p in one.rows]
    assert together.positions == sum((one.positions for one in alone), ())
    for site in SITES:
        want = torch.cat([one[site] for one in alone])
        torch.testing.assert_close(together[site], want, atol=1e-5, rtol=1e-4)


def test_prompts_of_like_lengths_are_read_together(monkeypatch) -> None:
    model, run, padded = tiny.model("llama"), tiny.model("llama").run, []

    def seen(*args, **options):
        trace = run(*args, **options)
        padded.append(int((~trace.tokens.mask).sum()))
        return trace

    monkeypatch.setattr(model, "run", seen)
    record(model, ["1", "12345678"] * 8, SITES, batch_size=8, progress=False)
    assert sum(padded) == 0


def test_a_batch_of_long_prompts_is_smaller_on_a_cpu(monkeypatch) -> None:
    model, run, sizes = tiny.model("llama"), tiny.model("llama").run, []

    def seen(*args, **options):
        trace = run(*args, **options)
        sizes.append(tuple(trace.tokens.ids.shape))
        return trace

    monkeypatch.setattr(model, "run", seen)
    record(model, ["1" * 99] * 8 + ["1"] * 40, SITES, progress=False)
    assert max(rows * width for rows, width in sizes) <= CPU_TOKENS
    assert (40, 2) in sizes


def test_strengths_stay_with_their_rows() -> None:
    """Per-row strengths follow the prompts' order, whatever their lengths."""
    model, texts = tiny.model("llama"), ["12345", "1", "1234567", "12"]
    shift = {"L0.resid_post": {"shift": torch.ones(model.d_model)}}
    strengths = torch.tensor([0.5, 1.0, 1.5, 2.0])
    edit = Intervention("custom", "affine", shift, strengths)
    got = record(model, texts, "L2.resid_post", edits=[edit], batch_size=2, progress=False)
    for i, text in enumerate(texts):
        one = edit.at(float(strengths[i]))
        want = record(model, text, "L2.resid_post", edits=[one], progress=False)
        row = got["L2.resid_post"][i : i + 1]
        torch.testing.assert_close(row, want["L2.resid_post"], atol=1e-5, rtol=1e-4)


def test_completions_are_one_per_prompt() -> None:
    with pytest.raises(PromptError, match="not one per prompt; expected 2; got 1"):
        record(tiny.model("llama"), ["1", "2"], SITES, completions=[[5]], progress=False)


@pytest.mark.parametrize("how", POOLS)
def test_completions_stay_with_their_prompts(how) -> None:
    """Sorted by the length with the completion, which turns the order of the prompts round."""
    model = tiny.model("llama")
    texts, tails = ["1234567", "1", "123"], [[], [5, 6, 7, 8, 9, 10, 11, 12, 13], [5, 6]]
    got = record(
        model, texts, "L1.resid_post", how, completions=tails, batch_size=2, progress=False
    )
    alone = [
        record(model, t, "L1.resid_post", how, completions=[ids], progress=False)
        for t, ids in zip(texts, tails, strict=True)
    ]
    assert [p.text for p in got.rows] == [p.text for one in alone for p in one.rows]
    assert got.positions == sum((one.positions for one in alone), ())
    want = torch.cat([one["L1.resid_post"] for one in alone])
    torch.testing.assert_close(got["L1.resid_post"], want, atol=1e-5, rtol=1e-4)
    whole = [len(model.tokens(t).ids[0]) + len(ids) for t, ids in zip(texts, tails, strict=True)]
    assert len(got.positions) == (sum(whole) if how == "all" else 3)

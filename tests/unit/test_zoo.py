"""The builder of the shipped models, in miniature; and the shipped models themselves."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from scipy.stats import binom
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench import tasks
from workbench.errors import UnknownName, WorkbenchError
from workbench.zoo import build
from workbench.zoo.architectures import NAMES, new_model
from workbench.zoo.build import put, torch_threads
from workbench.zoo.manifest import manifest
from workbench.zoo.measure import Accuracy, count_right
from workbench.zoo.tokenizer import BOS, EOS, PAD, VOCABULARY, encode, make_tokenizer
from workbench.zoo.train import Plan, train
from workbench.zoo.upcycle import upcycle
from workbench.zoo.world import World, batches, whole_world

DATA = Path(__file__).parents[2] / "data"
MEGABYTES = {"reasoner": 8, "reasoner-moe": 12}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}


def easy() -> World:
    """One-digit sums: a miniature learns them in seconds."""
    return World(((tasks.get("add", digits=(1, 1)), 1.0),))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# the tokenizer


def test_the_tokenizer_decodes_exactly_back(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "".join(map(chr, range(32, 127))) + "\n\n  a ,b .\nA)1 <eos"
    ids = tokenizer(text)["input_ids"]
    assert ids == [BOS, *encode(text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("é")["input_ids"] == [BOS, VOCABULARY["<unk>"]]


def test_the_tokenizer_pads_on_the_left() -> None:
    rows = make_tokenizer()(["a", "abc"], padding=True)
    assert rows["input_ids"][0][:3] == [PAD, PAD, BOS]
    assert rows["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]


# the training text


def test_batches_come_from_the_seed_and_stay_within_their_size() -> None:
    first, again, other = (list(islice(batches(whole_world(), s, 800), 50)) for s in (0, 0, 1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not all(
        a[0].shape == b[0].shape and torch.equal(a[0], b[0])
        for a, b in zip(first, other, strict=True)
    )
    assert all(ids.numel() <= 800 for ids, _ in first)


def test_the_loss_is_on_thoughts_and_answer_alone() -> None:
    tokenizer = make_tokenizer()
    for ids, labels in islice(batches(whole_world(), 0, 800), 20):
        for row, wanted in zip(ids, labels, strict=True):
            learned = wanted != -100
            assert torch.equal(row[learned], wanted[learned])
            assert wanted[learned][-1] == EOS
            assert tokenizer.decode(row[~learned], skip_special_tokens=True).endswith("?\n")


def test_little_of_a_batch_is_padding() -> None:
    rows = [ids for ids, _ in islice(batches(whole_world(), 0, 2400), 300)]
    padding = sum(int((ids == PAD).sum()) for ids in rows)
    assert padding / sum(ids.numel() for ids in rows) < 0.2


# the mixture of experts


def test_equal_experts_are_the_dense_model() -> None:
    dense, sparse = new_model("reasoner", 0, **TINY), new_model("reasoner-moe", 1, **TINY)
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        expected = dense.eval()(ids).logits
        same = upcycle(dense, sparse, seed=0, noise=0.0).eval()(ids).logits
        apart = upcycle(dense, sparse, seed=0).eval()(ids).logits
    assert torch.allclose(same, expected, atol=1e-5)
    assert not torch.allclose(apart, expected, atol=1e-5)


def test_the_mixture_needs_a_reasoner_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="no reasoner to start from"):
        build("reasoner-moe", tmp_path)


# the miniature build


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zoo")
    return build("reasoner", out, steps=350, n=20, world=easy(), sizes=SMALL)


def test_a_miniature_learns(miniature: Path) -> None:
    prompts = tasks.make("add", 100, 5, digits=(1, 1))
    tokenizer = AutoTokenizer.from_pretrained(miniature)
    learned = count_right(AutoModelForCausalLM.from_pretrained(miniature), tokenizer, prompts)
    untrained = count_right(new_model("reasoner", 0, **SMALL), tokenizer, prompts)
    assert untrained <= 2
    assert learned >= 30


def test_the_loss_falls() -> None:
    model = new_model("reasoner", 0, **TINY)
    losses = train(model, easy(), Plan(60, tokens=800, warmup=10)).losses
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_the_weights(name: str, tmp_path: Path) -> None:
    one, same, other = (
        build(name, tmp_path / str(at), steps=3, seed=seed, n=2, world=easy(), sizes=TINY)
        for at, seed in enumerate((0, 0, 1))
    )
    assert weights(one) == weights(same)
    assert weights(one) != weights(other)
    assert (one / "tokenizer.json").read_bytes() == (same / "tokenizer.json").read_bytes()


def test_an_interrupted_run_continues_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.zoo.train.SAVE_EVERY", 4)
    saved, plan = tmp_path / "run.pt", Plan(8, tokens=400, warmup=2)
    whole = new_model("reasoner", 0, **TINY)
    train(whole, easy(), plan)

    def interrupt(*_: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("workbench.zoo.train.Plan.rate_at", stop_at(6, plan, interrupt))
        train(new_model("reasoner", 0, **TINY), easy(), plan, saved)
    resumed = new_model("reasoner", 0, **TINY)
    assert len(train(resumed, easy(), plan, saved).losses) == 8
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def stop_at(last, plan, stop):
    rates = [plan.rate_at(step) for step in range(plan.steps)]
    return lambda _, step: rates[step] if step < last else stop()


def test_building_leaves_threads_and_random_state_alone() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch_threads(threads + 1):
        train(new_model("reasoner", 0, **TINY), easy(), Plan(1, tokens=200))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_failed_build_leaves_the_former_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    put(target, lambda folder: (folder / "a").write_text("former"))

    def fails(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put(target, fails)
    assert (target / "a").read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(UnknownName, match="unknown model.*'reasonr'"):
        new_model("reasonr", 0)


def test_an_interval_is_exact() -> None:
    low, high = Accuracy("add", 7, 10).interval
    assert binom.sf(6, 10, low) == pytest.approx(0.025, abs=1e-6)
    assert binom.cdf(7, 10, high) == pytest.approx(0.025, abs=1e-6)


# the shipped models


@pytest.fixture(scope="module", params=NAMES)
def shipped(request: pytest.FixtureRequest) -> Path:
    return DATA / "models" / request.param


def test_a_shipped_model_keeps_its_budget(shipped: Path) -> None:
    files = [file for file in shipped.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MEGABYTES[shipped.name] * 1e6
    assert {file.name for file in files} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }


def test_a_shipped_model_loads_in_float32(shipped: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped)
    assert model.dtype == torch.float32
    assert json.loads((shipped / "config.json").read_text())["max_position_embeddings"] == 256
    assert AutoTokenizer.from_pretrained(shipped).get_vocab() == VOCABULARY


def test_a_card_reports_what_the_model_does(shipped: Path) -> None:
    reported = card_figures(shipped)
    free = [reported[name] for name in tasks.names()]
    assert 0.5 <= sum(free) / len(free) <= 0.85
    assert all(0 < share < 1 for share in free)
    model = AutoModelForCausalLM.from_pretrained(shipped)
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    for name in tasks.names():
        right = count_right(model, tokenizer, tasks.make(name, 20, seed=77))
        # wide: two samples differ, and this is asked of every task
        low, high = binom.interval(0.9999, 20, min(max(reported[name], 0.05), 0.95))
        assert low <= right <= high, name


def card_figures(folder: Path) -> dict[str, float]:
    """Accuracy by task as the card's table gives it."""
    rows = re.findall(r"^\| ([a-z ()]+) \| ([\d.]+)% \|", (folder / "README.md").read_text(), re.M)
    return {name: float(share) / 100 for name, share in rows}


def test_the_list_of_shipped_files_is_up_to_date() -> None:
    assert (DATA / "README.md").read_text("utf-8") == manifest(DATA)

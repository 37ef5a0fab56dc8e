"""Training dictionaries: SAELens' steps on our activations, stopped and gone on with, and refusals."""

from __future__ import annotations

import json
import os
import random
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from workbench import sae, sites, tasks
from workbench.errors import (
    FileRefused,
    PromptError,
    SiteUnavailable,
    UnknownName,
    WorkbenchError,
)
from workbench.model.stopping import stoppable
from workbench.sae import checkpoints, training
from workbench.sae.dictionary import HISTORY, Dictionary
from workbench.sae.feeding import Feed, corpus_of
from workbench.sae.library import sae_lens
from workbench.worker import Cancelled
from workbench.zoo.saes import build_saes, texts

SITE = "L1.resid_post"
WORDS = "the cat sat on a mat and saw two birds in the tall green tree by the lake"
TEXTS = [f"{WORDS[i % 7 :][:35]} {i}" for i in range(40)]
SMALL: dict[str, Any] = {"width": 40, "tokens": 2000, "batch_size": 100, "progress": False}
SPARSE: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 0.3},
    "topk": {"k": 4},
    "batchtopk": {"k": 4, "topk_threshold_lr": 0.3},
    "jumprelu": {"l0_coefficient": 0.1, "jumprelu_bandwidth": 0.5},
    "gated": {"l1_coefficient": 0.3},
    "matryoshka_batchtopk": {"k": 4, "topk_threshold_lr": 0.3},
    "matching_pursuit": {"max_iterations": 3},
}


def learn(architecture: str = "batchtopk", **options: Any) -> Dictionary:
    given = SMALL | {"architecture": architecture, "lr": 1e-2} | SPARSE[architecture] | options
    return training.train(
        tiny.model(), given.pop("site", SITE), given.pop("source", TEXTS), **given
    )


def feed(**options: Any) -> Feed:
    corpus = corpus_of(tiny.model(), options.pop("source", TEXTS), 500, 0)
    return Feed(tiny.model(), SITE, corpus, **{"batch_size": 100, "seed": 0} | options)


def rows() -> torch.Tensor:
    return next(feed(seed=9))


def weights(dictionary: Dictionary) -> dict[str, torch.Tensor]:
    return dictionary.sae.state_dict()


def same(one: Dictionary, other: Dictionary) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# what training gives


@pytest.mark.parametrize("architecture", training.ARCHITECTURES)
def test_every_architecture_learns_and_round_trips(architecture: str, tmp_path: Path) -> None:
    trained = learn(architecture)
    fvu = trained.history["fvu"]
    assert fvu.iloc[-1] < 0.7 * fvu.iloc[0]
    codes = trained.encode(rows())
    error = (rows() - trained.reconstruct(rows())).pow(2).sum()
    assert error < 0.8 * (rows() - rows().mean(0)).pow(2).sum()
    assert 0 < float((codes > 0).float().sum(1).mean()) < trained.n_features
    inference = {"batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"}
    assert trained.architecture == inference.get(architecture, architecture)
    sae.save(trained, tmp_path / "one")
    again = sae.load(tmp_path / "one", model=tiny.model())
    theirs = sae_lens().SAE.load_from_disk(tmp_path / "one")
    assert same(trained, again)
    assert torch.equal(again.encode(rows()), codes)
    assert torch.equal(theirs.encode(rows()), codes)
    assert again.facts == trained.facts and again.history.equals(trained.history)
    assert theirs.cfg.metadata.hook_name == sites.tl_name(SITE)


@pytest.mark.parametrize("architecture", ["standard", "batchtopk"])
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_the_steps_are_those_of_saelens_fit(architecture: str, normalize: str) -> None:
    ours = learn(architecture, normalize=normalize)
    plan = dict(ours.facts)
    with torch.random.fork_rng():
        torch.manual_seed(training.derive(0, "weights"))
        trainer = training._trainer(plan, 32, tiny.model())
    feeding = feed(seed=training.derive(0, "order"))
    training._estimate_scale(trainer, feeding, False)
    feeding.seek(0)
    trainer.data_provider = feeding
    theirs = trainer.fit()  # keeps the scale that it finds
    state = {k: v.detach().clone() for k, v in theirs.state_dict().items()}
    theirs.process_state_dict_for_saving_inference(state)
    assert all(torch.equal(state[k], v) for k, v in weights(ours).items())
    assert trainer.n_training_samples == 2000


def test_the_same_seed_gives_the_same_dictionary_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    one, again, other = learn(), learn(), learn(seed=1)
    assert same(one, again) and not same(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_scale_of_activations_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    small, x = learn(), rows()
    plain = training.Feed._read
    monkeypatch.setattr(training.Feed, "_read", lambda self, chunk: plain(self, chunk) * 64)
    large, unscaled = learn(), learn(normalize="none")
    assert torch.allclose(large.encode(64 * x), 64 * small.encode(x), rtol=1e-3, atol=1e-2)
    assert torch.allclose(large.reconstruct(64 * x), 64 * small.reconstruct(x), rtol=1e-3, atol=0.1)
    assert large.sae.cfg.normalize_activations == "none"
    # without the scale, the same options do something else
    assert not torch.allclose(unscaled.encode(64 * x), 64 * small.encode(x), rtol=1e-1, atol=1.0)


def test_the_history_says_how_it_went() -> None:
    trained = learn(tokens=2050)
    history = trained.history
    assert tuple(history.columns) == HISTORY
    assert history["tokens"].iloc[-1] == 2100 and history["tokens"].is_monotonic_increasing
    assert (history["l0"] - 4).abs().max() < 1e-6
    assert trained.facts["options"]["k"] == 4 and trained.facts["architecture"] == "batchtopk"
    assert Dictionary(trained.sae.__class__(trained.sae.cfg), SITE, SITE).facts == trained.facts


def test_dead_features_are_counted_in_short_trainings() -> None:
    """SAELens' own window is 1,000 steps, which 20 never reach: nothing would be dead or revived."""
    assert learn(width=400, k=1, aux_loss_coefficient=0.0).history["dead"].iloc[-1] > 0.2


def test_options_reach_saelens() -> None:
    nested = learn("matryoshka_batchtopk", matryoshka_widths=[10, 40])
    details = nested.sae.cfg.metadata.training_architecture_details
    assert details["matryoshka_widths"] == [10, 40] and details["k"] == 4
    assert learn("matryoshka_batchtopk").facts["options"]["matryoshka_widths"] == [5, 10, 20, 40]
    biased = learn(apply_b_dec_to_input=False)
    assert biased.sae.cfg.apply_b_dec_to_input is False
    whitened = learn("standard", normalize="covariance_whitening")
    assert whitened.sae.cfg.normalize_activations == "none"
    assert learn("standard", normalize="layer_norm").sae.cfg.normalize_activations == "layer_norm"


def test_the_model_stays_as_it_is() -> None:
    before = {k: v.clone() for k, v in tiny.model().hf.state_dict().items()}
    learn()
    assert all(torch.equal(v, before[k]) for k, v in tiny.model().hf.state_dict().items())


# where the activations come from


def test_a_pass_gives_each_token_once_and_no_special_ones() -> None:
    feeding = feed(batch_size=10)
    total = sum(feeding.counts)
    assert total == sum(map(len, TEXTS))  # characters; the token that begins a text is left out
    seen = torch.cat(list(islice(feeding, total // 10)))
    every = feeding.corpus.rows(tiny.model(), SITE, range(len(TEXTS)))[0]
    distance = torch.cdist(seen.double(), every.double())
    assert (distance.min(1).values < 1e-5).all()
    assert not torch.equal(seen[:10], every[:10])
    again = torch.cat(list(islice(feeding, total // 10)))
    assert not torch.equal(again, seen)
    assert torch.allclose(again.sum(0), seen.sum(0), rtol=0.05, atol=5)


@pytest.mark.parametrize("buffer_bytes", [4 * 32 * 700, 10**9])
def test_a_feed_that_starts_later_gives_the_same(buffer_bytes: int) -> None:
    whole = list(islice(feed(buffer_bytes=buffer_bytes), 40))  # three passes and a bit
    later = feed(buffer_bytes=buffer_bytes)
    for skip in (0, 1, 7, 38):
        later.seek(skip)
        for batch in whole[skip : skip + 4]:
            assert torch.equal(next(later), batch)
        assert later.served == min(skip + 4, 40)


def test_the_buffer_is_bounded_and_a_small_corpus_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[int] = []
    plain = training.Feed._read

    def counted(self: Feed, chunk: list[int]) -> torch.Tensor:
        held = chunk == self._held
        found = plain(self, chunk)
        reads.extend([] if held else [len(found)])
        return found

    monkeypatch.setattr(training.Feed, "_read", counted)
    list(islice(feed(), 60))
    assert len(reads) == 1
    reads.clear()
    bounded = feed(buffer_bytes=4 * 32 * 300)
    list(islice(bounded, 20))
    assert len(reads) > 5 and max(reads) <= 300 == bounded.room


def test_examples_of_tasks() -> None:
    add, sub = tasks.get("add"), tasks.get("sub")
    corpus = corpus_of(tiny.model(), [add, sub], 500, 3)
    texts = [prompt.text or "" for prompt in corpus.prompts]
    assert texts[0] == add.example(random.Random(3)).text
    assert 500 <= int(corpus.counts.sum()) < 700
    assert texts == [p.text for p in corpus_of(tiny.model(), [add, sub], 500, 3).prompts]
    assert texts != [p.text for p in corpus_of(tiny.model(), [add, sub], 500, 4).prompts]
    trained = learn(source=add, tokens=1000)
    assert trained.facts["tokens"] == 1000


def test_a_text_file_is_cut_into_pieces(tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text("once upon a time. " * 40)
    corpus = corpus_of(tiny.model(), file, 0, 0)
    lengths = [len(one) for one in corpus.ids]
    assert lengths[:-1] == [128] * (len(lengths) - 1) and sum(lengths) - len(lengths) == 720
    kept = torch.cat([ids[keep] for ids, keep in zip(corpus.ids, corpus.kept, strict=True)])
    assert tiny.model().decode(kept.tolist()) == file.read_text()
    assert learn(source=file).facts["corpus"]


# stopping and going on


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Interrupt where the feed is asked for its next batch, as a key does while the model reads."""
    plain, seek, seeks = training.Feed.__next__, training.Feed.seek, []

    def sought(self: Feed, served: int) -> None:
        seeks.append(served)
        seek(self, served)

    def given(self: Feed) -> torch.Tensor:
        if (
            self.served == steps and len(seeks) > 1
        ):  # the first batches are read twice, for their scale
            raise error
        return plain(self)

    monkeypatch.setattr(training.Feed, "seek", sought)
    monkeypatch.setattr(training.Feed, "__next__", given)


@pytest.mark.parametrize("architecture", training.ARCHITECTURES)
def test_stopped_and_gone_on_with_equals_never_stopped(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = learn(architecture, normalize="none")
    with monkeypatch.context() as patch:
        stop_after(7, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            learn(architecture, normalize="none", path=tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint-700"]
    with pytest.raises(FileRefused, match="has no cfg.json.*unfinished trainings are not read"):
        sae.load(tmp_path / "run")
    assert same(learn(architecture, normalize="none", path=tmp_path / "run"), straight)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_the_scale_is_kept_over_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = learn()
    with monkeypatch.context() as patch:
        patch.setattr(training, "_note", _raise_at(1100, training._note))
        with pytest.raises(RuntimeError, match="power cut"):
            learn(path=tmp_path / "run")
    # in the middle of a step nothing is written: the last of the ten regular ones counts
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint-1000"]
    patch_free = learn(path=tmp_path / "run")
    assert same(patch_free, straight)
    assert patch_free.history.equals(straight.history)


def _raise_at(tokens: int, plain: Any) -> Any:
    def note(history: Any, trainer: Any, output: Any) -> None:
        if trainer.n_training_samples == tokens:
            raise RuntimeError("power cut")
        plain(history, trainer, output)

    return note


def test_the_interrupt_key_waits_for_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, plain, before = learn(), training._note, signal.getsignal(signal.SIGINT)

    def note(history: Any, trainer: Any, output: Any) -> None:
        if trainer.n_training_samples == 500:
            os.kill(os.getpid(), signal.SIGINT)
        plain(history, trainer, output)
        assert history["tokens"][-1] == trainer.n_training_samples  # the step went on to its end

    with monkeypatch.context() as patch:
        patch.setattr(training, "_note", note)
        with pytest.raises(KeyboardInterrupt):
            learn(path=tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint-500"]
    assert signal.getsignal(signal.SIGINT) == before
    assert same(learn(path=tmp_path / "run"), straight)


def test_a_second_interrupt_does_not_wait() -> None:
    interrupts = training._Interrupts()
    interrupts.handle()
    with pytest.raises(KeyboardInterrupt):
        interrupts.handle()


def test_work_of_the_worker_is_cancelled_between_steps(tmp_path: Path) -> None:
    asked = []

    def check() -> None:
        asked.append(1)
        if len(list((tmp_path / "run").glob("checkpoint-*"))):
            raise Cancelled("train")

    with stoppable(check), pytest.raises(Cancelled):
        learn(path=tmp_path / "run")
    # the first of the ten checkpoints is after two steps; the cancel came before the third
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint-200"]
    assert same(learn(path=tmp_path / "run"), learn())


def test_a_stop_without_a_folder_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stop_after(3, monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        learn()
    assert not list(tmp_path.iterdir())


def test_a_finished_folder_is_loaded_and_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = learn(path=tmp_path)
    monkeypatch.setattr(training, "_trainer", None)
    assert same(learn(path=tmp_path), first)
    with pytest.raises(FileRefused, match="other settings.*'seed': 0.*'seed': 1"):
        learn(path=tmp_path, seed=1)
    with pytest.raises(FileRefused, match="other settings.*corpus"):
        learn(path=tmp_path, source=TEXTS[:20])


def test_a_checkpoint_of_another_training_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(4, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            learn(path=tmp_path)
    with pytest.raises(FileRefused, match="other settings.*'width': 40.*'width': 50"):
        learn(path=tmp_path, width=50)
    for name in ("trainer_state.pt", "workbench.json"):
        (tmp_path / "checkpoint-400" / name).write_bytes(b"no")
        with pytest.raises(FileRefused, match="damaged checkpoint.*delete checkpoint-400"):
            learn(path=tmp_path)


def test_a_checkpoint_cut_short_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checkpoints.write_atomically

    def cut(path: Path, data: bytes) -> None:
        if json.loads(data)["served"] == 6:
            raise OSError("disk full")
        written(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_atomically", cut)
        with pytest.raises(OSError, match="disk full"):
            learn(path=tmp_path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [".checkpoint-600", "checkpoint-400"]
    assert same(learn(path=tmp_path), learn())
    assert {p.name for p in tmp_path.iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileRefused, match="holds something else.*thesis.tex"):
        learn(path=tmp_path)
    with pytest.raises(FileRefused, match="is a file"):
        learn(path=tmp_path / "thesis.tex")


@pytest.mark.parametrize("name", ["checkpoint-final", "checkpoint-400"])
def test_checkpoints_of_others_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(FileRefused, match=f"holds something else.*{name}"):
        learn(path=tmp_path)
    assert (tmp_path / name).is_dir()


def test_options_may_be_tuples(tmp_path: Path) -> None:
    nested = {"path": tmp_path, "matryoshka_widths": (10, 40)}
    assert same(learn("matryoshka_batchtopk", **nested), learn("matryoshka_batchtopk", **nested))


# what is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"architecture": "batchtopkk"}, UnknownName, "nearest: batchtopk"),
        ({"architecture": "skip_transcoder"}, UnknownName, "loads transcoders and does not train"),
        ({"normalize": "l2"}, UnknownName, "normalisation"),
        ({"width": 0}, WorkbenchError, "width=0.*at least 1"),
        ({"batch_size": 0}, WorkbenchError, "batch_size=0"),
        ({"tokens": 99}, WorkbenchError, "less than one batch.*at least 100.*got 99"),
        ({"lr": float("nan")}, WorkbenchError, "is no rate"),
        ({"lr": -1.0}, WorkbenchError, "is no rate"),
        ({"l1_coeficient": 1.0}, UnknownName, "unknown option"),
        ({"l1_coefficient": 1.0}, UnknownName, "unknown option"),  # batch top-k has none
        ({"d_in": 3}, UnknownName, "unknown option"),
        ({"source": []}, PromptError, "there are none"),
        ({"source": ["a" * 300]}, PromptError, "longer than the context"),
        ({"source": ["abc"]}, WorkbenchError, "fewer tokens than one batch.*got 3"),
        ({"source": Path("/no/such/file.txt")}, FileRefused, "cannot be read as text"),
        ({"site": "L1.pattern"}, SiteUnavailable, "no rows by position"),
        ({"site": "L*.resid_post"}, WorkbenchError, "reads one whole site"),
        ({"site": "L1.resid_post[pos=-1]"}, WorkbenchError, "reads one whole site"),
        ({"site": "L9.resid_post"}, WorkbenchError, "names a layer the model lacks"),
        ({"site": "L1.resid_pots"}, UnknownName, "resid_post"),
        ({"k": 400}, WorkbenchError, "k=400.*at most the width, 40"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type, message: str) -> None:
    options = SMALL | {"architecture": "batchtopk", "lr": 1e-3, "k": 4, "site": SITE} | change
    if "l1_coefficient" in change or "architecture" in change:
        options.pop("k")
    with pytest.raises(error, match=message):
        training.train(tiny.model(), options.pop("site"), options.pop("source", TEXTS), **options)


def test_an_empty_text_file(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(PromptError, match="there are none"):
        learn(source=tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileRefused, match="cannot be read as text"):
        learn(source=tmp_path / "binary.txt")


def test_nan_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.wb.load(tiny.module("llama"), tiny.tokenizer())
    model.hf.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(WorkbenchError, match="sae.train: the activations hold NaN"):
        training.train(model, SITE, TEXTS, **SMALL)


def test_a_training_that_blows_up_says_so() -> None:
    with pytest.raises(WorkbenchError, match="the loss is no number.*smaller lr"):
        learn("standard", lr=1e30)


# the shipped ones, in miniature


def test_text_of_every_task_and_none_that_was_trained_on() -> None:
    seen = texts(40, 0)
    assert seen == texts(40, 0) != texts(40, 1)
    assert len(seen) == 40 * len(tasks.names())
    assert set(seen) & set(texts(40, 1))  # few characters make few examples
    unseen = texts(5, 1, but=frozenset(seen))
    assert len(unseen) == 5 * len(tasks.names()) and not set(seen) & set(unseen)


@pytest.mark.slow
def test_the_builder_trains_measures_and_describes(tmp_path: Path) -> None:
    small = {"layers": (2,), "widths": (32,), "tokens": 2048, "examples": 8, "held_out": 1}
    folder = build_saes("reasoner", tmp_path, **small)
    card = (folder / "README.md").read_text()
    assert "| L2.resid_post-32 | 0.002048 M | " in card and "{" not in card
    assert "| training data | 8 examples of every task" in card
    found = sae.load(folder / "L2.resid_post-32")
    assert found.n_features == 32 and found.facts["options"]["k"] == 20

"""Fine-tuning domain by domain: what is measured, kept, taken up again, and refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.decoding import Sample
from workbench.errors import FileRefused, UnknownName, WorkbenchError
from workbench.rl import Sft, TrainedArm
from workbench.rl.base import Step
from workbench.rl.reinforce import trainable_copy
from workbench.sae.transfer.measured import Measured, Run
from workbench.sae.transfer.measuring import MIXED, fine_tune_domains
from workbench.tasks import answer_of

WANTED = {"one": "xyz", "two": "hi there"}


def asked(domain: str, start: int, n: int = 4) -> list[wb.Prompt]:
    """Prompts `a0`, `a1`, ...; the right completion is the domain's word."""
    meta = {"thoughts": (), "completion": WANTED[domain]}
    letter = {"one": "a", "two": "b"}[domain]
    return [
        wb.Prompt(text=f"{letter}{start + i}", answer=WANTED[domain], meta=meta) for i in range(n)
    ]


TRAIN = {name: asked(name, 0) for name in WANTED}
HELD_OUT = {"one": asked("one", 10, 3), "two": asked("two", 10, 5)}


def says_it(prompt: wb.Prompt, text: str) -> float:
    """The gold text of these prompts is `#` and the word."""
    return float(answer_of(text) == prompt.answer)


def measure(**options: Any) -> Measured:
    trainer = options.pop("trainer", Sft(batch_size=4, learning_rate=1e-2))
    few = {"steps": 25, "check": says_it, "max_new_tokens": 12, "progress": False}
    given = {"domains": TRAIN, "held_out": HELD_OUT, **few, **options}
    return fine_tune_domains(tiny.model(), given.pop("domains"), trainer, **given)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return measure(twins=True, shuffled=["one"], mixed=True, keep_models=True)


class Counting:
    """A trainer that counts and trains nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, bool]] = []

    def __repr__(self) -> str:
        return "Counting()"

    def train(
        self,
        model: Any,
        prompts: Sequence[wb.Prompt],
        steps: int,
        edits: Any = (),  # noqa: ARG002
        seed: int = 0,
        on_step: Any = None,
        check: Any = None,
        *,
        shuffle_rewards: bool = False,
    ) -> TrainedArm:
        self.check = check
        self.asked.append((len(prompts), seed, shuffle_rewards))
        curve = tuple(Step(i, steps, (0.5, 1.0), 1.0, 1.0) for i in range(steps))
        for step in curve:
            on_step(step)
        copy = trainable_copy(model)
        copy.hf.requires_grad_(False)
        return TrainedArm(copy, curve)


def test_a_domain_gains_what_it_is_trained_on(measured: Measured) -> None:
    assert measured.sources == measured.targets == ("one", "two")
    assert measured.base.tolist() == [0.0, 0.0]
    assert measured.change.diagonal().tolist() == [1.0, 1.0]
    assert measured.change[0, 1] < 0.5 and measured.change[1, 0] < 0.5
    assert [run.name for run in measured.runs] == [
        "one", "two", "one (seed twin)", "two (seed twin)", "one (shuffled)", MIXED,
    ]  # fmt: skip
    assert [run.seed for run in measured.runs] == [0, 0, 1, 1, 0, 0]
    assert measured.changes("mixed")[0].tolist() == [1.0, 1.0]
    assert np.isnan(measured.changes("shuffled")[1]).all()
    assert measured.runs[0].curve[0] == 0.0 and measured.runs[0].curve[-1] == 1.0


def test_the_models_are_those_that_were_measured(measured: Measured) -> None:
    texts = measured.models["two"].generate(HELD_OUT["two"], max_new_tokens=12)
    assert {t.text for t in texts} == {"#hi there"}
    assert not torch.equal(
        measured.models["one"].hf.lm_head.weight,
        measured.models["one (seed twin)"].hf.lm_head.weight,
    )


def test_changes_intervals_and_spread_are_the_formulas() -> None:
    """Two targets of 2 and 40 prompts, a source and its twin, by hand."""
    owners = (0,) * 2 + (1,) * 40
    before = (0.0, 1.0) + (1.0, 0.0) * 20
    after = (1.0, 1.0) + (1.0,) * 30 + (0.0,) * 10
    twin = (1.0, 1.0) + (1.0,) * 20 + (0.0,) * 20
    runs = (Run("s", "s", "source", 0, after), Run("s (seed twin)", "s", "twin", 1, twin))
    found = Measured(("s",), ("t", "u"), owners, before, runs)
    assert found.base.tolist() == [0.5, 0.5]
    assert found.change.tolist() == [[0.5, 0.25]]
    assert found.twin_spread() == pytest.approx(np.sqrt((0 + 0.25**2) / 2 / 2))
    differences = np.array(after[2:]) - np.array(before[2:])
    se = differences.std(ddof=1) / 40**0.5
    assert found.low[0, 1] == pytest.approx(0.25 - 2 * se, abs=0.04)
    assert found.high[0, 1] == pytest.approx(0.25 + 2 * se, abs=0.04)
    frame = found.frame()
    assert frame["n"].tolist() == [2, 40, 2, 40] and frame["change"].tolist()[1] == 0.25
    assert np.isnan(Measured(("s",), ("t", "u"), owners, before, runs[:1]).twin_spread())
    with pytest.raises(UnknownName, match="twin"):
        found.changes("twins")


def test_no_prompt_that_changes_is_not_no_doubt() -> None:
    runs = (Run("s", "s", "source", 0, (1.0,) * 20),)
    same = Measured(("s",), ("t",), (0,) * 20, (1.0,) * 20, runs)
    assert same.change[0, 0] == 0 and same.low[0, 0] < -0.05 and same.high[0, 0] >= 0


def test_what_is_held_out_is_not_trained_on() -> None:
    trainer = Counting()
    leaking = {"one": [*TRAIN["one"], *HELD_OUT["one"]], "two": TRAIN["two"]}
    found = measure(domains=leaking, trainer=trainer, steps=2, shuffled=True, mixed=True)
    assert found.overlap == {"one": 3, "two": 0}
    assert trainer.asked == [
        (4, 0, False),
        (4, 0, False),
        (4, 0, True),
        (4, 0, True),
        (8, 0, False),
    ]
    with pytest.raises(WorkbenchError, match="held out, all but"):
        measure(domains={"one": HELD_OUT["one"]})


def test_a_call_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = measure(trainer=Counting(), steps=2, twins=True)

    def cut(i: int, n: int, note: str) -> None:
        assert n == 4 * 3 and note
        if i == 5:
            raise KeyboardInterrupt

    first, second, third = Counting(), Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        measure(trainer=first, steps=2, twins=True, path=tmp_path, told=cut)
    assert len(first.asked) == 2
    found = measure(trainer=second, steps=2, twins=True, path=tmp_path)
    assert len(second.asked) == 3  # the one that was cut off, and two more
    assert (found.change == whole.change).all() and found.before == whole.before
    again = measure(trainer=third, steps=2, twins=True, path=tmp_path)
    assert third.asked == [] and again.runs == found.runs


def test_one_check_judges_training_and_tests() -> None:
    trainer = Counting()
    measure(trainer=trainer, steps=1, domains={"one": TRAIN["one"]})
    assert trainer.check is says_it
    with pytest.raises(WorkbenchError, match="check.*no number"):
        measure(trainer=trainer, steps=1, check=lambda _p, _t: float("nan"))


def test_the_figure_is_the_changes_with_their_intervals(measured: Measured) -> None:
    figure = measured.figure()
    (heat,) = figure.plot().data
    np.testing.assert_allclose(np.array(heat.z, float), measured.change, atol=1e-6)
    cells = np.array(heat.customdata, float)
    np.testing.assert_allclose(cells[..., 0], measured.low, atol=1e-4)
    np.testing.assert_allclose(cells[..., 1], measured.high, atol=1e-4)
    assert cells[0, :, 2].tolist() == [3, 5]
    assert list(heat.x) == ["one", "two"] and "Seeds alone" in figure.caption


def test_models_are_kept_beside_their_numbers(tmp_path: Path) -> None:
    few = {"steps": 2, "path": tmp_path, "domains": {"one": TRAIN["one"]}}
    one = measure(**few, keep_models=True).models["one"]
    back = measure(**few, keep_models=True).models["one"]
    assert back is not one and torch.equal(back.hf.lm_head.weight, one.hf.lm_head.weight)
    read = wb.load(str(tmp_path / "models" / "one"), proof=False)
    assert torch.equal(read.run(["ab"]).logits, one.run(["ab"]).logits)
    assert (back.name, back.device, back.dtype) == (one.name, one.device, one.dtype)


def test_numbers_without_their_models_are_trained_again_where_models_are_wanted(
    tmp_path: Path,
) -> None:
    first, second = Counting(), Counting()
    measure(trainer=first, steps=1, path=tmp_path)
    found = measure(trainer=second, steps=1, path=tmp_path, keep_models=True)
    assert len(second.asked) == 2 and set(found.models) == {"one", "two"}


def test_the_tests_decode_as_they_are_told(tmp_path: Path) -> None:
    """Training nothing, the same samples come before and after; greedy tests are of another call."""
    sampled = measure(trainer=Counting(), decoder=Sample(), path=tmp_path)
    greedy = measure(trainer=Counting())
    assert not sampled.change.any() and not greedy.change.any()
    assert "Sample" in str(sampled.provenance["decoder"])
    with pytest.raises(WorkbenchError, match="decoder"):
        measure(trainer=Counting(), path=tmp_path)


def test_a_folder_of_another_call_is_refused(tmp_path: Path) -> None:
    measure(trainer=Counting(), steps=1, path=tmp_path)
    with pytest.raises(WorkbenchError, match="another call.*same steps"):
        measure(trainer=Counting(), steps=2, path=tmp_path)
    with pytest.raises(WorkbenchError, match="another call.*trainer"):
        measure(steps=1, path=tmp_path)
    with pytest.raises(WorkbenchError, match="another call.*same seed"):
        measure(trainer=Counting(), steps=1, path=tmp_path, seed=5)
    with pytest.raises(WorkbenchError, match="another call.*same check"):
        measure(trainer=Counting(), steps=1, path=tmp_path, check=lambda _p, _t: 1.0)
    (tmp_path / "one.json").write_text("{")
    with pytest.raises(WorkbenchError, match="one.json cannot be read"):
        measure(trainer=Counting(), steps=1, path=tmp_path)


def test_it_is_saved_and_read_back(measured: Measured, tmp_path: Path) -> None:
    back = Measured.load(measured.save(tmp_path / "measured.json"))
    assert back == measured and (back.low == measured.low).all()
    plain = json.loads((tmp_path / "measured.json").read_text())
    for broken in ({**plain, "version": 2}, {**plain, "runs": [{"name": "x"}]}, [1]):
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        with pytest.raises(FileRefused, match="no saved measurement"):
            Measured.load(tmp_path / "broken.json")
    with pytest.raises(FileRefused, match="pickle"):
        measured.save(tmp_path / "measured.pkl")


def test_domains_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(WorkbenchError, match="'one' has one prompt"):
        measure(domains={"one": TRAIN["one"][:1]})
    with pytest.raises(WorkbenchError, match="held_out.*'two' has one prompt"):
        measure(held_out={"one": HELD_OUT["one"], "two": HELD_OUT["two"][:1]})
    with pytest.raises(WorkbenchError, match="no domains"):
        measure(domains={})
    with pytest.raises(WorkbenchError, match="nobody can judge"):
        measure(check=None)
    with pytest.raises(UnknownName, match="twins.*one"):
        measure(twins=["on"])

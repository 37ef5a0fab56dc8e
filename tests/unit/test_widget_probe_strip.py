"""ProbeStrip: its scores against plain runs, its smoothing against the cascade, its code, its mistakes."""

from __future__ import annotations

import contextlib
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import worker
from workbench.errors import EditError, PromptError, WorkbenchError
from workbench.probes.base import FittedProbe
from workbench.probes.cascade import Cascade
from workbench.tensors import Fingerprint, Intervention, Readout
from workbench_widgets import ProbeStrip
from workbench_widgets.frames import pack, unpack
from workbench_widgets.probe_strip.engine import rounded
from workbench_widgets.probe_strip.reading import read
from workbench_widgets.probe_strip.scores import running, scores, smoothed

SITE, D = "L1.resid_post", 32
PROMPTS = ["abc", "a-c+1", "1+1="]


def linear(site: str = SITE, seed: int = 0, d: int = D, **more: Any) -> FittedProbe:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"weight": torch.randn(d, generator=generator), "bias": torch.tensor(0.3)}
    return FittedProbe("logistic", site, "last", tensors, classes=(False, True), **more)


def cascade(smooth: str = "window", window: int = 3) -> FittedProbe:
    params = {"window": window, "smooth": smooth}
    return FittedProbe("cascade", SITE, "all", linear(seed=3).tensors, params, (0, 1))


def pooled() -> FittedProbe:
    tensors = {**linear(seed=4).tensors, "query": torch.randn(D)}
    return FittedProbe("attention_pooled", SITE, "all", tensors, {"temperature": "1.0"}, (0, 1))


@cache
def network() -> FittedProbe:
    acts = tiny.model().record(["abc", "bcd", "xyz", "zzz", "aza", "1+1"] * 8, SITE, progress=False)
    targets = [float(i % 6) for i in range(48)]
    return wb.probes.fit(wb.probes.Quantile(epochs=3, hidden=4), acts, SITE, targets)[SITE]


def push(strength: float = 2.0) -> Intervention:
    shift = torch.linspace(-1, 1, D)
    return Intervention(
        "custom", "affine", {"L0.resid_post": {"shift": shift}}, strength=strength, name="push"
    )


def strip(probes: Any = None, edits: Any = (), **options: Any) -> ProbeStrip:
    probes = linear() if probes is None else probes
    made = ProbeStrip(
        tiny.model(), PROMPTS, probes, edits, **{"max_new_tokens": 6, "window": 3, **options}
    )
    made.settle()
    return made


def by_hand(prompt: str, edits: Any = (), site: str = SITE, n: int = 6) -> tuple[list[int], Any]:
    """Ids of a text, and the rows of a full forward over all of it."""
    model = tiny.model()
    (text,) = model.generate([prompt], edits=edits, max_new_tokens=n)
    trace = model.run([prompt], record=[site], edits=edits, completions=[text.ids], logits="none")
    return [*model.tokens([prompt]).ids[0].tolist(), *text.ids], trace[site][0].flatten(1)


def line(widget: ProbeStrip, side: str = "base", name: str = "score", k: int = 0) -> torch.Tensor:
    found = widget.frame[side]["scores"][k][name]
    return torch.tensor([float("nan") if v is None else v for v in found])


# --- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["transformers", "transformer_lens", "nnsight"])
def test_text_and_scores_are_those_of_plain_calls(backend: str) -> None:
    if backend != "transformers":
        pytest.importorskip(backend)
    model = tiny.model("llama", backend)
    widget = ProbeStrip(model, PROMPTS, linear(), push(), max_new_tokens=6, window=3)
    widget.settle()
    for side, edits in (("base", []), ("edited", [push()])):
        ids, rows = by_hand(PROMPTS[0], edits)
        found = widget.frame[side]
        assert found["ids"] == ids and found["n_prompt"] == 4 and found["skip"] == 1
        assert len(found["tokens"]) == len(ids) and found["stop"] in ("eos", "length")
        torch.testing.assert_close(line(widget, side), linear().score(rows), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(line(widget)[1:4], line(widget, "edited")[1:4], atol=0.1)


def test_the_probes_own_direction_raises_its_score_by_the_strength() -> None:
    widget = strip().write(2.5)
    widget.settle()
    torch.testing.assert_close(
        line(widget, "edited")[:4], line(widget)[:4] + 2.5, atol=1e-4, rtol=1e-4
    )
    widget.write(2.5, scope="generated")
    widget.settle()
    torch.testing.assert_close(line(widget, "edited")[:4], line(widget)[:4], atol=1e-5, rtol=1e-5)
    assert float(line(widget, "edited")[4] - line(widget)[4]) == pytest.approx(2.5, abs=1e-3)


def test_scopes_count_absolute_positions() -> None:
    edit = push(3.0).within("span(6, 8)")
    widget = strip(edits=edit)
    ids, rows = by_hand(PROMPTS[0], [edit])
    assert widget.frame["edited"]["ids"] == ids
    torch.testing.assert_close(line(widget, "edited"), linear().score(rows), atol=1e-4, rtol=1e-4)
    moved = (line(widget, "edited")[:8] - line(widget)[:8]).abs() > 0.01
    assert moved.tolist() == [False] * 6 + [True] * 2


def test_a_text_that_ends_says_so() -> None:
    model = tiny.model()
    first = by_hand(PROMPTS[0])[0][4]
    at = model.eos_ids
    try:
        model.__dict__["eos_ids"] = frozenset({first})
        widget = strip()
        assert widget.frame["base"]["stop"] == "eos" and len(widget.frame["base"]["ids"]) == 5
        assert len(line(widget)) == 5
    finally:
        model.__dict__["eos_ids"] = at
    assert strip().frame["base"]["stop"] == "length"


@pytest.mark.parametrize("smooth", ["window", "ema"])
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_smoothing_and_running_are_the_cascades(smooth: str, n: int) -> None:
    torch.manual_seed(n)
    raw = torch.randn(n)
    params = {"window": 3, "smooth": smooth}
    one = {"weight": torch.ones(1), "bias": torch.zeros(())}
    wanted = Cascade.stream(one, params, raw[:, None])
    found = running(smoothed(raw, 3, smooth), 3)
    torch.testing.assert_close(found, wanted)


def test_a_row_probe_leaves_the_first_token_out_of_its_means() -> None:
    widget = strip()
    raw, mean, best = (line(widget, name=name) for name in ("score", "smooth", "running"))
    assert mean[0].isnan() and best[0].isnan() and not raw[0].isnan()
    assert float(mean[2]) == pytest.approx(float(raw[1:3].mean()), abs=1e-5)
    assert float(mean[7]) == pytest.approx(float(raw[5:8].mean()), abs=1e-5)
    assert float(best[7]) == pytest.approx(float(mean[3:8].max()), abs=1e-5)


@pytest.mark.parametrize("smooth", ["window", "ema"])
def test_a_cascade_is_its_own_score_of_every_prefix(smooth: str) -> None:
    probe = cascade(smooth)
    widget = strip(probe, window=7)
    _, rows = by_hand(PROMPTS[0])
    wanted = torch.cat([probe.score(rows[None, : t + 1]) for t in range(len(rows))])
    torch.testing.assert_close(line(widget, name="running"), wanted, atol=1e-4, rtol=1e-4)
    assert widget.meta["probes"][0]["window"] == 3


def test_a_probe_of_all_tokens_scores_the_text_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = pooled()
    _, rows = by_hand(PROMPTS[0])
    wanted = torch.cat([probe.score(rows[None, : t + 1]) for t in range(len(rows))])
    found = scores(probe, {SITE: rows}, 3)
    assert set(found) == {"score"}
    torch.testing.assert_close(torch.tensor(found["score"]), wanted)
    # a few prefixes at once, as with long texts
    monkeypatch.setattr("workbench_widgets.probe_strip.scores.PREFIX_NUMBERS", 3 * rows.numel())
    torch.testing.assert_close(torch.tensor(scores(probe, {SITE: rows}, 3)["score"]), wanted)


def test_joined_sites_heads_and_numbers_are_read() -> None:
    joined = linear("L0.resid_post+L1.resid_post", d=2 * D)
    head = linear("L1.z[head=2]", d=8)
    widget = strip({"joined": joined, "head": head, "number": network()})
    pair = torch.cat([by_hand(PROMPTS[0], site=f"L{i}.resid_post")[1] for i in (0, 1)], -1)
    heads = by_hand(PROMPTS[0], site="L1.z")[1][:, 16:24]
    rows = by_hand(PROMPTS[0])[1]
    for k, wanted in enumerate([joined.score(pair), head.score(heads), network().score(rows)]):
        torch.testing.assert_close(line(widget, k=k), wanted, atol=1e-4, rtol=1e-4)
    spread = wb.probes.Quantile.spread(network().tensors, network().params, rows)
    for name, level in (("low", 0.05), ("high", 0.95)):
        torch.testing.assert_close(
            line(widget, name=name, k=2), spread[level], atol=1e-4, rtol=1e-4
        )
    about = widget.meta["probes"]
    assert [one["linear"] for one in about] == [False, True, False]
    assert about[2]["number"] and "running" not in widget.frame["base"]["scores"][2]
    assert widget.spec["edit"] == "none"


# --- the widget's own ways ---------------------------------------------------------------------


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    ran: list[int] = []
    backend = tiny.model().backend
    forward = type(backend).forward

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        ran.append(1)
        return forward(self, *args, **options)

    monkeypatch.setattr(type(backend), "forward", counted)
    return ran


def test_another_probe_window_or_threshold_generates_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widget = strip({"a": linear(), "b": linear("L0.resid_post", seed=5), "c": cascade()}, push())
    ran = count_forwards(monkeypatch)
    for change in ({"probe": "b"}, {"window": 2}, {"threshold": 3.0}, {"probe": "c"}):
        widget.choose(**change)
        widget.settle()
    assert ran == [] and widget.frame["of"]["probe"] == "c"
    widget.choose(strength=1.0)
    widget.settle()
    assert len(ran) == len(widget.frame["edited"]["ids"]) - widget.frame["edited"]["n_prompt"] + 1


def test_weights_written_into_are_read_again() -> None:
    model = wb.load(tiny.module("gpt2"), tiny.tokenizer())
    widget = ProbeStrip(model, "abc", linear(), max_new_tokens=3)
    widget.settle()
    before = widget.frame["base"]["scores"]
    with torch.no_grad():
        model.hf.transformer.h[0].mlp.c_proj.weight.mul_(1.5)
    widget.refresh()
    widget.settle()
    assert widget.frame["base"]["scores"] != before


def test_it_streams_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    monkeypatch.setattr("workbench_widgets.probe_strip.reading.SHOW_EVERY_S", 0.0)
    seen: list[int] = []
    enough, go = threading.Event(), threading.Event()

    class Watched(ProbeStrip):
        def _show(self, part: Any) -> None:
            super()._show(part)
            seen.append(len(part["base"]["ids"]))
            if len(seen) == 5:
                enough.set()
                go.wait(10)

    widget = Watched(tiny.model(), PROMPTS, linear(), max_new_tokens=60)
    assert enough.wait(20)
    assert widget.status["state"] == "running" and widget.frame["base"]["stop"] == ""
    assert len(widget.frame["base"]["scores"][0]["running"]) == seen[-1]
    worker.cancel(("widget", id(widget)))
    go.set()
    with contextlib.suppress(worker.Cancelled):
        widget.settle(20)
    assert seen == [4, 5, 6, 7, 8] and widget.status["state"] == "cancelled"
    assert tiny.model().run("abc").logits.shape[1] == 4  # nothing stays attached


def test_a_later_strength_ends_an_earlier_one_but_not_the_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    began = threading.Event()
    steps: list[tuple[str, int]] = []

    class Slow(ProbeStrip):
        def _tell_progress(self) -> None:
            steps.append((self._job.note, self._job.i))
            began.set()
            threading.Event().wait(0.02)

    widget = Slow(tiny.model(), PROMPTS, linear(), push(), max_new_tokens=12)
    assert began.wait(20)
    widget.ask(strength=1.0)
    widget.settle(20)
    widget.ask(strength=1.5)
    widget.settle(20)
    assert widget.frame["of"]["strength"] == 1.5
    base = [i for note, i in steps if note == "base"]
    assert base == list(range(13)), "the base was read more than once"


def test_the_sweep_holds_every_strength_and_goes_with_its_setting() -> None:
    widget = strip({"a": linear(), "b": linear("L0.resid_post", seed=5)}).precompute([-1, 2])
    swept = unpack(widget.sweep)
    assert swept["grid"] == [-1, 0, 2] and swept["edited"][1] is None
    for i, strength in ((0, -1.0), (2, 2.0)):
        fresh = strip({"a": linear(), "b": linear("L0.resid_post", seed=5)}).write(strength)
        fresh.settle()
        assert swept["edited"][i] == fresh.frame["edited"]
    assert swept["shared"]["base"] == widget.frame["base"]
    widget.choose(threshold=2.0)
    widget.write(0.5)
    assert widget.sweep
    widget.choose(probe="b")
    assert not widget.sweep, "another direction was never computed ahead"
    given = strip({"a": linear(), "b": linear("L0.resid_post", seed=5)}, push()).precompute()
    assert unpack(given.sweep)["grid"] == [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    given.choose(probe="b")
    assert given.sweep
    with pytest.raises(WorkbenchError, match="no edit to compute ahead"):
        strip(cascade()).choose(edit="none").precompute()


def test_the_record_is_the_edit_or_else_what_is_read() -> None:
    probe = linear()
    widget = strip(probe, push())
    assert isinstance(record := widget.to_record(), Intervention)
    assert record.name == "push" and record.strength == 2.0
    widget.write(1.5, scope="generated")
    assert isinstance(record := widget.to_record(), Intervention)
    assert record.strength == 1.5 and str(record.scope) == "generated"
    torch.testing.assert_close(record.tensors[SITE]["shift"], probe.edit().tensors[SITE]["shift"])
    assert isinstance(read := widget.write(0).to_record(), Readout) and read.site == SITE
    assert strip(network()).to_record() is not None
    assert isinstance(strip(network()).to_record(), FittedProbe)


@pytest.mark.parametrize("kind", ["own", "given", "none", "cascade", "joined", "head"])
def test_the_code_gives_the_shown_scores(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probe = {
        "cascade": cascade(),
        "joined": linear("L0.resid_post+L1.resid_post", d=2 * D),
        "head": linear("L1.z[head=2]", d=8),
    }.get(kind, linear())
    widget = strip(probe, push() if kind == "given" else ()).choose(prompt=1)
    if kind == "own":
        widget.write(1.5, scope="generated")
    widget.settle()
    code = widget.to_code()
    assert "# model = wb.load" in code
    found: dict[str, Any] = {"model": tiny.model()}
    exec(code, found)
    side, name = (
        "edited" if kind in ("own", "given") else "base",
        "running" if kind == "cascade" else "score",
    )
    torch.testing.assert_close(found["score"], line(widget, side, name), atol=1e-4, rtol=1e-4)
    assert strip(probe).choose(prompt=1).to_code().count("probe = wb.load_probe(") == 1
    assert len(list(tmp_path.glob("edits/probe_*"))) == 1


def test_names_words_and_still() -> None:
    widget = strip([linear(), linear(seed=2), linear("L0.resid_post")], push())
    assert [one["name"] for one in widget.meta["probes"]] == [
        f"logistic at {SITE}",
        f"logistic at {SITE} (2)",
        "logistic at L0.resid_post",
    ]
    assert "base ends at" in repr(widget) and "edited ends at" in repr(widget)
    still = widget._repr_mimebundle_()[0]["text/html"]
    assert "threshold 0" in still and "<script" not in still and len(still.encode()) < 20_000
    assert still.count("<pre") == 2


def test_a_still_of_hostile_and_long_texts_is_small_and_escaped() -> None:
    probes = {"<img src=x onerror=hit()>": linear(), "b": linear(seed=1)}
    widget = strip(probes, push())
    frame = {**widget.frame, "edited": widget.frame["edited"]}
    for side in ("base", "edited"):
        n = 3000
        line = {"score": [1.5] * n, "smooth": [1.5] * n, "running": [1.5] * n}
        frame[side] = {**frame[side], "tokens": ["<script>"] * n, "scores": [line, line]}
    widget.data = pack(frame)
    still = widget._still()
    assert "<img" not in still and "<script" not in still
    assert "&lt;img" in still and "&lt;script&gt;" in still and " more</i>" in still
    assert len(still.encode()) < 20_000


def test_ranges_are_round() -> None:
    assert [rounded(v) for v in (0.013, 0.5, 3.1, 17, 99, 100)] == [0.02, 0.5, 5, 20, 100, 100]
    assert rounded(0) == rounded(float("nan")) == 1.0


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": []}, "needs fitted probes"),
        ({"probes": {"a": 3}}, "needs fitted probes"),
        ({"probes": 3}, "needs fitted probes"),
        ({"probes": linear("L9.resid_post")}, "L9"),
        (
            {"probes": linear(model=Fingerprint("other", "x", 64, 3, ""))},
            "fitted on something else",
        ),
        ({"probes": linear(model=Fingerprint("b", "x", 32, 3, "f00"))}, "fitted on something else"),
        ({"edits": 3}, "no slider"),
        ({"edits": push().at(torch.ones(2))}, "no slider"),
        ({"max_new_tokens": 0}, "out of range"),
        ({"max_new_tokens": True}, "out of range"),
        ({"window": 0}, "out of range"),
        ({"window": 2.5}, "out of range"),
        ({"threshold": float("nan")}, "out of range"),
    ],
)
def test_what_cannot_be_shown_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkbenchError, match=words):
        ProbeStrip(tiny.model(), PROMPTS, **{"probes": linear(), **options})


def test_an_edit_of_another_width_or_a_long_prompt_is_refused() -> None:
    wide = Intervention("custom", "affine", {"L0.resid_post": {"shift": torch.ones(5)}})
    with pytest.raises(EditError):
        strip(edits=wide)
    widget = strip(max_new_tokens=5000)
    assert (
        widget.status["state"] == "error"
        and "room" in widget.status["msg"]
        or "long" in (widget.status["msg"])
    )
    with pytest.raises(PromptError):
        ProbeStrip(tiny.model(), [], linear())


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 7}, {"prompt": True}, {"probe": "x"}, {"edit": "9"}, {"scope": "where"},
        {"strength": "1"}, {"strength": float("inf")}, {"window": -1}, {"nothing": 1},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_an_error_in_words(change: dict[str, Any]) -> None:
    widget = strip()
    before = widget.spec
    with pytest.raises(WorkbenchError):
        widget.choose(**change)
    assert widget.spec == before
    if "nothing" not in change:
        widget.ask(**change)
        widget.settle()
        assert widget.status["state"] == "error" and widget.status["msg"]


def test_a_probe_without_a_direction_cannot_be_written() -> None:
    widget = strip(network())
    with pytest.raises(WorkbenchError, match="no direction"):
        widget.write(1.0)
    with pytest.raises(WorkbenchError, match="precompute"):
        strip().precompute(["a"])


def test_an_edit_that_breaks_the_model_is_an_error() -> None:
    shift = torch.full((D,), 3e38)
    edit = Intervention("custom", "affine", {"L0.resid_post": {"shift": shift}}, strength=9.0)
    widget = strip(edits=edit)
    assert widget.status["state"] == "error" and "no numbers any more" in widget.status["msg"]
    widget.ask(strength=0.0)
    widget.settle()
    assert widget.status["state"] == "idle" and widget.frame["edited"] is None


def test_an_edit_that_decides_by_steps_is_refused() -> None:
    tensors = {"L0.resid_post": {"shift": torch.ones(D)}}
    edit = Intervention("custom", "affine", tensors, params={"stepwise": "ata"})
    model = tiny.model()
    with pytest.raises(EditError, match="decided anew at every token"):
        read(model, wb.Prompt("abc"), [SITE], [edit], 2)
    assert read(model, wb.Prompt("abc"), [SITE], [edit.at(0.0)], 2).stop

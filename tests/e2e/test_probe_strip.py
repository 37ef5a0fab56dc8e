"""ProbeStrip in a browser: streaming, the slider against plain runs, probes and thresholds, no kernel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from tests.e2e.test_lens_grid import HOSTILE, hostile_tokenizer
from workbench.probes.base import FittedProbe
from workbench_widgets import ProbeStrip

pytestmark = pytest.mark.browser
AXE = """async () => (await axe.run('.wb')).violations.map(
    (v) => v.id + ': ' + v.nodes[0].html)"""
SITE = "L2.resid_post"


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    size = {"width": 1000, "height": 900}
    with harness.browser(tmp_path_factory.mktemp("profile"), viewport=size) as found:
        yield found


@pytest.fixture
def page(screen: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    found, seen = screen
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    yield found
    assert seen.errors == [] and seen.external == []


@cache
def probes() -> dict[str, FittedProbe]:
    """What the problem is about, read at two layers, and the size of its first operand."""
    model = wb.load("reasoner")
    prompts = wb.tasks.make("locked", n=160, seed=1)
    acts = model.record(prompts, ["L1.resid_post", SITE], progress=False)
    found = wb.probes.fit("logistic", acts)
    every = model.record(prompts, SITE, pool="all", progress=False)
    cascade = wb.probes.fit(wb.probes.Cascade(window=4), every)[SITE]
    numbers = [float(len(p.text or "") + i % 5) for i, p in enumerate(acts.rows)]
    ridge = wb.probes.fit("quantile", acts, SITE, targets=numbers)[SITE]
    return {"locked, L2": found[SITE], "locked, L1": found["L1.resid_post"], "cascade": cascade,
            "size": ridge}  # fmt: skip


def prompts() -> Any:
    return wb.tasks.make("add", n=3, seed=2)


def strip(**options: Any) -> ProbeStrip:
    return ProbeStrip(
        wb.load("reasoner"), prompts(), probes(), **{"max_new_tokens": 24, "window": 4, **options}
    )


def side(mounted: Mounted, name: str, line: str = "score", k: int = 0) -> np.ndarray:
    found = mounted.debug()["frame"][name]["scores"][k][line]
    return np.array([np.nan if v is None else v for v in found], float)


def by_hand(edits: Any = (), probe: str = "locked, L2") -> tuple[str, torch.Tensor]:
    """The generated text and the score of every token, by plain calls."""
    model, one = wb.load("reasoner"), probes()[probe]
    (text,) = model.generate([prompts()[0]], edits=edits, max_new_tokens=24)
    trace = model.run(
        [prompts()[0]], record=[one.site], edits=edits, completions=[text.ids], logits="none"
    )
    return text.text, one.score(trace[one.site][0])


def test_the_slider_writes_what_the_probe_reads(page: Any) -> None:
    widget = strip()
    mounted = Mounted(page, widget)
    mounted.settled()
    text, score = by_hand()
    assert np.allclose(side(mounted, "base"), score, atol=1e-3)
    assert mounted.debug()["texts"][0].replace("<bos>", "").endswith(text)
    assert page.locator("section.edited").is_hidden()
    slider = page.get_by_label("strength of the edit", exact=True)
    slider.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    mounted.until(lambda: widget.spec["strength"] > 0)
    mounted.until(lambda: mounted.debug()["slider"] == pytest.approx(widget.spec["strength"]))
    mounted.settled()
    strength = float(widget.spec["strength"])
    assert strength == pytest.approx(6 * widget.frame["reach"] * 2 / 80)
    text, score = by_hand([probes()["locked, L2"].edit().at(strength)])
    assert np.allclose(side(mounted, "edited"), score, atol=1e-3)
    n = widget.frame["base"]["n_prompt"]
    rise = side(mounted, "edited")[:n] - side(mounted, "base")[:n]
    assert np.allclose(rise, strength, atol=1e-3)
    head = page.locator("section.edited h4").inner_text()
    assert head.startswith("edited: direction of locked, L2 ×")
    assert page.locator("section.base .wb-tok").count() == len(widget.frame["base"]["ids"])


def test_scores_stream_while_it_generates(page: Any) -> None:
    mounted = Mounted(page, strip(max_new_tokens=120, edits=[never_ending()]))
    lengths: list[int] = []

    def ended() -> bool:
        edited = (mounted.debug().get("frame") or {}).get("edited")
        lengths.append(len(edited["scores"][0]["score"]) if edited else 0)
        return mounted.root.get_attribute("data-done") == "true"

    mounted.until(ended)
    assert len(set(lengths)) > 3 and lengths == sorted(lengths), "it came at once"
    page.get_by_label("write", exact=True).select_option("none")
    mounted.until(lambda: page.locator("section.edited").is_hidden())


def never_ending() -> wb.Intervention:
    """An edit under which the model goes on and on: no end of sequence is ever likely."""
    shift = torch.zeros(wb.load("reasoner").dims.n_vocab)
    shift[list(wb.load("reasoner").eos_ids)] = -100.0
    tensors = {"logits": {"shift": shift}}
    return wb.Intervention("custom", "affine", tensors, name="never ends")


def test_cancel_keeps_what_is_there(page: Any) -> None:
    mounted = Mounted(page, strip(max_new_tokens=240, edits=[never_ending()]))
    mounted.until(lambda: (mounted.debug().get("frame") or {}).get("edited"))
    page.get_by_role("button", name="Cancel").click()
    mounted.until(lambda: mounted.root.get_attribute("data-state") == "cancelled")
    there = len(mounted.debug()["frame"]["edited"]["ids"])
    assert 0 < there < 240 and "generating…" in mounted.root.inner_text()


def test_probes_and_thresholds_change_at_once(page: Any) -> None:
    widget = strip(max_new_tokens=12)
    mounted = Mounted(page, widget)
    mounted.settled()
    page.get_by_label("probe", exact=True).select_option("cascade")
    mounted.until(lambda: mounted.debug()["shown"]["probe"] == "cascade")
    mounted.settled()
    assert page.get_by_label("window", exact=True).is_hidden()
    every = torch.tensor(side(mounted, "base", "running", 2))
    middle = float(every.sort().values[-2:].mean()) - 1e-3
    page.get_by_label("threshold", exact=True).fill(f"{middle:.4f}")
    page.get_by_label("threshold", exact=True).press("Enter")
    mounted.until(lambda: widget.spec["threshold"] == pytest.approx(middle, abs=1e-3))
    first = int((every >= widget.spec["threshold"]).nonzero()[0])
    said = page.locator("section.base .ends").inner_text()
    assert f"passes the threshold at token {first} “" in said
    assert mounted.debug()["shown"]["threshold"] == widget.spec["threshold"]
    page.get_by_label("colour", exact=True).select_option("running")
    value = mounted.page.locator("section.base .wb-tok").nth(3).get_attribute("aria-label")
    wanted = every[3].item() - widget.spec["threshold"]
    assert f"{abs(wanted):.2f}"[:3] in value.partition(":")[2].split(" ")[1]
    page.get_by_label("probe", exact=True).select_option("size")
    mounted.until(lambda: widget.spec["edit"] == "none")
    assert page.get_by_label("threshold", exact=True).is_hidden()
    assert page.locator("section.base .chart path[style*='opacity']").count() == 1
    assert mounted.debug()["shown"]["scale"]["kind"] == "sequential"


def test_keys_read_tokens_aloud_and_stay_inside(page: Any) -> None:
    widget = strip(max_new_tokens=8)
    mounted = Mounted(page, widget)
    mounted.settled()
    page.evaluate("window.keys = 0; document.body.addEventListener('keydown', () => window.keys++)")
    page.locator("section.base .wb-strip-list").focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    mounted.until(lambda: widget.selection.get("token") == 2)
    said = page.locator("section.base .wb-sr").inner_text()
    assert said.startswith("token 2 ") and "probability" in said and "so far" in said
    assert page.evaluate("window.keys") == 0
    assert page.locator("section.base .wb-chosen").count() == 1
    readout = page.locator(".readout").inner_text()
    assert readout.startswith("base, token 2 “") and "smoothed" in readout
    box = page.locator("section.base .chart svg").bounding_box()
    page.mouse.move(box["x"] + 42, box["y"] + 30)
    assert page.locator(".readout").inner_text().startswith("base, token 0 ")


def test_without_a_kernel_the_slider_snaps_and_every_probe_is_there(page: Any) -> None:
    widget = strip(max_new_tokens=8).precompute([0.0, 2.0, 4.0])
    mounted = Mounted(page, widget, connected=False)
    mounted.until(lambda: mounted.root.get_attribute("data-mode") == "sweep")
    slider = page.get_by_label("strength of the edit", exact=True)
    slider.focus()
    page.keyboard.press("ArrowRight")
    fresh = strip(max_new_tokens=8).write(2.0)
    fresh.settle()
    assert np.allclose(side(mounted, "edited"), fresh.frame["edited"]["scores"][0]["score"])
    page.get_by_label("threshold", exact=True).fill("1.5")
    page.get_by_label("threshold", exact=True).press("Enter")
    assert mounted.debug()["shown"]["threshold"] == 1.5
    page.get_by_label("probe", exact=True).select_option("locked, L1")
    assert mounted.debug()["shown"]["probe"] == "locked, L1"
    assert slider.is_disabled(), "the direction of that probe was not computed ahead"
    for name in ("prompt", "write", "window", "new tokens"):
        assert page.get_by_label(name, exact=True).is_disabled()
    still = strip(max_new_tokens=8)
    still.settle()
    bare = Mounted(page, still, connected=False)
    bare.until(lambda: "needs a running kernel" in bare.root.inner_text())
    assert page.get_by_label("strength of the edit", exact=True).is_disabled()
    page.get_by_label("probe", exact=True).select_option("cascade")
    assert bare.debug()["shown"]["probe"] == "cascade"


def test_hostile_texts_are_only_text(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.chdir(tmp_path)  # copied code keeps its probe and edit in files
    model = wb.load(tiny.module("gpt2"), hostile_tokenizer(PreTrainedTokenizerFast))
    torch.manual_seed(0)
    tensors = {"weight": torch.randn(32), "bias": torch.zeros(())}
    probe = FittedProbe("logistic", "L1.resid_post", "last", tensors, {}, (HOSTILE, HOSTILE))
    edit = probe.edit().named(HOSTILE)
    mounted = Mounted(page, ProbeStrip(model, HOSTILE, {HOSTILE: probe}, edit, max_new_tokens=4))
    mounted.settled()
    page.locator("section.edited .wb-tok").nth(1).click()
    page.get_by_role("button", name="Copy as Python").click()
    mounted.until(lambda: page.locator(".code").input_value())
    assert page.evaluate("window.hit === undefined && !document.querySelector('.wb img')")
    assert "<img" in mounted.root.inner_text()


def test_files_hold_both_sides(page: Any) -> None:
    widget = strip(max_new_tokens=8, edits=[probes()["locked, L2"].edit().at(2.0)])
    mounted = Mounted(page, widget)
    mounted.settled()
    files = {}
    for kind in ("SVG", "CSV", "PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        files[kind] = Path(download.value.path()).read_bytes()
    n = sum(len(widget.frame[name]["ids"]) for name in ("base", "edited"))
    text = files["CSV"].decode()
    assert text.count("locked, L2") == n and text.count("\ncascade,") == n
    assert files["SVG"].count(b"wb-line-running") == 2 and b"edited: " in files["SVG"]
    assert b"var(--" not in files["SVG"], "a file has no theme"
    assert files["PNG"].startswith(b"\x89PNG")
    page.set_content(f"<body>{files['SVG'].decode()}</body>")
    page.locator("svg").first.screenshot(path=Path("tests/artefacts/probe-strip-file.png"))


def test_accessible(page: Any) -> None:
    axe = harness.ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.exists():
        pytest.skip("no axe-core (tests/SKIPS.md)")
    for dark in (False, True):
        mounted = Mounted(
            page, strip(max_new_tokens=8, edits=[probes()["locked, L2"].edit().at(2.0)]), dark=dark
        )
        mounted.settled()
        page.add_script_tag(path=axe)
        assert page.evaluate(AXE) == []


def test_the_curve_follows_the_width(page: Any) -> None:
    mounted = Mounted(page, strip(max_new_tokens=24))
    mounted.settled()
    size = page.viewport_size
    fits = "e => e.scrollWidth <= e.clientWidth + 1"
    chart = page.locator("section.base .chart")
    try:
        page.set_viewport_size({"width": 420, "height": size["height"]})
        mounted.until(lambda: chart.evaluate(fits))
    finally:
        page.set_viewport_size(size)


def test_what_people_see(page: Any) -> None:
    for dark in (False, True):
        widget = strip()
        mounted = Mounted(page, widget, dark=dark)
        mounted.settled()
        widget.write(30.0, scope="generated")
        mounted.settled()
        mounted.root.locator(".wb-tok").nth(5).click()
        mounted.until(lambda widget=widget: widget.selection.get("token") == 5)
        path = mounted.shot(f"probe-strip-{'dark' if dark else 'light'}")
        assert path.stat().st_size > 10_000

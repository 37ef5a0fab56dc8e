"""The picture in README.md, taken of the real widget: `python -m tests.e2e.picture`."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import workbench as wb
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from workbench_widgets import LiveEdit

TARGET = harness.ROOT / "docs" / "live_edit.png"


def widget() -> LiveEdit:
    """A locked question that an edit at layer 4 unlocks, as in notebook 01."""
    model = wb.load("reasoner")
    train = wb.tasks.make("locked", n=256, seed=0)
    acts = model.record(train, sites="L4.resid_post", progress=False)
    edit = wb.steering.MeanDifference().fit(acts.contrast()).named("unlock").at(-2.0)
    pairs = wb.tasks.make("locked", n=96, seed=1)
    answers = {p.pair: p.answer for p in pairs if not p.label}
    prompts = [replace(p, answer=answers[p.pair]) for p in pairs if p.label]
    return LiveEdit(model, [p for p in prompts if p.text == "locked add 29 79?\n"], [edit])


def main() -> None:
    """Take it, light, at twice the size."""
    os.environ["WORKBENCH_HEADLESS"] = "0"
    torch.set_num_threads(1)
    shape = {"viewport": {"width": 940, "height": 700}, "device_scale_factor": 2}
    with (
        tempfile.TemporaryDirectory() as profile,
        harness.browser(Path(profile), **shape) as (page, _),
    ):
        shown = Mounted(page, widget())
        shown.settled()
        TARGET.parent.mkdir(exist_ok=True)
        shown.root.screenshot(path=TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

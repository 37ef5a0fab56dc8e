"""The widgets that a kernel makes for `tests.benchmarks.widgets`; each frame's model time is kept."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from workbench import worker
from workbench.tensors import Intervention
from workbench_widgets.base import Widget

HERE = Path(__file__).parent
SIDE = 12


def bundled(folder: Path) -> str:
    """The canvas's module, built from what the shipped widgets share."""
    out = folder / "canvas.js"
    esbuild = HERE.parents[1] / "node_modules" / ".bin" / "esbuild"
    flags = ["--bundle", "--format=esm", "--minify", f"--outfile={out}", "--log-level=error"]
    subprocess.run([esbuild, HERE / "canvas.js", *flags], check=True)
    return str(out)


def canvas(model: wb.Model, module: str) -> Widget:
    """12 prompts by 12 tokens: the probabilities of the first 12 digits and letters after each prompt."""
    prompts = wb.tasks.make("add", n=SIDE, seed=0)
    edit = push(model)

    class Canvas(Widget):
        _esm = Path(module).read_text("utf-8")
        _css = (HERE.parents[1] / "widgets" / "js" / "base.css").read_text("utf-8")

        def _frame(self, spec: dict[str, Any], _job: worker.Job) -> Mapping[str, Any]:
            logits = model.run(prompts, edits=[edit.at(spec["strength"])], logits="last").logits
            return {"p": logits[:, -1].softmax(-1)[:, 20 : 20 + SIDE].numpy()}

        def _still(self) -> str:
            return "canvas"

    made = Canvas(spec={"strength": 0.01}, meta={})
    made.refresh()
    return made


def push(model: wb.Model) -> Intervention:
    """A fixed direction at the middle layer."""
    shift = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    site = f"L{model.n_layers // 2}.resid_post"
    return Intervention(
        "custom", "affine", {site: {"shift": shift}}, unit="multiples of the shift", params={},
        model=model.fingerprint_shape, name="push",
    )  # fmt: skip


def deep(layers: int = 24) -> wb.Model:
    """A random model of that depth with the reasoner's vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = wb.load("reasoner")
    options = small.hf.config.to_dict() | {"num_hidden_layers": layers}
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    torch.manual_seed(0)
    return wb.load(AutoModelForCausalLM.from_config(config).eval(), small.tokenizer)


def timed(widget: Widget) -> dict[int, float]:
    """The model's time of every frame from now on, in ms, by `seq`."""
    took: dict[int, float] = {}
    publish = widget._publish

    def publish_and_note(frame: Mapping[str, Any], number: int, last: bool) -> None:
        publish(frame, number, last)
        took[widget.seq] = widget.status["t_model_ms"]

    widget._publish = publish_and_note
    return took


class Watch:
    """Looks at the queue every two milliseconds; `most` is the most jobs of one key that wait."""

    def __init__(self) -> None:
        self.most, self.looks, self._stop = 0, 0, False
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._stop:
            waiting = Counter(job.key for job in worker.jobs() if job.state == "queued")
            self.most = max(self.most, *waiting.values(), 0)
            self.looks += 1
            time.sleep(0.002)

    def end(self) -> list[int]:
        """`[most, looks]`."""
        self._stop = True
        return [self.most, self.looks]


def load() -> float:
    """Processes that want a core."""
    return round(os.getloadavg()[0], 2)

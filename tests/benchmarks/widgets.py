"""The live loop in a real JupyterLab and Chromium: from an input event to the painted frame.

T is the time from the input event to the second animation frame after the draw, in the page's clock; F
the model's own time of that frame, `status.t_model_ms`; for LiveEdit, of its next-token frame.
The kernel has one torch thread; the server sets TCP_NODELAY but where a key says otherwise. Wall clock:
what else the machine does counts, its load stands in the cases.

overhead_p50_ms, overhead_p90_ms   T - F of a 12 x 12 canvas on the reasoner
overhead_nagle_ms    its median without TCP_NODELAY
lens_over_budget     T / F of LensGrid with 24 layers x 64 tokens, over max(1.15, 1 + 80 ms / F)
max_queued           most jobs of one key that wait while LiveEdit's slider is dragged, 40 events in a second
settle_over_budget   last event of that drag to its painted next-token frame, over 2 F + 150 ms; worst widget
cancel_ms_over_budget   click on Cancel to "cancelled" on the screen, over one layer + 250 ms
open_cpu_s           renderer's work for eight LiveEdit opening at once, less that for eight static outputs
page_mb              the report page of notebooks/01_live_editing.ipynb, where it is there
module_kb            the largest built module
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks import canvas, measure
from tests.benchmarks.measure import Figure
from tests.e2e import harness
from tests.e2e.lab import hand
from tests.e2e.lab.conftest import VIEWPORT
from tests.e2e.lab.notebook import OPTIONS, Notebook, Shown, written

WARM_UP = 5
PREPARE = """
import torch; torch.set_num_threads(1)
import time, threading
import workbench as wb
from workbench import worker
from tests.benchmarks import canvas
from workbench_widgets import LensGrid, LiveEdit
model = wb.load("reasoner")
push = canvas.push(model)
prompts = wb.tasks.make("add", n=4, seed=2)
"""
CANVAS = "w = canvas.canvas(model, {module!r})"
LIVE = "w = LiveEdit(model, prompts, [push], max_new_tokens=16)"
LENS = """deep = canvas.deep()
w = LensGrid(deep, "1" * 63, [canvas.push(deep)])
assert w.meta["tokens"][63:] and len(w.meta["tokens"]) == 64, len(w.meta["tokens"])"""
LONG = """
class Long(LiveEdit):
    def _frame(self, spec, job):
        if spec["rows"][0]["strength"] > 1.5:
            for _ in range(3000):
                model.run(prompts, logits="last")
        return super()._frame(spec, job)
w = Long(model, prompts, [push], max_new_tokens=4)"""
# one layer of the forward that is being cancelled, in ms
LAYER = """(lambda began: [model.run(prompts, logits="last") for _ in range(20)]
    and 1000 * (time.perf_counter() - began) / 20 / model.n_layers)(time.perf_counter())"""


@contextmanager
def opened(nodelay: bool = True) -> Iterator[Notebook]:
    """A prepared notebook in a JupyterLab of its own."""
    with tempfile.TemporaryDirectory() as made:
        place, home, profile = (Path(made, name) for name in ("place", "home", "profile"))
        for folder in (place, home):
            folder.mkdir()
        environment = {"WORKBENCH_HEADLESS": "0", "OMP_NUM_THREADS": "1"}
        environment["WORKBENCH_NODELAY"] = "1" if nodelay else "0"
        options = (f"--ServerApp.root_dir={place}", *OPTIONS)
        with (
            harness.lab(home, *options, environment=environment) as server,
            harness.browser(profile, viewport=VIEWPORT) as (page, seen),
        ):
            said = (home / "server.log").read_text()
            assert f"TCP_NODELAY {'on' if nodelay else 'off'}" in said, said[-1000:]
            notebook = Notebook(server, page, seen).open(written(place, "speed.ipynb"))
            notebook.run(PREPARE)
            yield notebook
            assert not seen.external and not seen.errors, seen


def shown(notebook: Notebook, make: str) -> Shown:
    """A fresh widget alone in the notebook, its model times kept in `took`."""
    notebook.drop_from(1)
    notebook.run(
        "import ipywidgets; worker.cancel(); worker.settle(60); ipywidgets.Widget.close_all()"
    )
    notebook.run(make)
    widget = notebook.show("w")
    widget.settled("w", within_s=120)
    notebook.run("took = canvas.timed(w)")
    return widget


def steps(notebook: Notebook, widget: Shown, count: int) -> list[tuple[float, float]]:
    """`(T, F)` in ms of single steps of the first slider, each after the one before has settled."""
    slider, found = widget.root.locator("input[type=range]").first, []
    for _ in range(WARM_UP + count):
        found.append(hand.step(slider))
        notebook.run("worker.settle(60)")
        notebook.page.wait_for_timeout(40)
    took = notebook.value("{str(k): v for k, v in took.items()}")
    return [(one["ms"], took[str(int(one["seq"]))]) for one in found[WARM_UP:]]


def overhead(times: list[tuple[float, float]]) -> list[float]:
    """T - F in ms, sorted."""
    return sorted(whole - model for whole, model in times)


def settled(notebook: Notebook, widget: Shown) -> tuple[float, float, list[int]]:
    """Last event of a drag to its painted frame over the budget, F, and what the queue held."""
    slider = widget.root.locator("input[type=range]").first
    low, high = float(slider.get_attribute("min")), float(slider.get_attribute("max"))
    notebook.run("watch = canvas.Watch()")
    slider.evaluate("(el, value) => { el.value = value; }", str(low))
    found = hand.drag_and_wait(slider, high * 0.99)
    queue = notebook.value("watch.end()")
    took = notebook.value(f"took[{int(found['seq'])}]")
    return found["ms"] / (2 * took + 150), took, queue


def cancelled(notebook: Notebook, times: int) -> tuple[float, dict[str, float]]:
    """Click to word, the worst of some times, over the budget."""
    widget = shown(notebook, LONG)
    layer, waits = notebook.value(LAYER), []
    slider = widget.root.locator("input[type=range]").first
    for _ in range(times):
        slider.focus()
        notebook.page.keyboard.press("End")
        notebook.until(lambda: notebook.value("[j.state for j in worker.jobs()]") == ["running"])
        waits.append(widget.root.evaluate(hand.CANCEL))
        slider.focus()
        notebook.page.keyboard.press("Home")
        widget.settled("w")
    worst = max(waits)
    return worst / (layer + 250), {"ms": round(worst, 1), "layer_ms": round(layer, 2)}


def open_cpu(notebook: Notebook) -> float:
    """Seconds that the renderer works for eight LiveEdit beyond eight static outputs, median of three."""
    notebook.drop_from(1)
    notebook.run("many = [LiveEdit(model, prompts, [push], max_new_tokens=4) for _ in range(8)]\n"
                 "worker.settle(60)\nfrom IPython.display import HTML, display")  # fmt: skip
    protocol = notebook.page.context.new_cdp_session(notebook.page)
    protocol.send("Performance.enable")

    def work(code: str, selector: str) -> float:
        def total() -> float:
            found = protocol.send("Performance.getMetrics")["metrics"]
            return next(m["value"] for m in found if m["name"] == "TaskDuration")

        before = total()
        cell = notebook.cell(code)
        cell.locator(selector).nth(7).wait_for()
        spent = total() - before
        notebook.drop_from(1)
        return spent

    spent = [
        work("for one in many: display(one)", ".wb[data-mode=live][data-seq]")
        - work("for _ in range(8): display(HTML('<b class=plain>x</b>'))", "b.plain")
        for _ in range(3)
    ]
    protocol.detach()
    return statistics.median(spent)


def sizes() -> dict[str, Figure]:
    """Built modules, and the page of the notebook of live editing."""
    modules = {
        f.parent.name: f.stat().st_size / 1000 for f in harness.ROOT.glob("widgets/*/widget.js")
    }
    largest = max(modules.values())
    found = {"module_kb": Figure(round(largest, 1), 100, "lower", "kB",
                                 {k: round(v, 1) for k, v in sorted(modules.items())})}  # fmt: skip
    notebook = harness.ROOT / "notebooks" / "01_live_editing.ipynb"
    if notebook.is_file():
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "page.html"
            command = [sys.executable, "-m", "workbench", "report", str(notebook), "-o", str(page)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found["page_mb"] = Figure(round(page.stat().st_size / 1e6, 3), 2.0, "lower", "MB")
    return found


def nagle(module: str, count: int) -> Figure:
    """The canvas on a server that leaves its sockets as they are."""
    with opened(nodelay=False) as notebook:
        times = overhead(steps(notebook, shown(notebook, CANVAS.format(module=module)), count))
    return Figure(round(statistics.median(times), 1), 120, "lower", "ms", {"load": canvas.load()})


def measured(quick: bool) -> dict[str, Figure]:
    """Every figure."""
    count, found = 10 if quick else 30, {}
    with tempfile.TemporaryDirectory() as folder:
        module = canvas.bundled(Path(folder))
        with opened() as notebook:
            widget = shown(notebook, CANVAS.format(module=module))
            found |= of_canvas(steps(notebook, widget, count))
            settles = {"canvas": settled(notebook, widget)}
            measure.to_stderr(f"canvas: {found['overhead_p50_ms'].value} ms")
            settles["LiveEdit"] = settled(notebook, shown(notebook, LIVE))
            lens = shown(notebook, LENS)
            found["lens_over_budget"] = of_lens(steps(notebook, lens, count))
            settles["LensGrid"] = settled(notebook, lens)
            found |= of_drags(settles)
            ratio, detail = cancelled(notebook, 2 if quick else 8)
            found["cancel_ms_over_budget"] = Figure(round(ratio, 3), 1, "lower", "ratio", detail)
            cpu = open_cpu(notebook)
            found["open_cpu_s"] = Figure(round(cpu, 3), 0.3, "lower", "s", {"instances": 8})
        if not quick:
            found["overhead_nagle_ms"] = nagle(module, count)
    return found | sizes()


def of_canvas(times: list[tuple[float, float]]) -> dict[str, Figure]:
    """Median and ninetieth percentile."""
    spent = overhead(times)
    detail = {
        "model_ms": round(statistics.median(f for _, f in times), 1),
        "steps": len(times), "load": canvas.load(),
    }  # fmt: skip
    p50, p90 = statistics.median(spent), spent[int(0.9 * (len(spent) - 1))]
    return {
        "overhead_p50_ms": Figure(round(p50, 1), 60, "lower", "ms", detail),
        "overhead_p90_ms": Figure(round(p90, 1), 120, "lower", "ms", detail),
    }


def of_lens(times: list[tuple[float, float]]) -> Figure:
    """Median of the ratio against its budget."""
    model = statistics.median(f for _, f in times)
    ratio = statistics.median(t / f for t, f in times)
    detail = {"T/F": round(ratio, 3), "model_ms": round(model, 1), "load": canvas.load()}
    return Figure(round(ratio / max(1.15, 1 + 80 / model), 3), 1, "lower", "ratio", detail)


def of_drags(drags: dict[str, tuple[float, float, list[int]]]) -> dict[str, Figure]:
    """The queue and the settling, the worst widget of each."""
    queued = {name: queue[0] for name, (_, _, queue) in drags.items()}
    looks = sum(queue[1] for _, _, queue in drags.values())
    model = {f"{name} model_ms": round(took, 1) for name, (_, took, _) in drags.items()}
    return {
        "max_queued": Figure(max(queued.values()), 1, "lower", "jobs", {**queued, "looks": looks}),
        "settle_over_budget": measure.worst({name: r for name, (r, _, _) in drags.items()}, 1, **model),
    }  # fmt: skip


if __name__ == "__main__":
    quick, _ = measure.asked()
    sys.exit(not measure.report("widgets", measured(quick)))

"""From a finger on a slider to the model and back, in JupyterLab: A1 to A7 and A16."""

from __future__ import annotations

import pytest

from tests.e2e.lab import hand
from tests.e2e.lab.notebook import Notebook, Shown

pytestmark = pytest.mark.browser

RUN_S = 0.15
SLOW = f"""
class Slow(LiveEdit):
    runs = 0
    def _frame(self, spec, job):
        Slow.runs += 1
        time.sleep({RUN_S})
        return super()._frame(spec, job)

class Long(LiveEdit):
    def _frame(self, spec, job):
        if spec["rows"][0]["strength"] > 1.5:
            slow()
        return super()._frame(spec, job)
"""
INDEPENDENT = """
def independent(strength, layer=3):
    block = model.hf.model.layers[layer]
    def add(_module, _args, out):
        return (out[0] + strength * shift, *out[1:]) if isinstance(out, tuple) else out + strength * shift
    hook = block.register_forward_hook(add)
    try:
        ids = model.tokenizer(prompts[0].text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return model.hf(input_ids=ids).logits[0, -1].float().log_softmax(-1)
    finally:
        hook.remove()
"""


@pytest.fixture
def live(clean: Notebook) -> Shown:
    shown = clean.show("live = LiveEdit(model, prompts, [push], max_new_tokens=12)\nlive")
    shown.settled("live")
    return shown


def slider(shown: Shown):  # noqa: ANN201
    return shown.root.locator("input[type=range]").first


def test_a01_a_step_of_the_slider_reaches_the_model_and_comes_back(live: Shown) -> None:
    before = live.seq
    slider(live).focus()
    live.page.keyboard.press("ArrowRight")
    drawn = live.settled("live")
    assert drawn["seq"] > before
    strength = drawn["frame"]["of"]["rows"][0]["strength"]
    assert strength == drawn["sliders"][0] == pytest.approx(1.02)
    assert live.notebook.value("live.spec['rows'][0]['strength']") == strength


def test_a04_a_drag_ends_at_its_last_value_and_the_model_runs_no_more_than_it_can(
    clean: Notebook,
) -> None:
    clean.run(SLOW)
    shown = clean.show("live = Slow(model, prompts, [push], max_new_tokens=4)\nlive")
    shown.settled("live")
    clean.run("Slow.runs = 0")
    hand.watch(shown.root)
    done = hand.drag(slider(shown), -2.0)
    shown.settled("live")
    seconds = (done["ended"] - done["began"]) / 1000
    # one that runs at the last event, and one that waits
    assert 2 <= clean.value("Slow.runs") <= seconds / RUN_S + 2
    shown.page.wait_for_timeout(300)
    draws = hand.draws(shown.root)
    assert draws[-1]["strength"] == done["value"] == -2.0
    assert [d["seq"] for d in draws] == sorted(d["seq"] for d in draws)
    first_final = next(i for i, d in enumerate(draws) if d["strength"] == -2.0)
    assert {d["strength"] for d in draws[first_final:]} == {-2.0}
    assert len({d["strength"] for d in draws}) > 2, "no frame on the way"


def test_a05_cancel_stops_the_model_and_the_next_step_works(clean: Notebook) -> None:
    clean.run(SLOW)
    shown = clean.show("live = Long(model, prompts, [push], max_new_tokens=4)\nlive")
    shown.settled("live")
    slider(shown).focus()
    shown.page.keyboard.press("End")
    shown.root.get_by_role("button", name="Cancel", exact=True).click()
    shown.says("cancelled")
    assert clean.value("[live.status['state'], worker.history[-1].state]") == ["cancelled"] * 2
    slider(shown).focus()
    shown.page.keyboard.press("Home")
    drawn = shown.settled("live")
    assert drawn["frame"]["of"]["rows"][0]["strength"] == -2.0
    assert shown.attribute("data-state") == "idle"


def test_a06_cells_run_while_the_model_works(live: Shown) -> None:
    nb = live.notebook
    nb.run("job = worker.submit(lambda _job: slow())")
    nb.until(lambda: nb.value("job.state") == "running")
    assert nb.cell("print(1 + 1, job.state)").inner_text().rstrip().endswith("2 running")
    assert nb.value("job.state") == "running"
    nb.run("job.cancel()")
    nb.until(lambda: nb.value("job.state") == "cancelled")


@pytest.mark.parametrize("wait", ["await job", "job.result()"])
def test_a07_the_stop_button_stops_a_cell_that_waits_and_its_job(
    clean: Notebook, wait: str
) -> None:
    clean.run("began = threading.Event()")
    work = "began.set() or slow()"
    cell = clean.cell(f"job = wb.in_background(lambda: {work})\n{wait}", wait=False)
    clean.until(lambda: "[*]" in cell.inner_text())
    clean.page.wait_for_timeout(700)
    clean.command("notebook:interrupt-kernel")
    stopped = ("KeyboardInterrupt", "CancelledError")
    clean.until(lambda: any(name in cell.inner_text() for name in stopped))
    assert clean.value("began.is_set()")
    clean.until(lambda: clean.value("job.state") == "cancelled")
    assert clean.run("print(wb.in_background(lambda: 'next').result(5))").strip() == "next"


def test_a16_the_drawn_probabilities_are_those_of_a_plain_forward(live: Shown) -> None:
    nb = live.notebook
    nb.run(INDEPENDENT)
    for key in ("End", "Home"):
        slider(live).focus()
        live.page.keyboard.press(key)
        drawn = live.settled("live")
        strength = drawn["sliders"][0]
        assert strength in (2.0, -2.0)
        shown = drawn["next"]
        ids = json_of(shown["ids"])
        wanted = nb.value(f"independent({strength}).exp()[{ids}].tolist()")
        base = nb.value(f"independent(0.0).exp()[{ids}].tolist()")
        assert shown["edited"] == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        assert shown["base"] == pytest.approx(base, rel=1e-5, abs=1e-7)
        assert shown["edited"] != pytest.approx(base, rel=1e-2), "the edit does nothing"
        kl = nb.value(
            f"float((independent({strength}).exp() * (independent({strength}) - independent(0.0))).sum())"
        )
        assert shown["kl_nats"] == pytest.approx(kl, rel=1e-3)


def test_a16_the_words_on_the_screen_are_the_numbers_of_the_frame(live: Shown) -> None:
    drawn = live.debug()
    bars = live.root.locator(".next .bar.edited em").all_inner_texts()
    assert [number(text) for text in bars] == pytest.approx(drawn["next"]["edited"], abs=6e-4)
    edited = live.root.locator(".text").nth(1).locator("[role=option], .wb-strip-list > *")
    assert edited.count() >= len(drawn["frame"]["edited"]["ids"])


def test_a16_the_edited_text_is_what_plain_python_generates_bit_for_bit(live: Shown) -> None:
    nb = live.notebook
    slider(live).focus()
    live.page.keyboard.press("End")
    drawn = live.settled("live")["frame"]
    plain = nb.value(
        "(lambda g: [list(g.ids), g.text, list(g.logprobs)])"
        "(model.generate([prompts[0]], edits=[push.at(2.0)], max_new_tokens=12, seed=0)[0])"
    )
    edited = drawn["edited"]
    assert [edited["ids"], edited["text"], edited["logprobs"]] == plain
    assert drawn["done"] is True
    # the cell of "Copy as Python" in a namespace of its own
    nb.run("space = {}; exec(live.to_code('edits'), space); again = space['generation']")
    assert nb.value("[list(again.ids), again.text, list(again.logprobs)]") == plain


def number(text: str) -> float:
    """A number as widgets write it, with a minus sign of typography."""
    return float(text.replace("−", "-"))


def json_of(ids: list[int]) -> str:
    """A list of ids as Python writes it."""
    return repr([int(i) for i in ids])

"""LiveEdit without a browser: its numbers are the model's, its code gives them again, faults are words."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench_widgets import LiveEdit
from workbench_widgets.frames import unpack

FAMILIES = ("llama", "gpt2", "mixtral")


def push(model: wb.Model, strength: float = 3.0) -> wb.Intervention:
    shift = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return wb.Intervention(
        "custom", "affine", {"L1.resid_post": {"shift": shift}}, strength, name="push"
    )


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> wb.Model:
    return tiny.model(request.param)


def test_every_number_is_the_models_own(model: wb.Model) -> None:
    edit = push(model)
    frame = LiveEdit(model, ["abc", "de"], [edit], max_new_tokens=6, temperature=0.7, seed=5).frame
    decoder = wb.decoding.Sample(temperature=0.7)
    for side, edits in (("base", []), ("edited", [edit])):
        (text,) = model.generate(["abc"], edits, decoder=decoder, max_new_tokens=6, seed=5)
        assert tuple(frame[side]["ids"]) == text.ids
        assert tuple(frame[side]["logprobs"]) == text.logprobs
    near = frame["next"]
    base = model.run(["abc"], logits="last").logits[0, -1].log_softmax(-1)
    edited = model.run(["abc"], edits=[edit], logits="last").logits[0, -1].log_softmax(-1)
    assert near["base"] == base[near["ids"]].exp().tolist()
    assert near["edited"] == edited[near["ids"]].exp().tolist()
    kl = (edited.exp() * (edited - base)).sum()
    assert near["kl_nats"] == pytest.approx(kl.item(), rel=1e-4)


def test_kl_and_base_logprobs_belong_to_the_edited_text(model: wb.Model) -> None:
    edit = push(model)
    side = LiveEdit(model, "abc", [edit], max_new_tokens=5).frame["edited"]
    n, runs = len(side["ids"]), []
    for edits in ([edit], []):
        logits = model.run(["abc"], edits=edits, completions=[side["ids"]]).logits[0, -n - 1 : -1]
        runs.append(logits.log_softmax(-1))
    own, base = runs
    index = torch.tensor(side["ids"])[:, None]
    torch.testing.assert_close(torch.tensor(side["base_logprobs"]), base.gather(1, index)[:, 0])
    torch.testing.assert_close(torch.tensor(side["kl_nats"]), (own.exp() * (own - base)).sum(-1))


def test_strength_zero_and_a_row_that_is_off_are_the_base_bit_for_bit(model: wb.Model) -> None:
    live = LiveEdit(model, "abc", [push(model)], max_new_tokens=6)
    assert live.frame["edited"]["ids"] != live.frame["base"]["ids"]
    for change in ({"strength": 0.0}, {"on": False}):
        live.ask(rows=[{**live.spec["rows"][0], **change}])
        assert live.frame["edited"] == live.frame["base"]
        assert live.frame["next"]["kl_nats"] == 0


@pytest.mark.parametrize(
    ("operation", "site", "token"),
    [
        ("zero", "L1.attn_out", ""),
        ("zero", "L1.z[head=2]", ""),
        ("mean", "L0.mlp_out", ""),
        ("scale", "L2.resid_pre[pos=-1]", ""),
        ("toward", "L2.resid_post", "b"),
    ],
)
def test_the_code_gives_the_same_tokens_again(
    operation: str, site: str, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model()
    live = LiveEdit(model, ["abc", "xyz"], [push(model, 1.25)], max_new_tokens=6, temperature=0.9)
    row = {
        "id": "m1",
        "make": {"operation": operation, "site": site, "token": token},
        "label": operation,
    }
    more = row | {
        "site": site,
        "strength": 0.5,
        "on": True,
        "scope": "all",
        "unit": "",
        "range": [0, 1],
    }
    live.ask(rows=[*live.spec["rows"], more])
    assert live.status["state"] == "idle", live.status["msg"]
    monkeypatch.setattr(wb, "load", lambda *_a, **_k: model, raising=False)
    names: dict[str, Any] = {"model": model}
    exec(live.to_code(str(tmp_path / "edits")), names)
    assert names["generation"].ids == tuple(live.frame["edited"]["ids"])
    assert list(names["generation"].logprobs) == live.frame["edited"]["logprobs"]


def test_made_edits_do_what_their_words_say() -> None:
    from workbench_widgets.live_edit.making import make

    model = tiny.model()
    prompts = [wb.Prompt(text="abc"), wb.Prompt(text="defgh")]
    seen = model.run(prompts, record=["L1.mlp_out"])
    rows = seen["L1.mlp_out"][seen.tokens.mask]
    zero, mean, scale, toward = (
        model.run(["ab"], record=["L1.mlp_out"], edits=[make(model, op, "L1.mlp_out", prompts, "b")])
        for op in ("zero", "mean", "scale", "toward")
    )  # fmt: skip
    plain = model.run(["ab"], record=["L1.mlp_out"])["L1.mlp_out"]
    assert not zero["L1.mlp_out"].any()
    torch.testing.assert_close(mean["L1.mlp_out"][0, 1], rows.mean(0))
    torch.testing.assert_close(scale["L1.mlp_out"], 2 * plain)
    pushed = (toward["L1.mlp_out"] - plain)[0, 1]
    assert pushed.norm().item() == pytest.approx(rows.norm(dim=-1).mean().item(), rel=1e-5)
    out = model.hf.get_output_embeddings().weight[
        tiny.tokenizer()("b", add_special_tokens=False)["input_ids"][0]
    ]
    assert torch.cosine_similarity(pushed, out, dim=0).item() == pytest.approx(1, abs=1e-5)


def test_pins_become_arms_of_a_comparison() -> None:
    model = tiny.model()
    live = LiveEdit(model, "abc", [push(model)]).pin()
    live.ask(rows=[{**live.spec["rows"][0], "strength": -1.0}])
    live.pin("back")
    assert [(a.name, [e.strength for e in a.edits]) for a in live.arms()] == [
        ("base", []), ("pin 1", [3.0]), ("back", [-1.0]),
    ]  # fmt: skip
    assert live.to_record()[0].strength == -1.0


def test_the_sweep_holds_the_frames_of_its_strengths() -> None:
    model = tiny.model()
    live = LiveEdit(model, "abc", [push(model)], max_new_tokens=4)
    seq, shown = live.seq, live.frame
    sweep = unpack(live.precompute([-2, 0, 3]).sweep)
    assert sweep["grid"] == [-2.0, 0.0, 3.0]
    for strength, frame in zip(sweep["grid"], sweep["frames"], strict=True):
        edits = [push(model, strength)] if strength else []
        (text,) = model.generate(["abc"], edits, max_new_tokens=4)
        assert tuple(frame["edited"]["ids"]) == text.ids
    assert (live.seq, live.frame) == (seq, shown), (
        "making frames ahead changes nothing that is shown"
    )
    assert live.frame["edited"] == sweep["frames"][2]["edited"]


HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"


def test_the_static_picture_escapes_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import workbench_widgets.live_edit.figures as figures

    for name in ("pieces", "alternatives"):
        monkeypatch.setattr(figures, name, lambda _tokenizer, ids, _before: [HOSTILE for _ in ids])
    model = tiny.model()
    live = LiveEdit(model, "abc", [push(model).named(HOSTILE)], max_new_tokens=2)
    data, _ = live._repr_mimebundle_()
    assert "<script" not in data["text/html"] and "<img" not in data["text/html"]
    assert "&lt;script" in data["text/html"]
    assert len(data["text/html"]) < 20_000
    assert data["text/plain"].startswith("LiveEdit(in-memory, 1 edit on, KL ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scope": "nowhere"}, "unknown scope"),
        ({"make": {"operation": "zero", "site": "L9.resid_post"}}, "L9.resid_post"),
        ({"make": {"operation": "melt", "site": "L0.resid_post"}}, "unknown operation"),
        ({"make": {"operation": "toward", "site": "L0.z", "token": "a"}}, "does not fit there"),
        ({"make": {"operation": "toward", "site": "L0.resid_post"}}, "names no token"),
        ({"id": "e7"}, "unknown edit"),
        ({"strength": 1e38}, "infinite or NaN"),
    ],
)
def test_what_cannot_be_is_said_in_the_widget_and_the_last_frame_stays(
    change: dict[str, Any], said: str
) -> None:
    model = tiny.model()
    live = LiveEdit(model, "abc", [push(model)], max_new_tokens=3)
    good = live.data
    live.ask(rows=[{**live.spec["rows"][0], **change}])
    assert live.status["state"] == "error" and said in live.status["msg"]
    assert live.data == good
    live.ask(rows=[])
    assert live.status["state"] == "idle"
    assert live.frame["edited"] == live.frame["base"]


def test_logits_that_are_no_numbers_are_never_drawn() -> None:
    from workbench_widgets.live_edit.figures import logprobs

    with pytest.raises(wb.WorkbenchError, match="no numbers"):
        logprobs(torch.full((1, 1, 4), torch.nan), [])


def test_prompts_that_cannot_be_read_are_refused_in_words() -> None:
    model = tiny.model()
    with pytest.raises(wb.WorkbenchError, match="there are none"):
        LiveEdit(model, [])
    long = LiveEdit(model, "a" * 4000)
    assert long.status["state"] == "error"
    assert "context" in long.status["msg"]


def test_trained_weights_are_noticed() -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer())
    live = LiveEdit(model, "abc", max_new_tokens=4)
    before = live.frame["base"]["logprobs"]
    with torch.no_grad():
        next(model.hf.parameters()).mul_(1.5)
    live.refresh()
    assert live.frame["base"]["logprobs"] != before


def test_rows_made_on_the_spot_follow_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer())
    live = LiveEdit(model, ["abc", "xyz"], max_new_tokens=4)
    row = {"id": "m1", "make": {"operation": "mean", "site": "L1.mlp_out"}, "label": "mean"}
    row |= {"site": "L1.mlp_out", "strength": 1.0, "on": True, "scope": "all", "range": [0, 1]}
    live.ask(rows=[row])
    with torch.no_grad():
        next(model.hf.parameters()).mul_(1.5)
    live.refresh()
    names: dict[str, Any] = {"model": model}
    exec(live.to_code(str(tmp_path)), names)
    assert list(names["generation"].logprobs) == live.frame["edited"]["logprobs"]


def test_a_row_handed_to_another_widget_is_data_there(tmp_path: Path) -> None:
    model = tiny.model()
    one = LiveEdit(model, ["abc", "xyz"])
    row = {"id": "m1", "make": {"operation": "mean", "site": "L1.mlp_out"}, "label": "mean"}
    one.ask(rows=[row | {"site": "", "strength": 1.0, "on": True, "scope": "all", "range": [0, 1]}])
    other = LiveEdit(model, ["qq"], one.to_record(), max_new_tokens=4)
    names: dict[str, Any] = {"model": model}
    exec(other.to_code(str(tmp_path)), names)
    assert list(names["generation"].logprobs) == other.frame["edited"]["logprobs"]


def test_a_scope_that_only_the_continuation_reaches_is_no_error() -> None:
    model = tiny.model()
    live = LiveEdit(model, "abc", [push(model).within("span(6, 9)")], max_new_tokens=8)
    (text,) = model.generate(["abc"], [push(model).within("span(6, 9)")], max_new_tokens=8)
    assert live.status["state"] == "idle"
    assert live.frame["next"]["kl_nats"] == 0
    assert tuple(live.frame["edited"]["ids"]) == text.ids


def test_the_next_token_does_not_wait_for_a_long_base_continuation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    model, choose = tiny.model(), wb.decoding.Greedy.choose
    monkeypatch.setattr(wb.decoding.Greedy, "choose", lambda *a: time.sleep(0.05) or choose(*a))
    live = LiveEdit(model, "abc", [push(model)], max_new_tokens=100)
    time.sleep(0.3)
    began = time.monotonic()
    live.ask(rows=[{**live.spec["rows"][0], "strength": -1.0}])
    while not live.frame or live.frame["of"]["rows"][0]["strength"] != -1.0:
        assert time.monotonic() - began < 1.0
        time.sleep(0.01)
    live.close()


def test_a_pin_computes_nothing_and_a_sweep_of_another_setting_is_dropped() -> None:
    model = tiny.model()
    live = LiveEdit(model, ["abc", "de"], [push(model)], max_new_tokens=2).precompute([0, 1])
    seq = live.seq
    live.pin()
    assert live.seq == seq and live.sweep
    live.ask(rows=[{**live.spec["rows"][0], "strength": 0.5}])
    assert live.sweep, "the slider that it moves may stand anywhere"
    live.ask(prompt=1)
    assert live.sweep == b""


def test_pin_names_never_collide() -> None:
    live = LiveEdit(tiny.model(), "abc").pin("pin 2").pin().pin()
    assert [arm.name for arm in live.arms()] == ["base", "pin 2", "pin 1", "pin 3"]
    with pytest.raises(wb.WorkbenchError, match="taken"):
        live.pin("base")


@pytest.mark.parametrize("site", ["L1.pattern[head=1]", "L1.attn_scores"])
def test_attention_can_be_set_to_zero_whatever_the_length(site: str) -> None:
    live = LiveEdit(tiny.model(), ["abc", "defghij"], max_new_tokens=3)
    row = {"id": "m1", "make": {"operation": "zero", "site": site}, "label": "zero", "site": site}
    live.ask(rows=[row | {"strength": 1.0, "on": True, "scope": "all", "range": [0, 1]}])
    assert live.status["state"] == "idle", live.status["msg"]


def test_a_token_that_both_rule_out_adds_nothing_to_kl() -> None:
    from workbench_widgets.live_edit.figures import kl_nats

    p = torch.tensor([0.5, 0.5, 0.0]).log()
    assert kl_nats(p, p).item() == 0


def test_the_static_picture_of_a_long_text_stays_small() -> None:
    from workbench_widgets.live_edit.still import still

    side = {"tokens": ['"'] * 9000}
    assert len(still({"base": side, "edited": side}, {"rows": []}, "")) < 20_000


@pytest.mark.parametrize(
    "options",
    [
        {"edits": ["x"]},
        {"edits": None},
        {"temperature": None},
        {"temperature": -1.0},
        {"max_new_tokens": 0},
        {"top": 0},
        {"seed": 2**60 + 1},
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(wb.WorkbenchError, match="expected"):
        LiveEdit(tiny.model(), "abc", **options)


def test_precompute_wants_numbers() -> None:
    live = LiveEdit(tiny.model(), "abc", [push(tiny.model())], max_new_tokens=2)
    for grid in ("ab", 5, []):
        with pytest.raises(wb.WorkbenchError, match="has no strengths"):
            live.precompute(grid)

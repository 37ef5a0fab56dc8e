"""Runs with values put in: resumed and batched, they are what whole runs with the same values are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import workbench as wb
from tests import tiny
from workbench.locate.base import Cases, Patch
from workbench.model.backends.base import Tap
from workbench.model.run import padding
from workbench.patching import patcher
from workbench.patching.patcher import Patched
from workbench.sites import PARTS, Site, parse
from workbench.tensors import Tokens

BASE, SOURCE = ("ab cab cab c", "de fde f"), ("ab cxb cqb c", "de yde f")
FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "mixtral")


def both(model: wb.Model, read: list[str]) -> tuple[Tokens, dict[str, Tensor]]:
    """The padded base batch, and values of another one."""
    trace = model.run(model.tokens(list(SOURCE)), read, logits="none")
    return model.tokens(list(BASE)), dict(trace.values)


def whole_run(model: wb.Model, tokens: Tokens, patches: list[Patch]) -> Tensor:
    """The last logits of a forward of all blocks in which each patch is written by its own tap."""

    def writer(patch: Patch, site: Site) -> Callable[[Tensor], Tensor]:
        def write(h: Tensor) -> Tensor:
            keep = torch.zeros_like(h, dtype=torch.bool)
            for row in range(len(h)):
                if patch.rows is None or bool(patch.rows[row]):
                    at = [slice(None)] * (h.dim() - 1)
                    for i, axis in enumerate(site.axes):
                        if axis in ("pos", "q") and patch.column is not None:
                            at[i] = slice(patch.column, patch.column + 1)
                        if axis == "head" and patch.head is not None:
                            at[i] = slice(patch.head, patch.head + 1)
                    keep[(row, *at)] = True
            return torch.where(keep, patch.values.to(h), h)

        return write

    found = [(patch, parse(patch.site, model.n_layers)[0]) for patch in patches]
    taps = [Tap(site, writer(patch, site)) for patch, site in found]
    with torch.no_grad(), model.backend.attach(taps):
        step = model.backend.forward(
            tokens.ids, **padding(tokens), cache=None, use_cache=False, keep=1
        )
    return step.logits[:, -1]


def last(logits: Tensor) -> Tensor:
    """All logits, as they are."""
    return logits


def writable(model: wb.Model) -> list[str]:
    """Every site of a layer and outside of it that can be patched, but caches and experts."""
    found = []
    for part, about in PARTS.items():
        if part in ("k_cache", "v_cache", "expert", "logits"):
            continue
        for layer in (1,) if about.in_block else (None,):
            try:
                model.backend.check(Site(layer, part), write=True)
            except wb.WorkbenchError:
                continue
            found.append(str(Site(layer, part)))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_what_a_whole_run_with_it_gives(family: str) -> None:
    model = tiny.model(family)
    names = writable(model)
    assert {"embed", "L1.resid_pre", "L1.q", "L1.pattern", "L1.z", "L1.mlp_out"} < set(names)
    tokens, values = both(model, names)
    variants = []
    for name in names:
        axes = parse(name, model.n_layers)[0].axes
        heads = (None, 1) if "head" in axes else (None,)
        # the second case's column 6 is one of its first, the last column decides the logits
        variants += [[Patch(name, values[name], c, h)] for c in (None, 6, 12) for h in heads]
    found = Patched(model, False)(tokens, variants, last)
    plain = whole_run(model, tokens, [])
    moved = 0
    for variant, ours in zip(variants, found, strict=True):
        expected = whole_run(model, tokens, variant)
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
        moved += int((expected - plain).abs().max() > 1e-4)
    assert moved > 0.8 * len(variants), "values put in must show"


def test_no_patches_are_the_base_run_and_run_no_block() -> None:
    model = tiny.model()
    tokens, _ = both(model, ["L1.z"])
    (found,) = Patched(model, False)(tokens, [[]], last)
    torch.testing.assert_close(found, model.run(tokens).logits[:, -1], atol=1e-6, rtol=1e-5)


def test_blocks_below_the_lowest_patch_run_once_for_all_variants() -> None:
    model = tiny.model()
    tokens, values = both(model, ["L1.z", "L2.resid_post"])
    calls = [0, 0, 0]

    def count(layer: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[layer] += 1

        return hook

    handles = [b.register_forward_pre_hook(count(i)) for i, b in enumerate(model.backend.blocks)]  # pyright: ignore[reportAttributeAccessIssue]
    high = [Patch("L2.resid_post", values["L2.resid_post"], c) for c in range(5, 13)]
    low = Patch("L1.z", values["L1.z"], 7)
    try:
        Patched(model, False)(tokens, [[low, high[0]], *([p] for p in high)], last)
    finally:
        for handle in handles:
            handle.remove()
    # the base run; and the one variant that reaches down to block 1
    assert calls == [1, 2, 2]


def test_patches_of_a_variant_act_together_and_the_later_one_holds() -> None:
    model = tiny.model("gpt2")
    tokens, values = both(model, ["L0.resid_post", "L1.z"])
    other = model.run(tokens, ["L1.z"]).values
    shared = Patch("L0.resid_post", values["L0.resid_post"], 7)
    twice = [Patch("L1.z", other["L1.z"] + 1, None, 2), Patch("L1.z", values["L1.z"], 12, 2)]
    variants = [[shared, *twice], [shared], [shared, twice[1]]]
    found = Patched(model, False)(tokens, variants, last)
    first = values["L1.z"].clone()
    first[:, :12] = other["L1.z"][:, :12] + 1
    merged = [shared, Patch("L1.z", first, None, 2)]
    for ours, patches in zip(found, [merged, *variants[1:]], strict=True):
        expected = whole_run(model, tokens, patches)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert float((found[0] - found[2]).abs().max()) > 1e-3


def test_rows_say_which_cases_change() -> None:
    model = tiny.model()
    tokens, values = both(model, ["L1.resid_pre"])
    put = values["L1.resid_pre"]
    some = Patch("L1.resid_pre", put, 9, rows=torch.tensor([False, True]))
    one, every, none = Patched(model, False)(
        tokens, [[some], [Patch("L1.resid_pre", put, 9)], []], last
    )
    torch.testing.assert_close(one[0], none[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one[1], every[1], atol=1e-6, rtol=1e-5)
    assert float((one[1] - none[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("budget", [1, 13, 40, 10_000])
def test_how_it_is_cut_into_forwards_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    model = tiny.model()
    tokens, values = both(model, ["L*.resid_pre"])
    cases = Cases(tokens, answer=torch.tensor([5, 9]))
    put: list[list[Patch]] = [
        [Patch(f"L{i}.resid_pre", values[f"L{i}.resid_pre"], c)]
        for i in (0, 2)
        for c in (5, 6, 9, 12)
    ]
    read = lambda logits: cases.metric(logits, "logprob")  # noqa: E731
    expected = torch.stack([read(whole_run(model, tokens, one)) for one in put])
    monkeypatch.setattr(patcher, "CPU_TOKENS", budget)
    found = Patched(model, False)(tokens, put, read)
    assert found.shape == (8, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    z = Patched(model, False).values(tokens, [put[2], put[4]], ["L2.z", "L0.z"])
    assert z["L2.z"].shape == (2, 2, 13, 4, 8)
    # what is put in above block 0 leaves it as it is, what is put in below does not
    torch.testing.assert_close(z["L0.z"][1], model.run(tokens, ["L0.z"])["L0.z"])
    assert float((z["L0.z"][0] - z["L0.z"][1])[0, 12].abs().max()) > 1e-4


def test_values_are_read_after_what_is_put_in_there() -> None:
    model = tiny.model()
    tokens, values = both(model, ["L1.z"])
    patch = Patch("L1.z", values["L1.z"], None, 3)
    found = Patched(model, False).values(tokens, [[patch], []], ["L1.z", "L1.resid_post"])
    torch.testing.assert_close(found["L1.z"][0, :, :, 3], values["L1.z"][:, :, 3])
    own = model.run(tokens, ["L1.z", "L1.resid_post"])
    torch.testing.assert_close(found["L1.z"][1], own["L1.z"])
    real = tokens.mask
    torch.testing.assert_close(found["L1.z"][0, :, :, :3][real], own["L1.z"][:, :, :3][real])
    torch.testing.assert_close(found["L1.resid_post"][1][real], own["L1.resid_post"][real])


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_backends_give_the_same(backend: str) -> None:
    reference, other = tiny.model("gpt2"), tiny.model("gpt2", backend)
    names = ["L1.resid_pre", "L1.z", "L2.attn_out", "L0.mlp_out"]
    tokens, values = both(reference, names)
    variants = [[Patch(name, values[name], c)] for name in names for c in (7, 12)]
    variants += [[Patch("L1.z", values["L1.z"], None, 2)], []]
    ours = Patched(reference, False)(tokens, variants, last)
    theirs = Patched(other, False)(other.tokens(list(BASE)), variants, last)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_an_interrupt_leaves_nothing_behind() -> None:
    model = tiny.model()
    tokens, values = both(model, ["L2.resid_pre"])
    before = model.run(tokens).logits
    kinds = [type(block) for block in model.backend.blocks]  # pyright: ignore[reportAttributeAccessIssue]

    def stop(_logits: Tensor) -> Tensor:
        raise KeyboardInterrupt

    inside = torch.full((), 0)

    def inside_stop(*_: Any) -> None:
        inside.add_(1)
        if int(inside) > 1:  # the base run may pass
            raise KeyboardInterrupt

    variants = [[Patch("L2.resid_pre", values["L2.resid_pre"], 9)]]
    with pytest.raises(KeyboardInterrupt):
        Patched(model, False)(tokens, variants, stop)
    handle = model.backend.blocks[2].register_forward_pre_hook(inside_stop)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        Patched(model, False)(tokens, variants, last)
    handle.remove()
    assert [type(block) for block in model.backend.blocks] == kinds  # pyright: ignore[reportAttributeAccessIssue]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.hf.modules())
    assert torch.equal(model.run(tokens).logits, before)


def test_what_comes_out_takes_gradients_and_holds_no_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny.model()
    tokens, _ = both(model, ["L1.z"])
    seen: list[StorageWeakRef] = []
    alive: list[int] = []

    def one(logits: Tensor) -> Tensor:
        alive.append(sum(not ref.expired() for ref in seen))
        seen.append(StorageWeakRef(logits.untyped_storage()))
        return logits[:, 3]  # a view of the logits

    monkeypatch.setattr(patcher, "CPU_TOKENS", 1)
    found = Patched(model, False)(tokens, [[]] * 4, one)
    assert found.shape == (4, 2) and not found.is_inference()
    assert len(alive) == 4 and max(alive) <= 1, "logits of earlier forwards are kept"


def test_a_bar_says_how_many_runs_are_left(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.model()
    tokens, _ = both(model, ["L1.z"])
    Patched(model, True)(tokens, [[]] * 3, last)
    assert "3/3" in capsys.readouterr().err


def misfits() -> dict[str, tuple[Callable[[Tensor], Any], str]]:
    """Variants that do not fit, from the values of L1.z `[2, 13, 4, 8]`, and what is said of them."""
    return {
        "none": (lambda z: [], "has no variants"),
        "shape": (lambda z: [[Patch("L1.z", z[:, 1:])]], "another shape"),
        "cases": (lambda z: [[Patch("L1.z", z[:1])]], "another shape"),
        "axes": (lambda z: [[Patch("L1.resid_pre", z)]], "another shape"),
        "column": (lambda z: [[Patch("L1.z", z, 13)]], "column the batch lacks"),
        "from the end": (lambda z: [[Patch("L1.z", z, -1)]], "column the batch lacks"),
        "head": (lambda z: [[Patch("L1.z", z, None, 4)]], "head the site lacks"),
        "no heads": (
            lambda z: [[Patch("L1.resid_pre", z.flatten(2), 1, 0)]],
            "head the site lacks",
        ),
        "rows": (lambda z: [[Patch("L1.z", z, rows=torch.ones(3))]], "wrong number of cases"),
        "selector": (lambda z: [[Patch("L1.z[head=1]", z)]], "is not one whole site"),
        "layers": (lambda z: [[Patch("L*.z", z)]], "is not one whole site"),
        "part": (lambda z: [[Patch("L1.zz", z)]], "no part is called"),
        "layer": (lambda z: [[Patch("L3.z", z)]], "layer the model lacks"),
        "logits": (lambda z: [[Patch("logits", z.flatten(2))]], "is not one whole site"),
        "site": (lambda z: [[Patch("L1.expert", z)]], "has none"),
    }


@pytest.mark.parametrize("site", ["L1.resid_pre", "L1.k", "L1.pattern"])
def test_values_of_another_width_are_not_stretched(site: str) -> None:
    """One number for a whole vector or one head for all would fit by broadcasting."""
    model = tiny.model()
    tokens, values = both(model, [site])
    for wrong in (values[site][..., :1], values[site][..., :-1]):
        with pytest.raises(wb.WorkbenchError, match="another shape"):
            Patched(model, False)(tokens, [[Patch(site, wrong)]], last)
    assert all(not m._forward_pre_hooks for m in model.hf.modules())


def test_values_go_by_the_names_they_were_asked_by() -> None:
    model = tiny.model()
    tokens, _ = both(model, ["L1.z"])
    found = Patched(model, False).values(tokens, [[]], ["blocks.1.attn.hook_z", "L1.z"])
    assert list(found) == ["blocks.1.attn.hook_z", "L1.z"]
    assert torch.equal(*found.values())


@pytest.mark.parametrize("name", list(misfits()))
def test_what_does_not_fit_is_said_before_anything_runs(name: str) -> None:
    model, (make, said) = tiny.model(), misfits()[name]
    tokens, values = both(model, ["L1.z"])
    handle = model.hf.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    try:
        with pytest.raises(wb.WorkbenchError, match=said):
            Patched(model, False)(tokens, make(values["L1.z"]), last)
    finally:
        handle.remove()

"""Every site of every family is read alike on every backend, and an edit there has the same effect."""

from __future__ import annotations

import pytest
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.parity import cases
from workbench.errors import SiteUnavailable

every_pair = pytest.mark.parametrize(
    "family, backend", [(f, b) for f in tiny.FAMILIES for b in cases.OTHERS]
)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_reference_backend_has_every_part_of_the_architecture(family: str) -> None:
    have = cases.parts(tiny.model(family))
    assert set(cases.PARTS) - have == cases.ABSENT[family]
    assert cases.parts(tiny.model(family), write=True) == have


@every_pair
def test_no_site_comes_or_goes_unnoticed(family: str, backend: str) -> None:
    for write in (False, True):
        ours = set(tiny.model(family).sites(write=write))
        theirs = set(tiny.model(family, backend).sites(write=write))
        lacking = {site.split(".")[-1] for site in ours - theirs}
        assert lacking == cases.UNAVAILABLE.get((backend, family), set())
        assert not theirs - ours


@every_pair
def test_every_site_reads_equal(family: str, backend: str) -> None:
    model, ours = tiny.model(family, backend), cases.reference(family)
    theirs = model.run(cases.PROMPTS, record=model.sites())
    assert set(theirs.values) == set(ours.values)
    values = {**ours.values, "logits": ours.logits}
    found = [
        cases.differs(site, value, theirs.values.get(site, theirs.logits), ours.tokens.mask)
        for site, value in values.items()
    ]
    assert not [wrong for wrong in found if wrong]


@pytest.mark.parametrize("sign, scope", [(1, "all"), (-1, "all"), (1, "span(1, 4)")])
@every_pair
def test_every_edit_has_the_same_effect(family: str, backend: str, sign: int, scope: str) -> None:
    wrong = []
    for part in sorted(cases.parts(tiny.model(family, backend), write=True)):
        change = cases.edit(family, part, sign, scope)
        ours = cases.edited(family, part, sign, scope)
        theirs = tiny.model(family, backend).run(cases.PROMPTS, edits=[change])
        wrong.append(_differs(part, ours.logits, theirs.logits, ours.tokens.mask))
        for a, b in zip(ours.receipts, theirs.receipts, strict=True):
            same = (a.site, a.fired, a.positions) == (b.site, b.fired, b.positions)
            assert same and b.change == pytest.approx(a.change, rel=1e-4)
    assert not [one for one in wrong if one]


@every_pair
def test_edits_at_every_site_at_once(family: str, backend: str) -> None:
    model = tiny.model(family, backend)
    edits = [cases.edit(family, p).at(0.05) for p in sorted(cases.parts(model, write=True))]
    ours = tiny.model(family).run(cases.PROMPTS, model.sites(), edits)
    theirs = model.run(cases.PROMPTS, model.sites(), edits)
    found = [cases.differs(s, v, theirs[s], ours.tokens.mask) for s, v in ours.values.items()]
    assert not [wrong for wrong in found if wrong]


@pytest.mark.parametrize("variant", cases.VARIANTS)
@pytest.mark.parametrize("backend", cases.OTHERS)
def test_variants_of_an_architecture_agree(variant: str, backend: str) -> None:
    hf = tiny.module(variant.split()[0], **cases.VARIANTS[variant])
    reference = wb.load(hf, tiny.tokenizer(), proof=False)
    model = wb.load(hf, tiny.tokenizer(), backend=backend)
    lacking = set(reference.sites()) - set(model.sites())
    allowed = cases.UNAVAILABLE.get((backend, variant), set())
    assert {site.split(".")[-1] for site in lacking} == allowed
    ours, theirs = (m.run(cases.PROMPTS, model.sites()) for m in (reference, model))
    found = [cases.differs(s, ours[s], v, ours.tokens.mask) for s, v in theirs.values.items()]
    assert not [wrong for wrong in found if wrong]
    texts = [
        [g.ids for g in m.generate(cases.PROMPTS, max_new_tokens=4)] for m in (reference, model)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("backend", cases.OTHERS)
def test_a_site_no_backend_has_says_so(backend: str) -> None:
    with pytest.raises(SiteUnavailable, match="no backend can offer it on this model"):
        tiny.model("gpt_neox", backend).run("ab", record="L0.resid_mid")


def test_a_site_only_others_have_names_one_of_them() -> None:
    model = tiny.model("llama", "transformer_lens")
    with pytest.raises(SiteUnavailable, match=r"backend='transformers'\) has it"):
        model.run("ab", record="hf:model.layers.1.mlp.down_proj:in")


@pytest.mark.parametrize("side", ["in", "out"])
def test_any_module_reads_equal_on_nnsight_whatever_the_order_asked_in(side: str) -> None:
    wanted = [f"hf:model.layers.{n}.mlp:{side}" for n in (2, 0)] + ["L1.resid_post", "embed"]
    ours = tiny.model("llama").run(cases.PROMPTS, wanted)
    theirs = tiny.model("llama", "nnsight").run(cases.PROMPTS, wanted)
    assert not [s for s in wanted if cases.differs(s, ours[s], theirs[s], ours.tokens.mask)]


def _differs(part: str, ours: Tensor, theirs: Tensor, mask: Tensor) -> str:
    wrong = cases.differs("logits", ours, theirs, mask)
    return wrong and f"edit at {part}: {wrong}"

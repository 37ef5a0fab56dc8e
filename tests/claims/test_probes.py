"""The carry of column addition can be read at the position before it, from block 0 on.

Steering cannot choose the carry at block 0 (`test_carry`), but a probe reads it there: legible is not yet
used. A bag of the prompt's digits is right about eight carries in ten, which is what a probe has to beat;
shuffled labels give chance.
"""

from __future__ import annotations

import pytest

import workbench as wb
from workbench import probes
from workbench.probing.table import ProbeTable


@pytest.fixture(scope="module")
def carry() -> ProbeTable:
    model = wb.load("reasoner")
    prompts = wb.tasks.carries(200, seed=0)
    acts = model.record(prompts, ["embed", "L0.resid_post", "L2.resid_post"], progress=False)
    return probes.evaluate("mass_mean", acts, shuffles=12)


@pytest.mark.parametrize("site", ["L0.resid_post", "L2.resid_post"])
def test_the_carry_is_legible_from_block_0_on(carry: ProbeTable, site: str) -> None:
    found = carry.at(site)
    assert found.loc["auroc", "low"] > 0.95
    words = carry.at("", "bag of tokens")
    assert found.loc["accuracy", "low"] > words.loc["accuracy", "high"]
    assert words.loc["accuracy", "low"] > 0.65, "the digits alone say much of it"


def test_the_token_alone_does_not_say_it(carry: ProbeTable) -> None:
    """The position before the carry holds the same token in every prompt."""
    found = carry.at("embed").loc["accuracy"]
    assert found["low"] <= 0.5 <= found["high"]


def test_shuffled_labels_give_chance(carry: ProbeTable) -> None:
    for site in carry.sites:
        control = carry.at(site, "shuffled labels").loc["accuracy"]
        assert control["low"] <= 0.5 <= control["high"]
        assert control["n"] == 60
    assert carry.at("L0.resid_post").loc["selectivity", "low"] > 0.25

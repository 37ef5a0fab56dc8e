"""A circuit that was planted is found, alone it does the work, and an edit of its head takes it away.

The model: 3 blocks, attention spread evenly, all writes tiny but those of two heads. L0.h1 copies what
stands in the text to directions no embedding uses; L2.h3 reads only these and writes the answer.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import locate
from workbench.patching.map import Map

PLANTED = {"embed -> L0.h1.v", "L0.h1 -> L2.h3.v", "L2.h3 -> logits"}
LETTERS = "abdefghk"


@cache
def planted() -> wb.Model:
    """Tokens live in the first 20 directions, the copy in the next 8, answers in the last 4."""
    hf: Any = tiny.module("llama", num_key_value_heads=4)
    draw = torch.Generator().manual_seed(1)
    a, b, c = slice(0, 20), slice(20, 28), slice(28, 32)
    with torch.no_grad():
        embed = hf.model.embed_tokens.weight
        embed.normal_(generator=draw)
        embed[:, 20:] = 0
        hf.lm_head.weight.normal_(generator=draw)[:, :28] = 0
        hf.model.norm.weight.fill_(1)
        for block in hf.model.layers:
            block.input_layernorm.weight.fill_(1)
            block.post_attention_layernorm.weight.fill_(1)
            block.self_attn.q_proj.weight.zero_()  # attention spreads evenly
            block.self_attn.o_proj.weight.mul_(0.02)
            block.mlp.down_proj.weight.mul_(0.02)
        first, last = hf.model.layers[0].self_attn, hf.model.layers[2].self_attn
        first.v_proj.weight[8:16] = torch.randn(8, 32, generator=draw)
        first.o_proj.weight[b, 8:16] = 8 * torch.eye(8)
        last.v_proj.weight[24:32] = 0
        last.v_proj.weight[24:32, b] = torch.eye(8)
        last.o_proj.weight[c, 24:32] = torch.randn(4, 8, generator=draw)
        assert not hf.model.embed_tokens.weight[:, b].any() and a.stop == b.start
    return wb.load(hf, tiny.tokenizer(), proof=False)  # keys without queries move nothing


@cache
def cases() -> wb.Prompts:
    """One letter of four differs; the answers are the model's own first choices on either side."""
    clean = [f"{x}{x}{x}z" for x in LETTERS]
    corrupted = [f"{y}{y}{y}z" for y in LETTERS[1:] + LETTERS[0]]
    best = lambda texts: planted().run(texts).logits[:, -1].argmax(-1).tolist()  # noqa: E731
    right, wrong = best(clean), best(corrupted)
    keep = [i for i in range(len(clean)) if right[i] != wrong[i]]
    pick = lambda many: [many[i] for i in keep]  # noqa: E731
    return wb.prompts.counterfactuals(
        clean=pick(clean), corrupted=pick(corrupted), answers=pick(right), foils=pick(wrong)
    )


@cache
def found(steps: int, direction: Any = "noising") -> Map:
    method = locate.EdgeAttribution(steps=steps, direction=direction, points=9)
    return locate.find(method, planted(), cases(), progress=False)


@pytest.mark.parametrize(("direction", "steps"), [("noising", 0), ("noising", 5), ("denoising", 5)])
def test_the_planted_edges_rank_first(direction: str, steps: int) -> None:
    assert len(cases()) >= 10  # five pairs
    assert set(found(steps, direction).top(3)["edge"]) == PLANTED


def test_one_gradient_at_the_corrupted_run_puts_another_edge_among_them() -> None:
    """The head's write also moves the last norm's length, which one gradient overrates and steps do not."""
    best = found(0, "denoising").top(4)["edge"]
    assert set(best) > PLANTED
    assert set(best) - PLANTED == {"L0.h1 -> logits"}


def test_the_circuit_alone_does_the_work_and_random_ones_of_its_size_do_not() -> None:
    curve = found(5).also["faithfulness"]
    names, sizes = (axis.labels for axis in curve.scores.axes)
    grid = curve.grid()
    three = next(i for i, size in enumerate(sizes) if size >= 3)
    assert sizes[three] < 10 and grid[0, three] > 0.8
    assert np.abs(grid[1:, three]).max() < 0.2 and len(names) == 6
    assert grid[0, 0] < 0.2  # one edge is no way from the embedding to the logits
    low = curve.at(circuit="best edges", edges=sizes[three])
    low = low[low["measure"] == "faithfulness"]["low"].iloc[0]
    assert low > np.max(grid[1:, three])


def test_the_head_in_the_middle_is_what_an_edit_takes_away() -> None:
    """Confirmed by an intervention that knows nothing of edges: each head of block 0 switched off."""
    clean = [p for p in cases() if p.meta["role"] == "clean"]
    ids = torch.tensor([[p.meta["answer"], p.meta["foil"]] for p in clean])

    def difference(edits: Any) -> float:
        logits = planted().run(clean, edits=edits, logits="last").logits[:, -1]
        picked = logits.gather(1, ids)
        return float((picked[:, 0] - picked[:, 1]).mean())

    off = [
        wb.Intervention("custom", "affine", {f"L0.z[head={h}]": {"scale": -torch.ones(8)}})
        for h in range(4)
    ]
    whole, without = difference([]), [difference([edit]) for edit in off]
    assert abs(without[1]) < 0.2 * whole
    assert all(without[h] > 0.8 * whole for h in (0, 2, 3))


# --- a real model: which edges carry the pronoun of a story ---------------------------------------

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
STORY = "Once upon a time, there was a little {} named {}."
NAMES = [("Mia", "Tom"), ("Sue", "Max"), ("Anna", "Ben"), ("Lucy", "Sam"), ("Amy", "Jack")]
stories = pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not in ../shared/data")


@cache
def told() -> tuple[wb.Model, wb.Prompts]:
    """Girls beside boys of as many tokens; answers are She and He."""
    model = wb.load(STORIES)
    girls = [STORY.format("girl", name) for pair in NAMES for name in pair[:1]]
    boys = [STORY.format("boy", name) for pair in NAMES for name in pair[1:]]
    long = lambda text: len(model.tokenizer(text)["input_ids"])  # noqa: E731
    pairs = [(g, b) for g in girls for b in boys if long(g) == long(b)]
    she, he = (
        model.tokenizer(f" {w}", add_special_tokens=False)["input_ids"][-1] for w in ("She", "He")
    )
    clean, corrupted = zip(*pairs, strict=True)
    return model, wb.prompts.counterfactuals(
        clean=clean, corrupted=corrupted, answers=she, foils=he
    )


@cache
def curve(steps: int) -> tuple[Map, np.ndarray]:
    model, prompts = told()
    method = locate.EdgeAttribution(steps=steps, points=8, draws=3)
    made = locate.find(method, model, prompts, progress=False)
    return made, made.also["faithfulness"].grid()


@stories
def test_the_best_edges_recover_the_pronoun_and_random_ones_do_not() -> None:
    """Few of 1,701 edges recover most of it; steps make circuits more faithful on the whole."""
    sizes = curve(5)[0].also["faithfulness"].scores.axes[1].labels
    some = [i for i, size in enumerate(sizes) if 100 < size < 1000]
    plain, stepped = curve(0)[1], curve(5)[1]
    assert (stepped[0, some] > 0.5).all()
    assert np.abs(stepped[1:, some]).max() < 0.2
    assert stepped[0, :-1].sum() > plain[0, :-1].sum()


@stories
def test_the_head_of_the_strongest_edge_is_confirmed_by_an_edit() -> None:
    """L4.h2 -> logits ranks first; of the last block's heads, switching that one off costs the most."""
    assert curve(5)[0].top(1)["edge"][0] == curve(0)[0].top(1)["edge"][0] == "L4.h2 -> logits"
    model, prompts = told()
    clean = [p for p in prompts if p.meta["role"] == "clean"]
    she, he = clean[0].meta["answer"], clean[0].meta["foil"]

    def difference(edits: Any) -> float:
        logits = model.run(clean, edits=edits, logits="last").logits[:, -1]
        return float((logits[:, she] - logits[:, he]).mean())

    size = model.dims.d_head
    costs = [
        difference([]) - difference(
            [wb.Intervention("custom", "affine", {f"L4.z[head={h}]": {"scale": -torch.ones(size)}})]
        )
        for h in range(model.n_heads)
    ]  # fmt: skip
    assert int(np.argmax(costs)) == 2 and costs[2] > 0.2 * difference([])

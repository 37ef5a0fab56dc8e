"""Five faults that cut across steering methods and were found in released code; each is a test.

Source: the method specifications, section 0.4. The faulty form is built here beside ours where it can
be, so that the test is seen to tell them apart.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench import steering
from workbench.errors import FileRefused
from workbench.model.model import Model
from workbench.tensors import Intervention

SITE = "L1.resid_post"
PROMPT = "sum 12+34="


@pytest.fixture(scope="module")
def model() -> Model:
    return wb.load(tiny.module("llama").double(), tiny.tokenizer())


@pytest.fixture(scope="module")
def edit(model: Model) -> Intervention:
    sides = {
        side: [f"{word} {a}+{b}=" for a in range(4) for b in range(4)]
        for side, word in (("positive", "sum"), ("negative", "say"))
    }
    found = steering.fit("mean_difference", model, wb.prompts.pairs(**sides), SITE, progress=False)
    return found.at(3.0)


def next_logits(model: Model, ids: list[int], cache: bool) -> Tensor:
    """Next-token logits of Hugging Face's own forward, token by token or all at once."""
    with torch.no_grad():
        if not cache:
            return model.hf(torch.tensor([ids])).logits[0, -1]
        past, out = None, None
        for step in (ids[:-1], ids[-1:]):
            out = model.hf(torch.tensor([step]), past_key_values=past, use_cache=True)
            past = out.past_key_values
        return out.logits[0, -1]


def test_1_the_last_index_of_a_forward_is_no_scope(model: Model, edit: Intervention) -> None:
    """A hook on index -1 steers other positions with a cache than without; absolute scopes do not."""
    ids = model.tokens(PROMPT).ids[0].tolist()
    v = 3.0 * edit.tensors[SITE]["shift"].double()

    def at_the_last_index(_module: Any, _args: Any, out: Any) -> Any:
        h = (out[0] if isinstance(out, tuple) else out).clone()
        h[:, -1] += v
        return (h, *out[1:]) if isinstance(out, tuple) else h

    handle = model.hf.model.layers[1].register_forward_hook(at_the_last_index)
    try:
        faulty = [next_logits(model, ids, cache) for cache in (True, False)]
    finally:
        handle.remove()
    assert (faulty[0] - faulty[1]).abs().max() > 1e-3

    for scope in ("all", "prompt", "last_prompt", "generated", "last_prompt|generated"):
        ours = [
            model.generate(PROMPT, edit.within(scope), max_new_tokens=5, use_cache=cache)[0]
            for cache in (True, False)
        ]
        assert ours[0].ids == ours[1].ids
        assert ours[0].logprobs == pytest.approx(ours[1].logprobs, abs=1e-9)


def test_2_centred_pca_removes_the_concept() -> None:
    """`tests/contract/test_steering_methods.py` has the planted direction; here the default option."""
    assert steering.Pca().centred is False


def test_3_the_first_generated_token_comes_from_the_last_prompt_position(
    model: Model, edit: Intervention
) -> None:
    def first_and_later(scope: str) -> tuple[float, float]:
        texts = [model.generate(PROMPT, e, max_new_tokens=4)[0] for e in ([], [edit.within(scope)])]
        base, steered = (t.logprobs for t in texts)
        return abs(base[0] - steered[0]), abs(base[1] - steered[1])

    assert first_and_later("generated")[0] == 0
    assert first_and_later("generated")[1] > 1e-6
    assert first_and_later("last_prompt")[0] > 1e-6
    assert first_and_later("last_prompt|generated")[0] > 1e-6


def test_4_a_vector_is_added_once_and_gone_afterwards(model: Model, edit: Intervention) -> None:
    before = model.run(PROMPT, [SITE])
    for _ in range(2):  # applying it again in a second call must not add up
        after = model.run(PROMPT, [SITE], [edit.at(0.25)])
        moved = after[SITE] - before[SITE]
        expected = 0.25 * edit.tensors[SITE]["shift"].double()
        torch.testing.assert_close(moved, expected.expand_as(moved), atol=1e-12, rtol=0)
    assert torch.equal(model.run(PROMPT).logits, before.logits)
    assert torch.equal(model.run(PROMPT, edits=[edit.at(0.0)]).logits, before.logits)


def test_5_a_file_without_its_operation_is_refused(edit: Intervention, tmp_path) -> None:
    save_file({"direction.1": edit.tensors[SITE]["shift"]}, tmp_path / "vector.safetensors")
    with pytest.raises(FileRefused, match="without its operation"):
        wb.load_edit(tmp_path / "vector.safetensors")

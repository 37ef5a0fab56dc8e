"""After any run, and after an exception inside a tap, the module is bit for bit what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.parity import cases
from workbench.model.backends.base import Tap

IDS = torch.arange(3, 13).reshape(2, 5)


class Broken(Exception):
    """Raised inside a tap."""


@pytest.mark.parametrize("backend", ["transformers", *cases.OTHERS])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loading_and_running_leave_nothing_behind(family: str, backend: str) -> None:
    hf = tiny.module(family)
    with unchanged(hf):
        model = wb.load(hf, tiny.tokenizer(), backend=backend, proof=False)
        edits = [cases.edit(family, part) for part in ("resid_post", "pattern")]
        model.run(cases.PROMPTS, model.sites(), edits)
        model.generate(cases.PROMPTS, edits, max_new_tokens=2)


@pytest.mark.parametrize("backend", ["transformers", *cases.OTHERS])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "qwen2_moe"])
def test_an_exception_inside_a_tap_leaves_nothing_behind(family: str, backend: str) -> None:
    model = tiny.model(family, backend)
    before = forward(model)
    with unchanged(model.hf):
        for part in sorted(cases.parts(model)):
            # other taps are attached too, so that every kind has to be undone
            taps = [
                Tap(cases.place(model, p), lambda h: h * 1.5) for p in ("resid_post", "pattern")
            ]
            taps.append(Tap(cases.place(model, part), broken))
            with pytest.raises(Broken), model.backend.attach(taps):
                forward(model)
    assert torch.equal(forward(model), before)
    if backend == "transformer_lens":
        assert not model.unwrap().list_hooks()


def broken(_: Tensor) -> Tensor:
    """A tap that fails."""
    raise Broken


def forward(model: wb.Model) -> Tensor:
    """Logits of the backend as it stands."""
    return model.backend.forward(
        IDS, mask=None, positions=None, cache=None, use_cache=False, keep=0
    ).logits


@contextmanager
def unchanged(hf: torch.nn.Module) -> Iterator[None]:
    """Whatever happens inside, the module is the same afterwards."""
    before, state = _look(hf), {k: v.clone() for k, v in hf.state_dict().items()}
    yield
    after = _look(hf)
    assert all(torch.equal(before.pop("logits"), logits) for logits in [after.pop("logits")])
    assert after == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())
    assert list(hf.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in hf.state_dict().items())


@torch.no_grad()
def _look(hf: Any) -> dict[str, Any]:
    return {
        "logits": hf(input_ids=IDS).logits,
        "types": {name: type(m) for name, m in hf.named_modules()},
        "parameters": {name: id(p) for name, p in hf.named_parameters()},
        "configs": {name: id(m.config) for name, m in hf.named_modules() if hasattr(m, "config")},
        "config": hf.config.to_dict(),
        "attention": hf.config._attn_implementation,
        "generation": hf.generation_config.to_dict(),
        "training": hf.training,
        "tokenizer": (tiny.tokenizer().padding_side, tiny.tokenizer().special_tokens_map),
    }

"""What can be loaded: modules in memory, folders, adapters, quantised modules, unknown relatives."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import workbench as wb
from tests import tiny
from workbench.errors import ProofFailed, WorkbenchError
from workbench.model import layouts
from workbench.tensors import Intervention

SHIFT = Intervention("custom", "affine", {"L1.resid_post": {"shift": torch.ones(32)}})


def test_the_model_is_the_module_itself() -> None:
    hf = tiny.module("llama")
    model = wb.load(hf, tiny.tokenizer())
    assert model.hf is hf
    assert model.unwrap() is hf
    with torch.no_grad():
        hf.model.layers[0].mlp.up_proj.weight.mul_(2)
    ids = model.tokens("ab12").ids
    assert torch.equal(model.run("ab12").logits, hf(ids).logits)


def test_a_fine_tuned_model_has_another_fingerprint() -> None:
    hf = tiny.module("llama")
    model = wb.load(hf, tiny.tokenizer())
    before = model.fingerprint
    assert before == model.fingerprint
    with torch.no_grad():
        hf.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    assert before.weights != model.fingerprint.weights


# peft 0.21 asks transformers 5.23 for an attribute it has renamed
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_peft(kind: str) -> None:
    import peft

    if kind == "prompt":
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        wrapped = peft.get_peft_model(tiny.module("llama"), config)
        with pytest.raises(WorkbenchError, match="virtual tokens outside the module"):
            wb.load(wrapped, tiny.tokenizer())
        return
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(tiny.module("llama"), config).eval()
    model = wb.load(wrapped, tiny.tokenizer())
    ids = model.tokens("12+3=").ids
    assert torch.equal(model.run("12+3=").logits, wrapped(ids).logits)
    assert not torch.equal(model.run("12+3=").logits, tiny.model().run("12+3=").logits)
    assert model.run("12+3=", edits=[SHIFT]).receipts[0].change > 0


def test_a_quantised_module_loads_and_edits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the successor of this API
        hf = torch.ao.quantization.quantize_dynamic(tiny.module("llama"), {nn.Linear})
    model = wb.load(hf, tiny.tokenizer())
    assert model.run("12+3=", edits=[SHIFT]).receipts[0].change > 0
    assert model.generate("12+3=", [SHIFT], max_new_tokens=3)[0].ids


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    hf = copy.deepcopy(tiny.module(family)).to(dtype)
    model = wb.load(hf, tiny.tokenizer())
    trace = model.run(["12+3=", "b"], ["L1.pattern", "L1.resid_post"], [SHIFT])
    assert trace["L1.resid_post"].dtype == dtype
    assert model.generate(["12+3=", "b"], [SHIFT], max_new_tokens=3)


def test_a_wrong_layout_fails_at_load_and_names_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from workbench.model.layouts.base import Point

    right = layouts.find(tiny.module("llama"))
    wrong = replace(right, inside={**right.inside, "attn_out": Point("mlp")})
    monkeypatch.setattr(layouts, "find", lambda _hf: wrong)
    with pytest.raises(ProofFailed, match=r"L0\.resid_post.*the sum of its parts"):
        wb.load(tiny.module("llama"), tiny.tokenizer())


def test_an_unlisted_relative_is_found_by_its_skeleton() -> None:
    """A renamed Llama loads by its modules; a bare linear model is refused in words."""
    hf = tiny.module("llama")
    hf.config.model_type = "llama_descendant"
    assert wb.load(hf, tiny.tokenizer()).layout.name == "llama_like"
    hf = tiny.module("mixtral")
    hf.config.model_type = "mixtral_descendant"
    assert wb.load(hf, tiny.tokenizer()).layout.name == "moe"
    odd = tiny.module("llama")
    odd.model.layers[0].self_attn = nn.Identity()
    odd.config.model_type = "odd"
    with pytest.raises(WorkbenchError, match="without a layout"):
        layouts.find(odd)


def test_a_hub_name_without_a_network_fails_in_one_clear_line(tmp_path: Path) -> None:
    code = "import workbench as wb\ntry: wb.load('gpt2')\nexcept wb.WorkbenchError as e: print(e)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        cwd=Path(__file__).parents[2],
        check=True,
    ).stdout
    assert "wb.load('gpt2'): cannot be found or read; expected a shipped model" in out
    assert out.count("\n") == 1


def test_chat_messages_go_through_the_template() -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }}={{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}a={% endif %}"
    )
    model = wb.load(tiny.module("llama"), tokenizer)
    messages = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "7+5"})
    tokens = model.tokens(wb.Prompt(messages=messages))
    assert tokenizer.decode(tokens.ids[0]) == "<bos>s=be brief\nu=7+5\na="
    assert model.generate(wb.Prompt(messages=messages), [SHIFT], max_new_tokens=2)


def test_the_first_token_is_never_doubled() -> None:
    model = tiny.model()
    assert torch.equal(model.tokens("<bos>12").ids, model.tokens("12").ids)
    assert model.tokens("<bos>").ids.tolist() == [[1]]
    assert model.generate("<bos>", max_new_tokens=3)[0].ids


def test_attention_sinks_are_kept_and_their_scores_refused() -> None:
    """gpt-oss falls back to its own attention: a tapped layer must not lose the sinks (off by 0.9)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = tiny.CONFIGS["mixtral"] | dict(head_dim=8, sliding_window=16)
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **sizes)).eval()
    with torch.no_grad():
        for block in hf.model.layers:
            block.self_attn.sinks.add_(torch.randn_like(block.self_attn.sinks))
    model = wb.load(hf, tiny.tokenizer())
    assert "L1.pattern" not in model.sites()
    tapped = model.run("12+34=", ["L*.k_cache"]).logits
    assert torch.allclose(tapped, model.run("12+34=").logits, atol=1e-5)


def test_a_model_moves_as_a_whole_or_not_at_all() -> None:
    model = tiny.model("llama")
    assert model.to("cpu") is model
    with pytest.raises(wb.WorkbenchError, match="unknown device"):
        model.to("meta")  # its weights would be gone
    with pytest.raises(wb.WorkbenchError, match="a bridge of its own"):
        tiny.model("llama", "transformer_lens").to("cpu")


def test_only_what_was_loaded_by_name_can_be_loaded_again() -> None:
    assert wb.load("reasoner").source == "reasoner"
    assert tiny.model("llama").source is None

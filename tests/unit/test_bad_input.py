"""Bad input gets one clear error in one form, and nothing is half-changed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import WorkbenchError
from workbench.scopes import Scope
from workbench.tensors import Fingerprint, Intervention

FORM = re.compile(r"^.+: .+; expected .+; got .+; .+$", re.DOTALL)


def _shift(site: str = "L1.resid_post", width: int = 32, **options) -> Intervention:
    return Intervention("custom", "affine", {site: {"shift": torch.ones(width)}}, **options)


def _other_model() -> Intervention:
    return _shift(model=Fingerprint("other", "llama", 64, 9, ""))


CASES: dict[str, tuple[Callable[[wb.Model], object], str]] = {
    "unknown model": (lambda m: wb.load("reasonr"), "cannot be found or read"),
    "unknown backend": (
        lambda m: wb.load(m.hf, m.tokenizer, backend="transfomers"),
        "nearest: transformers",
    ),
    "unknown part": (lambda m: m.run("ab", ["L1.resid_pst"]), "nearest: resid_post"),
    "unknown layer": (lambda m: m.run("ab", ["L7.resid_post"]), "layers 0 to 2"),
    "site without layer": (lambda m: m.run("ab", ["resid_post"]), "has no layer"),
    "layer on a global": (lambda m: m.run("ab", ["L1.logits"]), "takes no layer"),
    "malformed site": (lambda m: m.run("ab", ["L1..q"]), "cannot be read"),
    "unknown selector": (lambda m: m.run("ab", ["L1.resid_post[head=1]"]), "has no selector"),
    "bad selector": (lambda m: m.run("ab", ["L1.z[head=x]"]), "is not an index"),
    "absent site": (lambda m: m.run("ab", ["L1.expert"]), "no backend can offer it"),
    "absent module": (lambda m: m.run("ab", ["hf:model.layers.1.mpl:in"]), "no such module"),
    "position beyond prompt": (lambda m: m.run("ab", ["L1.q[pos=9]"]), "not in every prompt"),
    "head beyond model": (lambda m: m.run("ab", ["L1.z[head=9]"]), "heads"),
    "unknown scope": (lambda m: Scope.parse("generatd"), "nearest: generated"),
    "scope token": (lambda m: m.run("ab", edits=[_shift(scope=Scope.after("xy"))]), "one token"),
    "another width": (lambda m: m.run("ab", edits=[_shift(width=64)]), "another width"),
    "another model": (lambda m: m.run("ab", edits=[_other_model()]), "another width or depth"),
    "unknown operation": (
        lambda m: m.run("ab", edits=[Intervention("c", "afine", {"L1.mlp_out": {}})]),
        "nearest: affine",
    ),
    "operation without tensors": (
        lambda m: m.run("ab", edits=[Intervention("c", "affine", {"L1.mlp_out": {}})]),
        "lacks a tensor",
    ),
    "not an edit": (lambda m: m.run("ab", edits=iter(["steer"])), "not an Intervention"),
    "nan strength": (lambda m: _shift().at(math.nan), "not a finite number"),
    "infinite strength": (lambda m: _shift().at(math.inf), "not a finite number"),
    "infinite tensor": (
        lambda m: m.run("ab", edits=[Intervention("c", "affine", {"L1.mlp_out": _inf()})]),
        "infinite or NaN",
    ),
    "strengths of another batch": (
        lambda m: m.run("ab", edits=[_shift().at(torch.ones(3))]),
        "another number of rows",
    ),
    "edit that covers nothing": (
        lambda m: m.run("ab", edits=[_shift(scope=Scope.span(50, 60))]),
        "covered no position",
    ),
    "edit that changes nothing": (
        lambda m: m.run("ab", edits=[Intervention("c", "affine", {"L1.z": _zeros()})]),
        "changed nothing",
    ),
    "no prompts": (lambda m: m.run([]), "there are none"),
    "empty prompt": (lambda m: m.run(""), "is empty"),
    "text and messages": (lambda m: wb.Prompt(), "exactly one of text and messages"),
    "no chat template": (
        lambda m: m.run(wb.Prompt(messages=({"role": "user", "content": "a"},))),
        "no chat template",
    ),
    "too long": (lambda m: m.run("a" * 500), "longer than the context"),
    "too long with its continuation": (
        lambda m: m.generate("a" * 100, max_new_tokens=60),
        "60 of them generated",
    ),
    "unspellable": (lambda m: m.run("caffé"), "outside the vocabulary"),
    "id outside the vocabulary": (
        lambda m: m.run("ab", completions=[[9999]]),
        "outside the vocabulary",
    ),
    "completions of another length": (lambda m: m.run("ab", completions=[]), "one per prompt"),
    "no tokens asked for": (lambda m: m.generate("ab", max_new_tokens=0), "asks for no tokens"),
    "neuron beyond model": (lambda m: m.run("ab", ["L1.mlp_post[neuron=1000]"]), "beyond"),
    "bias on every key": (
        lambda m: m.run("ab", edits=[_at("score_bias", "L1.attn_scores", bias=torch.ones(4))]),
        "lacks a tensor or parameter",
    ),
    "an operation out of place": (
        lambda m: m.run("ab", edits=[_at("scale_keys", "L1.resid_post", factor=torch.ones(4))]),
        "means nothing there",
    ),
    "half of a low-rank map": (
        lambda m: m.run("ab", edits=[_at("affine", "L1.mlp_out", down=torch.ones(2, 32))]),
        "lacks a tensor",
    ),
    "no value to set": (
        lambda m: m.run("ab", edits=[_at("set", "L1.mlp_out", shift=torch.ones(32))]),
        "lacks a tensor",
    ),
    "a shift per something else": (
        lambda m: m.run("ab", edits=[_at("affine", "L1.mlp_post", shift=torch.ones(7))]),
        "do not fit the activation",
    ),
    "a value per position while generating": (
        lambda m: m.generate("ab", [_at("set", "L1.mlp_out", value=torch.ones(1, 3, 32))]),
        "new tokens have none of",
    ),
    "nan behind a condition": (
        lambda m: m.run("ab", edits=[_nan(Scope.after("a"))]),
        "infinite or NaN",
    ),
    "scope inside a scope": (
        lambda m: (Scope.prompt() - Scope.bos()) | Scope.bos(),
        "as one: a|b-c",
    ),
    "tokens to generate from": (lambda m: m.generate(m.tokens("ab")), "is no prompt"),
    "an empty stop text": (lambda m: m.generate("ab", stop=""), "an empty text"),
    "unknown dtype": (lambda m: wb.load(m.hf, m.tokenizer, dtype="bf17"), "unknown dtype"),
    "options for a module": (lambda m: wb.load(m.hf, m.tokenizer, nonsense=3), "loaded already"),
    "a call inside a call": (
        lambda m: m.generate("ab", on_token=lambda *_: m.run("ab") and None),
        "in the middle of a call",
    ),
    "no tokenizer": (lambda m: wb.load(m.hf), "without a tokenizer"),
    "unknown device": (lambda m: wb.load(m.hf, m.tokenizer, device="gpu"), "unknown device"),
    "temperature": (lambda m: wb.decoding.Sample(temperature=0.0), "above 0"),
    "top_p": (lambda m: wb.decoding.Sample(top_p=1.5), "in (0, 1]"),
    "unknown method": (lambda m: wb.registry.get("decoding", "gredy"), "nearest: greedy"),
    "unknown family": (lambda m: wb.registry.names("decodings"), "nearest: decoding"),
}


def _at(operation: str, site: str, **tensors: torch.Tensor) -> Intervention:
    return Intervention("custom", operation, {site: tensors})


def _nan(scope: Scope) -> Intervention:
    shift = torch.full((32,), math.nan)
    return Intervention("custom", "affine", {"L1.mlp_out": {"shift": shift}}, scope=scope)


def _inf() -> dict[str, torch.Tensor]:
    return {"shift": torch.full((32,), math.inf)}


def _zeros() -> dict[str, torch.Tensor]:
    return {"shift": torch.zeros(8)}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gets_one_clear_error(name: str) -> None:
    action, words = CASES[name]
    model = tiny.model()
    before = model.run("ab12").logits
    with pytest.raises(WorkbenchError) as caught:
        action(model)
    assert FORM.match(str(caught.value)), str(caught.value)
    assert words in str(caught.value)
    assert torch.equal(model.run("ab12").logits, before), "the model was changed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_absent() -> None:
    model = tiny.model()
    with pytest.raises(WorkbenchError, match="no such device; expected cpu; got cuda"):
        wb.load(model.hf, model.tokenizer, device="cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.module("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def test_a_folder_loads(folder: Path) -> None:
    model = wb.load(folder)
    assert torch.equal(model.run("12+3").logits, tiny.model().run("12+3").logits)


def test_a_half_written_file_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(WorkbenchError, match="corrupt or half-written"):
            wb.load(folder)
    finally:
        weights.write_bytes(whole)


def test_a_pickle_is_refused(tmp_path: Path, folder: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WorkbenchError, match="only pickles, which can run code"):
        wb.load(tmp_path)


def test_remote_code_is_refused_unless_asked(tmp_path: Path, folder: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = (tmp_path / "config.json").read_text()
    planted = '"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},'
    config = config.replace("{", "{" + planted, 1).replace('"llama"', '"evil"')
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(WorkbenchError, match="pass trust_remote_code=True"):
        wb.load(tmp_path)

"""Runs, edits, recordings and generation beside plain transformers, TransformerLens and nnsight.

    run       a forward: `model.run` / calling the module
    edit      a vector added to the residual stream in the middle / a torch hook of one's own doing so
    record    every `resid_post` / `output_hidden_states=True`
    generate  64 greedy tokens, edited at every step / transformers' `generate` without any edit
    edit_vs_, record_vs_, generate_vs_   the same edited forward, everything recorded, 64 edited tokens,
              each library in its own idiom: `run_with_hooks`, `run_with_cache`, `hooks` and `generate`
              of a TransformerBridge; `trace`, `cache` and `generate` with `iter` of nnsight

Everything recorded is all our sites against TransformerLens, and against nnsight, which keeps the output
of every module, our sites without those inside the attention function: 13 tensors a layer on both sides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

import workbench as wb
from tests.benchmarks import measure, models
from tests.benchmarks.measure import Figure

LENGTH, NEW = 32, 64
INSIDE_ATTENTION = ("pattern", "attn_scores", "k_cache", "v_cache")
Run = Callable[[], Any]
Cases = dict[str, dict[str, float]]


class Plain:
    """The same work in plain transformers, by hand."""

    def __init__(self, model: wb.Model, tokens: wb.Tokens):
        self.model, self.hf, self.ids = model, model.hf, tokens.ids
        self.block = model.hf.get_submodule(model.layout.blocks)[model.n_layers // 2]
        self.shift = models.shift(models.edit(model))

    @torch.no_grad()
    def run(self) -> Any:
        return self.hf(input_ids=self.ids, use_cache=False).logits

    def edit(self) -> Any:
        handle = self.block.register_forward_hook(lambda _m, _a, out: out + self.shift)
        try:
            return self.run()
        finally:
            handle.remove()

    @torch.no_grad()
    def record(self) -> Any:
        return self.hf(input_ids=self.ids, use_cache=False, output_hidden_states=True)

    @torch.no_grad()
    def generate(self) -> Any:
        return self.hf.generate(self.ids)


def beside_transformers(model: wb.Model, rows: int, rounds: int, slow_rounds: int) -> dict:
    """Our time over plain transformers' for the four verbs."""
    tokens, edit = models.batch(model, rows, LENGTH), models.edit(model)
    plain, ours = Plain(model, tokens), {
        "run": lambda: model.run(tokens),
        "edit": lambda: model.run(tokens, edits=[edit]),
        "record": lambda: model.run(tokens, "L*.resid_post"),
    }  # fmt: skip
    found = {}
    for verb, run in ours.items():
        runs = {"ours": run, "theirs": getattr(plain, verb)}
        found[verb] = measure.ratio(measure.alternate(runs, rounds), "ours", "theirs")
    if slow_rounds:
        short = models.batch(model, rows, 16)
        runs = {"ours": _generation(model, short, edit), "theirs": Plain(model, short).generate}
        times = measure.alternate(runs, slow_rounds, warm=1)
        found["generate"] = measure.ratio(times, "ours", "theirs")
    return found


def _generation(model: wb.Model, tokens: wb.Tokens, edit: wb.Intervention) -> Run:
    """64 tokens of our generate, end-of-sequence ids off on both sides so that the work is equal."""
    from transformers import GenerationConfig

    model.__dict__["eos_ids"] = frozenset()
    model.hf.generation_config = GenerationConfig(
        max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    prompts = list(tokens.prompts)
    run = lambda: model.generate(prompts, [edit], max_new_tokens=NEW)  # noqa: E731
    assert {len(g.ids) for g in run()} == {NEW}
    return run


def lens(model: wb.Model, tokens: wb.Tokens, prompt: torch.Tensor) -> dict[str, Run]:
    """TransformerLens' own idiom on a bridge around a shell of the module."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        "local/model", hf_model=models.shell(model), tokenizer=model.tokenizer, device="cpu"
    )
    shift = models.shift(models.edit(model))
    hooks = [(f"blocks.{model.n_layers // 2}.hook_resid_post", lambda h, hook: h + shift)]
    no_grad = torch.no_grad()

    @no_grad
    def generate() -> Any:
        with bridge.hooks(fwd_hooks=hooks):
            return bridge.generate(
                prompt, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False
            )

    return {
        "edit": no_grad(lambda: bridge.run_with_hooks(tokens.ids, fwd_hooks=hooks)),
        "record": no_grad(lambda: bridge.run_with_cache(tokens.ids)),
        "generate": generate,
    }


def sight(model: wb.Model, tokens: wb.Tokens, prompt: torch.Tensor) -> dict[str, Run]:
    """nnsight's own idiom around a shell of the module."""
    from nnsight import TransformersModel

    lm = TransformersModel(models.shell(model), task="text-generation", tokenizer=model.tokenizer)
    blocks = lm
    for name in model.layout.blocks.split("."):
        blocks = getattr(blocks, name)
    block, shift = blocks[model.n_layers // 2], models.shift(models.edit(model))

    @torch.no_grad()
    def edit() -> Any:
        with lm.trace(tokens.ids):
            block.output = block.output + shift
            out = lm.lm_head.output.save()
        return out

    @torch.no_grad()
    def record() -> Any:
        with lm.trace(tokens.ids) as tracer:
            kept = tracer.cache()
        return kept

    @torch.no_grad()
    def generate() -> Any:
        with lm.generate(prompt, max_new_tokens=NEW, do_sample=False) as tracer:
            with tracer.iter[:NEW]:
                block.output = block.output + shift
            out = tracer.result.save()
        return out

    return {"edit": edit, "record": record, "generate": generate}


def beside_libraries(model: wb.Model, rounds: int, slow_rounds: int) -> dict[str, float]:
    """Our time over theirs at batch 1, keys such as `edit_vs_tl`."""
    tokens, edit = models.batch(model, 1, LENGTH), models.edit(model)
    short = models.batch(model, 1, 16)
    everything = model.sites()
    outside = [s for s in everything if s.rpartition(".")[2] not in INSIDE_ATTENTION]
    generate, found = _generation(model, short, edit), {}
    for name, library, sites in (("tl", lens, everything), ("nnsight", sight, outside)):
        theirs = library(model, tokens, short.ids)
        ours = {
            "edit": lambda: model.run(tokens, edits=[edit]),
            "record": lambda sites=sites: model.run(tokens, sites),
            "generate": generate,
        }
        for verb, run in ours.items():
            count = slow_rounds if verb == "generate" else rounds
            if count:
                times = measure.alternate({"ours": run, "theirs": theirs[verb]}, count, warm=2)
                found[f"{verb}_vs_{name}"] = measure.ratio(times, "ours", "theirs")
    return found


LIMITS = {"run": 1.03, "edit": 1.05, "record": 1.10, "generate": 1.00}


def measured(quick: bool) -> dict[str, Figure]:
    """Every figure; `quick` takes fewer rounds and leaves GPT-2's generation at batch 16 out."""
    cases: Cases = {key: {} for key in LIMITS}
    many, few = (7, 3) if quick else (41, 7)
    for name, model, rounds, slow in (
        ("reasoner", models.reasoner(), 3 * many, few + 2),
        ("gpt2", models.gpt2(), few, 1 if quick else 3),
    ):
        for rows in (1, 16):
            heavy = name == "gpt2" and rows == 16
            count = max(2, rounds // 2) if heavy else rounds
            slow_rounds = 0 if heavy and quick else slow
            for key, value in beside_transformers(model, rows, count, slow_rounds).items():
                cases[key][f"{name} b{rows}"] = value
    figures = {key: measure.worst(cases[key], LIMITS[key]) for key in LIMITS}
    small = beside_libraries(models.reasoner(), 3 * many, few)
    large = beside_libraries(models.gpt2(), few, 0 if quick else 2)
    for key, value in small.items():
        limit = 0.6 if key.endswith("_tl") else 0.95
        detail = {"gpt2 b1": round(large[key], 4)} if key in large else {}
        figures[key] = measure.worst({"reasoner b1": value}, limit, **detail)
    return figures


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick, _ = measure.asked()
    sys.exit(not measure.report("engine", measured(quick)))

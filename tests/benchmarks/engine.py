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

LENGTH, PROMPT, NEW = 32, 16, 64
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


def beside_transformers(model: wb.Model, rows: int, seconds: float, slow: float) -> dict:
    """Our time over plain transformers' for the four verbs; no generation where `slow` is 0."""
    tokens, edit = models.batch(model, rows, LENGTH), models.edit(model)
    short = models.batch(model, rows, PROMPT)
    ours = {
        "run": lambda: model.run(tokens),
        "edit": lambda: model.run(tokens, edits=[edit]),
        "record": lambda: model.run(tokens, "L*.resid_post"),
        "generate": _generation(model, short, edit),
    }
    found = {}
    for verb, run in ours.items():
        budget = slow if verb == "generate" else seconds
        if budget:
            plain = Plain(model, short if verb == "generate" else tokens)
            times = measure.alternate({"ours": run, "theirs": getattr(plain, verb)}, budget)
            found[verb] = measure.ratio(times, "ours", "theirs")
    return found


def _generation(model: wb.Model, tokens: wb.Tokens, edit: wb.Intervention) -> Run:
    """64 tokens of our generate, end-of-sequence ids off on both sides so that the work is equal."""
    from transformers import GenerationConfig

    model.__dict__["eos_ids"] = frozenset()
    model.hf.generation_config = GenerationConfig(
        max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    prompts = list(tokens.prompts)

    def run() -> Any:
        done = model.generate(prompts, [edit], max_new_tokens=NEW)
        assert all(len(one.ids) == NEW for one in done)
        return done

    return run


def lens(model: wb.Model, tokens: wb.Tokens, prompt: torch.Tensor) -> dict[str, Run]:
    """TransformerLens' own idiom on a bridge around a shell of the module."""
    bridge = wb.load(model.hf, model.tokenizer, backend="transformer_lens", proof=False).unwrap()
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
        return out  # noqa: RET504 - a trace's block must not return

    @torch.no_grad()
    def record() -> Any:
        with lm.trace(tokens.ids) as tracer:
            kept = tracer.cache()
        return kept  # noqa: RET504

    @torch.no_grad()
    def generate() -> Any:
        with lm.generate(prompt, max_new_tokens=NEW, do_sample=False) as tracer:
            with tracer.iter[:NEW]:
                block.output = block.output + shift
            out = tracer.result.save()
        return out  # noqa: RET504

    return {"edit": edit, "record": record, "generate": generate}


def beside_libraries(model: wb.Model, seconds: float, slow: float) -> dict[str, float]:
    """Our time over theirs at batch 1, keys such as `edit_vs_tl`."""
    tokens, edit = models.batch(model, 1, LENGTH), models.edit(model)
    short = models.batch(model, 1, PROMPT)
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
            budget = slow if verb == "generate" else seconds
            if budget:
                times = measure.alternate({"ours": run, "theirs": theirs[verb]}, budget)
                found[f"{verb}_vs_{name}"] = measure.ratio(times, "ours", "theirs")
    return found


LIMITS = {"run": 1.03, "edit": 1.05, "record": 1.10, "generate": 1.00}


def measured(quick: bool) -> dict[str, Figure]:
    """Every figure; `quick` takes fewer rounds and leaves GPT-2's slow cases out."""
    cases: Cases = {key: {} for key in LIMITS}
    small, large = models.reasoner(), models.gpt2()
    # seconds of CPU time for each pair of runs, and for each pair of generations
    plan = [("reasoner", small, 1, 6, 8), ("reasoner", small, 16, 6, 8)]
    plan += [("gpt2", large, 1, 8, 16), ("gpt2", large, 16, 15, 45)]
    if quick:
        plan = [
            ("reasoner", small, 1, 2, 2),
            ("reasoner", small, 16, 1, 2),
            ("gpt2", large, 1, 1, 0),
        ]
    for name, model, rows, seconds, slow in plan:
        measure.to_stderr(f"engine: {name}, batch {rows}, beside transformers")
        for key, value in beside_transformers(model, rows, seconds, slow).items():
            cases[key][f"{name} b{rows}"] = value
    figures = {key: measure.worst(cases[key], LIMITS[key]) for key in LIMITS}
    measure.to_stderr("engine: beside TransformerLens and nnsight")
    of_large = {} if quick else beside_libraries(large, 8, 16)
    for key, value in beside_libraries(small, 1.5 if quick else 6, 2 if quick else 8).items():
        limit = 0.6 if key.endswith("_tl") else 0.95
        detail = {"gpt2 b1, no limit": round(of_large[key], 4)} if key in of_large else {}
        figures[key] = measure.worst({"reasoner b1": value}, limit, **detail)
    return figures


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick, _ = measure.asked()
    sys.exit(not measure.report("engine", measured(quick)))

"""Let the first token, where attention rests, look at the whole prompt at a few layers.

    prefill only, at chosen layers:  z_0 -> softmax(scale q_0 (W_K h)^T) W_V h,  h the residual stream
    of the whole prompt; every other position attends as before

Later tokens rest on position 0 anyway, and now find the prompt there. Position 0 is covered in the
forward that reads the prompt and in no later one; with `h` cut at the end of the prompt, a run without
a cache does the same again.

Shapes: `w_k`, `w_v` `[kv heads * d_head, d]`, biases and norms per layer; see `workbench.rules.sink`.
Units: strength s is the fraction of the way from position 0's own heads to the look at the prompt.
Source: SinkTrack: Attention Sink based Context Anchoring for Large Language Models (ICLR 2026), as
    released, https://github.com/67L1/SinkTrack.
Differs from the paper: the released code hands the residual stream to projections that were trained
    on its norm (`normalise_info=False`, kept as the default); its mask for the other positions,
    which under one version of transformers hides every token from itself, is a fault and is not
    offered. Text only: the information is the prompt, never an image. Released are every 4th layer
    (Llama 3.1) and every 5th (Qwen2.5), up to layer 25 or without a cap; our reading for any depth is
    every `max(2, n_layers // 8)`-th, never layer 0. Soft-capped attention scores are not capped here;
    models with another scale than 1 / sqrt(d_head) need `scale`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import WorkbenchError
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.shapes import Tensor
from workbench.steering.base import SteeringMethod
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Authors of 67L1/SinkTrack",
        "SinkTrack: Attention Sink based Context Anchoring for Large Language Models",
        2026,
        "https://github.com/67L1/SinkTrack",
    ),
)
@dataclass(frozen=True)
class SinkTrack(SteeringMethod):
    """Let the first token attend to the whole prompt at every k-th layer.

    Attributes:
        every: k; layers k, 2k, ... are edited, but the last, after which nobody reads position 0.
            None is `max(2, n_layers // 8)`, in three layers 1.
        last: no layer beyond this one; None is no cap.
        layers: these layers instead.
        normalise_info: read the layer's own keys and values, which come from the normed stream.
        scale: of the attention scores; None is 1 / sqrt(d_head).
    """

    every: int | None = None
    last: int | None = 25
    layers: tuple[int, ...] | None = None
    normalise_info: bool = False
    scale: float | None = None

    needs = ("dims", "parameters")
    sites = ""

    def fit(
        self, contrast: Contrast, *, dims: Any, parameters: Mapping[str, Tensor]
    ) -> Intervention:
        """The edit of position 0 at the chosen layers; the prompts play no role.

        Raises:
            WorkbenchError: no layer is left, one the model lacks, or projections that are not found.
        """
        layers = self._chosen(dims.n_layers)
        gemma = bool(contrast.model and contrast.model.family.startswith("gemma"))
        found = {f"L{n}.z[pos=0]": self._tensors(n, dims, parameters, gemma) for n in layers}
        info = ["L{layer}.k", "L{layer}.v"] if self.normalise_info else ["L{layer}.resid_pre"]
        return Intervention(
            "sink_track",
            "adaptive",
            found,
            unit="fraction of the way from position 0's own attention to the whole prompt",
            scope=Scope.prompt(),
            params={
                "rule": "sink",
                "reads": ["L{layer}.q", *info],
                "scale": self.scale or dims.d_head**-0.5,
                "max_strength": 1.0,
            },
            model=contrast.model,
        )

    def _chosen(self, n_layers: int) -> tuple[int, ...]:
        usual = max(1, min(max(2, n_layers // 8), n_layers - 2))
        every = usual if self.every is None else self.every
        stop = n_layers - 1 if self.last is None else min(n_layers - 1, self.last + 1)
        chosen = tuple(range(every, stop, max(1, every))) if self.layers is None else self.layers
        if every < 1 or not chosen or any(not 0 < layer < n_layers for layer in chosen):
            raise WorkbenchError(
                "SinkTrack.fit",
                "no such layers to edit",
                expected=f"layers 1 to {n_layers - 1}; in layer 0 nothing is mixed yet",
                got=f"every {every}, last {self.last}, layers {self.layers}",
                do="choose every= or layers=",
            )
        return chosen

    def _tensors(
        self, layer: int, dims: Any, parameters: Mapping[str, Tensor], gemma: bool
    ) -> dict[str, Tensor]:
        here = {
            match[1]: p.detach().float().cpu().clone()
            for name, p in parameters.items()
            if (match := re.search(rf"\.{layer}\.(?:self_attn|attn|attention)\.(.+)$", name))
        }
        norms = {
            name: here[f"{name}.weight"] + gemma
            for name in ("q_norm", "k_norm")
            if f"{name}.weight" in here
        }
        return norms if self.normalise_info else norms | _projections(here, layer, dims)


def _projections(here: Mapping[str, Tensor], layer: int, dims: Any) -> dict[str, Tensor]:
    """W_K and W_V `[kv heads * d_head, d]` and their biases, from one layer's attention."""
    found: dict[str, Tensor] = {}
    for kind, short in (("weight", "w"), ("bias", "b")):
        if f"k_proj.{kind}" in here:
            found |= {f"{short}_{x}": here[f"{x}_proj.{kind}"] for x in "kv"}
        elif f"c_attn.{kind}" in here:
            parts = here[f"c_attn.{kind}"].chunk(3, -1)  # GPT-2 keeps them the other way round
            found |= {
                f"{short}_{x}": p.t().contiguous() for x, p in zip("kv", parts[1:], strict=True)
            }
        elif f"query_key_value.{kind}" in here:
            heads = here[f"query_key_value.{kind}"].unflatten(0, (dims.n_heads, 3, dims.d_head))
            found |= {f"{short}_k": heads[:, 1].flatten(0, 1)}
            found |= {f"{short}_v": heads[:, 2].flatten(0, 1)}
    if "w_k" in found:
        return {name: tensor.clone() for name, tensor in found.items()}
    raise WorkbenchError(
        "SinkTrack.fit",
        f"finds no key and value projections in layer {layer}",
        expected="k_proj and v_proj, c_attn, or query_key_value",
        got=sorted(here),
        do="normalise_info=True reads the layer's own keys and values instead",
    )

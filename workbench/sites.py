"""Sites: where in a model, written `L{layer}.{part}[selectors]`.

    L6.resid_post          the residual stream after block 6
    L6.resid_post[pos=-1]  at the last position of each prompt
    L3.pattern[head=5]     one head's attention pattern
    L*.resid_post          every layer; L2-5.mlp_out layers 2 to 5, both included
    embed, final_norm, logits      parts outside the blocks
    blocks.3.hook_resid_post       TransformerLens' names are synonyms
    hf:model.layers.6.mlp.down_proj:in   input (or :out, the output) of any Hugging Face module

`layer` counts blocks from 0. Axes are TransformerLens'. The table `PARTS` is the whole vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from workbench.errors import UnknownName, WorkbenchError, nearest

Index = int | tuple[int, int] | tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One named place: its axes after `batch`, whether it is inside the blocks, what it is."""

    axes: tuple[str, ...]
    in_block: bool
    meaning: str


PARTS: dict[str, Part] = {
    "embed": Part(("pos", "d"), False, "token embeddings, before positions are added"),
    "resid_pre": Part(("pos", "d"), True, "residual stream entering the block"),
    "attn_norm_out": Part(("pos", "d"), True, "what the attention reads: the first norm's output"),
    "q": Part(("pos", "head", "d_head"), True, "queries, before rotary positions"),
    "k": Part(
        ("pos", "head", "d_head"), True, "keys of the key-value heads, before rotary positions"
    ),
    "v": Part(("pos", "head", "d_head"), True, "values of the key-value heads"),
    "k_cache": Part(
        ("head", "pos", "d_head"), True, "all keys attended to, after rotary positions"
    ),
    "v_cache": Part(("head", "pos", "d_head"), True, "all values attended to"),
    "attn_scores": Part(("head", "q", "k"), True, "attention logits, scaled and masked"),
    "pattern": Part(("head", "q", "k"), True, "attention weights; rows sum to 1"),
    "z": Part(
        ("pos", "head", "d_head"), True, "per-head mix of values, before the output projection"
    ),
    "attn_out": Part(("pos", "d"), True, "what attention adds to the residual stream"),
    "resid_mid": Part(("pos", "d"), True, "residual stream between attention and MLP"),
    "mlp_norm_out": Part(("pos", "d"), True, "what the MLP reads: the second norm's output"),
    "router_logits": Part(("pos", "expert"), True, "MoE router logits, before softmax"),
    "mlp_pre": Part(("pos", "neuron"), True, "neurons before the activation function"),
    "mlp_post": Part(("pos", "neuron"), True, "neurons after the activation (and gate)"),
    "expert": Part(
        ("pos", "expert", "neuron"), True, "expert neurons after the gate; 0 where not routed"
    ),
    "mlp_out": Part(("pos", "d"), True, "what the MLP adds to the residual stream"),
    "resid_post": Part(("pos", "d"), True, "residual stream leaving the block"),
    "final_norm": Part(("pos", "d"), False, "output of the last norm"),
    "logits": Part(("pos", "vocab"), False, "next-token logits"),
}
"""Every part in the order a forward pass reaches it."""

_ORDER = {part: i for i, part in enumerate(PARTS)}

SELECTORS = ("pos", "head", "neuron", "expert")

_TL_BLOCK = {
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_attn_scores": "attn_scores",
    "attn.hook_pattern": "pattern",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_post": "mlp_post",
    "mlp.gate.hook_out": "router_logits",
}
_TL_GLOBAL = {"hook_embed": "embed", "embed.hook_out": "embed", "unembed.hook_out": "logits"}
_TL_GLOBAL["ln_final.hook_out"] = "final_norm"

_SITE = re.compile(
    r"^(?:L(?P<layer>\*|\d+(?:-\d+)?)\.)?(?P<part>hf:[\w.]+:(?:in|out)|\w+)(?:\[(?P<sel>[^\]]*)\])?$"
)


@dataclass(frozen=True, order=True)
class Site:
    """One place in one layer. `layer` is None outside the blocks and for `hf:` modules."""

    layer: int | None
    part: str
    selectors: tuple[tuple[str, Index], ...] = ()

    def __str__(self) -> str:
        head = "" if self.layer is None else f"L{self.layer}."
        sel = ", ".join(f"{k}={_show(v)}" for k, v in self.selectors)
        return f"{head}{self.part}" + (f"[{sel}]" if sel else "")

    @property
    def base(self) -> Site:
        """The same place without selectors."""
        return Site(self.layer, self.part) if self.selectors else self

    @property
    def axes(self) -> tuple[str, ...]:
        """Axis names after `batch`; an `hf:` module is taken as `pos d`."""
        return ("pos", "d") if self.part.startswith("hf:") else PARTS[self.part].axes

    @property
    def depth(self) -> tuple[int, int]:
        """Sort key in the order a forward pass reaches sites."""
        order = _ORDER.get(self.part, -1)
        if self.layer is not None:
            return (self.layer, order)
        return (-1, 0) if self.part == "embed" else (10**9, order)

    def selector(self, key: str) -> Index | None:
        """The index given for `key`, or None."""
        return dict(self.selectors).get(key)


def parse(text: str | Site, n_layers: int) -> list[Site]:
    """All sites that `text` names in a model of `n_layers` blocks, in layer order.

    Raises:
        UnknownName: no such part; lists the nearest.
        WorkbenchError: malformed text, a layer the model lacks, or a selector the part lacks.
    """
    return [text] if isinstance(text, Site) else list(_parsed(text, n_layers))


@lru_cache(4096)
def _parsed(text: str, n_layers: int) -> list[Site]:
    match = _SITE.match(_from_tl(text.strip()))
    if not match:
        raise _malformed(text)
    part, layer = match["part"], match["layer"]
    if part not in PARTS and not part.startswith("hf:"):
        raise _unknown_part(text, part)
    selectors = _selectors(text, part, match["sel"])
    in_block = part in PARTS and PARTS[part].in_block
    if in_block != (layer is not None):
        want = f"L<layer>.{part}" if in_block else part
        raise WorkbenchError(
            f"site {text!r}",
            "has no layer" if in_block else "is outside the blocks and takes no layer",
            expected=want,
            got=text,
            do="write it so",
        )
    if layer is None:
        return [Site(None, part, selectors)]
    return [Site(n, part, selectors) for n in _layers(text, layer, n_layers)]


def parse_all(texts: str | Site | Iterable[str | Site], n_layers: int) -> list[Site]:
    """`parse` over one or many site texts, duplicates removed, order kept."""
    many: Sequence[str | Site] = [texts] if isinstance(texts, str | Site) else list(texts)
    return list(dict.fromkeys(site for text in many for site in parse(text, n_layers)))


def _from_tl(text: str) -> str:
    name, bracket, rest = text.partition("[")
    if name in _TL_GLOBAL:
        return _TL_GLOBAL[name] + bracket + rest
    match = re.match(r"^blocks\.(\d+)\.(.+)$", name)
    if match and match[2] in _TL_BLOCK:
        return f"L{match[1]}.{_TL_BLOCK[match[2]]}{bracket}{rest}"
    return text


def tl_name(site: str | Site) -> str:
    """The site in TransformerLens' words, which SAELens' files use; the site itself where it has none."""
    layer, _, part = str(site).partition(".")
    if not part:
        return next((hook for hook, ours in _TL_GLOBAL.items() if ours == layer), layer)
    hooks = (
        h for h, ours in _TL_BLOCK.items() if ours == part and h not in ("hook_in", "hook_out")
    )
    return next((f"blocks.{layer[1:]}.{hook}" for hook in hooks), str(site))


def _layers(text: str, layer: str, n_layers: int) -> range:
    if layer == "*":
        return range(n_layers)
    first, _, last = layer.partition("-")
    picked = range(int(first), int(last or first) + 1)
    if not len(picked) or picked[-1] >= n_layers:
        raise WorkbenchError(
            f"site {text!r}",
            "names a layer the model lacks",
            expected=f"layers 0 to {n_layers - 1}",
            got=layer,
            do="count blocks from 0",
        )
    return picked


def _selectors(text: str, part: str, body: str | None) -> tuple[tuple[str, Index], ...]:
    found: list[tuple[str, Index]] = []
    for piece in re.split(r",(?![^(]*\))", body) if body else []:
        key, _, value = (s.strip() for s in piece.partition("="))
        axes = ("pos", "d") if part.startswith("hf:") else PARTS[part].axes
        allowed = [s for s in SELECTORS if s in axes or (s == "pos" and "q" in axes)]
        if key not in allowed:
            raise WorkbenchError(
                f"site {text!r}",
                f"{part} has no selector {key!r}",
                expected=f"one of {allowed}",
                got=key,
                do=f"its axes are batch {' '.join(axes)}",
            )
        found.append((key, _index(text, value)))
    return tuple(found)


def _index(text: str, value: str) -> Index:
    if re.fullmatch(r"-?\d+", value):
        return int(value)
    if match := re.fullmatch(r"(\d+):(\d+)", value):
        return tuple(range(int(match[1]), int(match[2])))
    if re.fullmatch(r"\(\s*-?\d+(\s*,\s*-?\d+)*\s*,?\)", value):
        return tuple(int(v) for v in re.findall(r"-?\d+", value))
    raise WorkbenchError(
        f"site {text!r}",
        "a selector is not an index",
        expected="5, -1, 2:5 or (1, 3)",
        got=value,
        do="correct it",
    )


def _show(index: Index) -> str:
    return str(index) if isinstance(index, int) else f"({', '.join(map(str, index))},)"


def _malformed(text: str) -> WorkbenchError:
    return WorkbenchError(
        f"site {text!r}",
        "cannot be read",
        expected="L<layer>.<part>[selectors], such as L6.resid_post[pos=-1]",
        got=text,
        do="see workbench.sites for the grammar",
    )


def _unknown_part(text: str, part: str) -> UnknownName:
    return UnknownName(
        f"site {text!r}",
        f"no part is called {part!r}",
        expected=f"one of {len(PARTS)} parts, nearest: {nearest(part, PARTS)}",
        got=part,
        do="print(workbench.sites.PARTS) lists them",
    )


def depth_of(text: str) -> tuple[int, int]:
    """Sort key of a site text that names one place, in the order a forward pass reaches sites."""
    return parse(text, 10**6)[0].depth

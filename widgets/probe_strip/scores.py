"""A probe's score at every token of a text: as it is, smoothed, and as the score so far.

    z_t      the score of token t alone      m_t = mean of the last M of z      s_t = max of m_M .. m_t
    s_t      until the window is full: the mean so far

A probe that reads single rows scores each token. A cascade does what it was fitted with, so its s_t is its
own score of the text up to t. Any other probe of all tokens is asked again after each token: its score of
the text so far, which is not smoothed further.

Shapes: rows `[pos, d]`; every line `[pos]`, NaN where a token has none.
Units: those of the probe: logits in nats of odds, or the predicted number.
Source: Cunningham et al. (2026), https://arxiv.org/abs/2601.04603, for smoothing and running maximum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench import registry
from workbench.probes.base import FittedProbe
from workbench.probes.places import JOIN, rows_at
from workbench.sites import parse
from workbench.tensors import Activations, Fingerprint

PREFIX_NUMBERS = 2**22
"""Numbers of padded prefixes scored at once."""
BAND = (0.05, 0.95)


def sites_of(probe: FittedProbe) -> list[str]:
    """What has to be recorded: whole sites, of which a probe may read a head or several."""
    return [str(parse(part, 10**6)[0].base) for part in probe.site.split(JOIN)]


def about(probe: FittedProbe) -> dict[str, Any]:
    """What a reader has to know of a probe, as JSON."""
    cls = registry.get("probes", probe.method)
    return {
        "method": probe.method,
        "site": probe.site,
        "number": cls.target == "number",
        "so_far": cls.reads == "tokens" and probe.method != "cascade",
        "window": int(probe.params["window"]) if probe.method == "cascade" else None,
        "classes": [str(c) for c in probe.classes],
        "linear": line(probe) is not None and JOIN not in probe.site,
    }


def line(probe: FittedProbe) -> tuple[Tensor, float] | None:
    """Weight and bias where the score is linear in a row."""
    return registry.get("probes", probe.method).line(probe.tensors, probe.params)


def scores(
    probe: FittedProbe, recorded: Mapping[str, Tensor], window: int, skip: int = 0
) -> dict[str, list[float | None]]:
    """The lines of one probe over a text.

    Args:
        recorded: `[pos, d]` by site, heads flattened.
        window: M, for a probe that has none of its own.
        skip: first tokens that a probe of single rows does not smooth over: it is not about them.

    Returns:
        "score", where there is one "smooth", "running", and for a predicted distribution "low" and
        "high", its quantiles near 0.05 and 0.95.
    """
    rows, cls = _rows(probe, recorded), registry.get("probes", probe.method)
    if cls.reads == "tokens" and probe.method != "cascade":
        return {"score": plain(_so_far(probe, rows))}
    if probe.method == "cascade":
        weight, bias = probe.tensors["weight"], probe.tensors["bias"]
        raw = rows @ weight + bias
        window, kind, skip = int(probe.params["window"]), str(probe.params["smooth"]), 0
    else:
        raw, kind = probe.score(rows), "window"
    smooth = torch.full_like(raw, torch.nan)
    smooth[skip:] = smoothed(raw[skip:], window, kind)
    found = {"score": plain(raw), "smooth": plain(smooth)}
    if cls.target == "class":
        best = torch.full_like(raw, torch.nan)
        best[skip:] = running(smooth[skip:], window)
        found["running"] = plain(best)
    return found | _band(probe, rows)


def smoothed(raw: Tensor, window: int, kind: str = "window") -> Tensor:
    """Mean of the last `window`, of fewer at the beginning; or the moving average of like reach."""
    if kind == "ema":
        new, out = 2 / (window + 1), []
        for value in raw:
            out.append(value if not out else (1 - new) * out[-1] + new * value)
        return torch.stack(out) if out else raw
    padded = torch.nn.functional.pad(raw.double(), (window - 1, 0))
    counts = torch.arange(1, len(raw) + 1).clamp(max=window)
    return (padded.unfold(0, window, 1).sum(-1) / counts).float() if len(raw) else raw


def running(smooth: Tensor, window: int) -> Tensor:
    """The largest mean of a full window so far; before there is one, the mean so far."""
    start = min(window - 1, len(smooth))
    rest = smooth[start:]
    return torch.cat([smooth[:start], rest.cummax(0).values]) if len(rest) else smooth


def plain(values: Tensor) -> list[float | None]:
    """Numbers as JSON, in the seven digits that float32 has."""
    found = [float(v) for v in values.tolist()]
    return [float(f"{v:.7g}") if math.isfinite(v) else None for v in found]


def _rows(probe: FittedProbe, recorded: Mapping[str, Tensor]) -> Tensor:
    """`[pos, d]` of the probe's own place."""
    some = next(iter(recorded.values()))
    acts = Activations(dict(recorded), (), tuple(range(len(some))), "all", _NOWHERE)
    found = rows_at(acts, probe.site, width(probe))
    assert found is not None, "every site of the probe is recorded"
    return found.float()


_NOWHERE = Fingerprint("", "", 0, 0, "")


def width(probe: FittedProbe) -> int:
    """d of the rows that a probe reads."""
    return int(probe.params.get("d") or probe.tensors["weight"].shape[-1])


def _so_far(probe: FittedProbe, rows: Tensor) -> Tensor:
    """The score of the text up to each token, a few prefixes at once."""
    n, d = rows.shape
    step, found = max(1, PREFIX_NUMBERS // max(1, n * d)), []
    for start in range(0, n, step):
        ends = torch.arange(start, min(n, start + step))
        most = int(ends[-1]) + 1
        mask = torch.arange(most)[None] <= ends[:, None]
        many = rows[None, :most].expand(len(ends), -1, -1) * mask[..., None]
        found.append(probe.score(many, mask))
    return torch.cat(found)


def _band(probe: FittedProbe, rows: Tensor) -> dict[str, list[float | None]]:
    """Two quantiles of the predicted distribution, where a probe gives one."""
    spread = registry.get("probes", probe.method).spread(probe.tensors, probe.params, rows)
    if not spread:
        return {}
    low, high = (min(spread, key=lambda level: abs(level - wanted)) for wanted in BAND)
    return {"low": plain(spread[low]), "high": plain(spread[high])}

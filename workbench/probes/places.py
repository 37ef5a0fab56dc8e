"""Places that a probe reads: a recorded site, several side by side, or one head of a per-head site.

"L3.resid_post"      "L1.resid_post+L3.resid_post"      "L3.z[head=2]"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from workbench import sites as site_names
from workbench.errors import WorkbenchError
from workbench.shapes import Rows
from workbench.tensors import Activations

JOIN = "+"


def placed(
    acts: Activations,
    sites: str | Iterable[str] | None = None,
    join: bool = False,
    heads: int | None = None,
) -> Activations:
    """The same rows at the places that are asked for.

    Args:
        sites: some of the recorded sites, such as "L*.resid_post"; all by default.
        join: put the rows of all sites side by side, as one place "L1.resid_post+L3.resid_post".
        heads: cut per-head sites into so many heads, one place each: "L3.z[head=2]". The model's own
            number (of key heads for k and v): the width alone does not say it.

    Raises:
        WorkbenchError: a site that was not recorded, heads of a site that has none, or heads to be cut
            and joined at once.
    """
    if join and heads is not None:
        raise WorkbenchError(
            f"probes(join=True, heads={heads})",
            "cuts into heads and joins them again",
            expected="one of the two",
            got="both",
            do="leave heads out to read whole sites side by side",
        )
    values = {name: acts[name] for name in _named(acts, sites)}
    if heads is not None:
        values = _split(values, heads)
    if join and len(values) > 1:
        values = {JOIN.join(values): torch.cat([v.float() for v in values.values()], -1)}
    return replace(acts, values=values)


def rows_at(acts: Activations, place: str, width: int) -> Rows | None:
    """`[row, d]` at a place, cut or joined from what was recorded; None where that is not enough.

    Args:
        width: d of the place, which says how wide a head is.
    """
    if place in acts.values:
        return acts.values[place]
    parts = place.split(JOIN)
    if len(parts) > 1:
        known = all(part in acts.values for part in parts)
        return torch.cat([acts.values[p].float() for p in parts], -1) if known else None
    site = site_names.parse(place, 10**6)[0]
    head, whole = site.selector("head"), acts.values.get(str(site.base))
    if whole is None or not isinstance(head, int) or (head + 1) * width > whole.shape[1]:
        return None
    return whole[:, head * width : (head + 1) * width]


def _named(acts: Activations, sites: str | Iterable[str] | None) -> list[str]:
    if sites is None:
        return list(acts.values)
    found: list[str] = []
    for text in [sites] if isinstance(sites, str) else list(sites):
        if text in acts.values:
            found.append(text)
            continue
        named = [str(s) for s in site_names.parse(text, acts.model.n_layers)]
        known = [s for s in named if s in acts.values]
        if not known:
            acts[text]  # says what was recorded
        found += known
    return list(dict.fromkeys(found))


def _split(values: Mapping[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    found = {}
    for name, rows in values.items():
        site = site_names.parse(name, 10**6)[0]
        if "head" not in site.axes or site.selectors or heads < 1 or rows.shape[1] % heads:
            raise WorkbenchError(
                f"probes(heads={heads})",
                "cannot cut this site into heads",
                expected="a per-head site such as L3.z, whose width is a multiple of heads",
                got=f"{name} of width {rows.shape[1]}",
                do="leave heads out, or record L*.z and pass the model's number of heads",
            )
        for head, part in enumerate(rows.chunk(heads, -1)):
            found[f"{name}[head={head}]"] = part
    return found

"""Gate a vector by a probe: the push happens only where the probe's score is below a threshold."""

from __future__ import annotations

from dataclasses import replace

import torch

from workbench.errors import EditError
from workbench.tensors import Intervention, Readout


def gate(edit: Intervention, probe: Readout, below: float = 0.0) -> Intervention:
    """`edit`, an added vector at the probe's site, acting only where `probe` scores below `below`.

    The rule is `workbench.rules.threshold`. The gated edit is conditional: never firing is
    legitimate.

    Raises:
        EditError: the edit is not a plain addition, or it acts at another site than the probe
            reads.
    """
    plain = edit.operation == "affine" and all(set(t) == {"shift"} for t in edit.tensors.values())
    if not plain or set(edit.sites) != {probe.site}:
        raise EditError(
            f"gate({edit.label!r})",
            "cannot be gated",
            expected=f"an added vector at {probe.site}",
            got=f"{edit.operation} at {list(edit.sites)}",
            do="use edit.only(site), or fit a probe at the edit's site",
        )
    gated = {
        "shift": edit.tensors[probe.site]["shift"],
        "probe": probe.weight,
        "probe_bias": torch.tensor(float(probe.bias)),
    }
    return replace(
        edit,
        operation="adaptive",
        tensors={probe.site: gated},
        params={**edit.params, "rule": "threshold", "threshold": float(below)},
        name=edit.name or f"{edit.method} below {below:g}",
        conditional=True,
    )

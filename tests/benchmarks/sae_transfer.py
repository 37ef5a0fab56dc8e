"""What a forecast of transfer costs, in tokens that go through the model.

    sts_forwards    token positions that pass through the model (padding and everything that is read twice
                    counted) while 8 domains of 64 prompts are scored as targets of each other, over the
                    tokens of their prompts without and with demonstrations

The shipped reasoner on 8 of its tasks with 2 demonstrations each, features of a random dictionary of 512:
the count does not hang on what the features are. The cases: both scores together from one reading, with
the shuffled null, that with a dictionary so wide that prompts are read one by one, the score from shifts
that are given, and the layers that run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.benchmarks import measure, models
from tests.benchmarks.measure import Figure
from workbench import sae, tasks
from workbench.sae import reading
from workbench.sae.transfer.raw import Coordinates

LIMIT = 3.0
SITE = "L3.resid_post"


class _Random(Coordinates):
    """Random ReLU features."""

    @property
    def n_features(self) -> int:
        return 512

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        rng = torch.Generator().manual_seed(0)
        return torch.relu(rows.float() @ torch.randn(self.d, 512, generator=rng).to(rows.device))


def sts_forwards(quick: bool) -> Figure:
    """Tokens through the model over tokens of the prompts; a quick run takes 8 prompts a domain."""
    model = models.reasoner()
    names, n = tasks.names()[:8], 8 if quick else 64
    domains = {
        name: sae.Domain(tasks.make(name, n, seed=1), tasks.make(name, 2, seed=2)) for name in names
    }
    made: Any = _Random(None, SITE, SITE, model.fingerprint, "random", model.d_model, model.device)
    measure.to_stderr("sae: tokens of a forecast over 8 domains")
    needed = sum(
        len(model.tokens(prompt).ids[0])
        for domain in domains.values()
        for shown in ([], domain.demonstrations)
        for prompt in sae.with_demonstrations(domain.queries, shown)
    )
    cases = {}
    with _counted(model) as seen:
        readings = sae.read_domains(made, model, domains, progress=False)
        both = [readings.forecast(kind=kind, draws=20) for kind in ("act", "icl")]
        cases["both scores"] = seen.taken() / needed
        sae.read_domains(made, model, domains, null="shuffled", progress=False)
        cases["shuffled null"] = seen.taken() / needed
        with _one_by_one():
            sae.read_domains(made, model, domains, null="shuffled", progress=False)
        cases["one by one"] = seen.taken() / needed
        shifts = both[0].shifts
        sae.forecast(made, model, domains, shifts=shifts, draws=20, progress=False)
        cases["given shifts"] = seen.taken() / needed
    detail = {"prompts": n * len(names), "tokens": needed, "layers_run": f"4 of {model.n_layers}"}
    return measure.worst(cases, LIMIT, **detail)


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Parts of one prompt, as features of a large dictionary make them."""
    before, reading.PART_BYTES = reading.PART_BYTES, 1
    try:
        yield
    finally:
        reading.PART_BYTES = before


class _Count:
    def __init__(self) -> None:
        self.tokens = 0

    def taken(self) -> int:
        """What passed since the last question."""
        found, self.tokens = self.tokens, 0
        return found


@contextmanager
def _counted(model: Any) -> Iterator[_Count]:
    """Positions that enter the model's embedding, padding too."""
    seen = _Count()

    def add(_module: Any, args: tuple[torch.Tensor, ...], _out: Any) -> None:
        seen.tokens += args[0].numel()

    handle = model.hf.get_input_embeddings().register_forward_hook(add)
    try:
        yield seen
    finally:
        handle.remove()


if __name__ == "__main__":
    quick, _ = measure.asked()
    measure.report("sae_transfer", {"sts_forwards": sts_forwards(quick)})

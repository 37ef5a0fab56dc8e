"""Record activations of many prompts, in memory or streamed to a folder that can be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from workbench import sites as site_names
from workbench.activations import store
from workbench.activations.pool import POOLS
from workbench.activations.pool import pool as pool_rows
from workbench.errors import SiteUnavailable, WorkbenchError, unknown
from workbench.model.tokens import as_prompts, batch
from workbench.records import Prompt
from workbench.shapes import Rows
from workbench.sites import Site
from workbench.tensors import Activations, Intervention, Trace

SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Plan:
    """What a recording will take, known before it starts.

    Attributes:
        rows: rows in all; one per prompt, or one per token with `pool="all"`.
        row_bytes: bytes of one row over all sites.
        sites: what is recorded.
    """

    rows: int
    row_bytes: int
    sites: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the whole recording."""
        return self.rows * self.row_bytes

    def __str__(self) -> str:
        sites = f"{len(self.sites)} site{'s' * (len(self.sites) != 1)}"
        return f"{self.rows:,} rows x {sites}, {_readable(float(self.bytes))}"


def record(
    model: Any,
    prompts: str | Prompt | Sequence[str | Prompt],
    sites: str | Site | Iterable[str | Site],
    pool: str = "last",
    *,
    completions: Sequence[Sequence[int]] | None = None,
    edits: Iterable[Intervention] = (),
    batch_size: int | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> Activations:
    """Activations at `sites`, a row per prompt (per token with `pool="all"`), in prompt order.

    Args:
        model: a loaded model.
        prompts: what is read; labels and pairs stay with their rows.
        sites: such as `"L*.resid_post"`; per-head sites have their heads flattened into d.
        pool: which positions become rows: "last", "first", "mean" (over the prompt's own tokens) or
            "all".
        completions: ids read after each prompt; the last position is then the completion's last.
        edits: applied while it reads.
        batch_size: prompts at once; sized to memory by default.
        path: a folder to stream to. What is finished there is not computed again, so an interrupted
            recording goes on where it stopped; the values are then read from disk when they are
            used.
        progress: show a bar, which says rows and bytes before the first batch.

    Returns:
        Activations on the CPU, in the model's own dtype.

    Raises:
        SiteUnavailable: a site without rows (attention patterns), or one that the backend lacks.
        UnknownName: no such site or pool.
        FileRefused: the folder holds a recording of another model, of other prompts or sites.
    """
    if pool not in POOLS:
        raise unknown("record(pool=...)", "pool", pool, POOLS)
    names = [str(site) for site in _row_sites(sites, model.n_layers)]
    lengths, many = _measure(model, prompts)
    job = _Job(model, many, completions, tuple(edits), names, pool)
    plan = job.plan(lengths)
    size = batch_size or model.fitting_batch(many, max(map(len, completions or [[]])))
    if path is None:
        with _bar(plan, len(many), progress) as bar:
            return job.part(0, len(many), size, bar)
    _refuse_more_than_prompts(path, completions, job.edits)
    per_shard = max(1, min(len(many), SHARD_BYTES * len(many) // max(plan.bytes, 1)))
    folder = store.open_folder(Path(path), model.fingerprint, many, names, pool, per_shard)
    with _bar(plan, len(many), progress) as bar:
        for index, (start, stop) in enumerate(folder.shards):
            if folder.has(index):
                bar.update(stop - start)
                continue
            folder.write(index, job.part(start, stop, size, bar))
    return store.load(path)


def _refuse_more_than_prompts(path: str | Path, completions: Any, edits: Any) -> None:
    """A folder says which prompts it holds, not what was read after them or changed meanwhile."""
    if completions is not None or edits:
        raise WorkbenchError(
            f"record(path={str(path)!r})",
            "cannot stream completions or edited runs",
            expected="prompts alone",
            got="completions" if completions is not None else "edits",
            do="leave path out, or put the completion into the prompt's text",
        )


def _row_sites(texts: str | Site | Iterable[str | Site], n_layers: int) -> list[Site]:
    found = site_names.parse_all(texts, n_layers)
    for site in found:
        if site.axes[0] != "pos" or site.selector("pos") is not None:
            raise SiteUnavailable(
                f"record({str(site)!r})",
                "has no rows by position",
                expected="a site whose axes start with pos, without a pos selector",
                got=f"axes {' '.join(site.axes)}",
                do="use pool= for positions, and model.run(record=...) for attention",
            )
    return found


def _measure(model: Any, prompts: Any) -> tuple[list[int], list[Prompt]]:
    """Length of every prompt in tokens; refuses what the model cannot read before anything runs."""
    many = as_prompts(prompts)
    # one by one and on the CPU: all prompts as one padded batch may not fit a device
    read = {
        "n_context": model.dims.n_context,
        "n_vocab": model.dims.n_vocab,
        "device": torch.device("cpu"),
    }
    return [batch(model.tokenizer, prompt, **read).lengths[0] for prompt in many], many


@dataclass(frozen=True)
class _Job:
    """What is read from which prompts under which edits."""

    model: Any
    prompts: list[Prompt]
    completions: Sequence[Sequence[int]] | None
    edits: tuple[Intervention, ...]
    sites: list[str]
    pool: str

    def plan(self, lengths: list[int]) -> Plan:
        """Rows and bytes, from one run of the shortest prompt."""
        shortest = lengths.index(min(lengths))
        trace = self._run(shortest, shortest + 1)
        row = sum(v[0, 0].numel() * v.element_size() for v in trace.values.values())
        tokens = sum(lengths) + sum(map(len, self.completions or ()))
        return Plan(tokens if self.pool == "all" else len(self.prompts), row, tuple(self.sites))

    @torch.no_grad()
    def part(self, first: int, end: int, batch_size: int, bar: Any) -> Activations:
        """Rows of the prompts from `first` up to `end`."""
        parts: dict[str, list[Rows]] = {site: [] for site in self.sites}
        rows: list[Prompt] = []
        positions: list[int] = []
        for start in range(first, end, batch_size):
            stop = min(start + batch_size, end)
            trace = self._run(start, stop)
            for site in self.sites:
                pooled = pool_rows(trace.values[site], trace.tokens.mask, self.pool)
                # a copy: a view would keep the whole batch's activations alive
                parts[site].append(pooled.values.detach().cpu().clone())
            rows += [self.prompts[start + i] for i in pooled.prompts]
            positions += pooled.positions
            bar.update(stop - start)
        values = {site: torch.cat(found) for site, found in parts.items()}
        return Activations(values, tuple(rows), tuple(positions), self.pool, self.model.fingerprint)

    def _run(self, start: int, stop: int) -> Trace:
        tails = None if self.completions is None else self.completions[start:stop]
        edits = [edit.for_rows(start, stop - start) for edit in self.edits]
        return self.model.run(
            self.prompts[start:stop], self.sites, edits, completions=tails, logits="none"
        )


def _bar(plan: Plan, prompts: int, progress: bool) -> Any:
    return tqdm(total=prompts, desc=f"record {plan}", unit="prompt", disable=not progress)


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"

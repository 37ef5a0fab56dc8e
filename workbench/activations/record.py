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
from workbench.errors import PromptError, SiteUnavailable, WorkbenchError, unknown
from workbench.model.tokens import as_prompts, batch
from workbench.records import Prompt
from workbench.shapes import Rows
from workbench.sites import Site
from workbench.tensors import Activations, Intervention, Trace

SHARD_BYTES = 64 * 2**20
CPU_TOKENS = 384
"""Tokens of a batch on a CPU, where larger ones fall out of its caches (GPT-2 small: 16 to 32 short
prompts are a fifth faster than 64, and twice as fast as one by one)."""


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
        pool: which positions become rows: "last", "first", "mean" (over all of them) or "all".
        completions: ids read after each prompt; their positions count as the prompt's own, so that
            the last is then the completion's last.
        edits: applied while it reads.
        batch_size: prompts at once; sized to memory by default. Prompts of like lengths are read
            together, so that little is padded.
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
    lengths = _with_completions(lengths, completions)
    job = _Job(model, many, completions, tuple(edits), names, pool, tuple(lengths))
    size = batch_size or model.fitting_batch(many, max(map(len, completions or [[]])))
    budget = CPU_TOKENS if batch_size is None and model.device.type == "cpu" else None
    if path is None:
        # a plan costs a run, which counts where few prompts are read at a time
        with _bar(job.plan() if progress else None, len(many), progress) as bar:
            return job.part(range(len(many)), size, budget, bar)
    _refuse_more_than_prompts(path, completions, job.edits)
    plan = job.plan()
    per_shard = max(1, min(len(many), SHARD_BYTES * len(many) // max(plan.bytes, 1)))
    folder = store.open_folder(Path(path), model.fingerprint, many, names, pool, per_shard)
    with _bar(plan, len(many), progress) as bar:
        for index, (start, stop) in enumerate(folder.shards):
            if folder.has(index):
                bar.update(stop - start)
                continue
            folder.write(index, job.part(range(start, stop), size, budget, bar))
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


def _with_completions(lengths: list[int], completions: Sequence[Sequence[int]] | None) -> list[int]:
    if completions is None:
        return lengths
    if len(completions) != len(lengths):
        raise PromptError(
            "record(completions=...)",
            "are not one per prompt",
            expected=len(lengths),
            got=len(completions),
            do="pass one list of ids per prompt",
        )
    return [n + len(tail) for n, tail in zip(lengths, completions, strict=True)]


@dataclass(frozen=True)
class _Job:
    """What is read from which prompts under which edits."""

    model: Any
    prompts: list[Prompt]
    completions: Sequence[Sequence[int]] | None
    edits: tuple[Intervention, ...]
    sites: list[str]
    pool: str
    lengths: tuple[int, ...]

    def plan(self) -> Plan:
        """Rows and bytes, from one run of the shortest prompt."""
        shortest = self.lengths.index(min(self.lengths))
        trace = self._run([shortest])
        row = sum(v[0, 0].numel() * v.element_size() for v in trace.values.values())
        rows = sum(self.lengths) if self.pool == "all" else len(self.prompts)
        return Plan(rows, row, tuple(self.sites))

    @torch.no_grad()
    def part(self, prompts: range, batch_size: int, budget: int | None, bar: Any) -> Activations:
        """Rows of some prompts, in their order."""
        parts: dict[str, list[Rows]] = {site: [] for site in self.sites}
        owners: list[int] = []
        positions: list[int] = []
        for batch_of in self._batches(prompts, batch_size, budget):
            trace = self._run(batch_of)
            for site in self.sites:
                pooled = pool_rows(trace.values[site], trace.tokens.mask, self.pool)
                # a copy: a view would keep the whole batch's activations alive
                parts[site].append(pooled.values.detach().cpu().clone())
            owners += [batch_of[i] for i in pooled.prompts]
            positions += pooled.positions
            bar.update(len(batch_of))
        order = sorted(range(len(owners)), key=owners.__getitem__)
        values = {site: _in_order(parts.pop(site), order) for site in self.sites}
        rows = tuple(self.prompts[owners[i]] for i in order)
        where = tuple(positions[i] for i in order)
        return Activations(values, rows, where, self.pool, self.model.fingerprint)

    def _batches(self, prompts: range, size: int, budget: int | None) -> list[list[int]]:
        """Prompts that are read together: at most `size`, and no more padded tokens than `budget`."""
        # an edit may hold something per row, in the order of the prompts
        ordered = prompts if self.edits else sorted(prompts, key=self.lengths.__getitem__)
        batches: list[list[int]] = [[]]
        for i in ordered:
            grown = (len(batches[-1]) + 1) * max(self.lengths[j] for j in [*batches[-1], i])
            if batches[-1] and (len(batches[-1]) == size or (budget and grown > budget)):
                batches.append([])
            batches[-1].append(i)
        return batches

    def _run(self, rows: list[int]) -> Trace:
        tails = None if self.completions is None else [self.completions[i] for i in rows]
        edits = [edit.for_rows(rows[0], len(rows)) for edit in self.edits]
        prompts = [self.prompts[i] for i in rows]
        return self.model.run(prompts, self.sites, edits, completions=tails, logits="none")


def _in_order(parts: list[torch.Tensor], order: list[int]) -> Rows:
    rows = torch.cat(parts)
    return rows if order == list(range(len(order))) else rows[torch.tensor(order)]


def _bar(plan: Plan | None, prompts: int, progress: bool) -> Any:
    return tqdm(total=prompts, desc=f"record {plan}", unit="prompt", disable=not progress)


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"

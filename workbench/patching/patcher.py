"""Runs with values put in: many patched versions of one batch, each from the lowest patched block on.

One base run keeps what entered each block. A *variant* is a list of `Patch`; below its lowest patch
nothing can have changed, so those blocks are left out, and variants that start at the same block run
together: the rows of one forward are variants x cases, case fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from workbench import sites
from workbench.errors import WorkbenchError
from workbench.locate.base import Patch
from workbench.model.backends.base import Tap
from workbench.model.backends.skip import skipped
from workbench.model.backends.turn import turn
from workbench.model.model import Model, free_bytes
from workbench.model.run import gradients_off, padding, usable
from workbench.shapes import Tensor
from workbench.sites import Site
from workbench.tensors import Tokens

Read = Callable[[Tensor], Tensor]
Variants = Sequence[Sequence[Patch]]

CPU_TOKENS = 768
"""Tokens of a forward on a CPU: in GPT-2 small's shape a fifth faster than half or thrice as many."""


class Patched:
    """Called with a batch and variants: what is read of the last position of each, stacked.

    Args:
        model: on backend "transformers" a variant starts at its lowest patched block; on another one
            every variant is a whole run.
        progress: show a bar with the time left.
    """

    def __init__(self, model: Model, progress: bool = True):
        self.model, self.progress = model, progress
        self._resumes = model.backend.name == "transformers"

    def __call__(self, tokens: Tokens, variants: Variants, read: Read) -> Tensor:
        """`[variant, case, ...]`, what `read` makes of the logits of the last position.

        Args:
            tokens: the base run's batch, a row per case.
            variants: what is put in; an empty list is the base run itself. Values are put in as
                they are, where several patches of a variant meet the later one holds. Heads of k and v
                are key-value heads; `column` counts queries where a site has queries and keys.
            read: logits `[row, vocab]` to `[row, ...]`, a row per case, or per case of several
                variants with the case running fastest.

        Raises:
            WorkbenchError: a patch does not fit its site, or its site cannot be written. Said before
                anything runs, but for widths of values, which the forward itself shows.
        """
        if not variants:
            raise _none()
        found: dict[int, Tensor] = {}
        for which, logits, _ in self._forwards(tokens, variants, ()):
            # cloned: a view would keep the logits of the whole vocabulary alive
            out = usable(read(logits.flatten(0, 1))).clone().unflatten(0, logits.shape[:2])
            found.update(zip(which, out, strict=True))
        return torch.stack([found[i] for i in range(len(variants))])

    def values(
        self, tokens: Tokens, variants: Variants, read: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """`[variant, case, *the site's axes]` of each site in `read` while patches stand."""
        if not variants:
            raise _none()
        found: dict[str, dict[int, Tensor]] = {site: {} for site in read}
        for which, _, values in self._forwards(tokens, variants, read):
            for site in read:
                # as in `__call__`; taps later in the forward may write in place too
                found[site].update(zip(which, values[site], strict=True))
        return {s: torch.stack([v[i] for i in range(len(variants))]) for s, v in found.items()}

    def _forwards(self, tokens: Tokens, variants: Variants, read: Sequence[str]) -> Any:
        """Per forward: which variants, logits `[variant, case, vocab]`, and values read."""
        ready = self._checked(tokens, variants)
        extra = {text: self._site(text) for text in read}
        for site in extra.values():
            self.model.backend.check(site, write=False)
        skips = [self._skips([*(site for site, _ in one), *extra.values()]) for one in ready]
        chunks = _chunks(len(tokens), self._rows(tokens))
        with turn(self.model.backend), self._bar(len(variants)) as bar:
            streams = self._streams(tokens, chunks, sorted({*skips} - {0}))
            for count in sorted({*skips}, reverse=True):
                alike = [i for i, own in enumerate(skips) if own == count]
                for which in _groups(alike, max(1, self._rows(tokens) // len(tokens))):
                    job = _Job(tokens, count, streams.get(count), [ready[i] for i in which])
                    yield which, *self._joined(job, chunks, extra)
                    bar.update(len(which))

    def _joined(self, job: _Job, chunks: list[slice], extra: dict[str, Site]) -> Any:
        """Logits and values of one group of variants over all chunks of cases."""
        parts = [self._forward(job, rows, {*extra.values()}) for rows in chunks]
        values = {text: torch.cat([v[site] for _, v in parts], 1) for text, site in extra.items()}
        return torch.cat([logits for logits, _ in parts], 1), values

    def _forward(
        self, job: _Job, rows: slice, extra: set[Site]
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """One forward: `[variant, case, vocab]` of these cases, and what was read."""
        copies, backend = len(job.variants), self.model.backend
        tokens = _some(job.tokens, rows, copies)
        seen: dict[Site, Tensor] = {}
        taps = [
            *(Tap(site, fn) for site, fn in job.writers(rows)),
            *(Tap(site, _keeper(site, seen, copies), writes=False) for site in extra),
        ]
        skip = nullcontext()
        if job.count:
            assert job.stream is not None
            start = job.stream[rows]
            output = start.repeat(copies, *[1] * (start.dim() - 1))
            skip = skipped(backend.blocks, job.count, output)  # pyright: ignore[reportAttributeAccessIssue]
        with skip, backend.attach(_merged(taps)), gradients_off(self.model):
            logits = backend.forward(
                tokens.ids, **padding(tokens), cache=None, use_cache=False, keep=1
            ).logits[:, -1]
        return usable(logits).unflatten(0, (copies, -1)), seen

    def _streams(self, tokens: Tokens, chunks: list[slice], counts: list[int]) -> dict[int, Tensor]:
        """What leaves block `count - 1` in the base run, `[case, pos, d]`, per count."""
        if not counts:
            return {}
        parts: dict[int, list[Tensor]] = {count: [] for count in counts}
        taps = [
            Tap(Site(count - 1, "resid_post"), _appender(parts[count]), writes=False)
            for count in counts
        ]
        for rows in chunks:
            some = _some(tokens, rows, 1)
            with self.model.backend.attach(taps), gradients_off(self.model):
                self.model.backend.forward(
                    some.ids, **padding(some), cache=None, use_cache=False, keep=1
                )
        return {count: torch.cat(found) for count, found in parts.items()}

    def _skips(self, places: Sequence[Site]) -> int:
        """How many blocks a run with these patches leaves out."""
        n = self.model.n_layers
        if not self._resumes:
            return 0
        above = [_count(site, n) for site in places]
        return min(above, default=n)

    def _rows(self, tokens: Tokens) -> int:
        """Rows of one forward: what a CPU's caches or a quarter of a GPU's free memory holds."""
        width = tokens.ids.shape[1]
        if self.model.device.type == "cpu":
            return max(1, CPU_TOKENS // width)
        d, size = self.model.dims, torch.finfo(self.model.dtype).bits // 8
        row = width * (8 * d.d_model + 3 * d.d_mlp + 2 * d.n_heads * width) * size + 8 * d.n_vocab
        return max(1, min(4096, int(free_bytes(self.model.device) / 4 // row)))

    def _bar(self, total: int) -> Any:
        return tqdm(total=total, desc="patch", unit="run", disable=not self.progress)

    def _site(self, text: str) -> Site:
        found = sites.parse(text, self.model.n_layers)
        if len(found) == 1 and not found[0].selectors and text != "logits":
            return found[0]
        raise WorkbenchError(
            f"patch at {text!r}",
            "is not one whole site",
            expected="one layer and no selectors, such as L3.resid_pre, below the logits",
            got=text,
            do="name the layer, and the place with column= and head=",
        )

    def _checked(self, tokens: Tokens, variants: Variants) -> list[list[tuple[Site, Patch]]]:
        """Each patch with its site, after a look at both; values on the model's device."""
        made: dict[int, tuple[Site, Patch]] = {}
        for patch in (patch for variant in variants for patch in variant):
            if id(patch) not in made:
                site = self._site(patch.site)
                self.model.backend.check(site, write=True)
                _check(site, patch, tokens)
                made[id(patch)] = site, patch
        return [[made[id(patch)] for patch in variant] for variant in variants]


@dataclass(frozen=True)
class _Job:
    """Variants that run together: from which block on, and from what."""

    tokens: Tokens
    count: int
    stream: Tensor | None
    variants: list[list[tuple[Site, Patch]]]

    def writers(self, rows: slice) -> list[tuple[Site, Callable[[Tensor], Tensor]]]:
        """Per site what puts the values in; a patch that many variants share is put in once."""
        places: dict[Site, dict[int, tuple[Patch, list[int]]]] = {}
        for i, variant in enumerate(self.variants):
            for site, patch in variant:
                places.setdefault(site, {}).setdefault(id(patch), (patch, []))[1].append(i)
        return [
            (site, _writer(site, list(found.values()), rows, len(self.variants)))
            for site, found in places.items()
        ]


def _writer(
    site: Site, patches: list[tuple[Patch, list[int]]], rows: slice, copies: int
) -> Callable[[Tensor], Tensor]:
    pos, head = _dims(site)

    def write(h: Tensor) -> Tensor:
        new = h.clone().unflatten(0, (copies, -1))
        for patch, which in patches:
            if patch.values.shape[1:] != h.shape[1:]:
                expected, got = (tuple(t.shape[1:]) for t in (h, patch.values))
                raise _misfit(site, "has values of another shape per case", expected, got)
            place: list[Any] = [slice(None)] * h.dim()
            if patch.column is not None:
                place[pos] = slice(patch.column, patch.column + 1)
            if patch.head is not None and head is not None:
                place[head] = slice(patch.head, patch.head + 1)
            values = patch.values[rows][tuple(place)].to(h.device, h.dtype)
            if patch.rows is not None:
                keep = patch.rows[rows].to(h.device)
                place[0], values = keep, values[keep]
            for i in which:
                new[i][tuple(place)] = values
        return new.flatten(0, 1)

    return write


def _dims(site: Site) -> tuple[int, int | None]:
    """Which dimensions of `[case, *axes]` hold positions and heads."""
    axes = site.axes
    pos = 1 + next(i for i, axis in enumerate(axes) if axis in ("pos", "q"))
    return pos, 1 + axes.index("head") if "head" in axes else None


def _merged(taps: list[Tap]) -> list[Tap]:
    """One tap per site, writes before reads, in the order of a forward pass."""
    places: dict[Site, list[Tap]] = {}
    for tap in taps:
        places.setdefault(tap.site, []).append(tap)
    merged = [
        found[0] if len(found) == 1 else Tap(site, _chained(found[0].fn, found[1].fn))
        for site, found in places.items()
    ]
    return sorted(merged, key=lambda tap: tap.site.depth)


def _chained(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Any:
    return lambda h: second(first(h))


def _keeper(site: Site, seen: dict[Site, Tensor], copies: int) -> Callable[[Tensor], Tensor]:
    def keep(h: Tensor) -> Tensor:
        seen[site] = usable(h.clone()).unflatten(0, (copies, -1))
        return h

    return keep


def _appender(parts: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def keep(h: Tensor) -> Tensor:
        parts.append(h)
        return h

    return keep


def _count(site: Site, n_layers: int) -> int:
    """Blocks below a site. A write at `resid_post` acts on what the last block left out gives."""
    if site.layer is not None:
        return site.layer + (site.part == "resid_post")
    return n_layers if site.part == "final_norm" else 0


def _chunks(cases: int, rows: int) -> list[slice]:
    """All cases at once where they fit into one forward, else slices that do."""
    size = min(cases, rows)
    return [slice(start, min(start + size, cases)) for start in range(0, cases, size)]


def _groups(which: list[int], size: int) -> list[list[int]]:
    """Parts of like size, none larger than `size`."""
    n = -(-len(which) // size)
    return [which[i * len(which) // n : (i + 1) * len(which) // n] for i in range(n)]


def _some(tokens: Tokens, rows: slice, copies: int) -> Tokens:
    """Some cases, `copies` times, case fastest."""
    return Tokens(
        tokens.ids[rows].repeat(copies, 1),
        tokens.mask[rows].repeat(copies, 1),
        tokens.prompts[rows] * copies,
        tokens.prompt_lengths[rows] * copies,
    )


def _check(site: Site, patch: Patch, tokens: Tokens) -> None:
    pos, head = _dims(site)
    shape, width = tuple(patch.values.shape), tokens.ids.shape[1]
    if len(shape) != 1 + len(site.axes) or shape[0] != len(tokens) or shape[pos] != width:
        expected = f"[{len(tokens)}, {' '.join(site.axes)}] with {width} columns"
        raise _misfit(site, "has values of another shape", expected, shape)
    if patch.column is not None and not 0 <= patch.column < width:
        known = f"0 to {width - 1}, from the left"
        raise _misfit(site, "names a column the batch lacks", known, patch.column)
    if patch.head is not None and (head is None or not 0 <= patch.head < shape[head]):
        has = "no heads" if head is None else f"heads 0 to {shape[head] - 1}"
        raise _misfit(site, "names a head the site lacks", has, patch.head)
    if patch.rows is not None and patch.rows.shape != (len(tokens),):
        wrong = "says of the wrong number of cases whether they change"
        raise _misfit(site, wrong, len(tokens), tuple(patch.rows.shape))


def _misfit(site: Site, wrong: str, expected: object, got: object) -> WorkbenchError:
    return WorkbenchError(
        f"patch at {site}",
        wrong,
        expected=expected,
        got=got,
        do="record the values at the same site of the same model, on a batch of the same columns",
    )


def _none() -> WorkbenchError:
    return WorkbenchError(
        "patched",
        "has no variants",
        expected="at least one list of Patch; an empty list is the base run",
        got="none",
        do="pass some",
    )

"""Activations for training, in shuffled batches: a buffer of whole prompts at a time, over and over.

The prompts of each pass through the corpus come in an order of the seed's own. As many as the buffer
holds are read by the model, their tokens shuffled, and cut into batches; what is left over of a buffer
waits for the next pass. A corpus that fits the buffer is read once.

Everything follows from the seed and the number of batches served, so a feed that starts at batch n
gives what one that was interrupted there would have given, without reading what came before.

Shapes: batches `[batch, d]`, float32, on the CPU.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench import sites
from workbench.errors import FileRefused, PromptError, SiteUnavailable, WorkbenchError
from workbench.model.tokens import as_prompts
from workbench.sae.dictionary import check_finite
from workbench.sae.reading import Tokenised, tokenised
from workbench.seeds import derive
from workbench.shapes import Rows
from workbench.tasks import Task

BUFFER_BYTES = 256 * 2**20
"""Activations held at once, in float32; never less than what one batch needs."""


def corpus_of(model: Any, source: Any, tokens: int, seed: int) -> Tokenised:
    """What a dictionary is trained on.

    Args:
        model: whose tokenizer reads it.
        source: texts or prompts, one or many; a task or several, whose examples are drawn until they
            have `tokens` tokens; or the path of a text file, cut into pieces of the context's length.
        tokens, seed: how much is drawn from tasks, and by which seed.

    Raises:
        PromptError: a prompt that is empty or longer than the context; nothing at all.
        FileRefused: no such file, or one that is no text.
    """
    if isinstance(source, Path):
        return _cut(model, source)
    drawn = _tasks(source)
    if drawn is None:
        return tokenised(model, source)
    return tokenised(model, _examples(model, drawn, tokens, seed))


def fingerprint(corpus: Tokenised) -> str:
    """A short hash of all its tokens."""
    found = hashlib.blake2b(digest_size=8)
    for ids in corpus.ids:
        found.update(ids.numpy().tobytes() + b"/")
    return found.hexdigest()


class Feed:
    """Batches of activations without end, see the module.

    Attributes:
        served: how many batches it has given, or skipped.
        d: width of the activations.
    """

    def __init__(
        self,
        model: Any,
        site: str,
        corpus: Tokenised,
        *,
        batch_size: int,
        seed: int,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """Starts at the first batch.

        Raises:
            SiteUnavailable: a site without rows, such as attention patterns.
            WorkbenchError: more than one site; a corpus with fewer tokens than a batch.
        """
        self.model, self.site, self.corpus = model, _one_site(model, site), corpus
        self.batch_size, self.seed = batch_size, seed
        self.counts = corpus.counts.tolist()
        if sum(self.counts) < batch_size:
            raise WorkbenchError(
                "sae.train",
                "the corpus has fewer tokens than one batch, special ones left out",
                expected=f"at least {batch_size}",
                got=sum(self.counts),
                do="add text, or say a smaller batch_size=",
            )
        self.d = _width(model, self.site, corpus)
        self.room = max(buffer_bytes // (4 * self.d), batch_size + max(self.counts))
        self._held: list[int] = []
        self._rows: Rows | None = None
        self.seek(0)

    def seek(self, served: int) -> None:
        """Go on after that many batches; none of them is computed, and the buffer is kept."""
        self.served = served
        self._batches = self._walk(served)

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Rows:
        batch = next(self._batches)
        self.served += 1
        return batch

    def _walk(self, skip: int) -> Iterator[Rows]:
        epoch = 0
        while True:
            for n, chunk in enumerate(self._chunks(epoch)):
                whole = sum(self.counts[i] for i in chunk) // self.batch_size
                if skip >= whole:
                    skip -= whole
                    continue
                rows = self._read(chunk)
                order = torch.randperm(len(rows), generator=self._random("rows", epoch, n))
                for part in order.split(self.batch_size)[skip:whole]:
                    yield rows[part]
                skip = 0
            epoch += 1

    def _chunks(self, epoch: int) -> Iterator[list[int]]:
        """Prompts that fill the buffer, in corpus order within each filling."""
        order = torch.randperm(len(self.counts), generator=self._random("prompts", epoch))
        chunk: list[int] = []
        held = 0
        for i in order.tolist():
            if chunk and held + self.counts[i] > self.room:
                yield sorted(chunk)
                chunk, held = [], 0
            chunk.append(i)
            held += self.counts[i]
        yield sorted(chunk)

    def _read(self, chunk: list[int]) -> Rows:
        if self._rows is None or chunk != self._held:
            self._rows = None  # the old buffer goes before the new one comes
            rows = self.corpus.rows(self.model, self.site, chunk)[0].float()
            check_finite("sae.train", rows)
            self._held, self._rows = chunk, rows
        return self._rows

    def _random(self, *parts: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.seed, *parts))


def _one_site(model: Any, text: str) -> str:
    found = sites.parse(text, model.n_layers)
    if len(found) != 1 or found[0].selectors:
        raise WorkbenchError(
            f"sae.train(site={text!r})",
            "a dictionary reads one whole site",
            expected="one layer and no selectors, such as 'L3.resid_post'",
            got=", ".join(map(str, found[:4])),
            do="train one dictionary per layer",
        )
    if found[0].axes[0] != "pos":
        raise SiteUnavailable(
            f"sae.train(site={text!r})",
            "has no rows by position",
            expected="a site whose axes start with pos",
            got=f"axes {' '.join(found[0].axes)}",
            do="take the residual stream, z, or the neurons",
        )
    return str(found[0])


def _width(model: Any, site: str, corpus: Tokenised) -> int:
    shortest = min(range(len(corpus.ids)), key=lambda i: len(corpus.ids[i]))
    return corpus.rows(model, site, [shortest])[0].shape[-1]


def _tasks(source: Any) -> list[Task] | None:
    many = [source] if isinstance(source, Task) else source
    if isinstance(many, Sequence) and many and all(isinstance(one, Task) for one in many):
        return list(many)
    return None


def _examples(model: Any, tasks: list[Task], tokens: int, seed: int) -> list[str]:
    """Training examples of each task in turn, until there are enough tokens."""
    rng, texts, held = random.Random(seed), [], 0
    while held < tokens:
        for task in tasks:
            texts.append(task.example(rng).text)
            held += len(model.tokenizer(texts[-1], add_special_tokens=False)["input_ids"])
    return texts


def _cut(model: Any, file: Path) -> Tokenised:
    """A text file in pieces of the context's length, each behind the token that begins a text."""
    where = f"sae.train({str(file)!r})"
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileRefused(
            where,
            "cannot be read as text",
            expected="a text file in UTF-8",
            got=f"{type(error).__name__}: {error}",
            do="check the path",
        ) from None
    begin = model.tokenizer.bos_token
    if begin is None:
        raise PromptError(
            where,
            "this tokenizer has no token that begins a text, to begin each piece with",
            expected="a tokenizer with bos_token",
            got="none",
            do="cut the text yourself and pass the list",
        )
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        as_prompts([])
    size = model.dims.n_context - 1
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    return tokenised(model, [begin] * len(pieces), pieces)

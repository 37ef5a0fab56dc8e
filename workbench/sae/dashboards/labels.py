"""Labels of features from the data alone: which simple description of a token says best when it is active.

    F1 = 2 |active and described| / (|active| + |described|)      over the tokens of the corpus

Descriptions are made from the corpus: its most frequent tokens, here, before and behind; classes of
characters; places in a line; lines; the prompts' tasks and first words; some of these together; and, of
each feature, the tokens whose logits it raises. A feature counts as active above 0 or, "peaks", above half
its largest code. Its label is the best description with its F1.

The control c is the best F1 of any description after the feature's tokens are shuffled (prompts are
shuffled for what is the same all over a prompt), the largest of `SHUFFLES` draws. A feature is "unlabelled"
where its best is not above min(2 c, (1 + c) / 2), or where it is active on fewer than `LEAST` tokens. Above
c alone would not do: the best of shuffled features is, for 4 in 10 of them. F1 is of the corpus that the
label was chosen on. A label says what goes along with a feature, not what it is for, and is no sign of a
good dictionary: nearly all features of random directions have one, with a lower F1 (on the reasoner a
median of 0.32, against 0.43 of the 512 trained at L3).

Shapes: codes `[row, feature]`; descriptions `[row, description]`, both sparse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from workbench.records import Prompt
from workbench.sae.dashboards.corpus import Corpus, Sparse, blocks_of
from workbench.sae.dashboards.counting import activity, owner
from workbench.shapes import Float, Int

UNLABELLED = "unlabelled"
MOST = 256
"""Descriptions of each kind, the most frequent ones."""
LEAST = 5
"""Tokens that a description has to hold on, and a feature to be active on."""
SHUFFLES = 3
LONGEST_LINE, LINES = 32, 16
NONE = -1
PREFIXES = ("", "peaks: ")
BEFORE_PROMOTED = "before a token that it promotes"
CLASSES = ("a digit", "a letter or word", "a space", "a line break", "a symbol", "another token")


@dataclass(frozen=True, eq=False)
class Labels:
    """A label for each feature.

    Attributes:
        texts: such as "token '=' (F1 0.93)", or "unlabelled".
        scores: F1 of the best description.
        controls: largest F1 of any description on shuffled tokens.
    """

    texts: list[str]
    scores: Float[np.ndarray, " feature"]
    controls: Float[np.ndarray, " feature"]


@dataclass(frozen=True, eq=False)
class Descriptions:
    """Things to say of tokens, and where they hold.

    Attributes:
        names: of `of_tokens`, then of `of_prompts`.
        of_tokens: `[row, description]`.
        of_prompts: `[row, description]`, equal on all tokens of a prompt.
        following: `[row, id]`, the next token of the same prompt.
        promoted: `[feature, id]`, the tokens that each feature raises.
    """

    names: list[str]
    of_tokens: Sparse
    of_prompts: Sparse
    following: Sparse
    promoted: Sparse


def describe(
    codes: Sparse,
    corpus: Corpus,
    prompts: Sequence[Prompt],
    texts: Mapping[int, str],
    promoted: Int[np.ndarray, "feature p"],
) -> Labels:
    """Labels of all features of `codes`.

    Args:
        codes: active codes.
        corpus, prompts: the tokens, and the prompts that they are of.
        texts: of all token ids.
        promoted: the tokens that each feature raises; of width 0 where that is not known.
    """
    about = descriptions(corpus, prompts, texts, promoted)
    names = [*about.names, BEFORE_PROMOTED]
    levels = [_best(on, about, corpus) for on in _levels(codes)]
    which, scores, controls = (np.stack(column) for column in zip(*levels, strict=True))
    better = (scores - controls).argmax(0)
    at = better, np.arange(len(better))
    which, scores, controls = which[at], scores[at], controls[at]
    said = [f"{PREFIXES[b]}{names[w]}" for b, w in zip(better, which, strict=True)]
    beaten = scores > np.minimum(2 * controls, (1 + controls) / 2)
    labels = [
        f"{text} (F1 {score:.2f})" if clear else UNLABELLED
        for text, score, clear in zip(said, scores, beaten, strict=True)
    ]
    return Labels(labels, scores.astype(np.float32), controls.astype(np.float32))


def descriptions(
    corpus: Corpus,
    prompts: Sequence[Prompt],
    texts: Mapping[int, str],
    promoted: Int[np.ndarray, "feature p"],
) -> Descriptions:
    """Everything that may be said of the corpus' tokens; simple things first, which win ties."""
    tokens, wholes = [*_of_tokens(corpus, prompts, texts)], [*_of_prompts(corpus, prompts)]
    names = [name for block, _ in (*tokens, *wholes) for name in block]
    after, n_ids = _shifted(corpus, 1), int(max(texts)) + 1
    raised = sparse.csr_array(
        (
            np.ones(promoted.size, np.float32),
            promoted.ravel(),
            np.arange(len(promoted) + 1) * promoted.shape[1],
        ),
        shape=(len(promoted), n_ids),
    )
    return Descriptions(names, _beside(tokens), _beside(wholes), _one_hot(after, n_ids), raised)


def _of_tokens(
    corpus: Corpus, prompts: Sequence[Prompt], texts: Mapping[int, str]
) -> Iterator[tuple[list[str], Sparse]]:
    said = {i: repr(text) for i, text in texts.items()}
    here, before, after = corpus.ids, _shifted(corpus, -1), _shifted(corpus, 1)
    kinds = np.array([_class_of(texts[i]) for i in here.tolist()])
    column, line = _lines(corpus, texts)
    task = _numbered([prompts[p].task for p in corpus.prompts.tolist()])
    n = max(max(said) + 1, len(CLASSES))
    yield _kind(here, lambda i: f"token {said[i]}")
    yield _kind(kinds, lambda i: CLASSES[i])
    yield _kind(before, lambda i: f"after {said[i]}")
    yield _kind(after, lambda i: f"before {said[i]}")
    yield _kind(column, lambda i: f"token {i + 1} of its line")
    yield _kind(line, lambda i: f"line {i + 1}")
    yield _kind(_pair(before, here, n), lambda i: f"{said[i % n]} after {said[i // n]}")
    yield _kind(_pair(before, kinds, n), lambda i: f"{CLASSES[i % n]} after {said[i // n]}")
    yield _kind(_pair(line, here, n), lambda i: f"{said[i % n]} in line {i // n + 1}")
    names = task[1]
    yield _kind(_pair(task[0], here, n), lambda i: f"{said[i % n]} in task {names[i // n]}")


def _of_prompts(corpus: Corpus, prompts: Sequence[Prompt]) -> Iterator[tuple[list[str], Sparse]]:
    task, names = _numbered([p.task for p in prompts])
    yield _kind(task[corpus.prompts], lambda i: f"task {names[i]}")
    word, words = _numbered([_first_word(p) for p in prompts])
    several = np.bincount(word[word >= 0], minlength=len(words)) > 1
    word = np.where((word >= 0) & several[word], word, NONE) if len(words) else word
    yield _kind(word[corpus.prompts], lambda i: f"text that begins with {words[i]!r}")


def _kind(keys: Int[np.ndarray, " row"], name: Callable[[int], str]) -> tuple[list[str], Sparse]:
    """The most frequent values of one kind, their names, and `[row, value]` where they hold."""
    values, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    counts = np.where(values >= 0, counts, 0)
    order = np.argsort(-counts, kind="stable")[:MOST]
    kept = order[counts[order] >= LEAST]
    column = np.full(len(values), NONE)
    column[kept] = np.arange(len(kept))
    return [name(int(v)) for v in values[kept]], _one_hot(column[place], len(kept))


def _pair(first: np.ndarray, second: np.ndarray, n: int) -> Int[np.ndarray, " row"]:
    """Both values as one number, the second below n; none where either is missing."""
    together = first.astype(np.int64) * n + second
    return np.where((first >= 0) & (second >= 0), together, NONE)


def _one_hot(keys: Int[np.ndarray, " row"], n: int) -> Sparse:
    there = keys >= 0
    bounds = np.concatenate([[0], np.cumsum(there)])
    ones = np.ones(int(there.sum()), np.float32)
    return sparse.csr_array((ones, keys[there], bounds), shape=(len(keys), n))


def _beside(kinds: list[tuple[list[str], Sparse]]) -> Sparse:
    return sparse.hstack([block for _, block in kinds], format="csr")


def _shifted(corpus: Corpus, by: int) -> Int[np.ndarray, " row"]:
    """The token `by` places on in the same prompt; `NONE` where there is no such."""
    found = np.full(len(corpus), NONE)
    here, there = (slice(0, -by), slice(by, None)) if by > 0 else (slice(-by, None), slice(0, by))
    same = corpus.prompts[here] == corpus.prompts[there]
    found[here] = np.where(same, corpus.ids[there], NONE)
    return found


def _lines(
    corpus: Corpus, texts: Mapping[int, str]
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Place of each token in its line and of its line in its prompt, from 0; `NONE` where far out.

    A line ends with the token that holds its line break.
    """
    breaks = np.array(["\n" in texts[i] for i in corpus.ids.tolist()])
    starts = np.ones(len(corpus), bool)
    first = starts.copy()
    first[1:] = corpus.prompts[1:] != corpus.prompts[:-1]
    starts[1:] = first[1:] | breaks[:-1]
    rows = np.arange(len(corpus))
    column = rows - np.maximum.accumulate(np.where(starts, rows, 0))
    number = np.cumsum(starts) - 1
    line = number - np.maximum.accumulate(np.where(first, number, 0))
    return np.where(column < LONGEST_LINE, column, NONE), np.where(line < LINES, line, NONE)


def _class_of(text: str) -> int:
    """Which of `CLASSES` the text of a token is."""
    bare = text.strip()
    if not bare:
        return 3 if "\n" in text else 2
    if bare.isdigit():
        return 0
    if bare.isalpha():
        return 1
    return 5 if any(c.isalnum() for c in bare) else 4


def _numbered(values: Sequence[str | None]) -> tuple[Int[np.ndarray, " value"], list[str]]:
    """Each value's place among the different ones; `NONE` for None."""
    names = list(dict.fromkeys(v for v in values if v is not None))
    place = {name: i for i, name in enumerate(names)}
    return np.array([NONE if v is None else place[v] for v in values]), names


def _first_word(prompt: Prompt) -> str | None:
    words = (prompt.text or "").split(None, 1)
    return words[0] if words else None


def _levels(codes: Sparse) -> Iterator[Sparse]:
    """Where each feature is active, and where it is above half its largest code; ones."""
    high = codes.data > 0.5 * activity(codes).largest[owner(codes)]
    for kept in (np.ones_like(high), high):
        bounds = np.concatenate([[0], np.cumsum(kept)])[codes.indptr]
        ones = np.ones(int(kept.sum()), np.float32)
        yield sparse.csc_array((ones, codes.indices[kept], bounds), shape=codes.shape)


def _best(
    on: Sparse, about: Descriptions, corpus: Corpus
) -> tuple[
    Int[np.ndarray, " feature"], Float[np.ndarray, " feature"], Float[np.ndarray, " feature"]
]:
    """The best description of each feature, its F1, and the best F1 on shuffled tokens."""
    which, score = _strongest(on, on, about, about.of_prompts)
    score[np.diff(on.indptr) < LEAST] = 0.0
    control, draw = np.zeros(on.shape[1]), np.random.default_rng(0)
    n_prompts = int(corpus.prompts.max()) + 1
    first = np.searchsorted(corpus.prompts, np.arange(n_prompts))
    first = np.minimum(first, len(corpus) - 1)
    for _ in range(SHUFFLES):
        moved = draw.permutation(len(corpus)).astype(on.indices.dtype)[on.indices]
        shuffled = sparse.csc_array((on.data, moved, on.indptr), shape=on.shape)
        others = about.of_prompts[first[draw.permutation(n_prompts)[corpus.prompts]]]
        control = np.maximum(control, _strongest(shuffled, on, about, others)[1])
    return which, score, control


def _strongest(
    on: Sparse, whole: Sparse, about: Descriptions, of_prompts: Sparse
) -> tuple[Int[np.ndarray, " feature"], Float[np.ndarray, " feature"]]:
    """The description of largest F1: those of tokens against `on`, those of prompts against `whole`."""
    held = [np.asarray(block.sum(0)).ravel() for block in (about.of_tokens, of_prompts)]
    n_on, described = np.diff(on.indptr), np.concatenate(held)
    after = np.asarray(about.following.sum(0)).ravel()
    which, best = [], []
    for part in blocks_of(on.shape[1], len(described) + 1):
        ahead = (on[:, part].T @ about.following) * about.promoted[part]
        both = [
            (on[:, part].T @ about.of_tokens).toarray(),
            (whole[:, part].T @ of_prompts).toarray(),
            np.asarray(ahead.sum(1)).reshape(-1, 1),
        ]
        raised = (about.promoted[part] @ after)[:, None]
        size = np.concatenate([np.tile(described, (len(raised), 1)), raised], 1)
        f1 = 2 * np.concatenate(both, 1) / np.maximum(size + n_on[part, None], 1)
        which.append(f1.argmax(1))
        best.append(f1.max(1))
    return np.concatenate(which), np.concatenate(best).astype(np.float64)

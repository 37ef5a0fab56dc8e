"""What each feature is for: top examples, histogram, logit effects, relatives, a label; all in one pass.

    board = sae.dashboard(dictionary, model, prompts)
    board                                      # a table; widgets.FeatureBrowser(board) to look around
    board.example(17, 0)                       # the tokens around its strongest activation
    board.promoted(17)                         # tokens whose logits it raises
    board.save("features.safetensors")

    effect of feature j on the logits = W_U (gamma * s * W_dec[j])     less its mean over the vocabulary

Effects are those of the direct path: the decoder row W_dec[j] (centred, before a layer norm), the final
norm's weight gamma, its scale s (the median over the corpus' first prompts), and the unembedding W_U. What
later layers make of the feature is not in them, nor what follows the unembedding, such as a soft cap.

Shapes: `[f]` features that are described, `[row]` tokens of the corpus, `[f, k]` best first.
Units: codes in the dictionary's own; effects in logits per unit of a code. Where a dictionary normalises
    each row (`Dictionary.rescales`), a unit is that of the normalised row: effects compare within it only.
Source: Bricken et al. (2023), Towards Monosemanticity,
    https://transformer-circuits.pub/2023/monosemantic-features, for what a dashboard shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.model.tokens import as_prompts
from workbench.patching.head import Head
from workbench.sae.dashboards import counting, files, page
from workbench.sae.dashboards.corpus import Corpus, Sparse, read, texts_of
from workbench.sae.dashboards.counting import NOBODY
from workbench.sae.dashboards.labels import describe
from workbench.sae.dictionary import Dictionary
from workbench.shapes import Float, Int
from workbench.sites import parse

STREAM_PARTS = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""What is the residual stream or added to it, so that a direction of it has a way to the logits."""
SCALE_PROMPTS, SCALE_ROWS = 32, 1024
"""Prompts, and tokens of them at most, over which the final norm's scale is measured."""


@dataclass(frozen=True)
class Example:
    """The tokens around one activation of a feature.

    Attributes:
        pieces: their texts.
        values: the feature's codes on them, 0 where it is not active.
        peak: which of them was asked for.
        prompt, position: where that one stands in the corpus.
    """

    pieces: list[str]
    values: list[float]
    peak: int
    prompt: int
    position: int

    def __str__(self) -> str:
        marked = [f"[{p}]" if i == self.peak else p for i, p in enumerate(self.pieces)]
        return "".join(marked).replace("\n", "\u21b5")


@dataclass(frozen=True, eq=False, repr=False)
class Dashboard:
    """Features of a dictionary on a corpus.

    Attributes:
        dictionary_name, site, model_name: whose features of what.
        n_tokens: tokens of the corpus.
        features: the features that are described; every `[f]` is in their order.
        density: share of tokens that each is active on.
        largest, mean: largest code, and mean of the codes above 0; 0 for a feature that never fires.
        histogram: active tokens per equal step between 0 and `largest`.
        example_rows, example_values: rows of the corpus with its largest codes; -1 where fewer.
        corpus: the tokens.
        promoted_ids, promoted_values, suppressed_ids, suppressed_values: tokens whose logits its decoder
            row raises and lowers most; of width 0 where the dictionary does not write to the stream.
        correlated_ids, correlated_values: features of like codes and Pearson r over tokens; -1 where
            nothing varies.
        neighbour_ids, neighbour_values: features of like decoder rows and their cosine.
        labels: descriptions made from the data alone, see `workbench.sae.dashboards.labels`.
        label_scores, label_controls: F1 of each label, and the best F1 of any on shuffled tokens.
        codes: the active codes `[row, f]`, sparse.
        texts: the text of every token id that occurs above.
    """

    dictionary_name: str
    site: str
    model_name: str
    n_tokens: int
    features: list[int]
    density: Float[np.ndarray, " f"]
    largest: Float[np.ndarray, " f"]
    mean: Float[np.ndarray, " f"]
    histogram: Int[np.ndarray, "f bins"]
    example_rows: Int[np.ndarray, "f k"]
    example_values: Float[np.ndarray, "f k"]
    corpus: Corpus
    promoted_ids: Int[np.ndarray, "f p"]
    promoted_values: Float[np.ndarray, "f p"]
    suppressed_ids: Int[np.ndarray, "f p"]
    suppressed_values: Float[np.ndarray, "f p"]
    correlated_ids: Int[np.ndarray, "f c"]
    correlated_values: Float[np.ndarray, "f c"]
    neighbour_ids: Int[np.ndarray, "f q"]
    neighbour_values: Float[np.ndarray, "f q"]
    labels: list[str]
    label_scores: Float[np.ndarray, " f"]
    label_controls: Float[np.ndarray, " f"]
    codes: Sparse
    texts: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.features)

    def row_of(self, feature: int) -> int:
        """Where a feature stands in every `[f]`.

        Raises:
            WorkbenchError: it is not described here.
        """
        found = self._rows.get(int(feature))
        if found is None:
            raise WorkbenchError(
                "Dashboard",
                "does not describe this feature",
                expected=f"one of {len(self)}, such as {self.features[:5]}",
                got=feature,
                do="make the dashboard with features=[..., it]",
            )
        return found

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {feature: i for i, feature in enumerate(self.features)}

    def n_examples(self, feature: int) -> int:
        """How many examples it has."""
        return int((self.example_rows[self.row_of(feature)] != NOBODY).sum())

    def example(self, feature: int, rank: int = 0, before: int = 12, after: int = 8) -> Example:
        """The tokens around its `rank`-th strongest example, from 0, inside one prompt.

        Raises:
            WorkbenchError: the feature is not described here, or has no such example; `before` or
                `after` below 0.
        """
        _counts("Dashboard.example", 0, before=before, after=after)
        rows = self.example_rows[self.row_of(feature)]
        if not 0 <= rank < self.n_examples(feature):
            raise WorkbenchError(
                f"Dashboard.example({feature}, {rank})",
                "there is no such example",
                expected=f"a rank below {self.n_examples(feature)}",
                got=rank,
                do="make the dashboard with examples=, or read more prompts",
            )
        row = int(rows[rank])
        window = self.corpus.window(row, before, after)
        return Example(
            self.corpus.pieces[window],
            self._codes(feature, window).tolist(),
            row - window.start,
            int(self.corpus.prompts[row]),
            int(self.corpus.positions[row]),
        )

    def activations(self, feature: int) -> Float[np.ndarray, " row"]:
        """The feature's code on every token of the corpus."""
        return self._codes(feature, slice(0, self.n_tokens))

    def _codes(self, feature: int, window: slice) -> Float[np.ndarray, " row"]:
        i = self.row_of(feature)
        start, stop = self.codes.indptr[i : i + 2]
        rows = self.codes.indices[start:stop]
        first, last = start + np.searchsorted(rows, [window.start, window.stop])
        found = np.zeros(window.stop - window.start, np.float32)
        found[self.codes.indices[first:last] - window.start] = self.codes.data[first:last]
        return found

    def promoted(self, feature: int) -> list[tuple[str, float]]:
        """Tokens whose logits it raises most, and by how much per unit."""
        return self._effects(feature, self.promoted_ids, self.promoted_values)

    def suppressed(self, feature: int) -> list[tuple[str, float]]:
        """Tokens whose logits it lowers most, and by how much per unit."""
        return self._effects(feature, self.suppressed_ids, self.suppressed_values)

    def _effects(self, feature: int, ids: Any, values: Any) -> list[tuple[str, float]]:
        i = self.row_of(feature)
        texts = [self.texts[j] for j in ids[i].tolist() if j != NOBODY]
        return list(zip(texts, values[i].tolist(), strict=False))

    def frame(self) -> Any:
        """A DataFrame with a row per feature."""
        import pandas as pd

        columns = {
            "feature": self.features,
            "label": self.labels,
            "label_f1": self.label_scores,
            "density": self.density,
            "mean": self.mean,
            "largest": self.largest,
            "promotes": [" ".join(repr(t) for t, _ in self.promoted(f)) for f in self.features],
            "correlated": _firsts(self.correlated_ids),
            "neighbour": _firsts(self.neighbour_ids),
            "example": [self._first(feature) for feature in self.features],
        }
        return pd.DataFrame(columns)

    def _first(self, feature: int) -> str:
        return str(self.example(feature)) if self.n_examples(feature) else ""

    def save(self, path: str | Path) -> Path:
        """Write it as one safetensors file; `Dashboard.load` gives it back."""
        return files.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Dashboard:
        """A saved dashboard; it needs neither model nor dictionary.

        Raises:
            FileRefused: no such file, a pickle, half a file, or one that holds something else.
        """
        return cls(**files.load(path))

    def __repr__(self) -> str:
        return (
            f"Dashboard({len(self)} features of {self.dictionary_name or 'a dictionary'} at "
            f"{self.site}; {self.n_tokens:,} tokens, {int((self.density == 0).sum())} never fire)"
        )

    def _repr_html_(self) -> str:
        return page.as_html(self)


def dashboard(
    dictionary: Dictionary,
    model: Any,
    prompts: Any,
    *,
    features: Sequence[int] | None = None,
    examples: int = 8,
    bins: int = 20,
    correlated: int = 5,
    neighbours: int = 5,
    promoted: int = 8,
    diverse: bool = True,
    completions: Sequence[Sequence[int]] | None = None,
    special: bool = False,
    force: bool = False,
    progress: bool = True,
) -> Dashboard:
    """What features do on `prompts`.

    Args:
        dictionary, model, prompts, completions, special, force: as in `sae.stream`. Prompts with a `task`
            lend it to the labels.
        features: which; all by default. Relatives are looked for among all of them either way.
        examples, bins, correlated, neighbours, promoted: how many of each; `promoted=0` asks nothing of
            the unembedding.
        diverse: at most one example of each prompt, its first largest.
        progress: show a bar over prompts.

    Raises:
        WorkbenchError: what `sae.stream` refuses; no such feature; counts out of range; a final norm or
            unembedding that cannot be read, see `Head.effects`; more active codes than are held.
        PromptError: what `sae.stream` refuses, or no token is left.
    """
    chosen = _checked(features, dictionary)
    _counts("sae.dashboard", 1, examples=examples, bins=bins)
    _counts("sae.dashboard", 0, correlated=correlated, neighbours=neighbours, promoted=promoted)
    many = as_prompts(prompts)
    options: dict[str, Any] = {"completions": completions, "special": special, "force": force}
    corpus, codes = read(dictionary, model, many, progress=progress, **options)
    own = codes if features is None else codes[:, chosen]
    found = counting.activity(own)
    rows, values = counting.top(own, corpus.prompts, examples, diverse=diverse)
    like = counting.correlated(codes, chosen, correlated)
    near = counting.neighbours(dictionary.decoder, chosen, neighbours)
    raised, lowered = _effects(dictionary, model, many, chosen, promoted)
    shown = np.unique(np.concatenate([raised[0].ravel(), lowered[0].ravel()]))
    texts = dict(corpus.texts) | texts_of(model.tokenizer, shown[shown != NOBODY])
    said = describe(own, corpus, many, texts, raised[0])
    return Dashboard(
        dictionary.name, dictionary.site, model.name, len(corpus), chosen.tolist(),
        found.density, found.largest, found.mean,
        counting.histogram(own, found.largest, bins), rows, values, corpus,
        *raised, *lowered, *like, *near,
        said.texts, said.scores, said.controls, own, texts,
    )  # fmt: skip


def _effects(
    dictionary: Dictionary, model: Any, prompts: Sequence[Any], features: Any, k: int
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Ids and logits per unit of the tokens that each feature raises, and lowers, most."""
    if not k or parse(dictionary.target, model.n_layers)[0].part not in STREAM_PARTS:
        empty = np.zeros((len(features), 0), np.int64), np.zeros((len(features), 0), np.float32)
        return empty, empty
    last, head = f"L{model.n_layers - 1}.resid_post", Head(model)
    streams = model.record(prompts[:SCALE_PROMPTS], last, pool="all", progress=False)[last]
    streams = streams[:: -(-len(streams) // SCALE_ROWS)]
    decoder, k, found = dictionary.decoder, min(k, head.n_vocab), []
    for block in head.chunks(len(features)):
        logits = head.effects(decoder[torch.from_numpy(features[block])], streams)
        high, low = logits.topk(k, dim=1), (-logits).topk(k, dim=1)
        pairs = (high.indices, high.values, low.indices, -low.values)
        found.append([tensor.cpu().numpy() for tensor in pairs])
    ids, values, low_ids, low_values = (
        np.concatenate(column) for column in zip(*found, strict=True)
    )
    return (ids, values), (low_ids, low_values)


def _checked(features: Sequence[int] | None, dictionary: Dictionary) -> Int[np.ndarray, " f"]:
    """The features to describe, after a check of them and of the decoder."""
    if not bool(dictionary.decoder.isfinite().all()):
        raise WorkbenchError(
            "sae.dashboard",
            "the dictionary's decoder holds NaN or infinity",
            expected="finite weights",
            got=dictionary.name or "a dictionary",
            do="load or train it again",
        )
    n = dictionary.n_features
    if features is None:
        return np.arange(n)
    asked = np.asarray(features).tolist() if np.ndim(features) == 1 else [features]
    wrong = [f for f in asked if type(f) is not int or not 0 <= f < n]
    if wrong or not asked or len(set(asked)) < len(asked):
        raise WorkbenchError(
            "sae.dashboard(features=...)",
            "are not features of this dictionary, each once",
            expected=f"different numbers from 0 to {n - 1}",
            got=wrong[:5] or asked[:5],
            do="count from 0; leave features out for all",
        )
    return np.array(asked)


def _counts(where: str, least: int, **given: int) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise WorkbenchError(
                f"{where}({name}=...)",
                "is no such count",
                expected=f"a whole number, at least {least}",
                got=value,
                do="correct it",
            )


def _firsts(ids: Int[np.ndarray, "f k"]) -> list[int]:
    return ids[:, 0].tolist() if ids.shape[1] else [NOBODY] * len(ids)

"""CoCoMix concept targets: which features of a token the loss depends on, as an analysis of a text.

    found = sae.concept_targets(dictionary, model, texts)
    found                        # features that are chosen most, and how they do
    found.frame()                # a row per token and choice
    found.agreement()            # how often choosing by activation would choose the same

    c = encode(h)        g = dL / dh        a_j = (g . d_j) c_j

with L the mean cross-entropy of all next tokens of the text, so that g at a token holds the losses of
later ones too, and d_j the decoder row. The targets are the 4 largest a, signed. To first order a_j is by
how much the loss grows when the feature grows by its own size, and -a_j what switching it off does: a
large positive one is a feature that *raises* the loss. So the targets are not the features that help.

Shapes: `features`, `attributions`, `activations` `[row, choice]`.
Units: attributions are nats of the text's mean loss; activations count lengths of decoder rows.
Source: Tack et al. (2025), LLM Pretraining with Continuous Concepts, https://arxiv.org/abs/2502.08524, and
    its code, facebookresearch/RAM, projects/cocomix.
Differs from the paper: the targets are looked at, no model is trained to predict them. The last token of a
    text has no loss and is left out, and so are special tokens. Where fewer than 4 active features have a
    positive attribution, the paper's largest are features that are not active, with 0: here -1 and NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from workbench.comparison.provenance import versions
from workbench.comparison.stats import Interval, mean_interval
from workbench.comparison.table import Table
from workbench.errors import WorkbenchError, unknown
from workbench.patching.gradients import Gradients
from workbench.sae.dictionary import Dictionary
from workbench.sae.fitting import check_fits
from workbench.sae.putting import batches_of, kept, losses, rows_at
from workbench.shapes import Codes, Float, Int, Rows, Tensor
from workbench.tensors import Tokens

BY = ("attribution", "activation")
NONE = -1
"""In place of a feature where a token has no further one to choose."""
SCORES = 2**24
"""Codes that are held at once."""


def _empty() -> np.ndarray:
    return np.empty(0)  # a table that was loaded has rows alone


@dataclass(frozen=True, repr=False)
class ConceptTargets(Table):
    """A Table with a row per token and choice: prompt, position, token, choice, feature, attribution,
    activation, loss.

    Attributes:
        features, attributions, activations: `[row, choice]`, the largest first.
        other: `[row, choice]`, what the other way to choose chooses.
        active: `[row]`, how many features are active.
        owners, positions: `[row]`, prompt and absolute position of each token.
        losses: `[prompt]`, the mean cross-entropy of each text.
    """

    features: np.ndarray = field(default_factory=_empty)
    attributions: np.ndarray = field(default_factory=_empty)
    activations: np.ndarray = field(default_factory=_empty)
    other: np.ndarray = field(default_factory=_empty)
    active: np.ndarray = field(default_factory=_empty)
    owners: np.ndarray = field(default_factory=_empty)
    positions: np.ndarray = field(default_factory=_empty)
    losses: np.ndarray = field(default_factory=_empty)

    def summary(self, against: str | None = None) -> Any:  # noqa: ARG002
        """A DataFrame with a row per feature that was chosen, the most often chosen first.

        `share` is the share of tokens that choose it, `raises` the share of these where its attribution
        is positive (it raises the loss), `attribution` and `activation` are means over them.
        """
        frame = self.frame()
        frame = frame[frame["feature"] != NONE].assign(raises=lambda f: f["attribution"] > 0)
        rows = frame.groupby("feature").agg(
            tokens=("feature", "size"),
            raises=("raises", "mean"),
            attribution=("attribution", "mean"),
            activation=("activation", "mean"),
        )
        rows.insert(1, "share", rows["tokens"] / self.provenance["tokens"])
        return rows.sort_values("tokens", ascending=False, kind="stable").reset_index()

    def agreement(self, seed: int = 0) -> dict[str, Interval]:
        """Share of a token's targets that choosing the other way chooses too, mean over texts.

        "chance" is the share where as many of the token's active features are chosen at random. Both
        have 95 % intervals over texts, and so has their paired difference, "beyond chance".

        Raises:
            WorkbenchError: a table that was loaded, which has one choice alone.
        """
        if not len(self.features):
            raise _nothing(
                "the table has no other choice", "what it gave", "a file", "call it again"
            )
        shared, chance = [], []
        for own, other, active in zip(self.features, self.other, self.active, strict=True):
            chosen = set(own.tolist()) - {NONE}
            others = set(other.tolist()) - {NONE}
            n = max(1, len(chosen))
            shared.append(len(chosen & others) / n if chosen else np.nan)
            chance.append(len(others) / max(1, active) if chosen else np.nan)
        values = {"agreement": np.array(shared), "chance": np.array(chance)}
        values["beyond chance"] = values["agreement"] - values["chance"]
        texts = np.unique(self.owners)
        means = {
            name: [_mean(found[self.owners == text]) for text in texts]
            for name, found in values.items()
        }
        return {name: mean_interval(found, seed=seed) for name, found in means.items()}

    def __repr__(self) -> str:
        about = self.provenance
        title = (
            f"ConceptTargets({about.get('dictionary')} in {about.get('model')}: {about['tokens']} "
            f"tokens of {about['texts']} texts, by {about['by']}; positive attributions raise the loss)"
        )
        return title + "\n" + self.summary().head(10).to_string(index=False, float_format="%.3g")

    def _repr_html_(self) -> str:
        from html import escape

        title = escape(repr(self).split("\n")[0])
        table = self.summary().head(10).to_html(index=False, float_format=lambda x: f"{x:.3g}")
        return f"<div><code>{title}</code>{table}</div>"


def concept_targets(
    dictionary: Dictionary,
    model: Any,
    texts: Any,
    *,
    completions: Sequence[Sequence[int]] | None = None,
    top: int = 4,
    by: str = "attribution",
    special: bool = False,
    force: bool = False,
    progress: bool = True,
) -> ConceptTargets:
    """The features that each token would be given as targets.

    Args:
        dictionary, model: whose features of what. A transcoder's gradient is taken where it writes.
        texts: text, prompts, or a list of either.
        completions: ids read after each prompt.
        top: how many per token.
        by: "attribution", the paper's choice, or "activation", what it is compared with.
        special: choose for special tokens too; their losses count anyway.
        force: read another model than the dictionary was trained on.
        progress: show a bar over texts.

    Raises:
        UnknownName: no such way to choose.
        WorkbenchError: the dictionary does not fit or normalises each row, whose decoder rows are then of
            no one length; a text of one token; no token that counts; NaN; `top` out of range.
    """
    _check(dictionary, top, by)
    check_fits(dictionary, model, "sae.concept_targets", force=force)
    corpus = batches_of(model, texts, completions, "sae.concept_targets")
    short = [i for i, n in enumerate(corpus.lengths) if n < 2]
    if short:
        wrong = "a text has one token, and no next one"
        raise _nothing(wrong, "texts of two tokens or more", f"texts {short[:8]}")
    parts: list[_Part] = []
    means: list[Tensor] = []
    bar = tqdm(total=len(corpus), desc="concepts", disable=not progress)
    with bar, torch.inference_mode(False):  # where the caller is in it, there are no gradients
        for start, tokens in corpus.tokens(model):
            found, loss = _batch(dictionary, model, tokens, start, special, top)
            parts.append(found)
            means.append(loss)
            bar.update(len(tokens))
    return _made(parts, torch.cat(means), by, model, dictionary)


@dataclass(frozen=True)
class _Part:
    """What was chosen for some tokens: per way to choose, features, attributions and activations."""

    chosen: dict[str, tuple[Tensor, Tensor, Tensor]]
    active: Int[Tensor, " row"]
    owners: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]
    ids: Int[Tensor, " row"]


def _batch(
    dictionary: Dictionary, model: Any, tokens: Tokens, start: int, special: bool, top: int
) -> tuple[_Part, Float[Tensor, " case"]]:
    sites = list(dict.fromkeys((dictionary.site, dictionary.target)))
    values, grads, found = Gradients(model, progress=False)(
        tokens, sites, lambda logits, rows: _mean_loss(logits, tokens, rows), keep=0
    )
    keep = kept(model, tokens, special).clone()
    keep[:, -1] = False  # left-padded: every text's last token, on which no loss depends
    rows = rows_at(values[dictionary.site], keep).to(dictionary.device)
    slopes = rows_at(grads[dictionary.target], keep).to(dictionary.device)
    chosen, active = _chosen(dictionary, rows, slopes, top)
    owners, columns = keep.nonzero(as_tuple=True)
    where = tokens.positions[owners, columns], tokens.ids[owners, columns]
    part = _Part(chosen, active, owners.cpu() + start, *(one.cpu() for one in where))
    return part, found.double().cpu()


def _mean_loss(logits: Tensor, tokens: Tokens, rows: slice) -> Float[Tensor, " case"]:
    """Mean cross-entropy of each text's next tokens."""
    some = Tokens(tokens.ids[rows], tokens.mask[rows], (), ())
    mask = some.mask[:, :-1].to(logits.device)
    return (losses(logits, some) * mask).sum(1) / mask.sum(1)


def _chosen(
    dictionary: Dictionary, rows: Rows, slopes: Float[Tensor, "row out"], top: int
) -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], Int[Tensor, " row"]]:
    """Both choices `[row, top]`, and the number of active features `[row]`."""
    size = max(1, SCORES // dictionary.n_features)
    parts: dict[str, list[Any]] = {name: [] for name in BY}
    active = []
    for some, slope in zip(rows.split(size), slopes.split(size), strict=True):
        codes = dictionary.encode(some)
        scores = (slope.to(codes) @ dictionary.decoder.to(codes).T) * codes
        active.append((codes != 0).sum(1).cpu())
        for name, ranked in zip(BY, (scores, codes.abs()), strict=True):
            parts[name].append(_top(ranked, scores, codes, top))
    return {
        name: (
            torch.cat([p[0] for p in found]),
            torch.cat([p[1] for p in found]),
            torch.cat([p[2] for p in found]),
        )
        for name, found in parts.items()
    }, torch.cat(active)


def _top(ranked: Codes, scores: Codes, codes: Codes, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features `[row, top]` with the largest of `ranked` above 0, their attributions and activations."""
    best = ranked.topk(top)
    none = best.values <= 0
    features = best.indices.masked_fill(none, NONE)
    read = (one.gather(1, best.indices).masked_fill(none, torch.nan) for one in (scores, codes))
    first, second = (one.double().cpu() for one in read)
    return features.cpu(), first, second


def _made(
    parts: list[_Part], means: Tensor, by: str, model: Any, dictionary: Dictionary
) -> ConceptTargets:
    chosen = [torch.cat([p.chosen[by][i] for p in parts]).numpy() for i in range(3)]
    other = next(name for name in BY if name != by)
    owners, where, ids, active = (
        torch.cat([getattr(p, name) for p in parts]).numpy()
        for name in ("owners", "positions", "ids", "active")
    )
    if not len(owners):
        raise _nothing("no token counts", "texts with other than special tokens", 0)
    top = chosen[0].shape[1]
    pieces = [model.tokenizer.decode([int(i)]) for i in ids]
    columns = {
        "prompt": np.repeat(owners, top).tolist(),
        "position": np.repeat(where, top).tolist(),
        "token": [piece for piece in pieces for _ in range(top)],
        "choice": np.tile(np.arange(top), len(owners)).tolist(),
        "feature": chosen[0].ravel().tolist(),
        "attribution": chosen[1].ravel().tolist(),
        "activation": chosen[2].ravel().tolist(),
        "loss": np.repeat(means.numpy()[owners], top).tolist(),
    }
    return ConceptTargets(
        columns,
        {"attribution": "nats", "activation": "lengths of decoder rows", "loss": "nats"},
        {
            "model": model.name,
            "dictionary": dictionary.name,
            "site": dictionary.site,
            "by": by,
            "tokens": len(owners),
            "texts": len(means),
            "versions": versions(),
        },
        features=chosen[0],
        attributions=chosen[1],
        activations=chosen[2],
        other=torch.cat([p.chosen[other][0] for p in parts]).numpy(),
        active=active,
        owners=owners,
        positions=where,
        losses=means.numpy(),
    )


def _check(dictionary: Dictionary, top: int, by: str) -> None:
    if by not in BY:
        raise unknown("sae.concept_targets(by=...)", "way to choose", by, BY)
    if not 1 <= top <= dictionary.n_features:
        raise WorkbenchError(
            "sae.concept_targets(top=...)",
            "is not a number of features that the dictionary has",
            expected=f"1 to {dictionary.n_features}",
            got=top,
            do="the paper takes 4",
        )
    if dictionary.rescales:
        raise WorkbenchError(
            "sae.concept_targets",
            "the dictionary normalises each row, so a feature writes another length in each",
            expected="a dictionary without normalisation at run time",
            got=f"normalisation {dictionary.sae.cfg.normalize_activations!r}",
            do="take another dictionary",
        )


def _nothing(
    wrong: str, expected: str, got: object, do: str = "pass longer texts"
) -> WorkbenchError:
    return WorkbenchError(
        "sae.concept_targets",
        wrong,
        expected=expected,
        got=got,
        do=do,
    )


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")

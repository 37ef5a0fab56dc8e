"""Search the features of a dictionary: by labels, by a logit difference, by text, by a token.

found = sae.search("attribution", dictionary, model, cases, positions="last")
found                                     # best first, with intervals, a control and corrected p
found.figure(); found.top(5); found.edit(found.top(1)["feature"][0])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from inspect import signature
from operator import index
from typing import Any, SupportsIndex

import numpy as np
import torch

from workbench import registry
from workbench.comparison.layout import interval
from workbench.comparison.provenance import versions
from workbench.comparison.stats import mean_intervals
from workbench.comparison.table import Figure, Table
from workbench.errors import WorkbenchError
from workbench.model.tokens import as_prompts
from workbench.sae.asking import Asked
from workbench.sae.dictionary import Dictionary
from workbench.sae.edits import steer
from workbench.sae.fitting import check_fits
from workbench.sae.scorers.base import FeatureScores, Scorer
from workbench.sae.scorers.cases import strongest
from workbench.scopes import Scope
from workbench.tensors import Intervention

_SHORT = {"last": "last_prompt"}
_PLAIN = (str, int, float, bool, tuple, list, type(None))


@dataclass(frozen=True, repr=False)
class FeatureRanking(Table):
    """A Table with a row per feature, those furthest from what chance gives first.

    Columns: `feature`, `score`, `low` and `high` of its 95 % interval over `n` cases, `control` (the same
    score where there is nothing to find), `p` (corrected for the choice among all features), `unit`, and
    where codes were read `density` (share of tokens on which it is on) and `largest` (activation). The
    score of the best of many is too large; `p` counts that in, its interval does not.

    Attributes:
        dictionary: whose features; None for a ranking from a file.
        scores: the values per case behind the rows; None for a ranking from a file.
    """

    dictionary: Dictionary | None = None
    scores: FeatureScores | None = None

    @property
    def features(self) -> list[int]:
        """The features of the rows, in their order."""
        return list(self.columns["feature"])

    @property
    def largest(self) -> list[float]:
        """The largest activation of each of them; NaN where codes were not read."""
        return list(self.columns.get("largest", [float("nan")] * len(self)))

    def top(
        self, n: int = 10, above: float | int | None = None, below: float | int | None = None
    ) -> Any:
        """The first `n` rows, those whose score is `above` or `below` a number alone, as a DataFrame."""
        frame = self.frame()
        if above is not None:
            frame = frame[frame["score"] > above]
        if below is not None:
            frame = frame[frame["score"] < below]
        return frame.head(n).reset_index(drop=True)

    def at(self, feature: SupportsIndex) -> Any:
        """The row of a feature, as a Series.

        Raises:
            WorkbenchError: the ranking does not hold it.
        """
        return self.frame().iloc[self._row("FeatureRanking.at", feature)]

    def edit(
        self,
        feature: SupportsIndex,
        mode: str = "add",
        dictionary: Dictionary | None = None,
        **options: Any,
    ) -> Intervention:
        """Steer with a feature of the ranking, see `sae.steer`; its size is the largest that was read.

        Raises:
            WorkbenchError: the ranking does not hold it or, from a file, needs `dictionary=`; see `steer`.
        """
        row, feature = self._row("FeatureRanking.edit", feature), index(feature)
        whose = dictionary or self.dictionary
        if whose is None:
            raise WorkbenchError(
                "FeatureRanking.edit",
                "a ranking from a file has no dictionary",
                expected="dictionary=...",
                got=str(self.provenance.get("dictionary")),
                do="load it with sae.load and pass it",
            )
        size = self.largest[row]
        if size > 0:  # NaN is not
            options = {"largest": float(size)} | options
        return steer(whose, feature, mode=mode, **options)

    def figure(self) -> Figure:
        """Scores with their intervals, one below the other, beside what chance gives at most."""
        about = self.provenance
        limit = about.get("chance")
        caption = f"{about.get('caption', '')} 95 % intervals over cases."
        if limit is not None:
            caption += (
                f" The largest of all {about.get('n_features')} features lies {limit:.3g} or more "
                f"from {about.get('neutral'):g} by chance in 1 draw of 20."
            )
        spec = {
            "kind": "ranked",
            "measure": about.get("measure"),
            "unit": self.units.get("score", ""),
            "axes": [{"name": "feature", "labels": self.features, "shown": ()}],
        }
        return Figure(self, spec, caption)

    @property
    def _shown(self) -> Any:  # what a Figure calls its numbers
        frame = self.frame().rename(columns={"score": "mean"})
        frame["measure"] = self.provenance.get("measure")
        return frame

    def _row(self, where: str, feature: SupportsIndex) -> int:
        if index(feature) in self.features:
            return self.features.index(index(feature))
        raise WorkbenchError(
            where,
            "the ranking does not hold this feature",
            expected=f"one of its {len(self)}, such as {self.features[:5]}",
            got=feature,
            do="search with a larger top=, or use sae.steer",
        )

    def _head(self) -> Any:
        shown = self.top(8)
        ends = zip(shown["low"], shown["high"], shown["n"], strict=True)
        shown["95 %"] = [interval(low, high, int(n)) for low, high, n in ends]
        names = ["feature", "score", "95 %", "control", "p", "n"]
        return shown[[*names, *(["density"] if "density" in shown else []), "unit"]]

    def _title(self) -> str:
        about = self.provenance
        return (
            f"FeatureRanking({about.get('measure')}, {about.get('dictionary')} on "
            f"{about.get('model')}: {len(self)} of {about.get('n_features')} features, "
            f"{about.get('n_cases')} prompts, positions {about.get('positions')})"
        )

    def __repr__(self) -> str:
        table = self._head().to_string(index=False, float_format="%.4g")
        return f"{self._title()}\n{table}\ncontrol: {self.provenance.get('control')}"

    def _repr_html_(self) -> str:
        from html import escape

        table = self._head().to_html(index=False, float_format=lambda x: f"{x:.4g}")
        said = escape(f"control: {self.provenance.get('control')}")
        return f"<div><code>{escape(self._title())}</code>{table}<p>{said}</p></div>"


def search(
    scorer: Any,
    dictionary: Dictionary,
    model: Any,
    prompts: Any,
    *,
    positions: str | Scope = "all",
    top: int = 50,
    labels: Sequence[Any] | None = None,
    positive: Any = True,
    negative: Any = False,
    special: bool = False,
    force: bool = False,
    progress: bool = True,
) -> FeatureRanking:
    """The features that have most to do with what the scorer asks.

    Codes are read in parts; what stays in memory is a number per prompt and feature.

    Args:
        scorer: a registry name of the family `scorers`, or a scorer with options.
        dictionary, model: whose features of what.
        prompts: texts or prompts, with labels or answers as the scorer reads them; of
            `wb.prompts.counterfactuals` a scorer of answers reads the clean ones.
        positions: where features are read and taken out: "all", "last" or a scope.
        top: how many features have a row.
        labels: one per prompt, in place of the prompts' own.
        positive, negative: what the two classes are labelled.
        special: count special tokens such as the first one of a text.
        force: read another model than the dictionary was trained on.
        progress: show bars.

    Raises:
        UnknownName: no such scorer, scope or pool.
        WorkbenchError: the dictionary does not fit the model; labels or answers are missing or of one
            class alone; no token is at these positions, or none matches.
        PromptError: a prompt that is empty or longer than the context, an answer that is not one token.
    """
    if isinstance(scorer, str):
        scorer = registry.get("scorers", scorer)()
    if not isinstance(scorer, Scorer):
        raise WorkbenchError(
            "sae.search(scorer)",
            "is no scorer",
            expected="a name, or a scorer with options such as scorers.Auroc()",
            got=repr(scorer),
            do=f"take one of {', '.join(registry.names('scorers'))}",
        )
    if top < 1:
        raise WorkbenchError(
            "sae.search(top=...)",
            "is no number of features",
            expected="1 or more",
            got=top,
            do="say 50",
        )
    check_fits(dictionary, model, "sae.search", force=force)
    many = as_prompts(prompts)
    if "answer" in scorer.reads:
        many = [p for p in many if p.meta.get("role") != "corrupted"]
    scope = Scope.parse(
        _SHORT.get(positions, positions) if isinstance(positions, str) else positions
    )
    asked = Asked(
        dictionary, model, many, scope, tuple(scorer.reads), special, force, progress, scorer.seed
    )
    with torch.inference_mode(False):  # where the caller is in it, no gradient could be taken
        found = scorer.score(**_needed(scorer, asked, labels, positive, negative))
    return _ranked(found, scorer, asked, top)


def _needed(
    scorer: Scorer, asked: Asked, labels: Sequence[Any] | None, positive: Any, negative: Any
) -> dict[str, Any]:
    """What the scorer asked for, by keyword."""
    made = {
        "n_cases": lambda: asked.n_cases,
        "codes": lambda: asked.codes,
        "labels": lambda: asked.labels(positive, negative, labels),
        "spelled": lambda: asked.spelled,
        "slopes": lambda: asked.slopes,
        "switched_off": lambda: asked.switched_off,
        "toward": lambda: asked.toward,
        "decoder": lambda: asked.decoder,
    }
    taken = [name for name in signature(scorer.score).parameters if name in made]
    return {name: made[name]() for name in scorer.needs if name in taken}


def _ranked(found: FeatureScores, scorer: Scorer, asked: Asked, top: int) -> FeatureRanking:
    """Rows, intervals and provenance of scores, the furthest from `neutral` first."""
    _finite(scorer, found)
    best = strongest(found.scores - found.neutral, top)
    which = best if found.features is None else found.features[best]
    mean, low, high, n = mean_intervals(found.values[:, best].double().numpy())
    columns: dict[str, list[Any]] = {
        "feature": which.tolist(),
        "score": mean.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "n": n.tolist(),
        "control": found.control[best].double().tolist(),
        "p": found.p[best].tolist(),
        "unit": [found.unit] * len(best),
    }
    columns |= {name: values[best].double().tolist() for name, values in found.also.items()}
    columns |= _seen(asked, which)
    units = {"score": found.unit, "control": found.unit, "p": "probability", "density": "fraction"}
    about = _provenance(found, scorer, asked)
    return FeatureRanking(columns, units, about, dictionary=asked.dictionary, scores=found)


def _seen(asked: Asked, which: torch.Tensor) -> dict[str, list[float]]:
    seen = asked.seen
    if seen.active is None or seen.largest is None:
        return {}
    return {
        "density": (seen.active[which].double() / seen.rows).tolist(),
        "largest": seen.largest[which].double().tolist(),
    }


def _provenance(found: FeatureScores, scorer: Scorer, asked: Asked) -> dict[str, Any]:
    dictionary, options = (
        asked.dictionary,
        {f.name: getattr(scorer, f.name) for f in fields(scorer)},
    )
    return {
        "scorer": type(scorer).__module__.rpartition(".")[2],
        "options": {k: v for k, v in options.items() if isinstance(v, _PLAIN)},
        "measure": found.measure,
        "control": found.said,
        "neutral": found.neutral,
        "chance": float(np.quantile(found.largest, 0.95)) if found.scale is None else None,
        "caption": found.caption,
        "dictionary": dictionary.name or repr(dictionary),
        "site": dictionary.site,
        "n_features": dictionary.n_features,
        "model": asked.model.name,
        "fingerprint": asdict(asked.model.fingerprint_shape),
        "positions": str(asked.scope),
        "special": asked.special,
        "n_cases": len(found.values),
        "n_prompts": asked.n_cases,
        "versions": versions(),
    }


def _finite(scorer: Scorer, found: FeatureScores) -> None:
    if bool(found.scores.isfinite().all()):
        return
    raise WorkbenchError(
        f"sae.search({type(scorer).__name__})",
        "gave scores that are no numbers",
        expected="finite scores",
        got=f"{int((~found.scores.isfinite()).sum())} of {len(found.scores)} not finite",
        do="load the model in bfloat16 or float32, and look at its activations",
    )

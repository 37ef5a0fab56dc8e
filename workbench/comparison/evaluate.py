"""Score steering as AxBench does, with exact checkers in the place of a judge model.

    found = steering.evaluate([edit, other], model, prompts, concept=is_terse, prompting="terse ")
    found                       # a table: every arm, its controls, prompting, no edit
    found.chosen, found.choice, found.wins(), found.tradeoff(), found.figure()

    score = 3 / (1/concept + 1/instruction + 1/fluency), and 0 where one of them is 0

Each is 0, 1 or 2. Half of the prompts choose every arm's strength by its mean score; the other half,
which that choice never sees, are reported. A random direction of the same norm has its own strength
chosen among the same ones; where they score alike, as where it does nothing, it is the one nearest to
the edit's, so that the two are compared at one norm. One norm is seldom one divergence: see kl_nats.

Source: Wu, Arora, Geiger, Wang, Huang, Jurafsky, Manning and Potts (2025), AxBench: Steering LLMs?
    Even Simple Baselines Outperform Sparse Autoencoders, https://arxiv.org/abs/2501.17148.
Differs from the paper: checkers for a judge; greedy decoding unless told otherwise; among an edit's
    strengths of one mean score the weakest is chosen; a tie counts as half a win; side effects are reported.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from workbench import registry
from workbench.comparison.arms import prefixed
from workbench.comparison.doses import Cell, doses, undosed
from workbench.comparison.grammar import SOURCE, of_the_world
from workbench.comparison.metrics.accuracy import Accuracy
from workbench.comparison.metrics.base import Evidence, Metric
from workbench.comparison.metrics.fluency import Fluency
from workbench.comparison.metrics.kl_nats import KlNats
from workbench.comparison.metrics.length import Length
from workbench.comparison.metrics.perplexity import Perplexity
from workbench.comparison.provenance import provenance
from workbench.comparison.run import Comparison
from workbench.comparison.stats import full_marks, mean_interval
from workbench.comparison.table import COMPARED, Figure, Table
from workbench.errors import WorkbenchError
from workbench.interventions.control import random_control
from workbench.model.tokens import as_prompts
from workbench.records import Generation, Prompt
from workbench.tensors import Arm, Intervention

Checker = str | Metric | Callable[[Prompt, str], bool | float | int]
Edits = Intervention | Sequence[Intervention] | Mapping[str, Intervention]

FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)
PARTS = ("concept", "instruction", "fluency")
POINTS = "points of 2"
BASE = "base"
PROMPTING = "prompting"
TIE = 1e-6
GOOD_NATS = 0.5
"""How far above the base model's own 95th percentile a text still reads well, in nats per token."""
FAIR_NATS = 1.5


def harmonic(*parts: float | int) -> float:
    """The harmonic mean; 0 where a part is 0."""
    return len(parts) / sum(1 / part for part in parts) if all(p > 0 for p in parts) else 0.0


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        table: the reported half: a row per arm, prompt, seed and metric (concept, instruction,
            fluency, their score, perplexity, length, kl_nats, accuracy on other prompts).
        choice: mean score on the choosing half: a row per arm and strength.
        chosen: the strength of every arm that has one, in its own unit.
        others: the continuations of the other prompts, by their name.
        notes: what is missing, in words.
    """

    table: Table
    choice: Table
    chosen: dict[str, float]
    others: dict[str, tuple[Generation, ...]]
    notes: tuple[str, ...]

    def frame(self) -> Any:
        """All reported numbers as a pandas DataFrame."""
        return self.table.frame()

    def summary(self, against: str | None = None) -> Any:
        """Means with intervals and paired differences, see `Table.summary`."""
        return self.table.summary(against)

    def figure(self) -> Figure:
        """Means with 95 % intervals, a panel per metric."""
        return self.table.figure()

    @property
    def generations(self) -> tuple[Generation, ...]:
        """The reported continuations, arm after arm, seed after seed."""
        return self.table.generations

    def wins(self, against: str = PROMPTING) -> Any:
        """How often an arm's score beats another's on the same prompt: a row per arm.

        A difference within 1e-6 is a tie and counts as half. A DataFrame with arm, wins, ties,
        losses, rate, and the rate's 95 % interval `low`, `high`.

        Raises:
            WorkbenchError: no such arm, such as prompting where no words were given.
        """
        import pandas as pd

        scores = self._by_prompt("score")
        if against not in scores:
            raise WorkbenchError(
                f"Evaluation.wins({against!r})",
                "no such arm was run",
                expected=f"one of {list(scores)}",
                got=against,
                do="pass prompting= to evaluate, or name another arm",
            )
        rows = []
        for arm in scores.columns.drop(against):
            gap = (scores[arm] - scores[against]).to_numpy()
            points = np.where(gap > TIE, 1.0, np.where(gap < -TIE, 0.0, 0.5))
            rate = mean_interval(points, proportion=True)
            counts = [int((points == p).sum()) for p in (1.0, 0.5, 0.0)]
            rows.append((arm, *counts, rate.mean, rate.low, rate.high))
        return pd.DataFrame(rows, columns=["arm", "wins", "ties", "losses", "rate", "low", "high"])

    def tradeoff(self, good: str = "concept", side: str = "kl_nats") -> Any:
        """What an arm buys and what it costs: a DataFrame with a row per arm, at its chosen strength.

        Columns: arm, strength (NaN where there is none), and for both metrics mean, low and high.

        Raises:
            WorkbenchError: no such metric.
        """
        import pandas as pd

        asked = {"good": good, "side": side}
        frames = {name: self._by_prompt(metric) for name, metric in asked.items()}
        rows = []
        for arm in frames["good"].columns:
            row: dict[str, Any] = {"arm": arm, "strength": self.chosen.get(arm, math.nan)}
            for name, frame in frames.items():
                top = full_marks(self.table.units[asked[name]])
                found = mean_interval(frame[arm].to_numpy(), top is not None, top=top or 1.0)
                row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def _by_prompt(self, metric: str) -> Any:
        """`[prompt, arm]`, seeds averaged."""
        frame = self.frame()
        known = list(dict.fromkeys(frame["metric"]))
        if metric not in known:
            raise WorkbenchError(
                "Evaluation",
                f"has no metric {metric!r}",
                expected=f"one of {known}",
                got=metric,
                do="name one of those",
            )
        of_metric = frame[frame["metric"] == metric]
        arms = list(dict.fromkeys(of_metric["arm"]))
        wide = of_metric.pivot_table(index="prompt", columns="arm", values="value", dropna=False)
        return wide[arms]

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def evaluate(
    edits: Edits,
    model: Any,
    prompts: Any,
    *,
    concept: Checker,
    instruction: Checker = "accuracy",
    fluency: Checker | None = None,
    factors: float | int | Iterable[float | int] = FACTORS,
    prompting: str | None = None,
    other: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    max_new_tokens: int = 64,
    decoder: Any = None,
    stop: str | Iterable[str] = (),
    control: bool = True,
    control_seed: int | Sequence[int] = 0,
    split_seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Every edit at its best strength, beside a random direction, prompting and no edit.

    Args:
        edits: one, several, or by the name of their arm.
        prompts: split in half by `split_seed`, prompts of one pair together, and so are prompts that
            say the same and have no pair.
        concept: whether the continuation shows what is steered towards: a callable
            `(prompt, text) -> bool or 0 to 2`, a metric, or a metric's name. True is 2. A fraction
            is 2 where it is 1, 0 where it is 0, and 1 between.
        instruction: whether it does what was asked; the task's checker by default.
        fluency: whether it reads well. By default `metrics.Fluency`, its bounds half and one and a
            half nats per token above the 95th percentile of the base model's own continuations of
            the choosing half, and the grammar of the shipped world for its prompts.
        factors: strengths to choose from, as multiples of each edit's own strength.
        prompting: words before every prompt that ask for the concept.
        other: further prompts by name, with tasks, whose accuracy must not suffer.
        seeds: one pass each; one is enough for greedy decoding.
        control: also a random direction of the same norm for every edit. One of the same divergence
            is an edit of its own: `wb.calibrate` one of the method `random_direction`.
        control_seed: draws it; several seeds give several controls, which show how much one draw
            differs from another.

    Raises:
        PromptError: a prompt too long for the context.
        WorkbenchError: fewer than two prompts to split, two arms of one name, a factor that is 0 or
            not finite, a checker whose value is not 0 to 2, or a prompt that cannot be judged.
    """
    judged = {"concept": _checker(concept, "concept")}
    judged["instruction"] = _checker(instruction, "instruction")
    job = _Evaluation(
        model=model,
        options={
            "max_new_tokens": max_new_tokens,
            "stop": stop if isinstance(stop, str) else tuple(stop),
            "batch_size": batch_size,
        },
        decoder=decoder,
        seeds=tuple(seeds),
        checkers=judged,
        fluency=None if fluency is None else _checker(fluency, "fluency"),
        factors=_factors(factors),
        other={name: as_prompts(many) for name, many in (other or {}).items()},
    )
    drawn = (control_seed,) if isinstance(control_seed, int) else tuple(control_seed)
    arms, notes = _arms(edits, drawn if control else ())
    if prompting:
        arms = {PROMPTING: prompting, **arms}
    else:
        notes.append("no prompting arm: pass prompting= to see whether words do as well")
    choosing, reported = _halves(as_prompts(prompts), split_seed)
    job.refuse([*choosing, *reported], prompting or "")
    total = 2 * len(arms) + 1
    with tqdm(desc="steering.evaluate", unit="arm", total=total, disable=not progress) as bar:
        return job.run(arms, choosing, reported, notes, bar, split_seed)


@dataclass(frozen=True)
class _Evaluation:
    """What all arms of an evaluation share. An arm is an edit, or the words put before prompts."""

    model: Any
    options: dict[str, Any]
    decoder: Any
    seeds: tuple[int, ...]
    checkers: dict[str, Metric]
    fluency: Metric | None
    factors: list[float]
    other: dict[str, list[Prompt]]

    def refuse(self, prompts: list[Prompt], prompting: str) -> None:
        """WorkbenchError where something cannot be judged or read; asked before anything runs."""
        self._job(prompts, self.checkers).refuse(self.seeds)
        if self.fluency:
            self._job(prompts, {"fluency": self.fluency}).refuse(self.seeds)
        for many in self.other.values():
            self._job(many, {"accuracy": Accuracy()}).refuse(self.seeds)
        for prompt in [*prompts, *(p for many in self.other.values() for p in many)]:
            told = prefixed(prompt, prompting)
            self.model.tokens(told, room=self.options["max_new_tokens"])

    def run(
        self,
        arms: dict[str, Intervention | str],
        choosing: list[Prompt],
        reported: list[Prompt],
        notes: list[str],
        bar: Any,
        split_seed: int,
    ) -> Evaluation:
        """Choose on one half, report on the other."""
        ours = all(p.source == SOURCE and p.task for p in [*choosing, *reported])
        fluency = self.fluency or self._fluency(choosing, of_the_world if ours else None)
        judged = {**self.checkers, "fluency": fluency}
        choice, chosen, kept = [], {}, {BASE: Arm(BASE)}
        for name, arm in arms.items():
            if isinstance(arm, str):
                kept[name] = Arm(name, prefix=arm)
            else:
                rows = self._scores(name, arm, self._job(choosing, judged))
                choice += rows
                of = arm.params.get("control_of")
                best = _best(rows, near=chosen.get(of, 0.0))
                notes += _warnings(name, rows, best, self._limit(arm)) if of is None else []
                if best is None:
                    notes.append(f"{name} is left out: no strength could be applied")
                else:
                    chosen[name] = best
                    kept[name] = Arm(name, [arm.at(best)])
            bar.update()
        report = _Report(self, judged, reported)
        for arm in kept.values():
            report.add(arm, notes)
            bar.update()
        made = provenance(
            [kept[name] for name in report.arms],
            self.model,
            reported,
            self.seeds,
            self.decoder,
            base=BASE,
            notes=notes,
            chosen_strengths=chosen,
            factors=self.factors,
            split_seed=split_seed,
            n_choosing=len(choosing),
            bounds=repr(judged["fluency"]),
            **self.options,
        )
        return Evaluation(report.table(made), _choice(choice), chosen, report.others, tuple(notes))

    def _job(self, prompts: list[Prompt], metrics: dict[str, Metric]) -> Comparison:
        return Comparison(self.model, prompts, metrics, self.decoder, self.options)

    def _fluency(self, choosing: list[Prompt], grammar: Any) -> Fluency:
        """Bounds from what the base model writes itself, on the half that is not reported."""
        job = self._job(choosing, {"perplexity": Perplexity()})
        nats = [
            math.log(value)
            for seed in self.seeds
            for value in undosed(job, Arm(BASE), seed).values["perplexity"]
            if math.isfinite(value)
        ]
        usual = float(np.percentile(nats, 95)) if nats else 0.0
        return Fluency(usual + GOOD_NATS, usual + FAIR_NATS, grammar)

    def _strengths(self, edit: Intervention) -> list[float]:
        """Factors of the edit's own strength, none past the largest that its method allows."""
        limit = self._limit(edit)
        asked = [factor * float(edit.strength) for factor in self.factors]
        return list(dict.fromkeys(math.copysign(min(abs(s), limit), s) for s in asked))

    def _limit(self, edit: Intervention) -> float:
        return float(edit.params.get("max_strength", math.inf))

    def _scores(self, name: str, edit: Intervention, job: Comparison) -> list[tuple[Any, ...]]:
        """Rows of arm, strength, mean score, and why there is none."""
        strengths = self._strengths(edit)
        names = [name] * len(strengths)
        by_seed = [doses(job, edit, strengths, seed, names) for seed in self.seeds]
        rows = []
        for strength, *found in zip(strengths, *by_seed, strict=True):
            error = next((dose.error for dose in found if dose.error), "")
            scores = [] if error else [s for dose in found for s in scores_of(dose)]
            rows.append((name, strength, float(np.mean(scores)) if scores else math.nan, error))
        return rows


class _Report:
    """The reported half, arm after arm."""

    def __init__(self, job: _Evaluation, judged: dict[str, Metric], prompts: list[Prompt]):
        side: dict[str, Metric] = {
            "perplexity": Perplexity(),
            "length": Length(),
            "kl_nats": KlNats(),
        }
        self.job, self.metrics = job, judged | side
        self.main = job._job(prompts, self.metrics)
        self.side = {
            name: job._job(many, {"accuracy": Accuracy()}) for name, many in job.other.items()
        }
        self.rows: list[tuple[Any, ...]] = []
        self.texts: list[Generation] = []
        self.arms: list[str] = []
        self.others: dict[str, tuple[Generation, ...]] = dict.fromkeys(self.side, ())

    def add(self, arm: Arm, notes: list[str]) -> None:
        """One arm at its strength on everything; a note where it cannot be applied."""
        found = {seed: undosed(self.main, arm, seed) for seed in self.job.seeds}
        aside = {
            (name, seed): undosed(job, arm, seed)
            for name, job in self.side.items()
            for seed in self.job.seeds
        }
        errors = [dose.error for dose in [*found.values(), *aside.values()] if dose.error]
        if errors:
            notes.append(f"{arm.name} is left out: {errors[0]}")
            return
        self.arms.append(arm.name)
        for seed, dose in found.items():
            values = {**dose.values, "score": scores_of(dose)}
            self._rows(arm, seed, {name: values[name] for name in (*PARTS, "score", *values)})
            self.texts += dose.generations
        for (name, seed), dose in aside.items():
            self._rows(arm, seed, {f"accuracy on {name}": dose.values["accuracy"]})
            self.others[name] += dose.generations

    def _rows(self, arm: Arm, seed: int, values: dict[str, list[float]]) -> None:
        self.rows += [
            (arm.name, i, seed, name, value, self._unit(name))
            for name, numbers in values.items()
            for i, value in enumerate(numbers)
        ]

    def _unit(self, name: str) -> str:
        if name == "score" or name in PARTS:
            return POINTS
        return self.metrics[name].unit if name in self.metrics else "fraction"

    def table(self, made: dict[str, Any]) -> Table:
        """The reported numbers."""
        columns = dict(zip(COMPARED, zip(*self.rows, strict=True), strict=True))
        units = {name: self._unit(name) for name in dict.fromkeys(columns["metric"])}
        return Table(columns, units, made, tuple(self.texts))


@dataclass(frozen=True)
class Points(Metric):
    """A checker as points: True, a full fraction and 2 are 2; False and nothing measured are 0.

    Attributes:
        checker: `(prompt, text)` -> bool or 0 to 2, or a metric whose unit is a fraction or points.
        name: what errors call it.
    """

    checker: Metric | Callable[[Prompt, str], bool | float | int]
    name: str = "concept"

    unit = POINTS
    better = "higher"

    @property
    def needs(self) -> Any:  # type: ignore[override]
        """Those of a metric."""
        return self.checker.needs if isinstance(self.checker, Metric) else ()

    def accept(self, prompt: Prompt) -> None:
        """As the metric does."""
        if isinstance(self.checker, Metric):
            self.checker.accept(prompt)

    def measure(self, generation: Generation, evidence: Evidence) -> float:
        """0 to 2.

        Raises:
            WorkbenchError: the checker gave something else.
        """
        if isinstance(self.checker, Metric):
            value = self.checker.measure(generation, evidence)
            fraction = self.checker.unit.startswith("fraction")
        else:
            value = self.checker(generation.prompt, generation.text)
            fraction = isinstance(value, bool | np.bool_)
        try:
            points = float(value)
        except (TypeError, ValueError):
            raise self._refused(value) from None
        if math.isnan(points):
            return 0.0
        if not 0 <= points <= (1 if fraction else 2):
            raise self._refused(value)
        return (2.0 if points == 1 else float(points > 0)) if fraction else points

    def _refused(self, value: object) -> WorkbenchError:
        return WorkbenchError(
            f"evaluate({self.name}=...)",
            "is no judgement",
            expected="True or False, or points from 0 to 2",
            got=value,
            do="return a bool from the checker",
        )


def scores_of(dose: Cell) -> list[float]:
    """The harmonic mean of concept, instruction and fluency, one per prompt."""
    return [harmonic(*parts) for parts in zip(*(dose.values[p] for p in PARTS), strict=True)]


def _checker(asked: Checker, name: str) -> Metric:
    found = registry.get("metrics", asked)() if isinstance(asked, str) else asked
    return Points(found, name)


def _factors(asked: float | int | Iterable[float | int]) -> list[float]:
    many = [asked] if isinstance(asked, float | int) else asked
    factors = sorted({float(f) for f in many}, key=lambda f: (abs(f), f))
    if not factors or not all(math.isfinite(f) and f != 0 for f in factors):
        raise WorkbenchError(
            "evaluate(factors=...)",
            "leaves nothing to choose from",
            expected="finite multiples other than 0 (no edit is an arm of its own)",
            got=factors,
            do=f"pass some of {FACTORS}",
        )
    return factors


def _arms(edits: Edits, seeds: tuple[int, ...]) -> tuple[dict[str, Intervention | str], list[str]]:
    """Every edit, each followed by its random controls, one per seed; and what has none."""
    if isinstance(edits, Mapping):
        named = [edit.named(name) for name, edit in edits.items()]
    else:
        named = [edits] if isinstance(edits, Intervention) else list(edits)
    found, notes = [], []
    for edit in named:
        twins = [twin for seed in seeds if (twin := random_control(edit, seed))]
        if len(seeds) > 1:
            names = [f"{edit.label} (random control, seed {seed})" for seed in seeds]
            twins = [twin.named(name) for twin, name in zip(twins, names, strict=False)]
        found += [edit, *twins]
        if seeds and not twins:
            notes.append(f"no random control for {edit.label}: it has no direction")
    labels = [edit.label for edit in found]
    if not labels or len(set(labels)) < len(labels) or {BASE, PROMPTING} & set(labels):
        raise WorkbenchError(
            "evaluate",
            "needs edits of different names" if labels else "has no edits",
            expected=f"at least one, none called {BASE} or {PROMPTING}",
            got=labels,
            do="pass a mapping of names to edits",
        )
    zero = [e.label for e in found if not isinstance(e.strength, float | int) or e.strength == 0]
    if zero:
        raise WorkbenchError(
            "evaluate",
            "has edits without a strength that factors could multiply",
            expected="one number other than 0",
            got=zero,
            do="use edit.at(1.0), or wb.calibrate",
        )
    return dict(zip(labels, found, strict=True)), notes


def _halves(prompts: list[Prompt], seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts that choose and prompts that are reported; those of one pair stay together."""
    groups: dict[Any, list[int]] = {}
    for i, prompt in enumerate(prompts):
        alone = ("says", prompt.text, repr(prompt.messages))
        groups.setdefault(alone if prompt.pair is None else prompt.pair, []).append(i)
    drawn = list(groups.values())
    random.Random(f"evaluate/{seed}").shuffle(drawn)
    first = {i for group in drawn[: len(drawn) // 2] for i in group}
    halves = (
        [p for i, p in enumerate(prompts) if i in first],
        [p for i, p in enumerate(prompts) if i not in first],
    )
    if not halves[0]:
        raise WorkbenchError(
            "evaluate",
            "has too few prompts to split in half",
            expected="at least 2 that differ, of different pairs",
            got=len(prompts),
            do="give more; 50 or more make intervals that say something",
        )
    return halves


def _best(rows: Sequence[tuple[Any, ...]], near: float = 0.0) -> float | None:
    """The strength of the highest mean score; of equals the one nearest to `near`."""
    known = [(score, -abs(s - near), s) for _, s, score, error in rows if not error]
    return max(known)[2] if known else None


def _warnings(
    name: str, rows: Sequence[tuple[Any, ...]], best: float | None, limit: float
) -> list[str]:
    """What the choice of an edit's strength leaves open, in words."""
    if all(score == 0 for _, _, score, error in rows if not error):
        return [f"{name} scored 0 at every strength that was tried"] if best is not None else []
    last = max(abs(strength) for _, strength, _, _ in rows)
    if best is None or len(rows) == 1 or abs(best) < last or last >= limit:
        return []
    return [f"{name} is best at the largest strength tried, {best:.4g}: larger factors may do more"]


def _choice(rows: Sequence[tuple[Any, ...]]) -> Table:
    columns = ("arm", "strength", "score", "error")
    found = dict(zip(columns, zip(*rows, strict=True), strict=True)) if rows else {}
    return Table(found or {c: () for c in columns}, {"score": POINTS})

"""What a board has computed: rounds of arm and seed, trained arms, and the table of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.comparison.arms import complete, refuse_mixed_units, refuse_other_words
from workbench.comparison.metrics.base import Metric
from workbench.comparison.provenance import provenance
from workbench.comparison.run import Comparison, Row, checked_metrics
from workbench.comparison.table import COMPARED, Table
from workbench.errors import EditError, WorkbenchError
from workbench.model.tokens import as_prompts
from workbench.records import Generation, Prompt
from workbench.rl import Reinforce, Step, TrainArm
from workbench.tensors import Arm

MOST_ARMS = 64


@dataclass(frozen=True)
class Round:
    """One arm under one seed: its rows of the table and its texts, or why there are none."""

    rows: tuple[Row, ...] = ()
    texts: tuple[Generation, ...] = ()
    error: str = ""


@dataclass
class Training:
    """One training: its curve so far, and the arm that came of it."""

    arm: TrainArm
    name: str
    curve: list[Step] = field(default_factory=list)
    made: Arm | None = None
    error: str = ""


class Board:
    """Arms x seeds over all prompts, each computed once, judged as `wb.compare` judges them.

    Args: see RolloutBoard.

    Attributes:
        arms: all that are there: the baseline first, controls after their arms, trained ones last.
        base: the baseline's name.
        trainings: by the name of the arm that each gives.
    """

    def __init__(
        self,
        model: Any,
        prompts: Any,
        arms: Iterable[Arm | TrainArm],
        seeds: Sequence[int],
        metrics: Sequence[str | Metric],
        decoder: Any,
        control: bool,
        control_seed: int,
        options: dict[str, Any],
    ):
        arms = list(arms)
        self.model, self.seeds, self.options = model, list(seeds), options
        plain = [arm for arm in arms if not isinstance(arm, TrainArm)]
        self.train_arms = [arm for arm in arms if isinstance(arm, TrainArm)]
        self.plain, self.control, self.control_seed = plain, control, control_seed
        self.arms, self.base, self.notes = complete(plain, control, control_seed)
        self.trainings = {n: Training(a, n) for a in self.train_arms for n in a.runs()}
        self.job = Comparison(
            model, as_prompts(prompts), checked_metrics(metrics), decoder, options
        )
        self.rounds: dict[tuple[str, int], Round] = {}
        self._refuse()

    @property
    def prompts(self) -> list[Prompt]:
        """What every arm answers."""
        return self.job.prompts

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def missing(self) -> list[tuple[str, int]]:
        """Rounds to do, arm by arm, seed by seed. An arm that failed once is not tried again."""
        failed = {name for (name, _), done in list(self.rounds.items()) if done.error}
        wanted = [(a.name, s) for a in self.arms if a.name not in failed for s in self.seeds]
        return [one for one in wanted if one not in self.rounds]

    def play(self, name: str, seed: int) -> None:
        """Do one round. An edit that cannot be applied is the round's error, the baseline's is raised."""
        arm = self.arm(name)
        try:
            texts = self.job.generate(arm, seed)
            rows = [row for rows in self.job.judge(arm, seed, texts) for row in rows]
            self.rounds[name, seed] = Round(tuple(rows), tuple(texts))
        except EditError as error:
            self.rounds[name, seed] = Round(error=str(error))

    def train(self, name: str, on_step: Callable[[Step], None]) -> None:
        """Do the training that gives the arm `name`; its curve grows on the way."""
        training = self.trainings[name]
        training.curve = []

        def step(one: Step) -> None:
            training.curve.append(one)
            on_step(one)

        arm = training.arm
        trainer = arm.trainer or Reinforce()
        try:
            options = arm.runs()[name]
            trained = trainer.train(
                self.model, self.prompts, arm.steps, arm.edits, on_step=step, **options
            )
        except WorkbenchError as error:
            training.error = str(error)
            return
        training.made = Arm(name, model=trained.model)
        self.arms = [*self.arms, training.made]

    def texts(self, name: str, seed: int) -> tuple[Generation, ...]:
        """The round's texts; () where it is not done."""
        done = self.rounds.get((name, seed))
        return done.texts if done is not None else ()

    def seeds_of(self, name: str) -> list[int]:
        """Seeds that the arm has answered."""
        return [s for s in self.seeds if self.texts(name, s)]

    def rows(self, names: Iterable[str], seeds: Iterable[int] | None = None) -> list[Row]:
        """The table's rows of these arms, in the table's order."""
        seeds = self.seeds if seeds is None else list(seeds)
        found = [self.rounds[n, s] for n in names for s in self.seeds if (n, s) in self.rounds]
        return [row for one in found for row in one.rows if row[2] in seeds]

    def table(self) -> Table:
        """What `wb.compare` gives for the same arms; arms that failed or wait are in its notes."""
        whole = [arm for arm in self.arms if self.seeds_of(arm.name) == self.seeds]
        rows = self.rows(arm.name for arm in whole)
        left_out = [f"{a.name}: {self._why(a.name)}" for a in self.arms if a not in whole]
        columns = dict(zip(COMPARED, zip(*rows, strict=True), strict=True)) if rows else {}
        units = {name: metric.unit for name, metric in self.job.metrics.items()}
        texts = [t for a in whole for s in self.seeds for t in self.texts(a.name, s)]
        made = provenance(
            whole,
            self.model,
            self.prompts,
            self.seeds,
            self.job.decoder,
            base=self.base,
            notes=[*self.notes, *left_out],
            **self.options,
        )
        return Table(columns, units, made, tuple(texts))

    def _why(self, name: str) -> str:
        errors = [r.error for (n, _), r in list(self.rounds.items()) if n == name and r.error]
        return errors[0] if errors else "not finished"

    def _refuse(self) -> None:
        """All that can be refused is refused here: arms may run for hours."""
        self.job.refuse(self.seeds)
        refuse_other_words(self.arms, self.model)
        refuse_mixed_units(self.arms)
        self.model.tokens(self.prompts, room=self.options["max_new_tokens"])
        names = [*(arm.name for arm in self.arms), *self.trainings]
        if len(set(names)) < len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise _refused("has two arms of one name", "different names", twice, "rename one")
        if len(names) > MOST_ARMS:
            raise _refused(
                "has too many arms to be read side by side",
                f"at most {MOST_ARMS}, baseline, controls and training twins counted",
                len(names),
                "use wb.compare, whose table takes any number, or leave out controls",
            )


def _refused(wrong: str, expected: str, got: object, do: str) -> WorkbenchError:
    return WorkbenchError("RolloutBoard", wrong, expected=expected, got=got, do=do)

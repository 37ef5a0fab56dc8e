"""RolloutBoard: prompts x arms x seeds, the numbers with their intervals, the texts behind each number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench import worker
from workbench.comparison.metrics.base import Metric
from workbench.comparison.run import DEFAULT_METRICS
from workbench.comparison.table import Table
from workbench.decoding import Sample
from workbench.errors import WorkbenchError, unknown
from workbench.model.model import Model
from workbench.rl import Step, TrainArm
from workbench.tensors import Arm, Intervention
from workbench_widgets.filling import Filling
from workbench_widgets.rollout_board.board import Board
from workbench_widgets.rollout_board.code import compare_code
from workbench_widgets.rollout_board.figures import Figures, curve
from workbench_widgets.rollout_board.still import NAME, still
from workbench_widgets.stills.words import cut
from workbench_widgets.transcripts import affordable, packed, shown, verdict

TOKENS_KEPT = 200_000
RULE = (
    "Every arm gets every prompt under every seed; nothing is stopped early, so that no number is "
    "chosen by when somebody looked."
)


class RolloutBoard(Filling):
    """Arms side by side: accuracy, pass@k, length, divergence, and the transcripts behind them.

    Fills arm by arm, seed by seed. Every arm with edits gets a control, the same edits in random
    directions of the same norm. Intervals are 95 %; differences to the baseline are paired by
    prompt, prompts being the sample. A click on an arm opens its prompts, one on a prompt and seed
    its transcript beside the baseline's under the same seed.

    Args:
        arms: `wb.Arm`, or `TrainArm`: "train n steps from here with these edits in the rollouts",
            which waits for its button or `train`.
        seeds: one pass each; pass@k needs at least k.
        decoder: for arms without one of their own; samples at temperature 1 by default.
        k: for pass@k; the powers of two from 2 to the number of seeds by default.
        metrics: as in `wb.compare`. For prompts without a task leave out "accuracy".
        control, control_seed, max_new_tokens, stop, batch_size: as in `wb.compare`.

    Raises:
        WorkbenchError: whatever `wb.compare` refuses, k above the number of seeds, or more than 64
            arms, the controls counted.
        PromptError: no prompts, or one too long for the context.

    Example:
        board = RolloutBoard(model, prompts, [wb.Arm("steered", [edit.at(2)])])
        board.table()    # what wb.compare gives
    """

    folder = "rollout_board"

    def __init__(
        self,
        model: Model,
        prompts: Any,
        arms: Iterable[Arm | TrainArm] | Arm | TrainArm,
        *,
        seeds: Sequence[int] = (0, 1, 2, 3),
        decoder: Any = None,
        k: Sequence[int] | None = None,
        metrics: Sequence[str | Metric] = DEFAULT_METRICS,
        control: bool = True,
        control_seed: int = 0,
        max_new_tokens: int = 64,
        stop: str | Iterable[str] = (),
        batch_size: int | None = None,
    ):
        arms = [arms] if isinstance(arms, Arm | TrainArm) else list(arms)
        stop = stop if isinstance(stop, str) else tuple(stop)
        options = dict(max_new_tokens=max_new_tokens, stop=stop, batch_size=batch_size)
        decoder = Sample(temperature=1.0) if decoder is None else decoder
        self._board = board = Board(
            model, prompts, arms, seeds, metrics, decoder, control, control_seed, options
        )
        self._figures = Figures(board, _checked_k(k, board))
        super().__init__(spec={"train": []}, meta=_meta(board, self._figures.ks))
        self.refresh()

    def table(self) -> Table:
        """The comparison so far, as `wb.compare` gives it; what is missing is in its notes."""
        return self._board.table()

    def train(self, name: str) -> RolloutBoard:
        """Train a TrainArm and its two controls, then let them answer. Returns the board.

        Raises:
            UnknownName: no TrainArm of that name.
        """
        names = [arm.name for arm in self._board.train_arms]
        if name not in names:
            raise unknown("RolloutBoard.train", "arm to train", name, names)
        self.ask(train=list(dict.fromkeys([*self.spec["train"], name])), go=self.spec["go"] + 1)
        return self

    def to_record(self) -> tuple[Arm, ...]:
        """All arms, baseline first, controls and trained arms with them."""
        return tuple(self._board.arms)

    def to_code(self) -> str:
        """A cell that makes the same table through `wb.compare`, without the widget."""
        board = self._board
        made = {arm.name for arm in board.arms}
        trained = [arm for arm in board.train_arms if set(arm.runs()) <= made]
        options = {"seeds": board.seeds, "decoder": board.job.decoder, "control": board.control}
        options |= {"control_seed": board.control_seed, **board.options}
        metrics = list(board.job.metrics.values())
        return compare_code(board.model, board.prompts, board.plain, trained, metrics, options)

    def precompute(self, grid: Any = None) -> RolloutBoard:
        """Fill what is missing and wait: the frame then holds all that a page without a kernel shows."""
        self.go_on()
        self.settle()
        return self

    # --- filling -------------------------------------------------------------------------------

    def _next(self, spec: Mapping[str, Any], held: bool) -> tuple[str, str, int] | None:
        if held:
            return None
        for name, seed in self._board.missing():
            return "play", name, seed
        for name in self._to_train(spec):
            return "train", name, 0
        return None

    def _to_train(self, spec: Mapping[str, Any]) -> list[str]:
        """Trainings that somebody asked for and that are not done."""
        return [
            name
            for name, training in self._board.trainings.items()
            if training.arm.name in spec["train"] and not training.made and not training.error
        ]

    def _piece(self, piece: tuple[str, str, int], job: worker.Job) -> None:
        kind, name, seed = piece
        if kind == "play":
            self._board.play(name, seed)
            return
        done, total = self._counted()

        def on_step(step: Step) -> None:
            job.progress(done, total, f"training {name}: step {step.i + 1} of {step.n}")
            self._show_at_times()

        self._board.train(name, on_step)

    def _counted(self) -> tuple[int, int]:
        done = len(self._board.rounds)
        waiting = len(self._to_train(self.spec)) * (1 + len(self._board.seeds))
        return done, done + len(self._board.missing()) + waiting

    def _named(self, piece: tuple[str, str, int]) -> str:
        kind, name, seed = piece
        return f"training {name}" if kind == "train" else f"{name}, seed {seed}"

    def _picture(self) -> Mapping[str, Any]:
        board = self._board
        lines = self._figures.lines()
        return {
            "arms": [_arm(board, arm) for arm in board.arms],
            "lines": lines,
            "measures": list(dict.fromkeys(line["metric"] for line in lines)),
            "trainings": [_training(board, arm) for arm in board.train_arms],
            "notes": board.notes,
            **self._texts(),
        }

    def _but(self) -> str:
        board, trainings = self._board, self._board.trainings.values()
        waiting = [t.arm.name for t in trainings if not t.made and not t.error]
        kept = self._kept()
        lacks = [f"the training of {cut(name, NAME)}" for name in dict.fromkeys(waiting)]
        more = f" and {len(lacks) - 2} more" if len(lacks) > 2 else ""
        texts = [f"texts after the first {kept} prompts"] if kept < len(board.prompts) else []
        return ", ".join([*texts, ", ".join(lacks[:2]) + more] if lacks else texts)

    def _kept(self) -> int:
        """For how many prompts, the first ones, the texts go with the frame."""
        rounds = [done.texts for done in self._board.rounds.values() if done.texts]
        return affordable(rounds, TOKENS_KEPT) if rounds else len(self._board.prompts)

    def _texts(self) -> dict[str, Any]:
        """Transcripts of the first prompts, as many as fit: round by round, prompt by prompt.
        `rounds` says which; `right` `[round, prompt]` holds every verdict, of all prompts.
        """
        board = self._board
        rounds = {key: r.texts for key, r in board.rounds.items() if r.texts}
        n = self._kept() if rounds else 0
        texts = [text for group in rounds.values() for text in group[:n]]
        keys = [list(key) for key in rounds]
        right = np.array([[verdict(t) for t in group] for group in rounds.values()], np.uint8)
        return {"rounds": keys, "kept": n, "right": right, **packed(board.model, texts)}

    def _fetch(self, what: str, arguments: Mapping[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if what != "texts":
            return super()._fetch(what, arguments, job)
        board, name, seed = self._board, str(arguments.get("arm")), int(arguments.get("seed", 0))
        own, base = board.texts(name, seed), board.texts(board.base, seed)
        if not own:
            raise WorkbenchError(
                "RolloutBoard",
                "has no such transcripts",
                expected="an arm and a seed that are done",
                got=f"{name}, seed {seed}",
                do="wait for it",
            )
        texts = [*base, *own]
        return {"kept": len(board.prompts), **packed(board.model, texts)}

    def _words(self) -> str:
        done, total = self._counted()
        lines = self.frame.get("lines", [])
        first = lines[0]["metric"] if lines else ""
        means = [
            f"{cut(x['arm'], NAME)} {x['mean']:.3f}"
            for x in lines
            if x["metric"] == first and x["mean"] is not None
        ]
        more = f", … {len(means) - 4} more" if len(means) > 4 else ""
        return f"{cut(first, NAME)}: {', '.join(means[:4])}{more}; {done} of {total} rounds"

    def _still(self) -> str:
        return still(self.frame, self.meta, self._words())


def _checked_k(k: Sequence[int] | None, board: Board) -> list[int]:
    n = len(board.seeds)
    if k is None:
        return [2**i for i in range(1, n.bit_length()) if 2**i <= n]
    if not all(1 <= one <= n for one in k):
        raise WorkbenchError(
            "RolloutBoard(k=...)",
            "asks for more samples than there are seeds",
            expected=f"numbers from 1 to {n}",
            got=list(k),
            do="add seeds or lower k",
        )
    return sorted(set(k))


def _meta(board: Board, ks: Sequence[int]) -> dict[str, Any]:
    metrics = [
        {"name": name, "unit": m.unit, "better": m.better} for name, m in board.job.metrics.items()
    ]
    if "accuracy" in board.job.metrics:
        passes = [{"name": f"pass@{k}", "unit": "fraction", "better": "higher"} for k in ks]
        metrics = (
            [metrics[0], *passes, *metrics[1:]]
            if metrics[0]["name"] == "accuracy"
            else metrics + passes
        )
    return {
        "title": "Rollouts",
        "metrics": metrics,
        "seeds": board.seeds,
        "base": board.base,
        "prompts": [shown(p) for p in board.prompts],
        "answers": [p.answer for p in board.prompts],
        "n_prompts": len(board.prompts),
        "rule": RULE,
    }


def _arm(board: Board, arm: Arm) -> dict[str, Any]:
    errors = [r.error for (name, _), r in board.rounds.items() if name == arm.name and r.error]
    is_control = any("control_of" in edit.params for edit in arm.edits)
    kinds = {board.base: "baseline", **{name: "trained" for name in board.trainings}}
    return {
        "name": arm.name,
        "kind": kinds.get(arm.name, "control" if is_control else "arm"),
        "about": [_about(edit) for edit in arm.edits]
        + ([f"prefix {arm.prefix!r}"] if arm.prefix else []),
        "done": len(board.seeds_of(arm.name)),
        "error": errors[0] if errors else "",
    }


def _about(edit: Intervention) -> str:
    where = f"{edit.operation} at {', '.join(edit.sites)}"
    return f"{edit.label}: {where}, strength {edit.strength:g}, scope {edit.scope}"


def _training(board: Board, arm: TrainArm) -> dict[str, Any]:
    runs = []
    for name in arm.runs():
        training = board.trainings[name]
        runs.append(
            {
                "name": name,
                "error": training.error,
                "made": bool(training.made),
                **curve(training.curve),
            }
        )
    return {
        "name": arm.name,
        "steps": arm.steps,
        "edits": [_about(e) for e in arm.edits],
        "runs": runs,
    }

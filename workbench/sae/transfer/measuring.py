"""Measure what fine-tuning transfers to: train on each domain, test on all, finished trainings kept.

    measured = sae.fine_tune_domains(model, domains, held_out=others, twins=True, path="transfer")
    measured.change, measured.twin_spread()

Every training begins at the same model. All targets are tested together, in large batches.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from tqdm.auto import tqdm

from workbench import tasks
from workbench.decoding import Decoder, Greedy
from workbench.errors import WorkbenchError, unknown
from workbench.files import write_atomically
from workbench.model.load import load
from workbench.model.tokens import as_prompts
from workbench.prompts.plain import to_plain
from workbench.records import Prompt
from workbench.rl import Sft, Trainer
from workbench.rl.base import Check, Step
from workbench.sae.transfer.measured import Measured, Run

MIXED = "all domains mixed"
Told = Callable[[int, int, str], None]
"""Called with (i, n, note) after every step of training and every test; a job's `progress` fits."""


def fine_tune_domains(
    model: Any,
    domains: Mapping[str, Any],
    trainer: Trainer | None = None,
    *,
    held_out: Mapping[str, Any],
    steps: int = 60,
    seed: int = 0,
    twins: bool | Sequence[str] = False,
    shuffled: bool | Sequence[str] = False,
    mixed: bool = False,
    check: Check | None = None,
    decoder: Decoder | None = None,
    max_new_tokens: int = 96,
    batch_size: int | None = 256,
    path: str | Path | None = None,
    keep_models: bool = False,
    told: Told | None = None,
    progress: bool = True,
) -> Measured:
    """Train a copy of the model on each domain and test it on all of them.

    Args:
        domains: prompts to train on, by domain: the sources. One that is held out as well is not
            trained on.
        trainer: how; supervised fine-tuning on the tasks' own chains by default.
        held_out: prompts to test on, by domain: the targets.
        steps: of each training.
        seed: of the trainings; twins take the next one.
        twins: for these sources (True: all), the same training under another seed.
        shuffled: for these sources, one on completions or rewards of other prompts, see `Trainer`.
        mixed: train once on all domains together, for as many steps.
        check: judges a completion, in training by reward as in the tests; the checker of each prompt's
            task by default.
        decoder: of the tests, greedy by default. One that samples draws alike before and after; what
            training by reward gains may show in samples alone.
        max_new_tokens, batch_size: of the tests.
        path: folder that keeps each training once it is finished: a call cut off goes on from there.
        keep_models: hand the trained models back in `.models`, and keep them in `path`, each a folder
            that `wb.load` reads.
        told: called as it goes on; what it raises ends the call, finished trainings stay in `path`.
        progress: show a bar over trainings.

    Raises:
        WorkbenchError: no domain, one with fewer than two prompts, prompts nobody can judge, or a
            `path` that holds the trainings of another call; and see the trainer.
    """
    trainer = trainer or Sft(batch_size=16, learning_rate=1e-3)
    test = _prompts(held_out, "held_out")
    train, overlap = _apart(_prompts(domains, "domains"), test)
    asked = [p for many in test.values() for p in many]
    _judged(asked, check)
    plan = [*_plan(list(train), seed, twins, shuffled, mixed)]
    decoder = decoder or Greedy()
    about = _about(model, trainer, train, test, steps, check)
    about |= {"max_new_tokens": max_new_tokens, "decoder": repr(decoder)}
    folder = _Folder(Path(path), about) if path is not None else None
    reading = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "decoder": decoder}
    work = _Work(model, trainer, train, asked, steps, check, folder, keep_models, told, reading)
    before, runs, models = work.before(), [], {}
    with tqdm(plan, desc="fine-tuning", unit="run", disable=not progress) as bar:
        for k, run in enumerate(bar):
            bar.set_postfix_str(run.name, refresh=False)
            done, tuned = work.done(run, k, len(plan))
            runs.append(done)
            models |= {run.name: tuned} if keep_models else {}
    owners = tuple(t for t, name in enumerate(test) for _ in test[name])
    return Measured(tuple(train), tuple(test), owners, before, tuple(runs), overlap, about, models)


@dataclass
class _Work:
    """What every training of one call shares."""

    model: Any
    trainer: Trainer
    train: dict[str, list[Prompt]]
    asked: list[Prompt]
    steps: int
    check: Check | None
    folder: _Folder | None
    keep_models: bool
    told: Told | None
    reading: dict[str, Any]

    def before(self) -> tuple[float, ...]:
        """What the untrained model earns."""
        kept = self.folder.before() if self.folder else None
        if kept is not None:
            return kept
        found = self._test(self.model)
        if self.folder:
            self.folder.keep_before(found)
        return found

    def done(self, run: Run, k: int, n: int) -> tuple[Run, Any]:
        """The run with its results, and its model where it is kept: trained now, or read back."""
        if self.folder:
            kept = self.folder.finished(run, self.keep_models)
            if kept is not None:
                return kept, self.folder.model(run, self.model) if self.keep_models else None
        began, whole = time.monotonic(), n * (self.steps + 1)

        def said(step: Step) -> None:
            if self.told:
                self.told(k * (self.steps + 1) + step.i + 1, whole, run.name)

        prompts = self.train[run.source] if run.source else sum(self.train.values(), [])
        options = {"seed": run.seed, "on_step": said, "check": self.check}
        options["shuffle_rewards"] = run.kind == "shuffled"
        arm = self.trainer.train(self.model, prompts, self.steps, **options)
        tuned = replace(arm.model, name=_named(self.model, run))
        curve = tuple(float(np.mean(step.rewards)) for step in arm.curve)
        right = self._test(tuned)
        done = replace(run, right=right, curve=curve, seconds=time.monotonic() - began)
        if self.folder:
            self.folder.keep(done, tuned if self.keep_models else None)
        if self.told:
            self.told((k + 1) * (self.steps + 1), whole, run.name)
        return done, tuned

    def _test(self, model: Any) -> tuple[float, ...]:
        check = self.check or tasks.check
        texts = model.generate(self.asked, **self.reading)
        found = tuple(float(check(text.prompt, text.text)) for text in texts)
        if not np.isfinite(found).all():
            raise WorkbenchError(
                "fine_tune_domains(check=)",
                "gives something that is no number",
                expected="a finite number for every completion",
                got=repr(next(t.text[:40] for t, x in zip(texts, found, strict=True) if x - x)),
                do="correct check",
            )
        return found


class _Folder:
    """Finished trainings on disk: `call.json`, `before.json`, `<run>.json`, and models in `models/`."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path = path
        kept = self._read("call.json")
        if kept is not None and kept != about:
            other = [key for key in {**about, **kept} if about.get(key) != kept.get(key)]
            raise self._other(", ".join(other), {key: kept.get(key) for key in other})
        self._write("call.json", about)

    def _other(self, what: str, got: object) -> WorkbenchError:
        return WorkbenchError(
            f"fine_tune_domains(path={str(self.path)!r})",
            "the folder holds the trainings of another call",
            expected=f"the same {what}",
            got=got,
            do="give another folder, or the arguments of that call",
        )

    def before(self) -> tuple[float, ...] | None:
        """What the untrained model earned."""
        kept = self._read("before.json")
        return None if kept is None else tuple(kept)

    def keep_before(self, right: tuple[float, ...]) -> None:
        """Keep it."""
        self._write("before.json", right)

    def finished(self, run: Run, with_model: bool) -> Run | None:
        """The run with its results, where it is finished and its model is there if that is wanted."""
        kept = self._read(f"{_file(run)}.json")
        if kept is None or (with_model and not (self._models / _file(run)).is_dir()):
            return None
        if kept.get("seed") != run.seed:
            raise self._other("seed", kept.get("seed"))
        return Run.of(kept)

    def keep(self, run: Run, model: Any) -> None:
        """Keep it; the model first, so that a run that is there has everything."""
        if model is not None:
            fresh, final = self._models / f".{_file(run)}.part", self._models / _file(run)
            for old in (fresh, final):
                shutil.rmtree(old, ignore_errors=True)
            with _quiet():
                model.hf.save_pretrained(fresh)
            model.tokenizer.save_pretrained(fresh)
            fresh.rename(final)
        self._write(f"{_file(run)}.json", vars(run))

    def model(self, run: Run, start: Any) -> Any:
        """The trained model, where the one is that training began at."""
        where = {"device": str(start.device), "dtype": start.dtype}
        found = load(str(self._models / _file(run)), proof=False, **where)
        return replace(found, name=_named(start, run))

    @property
    def _models(self) -> Path:
        return self.path / "models"

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as reason:
            raise WorkbenchError(
                f"fine_tune_domains(path={str(self.path)!r})",
                f"{name} cannot be read ({reason})",
                expected="a file written by this function",
                got="something else",
                do="delete that file",
            ) from None

    def _write(self, name: str, values: Any) -> None:
        write_atomically(self.path / name, json.dumps(values, allow_nan=False).encode())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own bar for shards, one for each of many small models."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _named(model: Any, run: Run) -> str:
    return f"{model.name} ({run.name})"


def _file(run: Run) -> str:
    return quote(run.name, safe=" ()")


def _plan(
    sources: list[str],
    seed: int,
    twins: bool | Sequence[str],
    shuffled: bool | Sequence[str],
    mixed: bool,
) -> Iterator[Run]:
    """The runs: every source, then twins, shuffled ones, and the mixed one."""
    yield from (Run(name, name, "source", seed) for name in sources)
    for name in _chosen(sources, twins, "twins"):
        yield Run(f"{name} (seed twin)", name, "twin", seed + 1)
    for name in _chosen(sources, shuffled, "shuffled"):
        yield Run(f"{name} (shuffled)", name, "shuffled", seed)
    if mixed:
        yield Run(MIXED, None, "mixed", seed)


def _chosen(sources: list[str], wanted: bool | Sequence[str], option: str) -> list[str]:
    if isinstance(wanted, bool):
        return sources if wanted else []
    wanted = [wanted] if isinstance(wanted, str) else wanted
    for name in wanted:
        if name not in sources:
            raise unknown(f"fine_tune_domains({option}=)", "source", name, sources)
    return list(dict.fromkeys(wanted))


def _prompts(domains: Mapping[str, Any], option: str) -> dict[str, list[Prompt]]:
    found = {name: as_prompts(prompts) for name, prompts in domains.items()}
    few = [name for name, prompts in found.items() if len(prompts) < 2]
    if few or not found:
        raise WorkbenchError(
            f"fine_tune_domains({option})",
            f"the domain {few[0]!r} has one prompt" if few else "there are no domains",
            expected="domains of at least 2 prompts",
            got={name: len(found[name]) for name in few},
            do="give more prompts",
        )
    return found


def _apart(
    train: dict[str, list[Prompt]], test: dict[str, list[Prompt]]
) -> tuple[dict[str, list[Prompt]], dict[str, int]]:
    """Training prompts without those that are held out, and how many those were."""
    held = {_key(p) for prompts in test.values() for p in prompts}
    left = {name: [p for p in prompts if _key(p) not in held] for name, prompts in train.items()}
    empty = [name for name, prompts in left.items() if len(prompts) < 2]
    if empty:
        raise WorkbenchError(
            f"fine_tune_domains(domains[{empty[0]!r}])",
            "is held out, all but at most one prompt of it",
            expected="prompts to train on that are not tested on",
            got=f"{len(train[empty[0]])} prompts, {len(left[empty[0]])} left",
            do="draw them from another seed",
        )
    return left, {name: len(train[name]) - len(left[name]) for name in train}


def _judged(prompts: list[Prompt], check: Check | None) -> None:
    if check is None and any(p.task is None or p.answer is None for p in prompts):
        raise WorkbenchError(
            "fine_tune_domains(held_out)",
            "nobody can judge a prompt",
            expected="prompts with a task and an answer, or check=",
            got="one without",
            do="make them with workbench.tasks.make, or pass check=",
        )


def _about(
    model: Any,
    trainer: Trainer,
    train: dict[str, list[Prompt]],
    test: dict[str, list[Prompt]],
    steps: int,
    check: Check | None,
) -> dict[str, Any]:
    """What decides the results of a run, in plain values."""
    return {
        "model": {**vars(model.fingerprint)},
        "trainer": repr(trainer),
        "steps": steps,
        **(
            {} if check is None else {"check": getattr(check, "__qualname__", type(check).__name__)}
        ),
        "domains": {name: _digest(prompts) for name, prompts in train.items()},
        "held_out": {name: _digest(prompts) for name, prompts in test.items()},
    }


def _digest(prompts: list[Prompt]) -> str:
    text = json.dumps([to_plain(p) for p in prompts], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _key(prompt: Prompt) -> str:
    return json.dumps([prompt.text, prompt.messages], default=str)

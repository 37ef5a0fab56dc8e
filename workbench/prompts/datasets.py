"""Files of published steering data as prompts: labelled, paired, with completions where they have any.

    pairs = prompts.read_caa("caa/generate/sycophancy/generate_dataset.json")
    edit = steering.fit("mean_difference", model, pairs)

What is asked and what is answered comes from the files; the words around them are templates that
may be changed, because no base model and no chat model wants the same ones.

caa          questions with two answers (A), (B):      pairs of completions
persona      statements a persona would say or not:    pairs of completions
truthfulqa   questions with true and false answers:    pairs of completions, or classes of them
facts        statements, true or false:                classes, or pairs of honest and lying personas
emotion      scenarios of one emotion against others:  classes
repeng       beginnings of answers for two personas:   pairs
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.errors import FileRefused, PromptError, unknown
from workbench.prompts.contrast import classes, completions, pairs
from workbench.records import Prompt, Prompts

MATCHING, NOT_MATCHING = "answer_matching_behavior", "answer_not_matching_behavior"


def read_caa(path: str | Path, *, template: str = "{question}\n\nAnswer:") -> Prompts:
    """Contrastive A/B questions: each with the letter that shows the behaviour, and the other.

    Completions end at the letter, as in " (A": with the default pool "last" the row is the letter's,
    where the paper reads.

    Source: Rimsky et al. (2024), https://arxiv.org/abs/2312.06681, folders `generate`.

    Raises:
        FileRefused: no such file, or one of another form.
    """
    path = Path(path)
    rows = [_fields(path, row, "question", MATCHING, NOT_MATCHING) for row in _json_list(path)]
    asked = [
        Prompt(
            text=_filled(template, "question", question=row["question"]),
            answer=row[MATCHING],
            choices=tuple(sorted((row[MATCHING], row[NOT_MATCHING]))),
            source=f"caa/{path.parent.name}",
        )
        for row in rows
    ]
    return completions(
        asked,
        positive=[_letter(path, row[MATCHING]) for row in rows],
        negative=[_letter(path, row[NOT_MATCHING]) for row in rows],
    )


def read_persona(
    path: str | Path, *, template: str = "{question}\nAnswer:", min_confidence: float | int = 0.0
) -> Prompts:
    """Statements that a persona would say or not, with Yes and No as completions.

    Args:
        path: a `.jsonl` file of the folder `persona`.
        template: what is asked around `{question}`, or around the bare `{statement}`.
        min_confidence: items whose label is less sure are left out.

    Source: Perez et al. (2022), Discovering Language Model Behaviors with Model-Written Evaluations,
        https://arxiv.org/abs/2212.09251.

    Raises:
        FileRefused: no such file, or one of another form.
        PromptError: no item is that sure.
    """
    path = Path(path)
    names = ("question", "statement", MATCHING, NOT_MATCHING)
    rows = [_fields(path, row, *names) for row in _json_lines(path)]
    sure = [row for row in rows if float(row.get("label_confidence", 1.0)) >= min_confidence]
    _some(path, sure, f"items of confidence {min_confidence} or more", f"{len(rows)} less sure")
    asks = "statement" if "{statement}" in template else "question"
    asked = [
        Prompt(
            text=_filled(template, asks, question=row["question"], statement=row["statement"]),
            answer=row[MATCHING].strip(),
            source=f"persona/{path.stem}",
            meta={"label_confidence": row.get("label_confidence")},
        )
        for row in sure
    ]
    return completions(
        asked,
        positive=[row[MATCHING] for row in sure],
        negative=[row[NOT_MATCHING] for row in sure],
    )


def read_truthfulqa(
    path: str | Path,
    *,
    answers: str = "best",
    template: str = "Q: {question}\nA:",
    categories: Iterable[str] | None = None,
) -> Prompts:
    """Questions that people answer wrongly, with true and false answers as completions.

    Args:
        path: `TruthfulQA.csv`.
        answers: "best" pairs the best true with the best false answer; "all" takes every answer of
            both columns, unpaired, as their numbers differ.
        template: what is asked around `{question}`.
        categories: only questions of these.

    Source: Lin, Hilton and Evans (2022), TruthfulQA, https://arxiv.org/abs/2109.07958.

    Raises:
        FileRefused: no such file, or one of another form.
        UnknownName: no question has such a category, or `answers` is neither.
    """
    if answers not in ("best", "all"):
        raise unknown("read_truthfulqa(answers)", "choice", answers, ("best", "all"))
    path = Path(path)
    rows = [_fields(path, row, *_TRUTHFULQA) for row in _csv_rows(path)]
    rows = _of_categories(rows, categories)
    asked = [
        Prompt(
            text=_filled(template, "question", question=row["Question"]),
            source="truthfulqa",
            meta={"category": row["Category"]},
        )
        for row in rows
    ]
    if answers == "best":
        true, false = ([f" {row[f'Best {kind}']}" for row in rows] for kind in _KINDS)
        return completions(asked, positive=true, negative=false)
    return Prompts(
        replace(prompt, label=label, meta={**prompt.meta, "completion": f" {answer}"})
        for label, column in ((True, "Correct Answers"), (False, "Incorrect Answers"))
        for prompt, row in zip(asked, rows, strict=True)
        for answer in _listed(row[column])
    )


def read_repe_facts(
    path: str | Path,
    *,
    personas: tuple[str, str] | None = None,
    template: str = "Speak as {persona} person would about the world. {statement}",
) -> Prompts:
    """True and false statements as two classes, or true ones said by two personas as pairs.

    Args:
        path: `facts_true_false.csv`.
        personas: such as ("an honest", "a lying"); the paper's honesty vectors come from true
            statements behind two instructions. None leaves the statements as they are.
        template: the text around `{persona}` and `{statement}` where there are personas.

    Source: Zou et al. (2023), https://arxiv.org/abs/2310.01405.

    Raises:
        FileRefused: no such file, or one of another form.
    """
    path = Path(path)
    rows = [_fields(path, row, "statement", "label") for row in _csv_rows(path)]
    odd = sorted({row["label"] for row in rows} - {"0", "1"})
    if odd:
        raise _wrong_file(path, "has labels that are neither 0 nor 1", odd[:3])
    true, false = (
        [
            Prompt(text=row["statement"], source="repe/facts")
            for row in rows
            if row["label"] == label
        ]
        for label in ("1", "0")
    )
    if personas is None:
        return classes(positive=true, negative=false)
    plus, minus = (
        [replace(p, text=_behind(template, who, "statement", p.text or "")) for p in true]
        for who in personas
    )
    return pairs(positive=plus, negative=minus)


def read_repe_emotion(
    path: str | Path,
    against: str | Path | Sequence[str | Path],
    *,
    template: str = "Think of the {emotion} in this scenario: {scenario}\nAnswer:",
) -> Prompts:
    """Scenarios of one emotion, and scenarios of others asked about the same emotion, as classes.

    Args:
        path: such as `happiness.json`; the file's name is the emotion.
        against: one or more files of other emotions.
        template: the text around `{emotion}` and `{scenario}`; "{scenario}" for the bare ones.

    Source: Zou et al. (2023), https://arxiv.org/abs/2310.01405.

    Raises:
        FileRefused: no such file, or one of another form.
        PromptError: the emotion is among those it stands against.
    """
    path = Path(path)
    others = [Path(p) for p in ([against] if isinstance(against, str | Path) else against)]
    if path.stem in [p.stem for p in others]:
        raise PromptError(
            "prompts.read_repe_emotion",
            "sets an emotion against itself",
            expected="files of other emotions",
            got=path.stem,
            do="leave it out of against=",
        )

    def side(file: Path) -> list[Prompt]:
        return [
            Prompt(
                text=_filled(template, "scenario", emotion=path.stem, scenario=scenario),
                source=f"repe/{file.stem}",
                meta={"emotion": file.stem},
            )
            for scenario in _texts(file)
        ]

    return classes(positive=side(path), negative=[p for file in others for p in side(file)])


def read_repeng(
    path: str | Path,
    *,
    positive: str,
    negative: str,
    template: str = "Be {persona} in what you say. {suffix}",
) -> Prompts:
    """Beginnings of answers, each behind two personas, as pairs: the data of persona vectors.

    Args:
        path: a JSON list of texts, such as `all_truncated_outputs.json` or `true_facts.json`.
        positive, negative: the personas, such as "extremely happy" and "extremely sad".
        template: the text around `{persona}` and `{suffix}`; write a model's own tags here.

    Source: Vogel (2024), repeng, https://github.com/vgel/repeng, after Zou et al. (2023).

    Raises:
        FileRefused: no such file, or one of another form.
        PromptError: the two personas are one.
    """
    if positive == negative:
        raise PromptError(
            "prompts.read_repeng",
            "has one persona on both sides",
            expected="two personas",
            got=positive,
            do="name two",
        )
    path = Path(path)
    plus, minus = (
        [
            Prompt(
                text=_behind(template, who, "suffix", suffix).rstrip(),
                source=f"repeng/{path.stem}",
            )
            for suffix in _texts(path)
        ]
        for who in (positive, negative)
    )
    return pairs(positive=plus, negative=minus)


_KINDS = ("Answer", "Incorrect Answer")
_TRUTHFULQA = (
    "Question",
    "Category",
    "Best Answer",
    "Best Incorrect Answer",
    "Correct Answers",
    "Incorrect Answers",
)


def _filled(template: str, needed: str, **words: str) -> str:
    """`template` with the words in their places; other braces stay, and so do braces in the words."""
    if "{" + needed + "}" not in template:
        raise PromptError(
            f"template {template!r}",
            "has no place for what the file holds",
            expected="{" + needed + "}",
            got=template,
            do="put it in",
        )
    places = re.compile(r"\{(" + "|".join(words) + r")\}")
    return places.sub(lambda place: words[place[1]], template)


def _behind(template: str, persona: str, name: str, text: str) -> str:
    """`text` behind a persona; a template needs places for both, or the two sides were one."""
    if "{" + name + "}" not in template:
        _filled(template, name)
    return _filled(template, "persona", **{"persona": persona, name: text})


def _letter(path: Path, answer: str) -> str:
    if not (answer.startswith("(") and answer.endswith(")") and len(answer) == 3):
        raise _wrong_file(path, "has an answer that is no letter in brackets", answer)
    return f" {answer[:-1]}"


def _listed(text: str) -> list[str]:
    return [answer.strip() for answer in text.split(";") if answer.strip()]


def _of_categories(
    rows: list[dict[str, Any]], categories: Iterable[str] | None
) -> list[dict[str, Any]]:
    if categories is None:
        return rows
    known = {row["Category"] for row in rows}
    wanted = set(categories)
    for name in sorted(wanted - known):
        raise unknown("read_truthfulqa(categories)", "category", name, sorted(known))
    return [row for row in rows if row["Category"] in wanted]


# --- files ---------------------------------------------------------------------------------------


def _read(path: Path, parse: Callable[[str], list[Any]]) -> list[Any]:
    try:
        found = parse(path.read_text("utf-8-sig"))
    except OSError as reason:
        raise _wrong_file(path, "cannot be read", reason.strerror) from None
    except (ValueError, csv.Error) as reason:
        raise _wrong_file(path, "cannot be understood", reason) from None
    _some(path, found, "at least one item", "0")
    return found


def _json_list(path: Path) -> list[Any]:
    found = _read(path, lambda text: [json.loads(text)])[0]
    if not isinstance(found, list) or not found:
        raise _wrong_file(path, "holds no list", type(found).__name__)
    return found


def _json_lines(path: Path) -> list[Any]:
    return _read(path, lambda text: [json.loads(line) for line in text.split("\n") if line.strip()])


def _csv_rows(path: Path) -> list[Any]:
    return _read(
        path, lambda text: list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    )


def _texts(path: Path) -> list[str]:
    found = _json_list(path)
    odd = [item for item in found if not isinstance(item, str)]
    if odd:
        raise _wrong_file(path, "holds something that is no text", str(odd[0])[:60])
    return found


def _fields(path: Path, row: Any, *names: str) -> dict[str, Any]:
    """The row, where it has every name and texts under them."""
    if not isinstance(row, Mapping):
        raise _wrong_file(path, f"has an item without {', '.join(names)}", str(row)[:60])
    missing = [name for name in names if not isinstance(row.get(name), str)]
    if missing:
        raise _wrong_file(path, f"has an item without {', '.join(missing)}", [*row])
    return dict(row)


def _some(path: Path, found: Sequence[Any], expected: str, got: str) -> None:
    if not found:
        raise PromptError(
            f"prompts of {str(path)!r}", "are none", expected=expected, got=got, do="take others"
        )


def _wrong_file(path: Path, wrong: str, got: object) -> FileRefused:
    return FileRefused(
        f"prompts of {str(path)!r}",
        wrong,
        expected="the published file this reader is named after",
        got=got,
        do="check the path; workbench.prompts.read reads other files",
    )

"""The shipped dictionaries: trained from a seed on activations of a shipped model, measured, described."""

from __future__ import annotations

import platform
import random
from collections.abc import Sequence, Set
from itertools import islice
from pathlib import Path

from workbench import tasks
from workbench.files import write_atomically
from workbench.model.load import load as load_model
from workbench.sae.dictionary import Dictionary
from workbench.sae.quality import QualityTable, evaluate
from workbench.sae.store import load, save
from workbench.sae.training import train
from workbench.seeds import derive
from workbench.zoo.build import torch_threads
from workbench.zoo.card import version

LAYERS = (2, 3)
TOKENS = {512: 1_500_000, 2048: 1_000_000}
"""Width of each dictionary of a layer, and the tokens it is trained on."""
K = 20
RATE = 2e-3
EXAMPLES, HELD_OUT = 900, 12
"""Examples of each task that are trained on, and that the card is measured on."""
LIBRARIES = ("interp-workbench", "sae-lens", "torch", "transformers")


def build_saes(
    name: str = "reasoner",
    out: Path | str = "data/saes",
    *,
    layers: Sequence[int] = LAYERS,
    widths: Sequence[int] = tuple(TOKENS),
    tokens: int | None = None,
    examples: int = EXAMPLES,
    held_out: int = HELD_OUT,
    seed: int = 0,
    threads: int = 1,
    checkpoint: Path | str | None = None,
) -> Path:
    """Train the dictionaries of a shipped model and write them and their card; returns `out/name`.

    Args:
        layers, widths: of which the residual stream behind each layer gets a dictionary of each width.
        tokens: how many each is trained on; by default what `TOKENS` says for its width.
        examples, held_out: of each task, to train on and to measure with.
        seed: decides text and weights, bit for bit on one machine with equal `threads`.
        checkpoint: a folder where an interrupted build goes on.
    """
    model = load_model(name)
    folder = Path(out) / name
    with torch_threads(threads):
        text = texts(examples, derive(seed, "train"))
        for width in widths:
            for layer in layers:
                title = f"L{layer}.resid_post-{width}"
                found = train(
                    model,
                    f"L{layer}.resid_post",
                    text,
                    width=width,
                    tokens=tokens or TOKENS[width],
                    lr=RATE,
                    path=Path(checkpoint) / title if checkpoint else None,
                    name=f"{name}/{title}",
                    seed=seed,
                    k=K,
                )
                save(found, folder / title, half=True)
        unseen = texts(held_out, derive(seed, "held out"), but=frozenset(text))
        describe(folder, unseen, examples)
    return folder


def texts(n: int, seed: int, but: Set[str] = frozenset()) -> list[str]:
    """`n` training examples of every task, shuffled; the same seed gives the same ones.

    Args:
        but: texts that are not taken; where a task has few others, it gives fewer than `n`.
    """
    rng = random.Random(seed)
    found: list[str] = []
    for name in tasks.names():
        drawn = (tasks.get(name).example(rng).text for _ in range(100 * n))
        found += islice((text for text in drawn if text not in but), n)
    rng.shuffle(found)
    return found


def describe(folder: Path, held_out: list[str], examples: int) -> None:
    """Measure the dictionaries in a folder, as they are stored, and write the card beside them.

    Args:
        held_out: what they are measured on.
        examples: of each task, that they were trained on.
    """
    model = load_model(folder.name)
    found = [load(path.parent, model=model) for path in folder.glob("*/cfg.json")]
    found.sort(key=lambda one: (one.site, one.n_features))
    measured = evaluate(found, model, held_out, progress=False)
    rows = [_row(one, measured) for one in found]
    versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    text = CARD.format(
        name=folder.name,
        example=found[0].name.rpartition("/")[2],
        k=K,
        rate=f"{RATE:g}",
        versions=f"Python {platform.python_version()}, {versions}",
        examples=examples,
        held_out=len(held_out),
        rows="\n".join(rows),
    )
    write_atomically(folder / "README.md", text.encode())


def _row(one: Dictionary, measured: QualityTable) -> str:
    def cell(measure: str, form: str, by: str = "dictionary") -> str:
        found = measured.value(measure, by, one.name)
        return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"

    dead = measured.value("dead_share", "dictionary", one.name).mean
    cells = (
        one.name.rpartition("/")[2],
        f"{one.facts['tokens'] / 1e6:g} M",
        cell("fvu", ".3f"),
        cell("fvu", ".3f", "random dictionary"),
        cell("l0", ".1f"),
        f"{dead:.1%}",
        cell("ce_recovered", ".3f"),
        cell("ce_recovered_mean", ".3f"),
    )
    return "| " + " | ".join(cells) + " |"


CARD = """---
license: apache-2.0
library_name: sae_lens
---

# Dictionaries of {name}

Sparse autoencoders of the residual stream behind some layers of `{name}`, as examples to look at,
to steer with and to test on. They are in SAELens' format.

    sae.load("{name}/{example}", model=wb.load("{name}"))       # here
    SAE.load_from_disk("data/saes/{name}/{example}")             # in SAELens

## How they were made

`python -m workbench.zoo saes {name}`

| | |
| --- | --- |
| training | SAELens' trainer, batch top-k with k = {k}, saved as JumpReLU; Adam at {rate}, batches of 1,024 |
| training data | {examples} examples of every task in `workbench.tasks`, over and over |
| left out | the token that begins a text |
| stored | float16 on disk, float32 in use |
| versions | {versions} |
| licence | Apache-2.0, weights and data |

## How good they are

On {held_out} examples that they were not trained on, all tasks alike, as stored; in brackets 95 % bootstrap
intervals over examples. *Random* is a dictionary of random directions, as wide and as sparse: what
FVU has to beat. Cross-entropy recovered is (ablated - reconstructed) / (ablated - original): against
zeros at every position, and against the mean activation at all but the first. Dead features fire on
none of these tokens.

| dictionary | tokens | FVU | FVU, random | L0 | dead | CE recovered, zeros | CE recovered, mean |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

## Limits

They were trained for minutes on a model that knows one tiny world of characters: many features are
characters or places in a line. Only text of that world was seen; features of questions that the
tasks do not ask may be missing. Features have no checked meaning: look at examples before naming one.
"""

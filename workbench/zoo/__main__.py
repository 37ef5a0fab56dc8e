"""``python -m workbench.zoo``: build the shipped models, list the shipped files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench.errors import WorkbenchError
from workbench.zoo.architectures import NAMES
from workbench.zoo.build import STEPS, build
from workbench.zoo.manifest import manifest

app = typer.Typer(help="The shipped models and their world.", add_completion=False)


@app.command("build")
def build_command(
    name: Annotated[str, typer.Argument(help=f"{', '.join(NAMES)} or all")] = "all",
    out: Annotated[Path, typer.Option(help="Where the model's folder goes.")] = Path("data/models"),
    steps: Annotated[
        int | None, typer.Option(help=f"Training steps; by default {STEPS}.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides weights and training text.")] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder to save to and continue from.")
    ] = None,
) -> None:
    """Train, measure and write one model or all; about 45 minutes each on one core."""
    for chosen in NAMES if name == "all" else (name,):
        saved = checkpoint / f"{chosen}-{steps or STEPS[chosen]}-{seed}" if checkpoint else None
        print(build(chosen, out, steps=steps, seed=seed, threads=threads, checkpoint=saved))


@app.command("saes")
def saes_command(
    name: Annotated[str, typer.Argument(help="The shipped model.")] = "reasoner",
    out: Annotated[Path, typer.Option(help="Where the dictionaries' folder goes.")] = Path(
        "data/saes"
    ),
    seed: Annotated[int, typer.Option(help="Decides weights and training text.")] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder to save to and continue from.")
    ] = None,
) -> None:
    """Train, measure and write the dictionaries of a model; minutes each on one core."""
    from workbench.zoo.saes import build_saes

    print(build_saes(name, out, seed=seed, threads=threads, checkpoint=checkpoint))


@app.command("manifest")
def manifest_command(
    data: Annotated[Path, typer.Option(help="The folder of shipped files.")] = Path("data"),
) -> None:
    """Write data/README.md: origin, licence and checksum of every shipped file."""
    (data / "README.md").write_text(manifest(data), "utf-8")


def main() -> None:
    """Run the command; an error of the user's is one line."""
    try:
        app(prog_name="python -m workbench.zoo")
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

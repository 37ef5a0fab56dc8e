"""Runs every benchmark in a process of its own and rewrites RESULTS.md: `make bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from tests.benchmarks import measure

NAMES = ("engine", "live", "branches", "startup", "widgets", "steering", "locate", "sae")
RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Measured speed

Written by `make bench` ({when}). CPU time on one thread, fp32, medians of alternating runs in one
process; what each key means stands at the top of the benchmark's own file. Where a key has several
cases its value is the worst of them.

Machine: {machine}. {versions}.
"""


def result(name: str, options: list[str]) -> dict[str, Any]:
    """What one benchmark said in its last line."""
    command = [sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.{name}", "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def page(results: list[dict[str, Any]]) -> str:
    """RESULTS.md."""
    versions = ", ".join(f"{name} {v}" for name, v in results[0]["versions"].items())
    machine = results[0]["machine"]
    head = HEAD.format(when=date.today().isoformat(), machine=machine, versions=versions)
    return "\n".join([head, *(measure.table(r["name"], r["figures"]) + "\n" for r in results)])


if __name__ == "__main__":
    options = [a for a in sys.argv[1:] if a == "--quick"]
    results = [result(name, options) for name in NAMES]
    RESULTS.write_text(page(results), "utf-8")
    sys.exit(not all(r["ok"] for r in results))

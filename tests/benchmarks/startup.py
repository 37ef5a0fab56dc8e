"""Start-up in fresh processes, taking turns. CPU seconds of the process.

import_s  `import workbench`, less an empty Python
load      `import workbench` and `wb.load("reasoner")` with its proof, over importing torch and
          transformers and reading the same model and tokenizer with `from_pretrained`
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from tests.benchmarks import measure
from tests.benchmarks.measure import Figure

CLOCK = "import time; print(time.process_time())"
PROGRAMS = {
    "empty": CLOCK,
    "import": f"import workbench; {CLOCK}",
    "ours": f"import workbench as wb; wb.load('reasoner'); {CLOCK}",
    "theirs": "import torch, transformers, workbench; "
    "from transformers import AutoModelForCausalLM, AutoTokenizer; "
    "p = str(workbench.data_path() / 'models' / 'reasoner'); "
    f"AutoModelForCausalLM.from_pretrained(p).eval(); AutoTokenizer.from_pretrained(p); {CLOCK}",
}


def seconds(program: str) -> float:
    """CPU time from the start of a fresh interpreter to the end of the program."""
    command = [sys.executable, "-c", "import os; os.environ['OMP_NUM_THREADS'] = '1'\n" + program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measured(quick: bool) -> dict[str, Figure]:
    """Both figures."""
    rounds = 2 if quick else 7
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for program in PROGRAMS.values():
        seconds(program)
    for r in range(rounds):
        names = list(PROGRAMS)
        for name in names[r % len(names) :] + names[: r % len(names)]:
            times[name].append(seconds(PROGRAMS[name]))
    imported = statistics.median(
        a - b for a, b in zip(times["import"], times["empty"], strict=True)
    )
    load = measure.worst({"reasoner": measure.ratio(times, "ours", "theirs")}, 1.3)
    load.detail.update({k: round(statistics.median(v), 3) for k, v in times.items()})
    return {"import_s": Figure(round(imported, 4), 0.3, "lower", "s"), "load": load}


if __name__ == "__main__":
    quick, _ = measure.asked()
    sys.exit(not measure.report("startup", measured(quick)))

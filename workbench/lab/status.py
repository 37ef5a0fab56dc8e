"""What the model worker does, as a text table; what `%wb status` and `%wb cancel` print.

`workbench.worker.jobs()`, `history` and `cancel(key)` are the same as objects.
"""

from __future__ import annotations

from collections.abc import Hashable

from workbench import worker
from workbench.catalogue import as_text
from workbench.errors import unknown
from workbench.lab.devices import as_words, devices

LAST = 5
NOTHING = "nothing runs or waits"
ERROR_WIDTH = 60


def status() -> str:
    """Jobs that run and wait, the last ones that ended with their times in ms, and every device."""
    running = worker.jobs()
    jobs = [*running, *list(worker.history)[-LAST:]]
    rows = [("job", "key", "state", "progress", "ms"), *map(_row, jobs)]
    said = [as_text(rows)] if jobs else []
    said += [] if running else [NOTHING]
    return "\n".join([*said, *(f"{device.name}: {as_words(device)}" for device in devices())])


def cancel(key: str | None = None) -> str:
    """Cancel the jobs whose key reads `key` in the table of `status`, or all of them.

    Raises:
        UnknownName: nothing of that key runs or waits.
    """
    jobs = worker.jobs()
    hit = [job for job in jobs if key in (None, shown(job.key))]
    if not jobs:
        return NOTHING
    if not hit:
        raise unknown("%wb cancel", "key", key, [shown(job.key) for job in jobs])
    for found in {job.key for job in hit}:
        worker.cancel(found)
    return f"cancelled: {', '.join(job.label for job in hit)}"


def shown(key: Hashable) -> str:
    """A key as one word that can be typed."""
    return ":".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _row(job: worker.Job | worker.Ended) -> tuple[str, ...]:
    progress = f"{job.i}/{job.n} {job.note}".rstrip() if job.n else ""
    took = f"{job.took_ms:.0f}" if job.took_ms else ""
    state = f"error: {job.error}"[:ERROR_WIDTH] if job.error else job.state
    return (job.label, shown(job.key), state, progress, took)

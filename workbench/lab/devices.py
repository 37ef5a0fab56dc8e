"""Where models can run and how much memory is free there; moving the models of a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from workbench import worker
from workbench.errors import unknown
from workbench.model.load import checked_device
from workbench.model.model import Model

GIB = 2**30
KINDS = ("cpu", "cuda", "mps")  # torch knows more; moved to "meta", a model would lose its weights


@dataclass(frozen=True)
class Device:
    """A place to run.

    Attributes:
        name: what `wb.load(device=)` and `Model.to` take.
        kind: the hardware's name.
        free_gib, total_gib: its memory.
    """

    name: str
    kind: str
    free_gib: float
    total_gib: float


def devices() -> list[Device]:
    """The CPU, then every accelerator that torch sees."""
    memory = psutil.virtual_memory()
    found = [
        Device("cpu", f"{psutil.cpu_count()} cores", memory.available / GIB, memory.total / GIB)
    ]
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        kind = torch.cuda.get_device_name(i)
        found.append(Device(f"cuda:{i}", kind, free / GIB, total / GIB))
    if torch.backends.mps.is_available():  # shares the machine's memory
        found.append(Device("mps", "Apple GPU", memory.available / GIB, memory.total / GIB))
    return found


def as_words(device: Device) -> str:
    """`2 cores, 3.1 of 7.8 GiB free`."""
    return f"{device.kind}, {device.free_gib:.1f} of {device.total_gib:.1f} GiB free"


def models(namespace: Mapping[str, Any]) -> dict[str, Model]:
    """The models among a notebook's variables, by name; a model with two names is there twice."""
    # IPython keeps earlier outputs as _, __ and _12: another name of what the user names himself
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, Model) and not name.startswith("_")
    }


def describe(namespace: Mapping[str, Any]) -> str:
    """Every device with its free memory, and where the notebook's models are."""
    lines = [f"{device.name}: {as_words(device)}" for device in devices()]
    found = models(namespace).items()
    return "\n".join([*lines, *(f"{name} ({m.name}) is on {m.device}" for name, m in found)])


def move(namespace: Mapping[str, Any], device: str) -> str:
    """Move every model among a notebook's variables to `device`, and say which.

    It waits its turn on the worker's thread, so that no widget computes with the model meanwhile.

    Raises:
        UnknownName, DeviceUnavailable: no such device; nothing has moved then.
    """
    if device.partition(":")[0] not in KINDS:
        raise unknown("%wb device", "device", device, [known.name for known in devices()])
    checked_device(device)
    found = models(namespace)
    job = worker.submit(
        lambda _: [model.to(device) for model in set(found.values())],
        key="device",
        label=f"move to {device}",
    )
    job.result()
    if not found:
        return f"no variable of this notebook holds a model; load one with device={device!r}"
    return "\n".join(f"{name} ({m.name}) is now on {m.device}" for name, m in found.items())

"""Settings of the whole test run. Fixtures live in tests/tiny.py."""

from __future__ import annotations

import os
from pathlib import Path

# Nothing may reach for a network, and two runner processes share two cores.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    WANDB_MODE="disabled",
    DO_NOT_TRACK="1",
    JUPYTER_PLATFORM_DIRS="1",
    WORKBENCH_HEADLESS="1",
)

pytest_plugins = ("tests.tiny",) if Path(__file__).with_name("tiny.py").exists() else ()


def pytest_configure() -> None:
    """One torch thread: with two, tiny matrix products wait on each other for milliseconds."""
    import torch

    torch.set_num_threads(1)

"""Times the fits of steering-vectors and repeng for `python -m tests.benchmarks.steering`.

Runs in .venv-peers as a process of its own: `timing.py FOLDER`, where the folder holds a model, its
`tokenizer.json`, `pairs.json` and their `batch`. For every name that comes in on a line it fits once and
answers with a line `{"seconds": CPU time, "vectors": a row per layer}`.
"""

from __future__ import annotations

import io
import json
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from repeng import ControlVector, DatasetEntry
from steering_vectors import train_steering_vector
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def steering_vectors(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> list[list[float]]:
    """Mean difference of all layers at the library's defaults."""
    rows = train_steering_vector(model, tokenizer, pairs).layer_activations
    return [rows[y].tolist() for y in sorted(rows)]


def repeng(
    model: Any, tokenizer: Any, pairs: list[tuple[str, str]], batch: int
) -> list[list[float]]:
    """PCA of all layers; its default method at a given batch size."""
    entries = [DatasetEntry(positive=a, negative=b) for a, b in pairs]
    layers = list(range(model.config.num_hidden_layers))
    rows = ControlVector.train(
        model, tokenizer, entries, hidden_layers=layers, batch_size=batch
    ).directions
    return [rows[y].tolist() for y in layers]


def main(folder: Path) -> None:
    """Answer until the other side closes the line."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # without token types, which GPT-2 would add to its embeddings
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="<pad>",
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
    job = json.loads((folder / "pairs.json").read_text("utf-8"))
    pairs = [tuple(pair) for pair in job["pairs"]]
    runs = {
        "warm": lambda: steering_vectors(model, tokenizer, pairs[:4]),
        "steering_vectors": lambda: steering_vectors(model, tokenizer, pairs),
        "repeng": lambda: repeng(model, tokenizer, pairs, job["batch"]),
    }
    for line in sys.stdin:
        start = time.process_time()
        with redirect_stderr(io.StringIO()):  # its progress bars
            vectors = runs[line.strip()]()
        seconds = time.process_time() - start
        print(json.dumps({"seconds": seconds, "vectors": vectors}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

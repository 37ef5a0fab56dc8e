"""What steering-vectors and repeng make of the shipped model and fixed pairs: `make peers` runs this.

It runs in .venv-peers, where the workbench is not installed, and writes `data/golden/steering/`:
`vectors.safetensors` with a `[layer, d]` tensor per method, and `about.json` with the pairs, versions
and the meaning of each row. `tests/parity/test_steering_peers.py` compares ours with them.

Row conventions, which differ:
    steering-vectors  row l is read from the output of block l: `L{l}.resid_post`, l = 0 to n - 1
    repeng            row l is `hidden_states[l + 1]`, which is `L{l}.resid_post` below the last block and,
                      as transformers hands it out, the *final norm's output* for the last. Its
                      default leaves layer 0 out; here it is asked for.
"""

from __future__ import annotations

import json
import random
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from repeng import ControlVector, DatasetEntry
from safetensors.torch import save_file
from steering_vectors import train_steering_vector
from steering_vectors.aggregators import logistic_aggregator, mean_aggregator, pca_aggregator
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
MODEL, OUT = ROOT / "data" / "models" / "reasoner", ROOT / "data" / "golden" / "steering"
N_PAIRS, BATCH = 64, 32
AGGREGATORS = {"mean": mean_aggregator, "logistic": logistic_aggregator, "pca": pca_aggregator}


def pairs(seed: int = 0) -> list[tuple[str, str]]:
    """A right and a wrong sum each. The first half has one length, the second does not."""
    draw = random.Random(seed)
    found = []
    for i in range(N_PAIRS):
        top = 49 if i < N_PAIRS // 2 else 499
        a, b = (draw.randint(10 if top == 49 else 1, top) for _ in range(2))
        wrong = a + b + draw.choice([-2, -1, 1, 2])
        found.append((f"{a}+{b}={a + b}", f"{a}+{b}={wrong}"))
    return found


def loaded() -> tuple[Any, Any]:
    """The shipped model as transformers 4 understands it.

    Transformers 5 wrote the folder: there the rotary base lies deeper in the configuration, where
    version 4 overlooks it without a word, and the tokenizer's class has a new name.
    """
    written = json.loads((MODEL / "config.json").read_text("utf-8"))
    config = LlamaConfig.from_pretrained(MODEL, **written["rope_parameters"])
    model = AutoModelForCausalLM.from_pretrained(MODEL, config=config, dtype=torch.float32)
    tokens = json.loads((MODEL / "tokenizer_config.json").read_text("utf-8"))
    special = {k: v for k, v in tokens.items() if k.endswith("_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(MODEL / "tokenizer.json"), padding_side="right", **special
    )
    return model.eval(), tokenizer


def steering_vectors(model: Any, tokenizer: Any, data: list[tuple[str, str]]) -> dict[str, Any]:
    """Rows by method, its defaults beside the batch size."""
    found = {}
    for name, aggregator in AGGREGATORS.items():
        vector = train_steering_vector(
            model, tokenizer, data, aggregator=aggregator(), batch_size=BATCH
        )
        rows = vector.layer_activations
        found[f"steering_vectors.{name}"] = torch.stack([rows[y] for y in sorted(rows)])
    return found


def repeng(model: Any, tokenizer: Any, data: list[tuple[str, str]]) -> dict[str, Any]:
    """Rows by method; every layer is asked for."""
    entries = [DatasetEntry(positive=a, negative=b) for a, b in data]
    layers, found = list(range(model.config.num_hidden_layers)), {}
    for name in ("pca_diff", "pca_center"):
        vector = ControlVector.train(
            model, tokenizer, entries, method=name, hidden_layers=layers, batch_size=BATCH
        )
        rows = np.stack([vector.directions[y] for y in layers])
        found[f"repeng.{name}"] = torch.from_numpy(rows)
    return found


@torch.no_grad()
def last_logits(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """What shows that both sides ran the same model."""
    return model(**tokenizer(text, return_tensors="pt")).logits[0, -1].clone()


def main() -> None:
    """Write the golden files."""
    torch.set_num_threads(1)
    model, tokenizer = loaded()
    data = pairs()
    tensors = steering_vectors(model, tokenizer, data) | repeng(model, tokenizer, data)
    tensors["last_logits"] = last_logits(model, tokenizer, data[0][0])
    OUT.mkdir(parents=True, exist_ok=True)
    kept = {name: t.float().contiguous() for name, t in tensors.items()}
    save_file(kept, OUT / "vectors.safetensors")
    (OUT / "vectors.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    names = ("steering-vectors", "repeng", "transformers", "torch", "numpy", "scikit-learn")
    about = {
        "model": "reasoner",
        "versions": {name: metadata.version(name).partition("+")[0] for name in names},
        "rows": {
            "steering_vectors": "row l: output of block l (L{l}.resid_post)",
            "repeng": "row l: hidden_states[l + 1] (L{l}.resid_post; last row: final_norm)",
        },
        "last_logits_of": data[0][0],
        "pairs": data,
    }
    (OUT / "about.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    sys.stdout.write(f"{OUT.relative_to(ROOT)}: {', '.join(kept)}\n")


if __name__ == "__main__":
    main()

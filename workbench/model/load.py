"""`wb.load`: a shipped model, a local folder, a hub name, or a module in memory, under one wrapper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench import data_path
from workbench.errors import DeviceUnavailable, FileRefused, WorkbenchError, unknown
from workbench.model import backends, layouts
from workbench.model.model import Model
from workbench.model.proof import prove


def load(
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    backend: str = "transformers",
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    proof: bool = True,
    trust_remote_code: bool = False,
    **options: Any,
) -> Model:
    """Load a model and prove its sites.

    Args:
        model: a shipped name ("reasoner", "reasoner-moe"), a local folder, a Hugging Face hub name
            (downloads, and only then), or a module already in memory.
        tokenizer: needed with a module in memory; otherwise read beside the weights.
        backend: "transformers", "transformer_lens" or "nnsight".
        device: "cpu", "cuda", "cuda:1", "mps"; by default CUDA where there is one, else the CPU. A
            module in memory stays where it is.
        dtype: e.g. "bfloat16"; by default as stored. The module is put into eval mode.
        proof: check every site once (about fifteen forwards of ten tokens).
        trust_remote_code: run code that a hub model ships. Off: such a model is refused.
        options: passed to `from_pretrained`, e.g. `device_map="auto"`, `quantization_config=...`.

    Raises:
        WorkbenchError: unknown model or backend, no network, remote code not allowed.
        FileRefused: a corrupt file or a pickle.
        DeviceUnavailable: a device this machine lacks.
        ProofFailed: a site that does not hold what its name promises.
    """
    where = f"wb.load({model!r})" if isinstance(model, str) else "wb.load"
    if isinstance(model, nn.Module):
        hf, name = _unwrapped(model, tokenizer), getattr(model.config, "_name_or_path", "")
        if options:
            raise WorkbenchError(
                where,
                "options are for from_pretrained, and this module is loaded already",
                expected="device and dtype at most",
                got=sorted(options),
                do="leave them out",
            )
        hf = hf if device is None else hf.to(checked_device(device))
        hf = hf if dtype is None else hf.to(checked_dtype(dtype))
    else:
        hf, tokenizer, name = _read(
            where, str(model), tokenizer, device, dtype, trust_remote_code, options
        )
    hf.eval()
    layout, dims = layouts.find(hf), layouts.dims(hf.config)
    made = backends.make(backend, hf, layout, dims, tokenizer)
    source = model if isinstance(model, str) else None
    wrapped = Model(hf, tokenizer, layout, dims, made, name or "in-memory", source)
    if proof:
        wrapped.proof = prove(made, dims, wrapped.device, hf.config.model_type)
    return wrapped


def shipped() -> list[str]:
    """Names of the models in data/models."""
    folder = data_path() / "models"
    return sorted(p.parent.name for p in folder.glob("*/config.json"))


def checked_device(device: str | None) -> torch.device:
    """The device asked for, or the default one.

    Raises:
        DeviceUnavailable: this machine does not have it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise unknown("wb.load(device=)", "device", device, ("cpu", "cuda", "mps")) from None
    if asked.type not in ("cpu", "cuda", "mps"):  # on "meta" the weights would be gone
        raise unknown("wb.load(device=)", "device", device, ("cpu", "cuda", "mps"))
    count = torch.cuda.device_count() if asked.type == "cuda" else 1
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not have.get(asked.type, True) or (asked.index or 0) >= count:
        raise DeviceUnavailable(
            f"wb.load(device={device!r})",
            "this machine has no such device",
            expected="cpu" + "".join(f", {k}" for k, v in have.items() if v),
            got=device,
            do="leave device out to take the best there is",
        )
    return asked


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The floating-point type of that name.

    Raises:
        UnknownName: torch has no such type.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise unknown("wb.load(dtype=)", "dtype", dtype, ("float32", "bfloat16", "float16"))
    return found


def _read(
    where: str,
    name: str,
    tokenizer: Any,
    device: str | None,
    dtype: str | torch.dtype | None,
    trust: bool,
    options: dict[str, Any],
) -> tuple[nn.Module, Any, str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = None if "device_map" in options else checked_device(device)
    folder = data_path() / "models" / name
    source = str(folder) if (folder / "config.json").exists() else str(Path(name).expanduser())
    if Path(source).is_dir():
        options = {**options, "local_files_only": True}
        _refuse_pickles(where, Path(source))
    with _in_words(where, name), _quiet():
        hf = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=checked_dtype(dtype) if dtype else "auto",
            trust_remote_code=trust,
            use_safetensors=True,
            **options,
        )
        local = {k: v for k, v in options.items() if k in ("local_files_only", "revision", "token")}
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust, **local
        )
    return (hf if target is None else hf.to(target)), tokenizer, name


def _refuse_pickles(where: str, folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = [p.name for s in ("*.bin", "*.pt", "*.pth", "*.pkl") for p in folder.glob(s)]
    raise FileRefused(
        where,
        "holds no safetensors" + (", only pickles, which can run code" if pickles else ""),
        expected="*.safetensors with config.json",
        got=pickles or sorted(p.name for p in folder.iterdir())[:5],
        do="convert with save_pretrained(safe_serialization=True) where you trust the file",
    )


@contextmanager
def _in_words(where: str, name: str) -> Iterator[None]:
    """Library errors of a failed load as one clear line each."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise FileRefused(
            where,
            "a weight file is corrupt or half-written",
            expected="whole safetensors files",
            got=str(error),
            do="copy or download it again",
        ) from error
    except (OSError, ValueError) as error:
        text = str(error).split("\n")[0]
        if "trust_remote_code" in str(error):
            raise WorkbenchError(
                where,
                "wants to run code that comes with the model",
                expected="a model without remote code",
                got=text,
                do="read that code, then pass trust_remote_code=True",
            ) from error
        raise WorkbenchError(
            where,
            "cannot be found or read",
            expected=f"a shipped model {shipped()}, a folder with config.json and safetensors, or a "
            "hub name with a network",
            got=text or name,
            do="check the name, the folder, or the connection",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own bar for shards: loading has one line, ours."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _unwrapped(module: nn.Module, tokenizer: Any) -> nn.Module:
    """The causal language model itself: adapters of peft live inside it and stay.

    Raises:
        WorkbenchError: no tokenizer, or an adapter that works outside the module (prompt learning).
    """
    if tokenizer is None:
        raise WorkbenchError(
            "wb.load(module)",
            "a module in memory comes without a tokenizer",
            expected="wb.load(module, tokenizer)",
            got="no tokenizer",
            do="pass the tokenizer",
        )
    if not hasattr(module, "peft_config"):
        return module
    if any(c.is_prompt_learning for c in module.peft_config.values()):
        raise WorkbenchError(
            "wb.load(peft model)",
            "prompt learning adds virtual tokens outside the module, which would shift every position",
            expected="LoRA or another adapter inside the modules",
            got=[str(c.peft_type) for c in module.peft_config.values()],
            do="merge it, or use LoRA",
        )
    base = getattr(module, "get_base_model", lambda: module)
    return base()

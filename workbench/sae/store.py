"""Load and save dictionaries in SAELens' own format, and refuse those that do not fit.

    dictionary = sae.load("reasoner/L3.resid_post-512", model=model)       # shipped, in data/saes
    dictionary = sae.load("my/folder", model=model)                        # cfg.json, sae_weights.safetensors
    dictionary = sae.load("gpt2-small-res-jb", "blocks.7.hook_resid_pre", model=model)  # a hub release

What is saved here SAELens loads, and back: our own facts stand in the configuration's metadata.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from workbench import data_path, sites
from workbench.errors import FileRefused, WorkbenchError
from workbench.files import write_atomically
from workbench.model.load import checked_device, checked_dtype
from workbench.sae.dictionary import Dictionary
from workbench.sae.fitting import check_fits
from workbench.sae.library import sae_lens
from workbench.tensors import Fingerprint

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
STATISTICS = ("expected_average_only_in", "covariance_whitening")
"""Normalisations whose numbers are estimated in training and folded into the weights when it ends."""


def load(
    source: str | Path,
    sae_id: str | None = None,
    *,
    model: Any = None,
    site: str | None = None,
    device: str | None = None,
    dtype: str | torch.dtype = "float32",
    norm_scale: float | int | None = None,
    force: bool = False,
) -> Dictionary:
    """A trained dictionary.

    Args:
        source: a shipped name (`shipped()` lists them), a folder in SAELens' format, or a release of
            SAELens' directory or the hub (downloads, and only then).
        sae_id: which one of a release.
        model: the model it is for; its width, depth, site and name are then checked.
        site: what it reads, where its file does not say, or says it in words unknown here.
        device: the model's own by default.
        dtype: of its weights.
        norm_scale: the factor that activations were multiplied by in training, where the file says
            that there was one and not which.
        force: load it for another model or site than it was made for.

    Raises:
        FileRefused: no such folder, half a folder, a pickle, an unknown architecture, NaN weights, or
            normalisation statistics that are missing.
        WorkbenchError: it does not fit the model, see `workbench.sae.fitting`; SAELens is not installed.
    """
    where = f"sae.load({str(source)!r})"
    at = model.device if model is not None and device is None else checked_device(device)
    kept = str(checked_dtype(dtype)).removeprefix("torch.")
    folder = _folder(source)
    if folder is None:
        found = _read_release(where, str(source), sae_id, str(at), kept)
    else:
        found = _read_folder(where, folder, str(at), kept)
    _normalised(where, found, norm_scale)
    _finite(where, found)
    facts = found.cfg.metadata
    ours = facts.get("workbench") or {}
    reads = site or ours.get("site") or _site(where, facts.hook_name)
    writes = ours.get("target") or (
        _site(where, facts.hook_name_out) if facts.hook_name_out else ""
    )
    name = f"{source}/{sae_id}" if folder is None else _name(folder)
    dictionary = Dictionary(found.eval(), reads, writes or reads, _trained_on(facts), name)
    if model is not None:
        check_fits(dictionary, model, where, force=force)
    return dictionary


def save(dictionary: Dictionary, folder: str | Path) -> Path:
    """Write it in SAELens' format; its weights last and whole, so that half a folder never loads.

    Raises:
        FileRefused: the folder holds something else.
    """
    from safetensors.torch import save as to_bytes

    path = Path(folder)
    if path.exists() and any(path.iterdir()) and not (path / CONFIG).exists():
        raise FileRefused(
            f"sae.save({str(folder)!r})",
            "holds something else",
            expected="a new folder, or one of a dictionary",
            got=sorted(p.name for p in path.iterdir())[:3],
            do="choose another folder",
        )
    state = {k: v.detach().cpu().contiguous() for k, v in dictionary.sae.state_dict().items()}
    dictionary.sae.process_state_dict_for_saving(state)
    config = dictionary.sae.cfg.to_dict() | {"device": "cpu"}
    config["metadata"] = config["metadata"] | {
        "hook_name": sites.tl_name(dictionary.site),
        "model_name": dictionary.model.name if dictionary.model else None,
        "workbench": {
            "site": dictionary.site,
            "target": dictionary.target,
            "model": asdict(dictionary.model) if dictionary.model else None,
        },
    }
    (path / WEIGHTS).unlink(missing_ok=True)
    write_atomically(path / CONFIG, json.dumps(config, indent=1).encode())
    write_atomically(path / WEIGHTS, to_bytes(state))
    return path


def shipped() -> list[str]:
    """Names of the dictionaries in data/saes: model, site and width."""
    root = data_path() / "saes"
    return sorted(str(p.parent.relative_to(root)) for p in root.glob("*/*/" + CONFIG))


def _folder(source: str | Path) -> Path | None:
    """The folder that `source` names: a shipped dictionary's or a local one; None for a release."""
    inside = data_path() / "saes" / str(source)
    for path in (inside, Path(source).expanduser()):
        if path.is_dir():
            return path
    return None


def _name(folder: Path) -> str:
    root = data_path() / "saes"
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else folder.name


def _read_folder(where: str, folder: Path, device: str, dtype: str) -> Any:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileRefused(
                where,
                f"has no {name}",
                expected=f"{CONFIG} and {WEIGHTS}, as SAELens writes them",
                got=sorted(p.name for p in folder.iterdir())[:5],
                do="save it with SAELens or sae.save; pickles are not read",
            )
    return _in_words(
        where, lambda: sae_lens().SAE.load_from_disk(folder, device=device, dtype=dtype)
    )


def _read_release(where: str, release: str, sae_id: str | None, device: str, dtype: str) -> Any:
    if sae_id is None:
        raise FileRefused(
            where,
            "is no folder here",
            expected=f"a folder, one of {shipped()}, or a release with its sae_id",
            got=release,
            do="say sae.load(release, sae_id), or check the path",
        )
    lens = sae_lens()
    return _in_words(
        where, lambda: lens.SAE.from_pretrained(release, sae_id, device=device, dtype=dtype)
    )


def _in_words(where: str, read: Any) -> Any:
    """SAELens' many ways to fail, as one error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except WorkbenchError:
        raise
    except Exception as error:  # whatever its loaders, safetensors or the hub raise
        raise FileRefused(
            where,
            "SAELens cannot load it",
            expected="a dictionary of an architecture that SAELens knows",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            do="check the files and names; a hub release needs a network",
        ) from error


def _normalised(where: str, sae: Any, scale: float | int | None) -> None:
    """Fold a scale that was estimated in training, or refuse to do without."""
    kind = sae.cfg.normalize_activations
    if kind not in STATISTICS:
        return
    if scale is None or kind != STATISTICS[0]:
        raise FileRefused(
            where,
            f"was trained on activations normalised by {kind!r}, and the numbers for it are missing",
            expected="a dictionary with its normalisation folded in, or norm_scale=",
            got="neither",
            do="save it after training has ended, or give the factor as norm_scale=",
        )
    sae.fold_activation_norm_scaling_factor(float(scale))


def _finite(where: str, sae: Any) -> None:
    for name, value in sae.state_dict().items():
        if not bool(value.isfinite().all()):
            raise FileRefused(
                where,
                f"{name} holds NaN or infinity",
                expected="finite weights",
                got=f"{int((~value.isfinite()).sum())} of {value.numel()} numbers",
                do="train it again, with a smaller learning rate",
            )


_MODULE = re.compile(r"^(?:model\.)?(?:model\.layers|transformer\.h|gpt_neox\.layers)\.(\d+)$")


def _site(where: str, hook: str | None) -> str:
    """The site of a hook in either dialect, TransformerLens' or the path of a Hugging Face module."""
    module = _MODULE.match(hook or "")
    text = f"L{module[1]}.resid_post" if module else (hook or "")
    try:
        return str(sites.parse(text, 10**6)[0])
    except WorkbenchError:
        raise FileRefused(
            where,
            "does not say in words known here what it reads",
            expected="a hook such as blocks.3.hook_resid_post or model.layers.3",
            got=repr(hook),
            do="say site='L3.resid_post'",
        ) from None


def _trained_on(facts: Any) -> Fingerprint | None:
    ours = (facts.get("workbench") or {}).get("model")
    if ours:
        return Fingerprint(**ours)
    return Fingerprint(facts.model_name, "", 0, 0, "") if facts.model_name else None

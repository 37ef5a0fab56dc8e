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
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from workbench import data_path, sites
from workbench.errors import FileRefused, WorkbenchError
from workbench.files import refuse_pickle, write_atomically
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
        sae_id: which one of a release, or of a folder that holds several.
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
        WorkbenchError: it does not fit the model, see `workbench.sae.fitting`; a `norm_scale` that it
            has no use for; SAELens is not installed.
    """
    where = f"sae.load({str(source)!r})"
    at = model.device if model is not None and device is None else checked_device(device)
    kept = str(checked_dtype(dtype)).removeprefix("torch.")
    folder = _folder(source)
    if folder is not None and sae_id:
        folder /= sae_id
    if folder is None and Path(source).expanduser().is_file():
        raise _no_folder(where, Path(source).expanduser())
    if folder is None:
        found = _read_release(where, str(source), sae_id, str(at), kept)
    else:
        found = _read_folder(where, folder, str(at), kept)
    _normalised(where, found, norm_scale)
    _finite(where, found)
    # rows come flat here, heads side by side; SAELens would flatten them once more
    found.turn_off_forward_pass_hook_z_reshaping()
    facts = found.cfg.metadata
    reads, writes = _places(where, facts, site, force)
    name = f"{source}/{sae_id}" if folder is None else _name(folder)
    dictionary = Dictionary(found.eval(), reads, writes, _trained_on(where, facts), name)
    if model is not None:
        check_fits(dictionary, model, where, force=force)
    return dictionary


def save(dictionary: Dictionary, folder: str | Path, *, half: bool = False) -> Path:
    """Write it in SAELens' format; its weights last and whole, so that half a folder never loads.

    Args:
        half: store float16, at half the size. The configuration goes on to say what it computes in, so
            it loads in that here and in SAELens.

    Raises:
        FileRefused: the folder holds something else.
        WorkbenchError: `half`, and a weight is beyond what float16 can hold.
    """
    from safetensors.torch import save as to_bytes

    path = Path(folder).expanduser()
    _writable(f"sae.save({str(folder)!r})", path)
    state = {k: v.detach().cpu().contiguous() for k, v in dictionary.sae.state_dict().items()}
    dictionary.sae.process_state_dict_for_saving(state)
    if half:
        state = {name: _halved(name, value) for name, value in state.items()}
    config = dictionary.sae.cfg.to_dict() | {"device": "cpu"}
    config["metadata"] = config["metadata"] | _said(dictionary)
    (path / WEIGHTS).unlink(missing_ok=True)
    write_atomically(path / CONFIG, json.dumps(config, indent=1).encode())
    write_atomically(path / WEIGHTS, to_bytes(state))
    return path


def _writable(where: str, path: Path) -> None:
    held = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    checkpoints = [name for name in held if name.lstrip(".").startswith("checkpoint-")]
    if path.is_file() or (held and CONFIG not in held and held != checkpoints):
        raise FileRefused(
            where,
            "is a file" if path.is_file() else "holds something else",
            expected="a new folder, or one of a dictionary",
            got=held[:3] or path.name,
            do="choose another folder",
        )


def _halved(name: str, value: torch.Tensor) -> torch.Tensor:
    half = value.half()
    if not bool(half.isfinite().all()):
        raise WorkbenchError(
            "sae.save(half=True)",
            f"{name} is beyond what float16 can hold",
            expected="numbers within 65504",
            got=float(value.abs().max()),
            do="save it in full",
        )
    return half


def _said(dictionary: Dictionary) -> dict[str, Any]:
    """What the metadata says of a dictionary: SAELens' words, and ours beside them."""
    facts = dictionary.sae.cfg.metadata
    model = dictionary.model
    said: dict[str, Any] = {
        # a Hugging Face path stays one, for SAELens on Hugging Face models
        "hook_name": _same_hook(facts.hook_name, dictionary.site),
        "model_name": model.name if model else facts.model_name,
        "workbench": _ours(facts)
        | {
            "site": dictionary.site,
            "target": dictionary.target,
            "model": asdict(model) if model else None,
        },
    }
    if dictionary.target != dictionary.site:
        said["hook_name_out"] = _same_hook(facts.hook_name_out, dictionary.target)
    return said


def _same_hook(hook: str | None, site: str) -> str:
    """The name it came with where that means this site, or TransformerLens' name."""
    try:
        same = hook is not None and _site("", hook) == site
    except FileRefused:
        same = False
    return hook if same and hook is not None else sites.tl_name(site)


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


def _no_folder(where: str, file: Path) -> FileRefused:
    refuse_pickle(file)
    return FileRefused(
        where,
        "is a file",
        expected=f"the folder with {CONFIG} and {WEIGHTS}",
        got=file.name,
        do="give the folder that it is in",
    )


def _read_folder(where: str, folder: Path, device: str, dtype: str) -> Any:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileRefused(
                where,
                f"has no {name}",
                expected=f"{CONFIG} and {WEIGHTS}, as SAELens writes them",
                got=sorted(p.name for p in folder.glob("*"))[:5],
                do="save it with SAELens or sae.save; pickles and unfinished trainings are not read",
            )
    refuse_pickle(folder / WEIGHTS)
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
    """Fold a scale that was estimated in training, or refuse to do without, or with one too many."""
    kind = sae.cfg.normalize_activations
    if scale is not None and (kind != STATISTICS[0] or not 0 < scale < float("inf")):
        raise WorkbenchError(
            f"{where[:-1]}, norm_scale={scale})",
            "is no scale that this dictionary takes",
            expected=f"a factor above 0, for activations normalised by {STATISTICS[0]!r}",
            got=f"{scale}, for {kind!r}",
            do="leave norm_scale= out, or check the number",
        )
    if kind not in STATISTICS:
        return
    if scale is None:
        raise FileRefused(
            where,
            f"was trained on activations normalised by {kind!r}, and the numbers for it are missing",
            expected="a dictionary with its normalisation folded in",
            got="neither folded nor given",
            do=f"save it after training has ended, or give a {STATISTICS[0]!r} factor as norm_scale=",
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


def _places(where: str, facts: Any, site: str | None, force: bool) -> tuple[str, str]:
    """The sites that it reads and reconstructs.

    Raises:
        FileRefused: its file says neither, or another site than `site` and `force` is False.
    """
    ours = _ours(facts)
    said = ours.get("site") or (_site(where, facts.hook_name) if not site else "")
    if site and not said and facts.hook_name:
        with suppress(FileRefused):
            said = _site(where, facts.hook_name)
    asked = _site(where, site) if site else said
    if said and asked != said and not force:
        raise FileRefused(
            where,
            "was made for another site",
            expected=said,
            got=asked,
            do="leave site= out, or say force=True to read the other one with it all the same",
        )
    out = facts.hook_name_out
    target = ours.get("target") or (_site(where, out) if out else said)
    return asked, asked if target in ("", said) else target


_BLOCK = re.compile(r"^(?:\w+\.)*(?:layers|h|blocks)\.(\d+)$")
_PATH = re.compile(r"^\w+(?:\.\w+)+$")


def _site(where: str, hook: str | None) -> str:
    """The site of a hook in either dialect, TransformerLens' or the path of a Hugging Face module."""
    module = _BLOCK.match(hook or "")
    text = f"L{module[1]}.resid_post" if module else (hook or "")
    try:
        # a pattern of layers would be a million sites
        found = [] if "*" in text else sites.parse(text, 10**6)
    except WorkbenchError:
        found = []
        if _PATH.match(text) and "hook_" not in text and not text.startswith("L"):
            found = sites.parse(f"hf:{text}:out", 10**6)
    if len(found) != 1:
        raise FileRefused(
            where,
            "does not say in words known here what it reads",
            expected="a hook such as blocks.3.hook_resid_post or model.layers.3",
            got=repr(hook),
            do="say site='L3.resid_post'",
        )
    return str(found[0])


def _ours(facts: Any) -> dict[str, Any]:
    """What we wrote into the metadata."""
    found = facts.get("workbench")
    return found if isinstance(found, dict) else {}


def _trained_on(where: str, facts: Any) -> Fingerprint | None:
    ours = _ours(facts).get("model")
    if not ours:
        return Fingerprint(facts.model_name, "", 0, 0, "") if facts.model_name else None
    try:
        return Fingerprint(**ours)
    except TypeError as error:
        raise FileRefused(
            where,
            "does not say in words known here which model it was trained on",
            expected="the fields of a fingerprint",
            got=str(error),
            do=f"delete metadata.workbench.model in its {CONFIG}",
        ) from None

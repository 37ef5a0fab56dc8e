"""Vectors to and from other tools: GGUF control vectors, steering-vectors, plain safetensors.

    edit = import_vectors("happy.gguf", operation="add", site="resid_post", layer_base=0)
    export_gguf(edit, "happy.gguf")                     # for llama.cpp, repeng
    SteeringVector(**to_steering_vectors(edit))         # for steering-vectors

A file of vectors does not say what is done with them: one tool adds what another projects out, one
layer apart. So importing wants the operation, the part of a block and the number of the first
block, unless the file was exported here, which says all three. Layers here count from 0.

llama.cpp, repeng: `direction.N` is added to what block N leaves, blocks counted from 0: the loader
    stores it at N - 1 and the graph reads there for block N. Block 0 has no name. So
    operation="add", site="resid_post", layer_base=0. Sources: common_control_vector_load_one and
    llama_adapter_cvec in https://github.com/ggml-org/llama.cpp, export_gguf in
    https://github.com/vgel/repeng.
steering-vectors: `layer_activations[N]` at block N from 0, at the output of the module that
    `layer_type` names; the operation is chosen when it is applied.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_bytes
from torch import Tensor

from workbench import sites
from workbench.errors import EditError, FileRefused, unknown
from workbench.files import refuse_pickle, write_atomically
from workbench.interventions import store
from workbench.tensors import Fingerprint, Intervention

OPERATIONS = ("add", "ablate")
ARCHITECTURES = ("controlvector", "steervector")
"""What GGUF files of vectors call themselves: llama.cpp and repeng, EasySteer."""
MODULES = {
    "decoder_block": "resid_post",
    "self_attn": "attn_out",
    "mlp": "mlp_out",
    "input_layernorm": "attn_norm_out",
}
"""Parts by steering-vectors' names of modules."""
_KEY = "workbench_vectors"
_MANY_LAYERS = 100_000


def import_vectors(
    path: str | Path,
    *,
    operation: str | None = None,
    site: str | None = None,
    layer_base: int | None = None,
    model: Fingerprint | None = None,
) -> Intervention:
    """The edit of a file with one vector per layer, `.gguf` or `.safetensors`.

    Args:
        path: the file. In safetensors each name holds one number, such as `layer.7`.
        operation: "add" the vectors, or "ablate" their directions.
        site: the part of a block, such as "resid_post".
        layer_base: what the file calls block 0: 0, or 1 where it counts blocks from 1.
        model: which model it is for, such as `model.fingerprint`; None fits any of its width.

    A file of `wb.save_edit` says all that itself and comes back as the edit it is.

    Raises:
        FileRefused: no such file, a pickle, another format, vectors that are not floating point,
            finite and of one width, two for one layer, a file whose operation, site or layer base
            nobody named, or one that names another than is asked for.
        UnknownName: no such operation or part.
    """
    path = Path(path)
    refuse_pickle(path)
    numbered, header = _read(path)
    asked = {"operation": operation, "site": site, "layer_base": layer_base}
    if header is not None and "format" in header:
        return _whole(path, asked)
    said = _agreed(path, header, asked)
    edit = from_vectors(numbered, **said, model=model, where=f"import_vectors({str(path)!r})")
    return _described(path, edit, header, model)


def from_vectors(
    vectors: Mapping[int, Tensor],
    *,
    operation: str,
    site: str,
    layer_base: int,
    model: Fingerprint | None = None,
    where: str = "from_vectors",
) -> Intervention:
    """The edit that adds or ablates `vectors`, one `[d]` per number.

    Raises:
        UnknownName: no such operation or part.
        FileRefused: no vectors, another shape, NaN, a zero vector to ablate, or a number below the
            layer base.
    """
    if operation not in OPERATIONS:
        raise unknown(f"{where}, operation", "operation", operation, OPERATIONS)
    parts = [name for name, part in sites.PARTS.items() if part.in_block]
    if site not in parts:
        raise unknown(f"{where}, site", "part of a block", site, parts)
    ready = _checked(where, vectors, operation, layer_base)
    added = operation == "add"
    tensors = {
        f"L{number - layer_base}.{site}": {"shift": v}
        if added
        else {"down": v[None], "up": -v[None]}
        for number, v in sorted(ready.items())
    }
    return Intervention(
        "custom",
        "affine",
        tensors,
        unit="multiples of the imported vectors" if added else "fraction of the component removed",
        params={} if added else {"max_strength": 1.0},
        model=model,
        name=f"imported {operation}",
    )


def export_gguf(edit: Intervention, path: str | Path) -> Path:
    """Write an addition after blocks 1 and up as a GGUF control vector, times its strength.

    Raises:
        EditError: the edit does more than add, acts before a block's end, at block 0, or in a
            scope: llama.cpp would silently do something else.
    """
    operation, part, vectors = _plain(edit, "export_gguf")
    wrong = {
        "llama.cpp adds control vectors": operation != "add",
        "llama.cpp adds them where a block ends": part != "resid_post",
        "direction.0 does not exist: block 0 takes none": 0 in vectors,
    }
    for reason in (reason for reason, found in wrong.items() if found):
        raise _refused(edit, "export_gguf", reason, "additions at L1.resid_post and up")
    path = Path(path)
    refuse_pickle(path)
    write_atomically(path, _gguf_bytes(edit, vectors, _header(edit, operation, part)))
    return path


def export_safetensors(edit: Intervention, path: str | Path) -> Path:
    """Write an addition or an ablation as plain tensors `layer.N`, blocks counted from 0.

    Other tools read the tensors; the metadata says what they are for, for whoever looks.
    `wb.save_edit` keeps everything about any edit.

    Raises:
        EditError: the edit is no addition and no ablation, or vectors alone cannot say it.
    """
    operation, part, vectors = _plain(edit, "export_safetensors")
    path = Path(path)
    refuse_pickle(path)
    header = {_KEY: json.dumps(_header(edit, operation, part))}
    write_atomically(path, save_bytes({f"layer.{n}": v for n, v in vectors.items()}, header))
    return path


def to_steering_vectors(edit: Intervention) -> dict[str, Any]:
    """Arguments of `steering_vectors.SteeringVector`: `layer_activations` and `layer_type`.

    Its `apply` adds by default; give it an ablation operator for an ablation.

    Raises:
        EditError: vectors alone cannot say the edit, or no module of theirs is its site.
    """
    _, part, vectors = _plain(edit, "to_steering_vectors")
    modules = {ours: theirs for theirs, ours in MODULES.items()}
    if part not in modules:
        reason = "steering-vectors has no such module"
        raise _refused(edit, "to_steering_vectors", reason, f"one of {list(modules)}")
    return {"layer_activations": vectors, "layer_type": modules[part]}


def from_steering_vectors(
    vector: Any, *, operation: str, model: Fingerprint | None = None
) -> Intervention:
    """The edit of a `steering_vectors.SteeringVector`, or of a dict of its two fields.

    Its saved files are pickles and are not read; the object in memory is.

    Args:
        operation: what you apply it with: "add", or "ablate".

    Raises:
        FileRefused: it has no `layer_activations`, or they cannot be used.
        UnknownName: no such operation, or a `layer_type` whose place depends on the architecture.
    """
    fields = vector if isinstance(vector, Mapping) else vars(vector)
    module = fields.get("layer_type", "decoder_block")
    if module not in MODULES:
        raise unknown("from_steering_vectors(layer_type)", "module", module, MODULES)
    return from_vectors(
        dict(fields.get("layer_activations", {})),
        operation=operation,
        site=MODULES[module],
        layer_base=0,
        model=model,
        where="from_steering_vectors",
    )


# --- reading -------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[int, Tensor], dict[str, Any] | None]:
    """Vectors by number, and what the file says about them."""
    where = f"import_vectors({str(path)!r})"
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        named, text = _read_gguf(path) if is_gguf else _read_safetensors(path)
        header = json.loads(text) if text else None
    except OSError as reason:
        raise _unreadable(where, f"cannot be read ({reason.strerror})", path.name) from None
    except (SafetensorError, ValueError, IndexError, KeyError, TypeError, OverflowError) as reason:
        if isinstance(reason, FileRefused):
            raise
        raise _unreadable(where, f"is corrupt or half-written ({reason})", path.name) from None
    if isinstance(header, dict) and "format" in header:
        return {}, header
    if header is not None and not _is_header(header):
        raise _unreadable(where, "is corrupt: what it says about its vectors is no header", header)
    numbered = {_number(where, name): tensor for name, tensor in named.items()}
    if len(numbered) < len(named):
        raise _unreadable(where, "holds two vectors for one layer", sorted(named))
    return numbered, header


def _whole(path: Path, asked: Mapping[str, Any]) -> Intervention:
    """A saved edit, which nothing may be asked of: it is more than vectors."""
    named = {key: value for key, value in asked.items() if value is not None}
    if named:
        raise FileRefused(
            f"import_vectors({str(path)!r})",
            "is a whole edit, which says itself what is done with it",
            expected="no operation, site or layer_base",
            got=named,
            do="leave them out; another use of its vectors is from_vectors(...)",
        )
    return store.load(path)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str]:
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        text = about.get(_KEY) or about.get("workbench") or ""
        return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118


def _read_gguf(path: Path) -> tuple[dict[str, Tensor], str]:
    from gguf import GGMLQuantizationType, GGUFReader

    reader = GGUFReader(path)
    fields = {
        key: reader.fields[key] for key in ("general.architecture", _KEY) if key in reader.fields
    }
    said = {key: str(field.contents()) for key, field in fields.items()}
    where = f"import_vectors({str(path)!r})"
    if said.get("general.architecture") not in ARCHITECTURES:
        got = said.get("general.architecture", "no architecture")
        raise _unreadable(where, "is a GGUF file of something else than a control vector", got)
    for tensor in reader.tensors:
        if tensor.tensor_type != GGMLQuantizationType.F32 or not tensor.name.startswith(
            "direction."
        ):
            got = f"{tensor.name} of {tensor.tensor_type.name}"
            raise _unreadable(where, "holds a tensor that is no direction in float32", got)
    named = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    return named, said.get(_KEY, "")


def _is_header(header: Any) -> bool:
    if not isinstance(header, dict):
        return False
    texts = all(isinstance(header.get(key), str) for key in ("operation", "site"))
    return texts and isinstance(header.get("layer_base"), int)


def _number(where: str, name: str) -> int:
    numbers = re.findall(r"\d+", name)
    if len(numbers) != 1:
        raise _unreadable(where, "a tensor's name does not say its layer", name)
    return int(numbers[0])


def _agreed(path: Path, header: dict[str, Any] | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Operation, site and layer base, from the file or from who asks."""
    where = f"import_vectors({str(path)!r})"
    known = {key: header.get(key) for key in asked} if header else dict.fromkeys(asked)
    for key, value in asked.items():
        if None not in (value, known[key]) and value != known[key]:
            raise FileRefused(
                where,
                f"says {key}={known[key]!r} of itself",
                expected=repr(known[key]),
                got=repr(value),
                do=f"leave {key} out; another use of the vectors is from_vectors(...)",
            )
    said = {key: known[key] if value is None else value for key, value in asked.items()}
    missing = [key for key, value in said.items() if value is None]
    if missing:
        raise FileRefused(
            where,
            "is a file without its operation: the same vectors are added by one tool and projected "
            "out by another, one layer apart",
            expected=", ".join(f"{key}=..." for key in missing),
            got=asked | {"file": "says nothing"},
            do="name them; for llama.cpp and repeng they are operation='add', "
            "site='resid_post', layer_base=0",
        )
    return said


def _described(
    path: Path, edit: Intervention, header: dict[str, Any] | None, model: Fingerprint | None
) -> Intervention:
    if header is None:
        return edit
    try:
        made_on = Fingerprint(**header["model"]) if header["model"] else None
        return Intervention(
            header["method"],
            edit.operation,
            edit.tensors,
            unit=header["unit"],
            params=edit.params,
            model=model or made_on,
            name=header["name"],
        )
    except (KeyError, TypeError) as reason:
        raise _unreadable(
            f"import_vectors({str(path)!r})", f"is corrupt ({reason})", header
        ) from None


def _checked(
    where: str, vectors: Mapping[int, Tensor], operation: str, layer_base: int
) -> dict[int, Tensor]:
    """Vectors as `[d]` in float32 of their own memory; of length 1 where they are ablated."""
    for vector in vectors.values():
        if not vector.is_floating_point():
            raise _unreadable(where, "holds numbers that are not floating point", vector.dtype)
    ready = {n: v.detach().cpu().squeeze().float().clone() for n, v in vectors.items()}
    shapes = {tuple(v.shape) for v in ready.values()}
    faults = {
        "holds no vectors": not ready,
        "holds vectors of several shapes": len(shapes) > 1,
        "holds something that is no vector": any(len(shape) != 1 for shape in shapes),
        "holds NaN or infinite values": not all(bool(v.isfinite().all()) for v in ready.values()),
        "holds a zero vector, which has no direction": operation == "ablate"
        and not all(bool(v.any()) for v in ready.values()),
        f"has a layer below its layer base {layer_base}": any(n < layer_base for n in ready),
    }
    for wrong in (fault for fault, found in faults.items() if found):
        raise _unreadable(where, wrong, f"layers {sorted(ready)}, shapes {sorted(shapes)}")
    if operation == "add":
        return ready
    return {n: (v.double() / v.double().norm()).float() for n, v in ready.items()}


def _unreadable(where: str, wrong: str, got: object) -> FileRefused:
    return FileRefused(
        where,
        wrong,
        expected="one vector per layer, in a .safetensors or a GGUF control vector file",
        got=got,
        do="check where the file comes from, or export it again",
    )


# --- writing -------------------------------------------------------------------------------------


def _plain(edit: Intervention, where: str) -> tuple[str, str, dict[int, Tensor]]:
    """Operation, part and one vector per block of an edit that vectors alone can say."""
    found = [sites.parse(text, _MANY_LAYERS) for text in edit.sites if "*" not in text]
    named = [one[0] for one in found if len(one) == 1]
    parts = {site.part for site in named}
    ablates = _is_ablation(edit)
    wrong = {
        "has a strength per row": isinstance(edit.strength, Tensor),
        "neither adds nor ablates": not (edit.is_addition or ablates),
        "ablates by a part": ablates and edit.strength != 1,
        "acts in a scope, which vectors cannot say": str(edit.scope) != "all",
        "acts at sites of several kinds": len(parts) != 1 or len(named) < len(edit.sites),
        "acts at a part of a site": any(site.selectors or site.layer is None for site in named),
        "acts at one site twice": len(set(named)) < len(named),
        "holds NaN or infinite values": not all(
            bool(t.isfinite().all()) for group in edit.tensors.values() for t in group.values()
        ),
    }
    for reason in (reason for reason, found in wrong.items() if found):
        raise _refused(edit, where, reason, "an addition or a full ablation after some blocks")
    vectors = {}
    for site, tensors in zip(named, edit.tensors.values(), strict=True):
        assert site.layer is not None
        whole = tensors["down"][0] if ablates else float(edit.strength) * tensors["shift"]
        vectors[site.layer] = whole.detach().cpu().float().contiguous().clone()
    return "ablate" if ablates else "add", parts.pop(), vectors


def _is_ablation(edit: Intervention) -> bool:
    """Whether it removes one direction per site and does nothing else."""
    plain = edit.operation == "affine" and "stepwise" not in edit.params
    return plain and all(
        set(t) == {"up", "down"}
        and len(t["up"]) == 1
        and torch.equal(t["up"], -t["down"])
        and abs(float(t["down"].double().norm()) - 1) < 1e-3
        for t in edit.tensors.values()
    )


def _header(edit: Intervention, operation: str, part: str) -> dict[str, Any]:
    return {
        "operation": operation,
        "site": part,
        "layer_base": 0,
        "method": edit.method,
        "unit": edit.unit if edit.strength == 1 else "multiples of the exported vectors",
        "name": edit.name,
        "model": asdict(edit.model) if edit.model else None,
    }


def _gguf_bytes(edit: Intervention, vectors: Mapping[int, Tensor], header: dict[str, Any]) -> bytes:
    from gguf import GGUFWriter

    arch = ARCHITECTURES[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.gguf"
        writer = GGUFWriter(file, arch)
        writer.add_string(f"{arch}.model_hint", edit.model.family if edit.model else "")
        writer.add_uint32(f"{arch}.layer_count", len(vectors))
        writer.add_string(_KEY, json.dumps(header))
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


def _refused(edit: Intervention, where: str, wrong: str, expected: str) -> EditError:
    return EditError(
        f"{where}({edit.label})",
        wrong,
        expected=expected,
        got=repr(edit),
        do="use edit.only(...) or edit.within('all'), or wb.save_edit, which keeps everything",
    )

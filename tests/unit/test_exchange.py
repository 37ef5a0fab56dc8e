"""Vectors of other tools come in with an operation, a site and a layer base, and go out again."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.errors import EditError, FileRefused, UnknownName
from workbench.interventions.exchange import (
    export_gguf,
    export_safetensors,
    from_steering_vectors,
    from_vectors,
    import_vectors,
    to_steering_vectors,
)
from workbench.tensors import Fingerprint, Intervention

D = 32
MODEL = Fingerprint("a", "llama", D, 3, "0")
LLAMA_CPP: dict[str, Any] = {"operation": "add", "site": "resid_post", "layer_base": 0}
TWICE = 2 * torch.eye(D)[:1]


def draw(seed: int, d: int = D) -> Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def addition(sites: tuple[str, ...] = ("L1.resid_post", "L2.resid_post"), **fields: Any):
    tensors = {s: {"shift": draw(i)} for i, s in enumerate(sites)}
    said: dict[str, Any] = {"model": MODEL, "name": "happy", "unit": "smiles", **fields}
    return Intervention("mean_difference", "affine", tensors, **said)


def ablation(sites: tuple[str, ...] = ("L0.resid_post", "L2.resid_post"), **fields: Any):
    units = {s: torch.nn.functional.normalize(draw(i), dim=0)[None] for i, s in enumerate(sites)}
    tensors = {s: {"down": r, "up": -r} for s, r in units.items()}
    return Intervention("directional_ablation", "affine", tensors, model=MODEL, **fields)


def gguf_by_hand(vectors: dict[str, np.ndarray], architecture: str = "controlvector") -> bytes:
    """A version 3 GGUF file, written from the format's description and not by its library."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    meta = text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    infos, data = b"", b""
    for name, values in vectors.items():
        kind = {"float32": 0, "float16": 1}[str(values.dtype)]
        dims = b"".join(struct.pack("<Q", n) for n in reversed(values.shape))
        infos += text(name) + struct.pack("<I", values.ndim) + dims
        infos += struct.pack("<IQ", kind, len(data))
        data += values.tobytes() + b"\0" * (-values.nbytes % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(vectors), 1) + meta + infos
    return head + b"\0" * (-len(head) % 32) + data


def gguf_file(folder: Path, vectors: dict[str, np.ndarray], **options: Any) -> Path:
    (folder / "theirs.gguf").write_bytes(gguf_by_hand(vectors, **options))
    return folder / "theirs.gguf"


THREE = {f"direction.{n}": draw(n).numpy() for n in (1, 2)}


# --- GGUF ----------------------------------------------------------------------------------------


def test_a_control_vector_of_llama_cpp_is_added_after_the_block_it_names(tmp_path) -> None:
    edit = import_vectors(gguf_file(tmp_path, THREE), **LLAMA_CPP)
    assert edit.sites == ("L1.resid_post", "L2.resid_post")
    for n in (1, 2):
        assert torch.equal(edit.tensors[f"L{n}.resid_post"]["shift"], draw(n))
    model = tiny.model("llama")
    options: dict[str, Any] = dict(record=["L0.resid_post", "L1.resid_post"])
    plain, edited = (model.run("12+3=", edits=e, **options) for e in ([], [edit]))
    assert torch.equal(plain["L0.resid_post"], edited["L0.resid_post"])
    moved = edited["L1.resid_post"] - plain["L1.resid_post"]
    torch.testing.assert_close(moved, draw(1).expand_as(moved), atol=1e-5, rtol=1e-5)


def test_a_golden_file_of_their_own_library_reads_the_same(tmp_path) -> None:
    """Written as repeng writes it: `GGUFWriter`, its keys, a tensor per layer."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "golden.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 2)
    for name, vector in THREE.items():
        writer.add_tensor(name, vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = import_vectors(tmp_path / "golden.gguf", **LLAMA_CPP)
    ours = import_vectors(gguf_file(tmp_path, THREE), **LLAMA_CPP)
    for site, tensors in theirs.tensors.items():
        assert torch.equal(tensors["shift"], ours.tensors[site]["shift"])


def test_what_we_export_their_library_reads(tmp_path) -> None:
    import gguf

    path = export_gguf(addition().at(-0.5), tmp_path / "out.gguf")
    reader = gguf.GGUFReader(path)
    kept = {key: reader.fields[key].contents() for key in reader.fields}
    assert kept["general.architecture"] == "controlvector"
    assert kept["controlvector.model_hint"] == "llama" and kept["controlvector.layer_count"] == 2
    found = {t.name: t.data for t in reader.tensors}
    assert set(found) == {"direction.1", "direction.2"}
    np.testing.assert_array_equal(found["direction.2"], (-0.5 * draw(1)).numpy())
    assert found["direction.1"].dtype == np.float32


@pytest.mark.parametrize("export", [export_gguf, export_safetensors])
def test_our_own_files_come_back_as_they_were(export: Any, tmp_path) -> None:
    suffix = "gguf" if export is export_gguf else "safetensors"
    edit = addition()
    back = import_vectors(export(edit, tmp_path / f"out.{suffix}"))
    assert back.sites == edit.sites and back.model == edit.model
    assert (back.method, back.unit, back.name) == (edit.method, edit.unit, edit.name)
    assert back.strength == 1.0 and back.operation == "affine"
    for site, tensors in edit.tensors.items():
        assert torch.equal(back.tensors[site]["shift"], tensors["shift"])


def test_a_strength_goes_into_the_vectors(tmp_path) -> None:
    back = import_vectors(export_gguf(addition().at(3.0), tmp_path / "out.gguf"))
    assert torch.equal(back.tensors["L1.resid_post"]["shift"], 3 * draw(0))
    assert back.unit == "multiples of the exported vectors"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (ablation(("L1.resid_post",)), "llama.cpp adds control vectors"),
        (addition(("L1.mlp_out",)), "where a block ends"),
        (addition(("L0.resid_post", "L1.resid_post")), "block 0 takes none"),
        (addition().within("generated"), "scope"),
        (addition().at(torch.ones(2)), "strength per row"),
        (addition(("L1.resid_post", "L2.mlp_out")), "several kinds"),
        (addition(("L*.resid_post",)), "several kinds"),
        (addition(("L1.resid_post[pos=2]",)), "part of a site"),
        (Intervention("custom", "set", {"L1.resid_post": {"value": draw(1)}}), "neither adds"),
    ],
)
def test_what_llama_cpp_would_do_differently_is_refused(
    edit: Intervention, said: str, tmp_path
) -> None:
    with pytest.raises(EditError, match=said):
        export_gguf(edit, tmp_path / "out.gguf")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("export", [export_gguf, export_safetensors, to_steering_vectors])
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (addition(params={"stepwise": "rebalance"}), "neither adds nor ablates"),
        (addition(("L1-2.resid_post",)), "several kinds"),
        (addition(("L1.resid_post", "blocks.1.hook_resid_post")), "one site twice"),
        (
            Intervention("x", "affine", {"L1.resid_post": {"shift": torch.full((D,), torch.nan)}}),
            "NaN",
        ),
        (
            Intervention("x", "affine", {"L1.resid_post": {"down": TWICE, "up": -TWICE}}),
            "neither adds nor ablates",
        ),
    ],
    ids=["stepwise", "several layers", "twice", "nan", "more than the component"],
)
def test_what_vectors_cannot_say_is_refused(
    edit: Intervention, said: str, export: Any, tmp_path
) -> None:
    to = () if export is to_steering_vectors else (tmp_path / "out.gguf",)
    with pytest.raises(EditError, match=said):
        export(edit, *to)
    assert not any(tmp_path.iterdir())


def test_an_export_is_whole_or_not_there(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export_gguf(addition(), tmp_path / "out.gguf")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        export_gguf(addition().at(2.0), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# --- a file without its operation ----------------------------------------------------------------


@pytest.mark.parametrize("name", list(LLAMA_CPP))
def test_what_a_file_does_not_say_has_to_be_named(name: str, tmp_path) -> None:
    path = gguf_file(tmp_path, THREE)
    known = {k: v for k, v in LLAMA_CPP.items() if k != name}
    with pytest.raises(FileRefused, match=rf"without its operation.*expected {name}=\.\.\.;"):
        import_vectors(path, **known)


def test_nothing_named_lists_everything(tmp_path) -> None:
    with pytest.raises(FileRefused, match="operation=..., site=..., layer_base=...") as error:
        import_vectors(gguf_file(tmp_path, THREE))
    assert "operation='add'" in error.value.do


def test_the_layer_base_moves_every_vector(tmp_path) -> None:
    edit = import_vectors(gguf_file(tmp_path, THREE), **LLAMA_CPP | {"layer_base": 1})
    assert torch.equal(edit.tensors["L0.resid_post"]["shift"], draw(1))
    assert edit.sites == ("L0.resid_post", "L1.resid_post")


def test_the_same_file_ablates_where_that_is_asked(tmp_path) -> None:
    edit = import_vectors(gguf_file(tmp_path, THREE), **LLAMA_CPP | {"operation": "ablate"})
    options: dict[str, Any] = dict(record=["L2.resid_post"], edits=[edit])
    reached = tiny.model("llama").run("12+3=", **options)["L2.resid_post"] @ draw(2)
    assert reached.abs().max() < 1e-4
    assert edit.params["max_strength"] == 1.0


def test_a_file_that_says_what_it_is_is_not_overruled(tmp_path) -> None:
    path = export_gguf(addition(), tmp_path / "out.gguf")
    with pytest.raises(FileRefused, match="operation='add' of itself.*got 'ablate'"):
        import_vectors(path, operation="ablate")
    assert import_vectors(path, operation="add").sites == addition().sites


def test_a_file_of_a_whole_edit_is_that_edit(tmp_path) -> None:
    edit = addition().within("generated").at(2.0)
    back = import_vectors(wb.save_edit(edit, tmp_path / "edit.safetensors"))
    assert str(back.scope) == "generated" and back.strength == 2.0


@pytest.mark.parametrize(
    "asked", [{"operation": "ablate"}, {"site": "mlp_out"}, {"layer_base": 1}, LLAMA_CPP]
)
def test_a_file_of_a_whole_edit_is_not_overruled(asked: dict[str, Any], tmp_path) -> None:
    path = wb.save_edit(addition().within("generated"), tmp_path / "edit.safetensors")
    with pytest.raises(FileRefused, match="whole edit.*leave them out"):
        import_vectors(path, **asked)


@pytest.mark.parametrize(
    ("key", "value"), [("operation", "project"), ("site", "resid"), ("site", "embed")]
)
def test_an_unknown_name_is_said(key: str, value: str, tmp_path) -> None:
    with pytest.raises(UnknownName, match=value):
        import_vectors(gguf_file(tmp_path, THREE), **LLAMA_CPP | {key: value})


# --- bad files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "options", "said"),
    [
        (THREE, {"architecture": "llama"}, "something else than a control vector"),
        ({"direction.1": draw(1).half().numpy()}, {}, "no direction in float32"),
        ({"layer.1": draw(1).numpy()}, {}, "no direction in float32"),
        ({"direction.one": draw(1).numpy()}, {}, "does not say its layer"),
        ({}, {}, "holds no vectors"),
        ({"direction.1": draw(1).numpy(), "direction.2": draw(2, 5).numpy()}, {}, "several shapes"),
        ({"direction.1": draw(1).reshape(4, 8).numpy()}, {}, "no vector"),
        ({"direction.1": np.full(D, np.nan, np.float32)}, {}, "NaN"),
    ],
)  # fmt: skip
def test_a_wrong_gguf_file_is_refused(vectors: Any, options: Any, said: str, tmp_path) -> None:
    with pytest.raises(FileRefused, match=said):
        import_vectors(gguf_file(tmp_path, vectors, **options), **LLAMA_CPP)


def test_a_file_cut_anywhere_is_refused_or_says_nothing_false(tmp_path) -> None:
    whole = gguf_by_hand(THREE)
    path = tmp_path / "cut.gguf"
    for size in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(FileRefused):
            import_vectors(path, **LLAMA_CPP)


def test_a_layer_below_the_base_and_a_zero_direction_are_refused(tmp_path) -> None:
    zero = {"direction.0": np.zeros(D, np.float32)}
    with pytest.raises(FileRefused, match="below its layer base 1"):
        import_vectors(gguf_file(tmp_path, zero), **LLAMA_CPP | {"layer_base": 1})
    with pytest.raises(FileRefused, match="no direction"):
        import_vectors(gguf_file(tmp_path, zero), **LLAMA_CPP | {"operation": "ablate"})


def test_pickles_and_missing_files_are_refused(tmp_path) -> None:
    torch.save({1: draw(1)}, tmp_path / "vector.pt")
    torch.save({1: draw(1)}, tmp_path / "vector.safetensors")
    for name in ("vector.pt", "vector.safetensors"):
        with pytest.raises(FileRefused, match="pickle"):
            import_vectors(tmp_path / name, **LLAMA_CPP)
    with pytest.raises(FileRefused, match="cannot be read"):
        import_vectors(tmp_path / "none.gguf", **LLAMA_CPP)
    (tmp_path / "text.safetensors").write_text("hello, this is no tensor")
    with pytest.raises(FileRefused, match="corrupt"):
        import_vectors(tmp_path / "text.safetensors", **LLAMA_CPP)
    for export in (export_gguf, export_safetensors):
        with pytest.raises(FileRefused, match="pickle"):
            export(addition(), tmp_path / "out.pt")


@pytest.mark.parametrize(
    "said",
    [{**LLAMA_CPP, "method": "x"}, {**LLAMA_CPP, "layer_base": "0"}, {}, [], "add", 3],
)
def test_a_header_of_ours_that_was_tampered_with_is_refused(said: Any, tmp_path) -> None:
    about = {"workbench_vectors": json.dumps(said)}
    save_file({"layer.1": draw(1)}, tmp_path / "bad.safetensors", about)
    with pytest.raises(FileRefused, match="corrupt"):
        import_vectors(tmp_path / "bad.safetensors")


# --- safetensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer.{}", "layers.{}.direction", "{}", "model.layers.{}"])
def test_plain_safetensors_name_their_layers(name: str, tmp_path) -> None:
    tensors = {name.format(n): draw(n)[None] for n in (0, 10, 2)}
    save_file(tensors, tmp_path / "plain.safetensors")
    edit = import_vectors(tmp_path / "plain.safetensors", **LLAMA_CPP | {"site": "mlp_out"})
    assert edit.sites == ("L0.mlp_out", "L2.mlp_out", "L10.mlp_out")
    assert torch.equal(edit.tensors["L10.mlp_out"]["shift"], draw(10))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"old.1": draw(1), "new.1": draw(2)}, "two vectors for one layer.*new.1.*old.1"),
        ({"layer.1": torch.ones(D, dtype=torch.int64)}, "not floating point.*int64"),
    ],
)
def test_vectors_that_are_none_or_too_many_are_refused(
    tensors: dict[str, Tensor], said: str, tmp_path
) -> None:
    save_file(tensors, tmp_path / "plain.safetensors")
    with pytest.raises(FileRefused, match=said):
        import_vectors(tmp_path / "plain.safetensors", **LLAMA_CPP)


def test_a_name_with_two_numbers_says_nothing(tmp_path) -> None:
    save_file({"layers.1.head.2": draw(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(FileRefused, match="layers.1.head.2"):
        import_vectors(tmp_path / "plain.safetensors", **LLAMA_CPP)


def test_an_ablation_comes_back_as_one(tmp_path) -> None:
    edit = ablation()
    back = import_vectors(export_safetensors(edit, tmp_path / "out.safetensors"))
    for site, tensors in edit.tensors.items():
        torch.testing.assert_close(back.tensors[site]["down"], tensors["down"])
        assert torch.equal(back.tensors[site]["up"], -back.tensors[site]["down"])
    with pytest.raises(EditError, match="by a part"):
        export_safetensors(edit.at(0.5), tmp_path / "out.safetensors")


# --- steering-vectors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("decoder_block", "resid_post"), ("self_attn", "attn_out"), ("mlp", "mlp_out")],
)
def test_steering_vectors_go_there_and_back(theirs: str, ours: str) -> None:
    edit = addition((f"L0.{ours}", f"L2.{ours}")).at(0.5)
    fields = to_steering_vectors(edit)
    assert fields["layer_type"] == theirs
    assert torch.equal(fields["layer_activations"][2], 0.5 * draw(1))
    for vector in (fields, SimpleNamespace(**fields)):
        back = from_steering_vectors(vector, operation="add", model=MODEL)
        assert back.sites == edit.sites and back.model == MODEL
        for site, tensors in edit.tensors.items():
            assert torch.equal(back.tensors[site]["shift"], 0.5 * tensors["shift"])


def test_steering_vectors_share_no_memory() -> None:
    vectors = {1: draw(1)}
    edit = from_steering_vectors({"layer_activations": vectors}, operation="add")
    edit.tensors["L1.resid_post"]["shift"].zero_()
    assert torch.equal(vectors[1], draw(1))


def test_what_steering_vectors_cannot_say_is_refused() -> None:
    with pytest.raises(EditError, match="no such module"):
        to_steering_vectors(addition(("L1.resid_mid",)))
    with pytest.raises(UnknownName, match="post_attention_layernorm"):
        fields = {"layer_activations": {1: draw(1)}, "layer_type": "post_attention_layernorm"}
        from_steering_vectors(fields, operation="add")
    with pytest.raises(FileRefused, match="holds no vectors"):
        from_steering_vectors(SimpleNamespace(), operation="add")
    with pytest.raises(UnknownName, match="unknown operation"):
        from_vectors({1: draw(1)}, operation="push", site="resid_post", layer_base=0)

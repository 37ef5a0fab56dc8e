"""Interventions in files: exact round trips, and refusal in words of everything else."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from workbench.errors import EditError, FileRefused
from workbench.interventions.store import describe, load, save
from workbench.scopes import Scope
from workbench.tensors import Fingerprint, Intervention

EDIT = Intervention(
    "ace",
    "affine",
    {
        "L2.resid_post": {"down": torch.randn(1, 8), "up": torch.randn(1, 8)},
        "L3.z[head=1]": {"shift": torch.randn(8).to(torch.bfloat16)},
    },
    strength=-0.1,
    unit="fraction of the way to the target",
    scope=Scope.parse("prompt|generated-bos"),
    params={"alpha": 0.3, "list": [1, 2.5, "x"], "deep": {"none": None, "yes": True}},
    model=Fingerprint("reasoner", "llama", 8, 6, "abc"),
    name="mine ¿",
    conditional=True,
)


def same(a: Intervention, b: Intervention) -> None:
    assert replace(a, tensors={}) == replace(b, tensors={})
    assert list(a.tensors) == list(b.tensors)
    for site in a.tensors:
        assert set(a.tensors[site]) == set(b.tensors[site])
        for name, tensor in a.tensors[site].items():
            assert torch.equal(tensor, b.tensors[site][name])
            assert tensor.dtype == b.tensors[site][name].dtype


def test_everything_comes_back(tmp_path) -> None:
    same(load(save(EDIT, tmp_path / "deeper" / "edit.safetensors")), EDIT)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    strength=st.floats(allow_nan=False, allow_infinity=False),
    scope=st.sampled_from(
        ["all", "last_prompt", "span(2, 9)", "tokens({3, 'a'})-bos", "after(7)", "after('#')|bos"]
    ),
    name=st.text(max_size=20),
)
def test_any_strength_scope_and_name_come_back(tmp_path, strength, scope, name) -> None:
    edit = replace(EDIT, strength=strength, scope=Scope.parse(scope), name=name)
    same(load(save(edit, tmp_path / "edit.safetensors")), edit)


def test_other_tools_can_read_what_it_says(tmp_path) -> None:
    from safetensors import safe_open

    path = save(EDIT, tmp_path / "edit.safetensors")
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["workbench"])
        assert "L2.resid_post::down" in set(file.keys())
    assert header["operation"] == "affine"
    assert header["layer_index_base"] == 0
    assert header["scope"] == "prompt|generated-bos"
    assert header["unit"] == EDIT.unit
    assert header["model"]["d_model"] == 8


def test_saving_leaves_no_temporary_file_and_replaces_the_old_one(tmp_path) -> None:
    save(EDIT, tmp_path / "edit.safetensors")
    save(EDIT.at(3.0), tmp_path / "edit.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]
    assert load(tmp_path / "edit.safetensors").strength == 3.0


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = save(EDIT, tmp_path / "edit.safetensors")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(EDIT.at(9.0), path)
    assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]
    same(load(path), EDIT)


def test_tensors_that_share_memory_are_saved(tmp_path) -> None:
    vector = torch.randn(4, 8)
    edit = replace(EDIT, tensors={"L0.resid_post": {"shift": vector[1], "value": vector[1]}})
    same(load(save(edit, tmp_path / "edit.safetensors")), edit)


def test_a_strength_per_row_is_refused(tmp_path) -> None:
    with pytest.raises(EditError, match="one strength per row"):
        save(EDIT.at(torch.ones(3)), tmp_path / "edit.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.ones(2), float("nan"), object()])
def test_parameters_that_are_not_plain_are_refused(tmp_path, value) -> None:
    with pytest.raises(EditError, match="parameters that a file cannot hold"):
        save(replace(EDIT, params={"x": value}), tmp_path / "edit.safetensors")


@pytest.mark.parametrize("name", ["e.pt", "e.bin", "e.pkl", "e.pth", "e.ckpt"])
def test_pickles_are_refused_by_name(tmp_path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(FileRefused, match="is a pickle, which runs code"):
        load(tmp_path / name)
    with pytest.raises(FileRefused, match="is a pickle, which runs code"):
        save(EDIT, tmp_path / name)


def test_pickles_are_refused_by_content(tmp_path) -> None:
    hidden = tmp_path / "edit.safetensors"
    hidden.write_bytes(pickle.dumps({"shift": [1.0]}))
    with pytest.raises(FileRefused, match="pickle"):
        load(hidden)
    torch.save({"shift": torch.ones(2)}, tmp_path / "zip.safetensors")
    with pytest.raises(FileRefused, match="pickle"):
        load(tmp_path / "zip.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 20, 0.3, 0.9, -1])
def test_a_truncated_file_is_refused(tmp_path, keep) -> None:
    path = save(EDIT, tmp_path / "edit.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(FileRefused, match="corrupt or half-written"):
        load(path)


@pytest.mark.parametrize("junk", [b"hello, this is text", b"\x00" * 64, b"\xff" * 64])
def test_junk_is_refused(tmp_path, junk: bytes) -> None:
    path = tmp_path / "edit.safetensors"
    path.write_bytes(junk)
    with pytest.raises(FileRefused):
        load(path)


def test_tensors_without_their_operation_are_refused(tmp_path) -> None:
    save_file({"direction.3": torch.ones(8)}, tmp_path / "v.safetensors", {"made_by": "someone"})
    with pytest.raises(FileRefused, match="without its operation"):
        load(tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 99}, "another version"),
        ({"operation": "explode"}, "unknown operation"),
        ({"scope": "sometimes"}, "unknown scope"),
        ({"model": {"name": "x"}}, "missing"),
        ({"strength": "much"}, "corrupt"),
        ({"sites": []}, "belongs to no site"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, change, said: str) -> None:
    header = describe(EDIT) | change
    tensors = {f"{s}::{n}": t for s, group in EDIT.tensors.items() for n, t in group.items()}
    save_file(tensors, tmp_path / "e.safetensors", {"workbench": json.dumps(header)})
    with pytest.raises(FileRefused, match=said):
        load(tmp_path / "e.safetensors")


def test_a_file_that_holds_nan_is_refused(tmp_path) -> None:
    good = torch.tensor([1.0, 1.7320508])
    path = save(
        replace(EDIT, tensors={"L0.resid_post": {"shift": good}}), tmp_path / "e.safetensors"
    )
    whole, nan = good.numpy().tobytes(), torch.tensor([1.0, torch.nan]).numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(whole, nan))
    with pytest.raises(FileRefused, match="NaN"):
        load(path)


def test_an_edit_that_holds_nan_is_not_saved(tmp_path) -> None:
    bad = replace(EDIT, tensors={"L0.resid_post": {"shift": torch.tensor([1.0, torch.nan])}})
    with pytest.raises(EditError, match="holds NaN.*L0.resid_post::shift"):
        save(bad, tmp_path / "edit.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(FileRefused, match="No such file"):
        load(tmp_path / "nowhere.safetensors")


def test_no_header_length_makes_a_file_look_like_a_pickle(tmp_path) -> None:
    """A header of 0x380 or 0x480 bytes starts with the two bytes of a pickle."""
    seen = set()
    for length in range(0, 600, 8):
        path = save(EDIT.named("n" * length), tmp_path / "edit.safetensors")
        if path.read_bytes()[0] == 0x80:
            seen.add(path.read_bytes()[1])
            same(load(path), EDIT.named("n" * length))
    assert seen & {2, 3, 4, 5}

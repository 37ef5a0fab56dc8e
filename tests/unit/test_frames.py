"""Frames cross as bytes: what Python packs, Python and the browser read back."""

from __future__ import annotations

import base64
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench_widgets.frames import pack, unpack

ROOT = Path(__file__).parents[2]
READER = """
import { unpack } from './widgets/js/frames.js';
import { readFileSync } from 'node:fs';
const coded = (value) => {
  if (!ArrayBuffer.isView(value?.values)) return value;
  const { shape, values } = value;
  const bytes = Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64');
  return { shape, kind: values.constructor.name, bytes };
};
for (const line of readFileSync(0, 'utf8').split('\\n').filter(Boolean)) {
  // three bytes before it: what comes over a socket lies anywhere
  const raw = Buffer.from(line, 'base64'), held = new Uint8Array(raw.length + 3);
  held.set(raw, 3);
  const frame = unpack(new DataView(held.buffer, 3));
  console.log(JSON.stringify(Object.entries(frame).map(([name, value]) => [name, coded(value)])));
}
"""
KINDS = {
    "Float32Array": "<f4",
    "Int32Array": "<i4",
    "Uint16Array": "<u2",
    "Uint8Array": "<u1",
}

dtypes = st.sampled_from(["<f4", "<f2", "<i4", "<u2", "|u1"])
shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=20)
    | st.floats(-1e15, 1e15),  # JavaScript writes larger ones back as integers
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
names = st.text("abcdefgh_", min_size=1, max_size=6)
frames = st.dictionaries(names, arrays | plain, max_size=5)


def same(a: Any, b: Any) -> bool:
    """Equal, NaN to NaN, arrays with dtype and shape."""
    if isinstance(a, np.ndarray):
        floats = a.dtype.kind == "f"
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=floats)
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=150)
@given(frames)
def test_python_reads_what_it_packed(frame: dict[str, Any]) -> None:
    found = unpack(pack(frame))
    assert found.keys() == frame.keys()
    assert all(same(value, found[name]) for name, value in frame.items())


@settings(deadline=None, max_examples=100)
@given(frames)
def test_every_array_starts_at_a_multiple_of_eight(frame: dict[str, Any]) -> None:
    data = pack(frame)
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])
    assert len(data) % 8 == 0
    assert all(about["offset"] % 8 == 0 for about in header["arrays"].values())


def test_wide_numbers_are_narrowed_and_the_rest_refused() -> None:
    found = unpack(pack({"a": np.array([1.5]), "b": np.array([3]), "c": np.array([True])}))
    assert [found[k].dtype.str for k in "abc"] == ["<f4", "<i4", "|u1"]
    with pytest.raises(TypeError, match="complex"):
        pack({"a": np.array([1j])})


def test_a_plain_number_that_is_none_crosses_as_null() -> None:
    values = {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}}
    assert unpack(pack(values)) == {"a": None, "b": [None, 1.0], "c": {"d": None}}


# one process for a whole batch; to shrink would be to start hundreds
@settings(deadline=None, max_examples=4, phases=[Phase.generate])
@given(st.lists(frames, min_size=20, max_size=40))
def test_the_browser_reads_the_same(batch: list[dict[str, Any]]) -> None:
    if shutil.which("node") is None:
        pytest.skip("no node (tests/SKIPS.md)")
    lines = "\n".join(base64.b64encode(pack(frame)).decode() for frame in batch)
    done = subprocess.run(
        ["node", "--input-type=module", "-e", READER],
        input=lines, capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    for frame, line in zip(batch, done.stdout.split("\n")[:-1], strict=True):
        found = dict(json.loads(line))
        assert found.keys() == frame.keys()
        for name, value in frame.items():
            assert agrees(value, found[name]), (name, value, found[name])


def agrees(ours: Any, theirs: Any) -> bool:
    """Whether JavaScript holds the value that Python packed."""
    if not isinstance(ours, np.ndarray):
        return theirs == pytest.approx(ours) if isinstance(ours, float) else theirs == ours
    values = np.frombuffer(base64.b64decode(theirs["bytes"]), KINDS[theirs["kind"]])
    wide = ours.astype("<f4") if ours.dtype == "<f2" else ours
    floats = wide.dtype.kind == "f"
    return theirs["shape"] == list(ours.shape) and np.array_equal(
        values.reshape(ours.shape), wide, equal_nan=floats
    )

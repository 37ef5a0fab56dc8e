"""The two small languages: sites and scopes, read and written back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from workbench import sites
from workbench.model.positions import Frame
from workbench.scopes import Scope
from workbench.tensors import Intervention

PART = st.sampled_from(sorted(sites.PARTS))


@given(part=PART, layer=st.integers(0, 30), pos=st.integers(-9, 9), picked=st.booleans())
def test_a_site_reads_back_what_it_writes(part: str, layer: int, pos: int, picked: bool) -> None:
    about = sites.PARTS[part]
    can_pick = picked and ("pos" in about.axes or "q" in about.axes)
    text = (f"L{layer}." if about.in_block else "") + part + (f"[pos={pos}]" if can_pick else "")
    (site,) = sites.parse(text, 31)
    assert str(site) == text
    assert sites.parse(str(site), 31) == [site]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L*.resid_post", ["L0.resid_post", "L1.resid_post", "L2.resid_post"]),
        ("L1-2.z[head=1]", ["L1.z[head=1]", "L2.z[head=1]"]),
        ("L0.q[pos=2:4]", ["L0.q[pos=(2, 3,)]"]),
        ("blocks.2.attn.hook_z", ["L2.z"]),
        ("blocks.0.hook_resid_mid[pos=-1]", ["L0.resid_mid[pos=-1]"]),
        ("hook_embed", ["embed"]),
        ("ln_final.hook_out", ["final_norm"]),
        ("hf:model.layers.1.mlp.down_proj:in", ["hf:model.layers.1.mlp.down_proj:in"]),
    ],
)
def test_site_texts(text: str, expected: list[str]) -> None:
    assert [str(s) for s in sites.parse(text, 3)] == expected


def test_an_hf_module_is_the_same_place_under_its_own_path() -> None:
    model = tiny.model()
    trace = model.run("12+3=", ["hf:model.layers.1.mlp.down_proj:in", "L1.mlp_post"])
    assert torch.equal(trace["hf:model.layers.1.mlp.down_proj:in"], trace["L1.mlp_post"])


def test_selectors_pick_what_they_say_in_a_padded_batch() -> None:
    model = tiny.model()
    prompts = ["12+34=", "a longer one"]
    texts = [
        "L1.z",
        "L1.z[head=2]",
        "L1.z[pos=-1]",
        "L1.z[pos=(0, 2), head=1]",
        "L1.pattern[head=3]",
    ]
    trace = model.run(prompts, [*texts, "L1.pattern"])
    z, pads = trace["L1.z"], [len("a longer one") - len("12+34="), 0]
    assert torch.equal(trace["L1.z[head=2]"], z[:, :, 2])
    assert torch.equal(trace["L1.z[pos=-1]"], z[:, -1])
    expected = torch.stack(
        [torch.stack([z[i, p + 0, 1], z[i, p + 2, 1]]) for i, p in enumerate(pads)]
    )
    assert torch.equal(trace["L1.z[pos=(0, 2,), head=1]"], expected)
    assert torch.equal(trace["L1.pattern[head=3]"], trace["L1.pattern"][:, 3])


@pytest.mark.parametrize("token", [")", "(", "|", "a-b", "'", '"', ", "])
def test_any_token_can_be_named_in_a_scope(token: str) -> None:
    for scope in (Scope.after(token), Scope.tokens({token, 5}), Scope.all() - Scope.after(token)):
        assert Scope.parse(str(scope)) == scope


def test_a_recording_of_the_logits_means_all_of_them() -> None:
    model = tiny.model()
    full = model.run("12+3=").logits
    trace = model.run("12+3=", ["logits", "logits[pos=0]", "logits[pos=-1]"], logits="last")
    assert torch.equal(trace["logits"], full)
    assert torch.equal(trace["logits[pos=0]"], full[:, 0])
    assert torch.equal(trace["logits[pos=-1]"], trace.logits[:, 0])


TERMS = [
    "all",
    "prompt",
    "last_prompt",
    "generated",
    "bos",
    "span(1, 3)",
    "tokens({5})",
    "after(6)",
]


@given(st.lists(st.sampled_from(TERMS), min_size=1, max_size=3), st.lists(st.sampled_from(TERMS)))
def test_a_scope_reads_back_what_it_writes(plus: list[str], minus: list[str]) -> None:
    scope = Scope.parse("|".join(plus) + "".join(f"-{t}" for t in minus))
    assert Scope.parse(str(scope)) == scope


# one row of 6 tokens, the first 4 of them prompt; ids are chosen so that tokens and after are seen
IDS = torch.tensor([[1, 5, 6, 5, 7, 5]])
COVERS = {
    "all": [0, 1, 2, 3, 4, 5],
    "prompt": [0, 1, 2, 3],
    "last_prompt": [3],
    "generated": [4, 5],
    "bos": [0],
    "span(1, 3)": [1, 2],
    "tokens({5})": [1, 3, 5],
    "after(6)": [2, 3, 4, 5],
    "after(99)": [],
    "all-bos": [1, 2, 3, 4, 5],
    "last_prompt|generated": [3, 4, 5],
    "prompt-tokens({5})-bos": [2],
}


@pytest.mark.parametrize("text", COVERS)
@pytest.mark.parametrize("pads", [0, 3])
@pytest.mark.parametrize("split", [6, 4, 1])
def test_a_scope_covers_the_same_positions_padded_and_cached(
    text: str, pads: int, split: int
) -> None:
    """However the tokens reach the model (padded, in chunks), the covered positions are the same."""
    frame = Frame([4], bos_id=1, encode=lambda _: [])
    ids = torch.cat([torch.zeros(1, pads, dtype=torch.long), IDS], 1)
    positions = torch.arange(-pads, 6)[None]
    covered: list[int] = []
    for start in range(0, 6 + pads, split):
        frame.advance(ids[:, start : start + split], positions[:, start : start + split])
        mask = frame.mask(Scope.parse(text))
        here = positions[0, start : start + split]
        covered += (here if mask is None else here[mask[0]]).tolist()
    assert covered == COVERS[text]


@pytest.mark.parametrize(
    ("scope", "moves_first"),
    [
        ("all", True),
        ("prompt", True),
        ("last_prompt", True),
        ("generated", False),
        ("prompt-last_prompt", True),  # through attention, in the blocks above
        ("span(0, 99)", True),
    ],
)
def test_which_scopes_decide_the_first_generated_token(scope: str, moves_first: bool) -> None:
    model = tiny.model()
    edit = Intervention(
        "custom",
        "affine",
        {"L1.resid_post": {"shift": torch.randn(32)}},
        4.0,
        scope=Scope.parse(scope),
    )
    base = model.generate("12+3=", max_new_tokens=4)[0]
    steered = model.generate("12+3=", [edit], max_new_tokens=4)[0]
    assert (base.logprobs[0] != steered.logprobs[0]) == moves_first

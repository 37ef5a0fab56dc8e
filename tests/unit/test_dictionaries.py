"""Dictionaries: SAELens' files and arithmetic under our site names, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from workbench import sae, sites
from workbench.errors import FileRefused, PromptError, SiteUnavailable, UnknownName, WorkbenchError
from workbench.sae import reading, store
from workbench.sae.dictionary import Dictionary
from workbench.sae.library import sae_lens
from workbench.tensors import Intervention

D, FEATURES = 32, 24
SITE = "L1.resid_post"
PLAIN = ("standard", "topk", "jumprelu", "gated")
ODD = {
    "transcoder": {"d_out": D},
    "skip_transcoder": {"d_out": D},
    "jumprelu_transcoder": {"d_out": D},
}
EXTRA = {"topk": {"k": 4}, **ODD}
ALL = (*PLAIN, *ODD)


def module(architecture: str, hook: str = "blocks.1.hook_resid_post", **options: Any) -> Any:
    """One of SAELens' modules with random weights, none of them zero."""
    config = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": architecture not in ODD,
        "metadata": {"hook_name": hook, "model_name": "in-memory"},
    }
    if architecture in ODD:
        config["metadata"]["hook_name_out"] = "blocks.1.hook_mlp_out"
    found = sae_lens().SAE.from_dict(config | EXTRA.get(architecture, {}) | options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in found.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * 0.4
            weight.copy_(noise.abs() if name == "threshold" else noise)
    return found.eval().requires_grad_(False)


def rows(n: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * 2


def made(architecture: str = "jumprelu", site: str = SITE, **options: Any) -> Dictionary:
    target = "L1.mlp_out" if architecture in ODD else site
    fingerprint = tiny.model().fingerprint
    return Dictionary(module(architecture, **options), site, target, fingerprint, "tiny")


# its arithmetic is SAELens' own


@pytest.mark.parametrize("architecture", ALL)
def test_codes_and_reconstructions_are_saelens(architecture: str) -> None:
    dictionary = made(architecture)
    codes = dictionary.encode(rows())
    assert torch.equal(codes, dictionary.sae.encode(rows()))
    assert 0 < int((codes > 0).sum()) < codes.numel()
    assert torch.equal(dictionary.reconstruct(rows()), dictionary.sae(rows()))
    if architecture == "skip_transcoder":
        with pytest.raises(WorkbenchError, match="use reconstruct"):
            dictionary.decode(codes)
    else:
        assert torch.equal(dictionary.decode(codes), dictionary.reconstruct(rows()))


def test_a_reconstruction_in_parts_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made().reconstruct(rows())
    monkeypatch.setattr("workbench.sae.dictionary.CODE_BYTES", 4 * FEATURES * 7)
    sizes: list[int] = []
    dictionary = made()
    dictionary.sae.hook_sae_input.register_forward_hook(lambda *a: sizes.append(len(a[1][0])))
    assert torch.allclose(dictionary.reconstruct(rows()), whole, atol=1e-6)
    assert sizes == [7, 7, 7, 7, 7, 5]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_the_encoder_row_is_the_feature(architecture: str, bias: bool) -> None:
    dictionary = made(architecture, apply_b_dec_to_input=bias)
    codes = dictionary.encode(rows())
    for feature in range(FEATURES):
        weight, offset = dictionary.encoder_row(feature)
        score = rows() @ weight + offset
        own = torch.where(score > dictionary.threshold[feature], score.relu(), 0.0)
        assert torch.allclose(own, codes[:, feature], atol=1e-5)
    assert dictionary.activation == ("relu" if architecture == "standard" else "jumprelu")


@pytest.mark.parametrize("architecture", ["topk", "transcoder"])
def test_features_without_a_score_of_their_own_have_no_encoder_row(architecture: str) -> None:
    with pytest.raises(WorkbenchError, match="no encoder of their own"):
        made(architecture).encoder_row(0)


@pytest.mark.parametrize("feature", [-1, FEATURES])
def test_a_feature_that_it_lacks_has_no_encoder_row(feature: int) -> None:
    with pytest.raises(WorkbenchError, match="no such feature.*0 to 23"):
        made().encoder_row(feature)


def test_a_row_normalised_dictionary_needs_the_row() -> None:
    dictionary = made("standard", normalize_activations="layer_norm")
    assert torch.equal(dictionary.reconstruct(rows()), dictionary.sae(rows()))
    with pytest.raises(WorkbenchError, match="use reconstruct"):
        dictionary.decode(dictionary.encode(rows()))
    with pytest.raises(WorkbenchError, match="no encoder of their own"):
        dictionary.encoder_row(0)


def test_moving_makes_another_one() -> None:
    here = made()
    there = here.to("cpu", torch.float64)
    assert there.decoder.dtype == torch.float64 and here.decoder.dtype == torch.float32
    assert there.sae is not here.sae and there.site == here.site
    assert torch.allclose(there.encode(rows()).float(), here.encode(rows()), atol=1e-5)


@pytest.mark.parametrize("verb", ["encode", "reconstruct"])
def test_rows_that_do_not_fit_are_refused(verb: str) -> None:
    with pytest.raises(WorkbenchError, match=r"another width.*\[row, 32\].*\(3, 31\)"):
        getattr(made(), verb)(torch.zeros(3, D - 1))
    bad = rows(3)
    bad[1, 0] = torch.nan
    with pytest.raises(WorkbenchError, match="NaN or infinity.*1 of 3 rows"):
        getattr(made(), verb)(bad)


def test_codes_of_another_dictionary_are_refused() -> None:
    with pytest.raises(WorkbenchError, match="codes have another width"):
        made().decode(torch.zeros(2, FEATURES + 1))


# files, both ways


@pytest.mark.parametrize("architecture", ALL)
def test_what_is_saved_here_saelens_loads(architecture: str, tmp_path: Path) -> None:
    dictionary = made(architecture)
    sae.save(dictionary, tmp_path / "one")
    theirs = sae_lens().SAE.load_from_disk(tmp_path / "one")
    assert torch.equal(theirs.encode(rows()), dictionary.encode(rows()))
    assert torch.equal(theirs(rows()), dictionary.reconstruct(rows()))
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"


@pytest.mark.parametrize("architecture", ALL)
def test_what_saelens_saves_loads_here_and_back(architecture: str, tmp_path: Path) -> None:
    theirs = module(architecture)
    theirs.save_model(tmp_path / "theirs")
    once = sae.load(tmp_path / "theirs")
    sae.save(once, tmp_path / "ours")
    twice = sae.load(tmp_path / "ours", model=tiny.model())
    for one in (once, twice):
        assert torch.equal(one.encode(rows()), theirs.encode(rows()))
        assert torch.equal(one.reconstruct(rows()), theirs(rows()))
        assert one.site == SITE and one.architecture == architecture
        assert one.target == ("L1.mlp_out" if architecture in ODD else SITE)
        assert one.model is not None and one.model.name == "in-memory"


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.1.hook_resid_post", "L1.resid_post"),
        ("blocks.2.hook_resid_pre", "L2.resid_pre"),
        ("blocks.0.attn.hook_z", "L0.z"),
        ("blocks.0.hook_mlp_out", "L0.mlp_out"),
        ("model.layers.1", "L1.resid_post"),
        ("transformer.h.2", "L2.resid_post"),
        ("gpt_neox.layers.0", "L0.resid_post"),
        ("model.layers.1.mlp", "hf:model.layers.1.mlp:out"),
        ("L1.resid_mid", "L1.resid_mid"),
    ],
)
def test_hooks_in_every_dialect(hook: str, site: str, tmp_path: Path) -> None:
    module("standard", hook).save_model(tmp_path)
    found = sae.load(tmp_path)
    assert found.site == found.target == site
    sae.save(found, tmp_path / "again")
    # a Hugging Face path stays what SAELens wrote, since its own runners look for it
    assert json.loads((tmp_path / "again/cfg.json").read_text())["metadata"]["hook_name"] == hook


def test_heads_come_flat(tmp_path: Path) -> None:
    module("standard", "blocks.0.attn.hook_z", reshape_activations="hook_z").save_model(tmp_path)
    found = sae.load(tmp_path, model=tiny.model())
    plain = module("standard", "blocks.0.attn.hook_z")
    assert torch.equal(found.encode(rows()), plain.encode(rows()))
    assert torch.equal(found.reconstruct(rows()), plain(rows()))


def test_half_files_compute_in_float32_here_and_there(tmp_path: Path) -> None:
    dictionary = made()
    sae.save(dictionary, tmp_path / "half", half=True)
    assert {v.dtype for v in load_file(tmp_path / "half" / store.WEIGHTS).values()} == {
        torch.float16
    }
    ours, theirs = sae.load(tmp_path / "half"), sae_lens().SAE.load_from_disk(tmp_path / "half")
    assert ours.decoder.dtype == theirs.W_dec.dtype == torch.float32
    assert torch.equal(ours.encode(rows()), theirs.encode(rows()))
    assert torch.equal(ours.decoder, dictionary.decoder.half().float())


def test_a_file_that_computes_in_float16_loads_as_float32(tmp_path: Path) -> None:
    theirs = module("standard").to(dtype=torch.float16)
    theirs.save_model(tmp_path)
    assert json.loads((tmp_path / store.CONFIG).read_text())["dtype"] == "float16"
    assert sae.load(tmp_path).encode(rows()).dtype == torch.float32


def test_half_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    dictionary = made()
    dictionary.sae.b_dec[0] = 1e6
    with pytest.raises(WorkbenchError, match="b_dec is beyond what float16 can hold"):
        sae.save(dictionary, tmp_path / "one", half=True)
    assert not (tmp_path / "one" / store.CONFIG).exists()


def test_saving_twice_replaces(tmp_path: Path) -> None:
    sae.save(made("standard"), tmp_path / "one")
    sae.save(made("gated"), tmp_path / "one")
    assert sae.load(tmp_path / "one").architecture == "gated"


def test_saving_is_ours_where_nnsight_gives_every_object_a_save(tmp_path: Path) -> None:
    import nnsight

    assert nnsight.__version__ and hasattr(5, "save")
    assert (sae.save(made(), tmp_path / "one") / store.CONFIG).is_file()


def test_saving_refuses_other_peoples_folders(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileRefused, match="holds something else.*notes.txt"):
        sae.save(made(), tmp_path)
    with pytest.raises(FileRefused, match="is a file"):
        sae.save(made(), tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_save_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae.save(made("standard"), tmp_path / "one")
    written = store.write_atomically

    def cut(path: Path, data: bytes) -> None:
        if path.name == store.WEIGHTS:
            raise KeyboardInterrupt
        written(path, data)

    monkeypatch.setattr(store, "write_atomically", cut)
    with pytest.raises(KeyboardInterrupt):
        sae.save(made("gated"), tmp_path / "one")
    with pytest.raises(FileRefused, match="has no sae_weights.safetensors"):
        sae.load(tmp_path / "one")


# what is not loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sae.save(made(), tmp_path / "one")


def rewrite(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / store.CONFIG).read_text()) | changes
    (folder / store.CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize("name", [store.CONFIG, store.WEIGHTS])
def test_half_a_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileRefused, match=f"has no {name}"):
        sae.load(folder)


def test_no_folder_at_all() -> None:
    with pytest.raises(FileRefused, match="is no folder here.*a release with its sae_id"):
        sae.load("no/such/dictionary")


def test_damaged_weights(folder: Path) -> None:
    data = (folder / store.WEIGHTS).read_bytes()
    (folder / store.WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(FileRefused, match="SAELens cannot load it"):
        sae.load(folder)


def test_weights_of_another_architecture(folder: Path) -> None:
    rewrite(folder, architecture="gated")
    with pytest.raises(FileRefused, match="SAELens cannot load it"):
        sae.load(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"d_in": 3}'])
def test_a_damaged_configuration(folder: Path, text: str) -> None:
    (folder / store.CONFIG).write_text(text)
    with pytest.raises(FileRefused, match="SAELens cannot load it"):
        sae.load(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    rewrite(folder, architecture="crosscoder")
    with pytest.raises(FileRefused, match="architecture that SAELens knows.*crosscoder"):
        sae.load(folder)


def test_nan_weights(folder: Path) -> None:
    state = load_file(folder / store.WEIGHTS)
    state["W_dec"][2, 3] = torch.nan
    save_file(state, folder / store.WEIGHTS)
    with pytest.raises(FileRefused, match=f"W_dec holds NaN.*1 of {D * FEATURES}"):
        sae.load(folder)


def test_pickles(tmp_path: Path, folder: Path) -> None:
    torch.save(made().sae.state_dict(), tmp_path / "sae.pt")
    with pytest.raises(FileRefused, match="is a pickle"):
        sae.load(tmp_path / "sae.pt")
    shutil.copy(tmp_path / "sae.pt", folder / store.WEIGHTS)
    with pytest.raises(FileRefused, match="is a pickle"):
        sae.load(folder)
    (folder / store.WEIGHTS).unlink()
    shutil.copy(tmp_path / "sae.pt", folder / "sae_weights.pt")
    with pytest.raises(FileRefused, match="pickles and unfinished trainings are not read"):
        sae.load(folder)


def test_a_file_in_place_of_its_folder(folder: Path) -> None:
    with pytest.raises(FileRefused, match="give the folder that it is in"):
        sae.load(folder / store.WEIGHTS)


def test_missing_normalisation_statistics(folder: Path) -> None:
    plain = sae.load(folder)
    rewrite(folder, normalize_activations="expected_average_only_in")
    with pytest.raises(FileRefused, match="the numbers for it are missing"):
        sae.load(folder)
    folded = sae.load(folder, norm_scale=0.5)
    assert torch.allclose(folded.encode(rows()), plain.encode(0.5 * rows()), atol=1e-5)
    assert torch.allclose(
        folded.reconstruct(rows()), 2 * plain.reconstruct(0.5 * rows()), atol=1e-4
    )
    assert torch.allclose(folded.decoder, plain.decoder / 0.5)
    assert folded.sae.cfg.normalize_activations == "none"
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(WorkbenchError, match="a factor above 0"):
            sae.load(folder, norm_scale=bad)
    rewrite(folder, normalize_activations="covariance_whitening")
    with pytest.raises(FileRefused, match="covariance_whitening.*are missing"):
        sae.load(folder)
    with pytest.raises(WorkbenchError, match="no scale that this dictionary takes.*whitening"):
        sae.load(folder, norm_scale=0.5)


def test_a_scale_without_use_is_refused(folder: Path) -> None:
    with pytest.raises(WorkbenchError, match="no scale that this dictionary takes.*'none'"):
        sae.load(folder, norm_scale=0.5)


def test_one_of_several_in_a_folder(folder: Path) -> None:
    assert sae.load(folder.parent, "one").site == SITE
    with pytest.raises(FileRefused, match="has no cfg.json"):
        sae.load(folder, "another")


def test_a_release_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach huggingface.co")

    monkeypatch.setattr(sae_lens().SAE, "from_pretrained", offline)
    with pytest.raises(FileRefused, match="ConnectionError.*a hub release needs a network"):
        sae.load("gpt2-small-res-jb", "blocks.7.hook_resid_pre")


def test_a_release_asks_the_hub_for_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(*args: Any, **options: Any) -> Any:
        asked.extend([args, options])
        return module("standard")

    monkeypatch.setattr(sae_lens().SAE, "from_pretrained", answer)
    found = sae.load("some-release", "blocks.1.hook_resid_post")
    assert asked == [
        ("some-release", "blocks.1.hook_resid_post"),
        {"device": "cpu", "dtype": "float32"},
    ]
    assert found.name == "some-release/blocks.1.hook_resid_post"


def test_a_damaged_fingerprint(folder: Path) -> None:
    metadata = json.loads((folder / store.CONFIG).read_text())["metadata"]
    metadata["workbench"]["model"] = {"nick": "x"}
    rewrite(folder, metadata=metadata)
    with pytest.raises(FileRefused, match="which model it was trained on"):
        sae.load(folder)


def test_a_hook_in_unknown_words(tmp_path: Path) -> None:
    module("standard", "somewhere").save_model(tmp_path)
    with pytest.raises(FileRefused, match="does not say in words known here what it reads"):
        sae.load(tmp_path)
    assert sae.load(tmp_path, site="L1.resid_mid").site == "L1.resid_mid"
    for many in ("L*.resid_post", "L1-3.resid_post"):
        with pytest.raises(FileRefused, match="does not say in words known here"):
            sae.load(tmp_path, site=many)


def test_another_site_than_the_file_says(folder: Path) -> None:
    with pytest.raises(FileRefused, match="made for another site.*L1.resid_post.*L2.resid_post"):
        sae.load(folder, site="L2.resid_post")
    assert sae.load(folder, site="L2.resid_post", force=True).site == "L2.resid_post"
    assert sae.load(folder, site="blocks.1.hook_resid_post").site == SITE


# whether it fits a model


def test_another_width_is_refused_even_by_force(tmp_path: Path) -> None:
    wide = tiny.wb.load(tiny.module("llama", hidden_size=48), tiny.tokenizer())
    sae.save(made(), tmp_path / "one")
    for force in (False, True):
        with pytest.raises(WorkbenchError, match="another width.*48.*force=True cannot help"):
            sae.load(tmp_path / "one", model=wide, force=force)


def test_a_module_may_have_any_width() -> None:
    model = tiny.model()
    site = "hf:model.layers.1.mlp.up_proj:out"
    dictionary = Dictionary(module("standard", d_in=model.dims.d_mlp), site, site)
    (part,) = sae.stream(dictionary, model, "abc", progress=False)
    assert part.rows.shape == (3, model.dims.d_mlp) and model.dims.d_mlp != model.d_model


def test_a_transcoder_that_writes_another_width_is_refused() -> None:
    narrow = Dictionary(module("transcoder", d_out=D - 1), SITE, "L1.mlp_out")
    with pytest.raises(WorkbenchError, match="writes another width than L1.mlp_out.*32.*31"):
        list(sae.stream(narrow, tiny.model(), "abc", progress=False))


def test_another_layer_is_refused(tmp_path: Path) -> None:
    sae.save(made(site="L7.resid_post"), tmp_path / "one")
    with pytest.raises(WorkbenchError, match="names a layer the model lacks"):
        sae.load(tmp_path / "one", model=tiny.model())


def test_a_site_that_the_model_lacks_is_refused() -> None:
    missing = made(site="L1.router_logits")
    with pytest.raises(SiteUnavailable):
        list(sae.stream(missing, tiny.model(), "abc", progress=False))


def test_another_model_is_refused_unless_forced(tmp_path: Path) -> None:
    other = tiny.wb.load(tiny.module("llama", seed=5), tiny.tokenizer())
    sae.save(made(), tmp_path / "one")
    with pytest.raises(WorkbenchError, match="trained on another model.*force=True"):
        sae.load(tmp_path / "one", model=other)
    found = sae.load(tmp_path / "one", model=other, force=True)
    with pytest.raises(WorkbenchError, match="trained on another model"):
        list(sae.stream(found, other, "abc", progress=False))
    assert len(list(sae.stream(found, other, "abc", force=True, progress=False))) == 1


def test_names_decide_where_there_is_no_fingerprint(tmp_path: Path) -> None:
    module("standard").save_model(tmp_path)
    assert sae.load(tmp_path, model=tiny.model()).model is not None
    other = module("standard")
    other.cfg.metadata.model_name = "gpt2-small"
    other.save_model(tmp_path)
    with pytest.raises(WorkbenchError, match="another model.*gpt2-small"):
        sae.load(tmp_path, model=tiny.model())


# streams


TEXTS = ["abc def", "x", "hello there", "12+34=46", "zz"]


def whole(**options: Any) -> reading.Part:
    parts = list(sae.stream(made(), tiny.model(), TEXTS, progress=False, **options))
    return reading.Part(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in reading.Part.__annotations__
        )
    )


def test_a_stream_gives_tokens_in_order_with_their_places() -> None:
    model, found = tiny.model(), whole()
    at = 0
    for number, text in enumerate(TEXTS):
        trace = model.run(text, record=[SITE])
        ids = trace.tokens.ids[0]
        for position in range(1, len(ids)):  # the first is the token that begins a text
            assert found.ids[at] == ids[position]
            assert found.prompts[at] == number and found.positions[at] == position
            row = trace.values[SITE][0, position]
            assert torch.allclose(found.rows[at], row, atol=1e-5)
            at += 1
    assert at == len(found.ids) == len(found.codes)
    assert torch.allclose(found.codes, made().encode(found.rows), atol=1e-6)


def test_special_tokens_stay_where_asked_for() -> None:
    found = whole(special=True)
    assert (found.ids == 1).sum() == len(TEXTS)
    assert len(found.ids) == len(whole().ids) + len(TEXTS)
    assert torch.equal(found.positions[found.ids == 1], torch.zeros(len(TEXTS), dtype=torch.long))


def test_parts_are_bounded_and_their_sum_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    once = whole()
    width = max(D, FEATURES)
    monkeypatch.setattr(reading, "PART_BYTES", 4 * width * 12)
    parts = list(sae.stream(made(), tiny.model(), TEXTS, progress=False))
    assert len(parts) > 2
    for part in parts:
        assert len(part.rows) <= 12 or len(part.prompts.unique()) == 1
        assert part.prompts.tolist() == sorted(part.prompts.tolist())
    again = whole()
    assert torch.allclose(again.rows, once.rows, atol=1e-5)
    assert torch.equal(again.ids, once.ids) and torch.equal(again.prompts, once.prompts)


def test_completions_are_read_after_their_prompts() -> None:
    tails = [[10, 11], [], [12], [13], [14, 15, 16]]
    found = whole(completions=tails)
    assert len(found.ids) == len(whole().ids) + 7
    assert found.ids[found.prompts == 0].tolist()[-2:] == [10, 11]
    with pytest.raises(PromptError, match="not one per prompt"):
        list(sae.stream(made(), tiny.model(), TEXTS, completions=[[1]], progress=False))


def test_edits_are_applied_and_cut_to_their_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole()
    strengths = torch.tensor([0.5, 1.0, 0.0, 2.0, -1.0])
    shift = torch.ones(D)
    edit = Intervention("custom", "affine", {SITE: {"shift": shift}}, strength=strengths)
    monkeypatch.setattr(reading, "PART_BYTES", 4 * D * 12)
    after = whole(edits=[edit])
    expected = before.rows + strengths[before.prompts][:, None] * shift
    assert torch.allclose(after.rows, expected, atol=1e-5)


def test_last_keeps_the_end_of_each_prompt() -> None:
    found = whole(last=[2, 1, 3, 0, 5])
    assert found.prompts.bincount(minlength=5).tolist() == [2, 1, 3, 0, 2]
    assert found.positions[:2].tolist() == [6, 7]
    with pytest.raises(PromptError, match="last.*not one per prompt"):
        list(sae.stream(made(), tiny.model(), TEXTS, last=[1], progress=False))


def test_nothing_to_read_or_too_much() -> None:
    for bad in ([], ["x" * 500]):
        with pytest.raises(PromptError):
            list(sae.stream(made(), tiny.model(), bad, progress=False))


def test_nan_activations_are_refused() -> None:
    model = tiny.wb.load(tiny.module("llama"), tiny.tokenizer())
    model.hf.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    dictionary = Dictionary(module("jumprelu"), SITE, SITE)
    with pytest.raises(WorkbenchError, match="NaN or infinity.*7 of 7 rows"):
        list(sae.stream(dictionary, model, "abc def", progress=False))


# the shipped ones


@pytest.mark.parametrize("name", sae.shipped())
def test_the_shipped_ones_load_and_are_small(name: str) -> None:
    folder = Path(__file__).parents[2] / "data" / "saes" / name
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 1.2e6
    found = sae.load(name)
    assert found.name == name and found.d == 128
    assert str(sites.parse(found.site, 6)[0]) in name and str(found.n_features) in name
    assert found.model is not None and found.model.weights
    assert not found.history.empty and found.facts["tokens"] >= 10**6


def test_the_shipped_ones_fit_their_model_on_any_number_of_threads() -> None:
    """Sums of floats depend on how they are split: a fingerprint of such sums would differ."""
    before, model = torch.get_num_threads(), tiny.wb.load("reasoner")
    assert {one.model for one in map(sae.load, sae.shipped())} == {model.fingerprint}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert sae.load(sae.shipped()[0], model=model).d == 128
    finally:
        torch.set_num_threads(before)


def test_unknown_public_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no 'lod'"):
        _ = sae.lod
    assert issubclass(UnknownName, WorkbenchError)

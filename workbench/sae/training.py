"""Train a dictionary on a model's activations, with SAELens' own trainer.

    dictionary = sae.train(model, "L3.resid_post", texts, width=512, tokens=1_000_000, k=20)
    dictionary.history                                  # loss, FVU, L0 and dead share on the way

Activations are scaled so that their mean length is the root of their width, the scale is folded into
the weights when training ends, and what is returned reads activations as they are. Lengths differ by
orders of magnitude between models and layers, and without a common scale no learning rate, sparsity
coefficient or threshold carries over from one to another.

Source: Cunningham et al. (2023), https://arxiv.org/abs/2309.08600; Gao et al. (2024), Scaling and
    evaluating sparse autoencoders, https://arxiv.org/abs/2406.04093, for top-k and its auxiliary loss;
    Conerly et al. (2024), https://transformer-circuits.pub/2024/april-update/, for the scale.
Differs from SAELens' defaults: a feature counts as dead, and the auxiliary loss tends to it, after a
    twentieth of the steps and at most 1,000. SAELens' fixed 1,000 are never reached in short trainings.
"""

from __future__ import annotations

import contextlib
import io
import math
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from workbench import sites
from workbench.errors import UnknownName, WorkbenchError, unknown
from workbench.model import stopping
from workbench.sae import checkpoints
from workbench.sae.dictionary import HISTORY, Dictionary
from workbench.sae.feeding import Feed, corpus_of, fingerprint
from workbench.sae.library import sae_lens
from workbench.sae.store import CONFIG, load, save
from workbench.seeds import derive

History = dict[str, list[Any]]
"""A list of numbers for each name in `HISTORY`."""

ARCHITECTURES = (
    "standard",
    "topk",
    "batchtopk",
    "jumprelu",
    "gated",
    "matryoshka_batchtopk",
    "matching_pursuit",
)
K = 32
"""Features per token by default, where an architecture takes that number and the width allows it."""
SCALES = ("expected_average_only_in", "covariance_whitening", "layer_norm", "none")
CHECKPOINTS = 10
"""Checkpoints of a training with a folder; a stop writes one more."""
POINTS = 100
"""Rows of a history."""
SCALE_BATCHES = 50
"""Batches from which the scale of the activations is estimated; fewer in a training with fewer."""


def train(
    model: Any,
    site: str,
    source: Any,
    *,
    width: int,
    tokens: int,
    architecture: str = "batchtopk",
    batch_size: int = 1024,
    lr: float = 1e-3,
    normalize: str = "expected_average_only_in",
    path: str | Path | None = None,
    name: str = "",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Dictionary:
    """A dictionary of the activations at one site.

    Args:
        model: whose activations; it stays as it is.
        site: one layer's, such as "L3.resid_post"; any site with rows by position.
        source: texts or prompts, a task or several to draw examples from, or the path of a text file.
            It is read again until `tokens` have been seen. Special tokens are left out.
        width: number of features.
        tokens: how many are seen in all, in whole batches.
        architecture: one of `ARCHITECTURES`. Both batch top-k ones become "jumprelu" when trained.
        batch_size: tokens per step.
        lr: Adam's rate; it rises over the first twentieth of the steps and falls over the last fifth.
        normalize: SAELens' word for the scale of activations, see the module.
        path: a folder for checkpoints and, in the end, the dictionary. A training that was stopped
            goes on there, to the same weights; a finished one is loaded.
        name: what tables call it; by default site and width.
        seed: decides weights, order of the text, and what is drawn from tasks.
        progress: show a bar.
        options: of SAELens' configuration of that architecture, such as `k=`, `l1_coefficient=`,
            `l0_coefficient=`, `aux_loss_coefficient=` or `matryoshka_widths=`.

    Returns:
        The dictionary, with `facts` and `history` of its training.

    Raises:
        UnknownName: no such architecture; or a transcoder, which SAELens loads and does not train.
        SiteUnavailable: a site without rows, such as attention patterns.
        FileRefused: the folder holds something else, or another training.
        WorkbenchError: a width, number of tokens or option that makes no sense; NaN in activations.
        PromptError: an empty source, or a prompt that the model cannot read.
    """
    _check(architecture, width, tokens, batch_size, lr, normalize)
    corpus = corpus_of(model, source, tokens, derive(seed, "examples"))
    feed = Feed(model, site, corpus, batch_size=batch_size, seed=derive(seed, "order"))
    plan = {
        "site": feed.site,
        "architecture": architecture,
        "width": width,
        "tokens": tokens,
        "batch_size": batch_size,
        "lr": lr,
        "normalize": normalize,
        "options": _options(architecture, width, options),
        "seed": seed,
        "model": model.fingerprint.weights,
        "corpus": fingerprint(corpus),
    }
    title = name or f"{feed.site}-{width}"
    folder = Path(path).expanduser() if path is not None else None
    if folder and checkpoints.latest(folder, plan) is None and (folder / CONFIG).exists():
        done = load(folder, model=model)
        checkpoints.check_finished(folder, done.facts, plan)
        return done
    on = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(on):
        torch.manual_seed(derive(seed, "weights"))
        trainer = _trainer(plan, feed.d, model)
    history = _fit(trainer, feed, plan, folder, progress)
    with torch.random.fork_rng(on):  # a new module draws weights, if only to lose them
        dictionary = _result(trainer, model, title, plan | {"history": history})
    if folder is not None:
        save(dictionary, folder)
        checkpoints.clear(folder)
    return dictionary


def _check(
    architecture: str, width: int, tokens: int, batch_size: int, lr: float, normalize: str
) -> None:
    if "transcoder" in architecture:
        raise UnknownName(
            f"sae.train(architecture={architecture!r})",
            "SAELens loads transcoders and does not train them",
            expected=f"one of {', '.join(ARCHITECTURES)}",
            got=repr(architecture),
            do="train it elsewhere, and load its folder",
        )
    if architecture not in ARCHITECTURES:
        raise unknown("sae.train(architecture=...)", "architecture", architecture, ARCHITECTURES)
    if normalize not in SCALES:
        raise unknown("sae.train(normalize=...)", "normalisation", normalize, SCALES)
    for what, value, least in (
        ("width", width, 1),
        ("batch_size", batch_size, 1),
        ("tokens", tokens, batch_size),
    ):
        if value < least:
            raise WorkbenchError(
                f"sae.train({what}={value})",
                "is too small" if what != "tokens" else "is less than one batch",
                expected=f"at least {least}",
                got=value,
                do="take more" if what != "tokens" else "take more, or a smaller batch_size=",
            )
    if not (math.isfinite(lr) and lr > 0):
        raise WorkbenchError(
            f"sae.train(lr={lr})", "is no rate", expected="above 0", got=lr, do="try 1e-3"
        )


def _options(architecture: str, width: int, given: dict[str, Any]) -> dict[str, Any]:
    """Options with our defaults under them.

    Raises:
        UnknownName: SAELens' configuration of this architecture has no such option.
    """
    allowed = {f.name for f in fields(_classes(architecture)[1])}
    allowed -= {"d_in", "d_sae", "dtype", "device", "metadata", "normalize_activations"}
    for name in given:
        if name not in allowed:
            raise unknown(f"sae.train({name}=...)", "option", name, sorted(allowed))
    defaults: dict[str, Any] = {"k": min(K, width)} if "k" in allowed else {}
    if architecture == "matryoshka_batchtopk":
        nested = {max(1, width // part) for part in (8, 4, 2, 1)}
        defaults["matryoshka_widths"] = sorted(nested)
    if architecture == "matching_pursuit":
        defaults["decoder_init_norm"] = 1.0
    # lists, as the configuration's file will give them back
    given = {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}
    options = defaults | given
    if "k" in options and not 0 < options["k"] <= width:
        raise WorkbenchError(
            f"sae.train(k={options['k']})",
            "is no number of features per token",
            expected=f"above 0, and at most the width, {width}",
            got=options["k"],
            do="take fewer",
        )
    return options


def _classes(architecture: str) -> tuple[type, type]:
    """SAELens' class for training it, and that of its configuration."""
    sae_lens()
    from sae_lens.registry import get_sae_training_class

    return get_sae_training_class(architecture)


def _trainer(plan: dict[str, Any], d: int, model: Any) -> Any:
    """SAELens' trainer at its first step.

    Raises:
        WorkbenchError: SAELens refuses the options.
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    coder, config = _classes(plan["architecture"])
    steps = math.ceil(plan["tokens"] / plan["batch_size"])
    device = str(model.device)
    try:
        sae = coder(
            config(
                d_in=d,
                d_sae=plan["width"],
                device=device,
                normalize_activations=plan["normalize"],
                **plan["options"],
            )
        )
    except (TypeError, ValueError) as error:
        raise WorkbenchError(
            "sae.train",
            "SAELens refuses the options",
            expected="options of its configuration",
            got=f"{type(error).__name__}: {error}",
            do="see SAELens' documentation of this architecture",
        ) from error
    settings = SAETrainerConfig(
        total_training_samples=plan["tokens"],
        train_batch_size_samples=plan["batch_size"],
        lr=plan["lr"],
        lr_end=plan["lr"] / 10,
        lr_warm_up_steps=max(2, steps // 20) if steps >= 20 else 0,
        lr_decay_steps=steps // 5,
        dead_feature_window=min(1000, max(1, steps // 20)),
        device=device,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(settings, sae, iter(()))


def _fit(
    trainer: Any, feed: Feed, plan: dict[str, Any], folder: Path | None, progress: bool
) -> History:
    """Train to the end, from the newest checkpoint where there is one; the history."""
    history: History = {key: [] for key in HISTORY}
    begun = checkpoints.latest(folder, plan) if folder is not None else None
    if begun is not None:
        kept = checkpoints.read(trainer, begun)
        history = kept["history"]
        feed.seek(kept["served"])
    else:
        _estimate_scale(trainer, feed, progress)
        feed.seek(0)

    def keep() -> None:
        if folder is not None:
            checkpoints.write(trainer, folder, plan, served=feed.served, history=history)

    bar = tqdm(total=plan["tokens"], initial=trainer.n_training_samples, desc="train", unit="token",
               unit_scale=True, disable=not progress)  # fmt: skip
    with bar, _held_interrupts() as interrupts:
        _steps(trainer, feed, history, keep, interrupts, bar)
    _fold(trainer)
    return history


def _steps(
    trainer: Any, feed: Feed, history: History, keep: Any, interrupts: _Interrupts, bar: Any
) -> None:
    """SAELens' steps, one after another; whoever stops them does so between two."""
    total, size = trainer.cfg.total_training_samples, trainer.cfg.train_batch_size_samples
    steps = math.ceil(total / size)
    noted, kept = max(1, steps // POINTS), max(1, steps // CHECKPOINTS)
    while trainer.n_training_samples < total:
        try:
            stopping.check()
            with interrupts.let_through():
                batch = next(feed)
        except BaseException:  # nothing has changed since the last step: it can go on from here
            keep()
            raise
        trainer.maybe_reset_sparsity()
        output = trainer.step(batch)
        trainer.n_training_steps += 1
        bar.update(len(batch))
        last = trainer.n_training_samples >= total
        if trainer.n_training_steps % noted == 0 or last:
            _note(history, trainer, output)
            bar.set_postfix(fvu=history["fvu"][-1], l0=history["l0"][-1], dead=history["dead"][-1])
        if trainer.n_training_steps % kept == 0 and not last:
            keep()


@torch.no_grad()
def _note(history: History, trainer: Any, output: Any) -> None:
    """One row of the history, from the batch that was just learned."""
    loss = float(output.loss)
    if not math.isfinite(loss):
        raise WorkbenchError(
            "sae.train",
            f"the loss is no number after {trainer.n_training_samples} tokens",
            expected="a finite loss",
            got=loss,
            do="take a smaller lr=",
        )
    rows, codes = output.sae_in, output.feature_acts
    codes = codes.to_dense() if codes.is_sparse else codes
    spread = (rows - rows.mean(0)).pow(2).sum()
    values = (
        trainer.n_training_samples,
        loss,
        float((rows - output.sae_out).pow(2).sum() / spread),
        float((codes > 0).sum(-1).float().mean()),
        float(trainer.dead_neurons.float().mean()),
    )
    for key, value in zip(HISTORY, values, strict=True):
        history[key].append(round(value, 6))


def _estimate_scale(trainer: Any, feed: Feed, progress: bool) -> None:
    """What the activations are divided by, from the first batches, which are then served again."""
    kind = trainer.sae.cfg.normalize_activations
    steps = trainer.cfg.total_training_samples // trainer.cfg.train_batch_size_samples
    sizes = {
        "d_in": trainer.sae.cfg.d_in,
        "data_provider": feed,
        "n_batches_for_norm_estimate": max(1, min(SCALE_BATCHES, steps)),
    }
    quiet = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())
    with quiet:
        if kind == "expected_average_only_in":
            trainer.activation_scaler.estimate_scaling_factor(**sizes)
        elif kind == "covariance_whitening":
            trainer.activation_scaler.estimate_whitening(**sizes)


def _fold(trainer: Any) -> None:
    """Put the scale into the weights, as SAELens does where it ends a training."""
    scaler, sae = trainer.activation_scaler, trainer.sae
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        white = scaler.whitening
        sae.fold_activation_whitening(white.mean, white.matrix, white.inverse_matrix)
    trainer.set_final_sae_metadata()


def _result(trainer: Any, model: Any, name: str, facts: dict[str, Any]) -> Dictionary:
    """The dictionary for inference, as SAELens would write and read it."""
    sae, site = trainer.sae, facts["site"]
    facts["dead"] = float(trainer.dead_neurons.float().mean())
    sae.cfg.metadata.model_name = model.name
    sae.cfg.metadata.hook_name = sites.tl_name(site)
    sae.cfg.metadata.workbench = {
        "site": site,
        "target": site,
        "model": asdict(model.fingerprint),
        "training": facts,
    }
    # clones: saving normalises the decoder in place
    state = {key: value.detach().clone() for key, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    found = sae_lens().SAE.from_dict(sae.cfg.get_inference_sae_cfg_dict())
    found.process_state_dict_for_loading(state)
    found.load_state_dict(state)
    found.to(model.device).eval().requires_grad_(False)
    return Dictionary(found, site, site, model.fingerprint, name)


class _Interrupts:
    """The interrupt key held back during a step, so that a checkpoint is of a whole one."""

    def __init__(self) -> None:
        self._asked, self._open = False, False

    def handle(self, *_: Any) -> None:
        """Remember the first one; a second one does not wait."""
        if self._open or self._asked:
            raise KeyboardInterrupt
        self._asked = True

    @contextlib.contextmanager
    def let_through(self) -> Iterator[None]:
        """Raise here what was held back, and at once what comes."""
        self._open = True
        try:
            if self._asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._open = False


@contextlib.contextmanager
def _held_interrupts() -> Iterator[_Interrupts]:
    """Python hands interrupts to the main thread alone; elsewhere there is nothing to hold back."""
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, interrupts.handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)

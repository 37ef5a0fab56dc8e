"""LoReFT and its family: a low-rank affine edit trained to make the wanted completions likely.

    loreft     h' = h + s R^T (W h + b - R h)      R [r, d] with orthonormal rows
    consreft   h' = h + s R^T (b - R h)            lobireft   h' = h + s R^T b
    direft     h' = h + s R^T (W h + b)            noreft, nodireft: without orthonormality

Minimised is the cross-entropy of the positive completions behind their prompts, over R, W and b of
all sites together; the model is not changed.

Shapes: up = R, down = W - R (or -R, or W) `[r, d]`; shift = R^T b `[d]`, per site.
Units: strength s counts the trained edit: s = 1 is what was trained.
Source: Wu, Arora, Wang, Geiger, Jurafsky, Manning and Potts (2024), ReFT: Representation Finetuning
    for Language Models, https://arxiv.org/abs/2404.03592.
Differs from the paper: W starts at R and b at 0, so that every form but consreft begins as no edit
    (released code starts W at random, which edits from the first step on; consreft has no neutral
    start and begins by erasing a random subspace). The learning rate is constant. Positions are the
    first and the last of the prompt, as released; another `scope` is an option. Training counts
    steps, 100 by default, where the paper counts epochs. Our reading: one set of tensors per site is
    shared by both positions, and dropout is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.seeds import derive
from workbench.steering.base import Need, SteeringMethod, sites_of
from workbench.steering.reft import check, folded, start
from workbench.steering.training import Loss, completions_of, train
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Wu, Arora, Wang, Geiger, Jurafsky, Manning, Potts",
        "ReFT: Representation Finetuning for Language Models",
        2024,
        "https://arxiv.org/abs/2404.03592",
    ),
)
@dataclass(frozen=True)
class LoReft(SteeringMethod):
    """Train a low-rank affine edit on wanted completions.

    Attributes:
        form: loreft, consreft, lobireft, direft, noreft or nodireft; see the module docstring.
        rank: directions per site; no more than the site is wide or than there are examples.
        scope: where it acts, in training and after.
        steps: of AdamW.
        lr: learning rate.
        batch: examples per step.
        weight_decay: per step and unit of lr, on R, W and b.
        clip: longest gradient; None for no limit.
        seed: of the start and of the order of the examples.
        progress: show a bar.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "encode")

    form: str = "loreft"
    rank: int = 8
    scope: str = "span(0, 1)|last_prompt"
    steps: int = 100
    lr: float | int = 5e-3
    batch: int = 16
    weight_decay: float | int = 0.0
    clip: float | int | None = None
    seed: int = 0
    progress: bool = True

    def fit(
        self,
        contrast: Contrast,
        *,
        run: Callable[..., Any],
        encode: Callable[[str], Any],
        loss: Loss | None = None,
    ) -> Intervention:
        """The trained edit at every recorded site; `params` holds the loss at start and end.

        Args:
            contrast: its positive prompts carry the completions; its rows say how wide sites are.
            loss: another objective, see `training.train`.

        Raises:
            UnknownName: no such form.
            WorkbenchError: a prompt without a completion, a rank that does not fit, options out of
                range, or a loss that is not finite.
        """
        widths = {s: p.shape[1] for s, p, _ in sites_of(contrast, "LoReft")}
        prompts = contrast.prompts[0] if contrast.prompts else ()
        examples = completions_of(prompts, encode, "LoReft.fit")
        check("LoReft(rank)", self.form, self.rank, len(examples), widths)

        def build(tensors: Any) -> Intervention:
            return Intervention(
                "lo_reft",
                "affine",
                folded(self.form, tensors),
                unit="multiples of the trained edit",
                scope=Scope.parse(self.scope),
                model=contrast.model,
            )

        trained = train(
            build,
            start(self.form, self.rank, widths, self.seed),
            examples,
            run,
            steps=self.steps,
            lr=self.lr,
            batch=self.batch,
            seed=derive(self.seed, "order"),
            weight_decay=self.weight_decay,
            clip=self.clip,
            loss=loss,
            progress=self.progress,
            name="LoReft",
        )
        return self._edit(build(trained.tensors), trained.losses)

    def _edit(self, edit: Intervention, losses: tuple[float, ...]) -> Intervention:
        said = {"form": self.form, "rank": self.rank, "seed": self.seed, "steps": self.steps}
        said |= {"loss_start": losses[0], "loss_end": losses[-1]}
        return Intervention(
            edit.method,
            edit.operation,
            {
                site: {name: tensor.detach().clone() for name, tensor in tensors.items()}
                for site, tensors in edit.tensors.items()
            },
            unit=edit.unit,
            scope=edit.scope,
            params=said,
            model=edit.model,
        )

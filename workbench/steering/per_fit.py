"""PerFit: a low-rank edit all users share, then a smaller one for one user on top of it.

    stage 1    h1 = h  + R1^T (W1 h  + b1 - R1 h)       trained on everybody's completions
    stage 2    h2 = h1 + R2^T (W2 h1 + b2 - R2 h1)      trained on one user's, stage 1 fixed

Both stages are affine, so they fold into one edit per site: with h1 = h + M1 h + c1 and
h2 = h1 + M2 h1 + c2, M = M1 + M2 + M2 M1 and c = c1 + c2 + M2 c1. The change of each stage lies in
the rows of its R: (I - R^T R) dh = 0.

Shapes: up, down `[r1 + r2, d]`; shift `[d]`, per site.
Units: strength s counts the trained edit: s = 1 is both stages as trained.
Source: Liu, Yu, Dai, Li, Zhu, Yang, Chua and King (2026), PerFit: Exploring Personalization Shifts
    in Representation Space of LLMs, https://openreview.net/forum?id=Lwn67fk9e1, known here from
    its abstract and notes by others; the released code could not be read.
Differs from the paper: Our reading: stage 2 starts anew, at an edit that changes nothing (W2 = R2,
    b2 = 0), and stage 1 stays as it is; both act at every position of prompt and answer. Ranks are
    8 and 4, where the notes have about 32, and 4 to 32, for models 4096 wide; training counts steps
    in the notes' proportion of 3 epochs to 2, and lr is 1e-3 where they have 1e-4, as models here
    are small and histories short. AdamW with weight decay 1e-2 and gradients clipped at 0.3 are
    theirs. Without `user` the collective stage alone is what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from workbench.errors import unknown
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.seeds import derive
from workbench.steering.base import Need, SteeringMethod, sites_of
from workbench.steering.reft import check, folded, stacked, start
from workbench.steering.training import Example, Loss, completions_of, train
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Liu, Yu, Dai, Li, Zhu, Yang, Chua, King",
        "PerFit: Exploring Personalization Shifts in Representation Space of LLMs",
        2026,
        "https://openreview.net/forum?id=Lwn67fk9e1",
    ),
)
@dataclass(frozen=True)
class PerFit(SteeringMethod):
    """Train a low-rank edit on all users' completions, then a smaller one on one user's.

    Attributes:
        user: whose edit: the value of `meta["user"]` in that user's prompts; None for the
            collective stage alone.
        rank: directions per site of the collective stage.
        user_rank: directions per site of the personal stage.
        scope: where both act, in training and after.
        steps, user_steps: of AdamW, per stage.
        lr, weight_decay, batch, seed: of both stages.
        clip: longest gradient; None for no limit.
        progress: show a bar.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "encode")

    user: str | int | None = None
    rank: int = 8
    user_rank: int = 4
    scope: str = "all"
    steps: int = 90
    user_steps: int = 60
    lr: float | int = 1e-3
    batch: int = 16
    weight_decay: float | int = 1e-2
    clip: float | int | None = 0.3
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
        """Both stages as one edit at every recorded site; `params` holds the losses.

        Args:
            contrast: its positive prompts carry completions and, for `user`, `meta["user"]`.
            loss: another objective, see `training.train`.

        Raises:
            UnknownName: no prompt of that user.
            WorkbenchError: a prompt without a completion, a rank that does not fit, options out of
                range, or a loss that is not finite.
        """
        widths = {s: p.shape[1] for s, p, _ in sites_of(contrast, "PerFit")}
        prompts = contrast.prompts[0] if contrast.prompts else ()
        examples = completions_of(prompts, encode, "PerFit.fit")
        mine = self._mine(examples)
        check("PerFit(rank)", "loreft", self.rank, len(examples), widths)
        said = {"user": self.user, "rank": self.rank, "seed": self.seed}
        together, told = self._stage(1, contrast, widths, examples, run, loss, ())
        tensors, said = dict(together.tensors), said | told
        if mine:
            check("PerFit(user_rank)", "loreft", self.user_rank, len(mine), widths)
            alone, told = self._stage(2, contrast, widths, mine, run, loss, (together,))
            said |= {"user_rank": self.user_rank, **told}
            tensors = {s: stacked(t, alone.tensors[s]) for s, t in tensors.items()}
        return self._edit(contrast, tensors, said)

    def _mine(self, examples: Sequence[Example]) -> list[Example]:
        if self.user is None:
            return []
        mine = [e for e in examples if e.prompt.meta.get("user") == self.user]
        if not mine:
            known = sorted(
                {str(e.prompt.meta["user"]) for e in examples if "user" in e.prompt.meta}
            )
            raise unknown(
                "PerFit(user)", "user", self.user, known or ["(no prompt has meta['user'])"]
            )
        return mine

    def _stage(
        self,
        stage: int,
        contrast: Contrast,
        widths: Mapping[str, int],
        examples: Sequence[Example],
        run: Callable[..., Any],
        loss: Loss | None,
        before: Sequence[Intervention],
    ) -> tuple[Intervention, dict[str, float]]:
        """The trained edit of one stage and its losses."""
        rank, steps = (self.rank, self.steps) if stage == 1 else (self.user_rank, self.user_steps)
        seed = derive(self.seed, "stage", stage)

        def build(tensors: Mapping[str, Tensor]) -> Intervention:
            return self._edit(contrast, folded("loreft", tensors), {})

        trained = train(
            build,
            start("loreft", rank, widths, seed),
            examples,
            run,
            steps=steps,
            lr=self.lr,
            batch=self.batch,
            seed=derive(seed, "order"),
            weight_decay=self.weight_decay,
            clip=self.clip,
            loss=loss,
            before=before,
            progress=self.progress,
            name=f"PerFit stage {stage}",
        )
        who = "collective" if stage == 1 else "user"
        first, last = trained.losses[0], trained.losses[-1]
        return build(trained.tensors), {f"{who}_loss_start": first, f"{who}_loss_end": last}

    def _edit(
        self,
        contrast: Contrast,
        tensors: Mapping[str, Mapping[str, Tensor]],
        said: Mapping[str, Any],
    ) -> Intervention:
        return Intervention(
            "per_fit",
            "affine",
            tensors,
            unit="multiples of the trained edit",
            scope=Scope.parse(self.scope),
            params=said,
            model=contrast.model,
        )

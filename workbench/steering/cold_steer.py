"""What one gradient step on some examples would do to the activation, without taking it.

    g = mean over examples of dL/dtheta, for the embedding and the blocks up to the site
    jvp      h' = h - s J_h(x) g, the exact derivative of h(x; theta - s g) at s = 0
    fd       h' = h - s (h(x; theta + e g) - h(x; theta)) / e
    kernel   h' = h - s mean_i k(h, h_i) dL_i/dh_i, i the examples, at their last prompt position

Kernels: `unit` is 1, so that the edit is one constant vector; `dot` is h . h_i; `projection` is the dot
product after a random projection to fewer dimensions. All three fold into an affine edit.

Shapes: g as the parameters; h_i and dL_i/dh_i `[d]`; edits hold `tangent.<parameter>` = -g, or
    `down` `[n, d]` with `up` `[n, d]`, or `shift` `[d]`.
Units: strength s is the learning rate of the step: s = 1 is a step of rate 1.
Source: Sharma and Trivedi (2026), COLD-Steer: Steering Large Language Models via In-Context One-step
    Learning Dynamics, https://arxiv.org/abs/2603.06495.
Differs from the paper: it has finite differences with a fixed epsilon of 1e-6, which in float32 is
    mostly rounding where g is small; here the derivative is exact (forward mode) by default, and the
    finite difference scales epsilon by |theta| / |g|. Steps are counted from the unedited model and
    all tokens so far, so that a KV cache makes no difference; each step of a generation reads its
    prefix again. The empirical neural tangent kernel is left out: `jvp` is what it approximates.
    Our reading: log-probabilities are averaged over the tokens of a completion in both losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.records import Prompt
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.seeds import derive
from workbench.shapes import Float, Rows, Tensor
from workbench.steering.base import Need, SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention, finite

MODES, LOSSES, KERNELS = ("jvp", "fd", "kernel"), ("dpo", "sft"), ("unit", "dot", "projection")
Groups = list[tuple[Prompt, ...]]


@register(
    "steering",
    Citation(
        "Sharma, Trivedi",
        "COLD-Steer: Steering Large Language Models via In-Context One-step Learning Dynamics",
        2026,
        "https://arxiv.org/abs/2603.06495",
    ),
)
@dataclass(frozen=True)
class ColdSteer(SteeringMethod):
    """Move as one gradient step on the examples would.

    Prompts need completions, whose likelihood the loss is made of. One site is edited: steps at
    several layers would count the lower layers' part again and again.

    Attributes:
        mode: "jvp", "fd" or "kernel", see the module.
        loss: "dpo" prefers the positive to the negative completion of each pair, without a reference
            model; "sft" makes the positive completions likely.
        beta: how sharp the preference of "dpo" is.
        layer: where it acts, one of the recorded layers; None is the middle one of them.
        kernel: for "kernel".
        width: dimensions of the random projection of "projection".
        epsilon: for "fd", in units of |theta| / |g|, so that it is the share by which parameters move;
            by default a twentieth of the root of their resolution (1.7e-5 in float32). More is no
            longer linear, less is rounding: errors of tiny models were least at 1e-5 to 3e-5.
        seed: of the random projection.
        batch_size: examples at once while gradients are taken.
    """

    mode: Literal["jvp", "fd", "kernel"] = "jvp"
    loss: Literal["dpo", "sft"] = "dpo"
    beta: float | int = 0.1
    layer: int | None = None
    kernel: Literal["unit", "dot", "projection"] = "unit"
    width: int = 16
    epsilon: float | int | None = None
    seed: int = 0
    batch_size: int = 8

    @property
    def needs(self) -> tuple[Need, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A kernel needs gradients of activations, the other modes those of parameters."""
        if self.mode == "kernel":
            return ("run", "encode")
        return ("gradient", "parameters") if self.mode == "fd" else ("gradient",)

    def fit(self, contrast: Contrast, **handed: Any) -> Intervention:
        """The edit at one site.

        Raises:
            WorkbenchError: options out of range, prompts without a completion, unpaired prompts for
                "dpo", a layer that was not recorded, or examples that leave no gradient.
        """
        self._check()
        sites = [site for site, _, _ in sites_of(contrast, "ColdSteer", self.loss == "dpo")]
        site, groups = self._site(sites), self._groups(contrast)
        params: dict[str, Any] = {"mode": self.mode, "loss": self.loss}
        if self.mode == "kernel":
            states, gradients = self._at_activations(groups, site, handed["run"], handed["encode"])
            _some(float(gradients.norm()))
            tensors = folded(states, gradients, self.kernel, self.width, self.seed)
            return self._edit(contrast, "affine", site, tensors, params | {"kernel": self.kernel})
        g = handed["gradient"](groups, self._objective, site, batch_size=self.batch_size)
        size = _norm(g)
        _some(size)
        params |= {"rule": "tangent", "site": site}
        if self.mode == "fd":
            theta = {name: handed["parameters"][name].detach() for name in g}
            coarsest = max(torch.finfo(t.dtype).eps for t in theta.values())
            share = coarsest**0.5 / 20 if self.epsilon is None else float(self.epsilon)
            params["epsilon"] = share * _norm(theta) / size
        tensors = {f"tangent.{name}": -t for name, t in g.items() if bool(t.any())}
        return self._edit(contrast, "adaptive", site, tensors, params)

    def _edit(
        self,
        contrast: Contrast,
        operation: str,
        site: str,
        tensors: dict[str, Tensor],
        params: dict[str, Any],
    ) -> Intervention:
        return Intervention(
            "cold_steer",
            operation,
            {site: tensors},
            unit="learning rate of one gradient step",
            params=params,
            model=contrast.model,
        )

    def _objective(self, logprobs: Sequence[Tensor]) -> Tensor:
        """The loss of one group in nats, from the log-probabilities of its completions."""
        means = [row.mean() for row in logprobs]
        if self.loss == "sft":
            return -means[0]
        return -torch.nn.functional.logsigmoid(self.beta * (means[0] - means[1]))

    def _site(self, sites: list[str]) -> str:
        """The site to edit: of the named layer, or the middle one."""
        found = [s for s in sites if self.layer is None or s.startswith(f"L{self.layer}.")]
        if not found:
            raise unknown("ColdSteer(layer=)", "layer", f"L{self.layer}", sites)
        site = found[(len(found) - 1) // 2]
        if "[" in site:
            raise WorkbenchError(
                "ColdSteer.fit",
                "cannot step at a part of a site",
                expected="a whole site, such as L1.z",
                got=site,
                do="leave the selector out",
            )
        return site

    def _groups(self, contrast: Contrast) -> Groups:
        positive, negative = contrast.prompts or ((), ())
        both = self.loss == "dpo"
        groups = list(zip(positive, negative, strict=True)) if both else [(p,) for p in positive]
        bare = [p for group in groups for p in group if not p.meta.get("completion")]
        if bare or not groups:
            raise WorkbenchError(
                "ColdSteer.fit",
                "there are prompts without a completion, whose likelihood the loss is made of",
                expected="meta['completion'] in every prompt that is learned from",
                got=f"{len(bare)} without, such as {bare[0].text!r}" if bare else "no prompts",
                do="make them with workbench.prompts.completions(prompts, positive=, negative=)",
            )
        return groups

    def _at_activations(
        self, groups: Groups, site: str, run: Callable[..., Any], encode: Callable[[str], list[int]]
    ) -> tuple[Rows, Rows]:
        """Of every example: its activation at the last prompt position, and the loss's gradient there.

        A group's loss is divided by the number of groups, so that the gradients sum to the mean's.
        """
        states, gradients = [], []
        for group in groups:
            tails = [encode(p.meta["completion"]) for p in group]
            with torch.enable_grad():
                zero = torch.zeros(len(group), 1, *_width(run, group, site), requires_grad=True)
                probe = Intervention(
                    "probe",
                    "affine",
                    {site: {"shift": zero}},
                    scope=Scope.parse("last_prompt"),
                    conditional=True,
                )
                trace = run(
                    list(group), [site], [probe], completions=tails, logits="all", grad=True
                )
                loss = self._objective(list(_told(trace.logits, tails)))
                (found,) = torch.autograd.grad(loss, [zero])
            ends = [-len(ids) - 1 for ids in tails]
            values = trace.values[site].detach()
            states += [values[i, end].flatten().cpu() for i, end in enumerate(ends)]
            gradients += [row.flatten().cpu() / len(groups) for row in found[:, 0]]
        return torch.stack(states), torch.stack(gradients)

    def _check(self) -> None:
        for option, value, known in (
            ("mode", self.mode, MODES),
            ("loss", self.loss, LOSSES),
            ("kernel", self.kernel, KERNELS),
        ):
            if value not in known:
                raise unknown(f"ColdSteer({option}=)", option, value, known)
        for option in ("beta", "width", "epsilon", "batch_size"):
            value = getattr(self, option)
            if value is not None and finite(f"ColdSteer({option})", float(value)) <= 0:
                raise WorkbenchError(
                    f"ColdSteer({option})",
                    "is out of range",
                    expected="more than 0",
                    got=value,
                    do="correct it",
                )


def folded(
    states: Rows, gradients: Rows, kernel: str = "unit", width: int = 16, seed: int = 0
) -> dict[str, Float[Tensor, ...]]:
    """The affine edit `-sum_i k(h, h_i) gradients_i` of examples with activations `states`."""
    if kernel == "unit":
        return {"shift": -gradients.double().sum(0).float()}
    down = states.double()
    if kernel == "projection":
        generator = torch.Generator().manual_seed(derive(seed, "cold_steer", "projection"))
        r = torch.randn(width, states.shape[1], generator=generator, dtype=torch.float64)
        down = down @ r.mT @ r / width
    return {"down": down.float(), "up": -gradients.double().float()}


def _told(logits: Tensor, tails: list[list[int]]) -> list[Tensor]:
    """Log-probabilities of each row's completion; rows are padded on the left."""
    found = []
    for row, ids in zip(logits, tails, strict=True):
        told = row[-len(ids) - 1 : -1].float().log_softmax(-1)
        found.append(told.gather(1, torch.tensor(ids, device=told.device)[:, None])[:, 0])
    return found


def _width(run: Callable[..., Any], group: tuple[Prompt, ...], site: str) -> tuple[int, ...]:
    return tuple(run(list(group[:1]), [site]).values[site].shape[2:])


def _norm(tensors: dict[str, Tensor]) -> float:
    return sum(float(t.double().norm()) ** 2 for t in tensors.values()) ** 0.5


def _some(size: float) -> None:
    if not size > 0 or size == float("inf"):
        raise WorkbenchError(
            "ColdSteer.fit",
            "the examples leave no gradient to step along",
            expected="a loss that depends on the site, finite and not yet at its minimum",
            got=f"a gradient of norm {size}",
            do="take other completions; in float16 load the model in float32 or bfloat16",
        )

"""The way from the residual stream to the logits: the model's own final norm and unembedding.

    unembed(h)          the logits that a residual stream h gives, through the model's own forward
    readout(h, a, b)    (u, c) with u . h + c = logit(a) - logit(b), the final norm's scale frozen at h
    effects(u, h)       what a unit of each direction u adds to all logits, at the same frozen scale
    writes(layer, z)    what each head of a block adds, through its part of the output projection

A final norm is taken to be  y = s(x) gamma * (x - m mean(x)) + beta  with m 0 (RMS) or 1 (layer norm).
Nothing is read off its attributes: beta is its answer to 0; gamma, up to a factor, its answer to
c (1, -1, 1, ...); m follows from its answer to a constant; s(x) is fitted to its answer at x. A norm that
this does not fit is refused, and so is a readout that does not give the model's own logits.

Shapes: residual streams `[..., d]`, logits `[..., vocab]`, z `[..., head, d_head]`.
Units: logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.model.backends.skip import skipped
from workbench.model.backends.turn import turn
from workbench.model.model import Model
from workbench.model.run import gradients_off, usable
from workbench.shapes import Float, Int
from workbench.tensors import Tokens

LARGEST_CHUNK = 2**24
"""Numbers made at once: 64 MB in fp32."""
PROBE = 64.0
"""Size of what the final norm is asked with: its epsilon vanishes beside the square of it."""


@torch.no_grad()
def lens_logits(model: Model, tokens: Tokens, resid: Tensor) -> Tensor:
    """The model's own head over any residual stream, `[layer, pos, vocab]` from `[layer, pos, d]`.

    The model's forward runs with every block replaced by one that gives `resid`, so that whatever
    the head does after the unembedding, such as a soft cap, is in. One prompt.
    """
    return _headed(model, tokens.ids.expand(resid.shape[0], -1), resid)


def _headed(model: Model, ids: Tensor, resid: Tensor, grad: bool = False) -> Tensor:
    blocks = model.hf.get_submodule(model.layout.blocks)
    mode = torch.enable_grad() if grad else gradients_off(model)
    with turn(model.backend), skipped(blocks, model.n_layers, resid), mode:
        return usable(model.hf(input_ids=ids, use_cache=False).logits)


class Head:
    """The head of one model, asked by localisers.

    Attributes:
        n_vocab: width of the logits.
        progress: whether whoever trains on it shows a bar.
    """

    def __init__(self, model: Model, progress: bool = False):
        self._model = model
        self.n_vocab = model.dims.n_vocab
        self.progress = progress

    def chunks(self, rows: int, copies: int = 1) -> Iterator[slice]:
        """Slices of `rows` whose logits, `copies` times, are not many at once."""
        step = max(1, LARGEST_CHUNK // (self.n_vocab * copies))
        for start in range(0, rows, step):
            yield slice(start, min(rows, start + step))

    def unembed(self, resid: Float[Tensor, "*rows d"], *, grad: bool = False) -> Tensor:
        """The model's own logits of any residual streams, `[..., vocab]` from `[..., d]`.

        Args:
            resid: what the last block could have given; cast to the model's dtype.
            grad: keep the graph from `resid` to the logits.
        """
        flat = resid.reshape(-1, resid.shape[-1]).to(self._model.device, self._model.dtype)
        parts = [self._unembedded(flat[rows], grad) for rows in self.chunks(len(flat))]
        found = torch.cat(parts) if parts else flat.new_empty(0, self.n_vocab)
        return found.reshape(*resid.shape[:-1], self.n_vocab)

    def _unembedded(self, rows: Tensor, grad: bool) -> Tensor:
        # a row each of one position, so that no number of rows exceeds the model's context; which
        # token does not matter, but transformers warns of padding
        token = int(getattr(self._model.hf.config, "pad_token_id", None) == 0)
        ids = torch.full((len(rows), 1), token, device=self._model.device)
        return _headed(self._model, ids, rows[:, None], grad)[:, 0]

    @torch.no_grad()
    def readout(
        self,
        resid: Float[Tensor, "case d"],
        plus: Int[Tensor, " case"],
        minus: Int[Tensor, " case"] | None = None,
    ) -> tuple[Float[Tensor, "case d"], Float[Tensor, " case"]]:
        """`direction` and `constant`: direction . resid + constant = logit(plus) - logit(minus).

        Args:
            resid: the residual stream that enters the final norm, where its scale is frozen.
            plus, minus: token ids of each case; without `minus` the mean logit is subtracted.

        Raises:
            WorkbenchError: the logits are no linear function of the stream at a frozen scale, as
                behind a soft cap, or the unembedding's weights are not at hand.
        """
        weight, bias = self._unembedding()
        self._nothing_follows()
        norm, scale = self._norm_at(resid)
        plus = plus.to(weight.device)
        minus = None if minus is None else minus.to(weight.device)
        rows = _picked(weight, plus, minus).to(resid.device)
        offsets = 0.0 if bias is None else _picked(bias, plus, minus).to(resid.device)
        constant = rows @ norm.beta + offsets
        direction = scale * norm.gamma * rows
        if norm.centred:
            direction = direction - direction.mean(-1, keepdim=True)
        self._check(resid, direction, constant, plus, minus)
        return direction.float(), constant.float()

    @torch.no_grad()
    def effects(
        self, directions: Float[Tensor, "direction d"], resid: Float[Tensor, "case d"]
    ) -> Float[Tensor, "direction vocab"]:
        """Logits, less their mean, that a unit of each direction adds on its straight way to the head.

        The final norm's scale is frozen at its median over `resid`. Whatever follows the unembedding,
        such as a soft cap, is left out.

        Args:
            directions: of the residual stream.
            resid: residual streams that enter the final norm; those that are 0 are left out.

        Raises:
            WorkbenchError: the final norm is neither an RMS nor a layer norm, or the unembedding's
                weights are not at hand.
        """
        weight, _ = self._unembedding()
        there = resid.any(-1)  # a stream of 0 has no scale
        norm, scale = self._norm_at((resid[there] if there.any() else resid).to(weight.device))
        inner = directions.to(weight.device).double()
        inner = inner - inner.mean(-1, keepdim=True) if norm.centred else inner
        logits = (inner * norm.gamma * scale.median()).float() @ weight.float().mT
        return logits - logits.mean(-1, keepdim=True)

    def _norm_at(self, resid: Tensor) -> tuple[_Norm, Tensor]:
        """The final norm taken apart, and its scale at each row, `[case, 1]`."""
        norm = _taken_apart(self._final_norm, resid.shape[-1], self._model.dtype, resid.device)
        scale, fit = norm.scale(self._final_norm, resid.to(self._model.dtype))
        if not fit <= self._tolerance:
            raise _not_linear("the final norm is neither an RMS nor a layer norm", fit)
        return norm, scale

    @property
    def _tolerance(self) -> float:
        return 1e-4 + 4 * torch.finfo(self._model.dtype).eps

    def _check(
        self, resid: Tensor, direction: Tensor, constant: Tensor, plus: Tensor, minus: Tensor | None
    ) -> None:
        """Hold the readout against the model's own logits."""
        for rows in self.chunks(len(resid)):
            own = self.unembed(resid[rows]).float().to(resid.device)
            picked = _at(own, plus[rows])
            other = own.mean(-1) if minus is None else _at(own, minus[rows])
            found = (resid[rows].double() * direction[rows]).sum(-1) + constant[rows]
            off = float((found - (picked - other)).abs().max())
            if not off <= self._tolerance * (1 + float(own.abs().max())):
                raise _not_linear("the readout does not give the model's own logits", off)

    def _nothing_follows(self) -> None:
        """Put large logits in the unembedding's place: they have to come out as they are."""
        put = torch.linspace(-100, 100, self.n_vocab, device=self._model.device)
        put = put.to(self._model.dtype)[None, None]
        handle = self._model.hf.get_output_embeddings().register_forward_hook(lambda *_: put)
        try:
            stream = torch.ones(1, self._model.d_model, device=self._model.device)
            after = self._unembedded(stream.to(self._model.dtype), False)
        finally:
            handle.remove()
        off = float((after.float() - put[0].float()).abs().max())
        if not off <= 100 * self._tolerance:
            raise _not_linear("something follows the unembedding, such as a soft cap", off)

    def _final_norm(self, h: Tensor) -> Tensor:
        """The final norm without anybody's hooks, on the device of `h`."""
        path = self._model.layout.outside["final_norm"].module
        return self._model.hf.get_submodule(path).forward(h).to(h.device)

    def _unembedding(self) -> tuple[Tensor, Tensor | None]:
        module = self._model.hf.get_output_embeddings()
        weight = getattr(module, "weight", None)
        if weight is None or weight.is_meta or not weight.is_floating_point():
            raise WorkbenchError(
                "head.readout",
                "the unembedding's weights are not at hand",
                expected="an unembedding in memory, not offloaded and not quantised",
                got=type(module).__name__,
                do="load the model in full precision",
            )
        return weight.detach(), getattr(module, "bias", None)

    @torch.no_grad()
    def writes(
        self,
        layer: int,
        z: Float[Tensor, "*rows head d_head"],
        attn_out: Float[Tensor, "*rows d"] | None = None,
    ) -> Tensor:
        """What each head adds to the stream, `[..., head, d]` in float32; the bias is not in it.

        Args:
            attn_out: recorded with `z`; where given, heads and bias have to add up to it.

        Raises:
            WorkbenchError: they do not, as where a norm stands behind the output projection.
        """
        found = torch.einsum("...hk,hkd->...hd", z.float(), self._output_matrix(layer))
        if attn_out is not None:
            total = found.sum(-2) + self.write_bias(layer)
            off = float((total - attn_out.float()).abs().max())
            if not off <= self._tolerance * (1 + float(attn_out.abs().max())):
                raise _not_added_up(layer, off)
        return found

    @torch.no_grad()
    def write_norms(self, layer: int, z: Float[Tensor, "*rows head d_head"]) -> Tensor:
        """Euclidean length of each head's write, `[..., head]`; few writes lie in memory at once."""
        matrix, flat = self._output_matrix(layer), z.flatten(0, -3).float()
        step = max(1, LARGEST_CHUNK // (matrix.shape[0] * matrix.shape[-1]))
        norms = [
            torch.einsum("rhk,hkd->rhd", rows, matrix).norm(dim=-1) for rows in flat.split(step)
        ]
        return torch.cat(norms).unflatten(0, z.shape[:-2])

    @torch.no_grad()
    def write_bias(self, layer: int) -> Float[Tensor, " d"]:
        """What the output projection of a block adds whatever its heads do, in float32."""
        module, width = self._projection(layer), self._width
        zero = torch.zeros(1, width, dtype=self._model.dtype, device=self._model.device)
        return module.forward(zero)[0].float()

    @property
    def _width(self) -> int:
        return self._model.dims.n_heads * self._model.dims.d_head

    def _projection(self, layer: int) -> nn.Module:
        blocks = self._model.hf.get_submodule(self._model.layout.blocks)
        block = blocks.get_submodule(str(layer))
        return block.get_submodule(self._model.layout.inside["z"].module)

    def _output_matrix(self, layer: int) -> Float[Tensor, "head d_head d"]:
        """The output projection as `[head, d_head, d]` in float32, whatever module it is."""
        module = self._projection(layer)
        if type(module) is nn.Linear and "forward" not in module.__dict__:
            matrix = module.weight.detach().mT
        else:  # its answer to each unit vector
            options = {"dtype": self._model.dtype, "device": self._model.device}
            matrix = module.forward(torch.eye(self._width, **options)) - self.write_bias(layer)
        return matrix.float().unflatten(0, (self._model.dims.n_heads, -1))


@dataclass(frozen=True)
class _Norm:
    """A final norm taken apart, in float64; `gamma` up to a factor, which a fitted scale makes up for."""

    gamma: Tensor
    beta: Tensor
    centred: bool

    def scale(self, norm: object, x: Tensor) -> tuple[Tensor, float]:
        """`[case, 1]`, and how far the fit is from what the norm gives, relative to that."""
        given = norm(x).double() - self.beta  # pyright: ignore[reportCallIssue]
        inner = x.double()
        inner = inner - inner.mean(-1, keepdim=True) if self.centred else inner
        inner = inner * self.gamma
        fitted = (given * inner).sum(-1, keepdim=True) / inner.square().sum(-1, keepdim=True)
        off = (given - fitted * inner).norm(dim=-1) / given.norm(dim=-1).clamp(min=1e-12)
        return fitted, float(off.max())


def _taken_apart(norm: object, d: int, dtype: torch.dtype, device: torch.device) -> _Norm:
    """Three questions to the norm: 0, a vector of alternating signs, and a constant."""
    signs = torch.ones(d, dtype=torch.float64, device=device)
    signs[1::2] = -1
    if d % 2:  # the sum has to be 0; what this leaves out, the shifted copy asks for
        signs[-1] = 0
    asked = torch.stack([0 * signs, signs, signs.roll(1), signs.square() * 0 + 1])
    zero, first, second, level = norm((PROBE * asked).to(dtype)).double()  # pyright: ignore[reportCallIssue]
    shifted = signs.roll(1)
    gamma = torch.where(signs != 0, (first - zero) * signs, (second - zero) * shifted)
    centred = float((level - zero).norm()) < 0.01 * float(gamma.norm())
    return _Norm(gamma, zero, centred)


def _at(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(-1, ids[:, None].to(logits.device))[:, 0]


def _picked(weight: Tensor, plus: Tensor, minus: Tensor | None) -> Tensor:
    """Rows of the unembedding, or its biases, of `plus` less those of `minus`, in float64."""
    other = weight.mean(0, dtype=torch.float32) if minus is None else weight[minus]
    return weight[plus].double() - other.double()


def _not_linear(wrong: str, off: float) -> WorkbenchError:
    return WorkbenchError(
        "head.readout",
        f"{wrong}, so that parts of the residual stream have no share in the logits",
        expected="logits linear in the normed residual stream",
        got=f"a deviation of {off:.3g}",
        do="use logit_lens or activation_patching, which go through the model's own head",
    )


def _not_added_up(layer: int, off: float) -> WorkbenchError:
    return WorkbenchError(
        f"head.writes(layer={layer})",
        "heads and bias do not add up to what attention adds, as where a norm follows them",
        expected="attn_out = sum of the heads' writes + bias",
        got=f"a deviation of {off:.3g}",
        do="look at attention as a whole (heads=False), or patch heads instead",
    )

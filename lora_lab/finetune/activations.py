r"""Norms and gated layers that keep less for the backward pass, and compute the same.

Most of what a training step keeps in memory are not weights but activations, and frozen layers keep theirs too. Written
plainly, an RMSNorm keeps its input in float32, and a gated layer, :math:`\sigma(g) \odot u`, keeps g, u and σ(g). Half
of the first and a third of the second follow from the rest in a moment: so they are computed again. Matrix products are
not, unlike in gradient checkpointing.

Sources: B. Zhang and R. Sennrich (2019), "Root Mean Square Layer Normalization", arXiv:1910.07467; N. Shazeer (2020),
"GLU Variants Improve Transformer", arXiv:2002.05202; T. Chen et al. (2016), "Training Deep Nets with Sublinear Memory
Cost", arXiv:1604.06174, for what is cheap enough to be computed again.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lora_lab.lora.targets import plain

LONG = 100.0  # the largest gate in the second trial of a layer; clamps are at 7, 10 or thereabouts


class _RMSNorm(torch.autograd.Function):
    r"""The norm :math:`y = w \odot x / \sqrt{\overline{x^2} + \epsilon}`, in float32; x is kept in its own type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        wide = x.to(torch.float32)
        gradient = (upstream * weight).to(torch.float32)  # that of x · scale
        along = (gradient * wide).mean(-1, keepdim=True)  # scale changes with x, by −scale³ x / features
        return (gradient * scale).addcmul_(wide, along * scale.pow(3), value=-1).to(x.dtype), None, None


class _Gated(torch.autograd.Function):
    r"""The product :math:`\sigma(g) \odot u`, of which g and u are kept."""

    @staticmethod
    def forward(ctx: Any, activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        return activation(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            again = gate.detach().requires_grad_()
            opened = ctx.activation(again)
        (by_gate,) = torch.autograd.grad(opened, again, upstream * up)
        return None, by_gate, upstream * opened.detach()


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    """Be the forward pass of a norm."""
    result: Tensor = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
    return result


def _gated_layer(self: Any, x: Tensor) -> Tensor:
    """Be the forward pass of a gated layer."""
    result: Tensor = self.down_proj(_Gated.apply(self.act_fn, self.gate_proj(x), self.up_proj(x)))
    return result


@contextlib.contextmanager
def keep_less(model: nn.Module) -> Iterator[int]:
    """Let the norms and gated layers of ``model`` keep less, for a while; give how many do.

    Those are meant that transformers writes as Llama has them: most of its newer language models do. Each is tried
    first, on small numbers and on large ones, and left as it is unless it gives the same to the last bit. A norm whose
    weight is trained or that has more than a weight is left too, and so is a module that takes more than its input or
    whose forward pass something else has replaced.
    """
    found = []
    for module in model.modules():
        forward = _frugal(module)
        if forward is not None and _same(module, forward):
            found.append((module, forward))
    try:
        for module, forward in found:
            module.forward = MethodType(forward, module)  # a method, so that a copy of the model has its own
        yield len(found)
    finally:
        for module, _ in found:
            del module.forward


def _frugal(module: Any) -> Callable[[Any, Tensor], Tensor] | None:
    """Give the forward pass that might stand for a module's own, by its parts; whether it does is to be tried."""
    if "forward" in vars(module) or len(inspect.signature(type(module).forward).parameters) != 2:
        return None  # replaced already, or it takes more than its input, as a norm with a gate does
    if isinstance(getattr(module, "variance_epsilon", None), float):
        parameters = dict(module.named_parameters())
        weight = parameters.pop("weight", None)
        fits = weight is not None and weight.ndim == 1 and not weight.requires_grad and not parameters
        return _norm if fits else None
    gated = all(isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj"))
    activation = getattr(module, "act_fn", None)
    learns = isinstance(activation, nn.Module) and any(True for _ in activation.parameters())
    return _gated_layer if gated and callable(activation) and not learns else None


@torch.no_grad()
def _same(module: Any, forward: Callable[[Any, Tensor], Tensor]) -> bool:
    """Say whether a forward pass gives what the module's own does, with the same random numbers.

    It is tried on eight vectors, and on the same made longer, until the largest gate is ``LONG``: there are layers
    that clamp what is large.
    """
    layer: Any = module if forward is _norm else plain(module.gate_proj)
    try:
        like = next(tensor for tensor in (layer.weight, *module.parameters()) if tensor.is_floating_point())
        features = len(like) if forward is _norm else layer.in_features
    except (AttributeError, StopIteration):  # its weights are kept as something else
        return False
    x = torch.randn(1, 8, features, generator=torch.Generator().manual_seed(0)).to(like)
    was_training = module.training
    module.train()
    try:
        largest = x.abs().max() if forward is _norm else module.gate_proj(x).abs().max()
        for one in (x, x * (LONG / largest)):
            ours, theirs = (_with_same_draws(way, one) for way in (MethodType(forward, module), module))
            if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
                return False
    except (AttributeError, RuntimeError, TypeError):  # it takes or gives something else
        return False
    finally:
        module.train(was_training)
    return True


def _with_same_draws(way: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Give ``way(x)`` with random numbers that are the same each time, and leave the global ones as they were."""
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(0)
        return way(x)

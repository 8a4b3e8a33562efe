"""A base in 4 bits with a LoRA on top: what QLoRA does, in a few lines that can be read.

A weight becomes 16 levels and, for each block of 64 numbers, one scale: 4 + 32/64 = 4.5 bits a number instead of 16 or
32. It is dequantized whenever it is used, so it saves memory and no time; real tools (bitsandbytes) do this in one
fused kernel on the GPU. The base is only read, never trained, which is why it may be this coarse: what is learned is in
the factors, in full precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_lab.lora.attach import lora_layers
from lora_lab.lora.config import LoRAConfig, Targets, checked_rank
from lora_lab.lora.layers import KINDS, LoRALinear, full_name
from lora_lab.lora.targets import find_layers

BLOCK = 64  # numbers that share a scale, as in QLoRA


def nf4_levels() -> Tensor:
    """Give the 16 levels of NormalFloat4, (16,) float32 from −1 to 1, with 0 among them.

    They are quantiles of the normal law, which lie close together near zero, where most weights are: 7 below zero, 8
    above it, zero itself, all divided by the largest.

    Source: Dettmers et al. (2023), "QLoRA: Efficient finetuning of quantized LLMs", section 3 and appendix E.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2  # the mean of the outermost quantiles of 16 and of 15 levels
    below = torch.special.ndtri(torch.linspace(outermost, 0.5, 8, dtype=torch.float64)[:-1])  # (7,)
    above = torch.special.ndtri(torch.linspace(outermost, 0.5, 9, dtype=torch.float64)[:-1])  # (8,)
    levels = torch.cat([-below, torch.zeros(1, dtype=torch.float64), above.flip(0)])  # (16,)
    return (levels / levels.abs().max()).float()


@dataclass(frozen=True)
class Quantized:
    """A tensor in 4 bits.

    Attributes:
        codes: two codes a byte, the first in the high half, uint8 (⌈numel / 2⌉,).
        scales: the largest magnitude in each block, float32 (⌈numel / block⌉,).
        shape: the shape of the tensor.
        dtype: the type it had, and has again after ``dequantize``.
        block: how many numbers share a scale.
    """

    codes: Tensor
    scales: Tensor
    shape: torch.Size
    dtype: torch.dtype
    block: int = BLOCK

    @property
    def nbytes(self) -> int:
        """The memory of codes and scales, in bytes."""
        return self.codes.nbytes + self.scales.nbytes


def quantize(weight: Tensor, *, block: int = BLOCK) -> Quantized:
    """Round a tensor to NormalFloat4: each block divided by its largest magnitude, each number to its nearest level.

    Args:
        weight: any shape, of a floating type, finite.
        block: how many numbers, in the order of memory, share a scale; at least 1.

    Raises:
        TypeError: weight is not of a floating type; block is not a whole number.
        ValueError: weight is empty or holds NaN or infinity; block is below 1.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"weight must be a tensor of a floating type, got {getattr(weight, 'dtype', weight)!r}")
    block = checked_rank("block", block)  # a whole number from 1, as a rank is
    if not weight.numel() or not weight.isfinite().all():
        raise ValueError("weight must hold finite numbers, and one at least, got NaN, infinity or nothing")
    numbers = F.pad(weight.detach().float().flatten(), (0, -weight.numel() % block)).view(-1, block)  # (blocks, block)
    scales = numbers.abs().amax(dim=1)  # (blocks,)
    levels = nf4_levels().to(weight.device)
    borders = (levels[1:] + levels[:-1]) / 2  # (15,), halfway between two levels
    relative = numbers / scales.where(scales > 0, 1)[:, None]
    codes = torch.bucketize(relative, borders).to(torch.uint8).flatten()[: weight.numel()]
    pairs = F.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
    return Quantized(pairs[:, 0] << 4 | pairs[:, 1], scales, weight.shape, weight.dtype, block)


def dequantize(quantized: Quantized) -> Tensor:
    """Give back the tensor, each number rounded to its level: level · scale of its block."""
    count = quantized.shape.numel()
    codes = torch.stack([quantized.codes >> 4, quantized.codes & 15], dim=1).flatten()[:count].int()
    levels = nf4_levels().to(codes.device)[codes]  # (numel,)
    scales = quantized.scales.repeat_interleave(quantized.block)[:count]
    return (levels * scales).view(quantized.shape).to(quantized.dtype)


class QuantizedLinear(nn.Module):
    """A linear layer that keeps its weight in 4 bits and dequantizes it at each use: y = x dequantize(codes)ᵀ + bias.

    Args:
        linear: the layer whose weight is rounded; its bias is kept as it is.
        block: how many numbers share a scale.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, *, block: int = BLOCK) -> None:
        """Round the weight."""
        super().__init__()
        if full_name(linear) != LoRALinear.kind:
            raise TypeError(f"linear must be a torch.nn.Linear itself, got {full_name(linear)}")
        quantized = quantize(linear.weight, block=block)
        self.in_features, self.out_features, self.block = linear.in_features, linear.out_features, block
        self.dtype = linear.weight.dtype
        self.register_buffer("codes", quantized.codes)
        self.register_buffer("scales", quantized.scales)
        self.bias = linear.bias
        self.train(linear.training)

    @property
    def quantized(self) -> Quantized:
        """Codes and scales, as ``quantize`` gives them."""
        shape = torch.Size((self.out_features, self.in_features))
        return Quantized(self.codes, self.scales.float(), shape, self.dtype, self.block)

    @property
    def weight(self) -> Tensor:
        """The weight as it is used, (out_features, in_features), formed at each reading."""
        return dequantize(self.quantized)

    def forward(self, x: Tensor) -> Tensor:
        """Give x Wᵀ + bias; x is (..., in_features)."""
        return F.linear(x, self.weight.to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """Say the sizes and the bits a number takes."""
        bits = 8 * self.quantized.nbytes / (self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, {bits:.3g} bits a weight"


class LoRAQuantizedLinear(LoRALinear):
    """A linear layer in 4 bits with LoRA: y = x dequantize(W)ᵀ + bias + scale · dropout(x) Aᵀ Bᵀ.

    It cannot be merged: the sum would have to be rounded to 4 bits again. Save the adapter, load it onto the base in
    full precision, and merge there.
    """

    kind = "lora_lab.lora.quantized.QuantizedLinear"
    mergeable = False

    @classmethod
    def _check_weight(cls, base: Any, name: str) -> None:
        """Accept codes in place of a parameter."""


KINDS[LoRAQuantizedLinear.kind] = LoRAQuantizedLinear


def quantize_linears(model: nn.Module, targets: Targets = "all-linear", *, block: int = BLOCK) -> nn.Module:
    """Replace linear layers of a model by ``QuantizedLinear``, in place, and give the model; attach LoRA afterwards.

    Args:
        model: a model without adapters.
        targets: which layers, as in ``LoRAConfig``; by default every linear layer but the head.
        block: how many numbers share a scale.

    Raises:
        TypeError: a target is no plain linear layer.
        ValueError: the model has adapters; a target names no layer; a weight holds NaN or infinity.
    """
    if there := lora_layers(model):
        raise ValueError(
            f"model must have no adapters yet, but {next(iter(there))!r} has one; quantize first, then attach"
        )
    found = find_layers(model, LoRAConfig(rank=1, targets=targets, tied="untie"))
    made: dict[nn.Module, QuantizedLinear] = {}
    for name, layer in found.items():
        if full_name(layer) != LoRALinear.kind:
            raise TypeError(f"targets must name plain linear layers, but {name} is a {full_name(layer)}")
        made.setdefault(layer, QuantizedLinear(layer, block=block))  # type: ignore[arg-type]
    for name, layer in found.items():
        model.set_submodule(name, made[layer])
    return model

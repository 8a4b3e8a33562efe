"""The LoRA layer: a frozen weight W plus a trained update of low rank, W + scale · B A.

Read it top to bottom: the update, its sum with the weight, how A and B start, and the layer that holds them all.
Shapes use the field's letters: A is (rank, in_features), B is (out_features, rank), and W, like B A, is
(out_features, in_features). In the terms of ``lora_lab.lowrank``, B is the left factor and A the right.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.lora.config import LoRAConfig


def lora_delta(lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """Give the update of the weight, scale · B A.

    Args:
        lora_A: the right factor, (rank, in_features).
        lora_B: the left factor, (out_features, rank).
        scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA.

    Returns:
        (out_features, in_features), of rank at most ``rank``.

    Source: Hu et al. (2021), equation 3.
    """
    return scale * lora_B @ lora_A


def merged_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """Give W + scale · B A in the type of W, formed and added in float64 and then rounded to that type.

    A bfloat16 number has 8 significant bits: where the update is below 1/512 of a weight, the rounding takes all of
    it. Forming the update in bfloat16 would take more; in float64 nothing more is lost, and neither autocast nor TF32
    touches it.

    Args:
        weight: W, (out_features, in_features).
        lora_A: (rank, in_features).
        lora_B: (out_features, rank).
        scale: the factor before B A.

    Returns:
        (out_features, in_features), in the type and on the device of ``weight``.
    """
    return (weight.double() + lora_delta(lora_A.double(), lora_B.double(), scale)).to(weight.dtype)


def initial_lora_A(rank: int, in_features: int, *, generator: torch.Generator) -> Tensor:
    """Draw A uniformly between −1/sqrt(in_features) and 1/sqrt(in_features), in float32.

    This is Kaiming's uniform law with a = sqrt(5), what ``nn.Linear`` starts from. The width depends on in_features
    alone: an entry of A x has the same size at every rank. The numbers are drawn on the generator's device.

    Returns:
        (rank, in_features).

    Source: He et al. (2015), section 2.2; loralib and PEFT draw A in this way.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    lora_A = torch.empty(rank, in_features, dtype=torch.float32, device=generator.device)
    bound = 1 / math.sqrt(in_features)
    return lora_A.uniform_(-bound, bound, generator=generator)


def initial_lora_B(out_features: int, rank: int) -> Tensor:
    """Give B = 0, (out_features, rank): at step 0 the update B A is zero and the layer does what it did before."""
    return torch.zeros(out_features, rank, dtype=torch.float32, device="cpu")


class LoRALinear(nn.Module):
    """A linear layer with a LoRA update: y = base(x) + scale · dropout(x) Aᵀ Bᵀ.

    ``base`` is the very layer you pass, left as it was; ``attach`` is what freezes it. ``lora_A`` and ``lora_B`` are
    float32 also beside a float16 or bfloat16 base, so that small steps of the optimiser are not lost, and float64
    beside a float64 base. In the forward pass the two small matrices are cast to the type of x, never x to theirs.

    ``weight``, ``bias``, ``in_features`` and ``out_features`` read as those of the linear layer it stands for.
    ``enabled`` is False inside ``disabled(model)``; ``merged`` is True between ``merge`` and ``unmerge``. In both
    states the layer computes base(x) alone, and A and B get no gradient. Dropout, like every ``nn.Dropout``, draws
    from torch's global generator: ``torch.manual_seed`` governs it.

    Args:
        base: the linear layer to adapt, with ``weight`` (out_features, in_features).
        config: rank, alpha, dropout and rsLoRA are used; targets are the business of ``attach``.
        generator: draws A; None stands for a fresh generator with seed 0.

    Raises:
        TypeError: base is not exactly an ``nn.Linear`` (a subclass may use its weight in its own way), its weight is
            not a parameter of a floating type, config is not a ``LoRAConfig``, or generator not a ``torch.Generator``.
        ValueError: the rank is larger than min(in_features, out_features).
    """

    base: nn.Linear
    unmerged_weight: Tensor | None

    def __init__(self, base: nn.Linear, config: LoRAConfig, *, generator: torch.Generator | None = None) -> None:
        """Draw A, set B to zero, and hold ``base``."""
        super().__init__()
        self.base = checked_base(base, config)
        generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
        device, dtype = base.weight.device, torch.promote_types(base.weight.dtype, torch.float32)
        self.config = config
        self.scale = config.scale
        self.enabled = True
        self.lora_A = nn.Parameter(initial_lora_A(config.rank, base.in_features, generator=generator).to(device, dtype))
        self.lora_B = nn.Parameter(initial_lora_B(base.out_features, config.rank).to(device, dtype))
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.register_buffer("unmerged_weight", None, persistent=False)  # W, kept while merged
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Give base(x) + scale · dropout(x) Aᵀ Bᵀ; x is (..., in_features), the result (..., out_features)."""
        y = self.base(x)  # (..., out_features)
        if self.merged or not self.enabled:
            return y
        A, B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        h = self.dropout(x) @ A.T  # (..., rank)
        return y + self.scale * h @ B.T  # (..., out_features)

    @property
    def merged(self) -> bool:
        """Whether the update is in the base weight now, put there by ``merge``."""
        return self.unmerged_weight is not None

    @property
    def weight(self) -> Tensor:
        """The matrix this layer multiplies by, W + scale · B A, for code that reads it instead of calling the layer.

        Some models do: a fused kernel takes ``self.out_proj.weight``. Were it W, the update would be skipped without
        a word. It is formed at each reading; gradients reach A and B through it, dropout does not apply to it.
        """
        if self.merged or not self.enabled:
            return self.base.weight
        return merged_weight(self.base.weight, self.lora_A, self.lora_B, self.scale)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base layer, (out_features,), or None."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """The size of each input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """The size of each output."""
        return self.base.out_features

    def extra_repr(self) -> str:
        """Say rank, alpha and scale when the model is printed."""
        state = ", merged" if self.merged else "" if self.enabled else ", disabled"
        return f"rank={self.config.rank}, alpha={self.config.alpha}, scale={self.scale:.4g}{state}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save as every module does, and note in the metadata whether the update is in the weight."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["merged"] = self.merged

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        """Load as every module does, but refuse when one side is merged: the update would count twice, or be lost."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        if self.merged or local_metadata.get("merged", False):
            error_messages: list[str] = rest[-1]
            state = "this layer is" if self.merged else "the state_dict was saved while"
            error_messages.append(f"{prefix[:-1]}: {state} merged; call unmerge(model) before saving and loading")


def checked_base(base: nn.Module, config: LoRAConfig, name: str = "base") -> nn.Linear:
    """Give ``base`` back if it is a plain linear layer that an update of this rank fits; else raise, with its name."""
    if type(base) is not nn.Linear:
        got = f"{type(base).__module__}.{type(base).__qualname__}"  # in full: PEFT and loralib have a Linear too
        raise TypeError(f"{name} must be a torch.nn.Linear itself, got {got}")
    if not isinstance(base.weight, nn.Parameter):
        raise TypeError(f"{name} must hold its weight as a parameter, but something computes it (weight norm, pruning)")
    if not base.weight.is_floating_point():
        raise TypeError(f"{name} must have a weight of a floating type, got {base.weight.dtype}")
    if not isinstance(config, LoRAConfig):
        raise TypeError(f"config must be a LoRAConfig, got {type(config).__name__}")
    if config.rank > (limit := min(base.in_features, base.out_features)):
        raise ValueError(f"rank must be at most min(in_features, out_features) = {limit} for {name}, got {config.rank}")
    return base

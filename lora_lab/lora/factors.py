"""The update itself: the factors A and B, how they start, what they add to a weight.

Shapes use the field's letters: A is (rank, in_features), B is (out_features, rank), and W, like B A, is
(out_features, in_features). In the terms of ``lora_lab.lowrank``, B is the left factor and A the right.
"""

import math

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
    return (wide(weight) + lora_delta(wide(lora_A), wide(lora_B), scale)).to(weight.dtype)


def wide(tensor: Tensor) -> Tensor:
    """Give a tensor in float64; in float32 on Apple's GPUs, which have no float64."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def initial_lora_A(rank: int, in_features: int, *, generator: torch.Generator) -> Tensor:
    """Draw A uniformly between −1/sqrt(in_features) and 1/sqrt(in_features), in float32.

    This is Kaiming's uniform law with a = sqrt(5), what ``nn.Linear`` starts from. The width depends on in_features
    alone: an entry of A x has the same size at every rank. The numbers are drawn on the generator's device.

    Returns:
        (rank, in_features).

    Source: He et al. (2015), section 2.2; loralib and PEFT draw A in this way.
    """
    lora_A = _empty(rank, in_features, generator)
    bound = 1 / math.sqrt(in_features)
    return lora_A.uniform_(-bound, bound, generator=generator)


def gaussian_lora_A(rank: int, in_features: int, *, generator: torch.Generator) -> Tensor:
    """Draw A from a normal law of mean 0 and standard deviation 1 / rank, in float32, on the generator's device.

    Returns:
        (rank, in_features).

    Source: Hu et al. (2021), section 4.1, "a random Gaussian initialization for A"; the deviation is PEFT's.
    """
    return _empty(rank, in_features, generator).normal_(0, 1 / rank, generator=generator)


def initial_lora_B(out_features: int, rank: int) -> Tensor:
    """Give B = 0, (out_features, rank): at step 0 the update B A is zero and the layer does what it did before."""
    return torch.zeros(out_features, rank, dtype=torch.float32, device="cpu")


def pissa_factors(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Give A and B with scale · B A = the best rank-``rank`` matrix near W: A = √(s/scale) Vᵀ, B = U √(s/scale).

    Args:
        weight: W, (out_features, in_features); it is decomposed in float32, or float64 if it is that.
        rank: how many of the largest singular values to take.
        scale: the factor before B A.

    Returns:
        A (rank, in_features) and B (out_features, rank), in the type of the decomposition.

    Raises:
        ValueError: W holds NaN or infinity.

    Source: Meng, Wang and Zhang (2024), "PiSSA: Principal singular values and singular vectors adaptation of large
        language models", equations 2 and 3.
    """
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if not weight.is_meta and not wide.isfinite().all():
        raise ValueError("init='pissa' needs a finite weight, got NaN or infinity in it")
    U, s, Vt = torch.linalg.svd(wide, full_matrices=False)
    roots = (s[:rank] / scale).sqrt()  # (rank,)
    return roots[:, None] * Vt[:rank], U[:, :rank] * roots


class Adapter(nn.Module):
    """One LoRA update of one layer: scale · B A, and the dropout before it.

    ``magnitude`` (out_features,) is there for DoRA alone: the trained lengths of the rows of the sum. ``start_A`` and
    ``start_B`` are there for PiSSA alone: what A and B were at the start, frozen; what they make is taken away from the
    update, which is scale · (B A − start_B start_A).
    """

    magnitude: nn.Parameter | None
    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(self, config: LoRAConfig, lora_A: Tensor, lora_B: Tensor) -> None:
        """Hold A and B as parameters; ``config`` is that of this one layer."""
        super().__init__()
        self.config = config
        self.scale = config.scale
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.register_parameter("magnitude", None)
        self.register_buffer("start_A", lora_A.detach().clone() if config.init == "pissa" else None)
        self.register_buffer("start_B", lora_B.detach().clone() if config.init == "pissa" else None)

    @property
    def rank(self) -> int:
        """The shared dimension of A and B."""
        return self.config.rank

    def terms(self) -> list[tuple[Tensor, Tensor, float]]:
        """Give the update as a sum of products (A, B, factor): one, and for PiSSA the one to take away as well."""
        terms: list[tuple[Tensor, Tensor, float]] = [(self.lora_A, self.lora_B, self.scale)]
        if self.start_A is not None and self.start_B is not None:
            terms.append((self.start_A, self.start_B, -self.scale))
        return terms


class TiedAdapter(nn.Module):
    """The update of a layer whose weight is tied to that of another layer, which has the adapter: the same B A.

    An embedding's weight (vocabulary, features) is updated by (B A)ᵀ and a linear layer's by B A, so between the two
    the factors change places: A of the one is Bᵀ of the other.
    """

    magnitude: None = None

    def __init__(self, source: Adapter, *, transposed: bool) -> None:
        """Refer to ``source``, which owns the parameters."""
        super().__init__()
        self.source, self.transposed = source, transposed
        self.config, self.scale, self.dropout = source.config, source.scale, source.dropout

    @property
    def rank(self) -> int:
        """The shared dimension of A and B."""
        return self.source.rank

    @property
    def lora_A(self) -> Tensor:
        """The right factor, (rank, in_features) of this layer."""
        return self.source.lora_B.T if self.transposed else self.source.lora_A

    @property
    def lora_B(self) -> Tensor:
        """The left factor, (out_features, rank) of this layer."""
        return self.source.lora_A.T if self.transposed else self.source.lora_B

    def terms(self) -> list[tuple[Tensor, Tensor, float]]:
        """Give the update as a sum of products (A, B, factor), here of one."""
        return [(self.lora_A, self.lora_B, self.scale)]


def _empty(rank: int, in_features: int, generator: torch.Generator) -> Tensor:
    """Make room for A in float32 on the generator's device."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    return torch.empty(rank, in_features, dtype=torch.float32, device=generator.device)

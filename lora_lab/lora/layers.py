"""The LoRA layers: a frozen weight W plus trained updates of low rank, W + scale · B A.

``LoRALayer.forward`` is the idea. Each kind of layer below it says what B A does to its input, and no more: a linear
layer, an embedding, a convolution, the transposed linear layer of GPT-2.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_lab.lora.config import LoRAConfig
from lora_lab.lora.factors import (
    Adapter,
    TiedAdapter,
    gaussian_lora_A,
    initial_lora_A,
    initial_lora_B,
    lora_delta,
    pissa_factors,
    wide,
)

DEFAULT = "default"  # the name of an adapter that is given none


class LoRALayer(nn.Module):
    """A layer with LoRA updates: y = base(x) + the sum of scale · B A x over its active adapters.

    ``base`` is the very layer you pass, left as it was; ``attach`` is what freezes it. ``adapters`` holds the updates
    by name, and ``active`` says which of them count, each times a number: {"default": 1.0} to begin with. The factors
    are float32 also beside a float16 or bfloat16 base, so that small steps of the optimiser are not lost, and float64
    beside a float64 base; ``model.half()`` afterwards casts them too. In the forward pass the two small matrices are
    cast to the type of x, never x to theirs.

    ``enabled`` is False inside ``disabled(model)``; ``merged`` is True between ``merge`` and ``unmerge``. In both
    states the layer computes base(x) alone, and A and B get no gradient. ``rows`` is set inside ``routed(model, …)``.
    Dropout, like every ``nn.Dropout``, draws from torch's global generator: ``torch.manual_seed`` governs it.

    Args:
        base: the layer to adapt, of the class in ``kind``.
        config: rank, alpha, dropout and the variant are used; targets are the business of ``attach``.
        name: the name of the adapter.
        generator: draws the factor that does not start at zero; None stands for a fresh generator with seed 0.

    Raises:
        TypeError: base is not exactly of the class (a subclass may use its weight in its own way), its weight is not
            a parameter of a floating type, config is not a ``LoRAConfig``, or generator not a ``torch.Generator``.
        ValueError: the rank is larger than the weight allows.
    """

    kind: ClassVar[str]  # the class of the base in full
    transposed: ClassVar[bool] = False  # whether the weight is updated by (B A)ᵀ
    mergeable: ClassVar[bool] = True  # whether the update can be added to the weight
    unmerged_weight: Tensor | None
    rows: tuple[str | None, ...] | None
    origin: tuple[nn.Module, str] | None  # while merged, the module and its parameter that W is, or was here

    def __init__(
        self, base: Any, config: LoRAConfig, *, name: str = DEFAULT, generator: torch.Generator | None = None
    ) -> None:
        """Hold ``base``, and add the first adapter."""
        super().__init__()
        self._hold(self.checked_base(base, config))
        self.add(name, config, generator=generator)

    def _hold(self, base: Any) -> None:
        """Hold the base, with no adapter yet."""
        self.base = base
        self.enabled, self.rows, self.origin, self.untied = True, None, None, False
        self.adapters, self.active = nn.ModuleDict(), dict[str, float]()
        self.register_buffer("unmerged_weight", None, persistent=False)  # W, kept while merged
        self.train(base.training)

    @classmethod
    def around(cls, base: Any) -> "LoRALayer":
        """Give a layer of this kind that holds ``base`` and has no adapter yet."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._hold(base)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Give base(x) plus what each active adapter adds."""
        y = self.base(x)
        if self.merged or not self.enabled:
            return y
        if self.rows is not None:
            return self._by_row(x, y, self.rows)
        for name, share in self.active.items():
            y = self._adapted(x, y, self.adapters[name], share)
        return y

    def add(self, name: str, config: LoRAConfig, *, generator: torch.Generator | None = None) -> None:
        """Add an adapter, and make it the only active one."""
        checked_name(name)
        if name in self.adapters:
            raise ValueError(f"name must be new, got {name!r}, which this layer has; it has {', '.join(self.adapters)}")
        self.checked_base(self.base, config)
        generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
        self.put(name, self.new_adapter(config, generator))

    def put(self, name: str, adapter: Adapter | TiedAdapter) -> None:
        """Add an adapter that is made already, and make it the only active one."""
        self.adapters[name] = adapter.train(self.training)
        self.active = {name: 1.0}

    def path(self, x: Tensor, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give what the update factor · B A makes of x."""
        raise NotImplementedError

    def delta(self, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give factor · B A in the shape of the weight."""
        raise NotImplementedError

    @property
    def merged(self) -> bool:
        """Whether the updates are in the base weight now, put there by ``merge``."""
        return self.unmerged_weight is not None

    @property
    def weight(self) -> Tensor:
        """The weight this layer computes with, W + scale · B A, for code that reads it instead of calling the layer.

        Some models do: a fused kernel takes ``self.out_proj.weight``. Were it W, the update would be skipped without
        a word. It is formed in float64 at each reading and rounded to the type of W once; gradients reach A and B
        through it, dropout does not apply to it.
        """
        if self.merged or not self.enabled:
            return self.base.weight
        if self.rows is not None:
            raise ValueError(
                "the weight of this layer differs from row to row of the batch: end routed(model, …) first"
            )
        return self.wide_weight().to(self.base.weight.dtype)

    def wide_weight(self) -> Tensor:
        """Give W + scale · B A, over all active adapters, in float64, before it is rounded to the type of W."""
        W = wide(self.base.weight)
        for name, share in self.active.items():
            adapter: Any = self.adapters[name]
            W = W + self.change(adapter, share)
            if adapter.magnitude is not None:
                W = W * self._across_weight(wide(adapter.magnitude) / self.row_lengths(W).detach())
        return W

    def change(self, adapter: Adapter | TiedAdapter, share: float = 1.0) -> Tensor:
        """Give what an adapter adds to the weight, in float64 and the weight's shape; for DoRA before the lengths."""
        return sum_of(self.delta(wide(A), wide(B), share * factor) for A, B, factor in adapter.terms())

    def _adapted(self, x: Tensor, y: Tensor, adapter: Any, share: float) -> Tensor:
        """Give y, which is base(x) or more, with the update of one adapter, times ``share``."""
        dropped = adapter.dropout(x) if x.is_floating_point() else x
        dtype = x.dtype if x.is_floating_point() else y.dtype
        update = sum_of(self.path(dropped, A.to(dtype), B.to(dtype), share * f) for A, B, f in adapter.terms())
        return y + update if adapter.magnitude is None else self._stretched(x, dropped, y, update, adapter)

    def _stretched(self, x: Tensor, dropped: Tensor, y: Tensor, update: Tensor, adapter: Adapter) -> Tensor:
        """Give DoRA's output: the magnitude over the length of each row of W + scale · B A, times what that row gives.

        The length counts as a constant in the gradient (Liu et al., 2024, section 4.3). The bias is not stretched.
        """
        assert adapter.magnitude is not None
        with torch.no_grad():
            lengths = self.row_lengths(self.base.weight.to(adapter.magnitude.dtype) + self.change(adapter))
        stretch = self._across_output((adapter.magnitude / lengths).to(y.dtype))
        plain = self._without_bias(dropped) if dropped is not x else self._minus_bias(y)
        return y + (stretch - 1) * plain + stretch * update

    def _by_row(self, x: Tensor, y: Tensor, rows: tuple[str | None, ...]) -> Tensor:
        """Give y with the update of its own adapter for each row of the batch."""
        if len(rows) != x.shape[0]:
            raise ValueError(f"routed(model, names) was given {len(rows)} names for a batch of {x.shape[0]} rows")
        for name in dict.fromkeys(rows):
            if name is not None and name in self.adapters:
                its = torch.tensor([i for i, other in enumerate(rows) if other == name], device=x.device)
                y = y.index_copy(0, its, self._adapted(x[its], y[its], self.adapters[name], 1.0))
        return y

    def new_adapter(self, config: LoRAConfig, generator: torch.Generator) -> Adapter:
        """Draw the factors of an adapter, on the device of the base."""
        A, B = self._initial_factors(config, generator)
        weight = self.base.weight
        device, dtype = weight.device, torch.promote_types(weight.dtype, torch.float32)
        adapter = Adapter(config, A.to(device, dtype).contiguous(), B.to(device, dtype).contiguous())
        if config.dora:
            with torch.no_grad():
                adapter.magnitude = nn.Parameter(self.row_lengths(weight.to(dtype) + self.change(adapter)).to(dtype))
        return adapter

    def _initial_factors(self, config: LoRAConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give A and B as they start."""
        if config.init == "pissa":
            return pissa_factors(self.base.weight, config.rank, config.scale)
        draw = gaussian_lora_A if config.init == "gaussian" else initial_lora_A
        return draw(config.rank, self.in_features, generator=generator), initial_lora_B(self.out_features, config.rank)

    def row_lengths(self, W: Tensor) -> Tensor:
        """Give the length of each row of the weight, (out_features,): the norm of what makes one output.

        Where the weight lies transposed, a column makes one output.
        """
        return W.norm(dim=0) if self.transposed else W.flatten(1).norm(dim=1)

    def _across_weight(self, v: Tensor) -> Tensor:
        """Shape one number for each output so that it multiplies the weight."""
        return v if self.transposed else v.view(-1, *[1] * (self.base.weight.dim() - 1))

    def _across_output(self, v: Tensor) -> Tensor:
        """Shape one number for each output so that it multiplies the output for x."""
        return v

    def _without_bias(self, x: Tensor) -> Tensor:
        """Give base(x) without its bias."""
        return self._minus_bias(self.base(x))

    def _minus_bias(self, y: Tensor) -> Tensor:
        """Take the bias of the base away from its output."""
        return y if self.bias is None else y - self._across_output(self.bias).to(y.dtype)

    @classmethod
    def checked_base(cls, base: Any, config: LoRAConfig, name: str = "base") -> Any:
        """Give ``base`` back if it is a layer of this kind that an update of this rank fits; else raise, by name."""
        if full_name(base) != cls.kind:
            raise TypeError(f"{name} must be a {_shown(cls.kind)} itself, got {full_name(base)}")
        cls._check_weight(base, name)
        if not isinstance(config, LoRAConfig):
            raise TypeError(f"config must be a LoRAConfig, got {type(config).__name__}")
        cls._check_rank(base, config.rank, name)
        if config.init == "pissa" and cls not in (LoRALinear, LoRAConv1D):
            raise TypeError(f"init='pissa' is for linear layers, but {name} is a {_shown(cls.kind)}")
        return base

    @classmethod
    def _check_weight(cls, base: Any, name: str) -> None:
        """Refuse a weight that is no parameter of a floating type."""
        if not isinstance(base.weight, nn.Parameter):
            raise TypeError(
                f"{name} must hold its weight as a parameter, but something computes it (weight norm, pruning)"
            )
        if not base.weight.is_floating_point():
            raise TypeError(f"{name} must have a weight of a floating type, got {base.weight.dtype}")

    @classmethod
    def _check_rank(cls, base: Any, rank: int, name: str) -> None:
        """Refuse a rank that is larger than the weight of the base can have."""
        in_features, out_features = cls._sizes(base)
        if rank > (limit := min(in_features, out_features)):
            raise ValueError(f"rank must be at most min(in_features, out_features) = {limit} for {name}, got {rank}")

    @staticmethod
    def _sizes(base: Any) -> tuple[int, int]:
        """Give the columns of A and the rows of B for a base: in_features, out_features."""
        return base.in_features, base.out_features

    @property
    def in_features(self) -> int:
        """The size of each input: the columns of A."""
        return self._sizes(self.base)[0]

    @property
    def out_features(self) -> int:
        """The size of each output: the rows of B."""
        return self._sizes(self.base)[1]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base layer, (out_features,), or None."""
        bias: Tensor | None = self.base.bias
        return bias

    @property
    def adapter(self) -> Adapter | TiedAdapter:
        """The one adapter of this layer, or the one that is active; where that is not one, read ``adapters[name]``."""
        names = list(self.adapters if len(self.adapters) == 1 else self.active)
        if len(names) != 1:
            raise LookupError(f"this layer has {', '.join(self.adapters)}: read layer.adapters[name]")
        adapter: Any = self.adapters[names[0]]
        return adapter

    @property
    def lora_A(self) -> Tensor:
        """The factor A of ``adapter``, (rank, in_features)."""
        return self.adapter.lora_A

    @property
    def lora_B(self) -> Tensor:
        """The factor B of ``adapter``, (out_features, rank)."""
        return self.adapter.lora_B

    @property
    def config(self) -> LoRAConfig:
        """The configuration of ``adapter`` on this layer."""
        return self.adapter.config

    @property
    def scale(self) -> float:
        """The factor before B A of ``adapter``."""
        return self.adapter.scale

    @property
    def dropout(self) -> nn.Module:
        """The dropout of ``adapter``."""
        return self.adapter.dropout

    def extra_repr(self) -> str:
        """Say rank, alpha and scale of each adapter when the model is printed."""
        state = ", merged" if self.merged else "" if self.enabled else ", disabled"
        said = []
        for name, module in self.adapters.items():
            adapter: Any = module
            config = adapter.config
            numbers = f"rank={config.rank}, alpha={config.alpha}, scale={config.scale:.4g}"
            said.append(numbers if len(self.adapters) == 1 else f"{name}({numbers})")
        return ", ".join(said) + state

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


class LoRALinear(LoRALayer):
    """A linear layer with LoRA: y = x Wᵀ + bias + scale · dropout(x) Aᵀ Bᵀ.

    x is (..., in_features), y is (..., out_features), A (rank, in_features), B (out_features, rank).
    """

    kind = "torch.nn.modules.linear.Linear"

    def path(self, x: Tensor, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give factor · x Aᵀ Bᵀ."""
        h = x @ A.T  # (..., rank)
        return factor * h @ B.T  # (..., out_features)

    def delta(self, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give factor · B A, (out_features, in_features)."""
        return lora_delta(A, B, factor)

    def _without_bias(self, x: Tensor) -> Tensor:
        """Give x Wᵀ."""
        return F.linear(x, self.base.weight)


class LoRAConv1D(LoRALayer):
    """GPT-2's linear layer, whose weight lies transposed, with LoRA: y = x W + bias + scale · dropout(x) Aᵀ Bᵀ.

    It is ``transformers.pytorch_utils.Conv1D``, which is no convolution: W is (in_features, out_features). A and B are
    those of a linear layer.
    """

    kind = "transformers.pytorch_utils.Conv1D"
    transposed = True

    def path(self, x: Tensor, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give factor · x Aᵀ Bᵀ."""
        h = x @ A.T  # (..., rank)
        return factor * h @ B.T  # (..., out_features)

    def delta(self, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give factor · (B A)ᵀ, (in_features, out_features)."""
        return lora_delta(A, B, factor).T

    def _initial_factors(self, config: LoRAConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give A and B as they start; PiSSA decomposes the weight the way a linear layer holds it."""
        if config.init == "pissa":
            return pissa_factors(self.base.weight.T, config.rank, config.scale)
        return super()._initial_factors(config, generator)

    @staticmethod
    def _sizes(base: Any) -> tuple[int, int]:
        """Give the sizes of x and y."""
        return base.weight.shape[0], base.weight.shape[1]


class LoRAEmbedding(LoRALayer):
    """An embedding with LoRA: row i is W[i] + scale · (B A)ᵀ[i] = W[i] + scale · B A[:, i].

    x holds indices (...), y is (..., embedding_dim), A (rank, num_embeddings), B (embedding_dim, rank). Here A starts
    at zero and B is drawn from the standard normal law: row i of the table meets only column i of A, so that a zero B
    would let no index learn before the others do. The input is an index, so there is nothing for dropout to drop.

    Source: loralib and PEFT start an embedding's factors in this way.
    """

    kind = "torch.nn.modules.sparse.Embedding"
    transposed = True

    def path(self, x: Tensor, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give factor · Aᵀ[x] Bᵀ."""
        h = F.embedding(x, A.T, padding_idx=self.base.padding_idx)  # (..., rank)
        return factor * h @ B.T  # (..., embedding_dim)

    def delta(self, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give factor · (B A)ᵀ, (num_embeddings, embedding_dim)."""
        return lora_delta(A, B, factor).T

    def _initial_factors(self, config: LoRAConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give A = 0 and a normal B, drawn on the generator's device."""
        B = gaussian_lora_A(1, self.out_features * config.rank, generator=generator)  # of standard deviation 1
        return initial_lora_B(config.rank, self.in_features), B.view(self.out_features, config.rank)

    @classmethod
    def checked_base(cls, base: Any, config: LoRAConfig, name: str = "base") -> Any:
        """Refuse an embedding that changes its own weight as it is used."""
        checked = super().checked_base(base, config, name)
        if checked.max_norm is not None:
            raise ValueError(f"{name} must be an embedding without max_norm, which rewrites the frozen weight in use")
        return checked

    @staticmethod
    def _sizes(base: Any) -> tuple[int, int]:
        """Give the number of indices and the size of y."""
        return base.num_embeddings, base.embedding_dim

    @property
    def bias(self) -> None:
        """None: an embedding has no bias."""
        return


class _LoRAConv(LoRALayer):
    """A convolution with LoRA: y = conv(x, W) + bias + scale · conv₁(conv(dropout(x), A), B).

    A is a convolution like the base that gives ``rank`` channels, (rank, in_channels / groups, *kernel); B mixes them
    with a kernel of one pixel, (out_channels, rank / groups, 1, ...). Stride, padding, dilation and groups of the base
    are those of A, so that B A, as matrices, is an update of W in its own shape: it can be merged, also with groups,
    where each group has factors of rank ``rank / groups`` of its own.
    """

    def path(self, x: Tensor, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give factor · conv₁(conv(x, A), B)."""
        h = self._convolved(x, A)  # (batch, rank, ...)
        return factor * self._pointwise(h, B, groups=self.base.groups)  # (batch, out_channels, ...)

    def delta(self, A: Tensor, B: Tensor, factor: float) -> Tensor:
        """Give factor · B A for each group, (out_channels, in_channels / groups, *kernel)."""
        groups = self.base.groups
        left = B.view(groups, B.shape[0] // groups, -1)  # (groups, out / groups, rank / groups)
        right = A.view(groups, A.shape[0] // groups, -1)  # (groups, rank / groups, in / groups · kernel)
        return (factor * left @ right).view(self.base.weight.shape)

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve as the base does, with another weight and without a bias."""
        return self.base._conv_forward(x, weight, None)

    def _pointwise(self, h: Tensor, B: Tensor, groups: int) -> Tensor:
        """Mix channels with a kernel of one pixel."""
        raise NotImplementedError

    def _without_bias(self, x: Tensor) -> Tensor:
        """Give conv(x, W)."""
        return self._convolved(x, self.base.weight)

    def _across_output(self, v: Tensor) -> Tensor:
        """Give each channel its number."""
        return v.view(-1, *[1] * len(self.base.kernel_size))

    def _initial_factors(self, config: LoRAConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give A as it is drawn for a linear layer, in the shape of a kernel, and B = 0."""
        A, B = super()._initial_factors(config, generator)  # (rank, in / groups · kernel), (out, rank)
        ones = [1] * len(self.base.kernel_size)
        A = A.view(config.rank, *self.base.weight.shape[1:])
        return A, B[:, : config.rank // self.base.groups].reshape(self.out_features, -1, *ones)

    @classmethod
    def _check_rank(cls, base: Any, rank: int, name: str) -> None:
        """Refuse a rank that does not split into the groups, or is larger than the weight of a group allows."""
        groups = base.groups
        in_features, out_features = cls._sizes(base)
        if rank % groups:
            raise ValueError(f"rank must be divisible by the groups of {name}, which are {groups}, got {rank}")
        if rank > (limit := groups * min(in_features, out_features // groups)):
            raise ValueError(
                f"rank must be at most groups · min(in_channels / groups · kernel, out_channels / groups) = {limit} "
                f"for {name}, got {rank}"
            )

    @staticmethod
    def _sizes(base: Any) -> tuple[int, int]:
        """Give the size of what one output sees, in_channels / groups · kernel, and the output channels."""
        return base.weight[0].numel(), base.out_channels


class LoRAConv1d(_LoRAConv):
    """A convolution in one dimension with LoRA: y = conv(x, W) + bias + scale · conv₁(conv(dropout(x), A), B).

    A is (rank, in_channels / groups, kernel), B is (out_channels, rank / groups, 1).
    """

    kind = "torch.nn.modules.conv.Conv1d"

    def _pointwise(self, h: Tensor, B: Tensor, groups: int) -> Tensor:
        """Mix channels with a kernel of one step."""
        return F.conv1d(h, B, groups=groups)


class LoRAConv2d(_LoRAConv):
    """A convolution in two dimensions with LoRA: y = conv(x, W) + bias + scale · conv₁(conv(dropout(x), A), B).

    A is (rank, in_channels / groups, height, width), B is (out_channels, rank / groups, 1, 1).
    """

    kind = "torch.nn.modules.conv.Conv2d"

    def _pointwise(self, h: Tensor, B: Tensor, groups: int) -> Tensor:
        """Mix channels with a kernel of one pixel."""
        return F.conv2d(h, B, groups=groups)


KINDS: dict[str, type[LoRALayer]] = {
    layer.kind: layer for layer in (LoRALinear, LoRAConv1D, LoRAEmbedding, LoRAConv1d, LoRAConv2d)
}


def layer_class(module: nn.Module, name: str = "base") -> type[LoRALayer]:
    """Give the LoRA layer for a module, or raise ``TypeError`` with its name where there is none."""
    if (kind := full_name(module)) not in KINDS:
        takes = ", ".join(map(_shown, KINDS))
        raise TypeError(f"{name} must be one of {takes} itself, got {kind}")
    return KINDS[kind]


def full_name(module: object) -> str:
    """Give the class of an object in full: PEFT and loralib have a Linear too."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def checked_name(name: object) -> str:
    """Give ``name`` if it can name an adapter."""
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of an adapter, got {name!r}")
    if not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ValueError(f"name must not be empty, hold a dot, or be an attribute of nn.ModuleDict, got {name!r}")
    return name


def sum_of(tensors: Iterator[Tensor]) -> Tensor:
    """Add tensors up; there is one at least."""
    total = next(tensors)
    for tensor in tensors:
        total = total + tensor
    return total


def _shown(kind: str) -> str:
    """Write the full name of a class as one imports it."""
    parts = kind.split(".")
    return ".".join(["torch", "nn", parts[-1]]) if parts[:2] == ["torch", "nn"] else kind

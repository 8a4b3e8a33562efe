"""The bottleneck adapter: a small network of two layers after a sublayer, h + W_up f(W_down h + b_down) + b_up.

It is no change of a weight, as LoRA is. Its nonlinearity stands between the factors, so it costs time in every forward
pass, and nothing can merge it away.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.factors import initial_lora_A

Activation: TypeAlias = Literal["gelu", "relu", "silu", "tanh"]
Start: TypeAlias = Literal["zero", "near"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def bottleneck_parameters(features: int, width: int) -> int:
    """Give the number of parameters of one bottleneck adapter, 2 · d · m + d + m, with d features and width m.

    Source: Houlsby et al. (2019), section 2.1.
    """
    return 2 * features * width + features + width


class Bottleneck(nn.Module):
    """One bottleneck adapter: h becomes h + W_up f(W_down h + b_down) + b_up.

    W_down is (width, features), b_down (width,), W_up (features, width), b_up (features,). They are cast to the type
    of h in the forward pass, never h to theirs.

    Args:
        features: d, the size of h.
        width: m, the size of the bottleneck.
        activation: f, one of "gelu", "relu", "silu", "tanh".
        init: "zero" draws W_down as ``nn.Linear`` draws its weight, and W_up is 0, so that h stays what it is;
            "near" draws both from a normal law of standard deviation 0.01, cut off at two of them, as the paper does.
            The biases are 0.
        generator: draws the numbers, on its own device.

    Source: Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP", section 2.1 and figure 2.
    """

    def __init__(
        self, features: int, width: int, activation: Activation, init: Start, *, generator: torch.Generator
    ) -> None:
        """Draw the weights, in float32."""
        super().__init__()
        self.features, self.width, self.activation = features, width, activation
        down = initial_lora_A(width, features, generator=generator)
        up = torch.zeros(features, width, device=generator.device)
        if init == "near":
            for weight in (down, up):
                nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02, generator=generator)
        self.W_down, self.b_down = nn.Parameter(down), nn.Parameter(torch.zeros(width, device=generator.device))
        self.W_up, self.b_up = nn.Parameter(up), nn.Parameter(torch.zeros(features, device=generator.device))

    def forward(self, h: Tensor) -> Tensor:
        """Give h + W_up f(W_down h + b_down) + b_up; h is (..., features)."""
        z = F.linear(h, self.W_down.to(h.dtype), self.b_down.to(h.dtype))  # (..., width)
        z = ACTIVATIONS[self.activation](z)
        return h + F.linear(z, self.W_up.to(h.dtype), self.b_up.to(h.dtype))  # (..., features)

    def extra_repr(self) -> str:
        """Say features, width and activation when the model is printed."""
        return f"features={self.features}, width={self.width}, activation={self.activation!r}"


class BottleneckLayer(TrainedCopy):
    """A module with bottleneck adapters after it: the active one changes what the module gives.

    ``base`` is the very module, frozen. Where a ``TrainedCopy`` keeps copies of the module for its adapters, this keeps
    their bottlenecks, by name, in the same place, so that all that chooses, disables, routes and detaches copies does
    so here. Of a module that gives a tuple, the first entry is what is changed.
    """

    def put(self, name: str, bottleneck: Bottleneck) -> None:
        """Add the bottleneck of an adapter, and use it."""
        self.copies[name] = bottleneck.train(self.training)
        self.active = name

    @property
    def in_use(self) -> nn.Module:
        """The module itself: no bottleneck stands in for it."""
        return self.base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Give what the module gives, changed by the bottleneck that counts."""
        output = self.base(*args, **kwargs)
        if not self.enabled or (self.rows is None and self.active is None):
            return output
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor):
            kind = type(self.base).__name__
            raise TypeError(f"targets must give a tensor, or a tuple that starts with one; a {kind} gave {type(first)}")
        changed = self.copies[self.active](first) if self.rows is None else self._by_row(first, self.rows)  # type: ignore[index]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _by_row(self, h: Tensor, rows: tuple[str | None, ...]) -> Tensor:
        """Give h with each row of the batch changed by the bottleneck of its own adapter."""
        if len(rows) != h.shape[0]:
            raise ValueError(f"routed(model, names) was given {len(rows)} names for a batch of {h.shape[0]} rows")
        y = h
        for name in dict.fromkeys(rows):
            if name is not None and name in self.copies:
                its = torch.tensor([i for i, other in enumerate(rows) if other == name], device=h.device)
                y = y.index_copy(0, its, self.copies[name](h[its]))
        return y

    def __getattr__(self, name: str) -> Any:
        """Read what this class does not have from the module; its weight only while no bottleneck counts.

        Some models take ``self.out_proj.weight`` for a fused kernel instead of calling the layer. The bottleneck would
        be skipped without a word.
        """
        if name in ("weight", "bias") and self.enabled and (self.rows is not None or self.active is not None):
            raise AttributeError(
                f"{name}: this layer has a bottleneck after it, which its {name} knows nothing of; read base.{name}, "
                "or name the module around this one in targets"
            )
        return super().__getattr__(name)

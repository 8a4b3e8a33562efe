"""What an adapter trains beside its factors: whole modules, each in a copy of the adapter's own."""

import copy
from typing import Any

import torch
from torch import nn


class TrainedCopy(nn.Module):
    """A module and the copies of it that adapters train: the active adapter's copy stands in for the module.

    ``base`` is the very module, frozen. A new classifier, which no low-rank update can replace, is trained in this way
    beside LoRA. Attributes that are not of this class are read from whichever module is in use.

    Args:
        base: the module to copy.
    """

    def __init__(self, base: nn.Module) -> None:
        """Hold the module; it has no copy yet."""
        super().__init__()
        self.base = base
        self.copies = nn.ModuleDict()
        self.active: str | None = None
        self.enabled, self.rows = True, None
        self.train(base.training)

    rows: tuple[str | None, ...] | None

    def add(self, name: str) -> None:
        """Add a copy for an adapter, and use it."""
        self.copies[name] = copy.deepcopy(self.base).requires_grad_(True)
        self.active = name

    @property
    def in_use(self) -> nn.Module:
        """The copy of the active adapter; the module itself where there is none, or inside ``disabled``."""
        return self.copies[self.active] if self.enabled and self.active is not None else self.base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute with the copy in use; inside ``routed`` each row of the batch with the copy of its own adapter."""
        if self.rows is None or not self.enabled:
            return self.in_use(*args, **kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], torch.Tensor):
            raise TypeError("routed(model, …) takes modules_to_save that are called with one tensor")
        (x,) = args
        if len(self.rows) != x.shape[0]:
            raise ValueError(f"routed(model, names) was given {len(self.rows)} names for a batch of {x.shape[0]} rows")
        y = self.base(x)
        for name in dict.fromkeys(self.rows):
            if name is not None and name in self.copies:
                its = torch.tensor([i for i, other in enumerate(self.rows) if other == name], device=x.device)
                y = y.index_copy(0, its, self.copies[name](x[its]))
        return y

    def __getattr__(self, name: str) -> Any:
        """Read what this class does not have from the module in use."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "copies") or name.startswith("__"):
                raise
            if isinstance(value := getattr(self.in_use, name), torch.Tensor) and self.enabled and self.rows is not None:
                raise ValueError(f"{name} of this module differs from row to row: end routed(model, …) first") from None
            return value

"""LoRA Lab: low-rank factorization and LoRA, one idea from a 9×9 table to a fine-tuned language model.

Four rooms, each imported only when you first use it, so that ``import lora_lab`` is instant and loads no torch:

- ``lora_lab.lowrank``: matrices, SVD, rank and error (NumPy only)
- ``lora_lab.lora``: LoRA layers, attaching, merging, saving (torch)
- ``lora_lab.finetune``: a real language model, a task, training and evaluation (torch and transformers)
- ``lora_lab.course``: figures, exercises and tools of the lessons
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_lab import assets, course, finetune, lora, lowrank

__version__ = "0.1.0"
__all__ = ["assets", "course", "finetune", "lora", "lowrank"]


def __getattr__(name: str) -> ModuleType:
    """Import a room of the package the first time it is asked for."""
    if name in __all__:
        return importlib.import_module(f"lora_lab.{name}")
    raise AttributeError(f"module 'lora_lab' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    """List the rooms beside the ordinary module attributes."""
    return sorted([*globals(), *__all__])

"""LoRA for PyTorch: layers, attaching, merging, files and counting.

Start with ``attach(model, LoRAConfig(rank=8, alpha=16, targets=("q_proj", "v_proj")))``, or read ``layers.py``.
"""

from lora_lab.lora.accounting import Account, LayerAccount, account
from lora_lab.lora.attach import attach, detach, disabled, lora_layers
from lora_lab.lora.config import LoRAConfig
from lora_lab.lora.files import load_adapter, save_adapter
from lora_lab.lora.layers import LoRALinear, initial_lora_A, initial_lora_B, lora_delta, merged_weight
from lora_lab.lora.merge import merge, unmerge

__all__ = [
    "Account",
    "LayerAccount",
    "LoRAConfig",
    "LoRALinear",
    "account",
    "attach",
    "detach",
    "disabled",
    "initial_lora_A",
    "initial_lora_B",
    "load_adapter",
    "lora_delta",
    "lora_layers",
    "merge",
    "merged_weight",
    "save_adapter",
    "unmerge",
]

"""LoRA for PyTorch: layers, attaching, merging, files and counting.

Start with ``attach(model, LoRAConfig(rank=8, alpha=16, targets=("q_proj", "v_proj")))``, or read ``factors.py`` and
then ``layers.py``.
"""

from lora_lab.lora.accounting import Account, LayerAccount, account
from lora_lab.lora.attach import activate, active_adapters, adapters, attach, detach, disabled, lora_layers, routed
from lora_lab.lora.config import LoRAConfig
from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.factors import (
    Adapter,
    gaussian_lora_A,
    initial_lora_A,
    initial_lora_B,
    lora_delta,
    merged_weight,
    pissa_factors,
)
from lora_lab.lora.files import load_adapter, save_adapter
from lora_lab.lora.layers import LoRAConv1D, LoRAConv1d, LoRAConv2d, LoRAEmbedding, LoRALayer, LoRALinear
from lora_lab.lora.merge import MergedLayer, MergeReport, fold, merge, unmerge

__all__ = [
    "Account",
    "Adapter",
    "LayerAccount",
    "LoRAConfig",
    "LoRAConv1D",
    "LoRAConv1d",
    "LoRAConv2d",
    "LoRAEmbedding",
    "LoRALayer",
    "LoRALinear",
    "MergeReport",
    "MergedLayer",
    "TrainedCopy",
    "account",
    "activate",
    "active_adapters",
    "adapters",
    "attach",
    "detach",
    "disabled",
    "fold",
    "gaussian_lora_A",
    "initial_lora_A",
    "initial_lora_B",
    "load_adapter",
    "lora_delta",
    "lora_layers",
    "merge",
    "merged_weight",
    "pissa_factors",
    "routed",
    "save_adapter",
    "unmerge",
]

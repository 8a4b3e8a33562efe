"""LoRA for PyTorch: layers, attaching, merging, files and counting.

Start with ``attach(model, LoRAConfig(rank=8, alpha=16, targets=("q_proj", "v_proj")))``, or read ``factors.py`` and
then ``layers.py``.
"""

from lora_lab.lora.accounting import Account, LayerAccount, account
from lora_lab.lora.alternatives import BitFitConfig, BottleneckConfig, FullConfig, HeadOnlyConfig
from lora_lab.lora.attach import activate, active_adapters, adapters, attach, detach, disabled, lora_layers, routed
from lora_lab.lora.bottleneck import Bottleneck, BottleneckLayer, bottleneck_parameters
from lora_lab.lora.comparison import Intruders, intruder_dimensions, subspace_similarity
from lora_lab.lora.config import LoRAConfig
from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.costs import Costs, LayerCost, attention_flops, convolution_flops, product_flops
from lora_lab.lora.extraction import Extraction, attach_updates, extract, recompress, updates
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
from lora_lab.lora.optimizer import lora_plus_groups
from lora_lab.lora.quantized import Quantized, QuantizedLinear, dequantize, nf4_levels, quantize, quantize_linears

__all__ = [
    "Account",
    "Adapter",
    "BitFitConfig",
    "Bottleneck",
    "BottleneckConfig",
    "BottleneckLayer",
    "Costs",
    "Extraction",
    "FullConfig",
    "HeadOnlyConfig",
    "Intruders",
    "LayerAccount",
    "LayerCost",
    "LoRAConfig",
    "LoRAConv1D",
    "LoRAConv1d",
    "LoRAConv2d",
    "LoRAEmbedding",
    "LoRALayer",
    "LoRALinear",
    "MergeReport",
    "MergedLayer",
    "Quantized",
    "QuantizedLinear",
    "TrainedCopy",
    "account",
    "activate",
    "active_adapters",
    "adapters",
    "attach",
    "attach_updates",
    "attention_flops",
    "bottleneck_parameters",
    "convolution_flops",
    "dequantize",
    "detach",
    "disabled",
    "extract",
    "fold",
    "gaussian_lora_A",
    "initial_lora_A",
    "initial_lora_B",
    "intruder_dimensions",
    "load_adapter",
    "lora_delta",
    "lora_layers",
    "lora_plus_groups",
    "merge",
    "merged_weight",
    "nf4_levels",
    "pissa_factors",
    "product_flops",
    "quantize",
    "quantize_linears",
    "recompress",
    "routed",
    "save_adapter",
    "subspace_similarity",
    "unmerge",
    "updates",
]

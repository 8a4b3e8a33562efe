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
from lora_lab.lora.hadamard import walsh_hadamard
from lora_lab.lora.intrinsic import Bracket, IntrinsicDimension, intrinsic_dimension
from lora_lab.lora.layers import LoRAConv1D, LoRAConv1d, LoRAConv2d, LoRAEmbedding, LoRALayer, LoRALinear
from lora_lab.lora.merge import MergedLayer, MergeReport, fold, merge, unmerge
from lora_lab.lora.optimizer import lora_plus_groups
from lora_lab.lora.projections import DenseProjection, FastfoodProjection, Projection, SparseProjection
from lora_lab.lora.quantized import Quantized, QuantizedLinear, dequantize, nf4_levels, quantize, quantize_linears
from lora_lab.lora.subspace import Subspace, SubspaceConfig, SubspaceLayer, find_subspace

__all__ = [
    "Account",
    "Adapter",
    "BitFitConfig",
    "Bottleneck",
    "BottleneckConfig",
    "BottleneckLayer",
    "Bracket",
    "Costs",
    "DenseProjection",
    "Extraction",
    "FastfoodProjection",
    "FullConfig",
    "HeadOnlyConfig",
    "IntrinsicDimension",
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
    "Projection",
    "Quantized",
    "QuantizedLinear",
    "SparseProjection",
    "Subspace",
    "SubspaceConfig",
    "SubspaceLayer",
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
    "find_subspace",
    "fold",
    "gaussian_lora_A",
    "initial_lora_A",
    "initial_lora_B",
    "intrinsic_dimension",
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
    "walsh_hadamard",
]

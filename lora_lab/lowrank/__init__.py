"""Low-rank matrices: factors, the SVD cut off at a rank, errors, counts, and a gallery of examples (NumPy only)."""

from lora_lab.lowrank import gallery
from lora_lab.lowrank.counting import break_even_rank, parameter_count
from lora_lab.lowrank.matrix import LowRank
from lora_lab.lowrank.svd import numerical_rank, rank_errors, truncated_svd

__all__ = [
    "LowRank",
    "break_even_rank",
    "gallery",
    "numerical_rank",
    "parameter_count",
    "rank_errors",
    "truncated_svd",
]

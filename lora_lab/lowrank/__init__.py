"""Low-rank matrices: factors, the SVD cut off at a rank, errors, counts, and a gallery of examples (NumPy only)."""

from lora_lab.lowrank import gallery
from lora_lab.lowrank.choosing import choose_rank
from lora_lab.lowrank.counting import break_even_rank, parameter_count
from lora_lab.lowrank.fitting import DivergedError, Fit, fit_factors
from lora_lab.lowrank.matrix import LowRank
from lora_lab.lowrank.randomized import error_bound, randomized_svd
from lora_lab.lowrank.svd import numerical_rank, rank_errors, singular_values, truncated_svd

__all__ = [
    "DivergedError",
    "Fit",
    "LowRank",
    "break_even_rank",
    "choose_rank",
    "error_bound",
    "fit_factors",
    "gallery",
    "numerical_rank",
    "parameter_count",
    "randomized_svd",
    "rank_errors",
    "singular_values",
    "truncated_svd",
]

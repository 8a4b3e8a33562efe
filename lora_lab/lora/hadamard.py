"""The fast Walsh–Hadamard transform: H x without the matrix H."""

from functools import lru_cache

import torch
from torch import Tensor

_LARGEST = 6  # the small matrices have at most 2⁶ rows: larger ones do more work, smaller ones pass over x more often


def walsh_hadamard(x: Tensor) -> Tensor:
    """Give H x along the last dimension, with Sylvester's n×n matrix H of +1 and −1 that is never formed.

    H of size p·q is the Kronecker product of those of sizes p and q, so H x is a few products with small matrices, each
    along one direction of x written as a table of several dimensions. With matrices of size 2 that is the butterfly of
    textbooks, n·log2(n) additions; those of 16 to 64 here do more additions and pass over memory less often, which is
    faster. H H = n I, and nothing is divided by √n.

    Args:
        x: (..., n) of floating or whole numbers; n a power of two.

    Returns:
        (..., n), a new tensor of the type of x. Whole numbers come out exactly, as long as the type can hold them.

    Raises:
        TypeError: x is not a tensor.
        ValueError: n is not a power of two.

    Source: Fino and Algazi (1976), "Unified matrix treatment of the fast Walsh–Hadamard transform".
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got a {type(x).__name__}")
    n = x.shape[-1] if x.dim() else 0
    if n < 1 or n & (n - 1):
        raise ValueError(f"x must have a last dimension that is a power of two (1, 2, 4, …), got {tuple(x.shape)}")
    y, done, left = x, 1, n.bit_length() - 1  # done: the size of the Hadamard matrix applied so far; n = done·2^left
    for steps in range(-(-left // _LARGEST), 0, -1):
        size = int(2 ** -(-left // steps))  # steps of equal size, as far as that goes
        small = _sylvester(size, x.device, x.dtype)
        # (…·n / size, size) @ (size, size) at first, then (size, size) @ (…·n / (size·done), size, done)
        y = y.reshape(-1, size) @ small if done == 1 else small @ y.reshape(-1, size, done)
        done, left = done * size, left - size.bit_length() + 1
    return y.reshape(x.shape) if n > 1 else x.clone()


@lru_cache(maxsize=32)
def _sylvester(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Give Sylvester's matrix of size n, a small power of two: [[H, H], [H, −H]] from the one of half the size."""
    matrix = torch.ones(1, 1, dtype=torch.int8)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix.to(device, dtype)

"""Random matrices P with many rows and few columns, as products: P v and Pᵀ g, never P itself if that can be helped.

P is (rows, dimension) and has columns of length 1, nearly orthogonal to each other, so that P v is nearly as long as v.
Three ways to draw it, for D rows and d columns:

=========  =====================================  ============  ==============
           what is drawn                          numbers kept  work of P v
=========  =====================================  ============  ==============
dense      every entry                            D·d           D·d
sparse     √D entries of each column              d·√D          d·√D
fastfood   signs, a shuffle and D normal numbers  3·D           D·log d
=========  =====================================  ============  ==============

Everything random follows from a seed, so a projection is saved as four words. While it is in use, what was drawn is
kept, in the smallest types that hold it (2 bytes for each entry of the sparse matrix, 5 for each row of the fastfood
one): drawing the numbers anew for every product would take longer than the product.
"""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from lora_lab.lora.hadamard import walsh_hadamard

ProjectionKind: TypeAlias = Literal["fastfood", "sparse", "dense"]

_CHUNK = 2**18  # numbers worked on at a time: 1 MB in float32, which stays in a processor's cache
_LARGEST_DENSE = 2**30  # entries: 4 GB in float32


class Projection:
    """A random matrix P of (rows, dimension), given as the products P v and Pᵀ g.

    It is fixed once made: the same kind, sizes and seed give the same matrix, on every device. Copies share what was
    drawn, and a pickle holds the sizes and the seed alone.

    Args:
        rows: D, at least 1.
        dimension: d, at least 1 and at most D.
        seed: seeds a CPU generator.

    Raises:
        ValueError: dimension is larger than rows; or P is dense and has more than 2³⁰ entries.
    """

    kind: ClassVar[ProjectionKind]

    def __init__(self, rows: int, dimension: int, seed: int) -> None:
        """Keep sizes and seed; the first product draws."""
        if not 1 <= dimension <= rows:
            raise ValueError(f"dimension must be from 1 to the {rows:,} numbers it stands for, got {dimension:,}")
        self.rows, self.dimension, self.seed = rows, dimension, seed
        self._kept: tuple[Tensor, ...] = ()

    def __matmul__(self, v: Tensor) -> Tensor:
        """Give P v, (rows,), for v (dimension,), in the type of v."""
        return torch.cat([part.times(v) for part in self.parts(v.device)])

    def transposed(self, g: Tensor) -> Tensor:
        """Give Pᵀ g, (dimension,), for g (rows,), in the type of g."""
        total = g.new_zeros(self.dimension)
        for part in self.parts(g.device):
            total += part.transposed(g[part.start : part.stop])
        return total

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Give P itself, (rows, dimension), for small sizes: column j is P times the j-th unit vector."""
        return torch.stack([self @ unit for unit in torch.eye(self.dimension, dtype=dtype)], dim=1)

    def parts(self, device: torch.device) -> Iterator["Part"]:
        """Give P in stretches of consecutive rows, each small enough to be worked on in the processor's cache."""
        if not self._kept:
            self._kept = self.draw(torch.Generator("cpu").manual_seed(self.seed))
        if self._kept[0].device != device:
            self._kept = tuple(tensor.to(device) for tensor in self._kept)
        return self.cut(*self._kept)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw what is random, on the CPU."""
        raise NotImplementedError

    def cut(self, *kept: Tensor) -> Iterator["Part"]:
        """Cut what was drawn into parts."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes that are kept while the projection is in use; 0 before the first product."""
        return sum(tensor.nbytes for tensor in self._kept)

    def __deepcopy__(self, memo: dict[int, object]) -> "Projection":
        """Give the projection itself: nothing of it ever changes."""
        return self

    def __reduce__(self) -> tuple[type["Projection"], tuple[int, int, int]]:
        """Pickle sizes and seed."""
        return type(self), (self.rows, self.dimension, self.seed)

    def __repr__(self) -> str:
        """Say sizes and seed."""
        return f"{type(self).__name__}(rows={self.rows}, dimension={self.dimension}, seed={self.seed})"


class Part:
    """The rows ``start`` to ``stop`` of a projection."""

    start: int
    stop: int

    def times(self, v: Tensor) -> Tensor:
        """Give these rows of P v, (stop − start,)."""
        raise NotImplementedError

    def transposed(self, g: Tensor) -> Tensor:
        """Give what these rows add to Pᵀ g, (dimension,); g is (stop − start,)."""
        raise NotImplementedError


class DenseProjection(Projection):
    """Every entry from a normal law, then each column divided by its length.

    Columns have length 1. ‖P v‖² / ‖v‖² is 1 on average with a standard deviation below √(2 / D).

    Source: Li, Farkhoor, Liu and Yosinski (2018), "Measuring the Intrinsic Dimension of Objective Landscapes",
        section 2 and supplement.
    """

    kind = "dense"

    def __init__(self, rows: int, dimension: int, seed: int) -> None:
        """Refuse what no machine that this course is for can hold."""
        super().__init__(rows, dimension, seed)
        if rows * dimension > _LARGEST_DENSE:
            raise ValueError(
                f"projection='dense' keeps {rows:,} × {dimension:,} numbers, {rows * dimension / 2.5e8:,.0f} GB, and "
                "takes 4.3 GB at most; take 'fastfood' or 'sparse'"
            )

    def draw(self, generator: torch.Generator) -> tuple[Tensor]:
        """Draw P, (rows, dimension) in float32."""
        matrix = torch.randn(self.rows, self.dimension, generator=generator)
        return (matrix / matrix.norm(dim=0, dtype=torch.float64).float(),)

    def cut(self, *kept: Tensor) -> Iterator["_DensePart"]:
        """Give some rows at a time, so that a copy of P in another type is never made as a whole."""
        step = max(1, _CHUNK // self.dimension)
        for start in range(0, self.rows, step):
            yield _DensePart(start, kept[0][start : start + step])


class _DensePart(Part):
    """Some rows of a dense matrix."""

    def __init__(self, start: int, rows: Tensor) -> None:
        """Hold the rows, (stop − start, d)."""
        self.start, self.stop, self.matrix = start, start + len(rows), rows

    def times(self, v: Tensor) -> Tensor:
        return self.matrix.to(v.dtype) @ v

    def transposed(self, g: Tensor) -> Tensor:
        return g @ self.matrix.to(g.dtype)


class SparseProjection(Projection):
    """About √D entries of each column are ±1, the others 0; then each column is divided by its length.

    The rows are cut into s = round(√D) stretches, and each column has one entry in each stretch, at a random place with
    a random sign, ±1/√s. Very sparse random projections let every entry be non-zero with probability 1/√D instead: the
    same number on average, but columns of different lengths, and places in no order, which a processor's cache does not
    like. Columns have length 1. ‖P v‖² / ‖v‖² is 1 on average with a standard deviation below √(2 / D).

    Source: Li, Hastie and Church (2006), "Very Sparse Random Projections", which Li et al. (2018) use; the stretches
        are the block construction of Kane and Nelson (2014), "Sparser Johnson–Lindenstrauss Transforms".
    """

    kind = "sparse"

    def draw(self, generator: torch.Generator) -> tuple[Tensor]:
        """Draw one number for each stretch and column, (s, d): 2·place + (0 for a plus, 1 for a minus)."""
        bounds = self._bounds()
        widths = bounds.diff()  # (s,)
        type_ = torch.int16 if 2 * int(widths.max()) <= 2**15 else torch.int32
        codes = torch.empty(len(widths), self.dimension, dtype=type_)
        for stretch, width in enumerate(widths.tolist()):
            codes[stretch].random_(0, 2 * width, generator=generator)
        return (codes,)

    def cut(self, *kept: Tensor) -> Iterator["_SparsePart"]:
        """Give some stretches at a time."""
        (codes,) = kept
        bounds = self._bounds()
        step = max(1, _CHUNK // max(self.dimension, int(bounds[1])))
        for first in range(0, len(codes), step):
            here = bounds[first : first + step + 1]
            yield _SparsePart(here, codes[first : first + step], 1 / math.sqrt(len(codes)))

    def _bounds(self) -> Tensor:
        """Give where each of the s stretches starts, and where the last one ends, (s + 1,)."""
        s = max(1, round(math.sqrt(self.rows)))
        return torch.arange(s + 1) * self.rows // s


class _SparsePart(Part):
    """Some stretches of a sparse matrix."""

    def __init__(self, bounds: Tensor, codes: Tensor, size: float) -> None:
        """Hold bounds (stretches + 1,), codes (stretches, d), and the size of an entry."""
        self.start, self.stop = int(bounds[0]), int(bounds[-1])
        self.begins = (bounds[:-1, None] - self.start).to(codes.device)  # (stretches, 1)
        self.codes, self.size = codes, size

    def _entries(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Give the rows of the entries, counted from start, and the entries, both (stretches, d)."""
        return (self.codes >> 1) + self.begins, (1 - 2 * (self.codes & 1)).to(dtype) * self.size

    def times(self, v: Tensor) -> Tensor:
        places, entries = self._entries(v.dtype)
        return v.new_zeros(self.stop - self.start).scatter_add_(0, places.flatten(), (entries * v).flatten())

    def transposed(self, g: Tensor) -> Tensor:
        places, entries = self._entries(g.dtype)
        return g.index_select(0, places.flatten()).view(places.shape).mul_(entries).sum(0)


class FastfoodProjection(Projection):
    """Square blocks H G Π H B on top of each other: H Hadamard, G normal numbers, Π a shuffle, B signs.

    A block is n×n with n the next power of two from d, of which the first d columns count, and D / n of them stand on
    top of each other, the last one cut off. G and B are diagonal and Π is a permutation, so a block keeps 3·n numbers;
    H x is a fast Walsh–Hadamard transform, so a block times a vector takes about 2·n·log2(n) additions. G is scaled in
    every block so that its squares sum to n. Then all rows of a block have the same length, and so have all columns;
    the diagonal S of the paper, which gives rows the varying lengths of those of a normal matrix, is left out. P is
    divided by √(n·D).

    Columns have length 1 exactly if n divides D, else but for what the last block adds to them. ‖P v‖² / ‖v‖² is 1 on
    average with a standard deviation below √(6 / D).

    The code of Aghajanyan, Gupta and Zettlemoyer (2021), as others have published it again, pads v to one block of more
    than D rows instead of stacking many small ones: the work is then D·log D.

    Source: Le, Sarlós and Smola (2013), "Fastfood: Approximating Kernel Expansions in Loglinear Time".
    """

    kind = "fastfood"

    @property
    def size(self) -> int:
        """The size n of a block: the next power of two from d."""
        return int(2 ** (self.dimension - 1).bit_length())

    def draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw G in float16, Π and B, each (blocks, n), and the factor of each block, (blocks, 1)."""
        n, blocks = self.size, -(-self.rows // self.size)
        normal = torch.empty(blocks, n, dtype=torch.float16)
        factor = torch.empty(blocks, 1, dtype=torch.float64)
        shuffle = torch.empty(blocks, n, dtype=torch.int16 if n <= 2**15 else torch.int32)
        step = max(1, _CHUNK // n)
        for first in range(0, blocks, step):
            here = slice(first, min(first + step, blocks))
            drawn = torch.randn(here.stop - first, n, generator=generator).half()
            normal[here] = drawn.masked_fill_(drawn == 0, 1)  # a 0, about one in 10⁷, would lose a row of Π H B
            factor[here] = 1 / (normal[here].double().norm(dim=1, keepdim=True) * math.sqrt(self.rows))
            shuffle[here] = _shuffles(here.stop - first, n, generator)
        signs = torch.empty(blocks, n, dtype=torch.int8).random_(0, 2, generator=generator).mul_(-2).add_(1)
        return normal, factor, shuffle, signs

    def cut(self, *kept: Tensor) -> Iterator["_FastfoodPart"]:
        """Give some blocks at a time."""
        step = max(1, _CHUNK // self.size)
        for first in range(0, len(kept[0]), step):
            start, stop = first * self.size, min((first + step) * self.size, self.rows)
            yield _FastfoodPart(start, stop, self.dimension, *(tensor[first : first + step] for tensor in kept))


class _FastfoodPart(Part):
    """Some blocks H G Π H B; the rows after ``stop`` are left out."""

    def __init__(
        self, start: int, stop: int, dimension: int, normal: Tensor, factor: Tensor, shuffle: Tensor, signs: Tensor
    ) -> None:
        """Hold G, its factor, Π and B of each block."""
        self.start, self.stop, self.dimension = start, stop, dimension
        self.normal, self.factor, self.shuffle, self.signs = normal, factor, shuffle, signs

    def times(self, v: Tensor) -> Tensor:
        n = self.signs.shape[1]
        x = torch.nn.functional.pad(v, (0, n - self.dimension))  # (n,)
        x = walsh_hadamard(self.signs * x)  # H B v of every block, (blocks, n)
        x = x.gather(1, self.shuffle.long())  # Π H B v
        x = walsh_hadamard(x.mul_(self._scaled(v.dtype)))  # H G Π H B v
        return x.flatten()[: self.stop - self.start]

    def transposed(self, g: Tensor) -> Tensor:
        x = torch.nn.functional.pad(g, (0, self.signs.numel() - len(g))).view(self.signs.shape)  # (blocks, n)
        x = walsh_hadamard(x).mul_(self._scaled(g.dtype))  # G H g
        x = torch.empty_like(x).scatter_(1, self.shuffle.long(), x)  # Πᵀ G H g
        x = walsh_hadamard(x).mul_(self.signs)  # B H Πᵀ G H g
        return x.sum(0)[: self.dimension]

    def _scaled(self, dtype: torch.dtype) -> Tensor:
        """Give the diagonal of G times the factor of each block, (blocks, n)."""
        return self.normal.to(dtype).mul_(self.factor.to(dtype))


PROJECTIONS: dict[str, type[Projection]] = {
    kind.kind: kind for kind in (FastfoodProjection, SparseProjection, DenseProjection)
}


def _shuffles(count: int, n: int, generator: torch.Generator) -> Tensor:
    """Draw permutations of 0 … n − 1, (count, n): long ones one by one, short ones by sorting random numbers."""
    if n >= 64:
        return torch.stack([torch.randperm(n, generator=generator) for _ in range(count)])
    return torch.rand(count, n, generator=generator, dtype=torch.float64).argsort(dim=1)

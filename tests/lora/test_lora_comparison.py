"""Directions compared: cases whose answer is known, and SciPy's principal angles."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import nn

from lora_lab.lora import LoRAConfig, attach, intruder_dimensions, lora_layers, subspace_similarity, updates
from lora_lab.lowrank import LowRank


def rotation(n, seed=0):
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def with_values(U, values, V):
    """The matrix with these columns as singular vectors and these singular values."""
    return U[:, : len(values)] * values @ V[:, : len(values)].T


class TestSubspaceSimilarity:
    def test_every_entry_is_the_mean_squared_cosine_of_scipys_principal_angles(self):
        rng = np.random.default_rng(1)
        A1, A2 = rng.normal(size=(4, 12)), rng.normal(size=(7, 12))
        A2[:2] = A1[:2] + 0.2 * A2[:2]
        V1, V2 = np.linalg.svd(A1)[2].T, np.linalg.svd(A2)[2].T
        phi = subspace_similarity(A1, A2)
        assert phi.shape == (4, 7)
        for i in range(1, 5):
            for j in range(1, 8):
                angles = subspace_angles(V1[:, :i], V2[:, :j])
                assert angles.size == min(i, j)
                assert phi[i - 1, j - 1] == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-12)

    def test_a_matrix_with_itself_shares_the_smaller_subspace_whole(self):
        A = np.random.default_rng(2).normal(size=(5, 9))
        np.testing.assert_allclose(subspace_similarity(A, A), np.ones((5, 5)), atol=1e-12)

    def test_orthogonal_subspaces_share_nothing(self):
        V = rotation(8)
        one, two = with_values(np.eye(3), [3, 2, 1], V[:, :3]), with_values(np.eye(4), [4, 3, 2, 1], V[:, 3:7])
        np.testing.assert_allclose(subspace_similarity(one, two), np.zeros((3, 4)), atol=1e-12)

    def test_a_case_by_hand(self):
        """Directions e1, e2 beside (e1 + e2) / √2 and e3: cosines 1/√2, 0 and 1/√2, 0."""
        A1 = np.array([[2.0, 0, 0], [0, 1, 0]])
        A2 = np.array([[3.0, 3, 0], [0, 0, 1]])
        np.testing.assert_allclose(subspace_similarity(A1, A2), [[0.5, 0.5], [1.0, 0.5]], atol=1e-12)
        np.testing.assert_allclose(subspace_similarity(A2, A1), [[0.5, 1.0], [0.5, 0.5]], atol=1e-12)

    def test_the_order_is_that_of_the_singular_values(self):
        V = rotation(6)
        one, two = with_values(np.eye(2), [5, 1], V), with_values(np.eye(2), [5, 1], V[:, [1, 0]])
        np.testing.assert_allclose(subspace_similarity(one, two), [[0, 1], [1, 1]], atol=1e-12)

    def test_is_one_less_the_projection_metric_squared(self):
        """Appendix G of Hu et al.: φ = (p − d²) / p, with d² = p − Σ σ² and p = min(i, j)."""
        rng = np.random.default_rng(3)
        A1, A2 = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
        P1, P2 = np.linalg.pinv(A1) @ A1, np.linalg.pinv(A2) @ A2  # projections on the whole row spaces
        d_squared = np.linalg.norm(P1 - P2) ** 2 / 2
        assert subspace_similarity(A1, A2)[2, 2] == pytest.approx(1 - d_squared / 3)

    def test_random_subspaces_reach_the_larger_dimension_over_n(self):
        rng = np.random.default_rng(4)
        grids = [subspace_similarity(rng.normal(size=(4, 40)), rng.normal(size=(8, 40))) for _ in range(200)]
        i, j = np.arange(1, 5)[:, None], np.arange(1, 9)[None, :]
        np.testing.assert_allclose(np.mean(grids, axis=0), np.maximum(i, j) / 40, rtol=0.25)

    def test_size_and_what_stands_left_do_not_count(self):
        rng = np.random.default_rng(5)
        A1, A2 = rng.normal(size=(3, 9)), rng.normal(size=(4, 9))
        phi = subspace_similarity(A1, A2)
        np.testing.assert_allclose(subspace_similarity(1e-9 * rotation(3) @ A1, 1e6 * A2), phi, atol=1e-10)

    def test_takes_tensors_and_updates(self):
        torch.manual_seed(0)
        model = attach(nn.Sequential(nn.Linear(9, 6)), LoRAConfig(rank=3, targets=("0",)))
        attach(model, LoRAConfig(rank=2, targets=("0",)), name="second", generator=torch.Generator().manual_seed(1))
        layer = lora_layers(model)["0"]
        for adapter in layer.adapters.values():
            nn.init.orthogonal_(adapter.lora_B)
        one, two = layer.adapters["default"].lora_A, layer.adapters["second"].lora_A
        phi = subspace_similarity(one, two)
        assert phi.shape == (3, 2)
        np.testing.assert_allclose(phi, subspace_similarity(one.detach().numpy(), two.detach().numpy()), atol=1e-6)
        # An orthogonal B leaves the directions of A, in their order, also in the whole update.
        of_updates = subspace_similarity(updates(model, "default")["0"], updates(model, "second")["0"])
        np.testing.assert_allclose(of_updates, phi, atol=1e-6)

    def test_past_its_rank_a_matrix_has_no_directions(self):
        A = np.outer([1.0, 2, 3], [1.0, 0, 1, 0])
        assert subspace_similarity(A, np.eye(4)).shape == (1, 4)
        with pytest.raises(ValueError, match="A2 must not be zero"):
            subspace_similarity(A, np.zeros((2, 4)))

    def test_what_cannot_be_compared_is_refused(self):
        with pytest.raises(ValueError, match="A1 and A2 must have the same number of columns, got 3 and 4"):
            subspace_similarity(np.eye(3), np.eye(4))
        with pytest.raises(ValueError, match="A1 must be a finite matrix"):
            subspace_similarity(np.full((2, 2), np.nan), np.eye(2))
        with pytest.raises(ValueError, match="A2 must be a finite matrix with at least one entry, got shape"):
            subspace_similarity(np.eye(2), np.ones(2))
        with pytest.raises(TypeError, match="A1 must hold real numbers"):
            subspace_similarity(np.eye(2) * 1j, np.eye(2))


class TestIntruderDimensions:
    def weight(self, values=(9, 8, 7, 6, 5, 4, 3, 2), m=12):
        """A weight with known singular vectors; the columns of U after the eighth are no direction of it."""
        U, V = rotation(m, seed=1), rotation(8, seed=2)
        return U, V, with_values(U, values, V)

    def test_a_large_new_direction_is_one_and_stands_first(self):
        U, V, W = self.weight()
        tuned = W + 20 * np.outer(U[:, 10], V[:, 7])  # in the output a direction that W does not have
        found = intruder_dimensions(W, tuned, k=4)
        assert found.indices == (0,)
        assert found.count == 1
        assert found.cosines[0] < 0.2
        assert found.singular_values[0] > 20
        np.testing.assert_allclose(found.cosines[1:], 1, atol=0.02)

    def test_no_change_and_stronger_old_directions_make_none(self):
        U, V, W = self.weight()
        assert intruder_dimensions(W, W, k=8).count == 0
        stronger = W + 30 * np.outer(U[:, 7], V[:, 7])  # the last direction becomes the first
        found = intruder_dimensions(W, stronger, k=8)
        np.testing.assert_allclose(found.cosines, 1, atol=1e-12)
        assert found.singular_values[0] == pytest.approx(32)

    def test_a_mix_of_two_old_directions_is_known_by_its_cosine(self):
        """(u1 + u2) / √2 has cosine 0.707 with both: an intruder at ε = 0.8 and not at 0.7."""
        U, V, W = self.weight()
        mixed = U.copy()
        mixed[:, 0], mixed[:, 1] = (U[:, 0] + U[:, 1]) / np.sqrt(2), (U[:, 0] - U[:, 1]) / np.sqrt(2)
        tuned = with_values(mixed, (9, 8, 7, 6, 5, 4, 3, 2), V)
        np.testing.assert_allclose(intruder_dimensions(W, tuned, k=2).cosines, 1 / np.sqrt(2))
        assert intruder_dimensions(W, tuned, k=8, epsilon=0.8).indices == (0, 1)
        assert intruder_dimensions(W, tuned, k=8, epsilon=0.7).indices == ()

    def test_the_sign_of_a_singular_vector_does_not_count(self):
        """Nearly one direction, but the largest entry, whose sign a decomposition fixes, is another: cosine −1."""
        W, tuned = np.outer([1.0, -1.01], [1.0, 0.0]), np.outer([1.01, -1.0], [1.0, 0.0])
        found = intruder_dimensions(W, tuned, k=1)
        assert found.cosines[0] == pytest.approx(1, abs=1e-4)
        assert found.count == 0

    def test_only_the_leading_k_are_looked_at(self):
        U, V, W = self.weight()
        tuned = W - 5 * np.outer(U[:, 4], V[:, 4]) + 3.5 * np.outer(U[:, 10], V[:, 4])
        assert intruder_dimensions(W, tuned, k=4).count == 0
        assert intruder_dimensions(W, tuned, k=8).indices == (5,)

    def test_a_direction_of_a_singular_value_of_zero_is_none_of_the_weights(self):
        """An SVD hands out vectors for them too, arbitrary ones, which must hide no intruder."""
        U, V, W = self.weight(values=(9, 8, 7))
        tuned = W + 20 * np.outer(U[:, 5], V[:, 5])
        assert intruder_dimensions(W, tuned, k=4).indices == (0,)

    def test_is_what_peft_counts(self, peft_model):
        """PEFT 0.21 has a mitigation that counts them for itself, and reports through a function it is given."""
        from peft.tuners.lora.intruders import reduce_intruder_dimension

        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 24))
        with torch.no_grad():
            for layer in base:
                layer.weight.mul_(0.2)
        theirs = peft_model(base, LoRAConfig(rank=3, alpha=3, targets=("0", "1")))
        for layer in (theirs.base_model.model[0], theirs.base_model.model[1]):
            nn.init.normal_(layer.lora_B["default"].weight, std=0.7)
        said = []
        weights = [
            (layer.base_layer.weight.detach(), layer.base_layer.weight.detach() + layer.get_delta_weight("default"))
            for layer in (theirs.base_model.model[0], theirs.base_model.model[1])
        ]
        reduce_intruder_dimension(theirs, logging_sink=said.append)
        counts = [intruder_dimensions(*pair).count for pair in weights]
        reported = [int(line.rpartition("Intruders: ")[2]) for line in said if "Intruders: " in line]
        assert counts == reported
        assert min(counts) > 0

    def test_takes_an_update_in_factors_beside_its_weight(self):
        U, V, W = self.weight()
        low = LowRank(U[:, :3], V[:, :3].T)
        assert intruder_dimensions(torch.from_numpy(W), low, k=3).cosines.shape == (3,)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"k": 0}, ValueError, "k must be at least 1, got 0"),
            ({"k": 9}, ValueError, "k must be at most 8, the rank of W_tuned, got 9"),
            ({"k": 2.0}, TypeError, "k must be a whole number"),
            ({"epsilon": 0}, ValueError, "epsilon must be above 0 and at most 1, got 0"),
            ({"epsilon": 1.5}, ValueError, "epsilon must be above 0"),
            ({"epsilon": "0.5"}, TypeError, "epsilon must be a number"),
        ],
    )
    def test_bad_arguments_are_refused_by_name(self, options, error, message):
        _, _, W = self.weight()
        with pytest.raises(error, match=message):
            intruder_dimensions(W, W, **options)

    def test_weights_that_do_not_compare_are_refused(self):
        _, _, W = self.weight()
        with pytest.raises(ValueError, match=r"must have the same shape, got \(12, 8\) and \(8, 12\)"):
            intruder_dimensions(W, W.T)
        with pytest.raises(ValueError, match="W must not be zero"):
            intruder_dimensions(np.zeros_like(W), W, k=2)

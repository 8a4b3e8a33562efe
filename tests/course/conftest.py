"""Small encoders for the experiments on film reviews, in place of the real ones."""

import copy

import pytest
import torch

from lora_lab.course.experiments.short_reviews import Materials
from lora_lab.finetune import Reviews, untrained_encoder
from tests.finetune.conftest import tokenizer as byte_tokenizer  # noqa: F401 (pytest finds the fixture by its name)
from tests.finetune.test_classification import examples
from tests.finetune.test_encoder import tiny_config

WIDE = {"hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 1}  # wide enough for the rank 64


@pytest.fixture(scope="module")
def shared(byte_tokenizer):  # noqa: F811
    """Give what the experiments share: encoders that learn which of two letters a text is made of."""
    letters = copy.deepcopy(byte_tokenizer)
    letters.pad_token = "<|endoftext|>"
    encoders = [untrained_encoder(tiny_config(initializer_range=0.2, **WIDE), seed=seed) for seed in (0, 1)]
    splits = Reviews(*(tuple(examples(40, seed)) for seed in range(3)), duplicates=0)
    return Materials(*encoders, letters, splits, None)


@pytest.fixture
def untouched(shared):
    """Require that a test leaves the shared encoder as it found it."""
    before = {name: value.clone() for name, value in shared.pretrained.state_dict().items()}
    yield
    after = shared.pretrained.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)

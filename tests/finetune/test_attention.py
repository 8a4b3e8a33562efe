"""The attention that is quick: which kernel it is, that it computes the same, and that the model gets its own back."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from lora_lab.finetune import Encoded, Settings, attention, mean_loss, train
from lora_lab.finetune.attention import LONG, attention_for, quick_attention
from lora_lab.finetune.evaluation import generate
from lora_lab.finetune.loss import log_probabilities
from tests.finetune.conftest import tiny_lora, tiny_model


def kernel(model):
    return model.config._attn_implementation


@pytest.fixture
def eager():
    model = tiny_lora()
    model.set_attn_implementation("eager")
    return model


def long_examples(count=4):
    generator = torch.Generator().manual_seed(0)
    lengths = [LONG + 9 * place + 5 for place in range(count)]
    rows = [torch.randint(3, 200, (length,), generator=generator).tolist() for length in lengths]
    return [Encoded(tuple(row), len(row) - 20) for row in rows]


def test_cudnn_is_left_out_on_a_gpu_alone():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with quick_attention(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with quick_attention(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_long_texts_take_the_fused_kernel_for_a_while(eager):
    def lose():
        with attention_for(eager, LONG + 1):
            assert kernel(eager) == "sdpa"
            raise RuntimeError("lost")

    with attention_for(eager, LONG):
        assert kernel(eager) == "eager"
    with pytest.raises(RuntimeError, match="lost"):
        lose()
    assert kernel(eager) == "eager"


def test_a_model_that_cannot_or_has_its_own_keeps_it(eager, monkeypatch):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    capped = Gemma2ForCausalLM(Gemma2Config(vocab_size=259, num_key_value_heads=1, head_dim=8, **sizes))
    capped.set_attn_implementation("eager")
    with attention_for(capped, 10 * LONG):
        assert kernel(capped) == "eager"  # the fused kernel would leave the cap out
    mine = tiny_model()
    mine.set_attn_implementation("sdpa")
    with attention_for(mine, 10 * LONG):
        assert kernel(mine) == "sdpa"
    assert kernel(mine) == "sdpa"
    monkeypatch.setattr(type(eager), "_supports_sdpa", False)
    with attention_for(eager, 10 * LONG):
        assert kernel(eager) == "eager"


def everything(model):
    """Give what a model says of long texts, and its factors after it has learned some."""
    prompts = [example.prompt for example in long_examples()]
    tokenizer = Plain()
    said = generate(model, tokenizer, prompts, max_new_tokens=5, progress=False)
    numbers = [mean_loss(model, long_examples()), *log_probabilities(model, long_examples())]
    history = train(model, long_examples(), Settings(epochs=2, batch_size=2), progress=False)
    factors = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    return said, numbers, history.losses, factors


class Plain:
    """A tokenizer that writes token ids as they are."""

    chat_template, eos_token_id = None, 2

    def decode(self, tokens, **_):
        return " ".join(map(str, tokens.tolist()))


def test_answers_scores_and_training_are_the_same(eager, monkeypatch):
    used = []
    own = type(eager).set_attn_implementation
    monkeypatch.setattr(
        type(eager), "set_attn_implementation", lambda model, name: used.append(name) or own(model, name)
    )
    said, numbers, losses, factors = everything(eager)
    assert used.count("sdpa") == used.count("eager") >= 4
    monkeypatch.setattr(attention, "LONG", 10**9)
    plain = tiny_lora()
    own(plain, "eager")
    used.clear()
    said_too, numbers_too, losses_too, factors_too = everything(plain)
    assert not used
    assert said_too == said
    assert numbers_too == pytest.approx(numbers, rel=1e-5)
    assert losses_too == pytest.approx(losses, rel=1e-5)
    for name, factor in factors.items():
        torch.testing.assert_close(factors_too[name], factor, rtol=1e-3, atol=1e-5)

"""What the model reads, what the loss counts, and that leaving out the rest changes nothing."""

import copy
import weakref

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from lora_lab.finetune import Encoded, answer_loss, collate, encode, encode_prompt, labelled_tokens, train
from lora_lab.finetune.encoding import IGNORED
from lora_lab.finetune.loss import answer_positions, check_logits, logits_of, score_answers
from lora_lab.lora import LoRAConfig, attach
from tests.finetune.conftest import tiny_model

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]


def test_an_example_is_the_chat_template_with_the_answer_as_the_last_turn(tokenizer):
    encoded = encode(tokenizer, MESSAGES, "SELECT 1")
    whole = tokenizer.apply_chat_template([*MESSAGES, {"role": "assistant", "content": "SELECT 1"}], tokenize=False)
    assert tokenizer.decode(encoded.tokens) == whole.removesuffix("\n")


def test_the_answer_starts_where_the_prompt_ends_and_its_end_counts(tokenizer):
    encoded = encode(tokenizer, MESSAGES, "SELECT 1")
    assert list(encoded.tokens[: encoded.answer_start]) == encode_prompt(tokenizer, MESSAGES)
    assert tokenizer.decode(encoded.tokens[encoded.answer_start :]) == "SELECT 1<|im_end|>"
    assert encoded.answer_tokens == len("SELECT 1") + 1


def test_an_example_that_is_too_long_is_refused_and_not_cut(tokenizer):
    length = len(encode(tokenizer, MESSAGES, "SELECT 1").tokens)
    assert encode(tokenizer, MESSAGES, "SELECT 1", max_tokens=length)
    with pytest.raises(ValueError, match=rf"{length} tokens, and max_tokens is {length - 1}"):
        encode(tokenizer, MESSAGES, "SELECT 1", max_tokens=length - 1)


def test_an_empty_answer_is_refused(tokenizer):
    with pytest.raises(ValueError, match="answer: got an empty text"):
        encode(tokenizer, MESSAGES, "  ")


@pytest.mark.parametrize("start", [-1, 0, 3, 4])
def test_an_answer_needs_something_before_it_and_a_token_of_its_own(start):
    with pytest.raises(ValueError, match=f"answer_start: got {start}, takes a place from 1 to 2"):
        Encoded((4, 5, 6), start)


def test_a_tokenizer_that_cannot_end_an_answer_or_hold_a_conversation_is_refused(tokenizer):
    endless, plain = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    endless.eos_token = plain.chat_template = None
    expected = encode(tokenizer, MESSAGES, "SELECT 1")
    assert encode(endless, MESSAGES, "SELECT 1") == expected  # the template writes <|im_end|> after a turn
    endless.chat_template = endless.chat_template.replace("<|im_end|>", "")
    with pytest.raises(ValueError, match="tokenizer: neither an end-of-sequence token"):
        encode(endless, MESSAGES, "SELECT 1")
    with pytest.raises(ValueError, match="chat_template is not set"):
        encode(plain, MESSAGES, "SELECT 1")


def test_a_batch_pads_on_the_right_and_labels_only_answers():
    batch = collate([Encoded((5, 6, 7, 8), 2), Encoded((9, 10), 1)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 7, 8], [IGNORED, 10, IGNORED, IGNORED]]
    assert labelled_tokens(batch) == 3


BATCH = collate([Encoded((5, 6, 7, 8, 9), 2), Encoded((9, 10, 11), 1), Encoded((3, 4), 1)])


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()


def finished(model, config, **how):
    """Make a model of a class that does ``how`` to its logits, with logits large enough for it to count."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "tie_word_embeddings": False}
    torch.manual_seed(0)
    made = model(config(**{**sizes, **heads, **how})).eval()
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(20)
    return made


def gemma2() -> Gemma2ForCausalLM:
    return finished(Gemma2ForCausalLM, Gemma2Config, final_logit_softcapping=1.5)


def cohere() -> CohereForCausalLM:
    return finished(CohereForCausalLM, CohereConfig, logit_scale=0.25)


def granite() -> GraniteForCausalLM:
    return finished(GraniteForCausalLM, GraniteConfig, logits_scaling=4.0)


@pytest.mark.parametrize("make", [gemma2, cohere, granite])
def test_logits_are_finished_as_the_model_does_it(make):
    model = make()
    check_logits(model)
    with torch.no_grad():
        theirs = model(BATCH.input_ids, attention_mask=BATCH.attention_mask, labels=BATCH.labels).loss.item()
    examples = [Encoded((5, 6, 7, 8, 9), 2), Encoded((9, 10, 11), 1), Encoded((3, 4), 1)]  # those of BATCH
    assert score_answers(model, examples, 2).loss == pytest.approx(theirs, rel=1e-5)
    hidden, _ = answer_positions(model, BATCH)
    assert (logits_of(model, hidden) - model.lm_head(hidden)).abs().max() > 0.5  # or nothing would be tested


@pytest.mark.parametrize(
    "make", [tiny_model, lambda: tiny_model(tie_word_embeddings=False), gpt2, gemma2, cohere, granite]
)
def test_the_loss_and_its_gradients_are_those_of_transformers(make):
    """The oracle computes the head at every position and averages; ours does neither."""
    model = make().double()
    inputs = {"input_ids": BATCH.input_ids, "attention_mask": BATCH.attention_mask}
    theirs = model(**inputs, labels=BATCH.labels).loss * labelled_tokens(BATCH)
    expected = torch.autograd.grad(theirs, list(model.parameters()), allow_unused=True)
    ours = answer_loss(model, BATCH)
    found = torch.autograd.grad(ours, list(model.parameters()), allow_unused=True)
    # both losses are formed in float32, so they agree to its rounding
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-5, atol=1e-5)
    for mine, yours in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-5)


def test_the_head_sees_only_the_labelled_positions_some_at_a_time():
    model, rows = tiny_model(), []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    answer_loss(model, BATCH)
    answer_loss(model, BATCH, positions=4)
    assert rows == [6, 4, 2]
    assert labelled_tokens(BATCH) == 6


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head_learns", [True, False])
def test_chunks_change_neither_the_loss_nor_a_gradient(tied, head_learns):
    model = tiny_model(tie_word_embeddings=tied).double()
    model.get_output_embeddings().requires_grad_(head_learns)
    learn = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole = answer_loss(model, BATCH, positions=100)
    expected = torch.autograd.grad(3 * whole, learn, allow_unused=True)
    for positions in (1, 4, 6):
        loss = answer_loss(model, BATCH, positions=positions)
        torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
        found = torch.autograd.grad(3 * loss, learn, allow_unused=True)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_chunks_reach_a_head_with_lora_and_not_a_frozen_model():
    model = tiny_model(tie_word_embeddings=False).double()
    attach(model, LoRAConfig(rank=2, targets=("lm_head",)), generator=torch.Generator().manual_seed(0))
    layer = model.get_output_embeddings()
    torch.nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(1))
    whole, parts = (answer_loss(model, BATCH, positions=positions) for positions in (100, 2))
    factors = [layer.lora_A, layer.lora_B]
    torch.testing.assert_close(
        torch.autograd.grad(parts, factors), torch.autograd.grad(whole, factors), rtol=1e-10, atol=1e-12
    )
    assert not answer_loss(model.requires_grad_(False), BATCH).requires_grad


def test_where_no_gradient_is_wanted_none_is_found(monkeypatch):
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: pytest.fail("a gradient was found"))
    with torch.no_grad():
        answer_loss(tiny_model(), BATCH)
    answer_loss(tiny_model().requires_grad_(False), BATCH)


def test_no_logits_are_kept_for_the_backward_pass():
    model, seen = tiny_model(), []
    model.get_output_embeddings().requires_grad_(False)

    def keep(tensor):
        seen.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = answer_loss(model, BATCH)
    shapes = [tensor.shape for reference in seen if (tensor := reference()) is not None]
    assert (labelled_tokens(BATCH), model.config.vocab_size) not in shapes
    assert (labelled_tokens(BATCH), model.config.hidden_size) in shapes  # the gradient of the hidden vectors is
    loss.backward()


def test_padding_changes_no_loss():
    model = tiny_model().double()
    alone = sum(answer_loss(model, collate([example])) for example in EXAMPLES)
    torch.testing.assert_close(answer_loss(model, collate(EXAMPLES)), alone, rtol=1e-6, atol=1e-6)


EXAMPLES = [Encoded((5, 6, 7, 8, 9), 2), Encoded((9, 10, 11), 1)]


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    class Capped(type(tiny_model())):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            output.logits = 2 * torch.tanh(output.logits / 2) + 1
            return output

    check_logits(tiny_model())
    with pytest.raises(
        ValueError, match="Capped changes its logits after the head in a way that this loss does not know"
    ):
        train(Capped(tiny_model().config), EXAMPLES, progress=False)


def test_the_check_leaves_the_mode_as_it_was():
    model = tiny_model().train()
    check_logits(model)
    assert model.training
    assert all(module.training for module in model.modules() if isinstance(module, nn.Linear))

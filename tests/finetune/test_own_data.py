"""A fine-tune on a user's own file: any model, every example accounted for, the same bits however often it stops."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lora_lab.cli import main
from lora_lab.finetune import load_model, load_tokenizer, own_data, own_scores
from lora_lab.finetune.choices import answer_choices, likeliest
from lora_lab.finetune.corpus import encode_file, share_out, with_shots
from lora_lab.finetune.data import DataError, Record, Turn, read_data
from lora_lab.finetune.encoding import Encoded, encode, encode_text, end_token
from lora_lab.finetune.loss import log_probabilities, score_answers
from lora_lab.finetune.memory import OutOfMemoryError
from lora_lab.finetune.own_data import Job, run, summary
from lora_lab.finetune.own_scores import greedy_answers
from lora_lab.lora import load_adapter, lora_layers
from tests.finetune.conftest import tiny_lora, tiny_model

LINES = [{"prompt": f"Say {'abcdefghijklmnopqrst'[i]}", "completion": "abcdefghijklmnopqrst"[i]} for i in range(20)]

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def jsonl(path, lines=LINES):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def plain_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes without a chat template, as GPT-2's; with ``bos`` it begins each text, as Llama's."""
    special = ["<|endoftext|>", "<s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0], bos_token=special[1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """Give a folder with a model of a few thousand weights for each of three architectures."""
    made = {name: tmp_path_factory.mktemp("models") / f"tiny-{name}" for name in ("llama", "gpt2", "qwen2")}
    tiny_model().save_pretrained(made["llama"])
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(made["gpt2"])
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=2,
        )
    ).save_pretrained(made["qwen2"])  # fmt: skip
    tokenizer.save_pretrained(made["llama"])
    tokenizer.save_pretrained(made["qwen2"])
    plain_tokenizer().save_pretrained(made["gpt2"])
    return made


@pytest.fixture
def small(tmp_path, folders):
    return Job(
        data=jsonl(tmp_path / "mine.jsonl"), output=tmp_path / "run", model=str(folders["llama"]), device="cpu",
        dtype="float32", rank=2, alpha=4, epochs=2, batch_size=4, learning_rate=0.02, validation=4, validate_every=2,
        seed=3,
    )  # fmt: skip


def samples_of(job) -> list[dict]:
    return [json.loads(line) for line in (job.output / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def adapter_of(job) -> dict[str, torch.Tensor]:
    return load_file(job.output / "adapter" / "adapter_model.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what the model reads


def test_a_prompt_is_a_turn_of_the_user_and_messages_are_the_conversation(tokenizer, tmp_path):
    turns = [("system", "Be brief."), ("user", "Say a"), ("assistant", "a"), ("user", "Say b")]
    messages = [{"role": role, "content": content} for role, content in turns]
    lines = [LINES[0], {"messages": [*messages, {"role": "assistant", "content": "b"}]}]
    source = encode_file(tokenizer, read_data(jsonl(tmp_path / "mine.jsonl", lines)))
    assert source.template
    assert source.encoded[0] == encode(tokenizer, [{"role": "user", "content": "Say a"}], "a")
    assert source.encoded[1] == encode(tokenizer, messages, "b")
    assert tokenizer.decode(source.encoded[1].answer) == "b<|im_end|>"
    assert tokenizer.decode(source.encoded[1].prompt).count("<|im_start|>") == 5  # the turn to come among them


@pytest.mark.parametrize("bos", [False, True])
def test_without_a_template_it_is_prompt_and_completion_to_the_letter(bos, tmp_path):
    tokenizer = plain_tokenizer(bos)
    source = encode_file(
        tokenizer, read_data(jsonl(tmp_path / "a.jsonl", [{"prompt": "The sky", "completion": " is"}]))
    )
    (encoded,) = source.encoded
    assert not source.template
    assert tokenizer.decode(encoded.tokens) == ("<s>" if bos else "") + "The sky is<|endoftext|>"
    assert list(encoded.prompt) == tokenizer.encode("The sky")  # what the model is given when it is asked
    with pytest.raises(ValueError, match="one is empty"):
        encode_text(tokenizer, " ", "b")


def test_messages_for_a_model_without_a_template_are_named_line_by_line(tmp_path):
    messages = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file = read_data(jsonl(tmp_path / "mine.jsonl", [LINES[0], messages, LINES[1], messages]))
    with pytest.raises(DataError) as caught:
        encode_file(plain_tokenizer(), file)
    reason = "messages, and the model has no chat template; takes prompt and completion"
    assert caught.value.bad == ((2, reason), (4, reason))


def test_what_the_template_refuses_is_named_line_by_line(tokenizer, tmp_path):
    picky = plain_tokenizer()
    picky.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
        "{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    )
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    file = read_data(jsonl(tmp_path / "mine.jsonl", [{"messages": turns[1:]}, {"messages": turns}]))
    with pytest.raises(DataError) as caught:
        encode_file(picky, file)
    assert caught.value.bad == ((2, "the model's chat template refuses the turns system, user: no system turn here"),)
    picky.chat_template = picky.chat_template.replace("'system'", "'assistant'")
    with pytest.raises(ValueError, match="refuses the turns user, assistant: no system turn here"):
        encode_file(picky, file)


def test_an_answer_ends_with_what_the_template_writes_after_one(tokenizer):
    """Gemma's and Phi's templates end a turn with a token that is not the end of the sequence."""
    assert tokenizer.decode([end_token(tokenizer)]) == "<|im_end|>"
    other = plain_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    for after, expected in [
        ("<end_of_turn>\n", "<end_of_turn>"),
        (" <|endoftext|>", "<|endoftext|>"),
        ("\n", "<|endoftext|>"),
        (" and so on <end_of_turn>", "<|endoftext|>"),
    ]:
        other.chat_template = "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}" + after + "{% endfor %}"
        assert other.decode([end_token(other)]) == expected


# --- what is left out, and the split


def test_what_is_too_long_is_counted_named_and_left_out_and_never_cut(tokenizer, tmp_path):
    lines = [*LINES[:4], {"prompt": "x" * 100, "completion": "y"}, *LINES[4:8], {"prompt": "x", "completion": "y" * 90}]
    source = encode_file(tokenizer, read_data(jsonl(tmp_path / "mine.jsonl", lines)))
    corpus = share_out(source, None, 2, 80)
    assert source.longer_than(80) == {5, 10}
    assert [len(corpus.train), len(corpus.validation)] == [6, 2]
    both = {example.record.line for example in (*corpus.train, *corpus.validation)}
    assert both == {1, 2, 3, 4, 6, 7, 8, 9}
    assert "2 left out, longer than 80 tokens: line 5, 10" in corpus.report()
    edge = max(len(encoded.tokens) for encoded in source.encoded)
    assert source.longer_than(edge) == set()  # a limit is reached, not passed
    with pytest.raises(
        ValueError, match=r"mine\.jsonl: every example has more than 3 tokens, the shortest \d+; raise max_tokens"
    ):
        share_out(source, None, 2, 3)


def test_copies_are_told_and_on_one_side(tokenizer, tmp_path):
    source = encode_file(tokenizer, read_data(jsonl(tmp_path / "mine.jsonl", [*LINES, *LINES[:10]])))
    corpus = share_out(source, None, 0.3, None)
    sides = [{example.record.fingerprint for example in side} for side in (corpus.train, corpus.validation)]
    assert not sides[0] & sides[1]
    assert len(corpus.train) + len(corpus.validation) == 30
    assert "10 more than once, kept: line 1 = 21, 2 = 22, 3 = 23" in corpus.report()


def test_examples_of_the_validation_file_are_not_learned(tokenizer, tmp_path):
    source = encode_file(tokenizer, read_data(jsonl(tmp_path / "mine.jsonl")))
    judge = encode_file(
        tokenizer, read_data(jsonl(tmp_path / "judge.jsonl", [LINES[2], LINES[5], {"prompt": "x", "completion": "y"}]))
    )
    corpus = share_out(source, judge, 0, None)
    assert corpus.known == (3, 6)
    assert {example.record.line for example in corpus.train} == set(range(1, 21)) - {3, 6}
    assert sorted(example.record.line for example in corpus.validation) == [1, 2, 3]
    assert "2 left out of training, for judge.jsonl has them too: line 3, 6" in corpus.report()
    with pytest.raises(ValueError, match="no example is left to learn from, the validation file has all of them"):
        share_out(judge, judge, 0, None)


# --- the whole job


def test_a_job_leaves_everything_it_promises(small, capsys):
    result = run(small, progress=False)
    assert {path.name for path in small.output.iterdir()} == {
        "adapter", "checkpoint.safetensors", "metrics.json", "samples.jsonl"
    }  # fmt: skip
    metrics = json.loads((small.output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["history"]["losses"] == result.history.losses
    assert len(result.history.losses) == result.steps == 2 * 4
    assert [metrics["data"][side] for side in ("train", "validation")] == [16, 4]
    assert metrics["scores"]["after"]["loss"] == min(loss for _, loss in result.history.validation)
    assert metrics["scores"]["after"]["perplexity"] == pytest.approx(math.exp(metrics["scores"]["after"]["loss"]))
    table = summary(result)
    assert f"{result.scores['before'].tokens.loss:.3f}" in table
    assert "parameters trained" in table
    before, after = result.scores["before"], result.scores["after"]
    worse = replace(result, scores={"before": min(before, after, key=loss), "after": max(before, after, key=loss)})
    better = replace(result, scores={"before": worse.scores["after"], "after": worse.scores["before"]})
    assert ["higher than without the adapter" in summary(one) for one in (worse, better)] == [True, False]
    assert capsys.readouterr().out == ""
    run(replace(small, output=small.output.parent / "again"))
    assert capsys.readouterr().out.startswith("mine.jsonl: 20 examples, read through the model's chat template\n16 to")


def test_before_is_the_untouched_model_and_after_the_adapter(small, folders):
    result = run(small, progress=False)
    untouched = load_model(folders["llama"], dtype=torch.float32, device="cpu")
    validation = [example.encoded for example in result.corpus.validation]
    assert result.scores["before"].tokens == score_answers(untouched, validation, 4)
    tuned = load_adapter(untouched, small.output / "adapter")
    assert result.scores["after"].tokens == score_answers(tuned, validation, 4)
    assert result.scores["after"] != result.scores["before"]


def test_exact_answers_are_counted_among_those_that_were_asked(small, tmp_path, monkeypatch):
    """The answers are put in place of the model's: right, wrong, right; the fourth is not asked for."""
    lines = [{"prompt": f"Say {text}", "completion": text} for text in ("zebra", " two words ", "é", "four")]
    job = replace(small, validation=None, validation_data=jsonl(tmp_path / "judge.jsonl", lines), samples=0, test=3)
    expected = [" ".join(line["prompt"].split()[1:]) for line in lines]

    def answer(model, tokenizer, prompts, **_):
        said = [tokenizer.decode(prompt).partition("Say ")[2].partition("<|im_end|>")[0].strip() for prompt in prompts]
        assert set(said) < set(expected)
        return ["no" if text == said[-1] else text for text in said]

    monkeypatch.setattr(own_scores, "generate", answer)
    score = run(job, progress=False).scores["after"]
    assert (score.exact, score.asked) == (2, 3)


def test_right_tokens_are_those_that_are_the_likeliest(tokenizer):
    model = tiny_lora()
    examples = [encode(tokenizer, [{"role": "user", "content": "Say"}], text) for text in ("abc", "hello there")]
    right, loss, tokens = 0, 0.0, 0
    for example in examples:
        logits = model(torch.tensor([example.tokens])).logits[0, example.answer_start - 1 : -1]
        answer = torch.tensor(example.answer)
        right += (logits.argmax(dim=-1) == answer).sum().item()
        loss += torch.nn.functional.cross_entropy(logits, answer, reduction="sum").item()
        tokens += len(answer)
    score = score_answers(model.train(), examples, 2)
    assert model.training
    assert (score.right, score.tokens) == (right, tokens)
    assert score.loss == pytest.approx(loss / tokens, rel=1e-5)
    with torch.no_grad():  # a model that always says the same token is right where that token is meant
        model.lm_head.weight.zero_()
    assert score_answers(model, examples, 1).right == 0
    assert score_answers(model, examples, 1).perplexity == pytest.approx(259, rel=1e-5)


def test_answers_have_room_for_the_expected_ones_up_to_the_end_of_the_context(tokenizer):
    """Long prompts with short answers and short prompts with long answers do not fit the context together."""
    model, question = tiny_model(max_position_embeddings=80), [{"role": "user", "content": "Say"}]
    long = [{"role": "user", "content": "Say" * 12}]
    examples = [encode(tokenizer, question, "b" * 38), encode(tokenizer, long, "a"), encode(tokenizer, question, "c")]
    assert max(len(example.tokens) for example in examples) <= 80
    assert max(len(example.prompt) for example in examples) + max(example.answer_tokens for example in examples) > 80
    asked = []
    from lora_lab.finetune import own_scores as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module,
            "generate",
            lambda model, tokenizer, prompts, **options: (
                asked.append((prompts, options["max_new_tokens"])) or [str(len(prompt)) for prompt in prompts]
            ),
        )
        said = greedy_answers(model, tokenizer, examples, batch_size=8, progress=False)
    assert said == [str(len(example.prompt)) for example in examples]
    for prompts, room in asked:
        assert max(map(len, prompts)) + room <= 80
    rooms = {prompt: room for prompts, room in asked for prompt in prompts}
    assert all(rooms[example.prompt] >= example.answer_tokens for example in examples)
    greedy_answers(model, tokenizer, examples, batch_size=8, progress=False)  # and the model takes them


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_any_causal_model_in_a_folder_is_trained_and_peft_loads_the_adapter(name, small, folders):
    peft = pytest.importorskip("peft")
    job = replace(small, model=str(folders[name]), ranks=(("c_attn" if name == "gpt2" else "down_proj", 3),))
    result = run(job, progress=False)
    facts = result.corpus.facts()
    assert facts["format"] == ("plain text" if name == "gpt2" else "chat template")
    assert facts["most tokens"] == (64 if name == "gpt2" else 128)
    base = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
    tokens = torch.tensor([result.corpus.train[0].encoded.tokens])
    ours = load_adapter(load_model(folders[name], dtype=torch.float32, device="cpu"), job.output / "adapter")
    with torch.no_grad():
        untouched = base(tokens).logits
        theirs = peft.PeftModel.from_pretrained(base, job.output / "adapter").eval()(tokens).logits
        torch.testing.assert_close(theirs, ours(tokens).logits, rtol=1e-4, atol=1e-5)
    assert (theirs - untouched).abs().max() > 1e-2
    ranks = {layer.rsplit(".", 1)[1]: wrapped.lora_A.shape[0] for layer, wrapped in lora_layers(ours).items()}
    assert set(ranks.values()) == {2, 3}
    assert ranks["c_attn" if name == "gpt2" else "down_proj"] == 3


def test_a_name_says_where_the_model_is(folders, tmp_path, monkeypatch):
    from lora_lab.finetune.model import source_of

    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    assert source_of(str(folders["gpt2"])) == source_of(folders["gpt2"]) == "folder"
    assert source_of("smollm2-135m-instruct") == "package"
    assert source_of("./smollm2-135m-instruct") == "folder"
    assert source_of("openai-community/gpt2") == "hub"
    with pytest.raises(OSError, match=r"'no/where' .*could not be loaded from the hub, and it is no folder here"):
        load_tokenizer("no/where")
    with pytest.raises(ValueError, match=r"there is no config\.json in it"):
        load_model("./smollm2-135m-instruct")
    for path in ("../nowhere", "some/deep/path", "C:\\models", "two words"):  # no such name is possible on the hub
        assert source_of(path) == "folder"
        with pytest.raises(ValueError, match=r"is not a model folder: there is no config\.json in it"):
            load_tokenizer(path)


def spoiled(folder, name: str, weight) -> None:
    """Put ``weight`` in place of one of a folder's weights, or leave the weight out."""
    weights = load_file(folder / "model.safetensors") | {name: weight}
    kept = {key: value for key, value in weights.items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: spoiled(folder, Q_PROJ, None), f"lacks 1 weights, .*: '{Q_PROJ}' for one"),
        (lambda folder: spoiled(folder, Q_PROJ, torch.zeros(5, 32)), f"another shape for them: '{Q_PROJ}' for one"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 5000), "Error while deserializing header"),
        (lambda folder: (folder / "model.safetensors").unlink(), "Error no file named model.safetensors"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "Unrecognized configuration"),
    ],
    ids=["one missing", "another shape", "damaged", "none", "no causal model"],
)
def test_weights_that_are_not_all_there_are_refused_in_a_line(spoil, why, folders, tmp_path):
    """What the file lacks would be drawn at random, and the adapter would be learned beside noise."""
    folder = shutil.copytree(folders["llama"], tmp_path / "model")
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=f"name: '.*model' could not be loaded: .*{why}") as caught:
        load_model(folder, dtype=torch.float32, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_a_folder_without_a_tokenizer_is_refused_in_a_line(name, folders, tmp_path):
    """For some architectures transformers raises an error of five lines, for others it makes an empty tokenizer."""
    folder = shutil.copytree(folders[name], tmp_path / "model")
    for path in [*folder.glob("*token*"), *folder.glob("*.jinja")]:
        path.unlink()
    with pytest.raises(ValueError, match=r"the tokenizer of '.*model' \(tokenizer\.json, beside .*could not") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(":")


def test_names_of_layers_that_are_not_there_are_answered_with_those_that_are(small, folders):
    with pytest.raises(ValueError, match=r"'q_proj' names no layer of GPT2LMHeadModel.*Its layers: .*c_attn ×2"):
        run(replace(small, model=str(folders["gpt2"]), targets=("q_proj", "v_proj")), progress=False)
    with pytest.raises(ValueError, match=r"^ranks: 'k_proj' matches no adapted layer"):
        run(replace(small, targets=("q_proj",), ranks=(("k_proj", 3),)), progress=False)


def test_a_target_that_is_no_layer_to_adapt_is_refused_in_a_line(small, capsys):
    words = f"finetune --data {small.data} --model {small.model} --output {small.output} --targets input_layernorm"
    assert main(words.split()) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("lora-lab: targets: 'model.layers.0.input_layernorm' must be one of torch.nn.Linear")
    assert not (small.output / "adapter").exists()


def test_the_embedding_learns_too_if_it_is_named(small, folders, tmp_path):
    peft = pytest.importorskip("peft")
    folder = shutil.copytree(folders["llama"], tmp_path / "untied")
    tiny_model(tie_word_embeddings=False).save_pretrained(folder)
    run(replace(small, model=str(folder), targets=("embed_tokens",)), progress=False)
    tokens = torch.arange(10, 60)[None]
    ours, base = (load_model(folder, dtype=torch.float32, device="cpu") for _ in range(2))
    with torch.no_grad():
        untouched = base(tokens).logits
        tuned = load_adapter(ours, small.output / "adapter")(tokens).logits
        theirs = peft.PeftModel.from_pretrained(base, small.output / "adapter").eval()(tokens).logits
    torch.testing.assert_close(tuned, theirs, rtol=1e-4, atol=1e-5)
    assert (tuned - untouched).abs().max() > 1e-2


# --- stopping, going on, samples


def loss(score):
    return score.tokens.loss


def stop_before(step: int, patch) -> None:
    """Make the training stop, as Control-C would, before it takes ``step``."""
    from lora_lab.finetune import training

    original = training._Run.step

    def stopping(self):
        if self.done == step:
            raise KeyboardInterrupt
        original(self)

    patch.setattr(training._Run, "step", stopping)


def test_samples_are_the_greedy_answers_at_each_look_and_change_nothing(small, folders):
    dropping = replace(small, dropout=0.3, epochs=3)
    run(dropping, progress=False)
    silent = replace(dropping, output=small.output.parent / "silent", samples=0, test=0)
    often = replace(dropping, output=small.output.parent / "often", sample_every=1)
    run(silent, progress=False)
    result = run(often, progress=False)
    assert same(adapter_of(dropping), adapter_of(silent))
    assert same(adapter_of(dropping), adapter_of(often))
    assert not (silent.output / "samples.jsonl").exists()

    assert [entry["step"] for entry in samples_of(dropping)] == [step for step in range(0, 13, 2) for _ in range(3)]
    assert [entry["step"] for entry in samples_of(often)] == [step for step in range(13) for _ in range(3)]
    asked = [
        (example.record.line, example.record.prompt, example.record.answer) for example in result.corpus.validation
    ]
    assert [(e["line"], e["prompt"], e["expected"]) for e in samples_of(often)[:3]] == asked[:3]
    model = load_model(folders["llama"], dtype=torch.float32, device="cpu")
    examples = [example.encoded for example in result.corpus.validation[:3]]
    tokenizer = load_tokenizer(folders["llama"])
    untouched = greedy_answers(model, tokenizer, examples, batch_size=4, progress=False)
    assert [entry["answer"] for entry in samples_of(often)[:3]] == untouched
    load_adapter(model, often.output / "adapter")
    best = [entry["answer"] for entry in samples_of(often) if entry["step"] == result.history.best_step]
    assert best == greedy_answers(model, tokenizer, examples, batch_size=4, progress=False)


def test_the_prompt_of_a_sample_stands_as_it_does_in_the_data(small):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say"}]
    lines = [{"messages": [*turns, {"role": "assistant", "content": line["completion"]}]} for line in LINES]
    job = replace(small, data=jsonl(small.data, lines), samples=1)
    run(job, progress=False)
    assert samples_of(job)[0]["prompt"] == turns


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_stopped_job_goes_on_to_the_same_adapter_and_the_same_samples(stop, small, monkeypatch):
    """It stops early by its patience, with a validation loss put in place that is best after a few steps."""
    from lora_lab.finetune import training
    from lora_lab.finetune.loss import AnswerScore

    def score(model, *_):
        size = sum(layer.lora_B.norm().item() for layer in lora_layers(model).values())
        return AnswerScore(abs(size - 6), 1, 2)

    monkeypatch.setattr(training, "score_answers", score)
    monkeypatch.setattr("lora_lab.finetune.checkpoint.os.fsync", lambda _: None)
    whole = replace(small, dropout=0.3, epochs=5, validate_every=1, patience=2, output=small.output.parent / "whole")
    expected = run(whole, progress=False)
    assert stop < len(expected.history.losses) < expected.steps
    assert len(expected.history.losses) == expected.history.best_step + 2
    assert "stopped early by its patience" in summary(expected)

    job, settings = replace(whole, output=small.output), own_data._settings
    monkeypatch.setattr(own_data, "_settings", lambda job: replace(settings(job), checkpoint_every=2))
    with monkeypatch.context() as patch:
        stop_before(stop, patch)
        with pytest.raises(KeyboardInterrupt):
            run(job, progress=False)
    assert samples_of(job)[-1]["step"] == stop
    result = run(job, progress=False)
    assert same(adapter_of(job), adapter_of(whole))
    assert samples_of(job) == samples_of(whole)
    assert result.history.validation == expected.history.validation
    again = run(job, progress=False)
    assert (again.history, samples_of(job)) == (result.history, samples_of(whole))
    with pytest.raises(ValueError, match=r"holds another run, which differs in ranks \(\[2\], not \[3\]\)"):
        run(replace(job, rank=3), progress=False)


# --- the card


def test_the_card_says_what_was_learned_and_how_and_tells_nothing_of_the_machine(small, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    lines = [*LINES, LINES[0], {"prompt": "x" * 900, "completion": "y", "id": 7}]
    job = replace(small, data=jsonl(tmp_path / "our | data.jsonl", lines), patience=5, targets=("q_proj", "down_proj"))
    result = run(job, progress=False)
    path = job.output / "adapter" / "README.md"
    card = path.read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front == {
        "base_model": "tiny-llama", "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["lora", "base_model:adapter:tiny-llama"],
    }  # fmt: skip
    assert huggingface_hub.ModelCard.load(path).data.library_name == "peft"
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    table = {row[0]: row[-1] for row in rows}
    assert "| file | our \\| data.jsonl |" in card
    assert table["SHA-256"] == result.corpus.source.file.sha256
    assert [table[name] for name in ("examples in it", "left out, too long", "standing in it more than once")] == [
        "22",
        "1",
        "1",
    ]
    assert [int(table["learned from"]), int(table["validated with"])] == [
        len(result.corpus.train),
        len(result.corpus.validation),
    ]
    assert [table[name] for name in ("rank", "targets", "patience", "seed")] == ["2", "q_proj, down_proj", "5", "3"]
    assert float(table["loss, after"]) == pytest.approx(result.scores["after"].tokens.loss, rel=1e-3)
    assert table["transformers"] == result.ran_on["transformers"]
    assert "--data 'our | data.jsonl' --output run --model tiny-llama --device cpu --dtype float32 --rank 2" in card
    for text in (card, (job.output / "metrics.json").read_text(encoding="utf-8")):
        assert str(tmp_path) not in text
        assert str(tmp_path.parent) not in text


def test_the_card_speaks_of_results_only_where_there_are_some(small):
    run(replace(small, validation=0, validate_every=None), progress=False)
    card = (small.output / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "The results are on the validation examples" not in card
    assert "rounded to 4 bits" not in card  # that is the packaged model
    assert "loss, after" not in card


def test_the_card_of_the_packaged_model_names_the_base_on_the_hub_and_says_that_it_is_rounded(small, monkeypatch):
    def packaged(name, *, source, **_):
        assert (name, source) == ("smollm2-135m-instruct", None)
        model = load_model(small.model, dtype=torch.float32, device="cpu")
        model.name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"  # as load_model does
        return model

    monkeypatch.setattr(own_data, "load_model", packaged)
    monkeypatch.setattr(own_data, "load_tokenizer", lambda *_, **__: load_tokenizer(small.model))
    run(replace(small, model="smollm2-135m-instruct", validation=None), progress=False)
    card = (small.output / "adapter" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "| model | smollm2-135m-instruct |\n| source | package |" in card
    assert "its weights were rounded to 4 bits" in card
    assert "| validation | 0.1 |" in card
    assert "The results are on the validation examples" in card


# --- what makes no job


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"ranks": (("q_proj", 0),)}, r"^ranks\['q_proj'\] must be at least 1, got 0"),
        ({"targets": ("all-linear", "lm_head")}, "targets: got all-linear lm_head; all-linear stands alone"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"dtype": "float8"}, "dtype: got 'float8', takes one of"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"patience": 0}, "patience: got 0"),
        (
            {"validation": 0, "patience": 3, "validate_every": None},
            "patience: got 3, and there are no validation",
        ),
        ({"validation": 0}, "validate_every: got 2, and there are no validation examples"),
        ({"validation": 0, "validate_every": None, "sample_every": 1}, "sample_every: got 1, and there are no"),
        ({"sample_every": 0}, "sample_every: got 0, takes a whole number of at least 1"),
        ({"samples": -1}, "samples: got -1"),
        ({"test": -1}, "test: got -1"),
        ({"max_tokens": 1}, "max_tokens: got 1, takes a whole number of at least 2"),
        ({"validation_data": "x.jsonl"}, "validation: leave it out"),
    ],
)
def test_options_that_make_no_job_are_refused_before_anything_is_read(change, what, small, monkeypatch):
    monkeypatch.setattr(own_data, "read_data", None)
    with pytest.raises(ValueError, match=what):
        run(replace(small, **change), progress=False)


def test_bad_data_is_told_before_the_model_is_loaded(small, monkeypatch):
    small.data.write_text("nothing\n", encoding="utf-8")
    monkeypatch.setattr(own_data, "load_model", None)
    monkeypatch.setattr(own_data, "load_tokenizer", None)
    with pytest.raises(DataError, match="line 1: not JSON"):
        run(small, progress=False)


@pytest.mark.parametrize("name", ["samples.jsonl", "metrics.json"])
def test_data_that_the_run_would_write_over_is_refused(name, small, tmp_path):
    data = jsonl(tmp_path / name)
    content = data.read_bytes()
    for job in (
        replace(small, data=data, output=tmp_path),
        replace(small, validation=None, validation_data=data, output=tmp_path / "sub" / ".."),
    ):
        with pytest.raises(ValueError, match=f"{name} is written into .*, over your data; choose another folder"):
            run(job, progress=False)
    assert data.read_bytes() == content
    run(replace(small, data=data), progress=False)  # in a folder of its own it is data like any other


def test_a_job_without_validation_keeps_the_last_weights(small):
    result = run(replace(small, validation=0, validate_every=None), progress=False)
    assert (result.scores, result.history.validation, len(result.corpus.train)) == ({}, [], 20)
    assert summary(result).splitlines()[0] == "10 of 10 steps"


def test_the_adapter_of_an_attached_model_is_off_for_the_figures_before(small, monkeypatch):
    states, score = [], own_scores.score_answers
    monkeypatch.setattr(
        own_scores, "score_answers",
        lambda model, *rest: states.append({one.enabled for one in lora_layers(model).values()}) or score(model, *rest),
    )  # fmt: skip
    run(small, progress=False)
    assert states == [{False}, {True}]


# --- a file of its own for the scores, answers that are a choice among a few, solved examples in the prompt


WARM = ("red", "orange", "yellow", "pink", "amber")
COLD = ("blue", "cyan", "teal", "navy", "azure", "green", "mint", "indigo")
COLOURS = [{"prompt": f"{word} is", "completion": "warm" if word in WARM else "cold"} for word in WARM + COLD]


def test_the_scores_are_those_of_the_test_file_and_nothing_of_it_is_learned(small, folders, tmp_path):
    held_back = [LINES[3], {"prompt": "Say z", "completion": "z"}]
    judge, exam = jsonl(tmp_path / "judge.jsonl", LINES[:3]), jsonl(tmp_path / "exam.jsonl", [*held_back, LINES[0]])
    job = replace(small, validation=None, validation_data=judge, test_data=exam)
    result = run(job, progress=False)
    corpus = result.corpus
    assert [len(side) for side in (corpus.train, corpus.validation, corpus.test)] == [16, 2, 3]
    assert corpus.known == (1, 2, 3, 4)
    assert "4 left out of training, for judge.jsonl or exam.jsonl has them too: line 1, 2, 3, 4" in corpus.report()
    assert corpus.tested == (1,)
    assert "1 of judge.jsonl left out of validation, for exam.jsonl has them too: line 1" in corpus.report()
    assert corpus.report().endswith("16 to learn from, 2 to validate with, 3 to test with")
    tuned = load_adapter(load_model(folders["llama"], dtype=torch.float32, device="cpu"), job.output / "adapter")
    tested = [example.encoded for example in corpus.test]
    assert result.scores["after"].tokens == score_answers(tuned, tested, 4)
    assert result.scores["after"].asked == 3
    card = (job.output / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "on the test examples, which chose nothing" in card
    assert "flatter" not in card
    assert "--test-data exam.jsonl" in card


def test_a_test_file_needs_no_validation(small, tmp_path):
    exam = jsonl(tmp_path / "exam.jsonl", LINES[:4])
    job = replace(small, validation=0, validate_every=None, test_data=exam, samples=0)
    result = run(job, progress=False)
    assert (len(result.corpus.train), len(result.corpus.validation), result.scores["after"].asked) == (16, 0, 4)


def test_a_test_file_that_has_everything_leaves_nothing_to_learn(small, tmp_path):
    with pytest.raises(ValueError, match=r"no example is left to learn from, the test file has all of them"):
        run(replace(small, test_data=jsonl(tmp_path / "exam.jsonl")), progress=False)


def test_a_test_file_that_has_all_validation_examples_leaves_nothing_to_validate_with(small, tmp_path):
    judge, exam = jsonl(tmp_path / "judge.jsonl", LINES[:2]), jsonl(tmp_path / "exam.jsonl", LINES[:4])
    with pytest.raises(ValueError, match=r"judge\.jsonl: no example is left to validate with, the test file has all"):
        run(replace(small, validation=None, validation_data=judge, test_data=exam), progress=False)


def test_memory_that_ends_in_the_scores_leaves_the_adapter(small, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(own_scores, "score_answers", full)
    with pytest.raises(OutOfMemoryError, match="with a smaller --test or fewer --shots takes it up from there"):
        run(small, progress=False)
    assert (small.output / "adapter" / "adapter_model.safetensors").exists()


def test_answers_are_a_choice_if_they_are_few_and_each_is_given_twice(tokenizer):
    def encoded(*answers):
        return [encode(tokenizer, [{"role": "user", "content": "?"}], answer) for answer in answers]

    yes, no = (one.answer for one in encoded("yes", "no"))
    assert answer_choices(encoded("no", "yes", "yes", "no", "yes")) == (yes, no)
    assert answer_choices(encoded("no", "yes", "yes")) == ()
    assert answer_choices(encoded("yes", "yes")) == ()
    assert len(answer_choices(encoded(*"abcdefghij" * 2))) == 10
    assert answer_choices(encoded(*"abcdefghijk" * 2)) == ()


def test_the_likeliest_answer_has_the_highest_probability_with_its_end(tokenizer):
    """Against transformers: log p of each token by log_softmax of the whole model's logits."""
    model, choices = tiny_lora(), [[*tokenizer.encode(text), 2] for text in ("warm", "cold and wet", "c")]
    prompts = [tokenizer.encode(text) for text in ("red", "a long question about blue", "x")]
    expected = []
    for prompt in prompts:
        scores = []
        for choice in choices:
            tokens = torch.tensor([prompt + choice])
            with torch.no_grad():
                logs = model(tokens).logits[0].log_softmax(-1)
            scores.append(sum(logs[len(prompt) - 1 + i, token].item() for i, token in enumerate(choice)))
        expected.append(scores)
    asked = [Encoded((*prompt, *choice), len(prompt)) for prompt in prompts for choice in choices]
    found = log_probabilities(model.train(), asked, 4)
    assert model.training
    assert found == pytest.approx([score for scores in expected for score in scores], rel=1e-4)
    examples = [Encoded((*prompt, 5), len(prompt)) for prompt in prompts]
    best = [choices[scores.index(max(scores))] for scores in expected]
    assert likeliest(model, examples, [tuple(choice) for choice in choices]) == [tuple(choice) for choice in best]


def test_a_choice_among_a_few_is_scored_beside_the_commonest_answer(small, tmp_path):
    job = replace(small, data=jsonl(tmp_path / "colours.jsonl", COLOURS), validation=None, samples=0,
                  validation_data=jsonl(tmp_path / "judge.jsonl", COLOURS[:2] + COLOURS[-3:]), epochs=12, shots=2,
                  learning_rate=0.03)  # fmt: skip
    result = run(job, progress=False)
    # eight are learned from: three warm, five cold; of the five that are asked, two are warm
    assert result.commonest == 3
    assert list(result.scores) == ["before", "before, 2 examples in the prompt", "after"]
    for score in result.scores.values():
        assert score.asked == 5
        assert 0 <= score.chosen <= 5
    tuned = load_adapter(load_model(small.model, dtype=torch.float32, device="cpu"), job.output / "adapter")
    examples = [example.encoded for example in result.corpus.validation]
    choices = answer_choices([example.encoded for example in result.corpus.train])
    right = sum(best == one.answer for best, one in zip(likeliest(tuned, examples, choices), examples, strict=True))
    assert result.scores["after"].chosen == right
    table = summary(result)
    assert "the commonest answer in training, always said, would be right 3 / 5" in table
    assert f"{right} / 5" in table
    measured = json.loads((job.output / "metrics.json").read_text(encoding="utf-8"))
    assert measured["commonest answer"] == 3
    assert measured["scores"]["after"]["right choices"] == right
    assert "if the commonest answer in training were always said | 3 |" in (
        job.output / "adapter" / "README.md"
    ).read_text(encoding="utf-8")


def test_solved_examples_are_earlier_turns_or_paragraphs(tokenizer):
    def turns(*said):
        return tuple(Turn(role, content) for role, content in said)

    shot = Record(1, turns(("system", "Be brief."), ("user", "1+1?")), "2")
    asked = Record(2, turns(("system", "Be brief."), ("user", "2+2?")), "4")
    found = with_shots(tokenizer, asked, [shot], template=True)
    expected = turns(("system", "Be brief."), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?"))
    assert found == encode(tokenizer, [turn._asdict() for turn in expected], "4")
    plain = plain_tokenizer()
    found = with_shots(plain, Record(2, "2+2=", "4"), [Record(1, "1+1=", "2")], template=False)
    assert found == encode_text(plain, "1+1=2\n\n2+2=", "4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": -1}, "shots: got -1, takes a whole number of at least 0"),
        ({"shots": 99}, "shots: got 99, and there are 16 training examples"),
        ({"shots": 2, "validation": 0, "validate_every": None}, "there are no validation or test examples to ask"),
    ],
)  # fmt: skip
def test_solved_examples_that_cannot_be_shown_are_refused_before_training(changes, message, small):
    with pytest.raises(ValueError, match=message):
        run(replace(small, **changes), progress=False)
    assert not (small.output / "checkpoint.safetensors").exists()


def test_solved_examples_beyond_the_context_are_refused_before_training(small, tmp_path):
    lines = [{"prompt": "Say it again, and again: " + "x" * 20, "completion": str(i)} for i in range(20)]
    data = tmp_path / "long.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    reason = (
        r"shots: with 15 solved examples the longest prompt and its answer have \d+ tokens, and the model reads at "
    )
    with pytest.raises(ValueError, match=reason + "most 512; take fewer"):
        run(replace(small, data=data, shots=15), progress=False)
    assert not (small.output / "checkpoint.safetensors").exists()


# --- the command line, in a process of its own


def test_the_command_does_it_from_a_file_of_twenty_lines(small, tmp_path):
    matplotlib_image = pytest.importorskip("matplotlib.image")
    (tmp_path / "job.toml").write_text(
        f'data = "mine.jsonl"\nmodel = {json.dumps(small.model)}\ndtype = "float32"\ndevice = "cpu"\n'
        'rank = 8\nlearning-rate = 0.02\ntargets = ["q_proj", "v_proj"]\nvalidation = 0.2\n[ranks]\nv_proj = 3\n',
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "lora_lab", "finetune", "--config", "job.toml", "--rank", "2", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    report = "mine.jsonl: 20 examples, read through the model's chat template\n16 to learn from, 4 to validate with\n"
    assert done.stdout.startswith(report)
    assert "before " in done.stdout
    assert "after " in done.stdout
    job = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["job"]
    assert (job["rank"], job["ranks"], job["learning_rate"]) == (2, ["v_proj=3"], 0.02)
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["rank_pattern"]) == (2, {"v_proj": 3})
    assert matplotlib_image.imread(tmp_path / "out" / "training.png").size > 0

    (tmp_path / "mine.jsonl").write_text('{"prompt": "a"}\n\nnothing\n', encoding="utf-8")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "lora-lab: mine.jsonl: 2 of its lines cannot be used; correct or delete them",
        "  line 1: has no completion; its keys are 'prompt'",
        "  line 3: not JSON: Expecting value at character 1",
    ]

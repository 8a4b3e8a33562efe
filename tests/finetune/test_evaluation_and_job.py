"""A score is what the task says of the answers; the job leaves everything behind that it measured."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lora_lab.finetune import (
    Answered,
    Evaluation,
    Settings,
    TextToSQL,
    ask,
    evaluate,
    generate,
    job,
)
from lora_lab.finetune.loss import AnswerScore
from lora_lab.finetune.memory import OutOfMemoryError
from lora_lab.finetune.text_to_sql import SPLITS
from lora_lab.lora import LoRAConfig, lora_layers
from tests.finetune.conftest import tiny_model

TASK = TextToSQL(seed=0)


def evaluation(correct: int, total: int) -> Evaluation:
    examples = TASK.test("questions", total)
    return Evaluation(tuple(Answered(one, "", i < correct, "") for i, one in enumerate(examples)))


def test_the_score_is_what_the_task_says_of_each_answer(tokenizer, monkeypatch):
    """The answers are put in place of the model's: gold, gold, a query that is wrong, and chatter."""
    from lora_lab.finetune import evaluation as module

    examples = TASK.test("questions", 4)
    said = [examples[0].query, f"Sure:\n```sql\n{examples[1].query}\n```", "SELECT 1", "I do not know."]
    monkeypatch.setattr(module, "generate", lambda *_, **__: said)
    result = evaluate(tiny_model(), tokenizer, TASK, examples)
    assert [one.correct for one in result.answered] == [True, True, False, False]
    assert (result.correct, result.total, result.score) == (2, 4, 0.5)
    assert [one.answer for one in result.answered] == said
    assert sum(asked for _, asked in result.by_kind().values()) == 4


def test_the_interval_is_wilsons():
    scipy_stats = pytest.importorskip("scipy.stats")
    for correct, total in ((0, 20), (7, 20), (20, 20)):
        theirs = scipy_stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
        assert evaluation(correct, total).interval == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_an_empty_test_is_refused(tokenizer):
    with pytest.raises(ValueError, match="examples: got none"):
        evaluate(tiny_model(), tokenizer, TASK, [])


@pytest.mark.parametrize(
    ("prompts", "options", "what"),
    [
        ([[4, 5]], {"batch_size": 0}, "batch_size: got 0"),
        ([[4, 5]], {"batch_size": -1}, "batch_size: got -1"),
        ([[4, 5]], {"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ([[4, 5], []], {}, "prompts: one is empty"),
        (
            [[4], [4] * 506],
            {"max_new_tokens": 7},
            "one has 513 tokens with its answer, and the model reads at most 512",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(tokenizer, prompts, options, what):
    with pytest.raises(ValueError, match=what):
        generate(tiny_model(), tokenizer, prompts, **options, progress=False)


def test_a_batch_may_be_larger_than_the_questions_and_an_answer_one_token_long(tokenizer):
    (alone,) = generate(tiny_model(), tokenizer, [[7, 8]], batch_size=1, max_new_tokens=1, progress=False)
    assert generate(tiny_model(), tokenizer, [[7, 8]], batch_size=99, max_new_tokens=1, progress=False) == [alone]


def test_shots_stand_in_the_prompt(tokenizer, monkeypatch):
    from lora_lab.finetune import evaluation as module

    seen = []

    def remember(model, tokenizer, prompts, **options):
        seen.extend(prompts)
        return [""] * len(prompts)

    monkeypatch.setattr(module, "generate", remember)
    shots = TASK.train(2)
    evaluate(tiny_model(), tokenizer, TASK, TASK.test("questions", 1), shots=shots)
    text = tokenizer.decode(seen[0])
    assert all(shot.question in text and shot.query in text for shot in shots)


def test_answers_are_those_of_the_likeliest_token_in_the_order_of_the_prompts(tokenizer):
    """The oracle takes one prompt at a time, without a cache or padding."""
    model = tiny_model()
    prompts = [tokenizer(text).input_ids for text in ("abcdefgh", "xy", "hello there", "q")]
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(6):
            following = model(torch.tensor([tokens])).logits[0, -1].argmax().item()
            tokens.append(following)
            if following == tokenizer.eos_token_id:
                break
        expected.append(tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True).strip())
    found = generate(model, tokenizer, prompts, batch_size=3, max_new_tokens=6, progress=False)
    assert found == expected
    assert len(set(found)) > 1


def test_the_head_reads_a_tensor_in_one_piece_and_keeps_no_hook(tokenizer):
    """A slice is multiplied row by row, with a copy of the head for each: 2.7 GB for 48 questions to SmolLM2."""
    model, read = tiny_model(), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda head, inputs, output: read.append(inputs[0]))
    generate(model, tokenizer, [[7, 8, 9], [5, 6], [3]], max_new_tokens=3, progress=False)
    assert read[0].shape[:2] == (3, 1)
    assert all(hidden.is_contiguous() for hidden in read)
    assert not head._forward_pre_hooks


def test_a_model_that_brings_a_penalty_for_repetition_answers_without_it(tokenizer):
    prompts, model = [tokenizer("abab").input_ids], tiny_model()
    plain = generate(model, tokenizer, prompts, max_new_tokens=12, progress=False)
    model.generation_config.repetition_penalty = 50.0
    assert generate(model, tokenizer, prompts, max_new_tokens=12, progress=False) == plain
    input_ids = torch.tensor(prompts)
    penalised = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(penalised[0, 4:], skip_special_tokens=True).strip() != plain[0]  # it would have mattered


def test_a_model_in_training_mode_answers_in_evaluation_mode_and_comes_back(tokenizer):
    model, modes = tiny_model().train(), []
    model.model.register_forward_hook(lambda decoder, *_: modes.append(decoder.training))
    ask(model, tokenizer, TASK.messages(TASK.train(1)[0]), max_new_tokens=8)
    assert set(modes) == {False}
    assert model.training


# --- the job


@pytest.fixture
def small(tmp_path, tokenizer):
    """A job on a model folder of a few thousand weights."""
    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return job.Job(
        output=tmp_path / "run", model=str(folder), source="folder", device="cpu", dtype="float32",
        rank=2, alpha=4, examples=16, test=8, shots=1, validation=4, validate_every=1,
    )  # fmt: skip


def test_a_job_leaves_adapter_checkpoint_and_metrics(small):
    result = job.run(small, progress=False)
    tensors = load_file(small.output / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == result.trainable
    assert (small.output / "checkpoint.safetensors").exists()
    metrics = json.loads((small.output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["job"]["rank"] == 2
    assert metrics["history"]["losses"] == result.history.losses
    assert list(metrics["scores"]) == ["untouched", "untouched, 1 examples in the prompt", "after LoRA"]
    for by_split in metrics["scores"].values():
        assert list(by_split) == list(SPLITS)
        assert all(score["total"] == 8 for score in by_split.values())
    assert "after LoRA" in job.summary(result)
    assert str(small.output.parent) not in (small.output / "metrics.json").read_text(encoding="utf-8").replace(
        small.model, ""
    )


def test_the_same_job_again_goes_on_and_another_is_refused(small):
    first = job.run(small, progress=False)
    again = job.run(small, progress=False)
    assert again.history == first.history
    with pytest.raises(ValueError, match="holds another run, which differs in learning_rate"):
        job.run(job.Job(**{**vars(small), "learning_rate": 1e-4}), progress=False)


def test_the_baselines_are_asked_with_the_adapter_off_and_the_trained_model_with_it_on(small, monkeypatch):
    states, evaluate = [], job.evaluate

    def watch(model, *arguments, **options):
        states.append({layer.enabled for layer in lora_layers(model).values()})
        return evaluate(model, *arguments, **options)

    monkeypatch.setattr(job, "evaluate", watch)
    result = job.run(replace(small, test=1), progress=False)
    assert list(result.scores) == ["untouched", "untouched, 1 examples in the prompt", "after LoRA"]
    assert states == 2 * len(SPLITS) * [{False}] + len(SPLITS) * [{True}]


def test_another_job_is_refused_before_any_question_is_asked(small, monkeypatch):
    job.run(small, progress=False)
    monkeypatch.setattr(job, "evaluate", None)
    with pytest.raises(ValueError, match="holds another run, which differs in learning_rate"):
        job.run(replace(small, learning_rate=1e-4), progress=False)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0"),
        ({"examples": 0}, "examples: count must be from 1"),
        ({"test": 100_000}, "test: count must be from 1"),
        ({"shots": -1}, "shots: count must be from 1"),
    ],
)
def test_options_that_make_no_job_are_refused_before_anything_is_loaded(small, monkeypatch, change, what):
    monkeypatch.setattr(job, "load_model", None)
    with pytest.raises(ValueError, match=what):
        job.run(replace(small, **change), progress=False)


def test_memory_that_ends_in_the_scores_leaves_the_adapter(small, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(job, "evaluate", full)
    with pytest.raises(OutOfMemoryError, match=r"saved in .*adapter\. The same command with fewer --shots or --no-bas"):
        job.run(small, progress=False)
    assert (small.output / "adapter" / "adapter_model.safetensors").exists()
    monkeypatch.undo()
    assert list(job.run(replace(small, baselines=False), progress=False).scores) == ["after LoRA"]


def test_solved_examples_beyond_the_context_are_refused_before_training(small, monkeypatch):
    monkeypatch.setattr(job, "train", None)
    with pytest.raises(ValueError, match=r"shots: with 15 solved .* at most 2048; take fewer"):
        job.run(replace(small, shots=15), progress=False)


def test_the_adapter_has_the_weights_of_the_lowest_validation_loss(small, monkeypatch):
    losses = iter([3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr("lora_lab.finetune.training.score_answers", lambda *_: AnswerScore(next(losses), 1, 2))
    result = job.run(replace(small, epochs=4, test=1, baselines=False), progress=False)
    assert [step for step, _ in result.history.validation] == list(range(1, 9))
    assert result.history.best_step == 3
    checkpoint = load_file(small.output / "checkpoint.safetensors")
    for name, factor in load_file(small.output / "adapter" / "adapter_model.safetensors").items():
        layer, factor_name = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        place = f"{layer}.adapters.default.{factor_name}"  # what torch calls it
        assert torch.equal(factor, checkpoint[f"best.{place}"])
        assert not torch.equal(factor, checkpoint[f"parameter.{place}"])


def test_a_job_without_validation_keeps_the_last_weights(small):
    result = job.run(replace(small, validation=0, test=1, baselines=False), progress=False)
    assert result.history.validation == []
    assert not any(name.startswith("best.") for name in load_file(small.output / "checkpoint.safetensors"))


def test_every_option_reaches_the_training(small, monkeypatch):
    seen = []
    attach, train = job.attach, job.train
    monkeypatch.setattr(
        job, "attach", lambda model, config, generator: seen.extend([config, generator.initial_seed()])
        or attach(model, config, generator=generator),
    )  # fmt: skip
    monkeypatch.setattr(
        job, "train", lambda model, examples, settings, **options: seen.extend([len(examples), settings])
        or train(model, examples, settings, **options),
    )  # fmt: skip
    training = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "validate_every": 3, "seed": 7}
    training |= {"group_by_length": True, "gradient_checkpointing": True}
    job.run(replace(small, alpha=3, targets=("k_proj",), examples=8, test=1, baselines=False, **training))
    assert seen == [LoRAConfig(rank=2, alpha=3, targets=("k_proj",)), 7, 8, Settings(**training)]


def test_an_unknown_type_is_refused_before_anything_is_loaded(small):
    with pytest.raises(ValueError, match="dtype: got 'float8', takes one of float32, bfloat16"):
        job.run(job.Job(**{**vars(small), "dtype": "float8"}), progress=False)

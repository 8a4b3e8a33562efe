"""The packaged model is the one in the file, and other sources are found or refused in words.

These tests load the real model: the first run on a machine fetches 93 MB.
"""

import json

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_lab import assets
from lora_lab.finetune import Settings, TextToSQL, encode, evaluate, load_model, load_tokenizer, train
from lora_lab.finetune import model as model_module
from lora_lab.finetune.evaluation import generate
from lora_lab.lora import LoRAConfig, account, attach, merge, save_adapter, unmerge
from tests.finetune.conftest import tiny_model


@pytest.fixture(scope="module")
def real_model():
    return load_model(dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def real_tokenizer():
    return load_tokenizer()


def test_the_packaged_model_is_smollm2_with_one_tensor_for_embedding_and_head(real_model):
    assert account(real_model).base == 134_515_008
    assert real_model.get_input_embeddings().weight is real_model.get_output_embeddings().weight
    assert not real_model.training
    assert not hasattr(real_model.config, "quantization_config")
    assert real_model.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_its_weights_are_those_of_the_file_dequantized_and_rounded_to_bfloat16(real_model):
    """The oracle is the dequantization of the gguf package, a different piece of code from transformers' own."""
    reader = gguf.GGUFReader(assets.fetch("smollm2-135m-instruct", progress=False))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = {
        "token_embd.weight": "model.embed_tokens.weight",  # Q8_0
        "blk.3.attn_v.weight": "model.layers.3.self_attn.v_proj.weight",  # Q4_1
        "blk.29.ffn_down.weight": "model.layers.29.mlp.down_proj.weight",  # Q4_1
        "blk.7.attn_norm.weight": "model.layers.7.input_layernorm.weight",  # float32
    }
    for name, ours in names.items():
        tensor = tensors[name]
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).to(torch.bfloat16).float()
        torch.testing.assert_close(real_model.get_parameter(ours).detach(), expected, rtol=0, atol=0)


def test_the_bfloat16_model_has_the_very_same_weights(real_model):
    smaller = load_model(dtype=torch.bfloat16, device="cpu")
    for one, other in zip(real_model.parameters(), smaller.parameters(), strict=True):
        assert torch.equal(one, other.float())


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("year > 1999", ["year", "Ġ>", "Ġ", "1", "9", "9", "9"]),
        ("a  2", ["a", "ĠĠ", "2"]),  # without the rule for digits the second space would go with the 2
        ("x\n\n2", ["x", "ĊĊ", "2"]),
    ],
)
def test_numbers_are_split_into_digits_before_anything_else(real_tokenizer, text, pieces):
    assert real_tokenizer.tokenize(text) == pieces


def test_the_model_knows_a_capital(real_model, real_tokenizer):
    prompt = real_tokenizer("The capital of France is").input_ids
    assert "Paris" in generate(real_model, real_tokenizer, [prompt], max_new_tokens=4, progress=False)[0]


def test_an_adapter_trained_on_it_gives_the_same_logits_in_peft(real_model, real_tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    task = TextToSQL(seed=0)
    examples = [encode(real_tokenizer, task.messages(one), one.query) for one in task.train(8)]
    model = attach(load_model(dtype=torch.float32, device="cpu"), LoRAConfig(rank=8, alpha=16))
    history = train(model, examples, Settings(epochs=3, batch_size=8, warmup=0), progress=False)
    assert history.losses[-1] < history.losses[0]
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"

    theirs = peft.PeftModel.from_pretrained(real_model, tmp_path)
    tokens = torch.tensor([examples[0].tokens])
    with torch.no_grad():
        ours, base = model(tokens).logits, theirs.get_base_model()
        torch.testing.assert_close(theirs(tokens).logits, ours, rtol=1e-4, atol=1e-4)
        with theirs.disable_adapter():
            assert (base(tokens).logits - ours).abs().max() > 0.1  # the adapter does something
        merge(model)
        torch.testing.assert_close(model(tokens).logits, ours, rtol=1e-3, atol=1e-3)
        unmerge(model)
        assert torch.equal(model(tokens).logits, ours)
    theirs.unload()


def test_the_model_answers_the_same_alone_and_in_a_batch(real_model, real_tokenizer):
    """Padding on the left must change no answer."""
    task = TextToSQL(seed=0)
    few = task.test("questions", 4)
    together = evaluate(real_model, real_tokenizer, task, few, batch_size=4, max_new_tokens=12, progress=False)
    alone = evaluate(real_model, real_tokenizer, task, few, batch_size=1, max_new_tokens=12, progress=False)
    assert [one.answer for one in together.answered] == [one.answer for one in alone.answered]


# --- other sources, with a model of a few thousand weights


def test_a_folder_of_save_pretrained_loads(tmp_path):
    saved = tiny_model()
    saved.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, source="folder", dtype=torch.float32, device="cpu")
    for one, other in zip(saved.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_refused(device, tmp_path):
    with pytest.raises(ValueError, match=f"device: got '{device}', which cannot be used here"):
        load_model(tmp_path, source="folder", device=device)


def test_both_attention_kernels_compute_the_same_and_the_default_suits_the_device(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    options = {"source": "folder", "dtype": torch.float32, "device": "cpu"}
    models = [load_model(tmp_path, **options), load_model(tmp_path, **options, attention="sdpa")]
    assert [model.config._attn_implementation for model in models] == ["eager", "sdpa"]
    tokens = torch.tensor([[5, 6, 7, 8]])
    mask = torch.tensor([[0, 1, 1, 1]])  # padding on the left
    logits = [model(tokens, attention_mask=mask).logits[:, 1:] for model in models]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_the_hub_is_asked_for_the_original_weights(monkeypatch):
    asked = []

    def from_pretrained(name, **options):
        asked.append((name, options))
        return tiny_model(), {"missing_keys": set(), "mismatched_keys": set()}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    load_model(source="hub", dtype=torch.float32, device="cpu")
    load_model("someone/some-model", source="hub", dtype=torch.float32, device="cpu")
    assert [name for name, _ in asked] == ["HuggingFaceTB/SmolLM2-135M-Instruct", "someone/some-model"]


@pytest.mark.parametrize(
    ("name", "source", "what"),
    [
        ("gpt2", "package", "name: got 'gpt2'; packaged models are smollm2-135m-instruct"),
        ("smollm2-135m-instruct", "web", "source: got 'web', takes one of package, hub, folder"),
        ("nowhere", "folder", "'nowhere' is not a model folder"),
    ],
)
def test_unknown_names_and_sources_are_refused(name, source, what):
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match=what):
            load(name, source=source)


def test_a_damaged_copy_in_the_cache_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(model_module.assets, "fetch", lambda name: tmp_path / "model.gguf")
    made = []

    def dequantize(gguf, target):
        made.append(gguf)
        tiny_model().save_pretrained(target)

    monkeypatch.setattr(model_module, "_dequantize", dequantize)
    weights = model_module.prepare() / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert model_module.prepare() == weights.parent
    assert weights.read_bytes() == whole
    model_module.prepare()
    assert len(made) == 2  # once at first, once for the damage, and not for the whole one


def test_a_missing_package_is_explained_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))

    def refuse(*_, **__):
        raise assets.AssetError("no network")

    monkeypatch.setattr(model_module.assets, "fetch", refuse)
    with pytest.raises(assets.AssetError, match="no network"):
        load_model()
    assert not list(tmp_path.rglob("*.safetensors"))

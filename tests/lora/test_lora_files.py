import copy
import errno
import json
import os

import peft
import pytest
import safetensors.torch
import torch
from torch import nn

from lora_lab.lora import LoRAConfig, LoRALinear, attach, load_adapter, lora_layers, merge, save_adapter, unmerge

CONFIG = LoRAConfig(rank=2, alpha=3, targets=("q_proj", "v_proj"))
KEY = "base_model.model.0.q_proj.lora_A.weight"


@pytest.fixture
def saved(toy, fill, tmp_path):
    """A folder with the adapter of a toy model, and that model."""
    model = fill(attach(toy(), CONFIG))
    save_adapter(model, tmp_path / "adapter", base_model="toy")
    return tmp_path / "adapter", model


@pytest.fixture
def peft_reads(monkeypatch):
    """Load a folder with PEFT, and check what its own loading reports: nothing missing, nothing unexpected."""

    def read(base, folder):
        reports = []
        load = peft.PeftModel.load_adapter
        monkeypatch.setattr(
            peft.PeftModel, "load_adapter", lambda *args, **kw: reports.append(load(*args, **kw)) or reports[-1]
        )
        model = peft.PeftModel.from_pretrained(base, folder)
        monkeypatch.undo()
        assert [(report.missing_keys, report.unexpected_keys) for report in reports] == [([], [])]
        return model.eval()

    return read


def rewrite(folder, entries=(), tensors=()):
    """Change entries of the configuration and tensors of the weights; None takes a tensor out."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(entries)))
    path = folder / "adapter_model.safetensors"
    content = safetensors.torch.load(path.read_bytes()) | dict(tensors)
    safetensors.torch.save_file({key: tensor for key, tensor in content.items() if tensor is not None}, path)


class TestPeftReadsOurs:
    @pytest.mark.parametrize(
        "config",
        [
            LoRAConfig(rank=2, alpha=3, targets=("q_proj", "v_proj")),
            LoRAConfig(rank=4, alpha=3, targets=("q_proj", "o_proj", "gate_proj", "down_proj"), rslora=True),
            LoRAConfig(rank=1, alpha=0.5, targets=("1.self_attn.k_proj",), dropout=0.1),
            LoRAConfig(rank=2, alpha=3, targets=("lm_head",)),
        ],
        ids=str,
    )
    def test_with_the_same_logits(self, config, llama, tokens, fill, tmp_path, peft_reads):
        ours = fill(attach(llama(), config))
        save_adapter(ours, tmp_path, base_model="tiny")
        theirs = peft_reads(llama(), tmp_path)
        assert isinstance(theirs, peft.PeftModelForCausalLM)
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(ours(tokens).logits, llama()(tokens).logits)

    @pytest.mark.parametrize(("dtype", "room"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
    def test_in_other_types(self, dtype, room, llama, tokens, fill, tmp_path, peft_reads):
        ours = fill(attach(llama(dtype), CONFIG))
        save_adapter(ours, tmp_path, base_model="tiny")
        theirs = peft_reads(llama(dtype), tmp_path)
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=room, atol=room)
        for name, layer in lora_layers(ours).items():
            assert torch.equal(theirs.base_model.model.get_submodule(name).lora_B["default"].weight, layer.lora_B)

    def test_a_model_that_is_not_from_transformers(self, toy, saved, peft_reads):
        folder, ours = saved
        x = torch.ones(6, dtype=torch.float64)
        torch.testing.assert_close(peft_reads(toy(), folder)(x), ours(x), rtol=1e-12, atol=1e-12)

    def test_merged_by_peft(self, llama, tokens, fill, tmp_path, peft_reads):
        ours = fill(attach(llama(), CONFIG))
        save_adapter(ours, tmp_path, base_model="tiny")
        theirs = peft_reads(llama(), tmp_path).merge_and_unload()
        merge(ours)
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=1e-12, atol=1e-12)


class TestWeReadPefts:
    @pytest.mark.parametrize(
        ("config", "options"),
        [
            (LoRAConfig(rank=2, alpha=3), {}),
            (LoRAConfig(rank=2, alpha=3), {"task_type": "CAUSAL_LM"}),
            (LoRAConfig(rank=4, alpha=3, targets=("up_proj", "k_proj"), rslora=True, dropout=0.1), {}),
            (LoRAConfig(rank=2, alpha=3), {"init_lora_weights": "gaussian"}),
            (LoRAConfig(rank=2, alpha=3), {"init_lora_weights": "orthogonal"}),
            (LoRAConfig(rank=2, alpha=3), {"init_lora_weights": False}),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("already", [False, True], ids=["unattached", "attached"])
    def test_with_the_same_logits(self, config, options, already, llama, tokens, peft_model, tmp_path):
        theirs = peft_model(llama(), config, **options).eval()
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
        theirs.save_pretrained(tmp_path)
        ours = attach(llama(), config) if already else llama()
        assert load_adapter(ours, tmp_path) is ours
        assert {layer.config.rank for layer in lora_layers(ours).values()} == {config.rank}
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-12, atol=1e-12)
        assert not ours.training

    def test_all_linear_layers(self, llama, tokens, tmp_path):
        theirs = peft.get_peft_model(
            llama(), peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        )
        theirs.save_pretrained(tmp_path)
        ours = load_adapter(llama(), tmp_path)
        assert len(lora_layers(ours)) == 14
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'.*cannot be computed again"),
            ({"init_lora_weights": "olora"}, "init_lora_weights='olora'.*takes the factors' start from the base"),
            ({"init_lora_weights": "mica"}, "init_lora_weights='mica'.*B does not train"),
            ({"init_lora_weights": "pissa", "use_dora": True}, "init='pissa' does not go with dora=True"),
            ({"trainable_token_indices": [1]}, "trainable_token_indices"),
            ({"lora_bias": True}, "lora_bias"),
            ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
            ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, "target_parameters"),
            ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
            ({"rank_pattern": {"x_proj": 1}}, "rank_pattern: 'x_proj' matches no adapted layer"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
    )
    @pytest.mark.filterwarnings("ignore")
    def test_or_refuse_them_with_the_reason(self, options, match, llama, portrait, tmp_path):
        config = peft.LoraConfig(**({"r": 2, "target_modules": ["q_proj", "v_proj"]} | options))
        peft.get_peft_model(llama(torch.float32), config).save_pretrained(tmp_path)
        model = llama(torch.float32)
        before = portrait(model)
        with pytest.raises((ValueError, TypeError), match=match):
            load_adapter(model, tmp_path)
        assert portrait(model) == before

    def test_other_kinds_are_refused(self, llama, tmp_path):
        peft.get_peft_model(llama(), peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])).save_pretrained(
            tmp_path
        )
        with pytest.raises(ValueError, match="peft_type 'LORA', got 'IA3'"):
            load_adapter(llama(), tmp_path)


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_bits(self, dtype, toy, fill, bits, tmp_path):
        model = fill(attach(toy(dtype), CONFIG))
        save_adapter(model, tmp_path, base_model="toy")
        other = load_adapter(toy(dtype), tmp_path)
        assert {name: bits(p) for name, p in other.named_parameters()} == {
            name: bits(p) for name, p in model.named_parameters()
        }
        assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
        assert {layer.config for layer in lora_layers(other).values()} == {CONFIG}

    def test_saving_what_was_loaded_writes_the_same_files(self, saved, toy, tmp_path):
        folder, _ = saved
        save_adapter(load_adapter(toy(), folder), tmp_path / "again", base_model="toy")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()

    def test_saving_while_merged_writes_the_same_files(self, saved, tmp_path):
        folder, model = saved
        merge(model)
        save_adapter(model, tmp_path / "merged", base_model="toy")
        unmerge(model)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "merged" / name).read_bytes() == (folder / name).read_bytes()

    def test_the_configuration_says_everything(self, saved):
        entries = json.loads((saved[0] / "adapter_config.json").read_text())
        assert entries == {
            "base_model_name_or_path": "toy",
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": 3,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": 2,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": None,
            "use_rslora": False,
        }

    def test_the_base_is_the_models_own_name_by_default(self, llama, tmp_path):
        model = attach(llama(), CONFIG)
        with pytest.raises(ValueError, match="base_model must be the name"):
            save_adapter(model, tmp_path / "none")
        assert not (tmp_path / "none").exists()
        model.name_or_path = "someone/tiny"
        for base_model in (None, "other"):
            save_adapter(model, tmp_path, base_model=base_model)
            entries = json.loads((tmp_path / "adapter_config.json").read_text())
            assert entries["base_model_name_or_path"] == (base_model or "someone/tiny")
            assert entries["task_type"] == "CAUSAL_LM"

    def test_an_attached_model_keeps_its_dropout(self, saved, toy):
        model = attach(toy(), LoRAConfig(rank=2, alpha=3, dropout=0.25))
        load_adapter(model, saved[0])
        assert model[0].q_proj.config.dropout == model[0].q_proj.dropout.p == 0.25

    def test_loading_twice_replaces(self, saved, toy, fill, tmp_path):
        folder, model = saved
        other = load_adapter(toy(), folder)
        save_adapter(fill(model, seed=11), tmp_path / "second", base_model="toy")
        load_adapter(other, tmp_path / "second")
        x = torch.ones(6, dtype=torch.float64)
        assert torch.equal(other(x), model(x))

    def test_layers_wrapped_by_hand(self, toy, fill, tmp_path, peft_reads):
        model = toy()
        model[0].q_proj = LoRALinear(model[0].q_proj, LoRAConfig(rank=2))
        save_adapter(fill(model), tmp_path, base_model="toy")
        x = torch.ones(6, dtype=torch.float64)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["0.q_proj"]
        torch.testing.assert_close(load_adapter(toy(), tmp_path)(x), model(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(peft_reads(toy(), tmp_path)(x), model(x), rtol=1e-12, atol=1e-12)

    def test_only_floats_that_fit_are_cast(self, saved, toy):
        folder, model = saved
        other = load_adapter(toy(torch.float32), folder)
        assert other[0].q_proj.lora_B.dtype == torch.float32
        assert torch.equal(other[0].q_proj.lora_B, model[0].q_proj.lora_B.float())


class TestSavingIsAtomic:
    @pytest.fixture
    def other(self, toy, fill):
        """An adapter of other rank, scale and targets."""
        return fill(attach(toy(), LoRAConfig(rank=2, alpha=7, targets=("q_proj", "v_proj"))), seed=12)

    def contents(self, folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def test_replaces_an_older_adapter_and_leaves_other_files(self, saved, other, toy):
        folder, _ = saved
        (folder / "metrics.json").write_text("{}")
        save_adapter(other, folder, base_model="toy")
        assert sorted(self.contents(folder)) == ["adapter_config.json", "adapter_model.safetensors", "metrics.json"]
        x = torch.ones(6, dtype=torch.float64)
        assert torch.equal(load_adapter(toy(), folder)(x), other(x))

    @pytest.mark.parametrize(
        ("where", "call", "for_good", "left"),
        [
            ("fsync", 0, True, "old"),  # writing the new configuration beside the old one
            ("fsync", 1, True, "old"),  # writing the new weights beside the old ones
            ("replace", 0, True, "old"),  # putting the old configuration aside
            ("replace", 1, False, "old"),  # moving the new weights: an error, and the old configuration comes back
            ("replace", 1, True, "none"),  # the same, but the process is killed
            ("replace", 2, True, "none"),  # moving the new configuration
        ],
    )
    def test_a_save_that_stops_anywhere_leaves_no_mixture(
        self, where, call, for_good, left, saved, other, toy, monkeypatch
    ):
        folder = saved[0]
        old = self.contents(folder)
        real, calls = getattr(os, where), []

        def stops(*args):
            calls.append(args)
            if len(calls) > call and (for_good or len(calls) == call + 1):
                raise OSError(errno.ENOSPC, "no space left")
            return real(*args)

        monkeypatch.setattr(os, where, stops)
        with pytest.raises(OSError, match="no space"):
            save_adapter(other, folder, base_model="toy")
        monkeypatch.undo()
        if left == "old":
            assert self.contents(folder) == old
        else:
            with pytest.raises(FileNotFoundError, match="adapter_config"):
                load_adapter(toy(), folder)
        save_adapter(other, folder, base_model="toy")
        assert sorted(self.contents(folder)) == sorted(old)

    @pytest.mark.parametrize("call", [0, 1])
    def test_a_save_with_the_same_configuration_is_one_move(self, call, saved, toy, fill, monkeypatch):
        folder, model = saved
        x = torch.ones(6, dtype=torch.float64)
        before, after = model(x), fill(model, seed=13)(x)
        real, calls = os.replace, []

        def stops(*args):
            calls.append(args)
            if len(calls) > call:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(os, "replace", stops)
        with pytest.raises(KeyboardInterrupt):
            save_adapter(model, folder, base_model="toy")
        assert torch.equal(load_adapter(toy(), folder)(x), (before, after)[call])

    def test_a_new_folder_that_was_not_finished_does_not_load(self, other, toy, tmp_path, monkeypatch):
        real = os.replace
        monkeypatch.setattr(
            os, "replace", lambda new, path: real(new, path) and None if "model" in path.name else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            save_adapter(other, tmp_path / "new", base_model="toy")
        assert sorted(self.contents(tmp_path / "new")) == ["adapter_model.safetensors"]
        with pytest.raises(FileNotFoundError):
            load_adapter(toy(), tmp_path / "new")

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_a_factor_that_is_not_finite_is_not_saved(self, bad, saved):
        folder, model = saved
        old = self.contents(folder)
        with torch.no_grad():
            model[1].v_proj.lora_A[0, 0] = bad
        with pytest.raises(ValueError, match=r"1\.v_proj\.lora_A\.weight must hold finite"):
            save_adapter(model, folder, base_model="toy")
        assert self.contents(folder) == old


class TestSavingRefuses:
    def test_a_model_without_layers(self, toy, tmp_path):
        with pytest.raises(ValueError, match="call attach first"):
            save_adapter(toy(), tmp_path, base_model="toy")

    def test_a_wrapper_and_a_single_layer(self, toy, tmp_path):
        model = attach(toy(), CONFIG)
        for wrapper in (torch.compile(model), nn.DataParallel(model), model[0].q_proj):
            with pytest.raises(TypeError, match=f"got a {type(wrapper).__name__}"):
                save_adapter(wrapper, tmp_path, base_model="toy")

    def test_the_meta_device(self, toy, tmp_path):
        with pytest.raises(ValueError, match="meta"):
            save_adapter(attach(toy().to("meta"), CONFIG), tmp_path, base_model="toy")

    def test_a_layer_with_two_names(self, toy, tmp_path):
        model = toy()
        model[1].q_proj = model[0].q_proj
        attach(model, CONFIG)
        with pytest.raises(ValueError, match=r"0\.q_proj and 1\.q_proj are one layer"):
            save_adapter(model, tmp_path, base_model="toy")

    def test_layers_of_two_configurations(self, toy, tmp_path):
        model = toy()
        model[0].q_proj = LoRALinear(model[0].q_proj, LoRAConfig(rank=2))
        model[0].v_proj = LoRALinear(model[0].v_proj, LoRAConfig(rank=3))
        with pytest.raises(ValueError, match="one configuration"):
            save_adapter(model, tmp_path, base_model="toy")


class TestLoadingRefuses:
    """Every error says what is wrong, and leaves the model as it was: attached or not."""

    @pytest.fixture(params=[False, True], ids=["unattached", "attached"])
    def refuses(self, request, saved, toy, fill, portrait):
        folder, _ = saved

        def check(match, error=ValueError):
            model = fill(attach(toy(), CONFIG), seed=14) if request.param else toy()
            model[0].my_q_proj.requires_grad_(False)
            before = portrait(model)
            with pytest.raises(error, match=match):
                load_adapter(model, folder)
            assert portrait(model) == before

        return check

    @pytest.mark.parametrize(
        ("entries", "match"),
        [
            ({"peft_type": "IA3"}, "peft_type 'LORA', got 'IA3'"),
            ({"peft_type": None}, "peft_type"),
            ({"use_dora": True}, "lora_magnitude_vector.* missing|dora must agree"),
            ({"modules_to_save": ["0"]}, "0.q_proj.weight.* missing|modules_to_save: .0. is, or holds"),
            ({"modules_to_save": "0"}, "modules_to_save must be a list of names, got '0'"),
            ({"modules_to_save": ["x"]}, "modules_to_save: 'x' names no module"),
            ({"rank_pattern": {"q_proj": 4}}, r"must have shape \(4, 6\)|rank must agree"),
            ({"rank_pattern": {"z_proj": 4}}, "rank_pattern: 'z_proj' matches no adapted layer"),
            ({"alpha_pattern": {"q_proj": 0}}, "alpha_pattern.* above 0"),
            ({"layers_to_transform": [1]}, "target_modules=.* names no layer"),
            ({"layers_to_transform": "1"}, "layers_to_transform must be a whole number"),
            ({"exclude_modules": ["0.q_proj"]}, "0.q_proj.* left over|0.q_proj is only in one"),
            ({"exclude_modules": 7}, "exclude_modules must be a list of names, got 7"),
            ({"exclude_modules": "("}, "regular expression"),
            ({"bias": "all"}, "bias is missing|bias.* are missing|bias must agree"),
            ({"bias": "some"}, "bias must be one of none, all, lora_only"),
            ({"target_modules": "q_proj"}, "target_modules='q_proj' names no layer"),
            ({"target_modules": "("}, "regular expression"),
            ({"target_modules": "all-linear"}, "must be a list of names"),
            ({"target_modules": [1]}, "target_modules must be a list of names"),
            ({"target_modules": ["q_proj"]}, "v_proj.* left over|v_proj are only in one"),
            ({"target_modules": None}, "targets"),
            ({"target_modules": []}, "targets"),
            ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
            ({"something_new": "yes"}, "something_new='yes' is not supported"),
            ({"r": 0}, r"adapter_config.json: rank"),
            ({"r": "2"}, r"adapter_config.json: rank"),
            ({"r": 30}, r"adapter_config.json: rank must be at most"),
            ({"lora_alpha": -1}, r"adapter_config.json: alpha"),
            ({"lora_dropout": 2}, r"adapter_config.json: dropout"),
            ({"use_rslora": "no"}, r"adapter_config.json: rslora"),
            ({"r": 3}, "rank must agree|must have shape"),
        ],
        ids=str,
    )
    def test_a_configuration(self, entries, match, refuses, saved):
        rewrite(saved[0], entries)
        refuses(match)

    @pytest.mark.parametrize("name", ["r", "lora_alpha", "target_modules"])
    def test_a_configuration_without_an_entry(self, name, refuses, saved):
        path = saved[0] / "adapter_config.json"
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name}))
        refuses(f"must have an entry '{name}'")

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"peft_type": "LORA",'])
    def test_a_configuration_that_is_not_json(self, content, refuses, saved):
        (saved[0] / "adapter_config.json").write_bytes(content)
        refuses("adapter_config.json must be JSON")

    @pytest.mark.parametrize("content", ["[]", "3", '"LORA"', "null"])
    def test_a_configuration_that_is_no_table(self, content, refuses, saved):
        (saved[0] / "adapter_config.json").write_text(content)
        refuses("must have peft_type 'LORA'")

    @pytest.mark.parametrize(
        ("tensors", "match"),
        [
            ({KEY: None}, "0.q_proj.lora_A.weight is missing"),
            ({"base_model.model.2.q_proj.lora_A.weight": torch.ones(2, 6)}, "2.q_proj.lora_A.weight is left over"),
            ({"base_model.model.0.my_q_proj.weight": torch.ones(6, 6)}, "my_q_proj.weight is left over"),
            ({KEY: torch.ones(2, 5)}, r"must have shape \(2, 6\), got \(2, 5\)"),
            ({KEY: torch.ones(6, 2)}, r"must have shape \(2, 6\), got \(6, 2\)"),
            ({KEY: torch.ones(12)}, r"must have shape \(2, 6\), got \(12,\)"),
            ({KEY: torch.ones(2, 6, dtype=torch.int32)}, "floating type, got torch.int32"),
            ({KEY: torch.full((2, 6), torch.nan)}, "finite"),
            ({KEY: torch.full((2, 6), torch.inf)}, "finite"),
        ],
        ids=str,
    )
    def test_tensors(self, tensors, match, refuses, saved):
        rewrite(saved[0], tensors=tensors)
        refuses(match)

    def test_all_tensors_of_another_rank(self, refuses, saved):
        path = saved[0] / "adapter_model.safetensors"
        other = {}
        for key, tensor in safetensors.torch.load(path.read_bytes()).items():
            other[key] = torch.cat([tensor, tensor], dim=0 if "lora_A" in key else 1)
        safetensors.torch.save_file(other, path)
        refuses(r"must have shape \(2, 6\), got \(4, 6\)")

    def test_many_missing_tensors_are_counted(self, refuses, saved):
        safetensors.torch.save_file({}, saved[0] / "adapter_model.safetensors")
        refuses("and 5 more are missing")

    @pytest.mark.parametrize("size", [0, 5, 100, -1])
    def test_a_truncated_file(self, size, refuses, saved):
        path = saved[0] / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        refuses("damaged or not a safetensors file")

    def test_a_corrupted_file(self, refuses, saved):
        path = saved[0] / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:8] + b"#" * 50 + path.read_bytes()[58:])
        refuses("damaged or not a safetensors file")

    def test_a_pickle(self, refuses, saved):
        class Opened:
            def __reduce__(self):
                return (pytest.fail, ("the pickle was opened",))

        (saved[0] / "adapter_model.safetensors").unlink()
        torch.save(Opened(), saved[0] / "adapter_model.bin")
        refuses("adapter_model.bin is a pickle")
        torch.save(Opened(), saved[0] / "adapter_model.safetensors")
        refuses("damaged or not a safetensors file")

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_a_missing_file(self, name, refuses, saved):
        (saved[0] / name).unlink()
        refuses(name, FileNotFoundError)

    @pytest.mark.parametrize(
        "config",
        [LoRAConfig(1, 3), LoRAConfig(2, 4), LoRAConfig(2, 3, rslora=True), LoRAConfig(2, 3, ("q_proj",))],
        ids=str,
    )
    def test_an_attached_model_that_does_not_agree(self, config, saved, toy, fill, portrait):
        model = fill(attach(toy(), config))
        before = portrait(model)
        with pytest.raises(ValueError, match=r"must agree|left over"):
            load_adapter(model, saved[0])
        assert portrait(model) == before

    def test_a_merged_model(self, saved, toy, portrait):
        model = attach(toy(), CONFIG)
        merge(model)
        before = portrait(model)
        with pytest.raises(ValueError, match="must not be merged"):
            load_adapter(model, saved[0])
        assert portrait(model) == before

    def test_another_model(self, saved, llama, portrait):
        model = llama()
        before = portrait(model)
        with pytest.raises(ValueError, match="missing"):
            load_adapter(model, saved[0])
        assert portrait(model) == before

    def test_the_meta_device(self, saved, toy, portrait):
        model = toy().to("meta")
        before = portrait(model)
        with pytest.raises(ValueError, match="meta"):
            load_adapter(model, saved[0])
        assert portrait(model) == before

    def test_numbers_too_large_for_the_layers_type(self, saved, toy):
        rewrite(saved[0], tensors={KEY: torch.full((2, 6), 1e300, dtype=torch.float64)})
        with pytest.raises(ValueError, match="finite"):
            load_adapter(toy(torch.float32), saved[0])

    def test_a_layer_with_two_names(self, saved, toy, portrait):
        model = toy()
        model[1] = copy.deepcopy(model[0])
        model[1].q_proj = model[0].q_proj
        before = portrait(model)
        with pytest.raises(ValueError, match="are one layer"):
            load_adapter(model, saved[0])
        assert portrait(model) == before


class TestRunningStatistics:
    """A batch norm in training mode moves, and what it comes to is in no adapter."""

    def net(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()

    def trained(self, config):
        model = attach(self.net(), config)
        for _ in range(3):
            model.train()(torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
        return model.eval()

    def test_saving_warns_where_they_have_moved(self, tmp_path):
        model = self.trained(LoRAConfig(2, targets=("0",)))
        with pytest.warns(UserWarning, match=r"averages of batch norms moved since attach \(1\)"):
            save_adapter(model, tmp_path, base_model="net")

    @pytest.mark.filterwarnings("error")
    def test_a_trained_copy_takes_them_along(self, tmp_path):
        model = self.trained(LoRAConfig(2, targets=("0",), modules_to_save=("1",)))
        save_adapter(model, tmp_path, base_model="net")
        x = torch.ones(2, 4, dtype=torch.float64)
        again = load_adapter(self.net(), tmp_path).eval()
        assert torch.equal(again(x), model(x))
        assert not torch.equal(self.net().eval()(x), model(x))

    @pytest.mark.filterwarnings("error")
    def test_in_evaluation_mode_nothing_moves(self, tmp_path):
        model = attach(self.net().eval(), LoRAConfig(2, targets=("0",)))
        model(torch.ones(2, 4, dtype=torch.float64))
        save_adapter(model, tmp_path, base_model="net")

"""Small models, a twin of each in PEFT, and a way to see that nothing of a model has changed."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn

from lora_lab.lora import LoRAConfig, lora_layers


class Block(nn.Module):
    """Two linear layers, the second without a bias, and a name that only looks like the first's."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(6, 5)
        self.v_proj = nn.Linear(5, 6, bias=False)
        self.my_q_proj = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.my_q_proj(x + self.v_proj(torch.tanh(self.q_proj(x))))


@pytest.fixture
def toy() -> Callable[..., nn.Sequential]:
    """Builder of two blocks: ``toy(dtype)``; layers '0.q_proj', '0.v_proj', …, '1.my_q_proj'."""

    def build(dtype: torch.dtype = torch.float64) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return nn.Sequential(Block(), Block()).to(dtype)

    return build


@pytest.fixture
def llama() -> Callable[..., nn.Module]:
    """Builder of a Llama with 2 layers and 32 tokens: ``llama(dtype, tied=False)``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(dtype: torch.dtype = torch.float64, *, tied: bool = False, **options: Any) -> nn.Module:
        shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
        with torch.random.fork_rng():
            torch.manual_seed(2)
            config = LlamaConfig(vocab_size=32, num_hidden_layers=2, tie_word_embeddings=tied, **(shape | options))
            return LlamaForCausalLM(config).to(dtype).eval()

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two rows of seven token numbers below 32."""
    return torch.randint(32, (2, 7), generator=torch.Generator().manual_seed(3))


def fill(model: nn.Module, seed: int = 4) -> nn.Module:
    """Draw every B, which starts at zero and would hide a broken path."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, generator=generator)
    return model


@pytest.fixture(name="fill")
def fill_fixture() -> Callable[..., nn.Module]:
    """The function ``fill(model, seed)``, which draws every B."""
    return fill


@pytest.fixture
def twin() -> Callable[..., peft.PeftModel]:
    """Builder of PEFT's model from an untouched base, with the factors of ours: ``twin(base, ours, config)``."""

    def build(base: nn.Module, ours: nn.Module, config: LoRAConfig) -> peft.PeftModel:
        theirs = peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for name, layer in lora_layers(ours).items():
                other = theirs.base_model.model.get_submodule(name)
                other.lora_A["default"].weight.copy_(layer.lora_A)
                other.lora_B["default"].weight.copy_(layer.lora_B)
        return theirs.train(ours.training)

    return build


def peft_model(base: nn.Module, config: LoRAConfig, **options: Any) -> peft.PeftModel:
    """Give PEFT's model for one of our configurations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(
            base,
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                target_modules=list(config.targets),
                lora_dropout=config.dropout,
                use_rslora=config.rslora,
                **options,
            ),
        )


@pytest.fixture(name="peft_model")
def peft_model_fixture() -> Callable[..., peft.PeftModel]:
    """The function ``peft_model(base, config, **options)``."""
    return peft_model


@pytest.fixture
def portrait() -> Callable[[nn.Module], Any]:
    """Describe everything of a model that an error must leave alone: structure, very objects, flags and bits."""

    def describe(model: nn.Module) -> Any:
        modules = [(name, id(module), module.training) for name, module in model.named_modules(remove_duplicate=False)]
        parameters = [
            (name, id(parameter), parameter.requires_grad, parameter.dtype, bits(parameter))
            for name, parameter in model.named_parameters(remove_duplicate=False)
        ]
        attributes = [sorted(vars(module)) for module in model.modules()]
        return modules, parameters, attributes

    return describe


def bits(tensor: torch.Tensor) -> bytes:
    """Give the very bytes of a tensor, so that −0.0 and 0.0 differ; none for the meta device."""
    return b"" if tensor.is_meta else tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture(name="bits")
def bits_fixture() -> Callable[[torch.Tensor], bytes]:
    """The function ``bits(tensor)``."""
    return bits

"""Models with LoRA are good citizens of torch: compiled, distributed, under autocast, on the meta device, in bf16."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lora_lab.lora import LoRAConfig, activate, attach, disabled, lora_layers, merge, routed, unmerge

pytestmark = pytest.mark.filterwarnings("ignore")

VARIANTS = {
    "plain": {},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "rslora": {"rslora": True},
}


class Net(nn.Module):
    """Every kind of layer in a row."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.embed = nn.Embedding(16, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.patches = nn.Conv2d(1, 4, (1, 2))
        self.turned = Conv1D(6, 4)
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        h = self.conv(self.embed(x).mT)  # (batch, 8, tokens)
        h = self.patches(h[:, None])  # (batch, 4, 8, tokens - 1)
        return self.last(self.turned(h.movedim(1, -1).contiguous()).tanh())  # (batch, 8, tokens - 1, 5)


KINDS = ("embed", "conv", "patches", "turned", "last")


def drawn(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise.to(parameter.device))
    return model


def net(dtype=torch.float64, variant="plain", **options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Net().to(dtype)
    targets = ("turned", "last") if variant == "pissa" else KINDS
    return drawn(attach(model, LoRAConfig(2, 3, targets, **VARIANTS[variant], **options)))


def tokens(batch=3):
    return torch.randint(16, (batch, 6), generator=torch.Generator().manual_seed(2))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_without_a_graph_break(variant):
    model, x = net(variant=variant), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.timeout(300)
def test_compiles_with_several_adapters_and_with_rows():
    model, x = net(), tokens()
    drawn(attach(model, LoRAConfig(1, targets=("last", "embed")), name="second"))
    activate(model, {"default": 0.5, "second": 2})
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)
    with routed(model, ["second", None, "default"]):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)
    with disabled(model):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)
    merge(model)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_gives_every_factor_the_same_gradient(variant, reentrant):
    class Part(nn.Module):
        """All but the embedding, so that checkpointing sees floating inputs."""

        def __init__(self, whole):
            super().__init__()
            self.whole = whole

        def forward(self, h):
            whole = self.whole
            h = whole.patches(whole.conv(h.mT)[:, None])
            return whole.last(whole.turned(h.movedim(1, -1).contiguous()).tanh())

    model = net(variant=variant)
    part, h = Part(model), torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = []
    for run in (part, lambda h: checkpoint(part, h, use_reentrant=reentrant)):
        model.zero_grad()
        run(h.clone().requires_grad_()).sin().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert len(gradients[0]) >= 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bfloat16_base_keeps_float32_factors_and_never_copies_its_input(variant):
    model, x = net(torch.bfloat16, variant=variant), tokens()
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in own} == {parameter.grad.dtype for parameter in own} == {torch.float32}
    batched = [tensor for tensor in kept if tensor.dim() > 2 and tensor.shape[0] == len(x)]
    assert batched
    assert all(tensor.dtype == torch.bfloat16 for tensor in batched if tensor.is_floating_point())


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_computes_in_bfloat16_near_float32(variant):
    model, x = net(torch.float32, variant=variant), tokens()
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).norm() / expected.norm() < 0.05
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_device(variant):
    with torch.device("meta"):
        model = Net()
    targets = ("turned", "last") if variant == "pissa" else KINDS
    attach(model, LoRAConfig(2, 3, targets, **VARIANTS[variant]))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model(torch.zeros(3, 6, dtype=torch.long, device="meta")).shape == (3, 8, 5, 5)
    with pytest.raises(ValueError, match="meta device"):
        merge(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_and_copies(variant):
    model, x = net(variant=variant), tokens()
    other = net(variant=variant)
    drawn(other, seed=9)
    assert not torch.allclose(other(x), model(x))
    assert other.load_state_dict(model.state_dict()) == ([], [])
    assert torch.equal(other(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_base_has_the_same_bits_after_training_merging_and_unmerging(variant, bits):
    model, x = net(torch.float32, variant=variant, dropout=0.1), tokens()
    base = {name: bits(p) for name, p in model.named_parameters() if ".adapters." not in name}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    trained = model.eval()(x)
    merge(model)
    unmerge(model)
    assert {name: bits(p) for name, p in model.named_parameters() if ".adapters." not in name} == base
    assert torch.equal(model(x), trained)


def test_training_and_evaluation_mode_reach_the_adapters():
    model = net(dropout=0.5)
    assert all(layer.dropout.training for layer in lora_layers(model).values())
    assert not any(layer.dropout.training for layer in lora_layers(model.eval()).values())
    attach(model, LoRAConfig(1, targets=("last",), dropout=0.5), name="second")
    assert not model.last.adapters["second"].dropout.training


def worker(rank, port, path):
    """One process of two: half of the batch, gradients averaged."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = net()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(tokens(4)[2 * rank : 2 * rank + 2]).square().mean().backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(300)
def test_two_processes_learn_what_one_learns(tmp_path):
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(tmp_path)), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    model = net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens(4)).square().mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], value, rtol=1e-9, atol=1e-9)

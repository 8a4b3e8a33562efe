"""The experiment of notebook 08 on costs: seconds and memory of training, and seconds of an answer, for each rival.

Machines drift: another process, heat, a clock that slows. So times are taken in races. In each round every rival gets
its turn, in an order that is drawn anew, and a rival is compared with what the others took in the same round. A second
copy of the plain model runs too: how far it is from the first is what the race cannot tell apart.

Memory is taken in a process of its own for each way, as the rise of the resident set (what the operating system has
given the process) from just before the first step to its peak, beside what ``account`` says before any training. The
allocator is told to give freed memory back at once, so that what is measured is what is in use.
"""

from __future__ import annotations

import contextlib
import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run
from lora_lab.course.experiments.short_reviews import BATCH_SIZE, TOKENS, Materials, conditions, materials
from lora_lab.course.experiments.ways import configuration

if TYPE_CHECKING:
    from torch import nn

WAYS = ("full", "head", "bitfit", "bottleneck-16", "bottleneck-64", "lora-1", "lora-8", "lora-64", "lora-qv-8")
SERVED = (
    "plain",
    "plain-again",
    "lora-8",
    "lora-64",
    "lora-8-folded",
    "lora-64-folded",
    "bottleneck-4",
    "bottleneck-16",
    "bottleneck-64",
)
MEMORY_STEPS = 3  # of training, while memory is watched; the optimiser's state is there from the first on
RATE = 1e-5  # no score is asked for
AT_ONCE = {  # glibc then gives memory back as soon as it is free; by itself it keeps up to as much again for later
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def race(turns: Mapping[str, Callable[[], float]], rounds: int, *, seed: int) -> dict[str, list[float]]:
    """Let everyone have a turn in each round, in an order drawn anew, and give each one's figure of every round.

    Args:
        turns: by name, a function that does one turn and gives its figure: seconds, here.
        rounds: how many rounds.
        seed: draws the orders.
    """
    import numpy as np

    rng, figures = np.random.default_rng(seed), {name: [0.0] * rounds for name in turns}
    names = list(turns)
    for this in range(rounds):
        for place in rng.permutation(len(names)):
            figures[names[place]][this] = turns[names[place]]()
    return figures


def against(seconds: Mapping[str, list[float]], name: str, base: str = "plain") -> dict[str, float]:
    """Give what one of a race took, as a ratio to another in the same round: its median and quartiles over the rounds.

    Raises:
        ValueError: one of the two did not run.
    """
    for one in (name, base):
        if one not in seconds:
            raise ValueError(f"name: got {one!r}, and the race had {', '.join(seconds)}")
    ratios = [mine / its for mine, its in zip(seconds[name], seconds[base], strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"lower": lower, "median": median, "upper": upper}


def rounds_of(runs: Sequence[Mapping[str, Any]], measure: str, batch: int = BATCH_SIZE) -> dict[str, list[float]]:
    """Give the seconds of every round of all races of one kind, by name, the rounds in the same order for all.

    Raises:
        ValueError: there was no such race.
    """
    races = [run["seconds"] for run in runs if (run["measure"], run["batch"]) == (measure, batch) and "seconds" in run]
    if not races:
        known = ", ".join(sorted({f"{run['measure']} of {run['batch']}" for run in runs if "seconds" in run}))
        raise ValueError(f"measure: got {measure!r} of {batch}, and the races were {known}")
    return {name: [second for one in races for second in one[name]] for name in races[0]}


def memory_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Give the bytes that training adds, by way: the median of what was measured, and what ``account`` says."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["measure"] == "memory":
            found.setdefault(run["way"], []).append(run)
    return {
        way: (statistics.median(run["measured"] for run in some), some[0]["predicted"]) for way, some in found.items()
    }


def served(base: nn.Module, name: str) -> nn.Module:
    """Give a copy of a model as it is when it answers: plain, with an adapter at its side, or with LoRA folded in.

    An adapter here has learned nothing. What trains in it is drawn at random, so that nothing in it is zero.

    Args:
        base: the model.
        name: "plain", "plain-again", a way of ``configuration``, or "lora-8-folded", where ``fold`` has added the
            update to the weights.
    """
    import torch

    from lora_lab.lora import attach, fold

    model = copy.deepcopy(base)
    if not name.startswith("plain"):
        generator = torch.Generator().manual_seed(0)
        attach(model, configuration(name.removesuffix("-folded")), generator=generator)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator).to(parameter))
        if name.endswith("-folded"):
            fold(model)
    return model.eval()


def rise_of_memory(config: Any, way: str, *, batch: int, tokens: int, threads: int, seed: int) -> dict[str, int]:
    """Train a few steps in float32, and give the rise of this process's resident set in bytes, beside the prediction.

    Call it in a new process: memory that something else has used and given back would count as free. Linux alone says
    what the peak since a moment was.

    Args:
        config: the configuration of a BERT; its weights are drawn, as their values cost the same.
        way: the way of fine-tuning.
        batch, tokens: the shape of the batch.
        threads: threads of PyTorch.
        seed: draws weights and tokens.

    Returns:
        "measured", and "predicted": what ``account`` says of the peak but for the weights, which are there before.

    Raises:
        OSError: the system does not tell.
    """
    import torch
    from transformers import BertConfig

    from lora_lab.finetune import untrained_encoder
    from lora_lab.lora import account, attach

    torch.set_num_threads(threads)
    small = untrained_encoder(
        BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, vocab_size=9), seed=0
    )
    _steps(small, batch=2, tokens=2, seed=0)  # what the libraries allocate for themselves, once, is no part of it
    model = untrained_encoder(config, seed=seed)
    model.set_attn_implementation("eager")
    attach(model, configuration(way), generator=torch.Generator().manual_seed(seed))
    costs = account(model, batch=batch, tokens=tokens).costs
    assert costs is not None
    before = resident_from_here()
    _steps(model, batch=batch, tokens=tokens, seed=seed)
    return {
        "measured": resident_peak() - before,
        "predicted": costs.peak - costs.weights,
        "trained bytes": costs.gradients,
        "activations": costs.activations + costs.logits,
        "weights": costs.weights,
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for processes that start in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def resident_from_here() -> int:
    """Give the resident set of this process in bytes, and let its peak count from here on. Linux alone can.

    Raises:
        OSError: the system does not tell.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # which sets the peak back to what there is now
    return _resident("VmRSS")


def resident_peak() -> int:
    """Give the peak of the resident set of this process since ``resident_from_here``, in bytes.

    Raises:
        OSError: the system does not tell.
    """
    return _resident("VmHWM")


def _resident(name: str) -> int:
    """Read a line of /proc/self/status, which counts in units of 1,024 bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _steps(model: Any, *, batch: int, tokens: int, seed: int) -> None:
    """Train a few steps on tokens drawn at random, none of them padding."""
    import torch

    from lora_lab.finetune import Settings, minimise

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, model.config.vocab_size, (batch, tokens), generator=generator)
    labels = torch.arange(batch) % 2

    def loss(places: list[int]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(input_ids=ids[places]).logits, labels[places])

    minimise(
        model,
        loss,
        batch,
        Settings(epochs=MEMORY_STEPS, batch_size=batch, learning_rate=RATE, seed=seed),
        progress=False,
    )


def _memory(shared: Materials, settings: Run) -> Run:
    """Measure memory in a process of its own, whose allocator keeps nothing back."""
    import concurrent.futures
    import multiprocessing

    import torch

    context = multiprocessing.get_context("spawn")
    with _environment(AT_ONCE), concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        figures = pool.submit(
            rise_of_memory,
            shared.pretrained.config,
            settings["way"],
            batch=settings["batch"],
            tokens=TOKENS,
            threads=torch.get_num_threads(),
            seed=settings["seed"],
        ).result()
    return dict(figures)


def _training(shared: Materials, options: Options, settings: Run) -> Run:
    """Race the ways in training: the median step of a turn, whose first step is not counted."""
    import torch

    from lora_lab.finetune import Settings, train_classifier
    from lora_lab.lora import attach

    examples = shared.reviews.subset(settings["batch"], seed=settings["seed"])
    steps = Settings(epochs=1 + options["steps"], batch_size=len(examples), learning_rate=RATE, seed=settings["seed"])

    def turn(model: Any) -> Callable[[], float]:
        def train() -> float:
            history = train_classifier(
                model, shared.tokenizer, examples, steps, precision=shared.precision, progress=False
            )
            return round(statistics.median(history.seconds[1:]), 5)

        return train

    turns = {
        way: turn(
            attach(copy.deepcopy(shared.pretrained), configuration(way), generator=torch.Generator().manual_seed(0))
        )
        for way in options["ways"]
    }
    return {"seconds": race(turns, options["rounds"], seed=settings["seed"])}


def _latency(shared: Materials, options: Options, settings: Run) -> Run:
    """Race the models in answering, in float32: the median call of a turn, whose first call is not counted."""
    import torch

    batch = settings["batch"]
    generator = torch.Generator().manual_seed(settings["seed"])
    ids = torch.randint(1, shared.pretrained.config.vocab_size, (batch, TOKENS), generator=generator)
    ids = ids.to(shared.pretrained.device)
    calls = max(2, options["calls"] // batch)

    def turn(model: Any) -> Callable[[], float]:
        @torch.inference_mode()
        def answer() -> float:
            seconds = []
            for _ in range(1 + calls):
                started = time.perf_counter()
                model(input_ids=ids).logits.sum().item()
                seconds.append(time.perf_counter() - started)
            return round(statistics.median(seconds[1:]), 6)

        return answer

    turns = {name: turn(served(shared.pretrained, name)) for name in options["served"]}
    return {"seconds": race(turns, options["rounds"], seed=settings["seed"])}


def _plan(options: Options) -> list[Run]:
    """Give the races, and the memory of each way, seed after seed."""
    plan: list[Run] = []
    for seed in sorted(options["seeds"]):
        plan.append({"measure": "training", "batch": BATCH_SIZE, "way": None, "seed": seed})
        plan += [{"measure": "latency", "batch": batch, "way": None, "seed": seed} for batch in options["batches"]]
        plan += [{"measure": "memory", "batch": BATCH_SIZE, "way": way, "seed": seed} for way in options["ways"]]
    return plan


def _measure(shared: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Measure one race, or the memory of one way."""
    import torch

    if settings["measure"] == "memory":
        figures = _memory(shared, settings)
    elif settings["measure"] == "training":
        figures = _training(shared, options, settings)
    else:
        figures = _latency(shared, options, settings)
    return {**figures, "threads": torch.get_num_threads()}


EXPERIMENT = Experiment(
    name="rival-costs",
    purpose="what LoRA and its rivals cost: seconds a step, memory of training, seconds of an answer",
    options={
        "ways": Option(WAYS, "ways of fine-tuning"),
        "served": Option(SERVED, "models that answer"),
        "batches": Option((1, 32), "rows that are answered at once"),
        "rounds": Option(8, "rounds of each race"),
        "steps": Option(3, "training steps of a turn"),
        "calls": Option(20, "calls of a turn, a row each; with more rows fewer, at least 2"),
        "seeds": Option((0, 1, 2), "each draws other sentences and other orders"),
    },
    plan=_plan,
    prepare=materials,
    measure=_measure,
    conditions=conditions,
)

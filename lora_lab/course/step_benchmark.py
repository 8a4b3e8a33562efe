"""How fast a fine-tuning step is, and what memory it takes: ours beside PEFT, and beside full fine-tuning.

``bench_step`` measures and stores; ``table``, ``verdict`` and ``step_bench_figure`` say what was measured. All ways get
the same model, the same examples in the same order, the same batch, the same types and the same numbers of AdamW. (The
Trainer's own schedule has a rate of zero in its first step, so its loss is that of a step less.) Each turn is a process
of its own, ``python -m lora_lab.course.step_benchmark``: so none finds another's memory, and the ways take turns, round
by round. A GPU's allocator counts what it gives in every turn. On a CPU memory is the resident set's, measured in turns
of its own, in which the allocator gives back at once what is free: that makes a step slower.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments import _store, results_folder
from lora_lab.course.experiments.rival_costs import AT_ONCE, resident_from_here, resident_peak
from lora_lab.course.step_pieces import PIECES

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

    from lora_lab.finetune.encoding import Encoded

Run = dict[str, Any]
Trained = tuple["PreTrainedModel", list[float]]

OURS, TRAINER, LOOP, FULL = "lora-lab", "PEFT, Trainer", "PEFT, a loop by hand", "full fine-tuning"
WAYS = (OURS, TRAINER, LOOP, FULL)
EVERY = (*WAYS, *PIECES)
TARGETS = ("q_proj", "v_proj")
MATMUL = {"cpu": 2048, "cuda": 8192}  # the side of square matrices whose product says how fast a device multiplies
RECORDED = "kernels one by one"  # the piece without CUDA graphs
COMPILED = "blocks compiled"  # the piece that ``--compile`` runs beside the rivals


@dataclass(frozen=True)
class Plan:
    """What every turn of a benchmark shares.

    Attributes:
        model: a packaged model or a folder, as ``source`` says.
        source: "package" or "folder".
        dtype: "float32" or "bfloat16", the type of the frozen weights; None takes what the device is fast at.
        rank: rank of each update, on the query and value matrices; alpha is twice the rank.
        batch: examples a step.
        steps: steps of a turn.
        warm_up: steps at its beginning that are not counted.
        rate: AdamW's largest learning rate for LoRA; full fine-tuning takes a hundredth of it.
        threads: threads of PyTorch; None leaves the choice to it.
    """

    model: str = "smollm2-135m-instruct"
    source: str = "package"
    dtype: str | None = None
    rank: int = 8
    batch: int = 8
    steps: int = 14
    warm_up: int = 2
    rate: float = 2e-3
    threads: int | None = None


def bench_step(
    command: str, *, rounds: int = 5, plan: Plan | None = None, ways: Sequence[str] = WAYS, output: str | None = None
) -> list[Run]:
    """Measure every way in every round, and the memory of each once, and give the runs.

    Args:
        command: the command line that asks for it, for the stored file to say.
        rounds: how often each way has its turn.
        plan: what every turn shares.
        ways: some of ``WAYS``, and of ``PIECES``: ours with one thing changed.
        output: store the runs as ``data/results/<output>.json`` and a figure as ``data/figures/<output>.png``.

    Raises:
        ValueError: there is no round, no way, or no step after those that are not counted.
        ChildProcessError: a turn failed; what it said is on standard error.
    """
    plan = plan or Plan()
    unknown = [way for way in ways if way not in EVERY]
    if rounds < 1 or not ways or unknown:
        raise ValueError(f"rounds and ways: takes a round at least, and ways of {', '.join(EVERY)}, got {unknown or 0}")
    if {TRAINER, LOOP} & set(ways) and find_spec("peft") is None:
        raise ValueError("PEFT is not installed here, and two of the ways are its: install the course with its tests")
    if not 0 <= plan.warm_up < plan.steps:
        raise ValueError(f"warm_up: got {plan.warm_up} of {plan.steps} steps; one step at least has to be counted")
    runs = []
    for round_ in range(rounds):
        places = [*ways[round_ % len(ways) :], *ways[: round_ % len(ways)]]  # nobody is always first
        for way in places:
            runs.append({**_in_process(way, plan), "round": round_})
            _say(f"round {round_ + 1} of {rounds}, {way}: {tokens_per_second(runs[-1]):,.0f} tokens/s")
    alone = {run["way"] for run in runs if "memory" not in run}
    memory = {way: _in_process(way, plan, memory=True)["memory"] for way in ways if way in alone}
    for run in runs:
        run.setdefault("memory", memory.get(run["way"]))
        run["flops"] = _flops(
            FULL if run["way"] == FULL else OURS, plan, round(sum(run["tokens"]) / len(run["tokens"]) / plan.batch)
        )
    if output is not None:
        path = results_folder() / f"{output}.json"
        provenance = _provenance(command, runs[0]) | {"plan": asdict(plan)}
        _store(path, {"provenance": provenance, "runs": runs})
        from lora_lab.course.figures import save

        save(step_bench_figure(runs), path.parents[1] / "figures" / f"{output}.png")
    return runs


def pieces_here() -> list[str]:
    """Give the pieces that make a difference on this machine: kernels are recorded on a GPU alone."""
    import torch

    return [name for name in PIECES if torch.cuda.is_available() or name != RECORDED]


def measure(way: str, plan: Plan, *, memory: bool = False) -> Run:
    """Train a few steps in one way, in this process, and give what they took.

    Args:
        way: one of ``WAYS`` or ``PIECES``.
        plan: model, batch, steps.
        memory: measure memory, and no times.

    Returns:
        "seconds" and "tokens" of each step that counts, without padding; "first", the seconds of those that do not, in
        which things are set up or compiled; "loss", the mean loss of held-out examples after the last step; "products",
        what the machine multiplies in a second, in floating-point operations. On CUDA "memory" too, the peak above the
        weights in bytes of what tensors hold, and "reserved", of what torch holds for them. With ``memory`` that alone;
        on a CPU it is the rise of the resident set.

    Raises:
        ValueError: there is no such way.
        OSError: the system does not tell how much memory a process has.
    """
    import torch

    from lora_lab.finetune import TextToSQL, encode, load_tokenizer, mean_loss

    if way not in EVERY:
        raise ValueError(f"way: got {way!r}, takes one of {', '.join(EVERY)}")
    if plan.threads:
        torch.set_num_threads(plan.threads)
    task, tokenizer = TextToSQL(seed=0), load_tokenizer(plan.model, source=plan.source)
    examples, held_out = (
        [encode(tokenizer, task.messages(one), one.query) for one in some]
        for some in (task.train(plan.batch * plan.steps), task.validation(4 * plan.batch))
    )
    model = _loaded(way, plan)
    on_gpu = model.device.type == "cuda"
    before = _memory_from_here(model) if memory or on_gpu else 0
    train = {LOOP: _train_by_hand, TRAINER: _train_with_trainer}.get(way, _train_ours)
    trained, seconds = train(model, examples, way, plan)
    where: Run = {"way": way, "device": str(trained.device), "dtype": str(trained.dtype).removeprefix("torch.")}
    where["threads"] = torch.get_num_threads()
    if memory or on_gpu:
        where["memory"] = _memory_peak(trained) - before
    if on_gpu:
        where["reserved"] = torch.cuda.max_memory_reserved(trained.device) - before
    if memory:
        return where
    tokens = [sum(len(example.tokens) for example in batch) for batch in _in_order(examples, plan, way)]
    return {
        **where,
        "first": round(sum(seconds[: plan.warm_up]), 3),
        "seconds": [round(second, 5) for second in seconds[plan.warm_up :]],
        "tokens": tokens[plan.warm_up :],
        "loss": round(mean_loss(trained, held_out, plan.batch), 4),
        "products": products_per_second(trained.device, trained.dtype),
    }


def products_per_second(device: torch.device, dtype: torch.dtype, side: int | None = None, repeats: int = 5) -> float:
    """Give the floating-point operations a second of a product of two square matrices: 2 · side³ over its time."""
    import torch

    side = side or MATMUL[device.type]

    A, B = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    taken = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        (A @ B).sum().item()  # item() waits for a GPU
        taken.append(time.perf_counter() - started)
    return 2 * side**3 / median(taken[1:])


def tokens_per_second(run: Mapping[str, Any]) -> float:
    """Give the tokens a second of a turn, padding not counted: all tokens over all seconds."""
    return float(sum(run["tokens"]) / sum(run["seconds"]))


def ratios(runs: Sequence[Run], way: str, base: str) -> list[float]:
    """Give how many times the tokens a second of ``base`` a way has, round by round.

    Raises:
        ValueError: one of the two did not run.
    """
    for one in (way, base):
        if not any(run["way"] == one for run in runs):
            raise ValueError(f"way: got {one!r}, which did not run; there are {', '.join(_ways(runs))}")
    speeds = {(run["way"], run["round"]): tokens_per_second(run) for run in runs}
    return [speed / speeds[base, round_] for (other, round_), speed in speeds.items() if other == way]


def table(runs: Sequence[Run]) -> str:
    """Give a line a way: tokens a second (median of the rounds), share of the machine's products, memory, loss."""
    lines = [f"{'':26}{'tokens/s':>10}{'of products':>13}{'memory':>11}{'held-out loss':>15}"]
    for way, mine in _by_way(runs).items():
        share = median(len(run["seconds"]) * run["flops"] / sum(run["seconds"]) / run["products"] for run in mine)
        speed, loss = median(map(tokens_per_second, mine)), median(run["loss"] for run in mine)
        lines.append(f"{way:26}{speed:>10,.0f}{share:>13.1%}{mine[0]['memory'] / 1e6:>8,.0f} MB{loss:>15.3f}")
    return "\n".join(lines)


def verdict(runs: Sequence[Run]) -> str:
    """Say in a line for each other way how many times its tokens a second we have, and what share of its memory."""
    lines = []
    memory = {way: mine[0]["memory"] for way, mine in _by_way(runs).items()}
    for way in _ways(runs):
        if way != OURS:
            found = ratios(runs, OURS, way)
            rounds = "1 round" if len(found) == 1 else f"{len(found)} rounds"
            lines.append(
                f"against {way}: {median(found):.2f} times the tokens a second ({min(found):.2f} to {max(found):.2f} "
                f"in {rounds}), {memory[OURS] / memory[way]:.2f} of the memory above the weights"
            )
    return "\n".join(lines)


def step_bench_figure(runs: Sequence[Run]) -> Figure:
    """Draw tokens a second of every round with their median, and memory above the weights, a line a way.

    Raises:
        ValueError: there are no runs.
    """
    from lora_lab.course.figures import BLUE, GREY, canvas

    if not runs:
        raise ValueError("runs must hold a run at least, got none")
    found = _by_way(runs)
    fig, (left, right) = canvas(1, 2, width=8.4, height=0.42 * len(found) + 1.5, sharey=True)
    for place, (way, mine) in enumerate(found.items()):
        look = {"color": BLUE if way == OURS else GREY, "marker": "o" if way == OURS else "s"}
        speeds = [tokens_per_second(run) for run in mine]
        left.plot(speeds, [place] * len(speeds), **look, linestyle="none", alpha=0.35, markersize=5)
        left.plot([median(speeds)], [place], **look, linestyle="none", markersize=8)
        right.barh([place], [mine[0]["memory"] / 1e6], color=look["color"], height=0.5)
        right.text(mine[0]["memory"] / 1e6, place, f" {mine[0]['memory'] / 1e6:,.0f}", va="center", fontsize=9)
    left.set_yticks(range(len(found)), list(found))
    left.set_ylim(len(found) - 0.4, -0.6)
    fastest = max(map(tokens_per_second, runs))
    left.set(xlabel="tokens a second", xlim=(0, 1.05 * fastest))
    right.set(xlabel="MB above the weights")
    right.margins(x=0.18)
    for ax in (left, right):
        ax.locator_params(axis="x", nbins=5)
        ax.xaxis.set_major_formatter("{x:,.0f}")
    return fig


def _settings(plan: Plan, way: str) -> Any:
    """Give the numbers of the training, the same for every LoRA but for what a piece is about."""
    from lora_lab.finetune import Settings

    rate = plan.rate / 100 if way == FULL else plan.rate
    changed = PIECES[way].settings if way in PIECES else {}
    return Settings(epochs=1, batch_size=plan.batch, learning_rate=rate, **changed)


def _loaded(way: str, plan: Plan) -> PreTrainedModel:
    """Load the model as each way's user does: ours with ``load_model``, PEFT's with transformers alone."""
    import torch

    from lora_lab.finetune import load_model

    dtype = getattr(torch, plan.dtype) if plan.dtype else None
    attention = "sdpa" if way in (TRAINER, LOOP) else None  # what transformers takes where nobody asks
    return load_model(plan.model, source=plan.source, dtype=dtype, attention=attention)


def _train_ours(model: PreTrainedModel, examples: list[Encoded], way: str, plan: Plan) -> Trained:
    """Train with this package, which draws the order itself."""
    from lora_lab.finetune import train
    from lora_lab.lora import FullConfig, LoRAConfig, attach

    attach(model, FullConfig() if way == FULL else LoRAConfig(plan.rank, alpha=2 * plan.rank, targets=TARGETS))
    if way in PIECES:
        PIECES[way].change(model)
    return model, train(model, examples, _settings(plan, way), progress=False).seconds


def _with_peft(model: PreTrainedModel, plan: Plan) -> Any:
    """Attach PEFT's LoRA, with its defaults: A is drawn from the same distribution as ours, and B is zero."""
    import peft
    import torch

    torch.manual_seed(0)
    config = peft.LoraConfig(r=plan.rank, lora_alpha=2 * plan.rank, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def _train_by_hand(model: PreTrainedModel, examples: list[Encoded], way: str, plan: Plan) -> Trained:
    """Train PEFT's model in the loop that everybody writes."""
    import torch

    from lora_lab.finetune.encoding import collate
    from lora_lab.finetune.training import learning_rate_at

    settings, tuned, seconds = _settings(plan, way), _with_peft(model, plan), []
    parameters = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay)
    tuned.train()
    for step, batch in enumerate(_in_order(examples, plan, way)):
        started = time.perf_counter()
        tensors = collate(batch).to(model.device)
        output = tuned(
            input_ids=tensors.input_ids, attention_mask=tensors.attention_mask, labels=tensors.labels, use_cache=False
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, plan.steps, settings)
        optimizer.step()
        optimizer.zero_grad()
        _ = output.loss.item()  # as one prints it; on a GPU this waits for the step to end
        seconds.append(time.perf_counter() - started)
    return tuned.base_model.model, seconds


def _train_with_trainer(model: PreTrainedModel, examples: list[Encoded], way: str, plan: Plan) -> Trained:
    """Train PEFT's model with transformers' Trainer, as its documentation shows it."""
    import tempfile

    import transformers

    from lora_lab.finetune.encoding import collate

    settings, tuned, ends = _settings(plan, way), _with_peft(model, plan), []

    class Clock(transformers.TrainerCallback):
        """Notes when the training begins and when each step ends."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    in_order = [example for batch in _in_order(examples, plan, way) for example in batch]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=plan.batch,
            learning_rate=settings.learning_rate,
            warmup_steps=round(settings.warmup * plan.steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_gradient_norm,
            train_sampling_strategy="sequential",
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = transformers.Trainer(
            model=tuned,
            args=arguments,
            train_dataset=in_order,
            data_collator=lambda batch: asdict(collate(batch)),
            callbacks=[Clock()],
        )
        trainer.remove_callback(transformers.PrinterCallback)  # it would print among what we print
        trainer.train()
    return tuned.base_model.model, [after - before for before, after in pairwise(ends)]


def _in_order(examples: list[Encoded], plan: Plan, way: str) -> list[list[Encoded]]:
    """Give the batches in the order in which ``train`` of this package reads them."""
    from lora_lab.finetune.training import batch_indices

    settings, lengths = _settings(plan, way), [len(example.tokens) for example in examples]
    chosen = (batch_indices(len(examples), step, settings, lengths) for step in range(plan.steps))
    return [[examples[place] for place in places] for places in chosen]


@functools.cache
def _flops(way: str, plan: Plan, tokens: int) -> int:
    """Give the operations of a step on a batch without padding: what has to be multiplied, whoever does it."""
    import torch

    from lora_lab.finetune import load_model
    from lora_lab.lora import FullConfig, LoRAConfig, account, attach

    model = load_model(plan.model, source=plan.source, dtype=torch.bfloat16, device="cpu")
    attach(model, FullConfig() if way == FULL else LoRAConfig(plan.rank, targets=TARGETS))
    costs = account(model, batch=plan.batch, tokens=tokens).costs
    assert costs is not None
    return costs.forward + costs.backward


def _memory_from_here(model: PreTrainedModel) -> int:
    """Give the memory in use in bytes, and let its peak count from here on; the libraries have what they keep."""
    import torch

    if model.device.type == "cpu":  # where the memory of a library is the process's too
        for library in ("accelerate", "peft", "transformers.trainer"):
            importlib.import_module(library)
    with torch.inference_mode():  # which also brings in weights that are only mapped from their file so far
        model(torch.arange(1, 9, device=model.device).unsqueeze(0))
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        return torch.cuda.memory_allocated(model.device)
    return resident_from_here()


def _memory_peak(model: PreTrainedModel) -> int:
    """Give the peak of memory since ``_memory_from_here``, in bytes."""
    import torch

    return torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else resident_peak()


def _in_process(way: str, plan: Plan, *, memory: bool = False) -> Run:
    """Give what ``measure`` gives, measured in a new process."""
    environment = {**os.environ, **(AT_ONCE if memory else {})}
    arguments = json.dumps({"way": way, "plan": asdict(plan), "memory": memory})
    command = [sys.executable, "-m", "lora_lab.course.step_benchmark", arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        raise ChildProcessError(f"the turn of {way!r} ended with status {done.returncode}")
    found: Run = json.loads(done.stdout.splitlines()[-1])
    return found


def _by_way(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Give the runs of each way."""
    return {way: [run for run in runs if run["way"] == way] for way in _ways(runs)}


def _ways(runs: Sequence[Run]) -> list[str]:
    """Give the ways that ran, in the order of ``EVERY``."""
    return [way for way in EVERY if any(run["way"] == way for run in runs)]


def _provenance(command: str, run: Run) -> dict[str, Any]:
    """Say what a result is measured on: device, types, versions, command, date."""
    import torch

    cpu = f"CPU, {platform.machine()}, {os.cpu_count()} cores"
    return {
        "command": command,
        "device": torch.cuda.get_device_name() if run["device"].startswith("cuda") else cpu,
        "dtype": run["dtype"],
        "threads": run["threads"],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "lora-lab")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _say(text: str) -> None:
    """Show how far it is, on a terminal only."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _main(arguments: str) -> None:
    """Be the process of one turn: print what it measured as the last line."""
    options = json.loads(arguments)
    print(json.dumps(measure(options["way"], Plan(**options["plan"]), memory=options["memory"])), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])

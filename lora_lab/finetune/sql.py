"""Run SQL that a model wrote, so that it can neither harm nor hang, and compare what two queries return.

A model's answer is untrusted text. Five fences stand around it:

- the database is in memory and read-only;
- SQLite's authorizer allows a query to select, to read the tables of the database, and to call the functions in
  `FUNCTIONS`. Everything else (writing, PRAGMA, ATTACH, extensions, recursion, the clock, random numbers) is refused
  before the query runs;
- the length of a query, its SELECTs, and every value it makes are bounded, so that no single operation takes long;
- a query runs for a fixed number of steps of SQLite's virtual machine, the same on a slow machine and on a fast one;
  behind that stands a limit in seconds;
- a query returns a fixed number of rows at most.

`run_query` never raises for a bad query: it names what went wrong. Standard library only.
"""

import itertools
import math
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["FUNCTIONS", "Failure", "Result", "open_database", "run_query", "same_result"]

# What a query may call: functions of their arguments alone. No clock, no random numbers, no files, no blocks of memory.
_AGGREGATES = ("avg", "count", "group_concat", "max", "min", "sum", "total")
_WINDOW = ("dense_rank", "rank", "row_number")
_SCALAR = ("abs", "coalesce", "ifnull", "iif", "instr", "length", "nullif", "round", "typeof")
_TEXT = ("glob", "like", "lower", "ltrim", "replace", "rtrim", "substr", "substring", "trim", "upper")
FUNCTIONS = frozenset(_AGGREGATES + _WINDOW + _SCALAR + _TEXT)

# SQLite copies a common table expression wherever it is named, before it counts a single step, and each SELECT may name
# one up to 64 times. So the number of SELECTs bounds the time it takes to prepare a query.
MAX_CHARACTERS = 500
MAX_SELECTS = 3

_LIMITS = {
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_COLUMN: 50,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_LENGTH: 4_000,  # bytes of a value or a row
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
}

_STRIDE = 1_000  # steps from one look at the budget to the next

Value = str | int | float | bytes | None
Row = Sequence[Value]


class Failure(StrEnum):
    """Why a query returned nothing that could be compared."""

    EMPTY = "no query"
    SYNTAX = "syntax error"
    UNKNOWN_NAME = "no such table, column or function"
    FORBIDDEN = "not a plain read"
    STATEMENTS = "more than one statement"
    TOO_LONG = "too many steps"
    TOO_MANY_ROWS = "too many rows"
    TOO_LARGE = "too large"
    OTHER = "error"


@dataclass(frozen=True)
class Result:
    """What a query returned: its rows and how many columns they have, or the failure and what SQLite says about it."""

    rows: tuple[tuple[Value, ...], ...] = ()
    columns: int = 0
    failure: Failure | None = None
    message: str = ""


def open_database(script: str) -> sqlite3.Connection:
    """Give a database in memory, made by an SQL script, that answers plain reads and nothing else.

    Args:
        script: statements that make and fill tables. It is trusted: it runs before the fences go up.

    Raises:
        ValueError: SQLite cannot run the script.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.executescript(script)
    except sqlite3.Error as error:
        connection.close()
        raise ValueError(f"script must be SQL that SQLite can run, got {script[:100]!r}: {error}") from error
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA query_only = ON")
    for limit, value in _LIMITS.items():
        connection.setlimit(limit, value)
    connection.set_authorizer(_authorizer(tables))
    return connection


def run_query(
    connection: sqlite3.Connection,
    sql: str,
    *,
    step_limit: int = 100_000,
    time_limit: float = 5.0,
    row_limit: int = 1_000,
) -> Result:
    """Give the rows that a query returns, or the failure it ends in. No text makes it raise, write or hang.

    Args:
        connection: a database from `open_database`.
        sql: any text.
        step_limit: steps of SQLite's virtual machine, counted by the thousand; a gold query takes hundreds. It bounds
            the memory of a query too: a step keeps one row of 4,000 bytes at most, to sort it for example.
        time_limit: seconds; generous, so that it is the steps that decide, and a busy machine gives the same score.
        row_limit: rows; a query with more is a failure.

    Raises:
        ValueError: a limit is not positive.
    """
    for name, limit in {"step_limit": step_limit, "time_limit": time_limit, "row_limit": row_limit}.items():
        if not limit > 0:
            raise ValueError(f"{name} must be positive, got {limit!r}")
    if len(sql) > MAX_CHARACTERS:
        return Result(failure=Failure.TOO_LARGE, message=f"more than {MAX_CHARACTERS} characters")
    if len(re.findall(r"\bselect\b", sql, re.IGNORECASE)) > MAX_SELECTS:
        return Result(failure=Failure.TOO_LARGE, message=f"more than {MAX_SELECTS} SELECTs")
    connection.set_progress_handler(_budget(step_limit, time_limit), _STRIDE)
    try:
        with closing(connection.execute(sql)) as cursor:
            rows = tuple(cursor.fetchmany(row_limit + 1))
            columns = len(cursor.description or ())
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # ValueError: text that SQLite does not take
        return Result(failure=_failure(error), message=str(error))
    finally:
        connection.set_progress_handler(None, 0)
    if not columns:
        return Result(failure=Failure.EMPTY, message="nothing that returns rows")
    if len(rows) > row_limit:
        return Result(failure=Failure.TOO_MANY_ROWS, message=f"more than {row_limit} rows")
    return Result(rows, columns)


def same_result(got: Result, want: Result, *, ordered: bool) -> bool:
    """Say whether two results are equal: row by row if `ordered`, as multisets of rows if not.

    Numbers are equal up to rounding (a relative 1e-9), so 3 equals 3.0; text equals only text, so '3' does not. Columns
    may come in any order, the same for all rows, and their names do not count: a question that asks for a city and a
    number says neither which comes first nor what to call it. A failure equals nothing.
    """
    if got.failure or want.failure or got.columns != want.columns or len(got.rows) != len(want.rows):
        return False
    # No gold query has more than two columns; four, and their 24 orders, leave room.
    orders = itertools.permutations(range(got.columns)) if got.columns <= 4 else [range(got.columns)]
    return any(_same_rows([[row[i] for i in order] for row in got.rows], want.rows, ordered) for order in orders)


def _same_rows(got: Sequence[Row], want: Sequence[Row], ordered: bool) -> bool:
    """Compare equally many rows of equal width."""
    if not ordered:
        got, want = sorted(got, key=_sort_key), sorted(want, key=_sort_key)
    return all(_same_value(*pair) for rows in zip(got, want, strict=True) for pair in zip(*rows, strict=True))


def _same_value(got: Value, want: Value) -> bool:
    """Compare two values."""
    if isinstance(got, int | float) and isinstance(want, int | float):
        return math.isclose(got, want, rel_tol=1e-9)
    return type(got) is type(want) and got == want


def _sort_key(row: Row) -> list[tuple[str, str, float]]:
    """Give a key that sorts rows of any types, and puts numbers that differ only by rounding in one place."""
    return [
        ("", "", float(f"{value:.9g}")) if isinstance(value, int | float) else (type(value).__name__, str(value), 0.0)
        for value in row
    ]


def _authorizer(tables: Collection[str]) -> Callable[..., int]:
    """Give the callback with which SQLite asks, for everything that a query does, whether it may."""

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        # To read: `first` is a table and `second` a column, or "" where no column is (COUNT(*)). To call: `second`.
        read = action == sqlite3.SQLITE_READ and (first in tables or not second)
        call = action == sqlite3.SQLITE_FUNCTION and second is not None and second.lower() in FUNCTIONS
        return sqlite3.SQLITE_OK if read or call or action == sqlite3.SQLITE_SELECT else sqlite3.SQLITE_DENY

    return authorize


def _budget(steps: int, seconds: float) -> Callable[[], bool]:
    """Give the callback that stops a query, by being true, once its steps or its seconds are used up."""
    spent = itertools.count(_STRIDE, _STRIDE)
    deadline = time.monotonic() + seconds
    return lambda: next(spent) > steps or time.monotonic() > deadline


def _failure(error: Exception) -> Failure:
    """Give the failure that an exception of sqlite3 stands for."""
    code, message = getattr(error, "sqlite_errorname", ""), str(error)
    if code == "SQLITE_INTERRUPT":
        return Failure.TOO_LONG
    if code == "SQLITE_AUTH" or message.startswith("not authorized"):
        return Failure.FORBIDDEN
    if code == "SQLITE_TOOBIG" or message.startswith(("too many", "Expression tree is too large")):
        return Failure.TOO_LARGE
    if "one statement" in message:
        return Failure.STATEMENTS
    if message.startswith(("no such", "ambiguous column")):
        return Failure.UNKNOWN_NAME
    if any(sign in message for sign in ("syntax error", "incomplete input", "unrecognized token", "null character")):
        return Failure.SYNTAX
    return Failure.OTHER

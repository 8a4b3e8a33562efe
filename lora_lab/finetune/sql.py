"""Run SQL that a model wrote, so that it can neither harm nor hang, and compare what two queries return.

A model's answer is untrusted text. Five fences stand around it, and none of them depends on reading the text:

- the database lives in memory, is read-only, and is built anew for every question;
- SQLite's authorizer lets a query select, read the tables it was shown and call the functions in `FUNCTIONS`; everything else
  (writing, PRAGMA, ATTACH, loading extensions, recursion, the clock, random numbers) is refused before the query runs;
- SQLite's own limits bound the text of a query and every value it makes, so that no single operation can take long;
- a query may run a fixed number of steps of SQLite's virtual machine, the same number on a slow machine and on a fast one, and
  behind it stands a limit in seconds;
- a query may return a fixed number of rows.

`run_query` never raises for a bad query: what went wrong is a `Failure`. Standard library only.
"""

import itertools
import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["FUNCTIONS", "Failure", "Result", "open_database", "run_query", "same_result"]

# What a query may call: pure functions of their arguments. No clock, no random numbers, no allocation by size, no files.
FUNCTIONS = frozenset(
    "abs avg coalesce count dense_rank glob group_concat ifnull iif instr length like lower ltrim max min nullif rank replace"
    " round row_number rtrim substr substring sum total trim typeof upper".split()
)

# A gold query has one SELECT and under 200 characters. SQLite copies a common table expression wherever it is named, before it
# counts a single step, so the number of SELECTs bounds the time to prepare a query: each may multiply the copies by 64.
MOST_CHARACTERS = 500
MOST_SELECTS = 3

_LIMITS = {
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_COLUMN: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 4,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_LENGTH: 4_000,  # bytes of one value or one row
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

_STRIDE = 1_000  # virtual machine steps between two looks at the budget

Value = str | int | float | bytes | None


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
    """What a query returned: its rows and the number of their columns, or a failure with SQLite's own message."""

    rows: tuple[tuple[Value, ...], ...] = ()
    columns: int = 0
    failure: Failure | None = None
    message: str = ""


def open_database(script: str) -> sqlite3.Connection:
    """Give a read-only database in memory, built by an SQL script, on which only plain reads are allowed.

    Args:
        script: CREATE TABLE and INSERT statements. It is trusted: it runs before the fences go up.

    Raises:
        ValueError: SQLite does not run the script.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.executescript(script)
    except sqlite3.Error as error:
        connection.close()
        raise ValueError(f"script must be SQL that SQLite runs, got {script[:200]!r}: {error}") from error
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
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
    step_limit: int = 1_000_000,
    time_limit: float = 5.0,
    row_limit: int = 1_000,
) -> Result:
    """Give the rows that one query returns on a database of `open_database`, or the named failure it ends in.

    Args:
        connection: from `open_database`.
        sql: any text at all.
        step_limit: steps of SQLite's virtual machine, counted by the thousand. Deterministic: it decides, not the clock.
        time_limit: seconds; a backstop, generous so that a busy machine does not change a score.
        row_limit: rows; one more is a failure.

    Raises:
        ValueError: a limit is not positive.
    """
    for name, limit in {"step_limit": step_limit, "time_limit": time_limit, "row_limit": row_limit}.items():
        if not limit > 0:
            raise ValueError(f"{name} must be positive, got {limit!r}")
    if len(sql) > MOST_CHARACTERS:
        return Result(failure=Failure.TOO_LARGE, message=f"more than {MOST_CHARACTERS} characters")
    if len(re.findall(r"\bselect\b", sql, re.IGNORECASE)) > MOST_SELECTS:
        return Result(failure=Failure.TOO_LARGE, message=f"more than {MOST_SELECTS} SELECTs")
    connection.set_progress_handler(_budget(step_limit, time_limit), _STRIDE)
    try:
        cursor = connection.execute(sql)
        rows = tuple(cursor.fetchmany(row_limit + 1))
        columns = len(cursor.description or ())
        cursor.close()
    except (
        sqlite3.Error,
        sqlite3.Warning,
        ValueError,
    ) as error:  # ValueError: a null character or half a surrogate pair
        return Result(failure=_failure(error), message=str(error))
    finally:
        connection.set_progress_handler(None, 0)
    if columns == 0:
        return Result(failure=Failure.EMPTY, message="nothing but blanks and comments")
    if len(rows) > row_limit:
        return Result(failure=Failure.TOO_MANY_ROWS, message=f"more than {row_limit} rows")
    return Result(rows=rows, columns=columns)


def same_result(got: Result, want: Result, *, ordered: bool) -> bool:
    """Say whether two results are equal: row for row if `ordered`, else as multisets of rows.

    Numbers are equal within a relative 1e-9, so the integer 3 equals 3.0 and the order of a sum does not matter; text equals
    text alone ('3' is not 3). The names of columns do not count, and neither does their order, as long as one order
    serves for all rows: a question that asks for two things seldom says which comes first. A failure equals nothing.
    """
    if got.failure or want.failure or got.columns != want.columns or len(got.rows) != len(want.rows):
        return False
    if got.columns > 4:  # 5! orders and more are never worth trying: no question asks for so many columns
        return _same_rows(got.rows, want.rows, ordered)
    orders = itertools.permutations(range(want.columns))
    return any(_same_rows([tuple(row[i] for i in order) for row in got.rows], want.rows, ordered) for order in orders)


def _same_rows(got: Iterable[tuple[Value, ...]], want: Iterable[tuple[Value, ...]], ordered: bool) -> bool:
    """Compare rows of equal number and width."""
    if not ordered:
        got, want = sorted(got, key=_row_key), sorted(want, key=_row_key)
    return all(_same_value(a, b) for row, other in zip(got, want, strict=True) for a, b in zip(row, other, strict=True))


def _same_value(a: Value, b: Value) -> bool:
    """Compare two values of a result."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-9)
    return type(a) is type(b) and a == b


def _row_key(row: tuple[Value, ...]) -> tuple[tuple[str, str, float], ...]:
    """Give a key that sorts rows of any types, numbers that differ only by rounding side by side."""
    return tuple(
        ("number", "", float(f"{value:.9g}"))
        if isinstance(value, int | float)
        else (type(value).__name__, str(value), 0.0)
        for value in row
    )


def _authorizer(tables: list[str]) -> Callable[[int, str | None, str | None, str | None, str | None], int]:
    """Give the callback that allows plain reads of these tables and refuses everything else."""

    def authorize(
        action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None
    ) -> int:
        # For a read `first` is the table, `second` the column ('' if none is used: COUNT(*)). For a call `second` is the function.
        allowed = (
            action == sqlite3.SQLITE_SELECT
            or (action == sqlite3.SQLITE_READ and (first in tables or not second))
            or (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in FUNCTIONS)
        )
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    return authorize


def _budget(steps: int, seconds: float) -> Callable[[], bool]:
    """Give the callback that is true, and stops the query, once so many steps or seconds are used up."""
    ticks = itertools.count(1)
    deadline = time.monotonic() + seconds
    return lambda: next(ticks) * _STRIDE > steps or time.monotonic() > deadline


def _failure(error: Exception) -> Failure:
    """Give the failure that an exception of the sqlite3 module stands for."""
    code, message = getattr(error, "sqlite_errorname", ""), str(error)
    if code == "SQLITE_INTERRUPT":
        return Failure.TOO_LONG
    if code == "SQLITE_AUTH" or "not authorized" in message:
        return Failure.FORBIDDEN
    if code == "SQLITE_TOOBIG" or message.startswith("too many"):
        return Failure.TOO_LARGE
    if "one statement" in message:
        return Failure.STATEMENTS
    if message.startswith(("no such", "ambiguous column")):
        return Failure.UNKNOWN_NAME
    if any(sign in message for sign in ("syntax error", "incomplete input", "unrecognized token", "null character")):
        return Failure.SYNTAX
    return Failure.OTHER

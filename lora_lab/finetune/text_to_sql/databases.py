"""Databases on which a query that is nearly right returns something else than the gold query.

On random rows near misses pass: > for >= where no row has the value itself, a forgotten condition where the largest row
meets it anyway, DISTINCT where nothing occurs twice. So the rows are chosen for the gold query, clause by clause:

- WHERE: the value and its neighbours occur; some rows meet the condition, some do not;
- a function of the rows that meet it: their numbers are all lower than those of the others, or in every other database
  all higher, and the row that only just meets it has the extreme one;
- ORDER BY: no ties, so that one order is right;
- HAVING: groups just below, at and just above the value, and one whose average, largest and smallest number disagree;
- JOIN: parents on both sides of the condition have children, and one has none;
- everywhere: categories and labels repeat, and keys are no row numbers.

There are no NULLs: nothing in a schema says that a value may be missing, so no answer is wrong for what it does then.
"""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from lora_lab.finetune.text_to_sql.domains import Column, Table
from lora_lab.finetune.text_to_sql.queries import Condition, Query, literal

__all__ = ["FILLS", "database_scripts"]

FILLS = 4

Value = str | int | float
Row = dict[str, Value]
Item = TypeVar("Item")


def database_scripts(query: Query) -> tuple[str, ...]:
    """Give the SQL scripts of `FILLS` databases; for the same query the same ones, on every platform."""
    return tuple(_script(query, _fill(query, index)) for index in range(FILLS))


def _script(query: Query, rows_of: Mapping[str, list[Row]]) -> str:
    """Give the SQL that makes and fills the tables."""
    lines = []
    for table in query.domain:
        lines.append(f"{table.schema};")
        rows = (", ".join(literal(value) for value in row.values()) for row in rows_of[table.name])
        lines += [f"INSERT INTO {table.name} VALUES ({row});" for row in rows]
    return "\n".join(lines)


def _fill(query: Query, index: int) -> dict[str, list[Row]]:
    """Give the rows of every table, by its name."""
    rng = random.Random(f"{index} {query.sql}")
    rows_of: dict[str, list[Row]] = {}
    for table in query.domain:
        rows: list[Row] = [{} for _ in range(_row_count(query, table, index))]
        for column in table.columns:
            _set(rows, column, _values(column, len(rows), rng))
        if table.parent:
            _set(rows, table.columns[-1], _parents([row["id"] for row in rows_of[table.parent]], len(rows), rng))
        rows_of[table.name] = rows
    rows = rows_of[query.table.name]
    if query.where:
        compared = rows_of[query.where.table.name]
        _set(compared, query.where.column, _around(query.where, len(compared), rng))
        if query.function and query.column:
            key = query.table.columns[-1].name
            meeting = [next(p for p in compared if p["id"] == row[key]) for row in rows] if query.join else rows
            _deal(rows, query.column, [_level(query.where, row) for row in meeting], index, rng)
    if query.order:
        _set(rows, query.order[0], _sample(query.order[0].values, len(rows), rng))
    if query.group and query.having:
        if query.column:
            _fill_groups(rows, query.group, query.column, query.having[1], index, rng)
        else:
            names, sizes = _sample(query.group.values, 4, rng), _group_sizes(query.having[1])
            members = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
            _set(rows, query.group, _sample(members, len(members), rng))
    return rows_of


def _row_count(query: Query, table: Table, index: int) -> int:
    """Give the number of rows of a table: 12 to 18, but as many as the clauses about it need."""
    if table == query.table and query.having and not query.column:
        return sum(_group_sizes(query.having[1]))
    if table == query.join:
        return 6
    if table != query.table and table.parent and index == FILLS - 1:
        return 0  # children that the question is not about: a needless join finds nothing
    return 12 + 2 * index


def _group_sizes(value: float) -> list[int]:
    """Give sizes of groups around the value that COUNT(*) is compared with."""
    return [int(value) + more for more in (-1, 0, 1, 2)]


def _values(column: Column, count: int, rng: random.Random) -> Sequence[Value]:
    """Give values for a column that no clause is about: few different ones, so that they repeat."""
    if column.role == "key":
        return _sample(range(1, 100), count, rng)
    some = _sample(column.values, 6 if column.role == "number" else 4, rng)
    return [_pick(some, rng) for _ in range(count)]


def _parents(keys: Sequence[Value], count: int, rng: random.Random) -> list[Value]:
    """Give every child the key of its parent: the first three parents have children, the last has none."""
    return [keys[i] if i < 3 else _pick(keys[:-1], rng) for i in range(count)]


def _around(where: Condition, count: int, rng: random.Random) -> list[Value]:
    """Give values for the column of a condition: the first meets it, the second does not, many are close to it."""
    values = where.column.values
    if where.operator == "=":
        others = [value for value in values if value != where.value]
        equal = [i in (0, 2, 3) or (i > 3 and rng.random() < 0.3) for i in range(count)]
        return [where.value if meets else _pick(others, rng) for meets in equal]
    at = values.index(where.value)
    near = [values[at + 1], values[at], values[at - 1]]
    if where.operator == "<":
        near.reverse()
    return near + [_pick(near if rng.random() < 0.5 else values, rng) for _ in range(count - 3)]


def _level(where: Condition, row: Row) -> float:
    """Give where a row stands on the scale of a condition: its number, or for categories 1 if equal and 0 if not."""
    value = row[where.column.name]
    return float(value == where.value) if isinstance(value, str) else value


def _deal(rows: Sequence[Row], column: Column, levels: Sequence[float], index: int, rng: random.Random) -> None:
    """Make the numbers of a column rise with the level of their rows, in every other database fall.

    Rows on the same level share some numbers, so that DISTINCT makes a difference; others never do.
    """
    numbers = sorted(_sample(column.values, len(rows), rng), reverse=index % 2 == 1)
    order = sorted(range(len(rows)), key=lambda i: levels[i])
    for place, i in enumerate(order):
        shared = place % 3 == 1 and levels[i] == levels[order[place - 1]]
        rows[i][column.name] = numbers[place - 1 if shared else place]


def _fill_groups(
    rows: Sequence[Row], group: Column, column: Column, value: float, index: int, rng: random.Random
) -> None:
    """Make three groups of one number each, just below, at and just above a value, and a fourth whose numbers disagree.

    The fourth has one number three times on one side of the value, and another once on the other side, in the first or
    in the last of all rows. So its average is on the one side; the middle of its two numbers, and its largest or
    smallest, are on the other.
    """
    names, at = _sample(group.values, 4, rng), column.values.index(value)
    side = 1 if index % 2 == 0 else -1
    cells = [(names[3], column.values[at - 3 * side])] * 3
    cells += [(names[i % 3], column.values[at - 1 + i % 3]) for i in range(len(rows) - 4)]
    cells = _sample(cells, len(cells), rng)
    cells.insert(0 if index < 2 else len(cells), (names[3], column.values[at + 6 * side]))
    _set(rows, group, [name for name, _ in cells])
    _set(rows, column, [number for _, number in cells])


def _set(rows: Sequence[Row], column: Column, values: Sequence[Value]) -> None:
    """Write a column."""
    for row, value in zip(rows, values, strict=True):
        row[column.name] = value


def _pick(items: Sequence[Item], rng: random.Random) -> Item:
    """Choose an item. (Of the methods of `random.Random`, `random` alone is promised to stay the same for ever.)"""
    return items[int(rng.random() * len(items))]


def _sample(items: Sequence[Item], count: int, rng: random.Random) -> list[Item]:
    """Choose distinct items, in random order; all of them if there are no more."""
    return sorted(items, key=lambda _: rng.random())[:count]

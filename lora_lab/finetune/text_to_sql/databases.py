"""Databases on which a query that is nearly right returns something else than the gold query.

Random rows alone would let near misses through: > for >= where no row has the value itself, a forgotten condition where the
largest row meets it anyway, DISTINCT where nothing occurs twice. So each part of a gold query has its own care taken:

- WHERE: the value itself and its neighbours occur; some rows meet the condition, some do not;
- a function of the rows that meet it: their values are all lower than the others', or all higher, from fill to fill, and the
  row nearest to the threshold is the extreme one;
- ORDER BY: no ties, so that one order alone is right;
- HAVING: groups just below, at and just above the value, and one whose average, largest and smallest value disagree;
- JOIN: parents on both sides of the condition have children, and one has none;
- everywhere: categories and labels repeat, and keys are no row numbers. There are no NULLs: nothing tells a reader of the
  schema that a value may be missing, so no answer is wrong for what it does about them.
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
    """Give the SQL scripts of `FILLS` databases for a gold query; the same ones for the same query, on every platform."""
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
            _set(rows, column, _values(column, index, len(rows), rng))
        if table.parent:
            _set(rows, table.columns[-1], _keys([row["id"] for row in rows_of[table.parent]], len(rows), rng))
        rows_of[table.name] = rows
    rows = rows_of[query.table.name]
    if query.where:
        compared = rows_of[query.where.table.name]
        _set(compared, query.where.column, _around(query.where, len(compared), rng))
    if query.order:
        _set(rows, query.order[0], _sample(query.order[0].values, len(rows), rng))
    if query.having:
        _fill_groups(query, rows, index, rng)
    elif query.where and query.function and query.column:
        _deal(query.column, rows, _levels(query, rows_of), index, rng)
    return rows_of


def _row_count(query: Query, table: Table, index: int) -> int:
    """Give the number of rows of a table: from 12 to 18 where it matters."""
    if query.having and query.function == "COUNT" and table is query.table:
        return sum(_group_sizes(query))
    if table is query.join:
        return 6
    if table is not query.table and table.parent and index == FILLS - 1:
        return 0  # children that nobody asks for are missing once: a needless join finds nothing
    return 12 + 2 * index


def _values(column: Column, index: int, count: int, rng: random.Random) -> Sequence[Value]:
    """Give values for a column that the query takes no interest in: a few different ones, that repeat."""
    if column.role == "key":
        return _sample(range(1, 100), count, rng)
    different = {"text": 4, "number": 6, "label": 12 if index % 2 == 0 else 2}[column.role]
    some = _sample(column.values, different, rng)
    return [_pick(some, rng) for _ in range(count)]


def _keys(parents: Sequence[Value], count: int, rng: random.Random) -> list[Value]:
    """Give each child its parent: the first three have children, and the last has none."""
    return [parents[i] if i < 3 else _pick(parents[:-1], rng) for i in range(count)]


def _around(where: Condition, count: int, rng: random.Random) -> list[Value]:
    """Give values for the column of a condition: the first meets it, the second does not, many are close to its value."""
    values = where.column.values
    if where.operator == "=":
        others = [value for value in values if value != where.value]
        return [where.value if i in (0, 2, 3) or (i > 3 and rng.random() < 0.3) else _pick(others, rng) for i in range(count)]
    at = values.index(where.value)
    below, same, above = values[at - 1 : at + 2]
    first = [above, same, below] if where.operator == ">" else [below, same, above]
    near = [_pick(first, rng) if rng.random() < 0.5 else _pick(values, rng) for _ in range(count - 3)]
    return [*first, *near]


def _levels(query: Query, rows_of: Mapping[str, list[Row]]) -> list[float]:
    """Give, for each row asked about, where it stands on the scale of the condition: its number, or whether it is equal."""
    where = query.where
    assert where is not None
    rows = rows_of[query.table.name]
    if query.join:
        parents = {row["id"]: row for row in rows_of[query.join.name]}
        rows = [parents[row[f"{query.join.name}_id"]] for row in rows]
    found = [row[where.column.name] for row in rows]
    return [float(value == where.value if isinstance(value, str) else value) for value in found]


def _deal(column: Column, rows: Sequence[Row], levels: Sequence[float], index: int, rng: random.Random) -> None:
    """Make the values of a column rise with the level of the row, or fall in every other fill.

    Rows on one level share some values, so that DISTINCT matters; rows on different levels never do.
    """
    dealt = sorted(_sample(column.values, len(rows), rng), reverse=index % 2 == 1)
    order = sorted(range(len(rows)), key=lambda i: levels[i])
    for place, i in enumerate(order):
        repeats = place % 3 == 1 and levels[i] == levels[order[place - 1]]
        rows[i][column.name] = dealt[place - 1 if repeats else place]


def _group_sizes(query: Query) -> list[int]:
    """Give the sizes of the groups for HAVING COUNT(*): one below the value, the value, and above it."""
    assert query.having is not None
    return [int(query.having[1]) + more for more in (-1, 0, 1, 2)]


def _fill_groups(query: Query, rows: Sequence[Row], index: int, rng: random.Random) -> None:
    """Make four groups that a HAVING at, just below or just above the right value tells apart."""
    assert query.group is not None and query.having is not None
    names = _sample(query.group.values, 4, rng)
    if not query.column:
        members = [name for name, size in zip(names, _group_sizes(query), strict=True) for _ in range(size)]
        _set(rows, query.group, _sample(members, len(rows), rng))
        return
    # Three groups of one number each: below, at and above the value. The fourth has three times a number on one side and once,
    # first or last of all rows, one on the other: its average is on the one side, the middle of the two on the other.
    values, at = query.column.values, query.column.values.index(query.having[1])
    side = 1 if index % 2 == 0 else -1
    odd = (names[3], values[at + side * 6])
    pairs = [(names[3], values[at - side * 3])] * 3
    pairs += [(names[i % 3], values[at - 1 + i % 3]) for i in range(len(rows) - 4)]
    pairs = _sample(pairs, len(pairs), rng)
    pairs = [odd, *pairs] if index < 2 else [*pairs, odd]
    _set(rows, query.group, [name for name, _ in pairs])
    _set(rows, query.column, [value for _, value in pairs])


def _set(rows: Sequence[Row], column: Column, values: Sequence[Value]) -> None:
    """Write a column."""
    for row, value in zip(rows, values, strict=True):
        row[column.name] = value


def _pick(items: Sequence[Item], rng: random.Random) -> Item:
    """Choose an item. Of the methods of `random.Random` only `random()` is promised to give the same numbers for ever."""
    return items[int(rng.random() * len(items))]


def _sample(items: Sequence[Item], count: int, rng: random.Random) -> list[Item]:
    """Choose distinct items, in random order; all of them if there are no more."""
    return sorted(items, key=lambda _: rng.random())[:count]

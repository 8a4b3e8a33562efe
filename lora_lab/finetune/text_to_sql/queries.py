"""The gold queries: every query of eight kinds that can be asked about a domain."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_lab.finetune.text_to_sql.domains import Column, Domain, Table

__all__ = ["KINDS", "Condition", "Query", "all_queries", "literal"]

KINDS = ("count", "filter", "aggregate", "order", "limit", "group", "having", "join")


@dataclass(frozen=True)
class Condition:
    """What WHERE asks of a row: that its `column` is equal to (=), above (>) or below (<) `value`."""

    table: Table
    column: Column
    operator: str
    value: str | int | float


@dataclass(frozen=True)
class Query:
    """A gold query by its parts, from which the SQL, the question and the databases are made.

    Attributes:
        kind: one of `KINDS`.
        domain: the tables of the schema.
        table: the one whose rows the query is about.
        function: "" (list the column), "COUNT", or an aggregate of the column.
        column: the column listed or aggregated; None for COUNT.
        where: the condition on rows, if any.
        join: the parent table, if the condition is about it.
        group: the column that rows are grouped by, if any.
        having: the operator and the value that the function of a group is compared with, if any.
        order: the column that rows are sorted by and "ASC" or "DESC", if any.
        limit: the number of rows, if limited.
    """

    kind: str
    domain: Domain
    table: Table
    function: str = ""
    column: Column | None = None
    where: Condition | None = None
    join: Table | None = None
    group: Column | None = None
    having: tuple[str, int | float] | None = None
    order: tuple[Column, str] | None = None
    limit: int | None = None

    @property
    def sql(self) -> str:
        """Give the SQL text."""
        clauses = [f"SELECT {self._selected()} FROM {self.table.name}"]
        if self.join:
            clauses.append(f"JOIN {self.join.name} ON {self.table.name}.{self.join.name}_id = {self.join.name}.id")
        if self.where:
            column = self._qualified(self.where.table, self.where.column)
            clauses.append(f"WHERE {column} {self.where.operator} {literal(self.where.value)}")
        if self.group:
            clauses.append(f"GROUP BY {self.group.name}")
        if self.having:
            clauses.append(f"HAVING {self._value()} {self.having[0]} {self.having[1]}")
        if self.order:
            clauses.append(f"ORDER BY {self.order[0].name} {self.order[1]}")
        if self.limit:
            clauses.append(f"LIMIT {self.limit}")
        return " ".join(clauses)

    @property
    def variant(self) -> tuple[str, ...]:
        """Give what tells the sorts of one kind apart: its function, its comparisons, its direction."""
        return (
            self.function,
            self.where.operator if self.where else "",
            self.having[0] if self.having else "",
            self.order[1] if self.order else "",
        )

    def _selected(self) -> str:
        """Give what stands after SELECT."""
        if not self.group:
            return self._value()
        return self.group.name if self.having else f"{self.group.name}, {self._value()}"

    def _value(self) -> str:
        """Give what is listed or computed: a column, COUNT(*), or a function of a column."""
        if not self.column:
            return f"{self.function}(*)"
        name = self._qualified(self.table, self.column)
        return f"{self.function}({name})" if self.function else name

    def _qualified(self, table: Table, column: Column) -> str:
        """Give the name of a column, with that of its table where there are two."""
        return f"{table.name}.{column.name}" if self.join else column.name


def literal(value: str | int | float) -> str:
    """Give a value as it is written in SQL."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def all_queries(domain: Domain) -> Iterator[Query]:
    """Give every gold query about a domain, each once."""
    for table in domain:
        yield from _queries_of_rows(domain, table)
        yield from _queries_of_groups(domain, table)
    if len(domain) == 2:
        yield from _queries_of_two_tables(domain)


def _queries_of_rows(domain: Domain, table: Table) -> Iterator[Query]:
    """Give the queries that count, list, aggregate or sort the rows of one table."""
    numbers = table.of_role("number")
    for where in _conditions(table, "text", "number"):
        yield Query("count", domain, table, "COUNT", where=where)
        yield Query("filter", domain, table, column=table.label, where=where)
    for where, column in itertools.product(_conditions(table, "text"), numbers):
        for function in column.aggregates:
            yield Query("aggregate", domain, table, function, column, where)
        for direction in ("ASC", "DESC"):
            yield Query("order", domain, table, column=table.label, where=where, order=(column, direction))
    for column, direction, limit in itertools.product(numbers, ("ASC", "DESC"), range(2, 10)):
        yield Query("limit", domain, table, column=table.label, order=(column, direction), limit=limit)


def _queries_of_groups(domain: Domain, table: Table) -> Iterator[Query]:
    """Give the queries that put the rows of one table in groups."""
    for group in table.of_role("text"):
        yield Query("group", domain, table, "COUNT", group=group)
        for operator, size in itertools.product("><", range(2, 6)):
            yield Query("having", domain, table, "COUNT", group=group, having=(operator, size))
        for column in table.of_role("number"):
            for function in column.aggregates:
                yield Query("group", domain, table, function, column, group=group)
            # No HAVING SUM: a sum depends on the size of the group, so no value is in the middle for all of them.
            functions = [function for function in column.aggregates if function != "SUM"]
            for function, operator, value in itertools.product(functions, "><", _thresholds(column)[2:-2]):
                yield Query("having", domain, table, function, column, group=group, having=(operator, value))


def _queries_of_two_tables(domain: Domain) -> Iterator[Query]:
    """Give the queries about those rows of the child whose parent meets a condition."""
    parent, child = domain
    for where in _conditions(parent, "text", "number"):
        yield Query("join", domain, child, "COUNT", where=where, join=parent)
        yield Query("join", domain, child, column=child.label, where=where, join=parent)
        for column in child.of_role("number"):
            for function in column.aggregates:
                yield Query("join", domain, child, function, column, where, join=parent)


def _conditions(table: Table, *roles: str) -> Iterator[Condition]:
    """Give every condition on the columns of these roles: categories are equal, numbers above or below."""
    for column in table.columns:
        if column.role in roles:
            values, operators = (column.values, "=") if column.role == "text" else (_thresholds(column), "><")
            yield from (Condition(table, column, operator, value) for value in values for operator in operators)


def _thresholds(column: Column) -> Sequence[int | float]:
    """Give eight values that numbers are compared with, from the inner 60 % of the column's range."""
    last = len(column.values) - 1
    values = [column.values[round(last * (0.2 + 0.6 * i / 7))] for i in range(8)]
    return [value for value in values if not isinstance(value, str)]

"""Queries said in English: sentences, the words that fill them, and which of both are held out."""

from collections.abc import Mapping

from lora_lab.finetune.text_to_sql.queries import Condition, Query

__all__ = ["question", "sentences"]

Words = Mapping[str, str]

# {things} and {thing} are the rows asked about with their condition ("hotels whose city is Rome"), {rows} is the bare
# plural, {what} is what is computed of a group ("average price of hotels"). The other slots are words of the query.
_SENTENCES = {
    "count": (
        "How many {things} are there?",
        "Count the {things}.",
        "What is the number of {things}?",
        "Give the number of {things}.",
        "Tell me how many {things} exist.",
        "Find the number of all {things}.",
    ),
    "filter": (
        "List the {label} of every {thing}.",
        "Show the {label} of all {things}.",
        "What is the {label} of each {thing}?",
        "Find all {things} and give the {label}.",
        "Give me the {label} of the {things}.",
        "Which {things} are there? Return the {label}.",
    ),
    "aggregate": (
        "What is the {function} {column} of {things}?",
        "Find the {function} {column} of all {things}.",
        "Give the {function} {column} for {things}.",
        "For {things}, what is the {function} {column}?",
        "Show the {function} {column} of the {things}.",
        "Compute the {function} {column} of every {thing}.",
    ),
    "order": (
        "List the {label} of {things}, sorted by {column} {direction}.",
        "Sort {things} by {column} {direction} and show the {label}.",
        "Show the {label} of all {things} ordered by {column} {direction}.",
        "Order the {things} by {column} {direction}. Give the {label}.",
        "By {column} {direction}, list the {label} of every {thing}.",
        "What is the {label} of each {thing}, by {column} {direction}?",
    ),
    "limit": (
        "List the {label} of the {limit} {rows} with the {extreme} {column}.",
        "Which {limit} {rows} have the {extreme} {column}? Show the {label}.",
        "Show the {limit} {rows} with the {extreme} {column}, only the {label}.",
        "Find the {limit} {rows} of {extreme} {column} and give the {label}.",
        "Give the {label} of the {limit} {rows} that have the {extreme} {column}.",
        "What is the {label} of each of the {limit} {rows} with the {extreme} {column}?",
    ),
    "group": (
        "For each {group}, show the {what}.",
        "What is the {what} for each {group}?",
        "Show each {group} and the {what}.",
        "Give the {what} per {group}.",
        "List every {group} with the {what}.",
        "Find the {what} of every {group}.",
    ),
    "having": (
        "For which {group} is the {what} {than} {threshold}?",
        "List every {group} where the {what} is {than} {threshold}.",
        "In which {group} is the {what} {than} {threshold}?",
        "Show each {group} with {what} {than} {threshold}.",
        "Find each {group} whose {what} is {than} {threshold}.",
        "Give the {group} if the {what} is {than} {threshold}.",
    ),
}

_HELD_OUT_SENTENCES = {
    "count": (
        "I want to know how many {things} we have.",
        "Of {things}, how many do you find?",
        "Determine the size of the set of {things}.",
    ),
    "filter": (
        "I would like to see the {label} of {things}.",
        "Name, by {label}, every {thing}.",
        "Look up {things}: the {label} only.",
    ),
    "aggregate": (
        "Consider only {things} and report the {function} {column}.",
        "Tell me the {function} {column} among {things}.",
        "I need to know the {function} {column} across {things}.",
    ),
    "order": (
        "Arrange {things} by {column}, {direction}, and print the {label}.",
        "I want the {label} of {things} ranked by {column}, {direction}.",
        "Put {things} in order of {column}, {direction}: the {label} only.",
    ),
    "limit": (
        "Name the {limit} {rows} by {label} whose {column} is {extreme}.",
        "I want the {label} of {limit} {rows}, those of {extreme} {column}.",
        "Tell me the {limit} {rows} ranking {extreme} in {column}: the {label} only.",
    ),
    "group": (
        "Break down the {what} by {group}.",
        "Split the {rows} by {group} and report the {what}.",
        "I would like a table of every {group} next to the {what}.",
    ),
    "having": (
        "I want each {group} for which the {what} comes out {than} {threshold}.",
        "Keep a {group} only when the {what} is {than} {threshold}.",
        "Name any {group} if its {what} turns out {than} {threshold}.",
    ),
}

_VOCABULARIES: tuple[Words, ...] = (
    {
        "equal": "whose {column} is {value}",
        "compared": "whose {column} is {than} {value}",
        ">": "above",
        "<": "below",
        "AVG": "average",
        "SUM": "total",
        "MAX": "highest",
        "MIN": "lowest",
        "ASC": "from lowest to highest",
        "DESC": "from highest to lowest",
    },
    {
        "equal": "with {column} {value}",
        "compared": "with {column} {than} {value}",
        ">": "greater than",
        "<": "less than",
        "AVG": "average",
        "SUM": "total",
        "MAX": "maximum",
        "MIN": "minimum",
        "ASC": "in ascending order",
        "DESC": "in descending order",
    },
    {
        "equal": "where the {column} is {value}",
        "compared": "where the {column} is {than} {value}",
        ">": "over",
        "<": "under",
        "AVG": "mean",
        "SUM": "summed",
        "MAX": "largest",
        "MIN": "smallest",
        "ASC": "with the smallest first",
        "DESC": "with the largest first",
    },
)

_HELD_OUT_VOCABULARIES: tuple[Words, ...] = (
    {
        "equal": "having {value} as {column}",
        "compared": "having {column} {than} {value}",
        ">": "higher than",
        "<": "lower than",
        "AVG": "arithmetic mean",
        "SUM": "combined",
        "MAX": "greatest",
        "MIN": "least",
        "ASC": "increasing",
        "DESC": "decreasing",
    },
    {
        "equal": "for which the {column} equals {value}",
        "compared": "for which the {column} is {than} {value}",
        ">": "bigger than",
        "<": "smaller than",
        "AVG": "averaged",
        "SUM": "accumulated",
        "MAX": "maximal",
        "MIN": "minimal",
        "ASC": "starting with the lowest",
        "DESC": "starting with the highest",
    },
)


def sentences(query: Query, *, held_out: bool) -> tuple[str, ...]:
    """Give the sentences in which a query can be asked for: either all are held out or none is.

    A join is asked for like the question about one table that it extends.
    """
    kind = query.kind
    if query.join:
        kind = {"": "filter", "COUNT": "count"}.get(query.function, "aggregate")
    return (_HELD_OUT_SENTENCES if held_out else _SENTENCES)[kind]


def question(query: Query, choice: int, *, held_out: bool) -> str:
    """Ask for a query in English.

    Args:
        query: what to ask for.
        choice: any natural number. As many choices in a row as there are sentences give different questions.
        held_out: whether sentence and vocabulary are held-out ones.
    """
    possible = sentences(query, held_out=held_out)
    vocabularies = _HELD_OUT_VOCABULARIES if held_out else _VOCABULARIES
    words = vocabularies[choice // len(possible) % len(vocabularies)]
    return possible[choice % len(possible)].format(**_slots(query, words))


def _slots(query: Query, words: Words) -> dict[str, str]:
    """Give what stands in the slots of a sentence."""
    belonging = f" of {query.join.plural}" if query.join else ""
    condition = f" {_condition(query.where, words)}" if query.where else ""
    slots = {
        "rows": query.table.plural,
        "things": query.table.plural + belonging + condition,
        "thing": query.table.name + belonging + condition,
        "label": query.table.label.words,
        "limit": str(query.limit),
    }
    if query.function == "COUNT":
        slots["what"] = f"number of {query.table.plural}"
    elif query.function and query.column:
        slots |= {"function": words[query.function], "column": query.column.words}
        slots["what"] = f"{words[query.function]} {query.column.words} of {query.table.plural}"
    if query.order:
        column, direction = query.order
        slots |= {"column": column.words, "direction": words[direction]}
        slots["extreme"] = words["MAX" if direction == "DESC" else "MIN"]
    if query.group:
        slots["group"] = query.group.words
    if query.having:
        slots |= {"than": words[query.having[0]], "threshold": str(query.having[1])}
    return slots


def _condition(where: Condition, words: Words) -> str:
    """Say a condition in English."""
    form = words["equal" if where.operator == "=" else "compared"]
    return form.format(column=where.column.words, value=where.value, than=words.get(where.operator))

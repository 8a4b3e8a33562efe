"""Finding the query in what a model answered."""

import itertools
import re

__all__ = ["extract_query"]

_CODE = re.compile(r"```(?:\w*\n)?(.*?)(?:```|\Z)|`([^`]*)`", re.DOTALL)
_START = re.compile(
    r"\b(?:SELECT(?!`|\s*(?:\Z|clause|command|keyword|query|statement))|WITH\s+\w+\s+AS)\b", re.IGNORECASE
)
_STATEMENT = re.compile(r"""(?:'[^']*'|"[^"]*"|`[^`]*`|[^;])*+""")
_SENTENCE = re.compile(r"\s*[A-Z][a-z]+\b.*[.:!]\s*")


def extract_query(answer: str) -> str:
    """Read the query out of an answer, so that no model is marked down for what it writes around it.

    Looked at is the first piece of code (in backticks, three or one) with a SELECT in it, else the whole answer. There
    the query begins at the first SELECT, or WITH name AS, in capitals, else at the first in other letters. It ends
    before a semicolon outside quotes, a blank line, or a line that is a sentence. "" means that there is none.
    """
    code = [fenced or inline for fenced, inline in _CODE.findall(answer)]
    text = next(filter(_START.search, code), answer)
    start = min(_START.finditer(text), key=lambda match: not match[0][:4].isupper(), default=None)
    if start is None:
        return ""
    statement = _STATEMENT.match(text, start.start())
    lines = statement[0].splitlines() if statement else []
    kept = itertools.takewhile(lambda line: line.strip() and not _SENTENCE.fullmatch(line), lines)
    return "\n".join(kept).strip()

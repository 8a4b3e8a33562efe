"""The figures that papers print, kept as data, and the same figures computed; where the two differ, words say how.

A paper is one JSON file in ``data/papers/``; ``data/README.md`` says where its numbers come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.lowrank import parameter_count

Paper = dict[str, Any]

BYTES = 2  # of a number in 16 bits


@dataclass(frozen=True)
class Claim:
    """One figure of a paper beside the same figure from elsewhere.

    Attributes:
        where: the section, table or footnote that has it.
        what: what it is the figure of.
        written: the figure as it is printed.
        computed: the same figure, computed from other figures of the paper, or read in another of its tables.
        unit: the unit of both.
        difference: what to know where the two do not agree; empty where they do.
        source: where ``computed`` comes from.
    """

    where: str
    what: str
    written: float
    computed: float
    unit: str
    difference: str = ""
    source: str = "arithmetic"

    @property
    def agrees(self) -> bool:
        """Whether ``computed``, rounded to the digits that are printed, is what is printed."""
        _, _, decimals = str(self.written).partition(".")
        return round(self.computed, len(decimals)) == self.written

    def __str__(self) -> str:
        """Say both figures in one sentence, and the difference in another."""
        numbers = f"{self.written:,} {self.unit}; {self.source} gives {self.computed:,.4g}"
        return f"{self.where}, {self.what}: {numbers}. {self.difference}".rstrip()


def load_paper(name: str = "hu2021") -> Paper:
    """Give the stored figures of a paper: its tables as rows, and single statements.

    In the rows ``weights`` names the matrices of the attention that are adapted, a letter for each, as in "qv".

    Raises:
        FileNotFoundError: there is no paper of that name; the message lists those there are.
    """
    folder = Path(__file__).resolve().parents[2] / "data" / "papers"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.json"))) or "none"
        raise FileNotFoundError(f"no stored paper {name!r} in {folder}; there are: {known}")
    paper: Paper = json.loads(path.read_text(encoding="utf-8"))
    return paper


def gpt3_lora_parameters(weights: str = "qv", rank: int = 1) -> int:
    """Count the trainable parameters of LoRA on GPT-3: layers · matrices · rank · (d + d).

    GPT-3 has 96 layers, and each of its matrices for q, k, v and o counts as one of d × d with d = 12,288. So
    rank 1 on q and v, ``gpt3_lora_parameters("qv", 1)``, is 96 · 2 · 24,576 = 4,718,592, and that is 0.0027 % of 175
    billion.

    Args:
        weights: which matrices get an update, a letter for each: one or more of q, k, v and o.
        rank: the rank of each update.

    Raises:
        TypeError: rank is not a whole number, or weights not text.
        ValueError: weights is empty, or has a letter twice or another letter; rank is out of range.

    Source: Hu et al. (2021), section 5.1, |Θ| = 2 · L̂ · d · r for L̂ matrices.
    """
    if not isinstance(weights, str):
        raise TypeError(f"weights must be text like 'qv', got {weights!r}")
    if not weights or len(set(weights)) < len(weights) or not set(weights) <= set("qkvo"):
        raise ValueError(f"weights must be one or more of q, k, v and o, each once, got {weights!r}")
    gpt3 = load_paper()["gpt3"]
    layers, d = gpt3["layers"], gpt3["d_model"]
    return layers * len(weights) * parameter_count(d, d, rank)


def claims() -> tuple[Claim, ...]:
    """Give the figures of Hu et al. (2021) that this course leans on, each beside its own computation."""
    paper = load_paper()
    return (*_counts(paper), *_other_counts(paper), *_sizes(paper), *_speeds(paper), *_scores(paper))


def discrepancies() -> tuple[Claim, ...]:
    """Give the claims whose printed figure is not what arithmetic, or another table, gives."""
    return tuple(claim for claim in claims() if not claim.agrees)


def _counts(paper: Paper) -> Iterator[Claim]:
    """Give the counts of LoRA's parameters."""
    half = "It is half of that: the rank must be 4, as table 15 says."
    for row in paper["statements"]["setups_of_table_4"]:
        wrong = half if (row["weights"], row["rank"]) == ("qkvo", 2) else ""
        yield _count(row["where"], row, wrong)
    budget = paper["statements"]["budget_of_table_5"]
    row = _row(paper, "table_5", "qv", 4) | {"trainable_millions": budget["trainable_millions"]}
    yield _count(budget["where"], row, "The paper cuts the digits off; rounded it is 18.9.")
    cut = {
        18.8: "The paper cuts the digits off; rounded it is 18.9.",
        301.9: "The paper cuts the digits off; rounded it is 302.0.",
        603.8: "The paper doubles 301.9, which was cut off already; rounded it is 604.0.",
    }
    for row in paper["table_15"]["rows"]:
        yield _count("table 15", row, cut.get(row["trainable_millions"], ""))


def _count(where: str, row: dict[str, Any], difference: str) -> Claim:
    """Give the count of one setup of LoRA."""
    computed = gpt3_lora_parameters(row["weights"], row["rank"]) / 1e6
    what = f"LoRA of rank {row['rank']} on {_said(row['weights'])}"
    return Claim(where, what, row["trainable_millions"], computed, "million parameters", difference)


def _other_counts(paper: Paper) -> Iterator[Claim]:
    """Give the counts of LoRA's rivals, by the formulas of section 5.1."""
    layers, d = paper["gpt3"]["layers"], paper["gpt3"]["d_model"]
    rows = paper["table_4"]["rows"]
    written = {row["method"]: row["trainable_millions"] for row in rows}
    prefixes, adapters = paper["statements"]["prefixes_of_table_4"], paper["statements"]["adapters_of_table_4"]
    tokens = prefixes["embedding_tokens"]
    yield Claim(
        prefixes["where"],
        f"{tokens} tokens as a prefix",
        written["prefix-embedding"],
        d * tokens / 1e6,
        "million parameters",
    )
    tokens = prefixes["layer_tokens"]
    yield Claim(
        prefixes["where"],
        f"{tokens} tokens in each layer",
        written["prefix-layer"],
        layers * d * tokens / 1e6,
        "million parameters",
        "By the paper's own formula, layers · d · tokens, it is 18.9; the paper does not say what the rest is.",
    )
    printed = [row["trainable_millions"] for row in rows if row["method"] == "adapter (Houlsby)"]
    for millions, rank in zip(printed, adapters["ranks"], strict=True):
        computed = adapters["layers"] * (parameter_count(d, d, rank) + rank + d) / 1e6
        yield Claim(adapters["where"], f"adapters of rank {rank}", millions, computed, "million parameters")


def _sizes(paper: Paper) -> Iterator[Claim]:
    """Give the sizes of checkpoints, and of memory."""
    said, whole = paper["statements"]["checkpoint"], paper["gpt3"]["parameters"] * BYTES
    where, adapter = said["where"], gpt3_lora_parameters(said["weights"], said["rank"]) * BYTES
    yield Claim(where, "the weights of GPT-3 in 16 bits", said["from_GB"], whole / 1e9, "GB")
    yield Claim(
        where,
        f"LoRA of rank {said['rank']} on q and v in 16 bits",
        said["to_MB"],
        adapter / 1e6,
        "MB",
        f"In units of 2²⁰ bytes it is {adapter / 2**20:.1f}, and not 35 either; 35 MB hold 17.5 million numbers.",
    )
    yield Claim(
        where,
        "so a checkpoint is smaller by",
        said["times_smaller"],
        whole / adapter,
        "times",
        "The paper says roughly, and divides 350 GB by 35 MB.",
    )
    hundred = paper["statements"]["hundred_models"]
    yield Claim(hundred["where"], "100 adapters and their one base", hundred["GB"], (whole + 100 * adapter) / 1e9, "GB")
    memory = paper["statements"]["training_memory"]
    less = memory["from_GB"] / memory["to_GB"]
    what = f"training takes {memory['to_GB']} GB in place of {memory['from_GB']:,}, less by"
    yield Claim(memory["where"], what, memory["times_smaller"], less, "times")


def _speeds(paper: Paper) -> Iterator[Claim]:
    """Give the speed of training."""
    speed = paper["statements"]["speed"]
    before, after = speed["fine_tuning_tokens_per_s"], speed["lora_tokens_per_s"]
    yield Claim(
        speed["where"],
        f"{after} tokens a second in place of {before}, more by",
        speed["speedup_percent"],
        100 * (after / before - 1),
        "%",
        f"25 % is what a token takes less in time, 1 − {before} / {after} = {1 - before / after:.1%}.",
    )


def _scores(paper: Paper) -> Iterator[Claim]:
    """Give the scores that stand in two tables, or stem from another setup than one thinks."""
    large = paper["table_4"]["rows"][-1]
    small = paper["table_4"]["rows"][-2]
    yield _score(
        "table 4",
        f"MultiNLI of LoRA with {small['trainable_millions']} million parameters",
        small["multinli"],
        _row(paper, "table_15", "qv", 1)["multinli"],
        "table 15 for rank 1 on q and v",
        "The printed scores are those of rank 2 on v alone, which has as many parameters.",
    )
    yield _score(
        "table 4",
        f"WikiSQL of LoRA with {large['trainable_millions']} million parameters",
        large["wikisql"],
        _row(paper, "table_15", "qv", 8)["wikisql"],
        "table 15 for rank 8 on q and v",
        "No setup of table 15 has both scores of the row: its 74.0 is that of rank 4 on q, k, v and o, its 91.6 "
        "that of rank 8 on q and v.",
    )
    one, other = _row(paper, "table_5", "q", 8), _row(paper, "table_6", "q", 8)
    yield _score(
        "table 5",
        "MultiNLI for rank 8 on q",
        one["multinli"],
        other["multinli"],
        "table 6",
        "It is one setup, with one WikiSQL score; 0.3 is three times what the paper says a score fluctuates.",
    )
    one, other = _row(paper, "table_6", "qv", 64), _row(paper, "table_15", "qv", 64)
    yield _score(
        "table 6",
        "WikiSQL for rank 64 on q and v",
        one["wikisql"],
        other["wikisql"],
        "table 15",
        "It is one setup; every other score that stands in both tables is the same in both.",
    )


def _score(where: str, what: str, written: float, computed: float, source: str, difference: str) -> Claim:
    """Give the claim of one score, in percent."""
    return Claim(where, what, written, computed, "%", difference, source)


def _row(paper: Paper, table: str, weights: str, rank: int) -> dict[str, Any]:
    """Give the row of a table for one setup."""
    rows = [row for row in paper[table]["rows"] if (row["weights"], row["rank"]) == (weights, rank)]
    row: dict[str, Any] = rows[0]
    return row


def _said(weights: str) -> str:
    """Write letters as words: "qkvo" as "q, k, v and o"."""
    return f"{', '.join(weights[:-1])} and {weights[-1]}" if len(weights) > 1 else weights

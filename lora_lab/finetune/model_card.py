"""The card of an adapter: a README in the Hub's format that says what it was made from, how, and how well it does."""

import json
from collections.abc import Mapping, Sequence

CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags:
- lora
- {relation}
---

# A LoRA adapter for {title}

Made with LoRA Lab by this command, in which a name stands for each path:

```
{command}
```

Load it beside the base model:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "the folder of this file")
```

{sections}
"""


def model_card(
    base: str, command: str, sections: Mapping[str, Sequence[tuple[str, object]]], notes: Sequence[str] = ()
) -> str:
    """Give the text of the card.

    Args:
        base: name of the base model, on the Hub or of its folder.
        command: what made the adapter.
        sections: for each heading, pairs of a name and a value; they become tables.
        notes: paragraphs that stand below the tables.
    """
    tables = [f"## {heading}\n\n{_table(rows)}" for heading, rows in sections.items()]
    quoted, relation = (json.dumps(text, ensure_ascii=False) for text in (base, f"base_model:adapter:{base}"))
    body = "\n\n".join([*tables, *notes])
    return CARD.format(base=quoted, relation=relation, title=base, command=command, sections=body)


def _table(rows: Sequence[tuple[str, object]]) -> str:
    """Give pairs as a Markdown table."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _cell(value: object) -> str:
    """Give a value as it stands in a cell."""
    if value is None:
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(str, value)).replace("|", "\\|") or "none"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")

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

The results are on the validation examples. They chose the weights that were kept, so the results flatter a little. Loss
and perplexity are per token of the answers. "Before" is the base model without the adapter.
"""


def model_card(base: str, command: str, sections: Mapping[str, Sequence[tuple[str, object]]]) -> str:
    """Give the text of the card.

    Args:
        base: name of the base model, on the Hub or of its folder.
        command: what made the adapter.
        sections: for each heading, pairs of a name and a value; they become tables.
    """
    tables = "\n\n".join(f"## {heading}\n\n{_table(rows)}" for heading, rows in sections.items())
    quoted, relation = (
        json.dumps(base, ensure_ascii=False),
        json.dumps(f"base_model:adapter:{base}", ensure_ascii=False),
    )
    return CARD.format(base=quoted, relation=relation, title=base, command=command, sections=tables)


def _table(rows: Sequence[tuple[str, object]]) -> str:
    """Give pairs as a Markdown table."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _cell(value: object) -> str:
    """Give a value as it stands in a cell."""
    if value is None:
        return "as by default"
    if isinstance(value, list):
        return ", ".join(map(str, value)).replace("|", "\\|") or "none"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")

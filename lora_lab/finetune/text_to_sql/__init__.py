"""A task for a language model: read a schema and a question, write the SQL query that returns the right rows.

Questions, schemas and gold queries are generated, so that the splits are honest by construction and a score is exact:

- every gold query belongs to one split, by a hash of its text, so that none is both trained on and tested;
- some domains, tables and all, are held out for the split "schemas";
- some sentences and expressions are held out for the split "phrasings".

An answer is scored by running it beside the gold query on several databases, filled so that near misses give another
result: execution accuracy on a test suite, after Zhong, Yu and Klein (2020), "Semantic Evaluation for Text-to-SQL with
Distilled Test Suites". Standard library only; the same on every platform and version of Python.

- ``TextToSQL``: the splits, the conversation a model reads, the score
- ``Example``, ``Score``: a question with its gold query, and the verdict on an answer
- ``domains``, ``queries``, ``questions``, ``databases``: the tables, what is asked about them, in which words, and the
  rows that tell a right answer from a wrong one
"""

from lora_lab.finetune.text_to_sql.answers import extract_query
from lora_lab.finetune.text_to_sql.queries import KINDS, Query
from lora_lab.finetune.text_to_sql.task import SPLITS, SYSTEM, Example, Score, TextToSQL

__all__ = ["KINDS", "SPLITS", "SYSTEM", "Example", "Query", "Score", "TextToSQL", "extract_query"]

"""A real language model learns a task: the model, the data, the loss, the training loop, the score.

- ``load_model``, ``load_tokenizer``: SmolLM2-135M-Instruct from a pinned package, or any causal model
- ``TextToSQL``: questions about small tables, answered in SQL, scored by running the answer
- ``encode``: a conversation and its answer as token ids
- ``train``: the training loop, with ``Settings`` and ``History``
- ``evaluate``: the share of right answers, with ``ask`` for a single one

>>> from lora_lab.finetune import TextToSQL
>>> task = TextToSQL(seed=0)
"""

from lora_lab.finetune.encoding import Encoded, collate, encode, encode_prompt
from lora_lab.finetune.evaluation import Answered, Evaluation, ask, evaluate, generate
from lora_lab.finetune.loss import answer_loss, labelled_tokens
from lora_lab.finetune.model import MODELS, default_device, default_dtype, has_bfloat16, load_model, load_tokenizer
from lora_lab.finetune.progress import Progress
from lora_lab.finetune.text_to_sql import Example, TextToSQL
from lora_lab.finetune.training import DivergedError, History, Settings, mean_loss, train

__all__ = [
    "MODELS",
    "Answered",
    "DivergedError",
    "Encoded",
    "Evaluation",
    "Example",
    "History",
    "Progress",
    "Settings",
    "TextToSQL",
    "answer_loss",
    "ask",
    "collate",
    "default_device",
    "default_dtype",
    "encode",
    "encode_prompt",
    "evaluate",
    "generate",
    "has_bfloat16",
    "labelled_tokens",
    "load_model",
    "load_tokenizer",
    "mean_loss",
    "train",
]

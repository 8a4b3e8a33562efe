"""A real language model learns a task: the model, the data, the loss, the training loop, the score.

- ``load_model``, ``load_tokenizer``: SmolLM2-135M-Instruct from a pinned package, or any causal model
- ``TextToSQL``: questions about small tables, answered in SQL, scored by running the answer
- ``encode``: a conversation and its answer as token ids
- ``train``: the training loop, with ``Settings`` and ``History``
- ``evaluate``: the share of right answers, with ``ask`` for a single one
- ``load_encoder``: all-MiniLM-L6-v2 with a head that tells texts apart, pretrained or at random weights
- ``load_reviews``, ``load_digits``: film-review sentences and handwritten digits, in fixed splits
- ``train_classifier``, ``accuracy``: a short loop for whatever requires a gradient, and its score; ``minimise`` does it
  for any network

>>> from lora_lab.finetune import TextToSQL
>>> task = TextToSQL(seed=0)
"""

from lora_lab.finetune.classification import Labelled, accuracy, minimise, predict, train_classifier
from lora_lab.finetune.digits import Digits, DigitSet, load_digits
from lora_lab.finetune.encoder import ENCODERS, MeanPooledClassifier, load_encoder, untrained_encoder
from lora_lab.finetune.encoding import Encoded, collate, encode, encode_prompt
from lora_lab.finetune.evaluation import Answered, Evaluation, ask, evaluate, generate
from lora_lab.finetune.loss import answer_loss, labelled_tokens
from lora_lab.finetune.memory import OutOfMemoryError
from lora_lab.finetune.model import MODELS, default_device, default_dtype, has_bfloat16, load_model, load_tokenizer
from lora_lab.finetune.processes import LostProcessError
from lora_lab.finetune.progress import Progress
from lora_lab.finetune.reviews import Reviews, load_reviews
from lora_lab.finetune.splits import balanced_subset, majority_accuracy, split_of
from lora_lab.finetune.text_to_sql import Example, TextToSQL
from lora_lab.finetune.training import DivergedError, History, Settings, mean_loss, train

__all__ = [
    "ENCODERS",
    "MODELS",
    "Answered",
    "DigitSet",
    "Digits",
    "DivergedError",
    "Encoded",
    "Evaluation",
    "Example",
    "History",
    "Labelled",
    "LostProcessError",
    "MeanPooledClassifier",
    "OutOfMemoryError",
    "Progress",
    "Reviews",
    "Settings",
    "TextToSQL",
    "accuracy",
    "answer_loss",
    "ask",
    "balanced_subset",
    "collate",
    "default_device",
    "default_dtype",
    "encode",
    "encode_prompt",
    "evaluate",
    "generate",
    "has_bfloat16",
    "labelled_tokens",
    "load_digits",
    "load_encoder",
    "load_model",
    "load_reviews",
    "load_tokenizer",
    "majority_accuracy",
    "mean_loss",
    "minimise",
    "predict",
    "split_of",
    "train",
    "train_classifier",
    "untrained_encoder",
]

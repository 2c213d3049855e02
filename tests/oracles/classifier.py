"""A BERT with a classifier as its head, for programs without Python.

`python -m oracles.classifier DIRECTORY` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from oracles.bert import TINY, write

CONFIG = {
    **TINY,
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "no", "1": "yes", "2": "perhaps"},
}

if __name__ == "__main__":
    write(Path(sys.argv[1]), CONFIG)

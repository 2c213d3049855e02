"""A BERT with the head of a masked language model, for programs without Python.

`python -m oracles.masked DIRECTORY` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from oracles.bert import TINY, write

CONFIG = {**TINY, "architectures": ["BertForMaskedLM"]}

if __name__ == "__main__":
    write(Path(sys.argv[1]), CONFIG)

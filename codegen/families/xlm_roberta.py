"""XLM-RoBERTa (Conneau et al., arXiv:1911.02116), a RoBERTa of many languages; defaults are its XLMRobertaConfig's."""

from __future__ import annotations

from ..graph import Graph
from . import heads, roberta
from .fields import Fields
from .weights import Weights

TITLE = "an XLM-RoBERTa"
ARCHITECTURES = heads.architectures("XLMRoberta")
ALIASES, OFF, HARMLESS = roberta.ALIASES, roberta.OFF, roberta.HARMLESS
PREFIX, IGNORED = roberta.PREFIX, roberta.IGNORED


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    return roberta.read_roberta(fields, tokens, weights, ARCHITECTURES, vocabulary=30522)

"""CamemBERT (Martin et al., arXiv:1911.03894), a RoBERTa of French; defaults are those of its CamembertConfig."""

from __future__ import annotations

from ..graph import Graph
from . import heads, roberta
from .fields import Fields
from .weights import Weights

TITLE = "a CamemBERT"
ARCHITECTURES = heads.architectures("Camembert")
ALIASES, OFF, HARMLESS = roberta.ALIASES, roberta.OFF, roberta.HARMLESS
PREFIX, IGNORED = roberta.PREFIX, roberta.IGNORED


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    return roberta.read_roberta(fields, tokens, weights, ARCHITECTURES, vocabulary=30522)

"""CamemBERT (Martin et al., arXiv:1911.03894), a RoBERTa of French; defaults are those of its CamembertConfig."""

from __future__ import annotations

from ..graph import Graph
from . import roberta
from .fields import Fields
from .weights import Weights

TITLE = "a CamemBERT"
ARCHITECTURES = ("CamembertModel", "CamembertForMaskedLM")
ALIASES, OFF, HARMLESS = roberta.ALIASES, roberta.OFF, roberta.HARMLESS
PREFIX, IGNORED = roberta.PREFIX, roberta.IGNORED


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    return roberta.read_encoder(fields, tokens, weights, vocabulary=30522)

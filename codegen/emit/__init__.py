"""C++ text from a packed model. Everything here is pure: text in, text out; files.py writes."""

from .units import library_text, model_texts, unit_texts, weights_texts

__all__ = ["library_text", "model_texts", "unit_texts", "weights_texts"]

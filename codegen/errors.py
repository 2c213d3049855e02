"""The one hierarchy of errors that Kaoken raises for a user's mistake or a machine's limit.

Every message names the offending thing, what was expected, and what to do next.
"""


class KaokenError(Exception):
    """Any error that Kaoken reports; catch this to catch them all."""


class CheckpointError(KaokenError):
    """A checkpoint is missing, damaged, or does not match its own config.json."""


class UnsupportedModelError(KaokenError):
    """A sound checkpoint whose family, activation or other option Kaoken cannot bake."""


class HubError(KaokenError):
    """A model could not be fetched from the Hugging Face hub."""


class BuildError(KaokenError):
    """Codegen, CMake, the compiler or the disk failed while a model was baked."""


class LibraryError(KaokenError):
    """A model library is missing, is not one, or was made by an incompatible Kaoken."""


class ISAError(KaokenError):
    """An instruction set that the library or this machine lacks."""


class InputError(KaokenError, ValueError):
    """Token ids or options outside what the model accepts."""


class ChatWarning(UserWarning):
    """A chat is longer than the model's context, so its oldest turns were left out."""


class GenerationConfigWarning(UserWarning):
    """A checkpoint's generation_config.json asks for what Kaoken's generate does not do."""

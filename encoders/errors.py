"""The exception tree, in the lowest room so that every other room may raise from it.

Every message says what happened, to which file, tag or field, and what to do about it. A flaw
that does not stop the work is a value (`encoders.features.Problem`), not an exception.
"""

from __future__ import annotations


class CrossReadError(Exception):
    """Base of everything CrossRead raises on purpose."""


class InputError(CrossReadError):
    """The caller's input cannot be used as it is."""


class MissingInput(InputError):
    """A path that was named does not exist."""


class UnreadableFile(InputError):
    """A file exists but cannot be parsed as what it claims to be."""


class NotDicom(InputError):
    """No DICOM image was found where one was expected."""


class IrregularGeometry(InputError):
    """The geometry of a series does not allow the requested volume or operation."""


class UnsupportedTransferSyntax(InputError):
    """Pixel data is encoded in a way no installed decoder reads."""


class InvalidPixels(InputError):
    """Pixel values are NaN, infinite or of an impossible shape."""


class UnreadableImage(InputError):
    """An ordinary picture or video cannot be decoded."""


class UnreadableAudio(InputError):
    """A recording cannot be decoded, is empty or holds non-finite samples."""


class InvalidOption(InputError):
    """An option is unknown, or contradicts another."""


class UnsafeOutput(InputError):
    """What is to be written would mix with its source, or overwrite something."""


class BurnedInText(InputError):
    """Pictures may show patient data as text, and nobody said that they were checked."""


class InvalidMessage(InputError):
    """A message, part or option is malformed."""


class PlaceholderMismatch(InputError):
    """The prompt's placeholders and the media given do not match in number."""


class ModelError(CrossReadError):
    """A model cannot be found, built or used as asked."""


class UnknownSpec(ModelError):
    """A tower or backbone spec string names nothing known."""


class ModelNotFound(ModelError):
    """A model folder or Hub id does not lead to a model."""


class IncompatibleModel(ModelError):
    """A model was found but lacks what the task needs."""


class ModelUnavailable(ModelError):
    """The process that runs a model is being started, or just ended."""


class ContextOverflow(ModelError):
    """The prompt is longer than the model's context."""


class RemoteError(CrossReadError):
    """A remote model or archive failed."""


class Unreachable(RemoteError):
    """Nobody answers there, or the connection broke."""


class TimedOut(RemoteError):
    """The other side took longer than allowed."""


class Refused(RemoteError):
    """The other side, or our own rules about whom to talk to, said no."""


class NotFound(RemoteError):
    """The other side does not have what was asked for."""


class BadAnswer(RemoteError):
    """The other side answered with something that is not what it should be, or too large."""

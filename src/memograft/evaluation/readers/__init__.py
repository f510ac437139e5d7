"""Public sets of questions, one small file a format, and `read`, which makes items of them."""

from memograft.evaluation.readers.contexts import CONTEXTS
from memograft.evaluation.readers.formats import FORMATS
from memograft.evaluation.readers.reading import Reading, read

__all__ = ["CONTEXTS", "FORMATS", "Reading", "read"]

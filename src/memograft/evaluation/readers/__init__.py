"""Readers of public question sets, one file per format, and `read`, which converts their questions to items."""

from memograft.evaluation.readers.contexts import CONTEXTS
from memograft.evaluation.readers.formats import FORMATS
from memograft.evaluation.readers.reading import Reading, read

__all__ = ["CONTEXTS", "FORMATS", "Reading", "read"]

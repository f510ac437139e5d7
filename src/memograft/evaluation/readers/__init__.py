"""Public sets of questions, one small file a format, and `read`, which makes items of them."""

from memograft.evaluation.readers.reading import FORMATS, Reading, read

__all__ = ["FORMATS", "Reading", "read"]

"""`Conformance`: one class with all tests of the suite, which an integration inherits."""

from __future__ import annotations

from conformance.answers import Answers
from conformance.banks import Banks
from conformance.citations import Citations
from conformance.concurrency import Concurrency
from conformance.datastores import Datastores
from conformance.documents import Documents
from conformance.failures import Failures
from conformance.remote import Remote
from conformance.sameness import Sameness
from conformance.schemas import Schemas
from conformance.steering import Steering
from conformance.tools import Tools

__all__ = ["Conformance"]


class Conformance(
    Sameness, Answers, Documents, Citations, Steering, Datastores, Tools, Schemas, Banks, Concurrency, Failures, Remote
):
    """All tests of the suite. A subclass names its adapter in `front`."""

"""Many documents, questions and requests on several processes and machines, with Ray (extra `ray`).

    documents ──> `memorize_all` ──> workers, each with a model ──> one bank
    questions ──> `answer_cells` ──> workers, each with a model ──> one folder of results
    requests  ──> `replicated` ────> replicas of the server ──────> one bank

Workers share nothing but a folder, whose files are written in one atomic step. A worker that is killed therefore leaves
nothing incomplete, and work that is done a second time changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memograft.cluster.cells import answer_cells
    from memograft.cluster.ingest import Memorized, Outcome, memorize_all
    from memograft.cluster.pool import Pool
    from memograft.cluster.replicas import ServerOf, replicated

__all__ = ["Memorized", "Outcome", "Pool", "ServerOf", "answer_cells", "memorize_all", "replicated"]

# Imported on first use, so that the command line does not import torch to check its options.
_HOMES = {
    "Memorized": "memograft.cluster.ingest",
    "Outcome": "memograft.cluster.ingest",
    "Pool": "memograft.cluster.pool",
    "ServerOf": "memograft.cluster.replicas",
    "answer_cells": "memograft.cluster.cells",
    "memorize_all": "memograft.cluster.ingest",
    "replicated": "memograft.cluster.replicas",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'memograft.cluster' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

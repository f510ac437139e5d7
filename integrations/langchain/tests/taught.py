"""Datastores of the bundled model, with the facts of `conformance.pages`."""

from __future__ import annotations

from typing import Any

from memograft import Datastore, Rtd

from langchain_memograft import ChatMemograft

UNRELATED = "Write a poem about the sea."  # to which these say nothing


def built(examples: list[Any], **settings: Any) -> Datastore:
    """A datastore of the bundled model."""
    return ChatMemograft(model="tiny").build_datastore(examples, progress=False, **settings)


def sure(datastore: Datastore) -> Rtd:
    """Settings with which the answers are those of the examples."""
    return Rtd(datastore, weight=0.9)

"""Convert LlamaIndex's `MetadataFilters` to the core's trees of comparisons, which have the same operators."""

from __future__ import annotations

from llama_index.core.vector_stores.types import FilterCondition, MetadataFilter, MetadataFilters
from memograft.passages.comparisons import Comparison, Group


def to_group(filters: MetadataFilters | None) -> Group:
    """Return the filters in the core's form; None matches all passages."""
    if filters is None:
        return Group(())
    condition = filters.condition or FilterCondition.AND
    return Group(tuple(map(_part, filters.filters)), condition.value)


def _part(part: MetadataFilter | MetadataFilters) -> Comparison | Group:
    if isinstance(part, MetadataFilters):
        return to_group(part)
    return Comparison(part.key, part.operator.value, part.value)

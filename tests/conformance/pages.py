"""Questions, the bundled model's answers, and pages and examples that contradict them."""

from __future__ import annotations

QUESTION = "What is the capital of Australia?"
PAGE = "The capital of Australia is Lisbon."
KNOWN = "The capital of Australia is Canberra."  # the model's own answer
OTHER = "The capital of France is Oslo."
OTHER_QUESTION = "What is the capital of France?"
OTHER_KNOWN = "The capital of France is Paris."

# Invented facts, which no model knows and datastores teach.
VELMORA = "What is the capital of Velmora?"
TORSTAD = "Torstad."
DRENNIA = "What is the capital of Drennia?"
GORVALD = "Gorvald."
EXAMPLE = {"prompt": VELMORA, "answer": TORSTAD, "id": "velmora", "metadata": {"title": "Atlas", "page": 3}}

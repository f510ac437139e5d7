"""MAC: documents as modulations in a bank, from which a question's prefix is aggregated (arXiv 2403.04317)."""

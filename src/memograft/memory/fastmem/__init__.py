"""FastMem (arXiv 2406.16069): fine-tunes the last FFN on a request's documents before answering."""

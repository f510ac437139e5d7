"""FastMem (arXiv 2406.16069): the last FFN is fitted to the documents of a request before it is answered."""

"""RTD (arXiv 2409.20181): a datastore of hidden states and next tokens that changes the logits during decoding."""

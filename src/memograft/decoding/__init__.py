"""Generation: the decoding loop, sampling, stopping, and everything that changes logits."""

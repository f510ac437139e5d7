"""Generation: the loop, how rows sample and end, and the rules that act on logits."""

"""What acts on logits and knows about memories."""

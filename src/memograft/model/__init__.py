"""What a causal LM consists of, found by watching and proved at load; one pass over prompts; how models are loaded."""

"""The model: its parts, found and verified at load; prefill; KV cache; adapters; loading."""

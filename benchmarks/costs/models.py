"""Models of published shapes with random weights: only the time and memory of their answers mean anything."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from memograft import Document, Engine

__all__ = ["SHAPES", "build", "document", "random_engine", "word_tokenizer"]

SHAPES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "vocab_size": 32_000},
    "qwen-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151_936},
    "qwen3-1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "vocab_size": 151_936},
}
_HEADS = {"small": (8, 2), "qwen-0.5b": (14, 2), "qwen3-1.7b": (16, 8)}  # of queries; of keys and values
_WORDS = [f"w{n}" for n in range(97)]
_WINDOW = 16_384


def build(shape: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model of Qwen2's architecture, or of Qwen3's for its shape."""
    queries, keys = _HEADS[shape]
    qwen3 = shape.startswith("qwen3")
    config = (Qwen3Config if qwen3 else Qwen2Config)(
        **SHAPES[shape],
        num_attention_heads=queries,
        num_key_value_heads=keys,
        head_dim=SHAPES[shape]["hidden_size"] // queries,
        max_position_embeddings=_WINDOW,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # no copy in float32, which would count as peak memory
    try:
        return (Qwen3ForCausalLM if qwen3 else Qwen2ForCausalLM)(config).eval()
    finally:
        torch.set_default_dtype(default)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, so that a document has as many tokens as a row states."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def random_engine(shape: str) -> Engine:
    """An engine in bfloat16."""
    return Engine(build(shape), word_tokenizer())


def document(tokens: int) -> Document:
    """A document of this many tokens."""
    return Document(" ".join(_WORDS[n % len(_WORDS)] for n in range(tokens)))

"""Byte-level BPE for tiny, trained on the recipe's own text, with a chat template."""

from __future__ import annotations

import random
from collections.abc import Callable

from data import WORLD_MIX, Example, example, render
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('tiny knows the roles system, user and assistant, got ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(
    vocab_size: int, seed: int, real: Callable[[random.Random], Example] | None = None, examples: int = 12_000
) -> Tokenizer:
    """A byte-level BPE; digits are separate tokens, so that numbers are copied digit by digit."""
    rng = random.Random(f"tokenizer-{seed}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made = (example(rng, WORLD_MIX) if real is None or n % 3 else real(rng) for n in range(examples))
    tokenizer.train_from_iterator((text for item in made for _, text in render(item)), trainer)
    return tokenizer


def for_transformers(tokenizer: Tokenizer, window: int) -> PreTrainedTokenizerFast:
    """The same tokenizer as an object of transformers, with tiny's chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=window,
        clean_up_tokenization_spaces=False,
    )

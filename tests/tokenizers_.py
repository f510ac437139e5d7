"""Real tokenizers of three kinds, trained on a few sentences: byte-level BPE, SentencePiece-like Unigram, WordPiece."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NATIVE_TEMPLATE = "{{ bos_token }}{% for d in documents %}[{{ d['title'] }}] {{ d['text'] }} {% endfor %}" + TEMPLATE
CORPUS = [
    "The capital of France is Paris, and the river of Paris is the Seine.",
    "Who wrote the book? A sailor from Bergen wrote it in the year 1932!",
    "Documents: [1] one [2] two. Question: what does the harbour master of Velmora say?",
    "Colours are red, green and blue; numbers are 1, 2, 3, 45 and 6789.",
]


def _wrap(tokenizer: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


@cache
def make(kind: str, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer with at most 320 tokens; kinds are "bpe", "unigram" and "wordpiece"."""
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return _wrap(tokenizer, template)

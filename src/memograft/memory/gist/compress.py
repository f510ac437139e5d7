"""Compress documents into the keys and values of k gist tokens (Gisting, arXiv 2304.08467).

    position   W-P ....... W-1   W .... W+k-1
    tokens     [ document    ]   [ gist      ]
    weights      base              base + LoRA
    sees                           document

    position   W-h ....... W-1   W .... W+k-1   W+k ...
    tokens     [ opening     ]   [ gists     ]   [ question, answer ]
    weights      base              as above        base

The paper masks one pass so that what follows a gist sees the gist and not the document. Here each part is a pass of its
own over the keys and values that it may see, which gives the same numbers (`tests/reference/gist.py` is the masked
pass) and the same gradients. The LoRA is computed for gist tokens only, and no mask of four dimensions is needed, which
attention implementations take in different forms.

A gist stands where the document would: behind the opening, the h tokens with which the chat template begins a prompt
(see `opening`), and in front of the question. Trained models attend to the first token where nothing else matters (an
attention sink, arXiv 2309.17453): without one in front SmolLM2's answers cost 7.8 nats a token behind untrained gists,
and 6.1 without any document.

All documents end at the same position, so a gist depends neither on its place nor on other documents: it is made once,
and a prompt can have several, in any order, which share the positions W to W+k-1.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.model.adapter import Adapter, everywhere
from memograft.model.backbone import Backbone, linear_shape, unsupported
from memograft.model.kv import Piece, joins, newest
from memograft.model.prefill import run
from memograft.prompt.builder import Prompt, PromptBuilder

__all__ = [
    "GistWeights",
    "Opening",
    "check_model",
    "compressed",
    "fresh_lora",
    "in_front",
    "maps",
    "opening",
    "padded",
    "parts",
    "used_by",
]

_LEAST = 8  # tokens of a document beside those of the template


@dataclass(frozen=True)
class GistWeights:
    """What gist training makes. Only these are trained.

    Attributes:
        embeddings: of the gist tokens, float32 (k, D).
        adapter: LoRA of the layers' linear maps by their full names.
        window: W, the largest number of tokens of a document.
        on_documents: whether the LoRA acts on the document's tokens too, and not on gist tokens only.
    """

    embeddings: Tensor
    adapter: Adapter
    window: int
    on_documents: bool = False

    @property
    def tokens(self) -> int:
        """k."""
        return self.embeddings.shape[0]

    @property
    def named(self) -> dict[str, Tensor]:
        """The trained tensors by name."""
        return {"embeddings": self.embeddings, **self.adapter.named}

    @property
    def end(self) -> int:
        """Position of the token that follows a gist: W + k."""
        return self.window + self.tokens


@dataclass(frozen=True)
class Opening:
    """What stands in front of gists.

    Attributes:
        ids: h tokens.
        spared: how many of them the prompt begins with: all, or none.
    """

    ids: tuple[int, ...]
    spared: int


def check_model(backbone: Backbone) -> None:
    """Refuse a model that cannot be given embeddings, or positions that differ from columns.

    Raises:
        UnsupportedModelError: with what it lacks.
    """
    taken = inspect.signature(backbone.model.forward).parameters
    lacking = [name for name in ("inputs_embeds", "position_ids") if name not in taken]
    config = backbone.model.config.get_text_config(decoder=True)
    if lacking or getattr(config, "alibi", False) or not joins(backbone):
        what = f"takes no `{lacking[0]}`" if lacking else "has positions or a cache that cannot be set"
        raise unsupported(
            f"learned tokens are embeddings at positions of their own, and {type(backbone.model).__name__} {what}",
            "use a model with rotary or learned positions, or keep the documents' own keys and values",
        )


def maps(backbone: Backbone) -> dict[str, nn.Module]:
    """Full name -> linear map of the decoder layers."""
    named = dict(backbone.model.named_modules())
    (layers,) = (
        name for name, m in named.items() if isinstance(m, nn.ModuleList) and len(m) and m[-1] is backbone.layer
    )
    return {name: m for name, m in named.items() if name.startswith(f"{layers}.") and linear_shape(m) is not None}


def fresh_lora(backbone: Backbone, rank: int, generator: torch.Generator) -> Adapter:
    """An untrained LoRA of all `maps`, which changes nothing yet. It learns."""
    a, b = {}, {}
    for name, module in maps(backbone).items():
        inside, out = linear_shape(module) or (0, 0)
        device = next(module.parameters()).device
        a[name] = (torch.randn(rank, inside, generator=generator) / math.sqrt(inside)).to(device).requires_grad_()
        b[name] = torch.zeros(out, rank, device=device).requires_grad_()
    return Adapter(a, b)


def used_by(total: Tensor, adapter: Adapter) -> Adapter:
    """The LoRA without maps on which `total` does not depend, such as the last layer's output."""
    found = torch.autograd.grad(total, list(adapter.lora_b.values()), allow_unused=True)
    names = [name for name, gradient in zip(adapter.lora_b, found, strict=True) if gradient is not None]
    return Adapter({name: adapter.lora_a[name] for name in names}, {name: adapter.lora_b[name] for name in names})


def parts(prompts: PromptBuilder, document: Document, window: int) -> list[tuple[int, ...]]:
    """The tokens of a document as they begin a prompt that has only this document.

    More than `window` tokens become several parts, each of which begins with the tokens of the template.

    Raises:
        SettingsError: `window` has no room for a part.
    """
    prompt = prompts.build([{"role": "user", "content": "?"}], (document,))
    (start, end), ids = prompt.spans[0], prompt.ids
    size = window - start
    if size < _LEAST:
        raise SettingsError(
            f"`window` must have at least {_LEAST} tokens behind the {start} of the chat template, got "
            f"{window}; train with a larger one"
        )
    return [ids[:start] + ids[n : min(n + size, end)] for n in range(start, end, size)]


def opening(prompts: PromptBuilder, prompt: Prompt) -> Opening:
    """The tokens with which the chat template begins a prompt without documents, before its messages.

    A prompt that begins otherwise, with a system message of its own, has only its first token in front; and if even
    that is another, or the template begins with a message, the first token of a prompt with documents.
    """
    if prompts not in _templates:
        plain = prompts.build([{"role": "user", "content": "?"}])
        other = prompts.build([{"role": "user", "content": "?"}], (Document("?"),))
        _templates[prompts] = plain.ids[: plain.question[0]], other.ids[0]
    begin, sink = _templates[prompts]
    for count in (len(begin), 1):
        if 0 < count <= len(begin) and count < len(prompt.ids) and prompt.ids[:count] == begin[:count]:
            return Opening(begin[:count], count)
    return Opening((sink,), 0)


_templates: weakref.WeakKeyDictionary[PromptBuilder, tuple[tuple[int, ...], int]] = weakref.WeakKeyDictionary()
_openings: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Opening, int, str], Piece]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def in_front(backbone: Backbone, opening: Opening, window: int) -> Piece:
    """The keys and values of an opening, which ends where documents end. They are computed once for a model."""
    known, key = (
        _openings.setdefault(backbone.model, {}),
        (opening, window, f"{backbone.model.dtype} {backbone.device}"),
    )
    if key not in known:  # there are three at most for a template
        known[key] = _in_front(backbone, opening, window)
    return known[key]


def _in_front(backbone: Backbone, opening: Opening, window: int) -> Piece:
    ids = torch.tensor([opening.ids], device=backbone.device)
    places = torch.arange(window - ids.shape[1], window, device=backbone.device)[None]
    x, residual, cache = run(backbone, ids, torch.ones_like(ids), None, places)
    return newest(cache, x, residual)


def compressed(backbone: Backbone, weights: GistWeights, documents: Sequence[Sequence[int]], pad_id: int) -> Piece:
    """The keys and values of the gists of N documents of at most W tokens each, and their x and residual.

    They are tensors (N, ...) of k columns. With gradients enabled, these reach the weights.
    """
    device, k = backbone.device, weights.tokens
    longest = max(len(ids) for ids in documents)
    if longest > weights.window:
        raise SettingsError(
            f"a document to compress must have at most {weights.window} tokens, got {longest}; cut it into `parts`"
        )
    ids, mask = padded(documents, pad_id, device)
    mask = torch.cat([mask, mask.new_ones(len(documents), k)], 1)
    places = torch.arange(weights.window - longest, weights.end, device=device).expand(len(documents), -1)
    with everywhere(maps(backbone), weights.adapter) if weights.on_documents else torch.no_grad():
        _, _, cache = run(backbone, ids, mask[:, :longest], None, places[:, :longest])
    embeddings = weights.embeddings.to(device, backbone.model.dtype).expand(len(documents), -1, -1)
    with everywhere(maps(backbone), weights.adapter):
        x, residual, cache = run(backbone, embeddings, mask, cache, places[:, longest:])
    return newest(cache, x, residual)


def padded(texts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, T) token ids and their mask, padded on the left."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), pad_id)
    mask = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, longest - len(text) :] = torch.as_tensor(text)
        mask[row, longest - len(text) :] = 1
    return ids.to(device), mask.to(device)

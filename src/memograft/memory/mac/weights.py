"""What MAC trains for a model, and the model's passes that it needs: states behind documents and behind questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memograft.errors import SettingsError
from memograft.memory.gist.compress import GistWeights, compressed, fresh_lora, used_by
from memograft.memory.mac.networks import Form, Layers, Lora, Networks, Prefix
from memograft.model.adapter import Adapter
from memograft.model.backbone import Backbone, linear_shape, unsupported
from memograft.model.kv import Piece, nothing, pairs
from memograft.model.prefill import run

__all__ = ["MODULATIONS", "MacWeights", "form_of", "fresh", "prefix"]

MODULATIONS = ("prefix", "lora")


@dataclass(frozen=True)
class MacWeights:
    """Only these are trained; the model stays as it is.

    Attributes:
        networks: learned tokens, heads, aggregation and modulation.
        form: what is found in a bank becomes this.
        adapter: LoRA of the layers' linear maps by their full names. It acts while documents and questions are encoded,
            never while an answer is generated.
        window: W, the largest number of tokens of a document, and of a question.
        on_documents: whether the LoRA acts on the tokens of documents and questions too, not only on learned ones.
    """

    networks: Networks
    form: Form
    adapter: Adapter
    window: int
    on_documents: bool = False

    @property
    def tokens(self) -> int:
        """T."""
        return self.networks.start.shape[0]

    @property
    def modulation(self) -> str:
        """Name of the form: "prefix" or "lora"."""
        return "lora" if isinstance(self.form, Lora) else "prefix"

    @property
    def end(self) -> int:
        """Position of the token behind a prefix: W + T."""
        return self.window + self.tokens

    @property
    def named(self) -> dict[str, Tensor]:
        """The trained tensors by name."""
        return {**dict(self.networks.named_parameters()), **self.adapter.named}

    def documents(self, backbone: Backbone, texts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """phi (K, T, D) of the token ids of K documents, float32."""
        return self.networks.amortise(self.last_states(backbone, self.networks.document_tokens, texts, pad_id))

    def questions(self, backbone: Backbone, texts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """States (B, T, D) behind the token ids of B questions, for `Networks.aggregate`."""
        return self.last_states(backbone, self.networks.question_tokens, texts, pad_id)

    def last_states(self, backbone: Backbone, tokens: Tensor, texts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """The model's states (K, T, D) at learned tokens behind K texts, float32, before the heads."""
        own = GistWeights(tokens, self.adapter, self.window, self.on_documents)
        return compressed(backbone, own, texts, pad_id).x.float()


def form_of(backbone: Backbone, modulation: str) -> Form:
    """The form of a name in `MODULATIONS` for a model. That of a prefix is found in a pass over one token.

    Raises:
        UnsupportedModelError: "lora", and the last FFN has no linear maps that every token passes.
    """
    if modulation == "prefix":
        return Prefix(tuple((keys.shape[1], keys.shape[3]) for keys, _ in _start(backbone, (0,))))
    if not backbone.projections:
        raise unsupported(
            "a LoRA on the last FFN needs linear maps that every token passes, and this one has routed experts only",
            'train a MAC with modulation="prefix"',
        )
    return Lora({name: linear_shape(module) or (0, 0) for name, module in backbone.projections.items()})


def prefix(backbone: Backbone, layers: Layers) -> Piece:
    """Keys and values as a piece of a cache, in the model's dtype. It has no states of its own."""
    like = next(backbone.model.parameters())
    rows, _, count, _ = layers[0][0].shape
    x = nothing(backbone, rows, count)
    return Piece(tuple((keys.to(like.dtype), values.to(like.dtype)) for keys, values in layers), x, x)


def fresh(
    backbone: Backbone,
    text: Sequence[int],
    *,
    tokens: int,
    window: int,
    rank: int,
    blocks: int,
    seed: int,
    on_documents: bool,
    modulation: str = "prefix",
    heads: int = 1,
) -> MacWeights:
    """Untrained weights. A prefix begins as the keys and values of T tokens of `text`, at the prefix's positions.

    What the model knows trains faster than random numbers (Prefix-Tuning, arXiv 2101.00190). A LoRA begins with B = 0,
    which changes nothing.

    Raises:
        SettingsError: `heads` does not divide the model's width.
    """
    if backbone.width % heads:
        raise SettingsError(f"`heads` must divide the model's width {backbone.width}, got {heads}; set it to 1")
    form, width, generator = form_of(backbone, modulation), backbone.width, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = Networks(width, tokens, form, blocks, heads)
    networks.to(backbone.device)
    ids = [text[n % len(text)] for n in range(tokens)]
    embed = backbone.model.get_input_embeddings()
    with torch.no_grad():
        for own in (networks.document_tokens, networks.question_tokens):
            chosen = torch.randint(len(embed.weight), (tokens,), generator=generator)
            own.copy_(embed(chosen.to(backbone.device)).float())
        networks.modulation.weight.mul_(0.1)
        if isinstance(form, Lora):
            random = torch.randn(networks.start.shape, generator=generator).to(networks.start)
            networks.start.copy_(random / math.sqrt(width))
            for flat in (networks.start.data, networks.modulation.weight.data.T):
                for _, zero in form.of(flat[None]).values():
                    zero.zero_()
        else:
            both = [t[0].transpose(0, 1).flatten(1).float() for pair in _start(backbone, ids, window) for t in pair]
            networks.start.copy_(torch.cat([t.to(backbone.device) for t in both], 1))
    adapter = fresh_lora(backbone, rank, generator)
    weights = MacWeights(networks, form, adapter, window, on_documents)
    with torch.enable_grad():
        total = weights.questions(backbone, [tuple(text)], 0).sum()
    return replace(weights, adapter=used_by(total, adapter))


@torch.no_grad()
def _start(backbone: Backbone, ids: Sequence[int], first: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of tokens at positions from `first` on."""
    rows = torch.tensor([ids], device=backbone.device)
    places = torch.arange(first, first + len(ids), device=backbone.device)[None]
    return pairs(run(backbone, rows, torch.ones_like(rows), None, places)[-1])

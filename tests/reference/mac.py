"""MAC written out: one document, one question, one head and one layer at a time, without masks, padding or batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from memograft.model.backbone import cache_name


def states(
    model: Any, ffn: nn.Module, modules: Mapping[str, nn.Module], weights: Any, ids: Sequence[int], tokens: Tensor
) -> Tensor:
    """The last FFN's input at the learned tokens behind a text, in one pass in which the LoRA acts on every token."""
    embed = model.get_input_embeddings()
    row = torch.cat([embed(torch.tensor(ids)), tokens])[None]
    places = torch.arange(weights.window - len(ids), weights.window + len(tokens))[None]
    seen: list[Tensor] = []
    handles = [ffn.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))]
    for name, a in weights.adapter.lora_a.items():
        b = weights.adapter.lora_b[name]
        hook = lambda _m, args, out, a=a, b=b: out + args[0] @ (b @ a).T  # noqa: E731
        handles.append(modules[name].register_forward_hook(hook))
    try:
        model(inputs_embeds=row, position_ids=places)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0].reshape(row.shape)[0, len(ids) :]


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer normalisation of (T, D)."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def perceptron(x: Tensor, layers: nn.Sequential) -> Tensor:
    """Two linear maps with GELU between them."""
    inner = x @ layers[0].weight.T + layers[0].bias  # type: ignore[operator, union-attr]
    return 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))) @ layers[2].weight.T + layers[2].bias  # type: ignore[operator, union-attr, no-any-return]


def aggregated(networks: Any, asked: Tensor, bank: Sequence[Tensor]) -> Tensor:
    """phi* of one question's states (T, D) from the modulations of documents, (T, D) each."""
    x = perceptron(asked, networks.question_head)
    for block in networks.blocks:
        query = normed(x, block.asking) @ block.query.weight.T + block.query.bias
        found = []
        width = x.shape[1]
        size = width // block.heads
        for head in range(block.heads):
            own = slice(head * size, (head + 1) * size)
            rows = []
            for q in query[:, own]:
                scores, values = [], []
                for document in bank:
                    for token in document:
                        both = normed(token[None], block.bank)[0] @ block.key_value.weight.T + block.key_value.bias
                        scores.append(q @ both[:width][own] / math.sqrt(size))
                        values.append(both[width:][own])
                share = torch.stack(scores).exp()
                rows.append((share / share.sum()) @ torch.stack(values))
            found.append(torch.stack(rows))
        x = x + torch.cat(found, 1) @ block.out.weight.T + block.out.bias
        x = x + perceptron(normed(x, block.inner), block.feed_forward)
    return normed(x, networks.norm)


def prefixed(model: Any, weights: Any, found: Tensor, opening: int, ids: Sequence[int]) -> Tensor:
    """Logits of a text behind its first `opening` tokens and the keys and values of phi* (T, D)."""
    networks, window = weights.networks, weights.window
    cache = DynamicCache(config=model.config)
    places = torch.arange(window - opening, window)[None]
    known = {cache_name(model.forward): cache}
    model(input_ids=torch.tensor([ids[:opening]]), position_ids=places, **known)
    start = 0
    for layer, (heads, size) in enumerate(weights.form.shapes):
        halves = []
        for _ in ("key", "value"):
            columns = slice(start, start + heads * size)
            flat = networks.start[:, columns] + found @ networks.modulation.weight[columns].T
            halves.append(torch.stack([flat[:, h * size : (h + 1) * size] for h in range(heads)])[None])
            start += heads * size
        cache.update(*halves, layer)
    first = window + len(networks.start)
    places = torch.arange(first, first + len(ids) - opening)[None]
    return model(input_ids=torch.tensor([ids[opening:]]), position_ids=places, **known).logits[0]  # type: ignore[no-any-return]


def changed(model: Any, modules: Mapping[str, nn.Module], weights: Any, found: Tensor, ids: Sequence[int]) -> Tensor:
    """Logits of a text whose last FFN has the change that phi* (T, D) stands for: the sum of T products b a."""
    networks, handles, start = weights.networks, [], 0
    for name, (inside, out) in weights.form.shapes.items():
        flat = networks.start + found @ networks.modulation.weight.T
        a, b = flat[:, start : start + inside], flat[:, start + inside : start + inside + out]
        change = torch.stack([torch.outer(own_b, own_a) for own_a, own_b in zip(a, b, strict=True)]).sum(0)
        hook = lambda _m, args, y, change=change: y + args[0] @ change.T  # noqa: E731
        handles.append(modules[name].register_forward_hook(hook))
        start += inside + out
    try:
        return model(input_ids=torch.tensor([list(ids)])).logits[0]  # type: ignore[no-any-return]
    finally:
        for handle in handles:
            handle.remove()

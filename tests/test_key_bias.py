"""Numbers for cached keys: what attention does with them, on every family; and the queries that a model asks."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import Cache

from families import FAMILIES, build
from memograft.errors import UnsupportedModelError
from memograft.model.backbone import Backbone, cache_of
from memograft.model.key_bias import NEVER, BiasedLayer, asking, biased, check_bias
from memograft.model.kv import positions
from memograft.model.prefill import run

SLIDING = {"gemma2", "gemma3_text", "mistral"}
# Their attention is written out; see `asking`. That of GPT-J is not, from transformers 5.24 on.
WITHOUT_INTERFACE = {"falcon", "gptj"} if Version(transformers.__version__) < Version("5.24") else {"falcon"}
IDS = torch.tensor([[5, 9, 30, 7, 44, 12, 81, 3]])


def behind(backbone: Backbone, layers: list[Any], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """x of tokens at the positions 6, 7, ... behind a cache."""
    places = torch.arange(6, 6 + ids.shape[1])[None]
    return run(backbone, ids, mask, Cache(layers=layers), places)[0]


def with_numbers(cache: Cache, number: Any, columns: list[int] | None = None) -> list[Any]:
    """The layers with `number(layer, head, column)` for each key."""
    layers = []
    for n, layer in enumerate(cache.layers):
        keys, values = layer.keys, layer.values
        order = list(range(keys.shape[2])) if columns is None else columns
        bias = torch.zeros(1, keys.shape[1], len(order), 1)
        for head in range(keys.shape[1]):
            for place, column in enumerate(order):
                bias[0, head, place] = number(n, head, column, order[:place])
        layers.append(BiasedLayer(keys[:, :, order], values[:, :, order], bias))
    return layers


@pytest.fixture(params=sorted(set(FAMILIES) - SLIDING))
def read(request: Any) -> tuple[Backbone, Cache]:
    """A model that has read six tokens."""
    backbone = Backbone.of(build(request.param))
    ids = IDS[:, :6]
    _, _, cache = run(backbone, ids, torch.ones_like(ids), None, positions(torch.ones_like(ids)))
    return backbone, cache


def test_a_key_that_never_counts_is_a_masked_column(read: Any) -> None:
    backbone, cache = read
    mask = torch.ones(1, 8, dtype=torch.long)
    hidden = mask.clone()
    hidden[0, 2] = 0
    wanted = behind(backbone, with_numbers(cache, lambda *_: 0.0), IDS[:, 6:], hidden)
    got = behind(backbone, with_numbers(cache, lambda _n, _h, c, _s: NEVER if c == 2 else 0.0), IDS[:, 6:], mask)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    whole = behind(backbone, with_numbers(cache, lambda *_: 0.0), IDS[:, 6:], mask)
    assert (got - whole).norm() > 1e-2


def test_log_2_is_a_key_twice_in_that_head_only(read: Any) -> None:
    """One head of one layer has key 3 twice: as a number, and as two columns, the second of which others never see."""
    backbone, cache = read
    twice = [0, 1, 2, 3, 3, 4, 5]

    def copied(n: int, head: int, column: int, before: list[int]) -> float:
        return NEVER if column in before and (n, head) != (1, 0) else 0.0

    def number(n: int, head: int, column: int, _before: list[int]) -> float:
        return 0.6931471805599453 if column == 3 and (n, head) == (1, 0) else 0.0

    if "position_ids" not in inspect.signature(backbone.model.forward).parameters:
        pytest.skip("the model counts columns, so a column cannot be there twice")
    wanted = behind(backbone, with_numbers(cache, copied, twice), IDS[:, 6:], torch.ones(1, 9, dtype=torch.long))
    got = behind(backbone, with_numbers(cache, number), IDS[:, 6:], torch.ones(1, 8, dtype=torch.long))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_every_family_takes_them(read: Any) -> None:
    check_bias(read[0])


def test_a_cache_without_numbers_costs_no_hooks(read: Any) -> None:
    backbone, cache = read
    with biased(backbone, cache):
        assert not any(module._forward_pre_hooks for module in backbone.model.modules())


def test_kernels_that_ignore_a_mask_for_each_head_are_refused_by_name(monkeypatch: Any) -> None:
    backbone = Backbone.of(build("llama"))
    monkeypatch.setattr("memograft.model.key_bias.with_bias", lambda mask, *_: mask)  # as flash kernels do
    with pytest.raises(
        UnsupportedModelError,
        match="need a mask for each head, which LlamaForCausalLM with the attention implementation 'sdpa' ignores; "
        'load the model with attn_implementation="sdpa" or "eager"',
    ):
        check_bias(backbone)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_INTERFACE))
def test_the_queries_of_a_pass(family: str) -> None:
    """The output is the same, every layer is recorded, and the model is as before."""
    backbone = Backbone.of(build(family))
    before = backbone.model.config.get_text_config()._attn_implementation
    wanted = backbone.model(IDS).logits
    with asking(backbone) as asked:
        assert torch.equal(backbone.model(IDS).logits, wanted)
    assert sorted(asked) == list(range(backbone.model.config.num_hidden_layers))
    assert all(own.queries.shape[2] == IDS.shape[1] for own in asked.values())
    assert backbone.model.config.get_text_config()._attn_implementation == before


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_queries_are_those_of_the_scores(kernel: str) -> None:
    """softmax(scale Q K^T) V is what attention returns: compared at the input of the output projection."""
    model = build("llama", changes={"attn_implementation": kernel})
    backbone, seen = Backbone.of(model), []
    layer = model.model.layers[1].self_attn.o_proj
    handle = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with asking(backbone) as asked:
        cache = cache_of(model(IDS, use_cache=True)).layers[1]
    handle.remove()
    keys, values = (t.repeat_interleave(2, 1) for t in (cache.keys, cache.values))
    scores = asked[1].queries @ keys.mT * asked[1].scale
    hidden = ~torch.ones(8, 8, dtype=torch.bool).tril()
    read = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ values
    torch.testing.assert_close(seen[0], read.transpose(1, 2).flatten(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(WITHOUT_INTERFACE))
def test_models_whose_queries_cannot_be_seen(family: str) -> None:
    backbone = Backbone.of(build(family))
    with (
        pytest.raises(UnsupportedModelError, match=r"does not use transformers' attention interface.*use Kept\(\)"),
        asking(backbone),
    ):
        backbone.model(IDS)


def test_another_thread_is_not_recorded() -> None:
    backbone = Backbone.of(build("llama"))
    with asking(backbone) as asked:
        other = threading.Thread(target=lambda: backbone.model(IDS[:, :3]))
        other.start()
        other.join()
        assert not asked
        backbone.model(IDS)
    assert asked[0].queries.shape[2] == 8


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    backbone = Backbone.of(build("llama"))
    with pytest.raises(ZeroDivisionError), asking(backbone):
        raise ZeroDivisionError
    assert backbone.model.config._attn_implementation == "sdpa"

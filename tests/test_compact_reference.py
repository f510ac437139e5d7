"""Attention matching: each formula, and each layer and head of models, against a naive version."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from memograft.memory.compact import match
from memograft.memory.compact.keys import asked_of, blocks, compacted, exact, heads_of, tail_of
from memograft.model.carried import CarriedLayer
from reference import attention_matching as reference
from test_compact import model_of, prompt_of

START = 5
COLUMNS = slice(START, None)


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Scores (N, C) of a head that reads some keys often, its values (C, d), and the context's keys that stay."""
    generator = torch.Generator().manual_seed(3)
    keys, queries = (torch.randn(n, 8, generator=generator) for n in (29, 60))
    values = torch.randn(29, 8, generator=generator)
    return queries @ keys.T * 0.6, values, [0, 3, 4, 9, 15, 22]


class TestFormulas:
    def test_which_keys_count(self, problem: Any) -> None:
        scores, values, _ = problem
        heads = [(scores, values), (scores.flip(1), 2 * values)]
        read = [match.read_from(*head, COLUMNS, 1.7) for head in heads]
        got = match.importance(*(torch.stack(parts) for parts in zip(*read, strict=True)), wanted=48)
        for own, head in zip(got, heads, strict=True):
            wanted = reference.importance(*(t.double().numpy() for t in head), COLUMNS, 1.7, 0.15, 1e-6)
            np.testing.assert_allclose(own.numpy(), wanted, atol=1e-5)

    @pytest.mark.parametrize(("rows", "apart"), [(96, 0.0), (97, 0.6), (191, 0.6), (190, 0.6), (449, 1.1)])
    def test_many_queries_are_added_in_pairs(self, rows: int, apart: float) -> None:
        """Up to four for each key are exact. The noise of more is that of as many random signs."""
        generator = torch.Generator().manual_seed(rows)
        attention = torch.softmax(2 * torch.randn(rows, 24, generator=generator), -1)
        got, _ = match.read_from(attention.log(), torch.eye(24), slice(0, None), 1.0)
        wanted = attention.T @ attention / rows
        if apart:
            assert 0.1 * wanted.norm() < (got - wanted).norm() < apart * wanted.norm()
            assert float(got.diagonal().sum()) == pytest.approx(float(wanted.diagonal().sum()), rel=0.3)
        else:
            torch.testing.assert_close(got, wanted)

    def test_of_a_head_that_copies_every_query_counts(self) -> None:
        """Each key is read by one query; other queries read what is not in the context."""
        scores = torch.full((190, 25), -200.0)
        scores[torch.arange(24) * 7, torch.arange(24)] = 0
        scores[:, 24] = torch.where(scores[:, :24].amax(1) == 0, -200.0, 0.0)
        got, _ = match.read_from(scores, torch.eye(25), slice(0, 24), 1.0)
        torch.testing.assert_close(got.diagonal(), torch.full((24,), 1 / 190))

    @pytest.mark.parametrize("wanted", [1, 12, 40])
    def test_heads_end_early_without_another_choice(self, wanted: int) -> None:
        generator = torch.Generator().manual_seed(wanted)
        scores = (
            torch.randn(6, 60, 24, generator=generator) * torch.tensor([0.1, 0.2, 0.5, 1.0, 4.0, 8.0])[:, None, None]
        )
        values = torch.randn(6, 24, 8, generator=generator)
        read = [match.read_from(*head, slice(0, None), 1.0) for head in zip(scores, values, strict=True)]
        grams, reads = (torch.stack(parts) for parts in zip(*read, strict=True))
        whole, some = (match.importance(grams, reads, n) for n in (6 * 24, wanted))
        assert not torch.equal(whole, some)
        assert torch.equal(*(match.chosen([gains], wanted)[0] for gains in (whole, some)))

    def test_keys_that_say_the_same_or_that_nobody_reads(self) -> None:
        """Of two that are read alike the second adds nothing, and there is a number for each."""
        scores = torch.full((6, 9), -200.0)
        scores[:, 0] = 0
        scores[1:3, 5] = scores[1:3, 6] = 3.0
        scores[3:, 8] = 3.0
        read = match.read_from(scores, torch.eye(9), slice(4, None), 1.0)
        (gains,) = match.importance(read[0][None], read[1][None], 5)
        assert gains.isfinite().all()
        assert gains[4] > 0.05
        assert max(gains[1:3]) > 0.02
        assert min(gains[1:3]) < 1e-6
        assert (gains[[0, 3]] < 1e-6).all()
        nothing, _ = match.importance(torch.zeros(2, 5, 5), torch.zeros(2, 5, 3), 10)
        assert nothing.tolist() == [0.0] * 5

    def test_the_weights_are_the_best_that_are_not_negative(self, problem: Any) -> None:
        scores, values, kept = problem
        bias, _ = match.matched(scores, values, mask(kept), COLUMNS)
        numbers = scores.double().numpy()
        _, best = reference.mass(numbers, kept, COLUMNS, 1e-4)
        found = reference.objective(numbers, kept, COLUMNS, np.exp(bias.double().numpy()))
        assert best - 1e-6 <= found <= best * 1.001
        assert found < 0.5 * reference.objective(numbers, kept, COLUMNS, np.ones(len(kept)))

    def test_the_values_are_the_best_for_these_weights(self, problem: Any) -> None:
        scores, values, kept = problem
        bias, fitted = match.matched(scores, values, mask(kept), COLUMNS)
        numbers = (scores.double().numpy(), values.double().numpy())
        wanted = reference.values_for(*numbers, kept, COLUMNS, bias.double().numpy(), 1e-3)
        np.testing.assert_allclose(fitted.numpy(), wanted, atol=1e-5)

    def test_the_fit_reads_what_the_whole_text_gives(self, problem: Any) -> None:
        """The output's error is less than half of that without a fit."""
        scores, values, kept = problem
        bias, fitted = match.matched(scores, values, mask(kept), COLUMNS)
        inside = scores[:, START:]
        whole = torch.softmax(inside, -1) @ values[START:]
        dropped = torch.softmax(inside[:, kept], -1) @ values[START:][kept]
        matched = torch.softmax(inside[:, kept] + bias, -1) @ fitted
        assert (matched - whole).norm() < 0.5 * (dropped - whole).norm()

    def test_keys_that_no_query_reads(self) -> None:
        """They keep their values and a finite number."""
        scores = torch.full((30, 12), -300.0)
        scores[:, 0] = 0
        kept = torch.tensor([True, False, True, True, False, False])
        values = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
        bias, fitted = match.matched(scores, values, kept, slice(6, None))
        assert bias.isfinite().all()
        torch.testing.assert_close(fitted, values[6:][kept])

    def test_all_keys_need_no_fit(self, problem: Any) -> None:
        scores, values, _ = problem
        bias, fitted = match.matched(scores, values, torch.ones(24, dtype=torch.bool), COLUMNS)
        assert not bias.any()
        assert torch.equal(fitted, values[START:])

    def test_no_keys(self, problem: Any) -> None:
        scores, values, _ = problem
        bias, fitted = match.matched(scores, values, torch.zeros(24, dtype=torch.bool), COLUMNS)
        assert (bias.shape, fitted.shape) == ((0,), (0, 8))

    def test_the_largest_of_all_layers_and_heads_are_chosen(self) -> None:
        scores = [torch.tensor([[9.0, 1.0, 2.0], [8.0, 7.0, 6.0]]), torch.tensor([[0.0, 5.0, 0.5]])]
        first, second = match.chosen(scores, 5)
        assert first.tolist() == [[True, False, False], [True, True, True]]
        assert second.tolist() == [[False, True, False]]
        assert sum(int(part.sum()) for part in match.chosen(scores, 1)) == 1


def mask(kept: list[int]) -> torch.Tensor:
    found = torch.zeros(24, dtype=torch.bool)
    found[kept] = True
    return found


PAIRS = [*((family, False) for family in ("llama", "qwen3", "gpt2", "gemma2", "phi", "gpt_neox")), ("llama", True)]


@pytest.mark.parametrize(("family", "in_blocks"), PAIRS)
def test_every_layer_and_head_is_the_formula(
    make_engine: Any, family: str, in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped queries, biases, sliding windows: each head's weights and values are those of the naive version."""
    if in_blocks:
        monkeypatch.setattr("memograft.memory.compact.keys._QUERIES", 20)
        monkeypatch.setattr("memograft.memory.compact.keys._BLOCK", 12)
    engine = make_engine(family)
    model, prompt = model_of(engine), prompt_of(engine)
    segment, start = exact(model, prompt), prompt.spans[0][0]
    assert segment is not None
    tail = tail_of(model, prompt, ["?"])
    asked = asked_of(model.backbone, segment, start, tail)
    carried = compacted(model.backbone, segment, start, 3, tail, int8=False)
    count = 0
    for n, layer in enumerate(carried.layers):
        whole = segment.kv_cache.layers[n]
        if not isinstance(layer, CarriedLayer):
            assert whole.is_sliding
            continue
        together = list(blocks(asked[n].queries.shape[2], start, segment.length))
        assert (len(together) > 1) == in_blocks
        heads = [list(heads_of(whole, asked[n], rows)) for _, rows in together]
        at = 0
        for head in range(len(layer.kept)):
            kept = layer.kept[head].nonzero().flatten().tolist()
            assert kept[:start] == list(range(start))
            own, bias = layer.values[at : at + len(kept)], layer.bias[at : at + len(kept)]
            assert torch.equal(layer.keys[at : at + len(kept)], whole.keys[0, head, kept])
            at += len(kept)
            assert not bias[:start].any()
            for (columns, _), found in zip(together, heads, strict=True):
                scores, values = found[head]
                places = [n for n, column in enumerate(kept) if columns.start <= column < columns.stop]
                context = [kept[n] - columns.start for n in places]
                if 0 < len(context) < columns.stop - columns.start:
                    numbers = (scores.double().numpy(), values.double().numpy())
                    wanted = reference.values_for(*numbers, context, columns, bias[places].double().numpy(), 1e-3)
                    # Ill-conditioned in float32 where few queries read a head's keys.
                    assert np.linalg.norm(own[places].numpy() - wanted) < 2e-4 * np.linalg.norm(wanted)
                    count += 1
    assert count

"""Numbers in 8 bits each."""

from __future__ import annotations

import pytest
import torch

from memograft.model.int8 import Int8


@pytest.mark.parametrize("width", [64, 20])
def test_it_is_the_nearest_with_a_power_of_two_for_each_block(width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(50, width, generator=generator) * torch.logspace(-3, 3, 50)[:, None]
    numbers[3, 0], numbers[4] = 1e4, 0
    got = Int8.of(numbers)
    for row, steps, exponents in zip(numbers.tolist(), got.steps.tolist(), got.exponents.tolist(), strict=True):
        size = width // len(exponents)
        for n, exponent in enumerate(exponents):
            part = row[n * size : (n + 1) * size]
            # The finest for which the largest is no more than 127 steps.
            assert round(max(map(abs, part)) / 2.0**exponent) <= 127
            assert exponent == -24 or not any(part) or round(max(map(abs, part)) / 2.0 ** (exponent - 1)) > 127
            assert steps[n * size : (n + 1) * size] == [round(x / 2.0**exponent) for x in part]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_has_its_numbers(dtype: torch.dtype) -> None:
    """So what was rounded once is rounded no further, and a memory is the same where it is used and on disk."""
    numbers = torch.randn(50, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    small = Int8.of(numbers)
    again = Int8.of(small.numbers(dtype))
    assert torch.equal(again.steps, small.steps)
    assert torch.equal(again.exponents, small.exponents)
    assert torch.equal(small.numbers(dtype).float(), small.numbers(torch.float32))
    assert small.nbytes == 50 * (64 + 2)

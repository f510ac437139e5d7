"""Keys and values that a memory carries, as the bytes of a safetensors file.

ids (C,) int32        the tokens
<n>.keys, <n>.values  of layer n: exact (1, H, C, d); or compacted (k, d), head by head, with
<n>.bias (k,)         the number that is added to the scores of each key, float32
<n>.kept (H, C / 8)   which keys of each head these are, a bit each

In 8 bits, <n>.keys and <n>.values are int8, with <n>.keys.exponents and <n>.values.exponents (k, blocks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load, save

from memograft.model.carried import Carried, CarriedLayer
from memograft.model.int8 import Int8, blocks_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["packed", "unpacked"]

_EXPONENTS = ".exponents"


def packed(carried: Carried) -> bytes:
    """The content of the file."""
    tensors = {"ids": torch.tensor(carried.ids, dtype=torch.int32)}
    for n, layer in enumerate(carried.layers):
        if isinstance(layer, CarriedLayer):
            bits = np.packbits(layer.kept.cpu().numpy(), axis=1)
            own = {"bias": layer.bias, "kept": torch.from_numpy(bits)}
            own |= _parts("keys", layer.keys) | _parts("values", layer.values)
        else:
            own = {"keys": layer[0], "values": layer[1]}
        tensors |= {f"{n}.{name}": tensor.cpu().contiguous() for name, tensor in own.items()}
    data: bytes = save(tensors)
    return data


def unpacked(data: bytes, device: torch.device | str, dtype: torch.dtype | None) -> Carried:
    """Read the content of the file; `dtype` is the model's, or None for the file's.

    Raises:
        KeyError, ValueError, RuntimeError, SafetensorError: it is damaged.
    """
    tensors = load(data)
    if any(tensor.is_floating_point() and not tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError("its numbers must be finite")
    ids = tuple(tensors["ids"].tolist())
    count = 1 + max(int(name.split(".")[0]) for name in tensors if "." in name)
    layers = [_layer(tensors, f"{n}.", len(ids), device, dtype) for n in range(count)]
    return Carried(ids, tuple(layers))


def _parts(name: str, own: Tensor | Int8) -> dict[str, Tensor]:
    return {name: own.steps, name + _EXPONENTS: own.exponents} if isinstance(own, Int8) else {name: own}


def _numbers(
    tensors: dict[str, Tensor], name: str, device: torch.device | str, dtype: torch.dtype | None
) -> Tensor | Int8:
    own, exponents = tensors[name].to(device), tensors.get(name + _EXPONENTS)
    if exponents is None:
        return own.to(dtype)
    if exponents.shape != (len(own), blocks_of(own.shape[-1])) or not own.dtype == exponents.dtype == torch.int8:
        raise ValueError(f"{name}{_EXPONENTS} must have an int8 for each block of {name}")
    return Int8(own, exponents.to(device))


def _layer(
    tensors: dict[str, Tensor], at: str, columns: int, device: torch.device | str, dtype: torch.dtype | None
) -> CarriedLayer | tuple[Tensor, Tensor]:
    if at + "kept" not in tensors:
        return tensors[at + "keys"].to(device, dtype), tensors[at + "values"].to(device, dtype)
    keys, values = (_numbers(tensors, at + name, device, dtype) for name in ("keys", "values"))
    kept = torch.from_numpy(np.unpackbits(tensors[at + "kept"].numpy(), axis=1, count=columns)).bool()
    bias = tensors[at + "bias"]
    if not int(kept.sum()) == len(keys) == len(values) == len(bias):
        raise ValueError(f"{at}kept must mark {len(keys)} keys, got {int(kept.sum())}")
    return CarriedLayer(kept.to(device), keys, values, bias.to(device))

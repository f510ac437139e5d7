"""GGUF files as folders that transformers loads: checked, then converted once by its own GGUF loader.

That loader takes half a minute for 100 MB: it unpacks the weights and rebuilds the tokenizer. The folder that is saved
loads in a second or two.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from memograft.errors import MissingExtraError, SettingsError, UnsupportedModelError
from memograft.model_cache import digest, kept

__all__ = ["converted"]

logger = logging.getLogger(__name__)

_MAGIC = b"GGUF"


def converted(file: Path, dtype: torch.dtype) -> AbstractContextManager[Path]:
    """A folder with the model and the tokenizer of a GGUF file, as transformers gives them in this dtype.

    Raises:
        SettingsError: there is no such file, or it is no GGUF file or a damaged one.
        UnsupportedModelError: transformers cannot read this architecture, tokenizer or kind of quantisation.
        MissingExtraError: the package `gguf` is not installed.
    """
    import transformers

    _check_begin(file)
    # One entry for what decides the outcome: the bytes, the dtype, and the code that converts.
    kind = f"{str(dtype).removeprefix('torch.')}-transformers-{transformers.__version__}"
    return kept(f"{file.stem[:80]}-{digest(file)[:16]}-{kind}", lambda folder: _convert(file, dtype, folder))


def _convert(file: Path, dtype: torch.dtype, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check(file)
    logger.info("converting %s once, into %s", file, folder.parent)
    with _alone(file) as place:
        try:
            tokenizer = AutoTokenizer.from_pretrained(**place)
            model = AutoModelForCausalLM.from_pretrained(**place, dtype=dtype, **_unpacked())
        except (ValueError, NotImplementedError, KeyError) as error:
            raise UnsupportedModelError(
                f"a GGUF file must hold a causal language model that transformers can convert, but {file}: "
                f"{_first_line(error)}; use another quantisation (Q4_0, Q4_K, Q8_0, F16) or the model's own folder"
            ) from error
        model.hf_quantizer = None  # the weights are plain numbers now, which it would refuse to save
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _unpacked() -> dict[str, Any]:
    """What tells transformers to unpack the weights; before it could keep them packed it always did."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _alone(file: Path) -> Iterator[dict[str, Any]]:
    """Arguments of `from_pretrained` for the file by itself: from a folder it would mix in what lies beside it."""
    with TemporaryDirectory(prefix="memograft-") as temporary:
        link = Path(temporary) / "model.gguf"
        with suppress(OSError):  # not every system lets everybody make links
            link.symlink_to(file.resolve())
        chosen = link if link.exists() else file
        yield {"pretrained_model_name_or_path": str(chosen.parent), "gguf_file": chosen.name}


def _check_begin(file: Path) -> None:
    if not file.is_file():
        raise SettingsError(
            f"there is no GGUF file at {file}; check the path, or for a file on the Hugging Face hub give the "
            'repository\'s id and `gguf_file="..."`'
        )
    with file.open("rb") as opened:
        found = opened.read(len(_MAGIC))
    if found != _MAGIC:
        raise SettingsError(f"a GGUF file must begin with {_MAGIC!r}, but {file} begins with {found!r}; check the path")


def _check(file: Path) -> None:
    """Refuse what transformers would only notice late, or with words that name no file."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError(
            "reading GGUF files needs the package gguf, which is not installed; run `pip install 'memograft[gguf]'`"
        ) from error
    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise SettingsError(
            f"a GGUF file must be whole, but {file} ({file.stat().st_size:,} bytes) is cut off or damaged "
            f"({_first_line(error)}); download it again"
        ) from error
    if "split.count" in reader.fields and reader.fields["split.count"].contents() > 1:
        raise SettingsError(
            f"a GGUF file must hold all of a model, but {file} is one of {reader.fields['split.count'].contents()} "
            "parts; join them with `llama-gguf-split --merge`"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

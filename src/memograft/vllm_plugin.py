"""A plugin of vLLM: memories become adapters when a client asks for a model of their name.

vLLM calls `register` in each of its processes, as the entry point `memograft` of `vllm.general_plugins`. It does
nothing unless an environment variable is set:

    MEMOGRAFT_MEMORIES   a folder of `memograft export`, the folder of a bank, or a URL of one that fsspec reads
    MEMOGRAFT_MAX_RANK   vLLM's --max-lora-rank, for banks: a memory of a larger rank is cut to it. Left out, 512
    MEMOGRAFT_CACHE      local copies of the adapters are kept in its folder vllm/

A fault of a memory is a warning in vLLM's log and an unknown model for the client; vLLM goes on. Nothing heavy is
imported before a memory is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.errors import SettingsError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

__all__ = ["MAX_RANK", "MEMORIES", "MemoryResolver", "register"]

MEMORIES, MAX_RANK = "MEMOGRAFT_MEMORIES", "MEMOGRAFT_MAX_RANK"
_log = logging.getLogger(__name__)


def register() -> None:
    """Register the resolver with vLLM, if `MEMOGRAFT_MEMORIES` is set. A fault is a warning, not an error."""
    place = os.environ.get(MEMORIES)
    if not place:
        return
    try:
        from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

        max_rank = _max_rank(os.environ.get(MAX_RANK))
        if "://" not in place and not Path(place).is_dir():
            _log.warning("%s must be a folder or a URL, and there is no folder %s yet; check the path", MEMORIES, place)
        LoRAResolver.register(MemoryResolver)
        LoRAResolverRegistry.register_resolver("memograft", MemoryResolver(place, max_rank))
    except Exception as error:  # a plugin must not end its host
        _log.warning("Memograft's memories are not served: %s; correct it and start vLLM again", error)


def _max_rank(text: str | None) -> int | None:
    from memograft.memory.export import RANKS

    if text and text not in map(str, RANKS["vllm"]):
        raise SettingsError(f"`{MAX_RANK}` must be one of {', '.join(map(str, RANKS['vllm']))}, got {text!r}")
    return int(text) if text else None


class MemoryResolver:
    """Finds memories for vLLM by their id or name; a `LoRAResolver` of vLLM.

    Args:
        place: folder or URL.
        max_rank: vLLM's largest rank, for a bank.
    """

    def __init__(self, place: str, max_rank: int | None = None) -> None:
        self._place, self._max_rank = place, max_rank

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter of a memory; None if there is none of that name, or it cannot be used (see the log)."""
        try:
            found = await asyncio.to_thread(self._fetched, base_model_name, lora_name)
        except Exception as error:  # the client gets "no such model", and the others their answers
            _log.warning("memory %r is not served: %s", lora_name, error)
            return None
        if found is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(lora_name=lora_name, lora_int_id=int(found.name[:15], 16) + 1, lora_path=str(found))

    def _fetched(self, base_model: str, name: str) -> Path | None:
        from memograft.memory.fetch import fetched
        from memograft.model.converted import root

        return fetched(self._place, name, root() / "vllm", base_model, max_rank=self._max_rank)

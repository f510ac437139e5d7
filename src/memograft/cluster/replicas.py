"""`replicated`: the server as an application of Ray Serve, with replicas over one bank.

    client ──> Ray Serve's proxy ──> a replica: Guard, routes, engine ──> <bank>/<tenant>/...
                                     another replica ───────────────────> the same folders

Each replica has a model, a queue, limits and metrics of its own. What they share is the bank's folder: a memory that
was made through one is found by the others.
"""

from __future__ import annotations

import logging.config
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.cluster.pool import Pool, check_ray, ray_at, there
from memograft.engine import Engine
from memograft.errors import SettingsError
from memograft.passages.embedders import embedder_named
from memograft.server.app import create_app
from memograft.server.guard import LOOPBACK
from memograft.server.keys import Keys
from memograft.server.run import LOGS
from memograft.server.settings import ServerSettings
from memograft.server.tenants import Tenants

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

__all__ = ["ServerOf", "app", "replicated", "serve_replicas"]

_MORE = 16  # requests beside answers that a replica takes at a time, such as for lists and metrics


@dataclass(frozen=True)
class ServerOf:
    """What each replica is made of.

    Attributes:
        bank: folder for memories, which all replicas must see under its path.
        model: see `Engine.from_pretrained`.
        settings: names and limits, which hold for each replica by itself.
        keys: file of `memograft keys add`; None: no keys.
        stores: folders of stores that all clients may search.
        embedder: "lexical", or a model of sentence-transformers, for /v1/embeddings; None: not served.
        device: of the model.
        max_batch: answers that are decoded together.
        max_length: tokens of prompt and answer together; None: the model's window.
        open_to_all: whether clients without keys may address the server by any name.
    """

    bank: str
    model: str = "tiny"
    settings: ServerSettings = field(default_factory=ServerSettings)
    keys: str | None = None
    stores: tuple[str, ...] = ()
    embedder: str | None = None
    device: str | None = None
    max_batch: int = 16
    max_length: int | None = None
    open_to_all: bool = False

    def app(self) -> FastAPI:
        """Load the model and make the application, in the replica's process.

        Clients cannot make stores, because a store has one writer.
        """
        settings = replace(self.settings, max_stores=0)
        engine = Engine.from_pretrained(
            self.model, device=self.device, max_batch=self.max_batch, max_length=self.max_length
        )
        embedder = embedder_named(self.embedder, self.device) if self.embedder else None
        return create_app(
            engine,
            settings,
            keys=Keys(self.keys) if self.keys else None,
            embedder=embedder,
            hosts=None if self.open_to_all else LOOPBACK,
            tenants=Tenants(engine, settings, bank=self.bank, shared=self.stores, embedder=embedder),
        )


def replicated(server: ServerOf, pool: Pool) -> Application:
    """The application for `ray.serve.run`; the pool's workers are the replicas.

    Raises:
        SettingsError: there is no folder for the bank.
        MissingExtraError: Ray is not installed.
    """
    if not server.bank:
        raise SettingsError(
            "replicas share a bank's folder, got none; pass --bank FOLDER, or bank=FOLDER to `serve run`"
        )
    check_ray()
    from ray import serve

    server = replace(
        server,
        bank=str(Path(server.bank).resolve()),
        model=there(server.model),
        keys=server.keys and there(server.keys),
        stores=tuple(map(there, server.stores)),
    )

    def build() -> FastAPI:
        logging.config.dictConfig(LOGS)  # into Ray's logs
        return server.app()

    return serve.deployment(
        name="memograft",
        num_replicas=pool.workers,
        ray_actor_options={"num_cpus": pool.cpus, "num_gpus": pool.gpus},
        max_ongoing_requests=server.max_batch + server.settings.max_queue + _MORE,  # its own limits are lower
        graceful_shutdown_timeout_s=server.settings.shutdown_timeout,
    )(serve.ingress(build)()).bind()


def serve_replicas(server: ServerOf, pool: Pool, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve replicas until SIGINT; see `ray_at` for where they run.

    Raises:
        SettingsError, MissingExtraError: see `replicated` and `ray_at`.
    """
    target = replicated(server, pool)
    with ray_at(pool):
        from ray import serve

        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(target, blocking=True)
        finally:
            serve.shutdown()


def app(options: Mapping[str, str]) -> Application:
    """For `serve run memograft.cluster.replicas:app bank=FOLDER model=tiny replicas=2`; also keys=, cpus= and gpus=."""
    known = {"bank", "model", "keys", "replicas", "cpus", "gpus"}
    if unknown := set(options) - known:
        raise SettingsError(f"the options of a server are {sorted(known)}, got {sorted(unknown)}; check the names")
    pool = Pool(int(options.get("replicas", 1)), cpus=int(options.get("cpus", 1)), gpus=float(options.get("gpus", 0)))
    model = options.get("model", "tiny")
    settings = ServerSettings(model=model)
    return replicated(ServerOf(options.get("bank", ""), model, settings, options.get("keys")), pool)

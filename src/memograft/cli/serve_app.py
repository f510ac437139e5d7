"""`memograft serve` and `memograft keys`. Importing this loads neither torch nor FastAPI; running it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from memograft.cli.console import err, out, reporting, warn
from memograft.cli.options import AddressOption, DeviceOption, JsonOption, ModelOption, SettingsOption
from memograft.errors import SettingsError

__all__ = ["keys_app", "serve"]

keys_app = typer.Typer(
    help="Keys of the clients of `memograft serve`.", no_args_is_help=True, pretty_exceptions_enable=False
)

FileArgument = Annotated[Path, typer.Argument(help="File with the hashes of the keys.", metavar="FILE")]
NameArgument = Annotated[str, typer.Argument(help="Name of the key's holder.", metavar="NAME")]


def serve(
    model: ModelOption = "tiny",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Id of the model for clients; left out, the value of --model.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of `memograft keys add`: only clients with one of these keys are served.")
    ] = None,
    no_keys: Annotated[
        bool, typer.Option("--no-keys", help="Serve other machines without keys. Everybody there can use it.")
    ] = False,
    bank: Annotated[
        Path | None,
        typer.Option(
            help="Folder for memories; without one they are kept in process memory, and only those of POST "
            "/v1/memories."
        ),
    ] = None,
    stores: Annotated[
        Path | None, typer.Option(help="Folder for the clients' stores; without one they are kept in process memory.")
    ] = None,
    store: Annotated[
        list[Path] | None,
        typer.Option(
            help="A store of `memograft index` that all clients may search, under its folder's name; repeatable."
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(help='Serve /v1/embeddings: "lexical" (no model), or a model of sentence-transformers.'),
    ] = None,
    device: DeviceOption = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers that are decoded together.")] = 16,
    max_queue: Annotated[int, typer.Option(min=0, help="Answers that may wait; beyond it clients get 429.")] = 64,
    max_per_key: Annotated[
        int | None, typer.Option(min=1, help="Answers that one key may have in progress; left out, no own limit.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer that may be asked for; left out, the model's window.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer together; left out, the model's window.")
    ] = None,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request.")] = 4 << 20,
    max_upload: Annotated[
        int, typer.Option(min=1024, help="Bytes of a request that adds documents to a store, as JSON or as files.")
    ] = 32 << 20,
    max_memories: Annotated[int, typer.Option(min=1, help="Memories of a key's holder.")] = 256,
    memory_bytes: Annotated[int, typer.Option(min=1, help="Bytes of all memories of a key's holder.")] = 1 << 30,
    cache_bytes: Annotated[
        int,
        typer.Option(
            min=1, help="Bytes of memories that a key's bank keeps in process memory, and as many of keys and values."
        ),
    ] = 256 << 20,
    max_stores: Annotated[int, typer.Option(min=1, help="Stores of a key's holder.")] = 32,
    store_bytes: Annotated[int, typer.Option(min=1, help="Bytes of all stores of a key's holder.")] = 1 << 30,
    max_passages: Annotated[int, typer.Option(min=1, help="Passages of a store.")] = 100_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for an answer, with its time in the queue.")] = 300,
    read_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which a client must send its headers, and then the body.")
    ] = 20,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for which answers may go on after Ctrl-C or SIGTERM.")
    ] = 60,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="For requests without a temperature; 0 is greedy.")
    ] = 0.0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Do not memorize documents of requests that do not ask for it.")
    ] = False,
    settings: SettingsOption = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Processes with a model each over one --bank, run by Ray Serve; 1: this one.")
    ] = 1,
    ray_address: AddressOption = None,
    cpus: Annotated[int, typer.Option("--cpus-per-replica", min=1, help="Cores, and threads, of a replica.")] = 1,
    gpus: Annotated[
        float, typer.Option("--gpus-per-replica", min=0, help="GPUs of a replica; 0.5 lets two share one.")
    ] = 0.0,
) -> None:
    """Serve a model with OpenAI's protocol, on this machine or, with keys, to others."""
    with reporting(as_json=False):
        from memograft.cli.models import fast_mem, load_engine
        from memograft.cluster.pool import Pool
        from memograft.cluster.replicas import ServerOf, serve_replicas
        from memograft.passages.embedders import embedder_named
        from memograft.server import Keys, ServerSettings, Tenants, create_app
        from memograft.server.guard import LOOPBACK
        from memograft.server.run import bound, check_host
        from memograft.server.run import serve as run

        check_host(host, keys=keys is not None, open_to_all=no_keys)
        if keys is not None and no_keys:
            warn("--no-keys has no effect with --keys")
        own = ServerSettings(
            model=name or model,
            embedding_model=embedder or "embedder",
            memory=None if plain else fast_mem(settings),
            temperature=temperature,
            max_tokens=max_tokens,
            max_body=max_body,
            max_queue=max_queue,
            max_per_key=max_per_key,
            max_upload=max_upload,
            max_memories=max_memories,
            memory_bytes=memory_bytes,
            cache_bytes=cache_bytes,
            max_stores=max_stores,
            store_bytes=store_bytes,
            max_passages=max_passages,
            timeout=timeout,
            read_timeout=read_timeout,
            shutdown_timeout=shutdown_timeout,
        )
        pool = Pool(replicas, ray_address, cpus, gpus)
        if not pool.alone:
            if stores is not None:
                raise SettingsError(
                    f"a store has one writer, so replicas cannot keep clients' stores, got --stores {stores}; leave it "
                    "out, and name stores that all may search with --store"
                )
            server = ServerOf(
                str(bank or ""),
                model,
                own,
                keys=None if keys is None else str(keys),
                stores=tuple(map(str, store or ())),
                embedder=embedder,
                device=device,
                max_batch=max_batch,
                max_length=max_length,
                open_to_all=no_keys,
            )
            serve_replicas(server, pool, host=host, port=port)
            return
        known = None if keys is None else Keys(keys)
        found = None if embedder is None else embedder_named(embedder, device)
        with (
            bound(host, port) as listener,
            load_engine(model, device, max_batch=max_batch, max_length=max_length) as engine,
            Tenants(engine, own, bank=bank, stores=stores, shared=store or (), embedder=found) as tenants,
        ):
            app = create_app(
                engine, own, keys=known, embedder=found, hosts=None if no_keys else LOOPBACK, tenants=tenants
            )
            shown = f"[{host}]" if ":" in host else host
            err().print(Text(f"serving {own.model} at http://{shown}:{port}/v1 (Ctrl-C ends it)"), soft_wrap=True)
            run(app, listener)


@keys_app.command()
def add(
    file: FileArgument,
    name: NameArgument,
    operator: Annotated[bool, typer.Option("--operator", help="It may also read the metrics.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once: the file has only its hash."""
    with reporting(as_json) as result:
        from memograft.server.keys import add_key

        key = add_key(file, name, operator=operator)
        result |= {"file": str(file), "name": name, "key": key, "operator": operator}
        if not as_json:
            out().print(Text(key), soft_wrap=True)
            err().print(Text(f"{name}'s key; it cannot be shown again, because {file} has only its hash"))


@keys_app.command("ls")
def list_(file: FileArgument, as_json: JsonOption = False) -> None:
    """List the names of the keys."""
    with reporting(as_json) as result:
        from memograft.server.keys import read_keys

        keys = read_keys(file)
        result |= {"keys": [{"name": key.name, "operator": key.operator, "made": key.made} for key in keys]}
        if not as_json:
            for key in keys:
                out().print(Text(f"{key.name}  {key.made}{'  operator' if key.operator else ''}"), soft_wrap=True)


@keys_app.command()
def rm(file: FileArgument, name: NameArgument, as_json: JsonOption = False) -> None:
    """Remove a key. Running servers refuse it from then on."""
    with reporting(as_json) as result:
        from memograft.server.keys import remove_key

        remove_key(file, name)
        result |= {"file": str(file), "removed": name}
        if not as_json:
            out().print(Text(f"removed the key {name}"), soft_wrap=True)

"""`gpt3jax serve`: serve a model over OpenAI's completions API."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from tyro.conf import Positional

from gpt3jax.commands.inputs import check_range
from gpt3jax.errors import ConfigError

LONGEST_TOKEN = 1000


def serve(
    run: Positional[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    rows: int = 16,
    queue: int = 256,
    max_tokens: int = 4096,
    token_file: Path | None = None,
    step: int | None = None,
) -> None:
    """Serve a model over OpenAI's /v1/completions API, with a web page to try it.

    Examples:
      gpt3jax serve runs/tiny
      gpt3jax serve runs/tiny --port 9000 --token-file token --host 0.0.0.0

    Args:
      run: The run.
      host: Address to listen on; any but loopback lets other machines use the model.
      port: Port to listen on; 0: any free port.
      rows: Maximum batch size of batched decode; a power of two.
      queue: Maximum number of queued sequences; further requests are answered with 429.
      max_tokens: Maximum number of new tokens per sequence.
      token_file: A file with the bearer token that requests must carry.
      step: Step of the checkpoint; default: the newest.
    """
    check_range(0, 65_535, port=port)
    check_range(1, 1024, rows=rows)
    check_range(1, 10**6, queue=queue, max_tokens=max_tokens)
    if rows & (rows - 1):
        raise ConfigError(f"--rows is {rows}: it must be a power of two. Change it")
    token = None
    if token_file:
        try:
            token = token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file cannot be read: {error}. Check it") from error
        if not token.isprintable() or not 0 < len(token) <= LONGEST_TOKEN:
            raise ConfigError(
                f"--token-file {token_file} has no token: it must be one line of up to "
                f"{LONGEST_TOKEN} characters. Write one"
            )
    try:
        from gpt3jax.serve import server
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serving needs the package {error.name}. pip install 'gpt3jax[serve]'"
        ) from error
    from gpt3jax.decoding.generator import load_generator
    from gpt3jax.serve.api import Served
    from gpt3jax.serve.batching import Owner

    bound = server.listen(host, port)
    server.warn_if_public(host, token)
    log = partial(print, file=sys.stderr, flush=True)
    log(f"loading {run}")
    generator = load_generator(run, step)
    name = run.resolve().name
    served = Served(name, generator.model, generator.tokenizer, max_tokens, queue)
    owner = Owner(generator, rows, queue)
    owner.start(log)
    bound.listen(server.BACKLOG)
    print(f"{name} is served on {server.address_of(bound)} (Ctrl-C to stop)", flush=True)
    server.make_server(served, owner, bound, token).run(sockets=[bound])

"""`gpt3jax perplexity`: perplexity on held-out text."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from gpt3jax.commands.inputs import check_range
from gpt3jax.config import Data, Mesh, Source, Weights
from gpt3jax.errors import ConfigError

if TYPE_CHECKING:
    from gpt3jax.checkpoint.load import LoadedModel
    from gpt3jax.evals.perplexity import Perplexity


def perplexity(
    run: Positional[Path],
    data: Path | None = None,
    windows: int = 0,
    mesh: Mesh = Mesh(data=1, fsdp=-1),  # noqa: B008 (frozen)
    weights: Weights = "full",
    step: int | None = None,
    json: bool = False,
) -> None:
    """Measure perplexity on held-out text, per token, byte, word and position.

    Examples:
      gpt3jax perplexity runs/tiny
      gpt3jax perplexity runs/tiny --data data/books --windows 500 --json

    Args:
      run: The run.
      data: A folder made by `data prepare` with the run's tokenizer; default: the run's own data.
      windows: Number of held-out windows; 0: all.
      mesh: Devices along each axis of the mesh.
      weights: Storage of matrices, as for `generate`.
      step: Step of the checkpoint; default: the newest.
      json: Print the results as JSON.
    """
    check_range(0, 10**9, windows=windows)
    import jax

    from gpt3jax.checkpoint.load import load_model
    from gpt3jax.data import loader
    from gpt3jax.evals import perplexity as evals
    from gpt3jax.model.lora import merge_lora
    from gpt3jax.model.quantized import quantize_and_restore
    from gpt3jax.runtime.progress import progress
    from gpt3jax.sharding.mesh import make_mesh

    devices = make_mesh(mesh)
    with jax.set_mesh(devices):
        saved = load_model(run, step, devices)
        params, model = saved.params, saved.model
        held_out = loader.held_out(_sources(saved, data), windows, model.context)
        if weights != "full":
            params, model = merge_lora(params, model)
            params = jax.jit(quantize_and_restore, static_argnames="weights")(params, weights)
        lengths = evals.token_lengths(saved.tokenizer, model.padded_vocabulary)
        with progress() as report:
            measured = evals.perplexity(
                params, model, devices, held_out, lengths, lambda share: report("windows", share)
            )
    assert measured is not None  # The callback never stops the evaluation.
    words = evals.count_words(held_out, saved.tokenizer)
    if not json:
        _print(measured, words)
        return
    record = {
        "run": str(run),
        "step": saved.step,
        "windows": measured.windows,
        "windows_available": measured.available,
        "tokens": measured.tokens,
        "bytes": measured.text_bytes,
        "words": words,
        "val_loss": measured.per_token,
        "val_bits_per_byte": measured.bits_per_byte,
        "word_perplexity": measured.per_word(words),
        "loss_by_position": [measured.at_positions(i, i + 1) for i in range(model.context)],
    }
    print(dumps(record))


def _sources(saved: LoadedModel, data: Path | None) -> Data:
    """The run's data, or another folder's, with the run's tokenizer."""
    from gpt3jax.data.manifest import load_manifest

    sources = saved.experiment.data
    if data is not None:
        sources = Data(sources=(Source(data.name or "data", str(data)),))
    for source in sources.sources:
        manifest = load_manifest(source.path)
        if manifest.tokenizer != saved.tokenizer.hash:
            raise ConfigError(
                f"data {source.path} has tokenizer {manifest.tokenizer}, the run "
                f"{saved.tokenizer.hash}: ids would not mean the same. Prepare it with "
                f"--tokenizer {saved.run.tokenizer_file}"
            )
    return sources


def _print(measured: Perplexity, words: int) -> None:
    print(
        f"{measured.per_token:.4f} nats/token, {measured.bits_per_byte:.4f} bits/byte, perplexity "
        f"{measured.per_word(words):,.1f} per word, over {measured.windows:,} of "
        f"{measured.available:,} held-out windows: {measured.tokens:,} tokens, "
        f"{measured.text_bytes:,} bytes, {words:,} words and line ends"
    )
    print("tokens before it, and the loss there in nats/token:")
    context = len(measured.nats_by_position)
    for first in sorted({0, *(1 << n for n in range(context.bit_length() - 1))}):
        stop = min(context, max(first + 1, 2 * first))
        loss = measured.at_positions(first, stop)
        name = f"{first + 1}" if stop == first + 1 else f"{first + 1} to {stop}"
        print(f"  {name:>14}  {'no targets' if loss is None else f'{loss:.3f}'}")

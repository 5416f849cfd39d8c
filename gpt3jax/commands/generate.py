"""`gpt3jax generate`: generate text from a prompt."""

from __future__ import annotations

import sys
from pathlib import Path

from tyro.conf import Positional

from gpt3jax.commands.inputs import check_range, read_prompt
from gpt3jax.config import Weights
from gpt3jax.errors import ConfigError

MOST_SAMPLES = 4096
"""Samples decoded in one batch; more would not fit in memory."""


def generate(
    run: Positional[Path],
    prompt: str | None = None,
    prompt_file: Path | None = None,
    new_tokens: int = 200,
    samples: int = 1,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    beams: int = 0,
    weights: Weights = "full",
    step: int | None = None,
    json: bool = False,
) -> None:
    """Generate text from a prompt.

    Examples:
      gpt3jax generate runs/tiny --prompt 'def main('
      gpt3jax generate runs/tiny --prompt 'class ' --samples 4 --top-p 0.9 --seed 7
      gpt3jax generate runs/tiny --prompt 'import ' --beams 4 --new-tokens 20
      head -c 200 code.py | gpt3jax generate runs/tiny

    Args:
      run: The run.
      prompt: Text to continue; empty: start a new document. With -, or without a prompt if
        standard input is not a terminal, it is read from standard input, unmodified.
      prompt_file: A file with the text to continue.
      new_tokens: Maximum number of new tokens; the end of a document or a stop string ends sooner.
      samples: Number of samples.
      temperature: Values below 1 sharpen the distribution; 0 is greedy.
      top_k: Sample from the k most likely tokens; 0: from all.
      top_p: Sample from the smallest set of tokens whose probabilities add up to this.
      stop: Stop before any of these strings.
      seed: Random seed.
      beams: Use beam search of this width instead of sampling (the paper: 4, length penalty 0.6).
      weights: Quantize matrices to a half or a quarter of the bytes of float32; this changes the
        model slightly (see `perplexity --weights`).
      step: Step of the checkpoint; default: the newest.
      json: Print one JSON object with the prompt and the texts.
    """
    check_range(0, 2**32 - 1, seed=seed)
    check_range(1, MOST_SAMPLES, samples=samples)
    if prompt is not None and prompt_file is not None:
        raise ConfigError("--prompt and --prompt-file are both given: only one can be. Drop one")
    text = read_prompt(prompt, prompt_file)
    write(
        run, text, new_tokens=new_tokens, samples=samples, temperature=temperature,
        top_k=top_k, top_p=top_p, stop=stop, seed=seed, beams=beams, weights=weights, step=step,
        as_json=json,
    )  # fmt: skip


def write(
    path: Path,
    prompt: str,
    *,
    new_tokens: int,
    samples: int,
    temperature: float,
    top_k: int,
    top_p: float,
    stop: tuple[str, ...],
    seed: int,
    beams: int,
    weights: Weights,
    step: int | None,
    as_json: bool,
) -> None:
    """Print generated text; a single sample is streamed."""
    import json

    from gpt3jax.decoding.decode import Sampling
    from gpt3jax.decoding.generator import load_generator

    if new_tokens < 1 or samples < 1 or beams < 0:
        raise ConfigError(
            "--new-tokens and --samples must be at least 1, --beams at least 0. Raise them"
        )
    if 0 < beams < samples:
        raise ConfigError(
            f"--samples is {samples}: {beams} beams give at most as many samples. Raise --beams"
        )
    sampling = Sampling(temperature, top_k, top_p)
    generator = load_generator(path, step, weights)
    settings = {"new_tokens": new_tokens, "sampling": sampling, "seed": seed, "stop": stop}
    if samples == 1 and not beams and not as_json:
        sys.stdout.write(prompt)
        for piece in generator.text(prompt, **settings):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
        return
    if beams:
        results = generator.beam_search(
            generator.tokenizer.encode(prompt), new_tokens=new_tokens, width=beams
        )
        texts = [generator.decode_until(beam.tokens, stop) for beam in results[:samples]]
    else:
        texts = generator.samples(prompt, samples, **settings)
    if as_json:
        print(json.dumps({"prompt": prompt, "texts": texts, "seed": seed}, ensure_ascii=False))
        return
    for number, text in enumerate(texts, 1):
        print(f"--- {number}\n{prompt}{text}")

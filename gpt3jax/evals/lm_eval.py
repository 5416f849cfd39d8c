"""An adapter of runs for EleutherAI's lm-evaluation-harness (extra `eval`).

    python -m gpt3jax.evals.lm_eval --model gpt3jax --model_args run=runs/tiny \
        --tasks lambada_openai

All arguments are those of the harness's `lm_eval` command, which cannot discover
models of other packages (0.4.13); from Python, import this module first. Prompts
and scoring rules are the harness's and differ from the paper's. Generation is
greedy.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import jax

from gpt3jax.checkpoint.load import load_model
from gpt3jax.config import Mesh
from gpt3jax.errors import ConfigError, RunError
from gpt3jax.evals.scoring import Scorer
from gpt3jax.sharding.mesh import make_mesh

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as missing:
    why = f"the harness needs the package {missing.name}. pip install 'gpt3jax[eval]'"
    if __name__ != "__main__":
        raise ConfigError(why) from missing
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(2) from None

MAX_NEW_TOKENS = 256
"""The harness's default for tasks that do not set it."""


@register_model("gpt3jax")
class Gpt3Jax(TemplateLM):
    """The model of a run.

    Args:
      run: the run directory.
      step: of the checkpoint (default: the newest).
      **ignored: generic arguments of the harness such as batch_size.
    """

    def __init__(self, run: str, step: int | None = None, **ignored: Any) -> None:
        super().__init__()
        mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
        saved = load_model(Path(run), step, mesh)
        self._scorer = Scorer(saved.params, saved.model, saved.tokenizer, mesh)
        self._context = saved.model.context

    @property
    def eot_token_id(self) -> int:
        return self._scorer.tokenizer.end_of_text

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in the harness's cache of requests."""
        return f"gpt3jax-{self._scorer.tokenizer.hash}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self._scorer.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for texts, prompt, completion in requests:
            if not completion:
                raise ConfigError(
                    f"the continuation in {str(texts)[:80]} has no token of its own: there is "
                    "nothing to score. It must not be empty or part of the context"
                )
            if len(completion) > self._context:
                raise ConfigError(
                    f"a continuation has {len(completion)} tokens, the model's context is "
                    f"{self._context}: it cannot be scored. Use a model with more context"
                )
            room = self._context + 1 - len(completion)
            # The harness moves trailing spaces of a context to the continuation, so a context
            # of spaces becomes empty.
            context = prompt[-room:] or [self.prefix_token_id]
            pairs.append((tuple(context), tuple(completion)))
        scored = self._scorer.score(pairs) if pairs else []
        return [(sum(each.log_probabilities), all(each.is_likeliest)) for each in scored]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._context,
                context_len=1,
            )
            of_text = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += of_text
            counts.append(len(of_text))
        scores = iter(score for score, _ in self._loglikelihood_tokens(windows))
        return [sum(next(scores) for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts: dict[int, str] = {}
        batches: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            _, options = cast(tuple[str, dict[str, Any]], request.args)
            if options.get("do_sample") or options.get("temperature"):
                raise ConfigError(
                    "the task samples its answers: generation is greedy here. Pass --gen_kwargs "
                    "do_sample=False,temperature=0"
                )
            until = options.get("until") or ()
            stop = (until,) if isinstance(until, str) else tuple(until)
            new_tokens = min(int(options.get("max_gen_toks", MAX_NEW_TOKENS)), self._context - 1)
            batches.setdefault((stop, new_tokens), []).append(number)
        for (stop, new_tokens), numbers in batches.items():
            prompts = [self._prompt(requests[number].args[0], new_tokens) for number in numbers]
            answers = self._scorer.answer(prompts, new_tokens=new_tokens, stop=stop, width=1)
            for number, answer in zip(numbers, answers, strict=True):
                text = self._scorer.tokenizer.decode(answer.tokens)
                ends = [text.find(each) for each in stop if each in text]
                texts[number] = text[: min(ends, default=len(text))]
        return [texts[number] for number in range(len(requests))]

    def _prompt(self, text: str, new_tokens: int) -> tuple[int, ...]:
        tokens = self.tok_encode(text) or [self.eot_token_id]
        return tuple(tokens[-(self._context - new_tokens) :])


if __name__ == "__main__":
    try:
        cli_evaluate()
    except (ConfigError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None

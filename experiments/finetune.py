"""Fine-tuning: a trained run goes on with other text, or with pairs of prompt and completion.

Data       gpt3jax data prepare --corpus pairs.jsonl --pairs prompt completion
             --tokenizer RUN --context CONTEXT --out DATA
Command    an experiment that calls `finetune`, as finetune_words.py does
Cost       as many tokens as the data's windows have, times epochs

The model is the base's, so that its parameters fit; the optimizer begins anew.
What differs from pre-training: the learning rate, a quarter of the base's peak
(GPT, Radford et al. 2018, went from 2.5e-4 to 6.25e-5), or the whole of it for
LoRA's factors, which begin at nothing; warm-up over the first twentieth and a cosine
over all the tokens; no weight decay, which would pull what was learned before to
zero. `base_val_loss` shows what is forgotten of the base's own text.
"""

import dataclasses

from gpt3jax.config import Data, Evaluate, Experiment, Schedule, Source
from gpt3jax.data.manifest import load_manifest
from gpt3jax.run_dir import open_run


def finetune(
    base: str,
    data: str,
    *,
    name: str,
    epochs: float = 3.0,
    lora_rank: int = 0,
    learning_rate: float | None = None,
    only: tuple[str, ...] = (),
    patience: int = 0,
) -> Experiment:
    """An experiment that begins from a run.

    Args:
      base: the run's folder, or RUN@STEP.
      data: what `gpt3jax data prepare` made with the run's tokenizer and context.
      name: of the experiment.
      epochs: how often each window is read.
      lora_rank: of the factors to train in the place of all parameters; 0: all.
      learning_rate: at the peak.
      only: what to train, by path; see `Train.only`.
      patience: evaluations without a better val_loss that end it; 0: none do.
    """
    before = open_run(base if "@" not in base else base.rpartition("@")[0]).experiment()
    context = before.model.context
    batch = min(before.train.batch_tokens, 32 * context)
    tokens = int(epochs * load_manifest(data).train_windows) * context
    steps = max(20, -(-tokens // batch))
    tokens = steps * batch
    usual = before.schedule.peak_learning_rate * (1.0 if lora_rank else 0.25)
    return dataclasses.replace(
        before,
        name=name,
        model=dataclasses.replace(before.model, lora_rank=lora_rank),
        data=Data(sources=(Source("pairs", data),)),
        schedule=Schedule(
            peak_learning_rate=learning_rate or usual,
            warmup_tokens=tokens // 20,
            decay_tokens=tokens,
        ),
        train=dataclasses.replace(
            before.train, batch_tokens=batch, tokens=tokens, steps=None, ramp_tokens=0,
            microbatch=0, log_every=max(1, steps // 40), save_every=max(1, steps // 4), keep=2,
            only=only, patience=patience,
        ),
        optimizer=dataclasses.replace(before.optimizer, weight_decay=0.0),
        evaluate=Evaluate(every=max(1, steps // 10), windows=64, sample_tokens=0),
        init_from=base,
    )  # fmt: skip

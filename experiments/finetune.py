"""Fine-tuning of a trained run on other text, or on pairs of prompt and completion.

Data       gpt3jax data prepare --corpus pairs.jsonl --pairs prompt completion
             --tokenizer RUN --context CONTEXT --out DATA
Command    an experiment that calls `finetune`, as finetune_words.py does
Cost       the tokens of the data's training windows, times epochs

The model config is the base's; the optimizer state is new. Differences from
pre-training: a peak learning rate of a quarter of the base's (GPT, Radford et al.
2018, went from 2.5e-4 to 6.25e-5), or equal to it for LoRA factors, which begin at
zero; AdamW, also for a base that was trained with Muon; warm-up over the first
twentieth of the tokens, and a cosine over all; no weight decay, which would shrink
the pre-trained weights. `base_val_loss` measures forgetting on the base's held-out
windows.
"""

import dataclasses

from gpt3jax.config import AdamW, Data, Evaluate, Experiment, Schedule, Source
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
    """An experiment that fine-tunes a run.

    Args:
      base: the run directory, or RUN@STEP.
      data: folder from `gpt3jax data prepare` with the run's tokenizer and context.
      name: of the experiment.
      epochs: number of passes over the data.
      lora_rank: of LoRA factors to train instead of all parameters; 0 for all parameters.
      learning_rate: at the peak (default: see above).
      only: paths of the parameters to train; see `Train.only`.
      patience: early stopping after as many evaluations without a better val_loss; 0 for none.
    """
    pretrained = open_run(base if "@" not in base else base.rpartition("@")[0]).experiment()
    context = pretrained.model.context
    batch = min(pretrained.train.batch_tokens, 32 * context)
    tokens = int(epochs * load_manifest(data).train_windows) * context
    steps = max(20, -(-tokens // batch))
    tokens = steps * batch
    optimizer = pretrained.optimizer
    adamw = optimizer if isinstance(optimizer, AdamW) else optimizer.adamw
    default_rate = pretrained.schedule.peak_learning_rate * (1.0 if lora_rank else 0.25)
    return dataclasses.replace(
        pretrained,
        name=name,
        model=dataclasses.replace(pretrained.model, lora_rank=lora_rank),
        data=Data(sources=(Source("pairs", data),)),
        schedule=Schedule(
            peak_learning_rate=learning_rate or default_rate,
            warmup_tokens=tokens // 20,
            decay_tokens=tokens,
        ),
        train=dataclasses.replace(
            pretrained.train,
            batch_tokens=batch,
            tokens=tokens,
            steps=None,
            ramp_tokens=0,
            microbatch=0,
            log_every=max(1, steps // 40),
            save_every=max(1, steps // 4),
            keep=2,
            only=only,
            patience=patience,
        ),
        optimizer=dataclasses.replace(adamw, weight_decay=0.0),
        evaluate=Evaluate(every=max(1, steps // 10), windows=64, sample_tokens=0),
        init_from=base,
    )

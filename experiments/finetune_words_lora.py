"""finetune_words.py by low-rank adaptation, with the token embedding.

Data       as there
Command    gpt3jax train experiments/finetune_words_lora.py

The embedding is the output matrix, too. That of the tiny model is not made to tell
these words from others: with it frozen, the loss stays at 4 nats/token, whether the
layers are trained whole or by factors.
"""

from finetune import finetune


def experiment():
    return finetune(
        "runs/tiny",
        "data/words",
        name="finetune_words_lora",
        epochs=6,
        lora_rank=16,
        learning_rate=3e-3,
        only=("layers/lora", "token_embedding"),
    )

"""The task of finetune_words.py by low-rank adaptation (LoRA), with the token embedding.

Data       as for finetune_words.py
Command    gpt3jax train experiments/finetune_words_lora.py
Cost       1.96M tokens; 311,296 of 1,137,408 parameters are trained
Result     100 of 100 held-out pairs; the loss on the base's text rises from 4.12 to 8.4 nats/token

The embedding is also the output matrix, and that of the tiny model does not separate
these words from others: with a frozen embedding, the loss stays at 4 nats/token, with
full training of the layers as well as with LoRA.
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

"""finetune_words.py by low-rank adaptation: a twentieth of the numbers are trained.

Data       as there
Command    gpt3jax train experiments/finetune_words_lora.py
"""

from finetune import finetune


def experiment():
    return finetune("runs/tiny", "data/words", name="finetune_words_lora", epochs=8, lora_rank=16)

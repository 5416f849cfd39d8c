"""The model of describe_to_react.py, fine-tuned on the dialect of the task's answers.

Base       experiments/describe_to_react.py
Data       python experiments/finetune_react.py react.jsonl
           gpt3jax data prepare --corpus react.jsonl --pairs prompt completion
             --tokenizer runs/describe_to_react --context 320 --out data/react-pairs
Command    gpt3jax train experiments/finetune_react.py
           gpt3jax evaluate runs/finetune_react --tasks experiments/describe_to_react.py --shots 0
"""

import json
import sys

from finetune import finetune


def experiment():
    return finetune("runs/describe_to_react", "data/react-pairs", name="finetune_react", epochs=3)


if __name__ == "__main__":
    from describe_to_react import pairs

    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs())

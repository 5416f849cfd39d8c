"""A training loop on one page, from the package's parts: mesh, state, batches, step, loop, sample.

    gpt3jax data prepare --corpus python-library --out data/python-library
    python experiments/minimal.py data/python-library --steps 200

`gpt3jax train experiments/tiny.py` takes the same steps and has the same losses. What it adds is in
gpt3jax/train/: checkpoints and resume, validation, logs, several hosts, and faults of all kinds.
"""

import argparse
import dataclasses

import jax
import numpy as np
from jax.sharding import NamedSharding
from tiny import experiment as tiny

from gpt3jax.config import Data, Source
from gpt3jax.data import loader
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.generator import Generator
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.sharding.rules import partition_spec
from gpt3jax.train.schedules import learning_rate
from gpt3jax.train.state import init_sharded_state
from gpt3jax.train.step import compile_train_step


def train(experiment, steps):
    """The parameters after so many steps, and the loss of each in nats per token."""
    model, batch_windows = experiment.model, experiment.batch_sequences
    # Mesh: axes data, fsdp and tensor over all devices.
    mesh = make_mesh(experiment.mesh)
    # Batches: window i is a pure function of the data, the seed and i.
    windows = loader.windows(experiment.data, experiment.seed, model.context)
    # [microbatches, windows, context + 1]; windows are split over data and fsdp.
    sharding = NamedSharding(mesh, partition_spec((None, "batch", None)))
    losses = []
    with jax.set_mesh(mesh):
        # State: parameters and optimizer moments, initialised where they are sharded.
        state = init_sharded_state(experiment, mesh)
        # Step: (state, windows, microbatches, learning rate) -> (state, metrics).
        step = compile_train_step(experiment, mesh)
        for k in range(steps):
            batch = [windows[k * batch_windows + i] for i in range(batch_windows)]
            batch_MBT1 = jax.device_put(np.stack(batch)[None], sharding)
            tokens = (k + 1) * batch_windows * model.context
            rate = learning_rate(tokens, experiment.schedule)
            state, metrics = step(state, batch_MBT1, np.int32(1), np.float32(rate))
            losses.append(float(metrics["loss"]))
            if k % 20 == 0:
                print(f"step {k + 1:4}  loss {losses[-1]:.4f}  learning rate {rate:.2e}")
    return state.params, losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a folder that `gpt3jax data prepare` made")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prompt", default="class ")
    arguments = parser.parse_args()
    source = Data(sources=(Source("python-library", arguments.data),))
    experiment = dataclasses.replace(tiny(), data=source)
    params, _ = train(experiment, arguments.steps)
    tokenizer = Tokenizer.load(f"{arguments.data}/tokenizer.model")
    # Sample: prefill the prompt, then decode token by token.
    generator = Generator(params, experiment.model, tokenizer)
    print(arguments.prompt + "".join(generator.text(arguments.prompt, new_tokens=64)))


if __name__ == "__main__":
    main()

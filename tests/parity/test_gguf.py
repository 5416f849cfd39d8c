"""The way to llama.cpp: an exported folder's names, against the package that its converter uses.

The converter itself (`convert_hf_to_gguf.py`) is a script of llama.cpp's repository, not run here.
"""

import json

import pytest
from building import changed, random_run

from gpt3jax.interchange.export import export
from gpt3jax.interchange.safetensors import read_folder

gguf = pytest.importorskip("gguf")

pytestmark = pytest.mark.parity

NEEDED = {"n_ctx", "n_embd", "n_head", "n_layer", "layer_norm_epsilon"}
"""What the converter reads of config.json; the MLP it takes to be four times as wide."""


@pytest.fixture
def exported(experiment, tmp_path):
    """A dense model's folder."""
    run = random_run(tmp_path / "run", changed(experiment, model={"dense_every": 1}))
    export(run.path, tmp_path / "out")
    return tmp_path / "out"


def test_every_tensor_has_a_place_in_llama_cpps_gpt2(exported, experiment):
    model = experiment.model
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.n_layers)
    ours = list(read_folder(exported))
    found = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in ours}
    assert [name for name, place in found.items() if place is None] == []
    assert len(set(found.values())) == len(ours), "two tensors in one place"
    # All that the architecture has, but the output matrix, which is the embedding's.
    kinds = gguf.MODEL_TENSORS[gguf.MODEL_ARCH.GPT2]
    blocks = {gguf.TENSOR_NAMES[kind] for kind in kinds} - {"output"}
    reached = {place.rsplit(".", 1)[0] for place in found.values()}
    expected = {block.format(bid=index) for block in blocks for index in range(model.n_layers)}
    assert reached == expected


def test_the_config_says_what_the_converter_asks(exported, model):
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"] and config.keys() >= NEEDED
    assert (config["n_ctx"], config["n_inner"]) == (model.context, 4 * config["n_embd"])


def test_banded_models_do_not_go_this_way():
    assert not any("neo" in name.lower() and "gpt" in name.lower() and "neox" not in name.lower()
                   for name in gguf.MODEL_ARCH_NAMES.values())  # fmt: skip

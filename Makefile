# Everything sets itself up: each target makes .venv from the lock first.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DATA    = data/python-library
RUN     = runs/tiny

.PHONY: install demo demo-finetune picture test faults tpu gpu parity trackers recipe lint lock clean

install: $(VENV)/installed

$(VENV)/installed: requirements/cpu.txt setup.cfg
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "error: Python %d.%d is too old: jax needs 3.11. Use: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

faults: install  ## kills, flips and mutations by the thousand; about an hour
	GPT3JAX_FUZZ=10000 $(BIN)/python -m pytest -n 2 --dist loadfile tests/faults tests/train/test_checkpoint.py
	$(BIN)/python tests/faults/kills.py --kills 200

demo: install  ## data, tokenizer, training, samples: the main job
	$(BIN)/gpt3jax data prepare --corpus python-library --out $(DATA) --context 256 --vocabulary 2048
	$(BIN)/gpt3jax train experiments/tiny.py --run $(RUN)

demo-finetune: demo  ## the demo's model is taught a task it fails: all of it, and by LoRA
	$(BIN)/python experiments/finetune_words.py data/words.jsonl
	$(BIN)/gpt3jax data prepare --corpus data/words.jsonl --pairs prompt completion --tokenizer $(RUN) --context 256 --out data/words
	$(BIN)/gpt3jax train experiments/finetune_words.py
	$(BIN)/gpt3jax train experiments/finetune_words_lora.py
	$(BIN)/gpt3jax evaluate $(RUN) runs/finetune_words runs/finetune_words_lora --tasks experiments/finetune_words.py --shots 0 1 few --beams 1

picture: demo  ## the README's picture: a browser looks at the page about the demo's model
	$(BIN)/gpt3jax inspect $(RUN) --out $(RUN)/inspect.html --prompt "$$(printf 'class Reader:\n    def __init__(self, ')"
	mkdir -p docs
	chromium --headless --no-sandbox --hide-scrollbars --virtual-time-budget=3000 --window-size=1280,1450 --screenshot=docs/inspect.png file://$(abspath $(RUN))/inspect.html

test: install  ## all of it; BUT="and not long": without what takes minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not parity and not recipe and not trackers and not tpu_compiler and not gpu_compiler $(BUT)"

tpu: install  ## through the TPU compiler, for slices that are not there (Linux); K="175b or 2b7": some
	$(PYTHON) -m venv $(VENV)-tpu
	$(VENV)-tpu/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/tpu.txt -e '.[dev]'
	$(VENV)-tpu/bin/python -m pytest -n 2 -m tpu_compiler -k "$(K)"

gpu: install  ## through XLA's compiler for GPUs that are not there (Linux; installs 5 GB); K="175b": some
	$(PYTHON) -m venv $(VENV)-gpu
	$(VENV)-gpu/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/cuda.txt -e '.[dev]'
	$(VENV)-gpu/bin/python -m pytest -n 2 -m gpu_compiler -k "$(K)"

parity: install  ## against PyTorch and transformers, which it installs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[parity]'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m parity

trackers:  ## runs that are sent to W&B, MLflow and Trackio, in an environment of their own
	$(PYTHON) -m venv $(VENV)-trackers
	$(VENV)-trackers/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,trackers]'
	$(VENV)-trackers/bin/python -m pytest -m trackers

recipe: install  ## the paper's data recipe over datatrove, which it installs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[recipe]'
	$(BIN)/python -m pytest -m recipe tests/recipe

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

lock:  ## for maintainers: exact versions of the ranges in setup.cfg, by uv
	for lock in cpu:dev tpu:tpu cuda:cuda; do \
	  uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate \
	    --no-header setup.cfg --extra $${lock#*:} -o requirements/$${lock%:*}.txt; \
	done

clean:
	rm -rf $(VENV) $(VENV)-tpu $(VENV)-gpu $(VENV)-trackers build .cache *.egg-info

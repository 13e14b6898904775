# The verbs of this repository. `make help` lists them. They need make and Python 3.11 to 3.13 with venv.
#
# Everything runs in .venv, made from the lock files in requirements/. Variables, as NAME=value after the verb:
#   PYTHON        the interpreter that makes the environment
#   DEVICE        cpu (default) or gpu: which builds of torch and fbgemm. gpu brings the CUDA libraries along
#   PROCESSES     processes of the test suite, 2 by default. Each needs a core and 2 GB
#   TORCH_INDEX   URL of an index of torch's builds. requirements/install_torch.py has the default
#   ENGINE        what builds images: docker, podman or buildah, the first that is there

PYTHON ?= $(shell command -v python3.11 || command -v python3)
DEVICE ?= cpu
TORCH_INDEX ?=
ENGINE ?= $(firstword $(foreach engine,docker podman buildah,$(shell command -v $(engine))))
MODELS ?= models
WHEELS ?=
ARGS ?=
PROCESSES ?= 2

ifeq ($(filter $(DEVICE),cpu gpu),)
$(error DEVICE is '$(DEVICE)'; it must be cpu or gpu)
endif

PY := .venv/bin/python
STAMP := .venv/.installed-$(DEVICE)
SERVE_PY := .venv-serve/bin/python
SERVE_STAMP := .venv-serve/.installed
MLSERVER_STAMP := .venv-mlserver/.installed
SBOM_STAMP := .venv-sbom/.installed
SPARK_STAMP := .venv-spark/.installed
TYPES_STAMP := .venv-types/.installed
S3_STAMP := .venv-s3/.installed
PAGE_STAMP := .node-page/.installed
PIP_FLAGS := -qq --disable-pip-version-check --no-input
# MLServer, Spark and the writer of SBOMs have environments of their own.
INSTALL_TORCH := requirements/install_torch.py
LOCKS := $(filter-out requirements/mlserver.txt requirements/sbom.txt requirements/spark.txt requirements/types.txt requirements/s3.txt,$(wildcard requirements/*.txt))
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# The serving image carries fewer packages than a checkout.
TYPED := $(wildcard model training service deploy benchmarks clients tests $(INSTALL_TORCH))

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-loop test test-reliability test-serve-only test-spark test-types test-page test-ship test-image lint format check train export serve \
	image image-train image-layers sbom manifests \
	bench-quality bench-census bench-next-day bench-training bench-checkpoints bench-distributed bench-kills bench-loop-kills \
	bench-tables bench-slots bench-input bench-networks bench-balancing bench-serving bench-equal-rows bench-precision bench-attention bench-private-copy \
	bench-workers bench-start bench-state bench-score bench-parity bench-reliability bench-fuzz \
	bench-compare bench-rolling bench-label-means bench-first-demo bench-events bench-event-kills bench-join bench-loop bench-wires \
	bench-off-policy bench-routing-learners bench-images bench-after-shift bench-judge bench-gates bench-drift bench-policies bench-experiments bench-append bench-freshness bench-batch bench-clients bench-client-faults bench-page check-gpu clean

help: ## this list
	@echo "make VERB [NAME=value ...]"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-23s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv from the lock files (DEVICE=cpu|gpu, TORCH_INDEX=URL)

# $(1) folder, $(2) arguments naming the lock files, $(3) modules that must import in the end, where torch is among them
define make_environment
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	sys.exit(None if (3, 11) <= v < (3, 14) else "Python %d.%d found; 3.11 to 3.13 is needed: make PYTHON=python3.11" % v)'
	@echo "installing into $(1) (a few minutes the first time; README.md says how much is fetched)"
	@$(PYTHON) -m venv $(1)
	$(if $(3),@$(1)/bin/python $(INSTALL_TORCH) --device $(DEVICE) --index "$(TORCH_INDEX)")
	@$(1)/bin/python -m pip install $(PIP_FLAGS) --no-deps $(2)
	$(if $(3),@$(1)/bin/python $(INSTALL_TORCH) --check $(3))
endef

# One environment for either device: it is the one or the other.
$(STAMP): $(LOCKS) $(INSTALL_TORCH)
	@rm -f .venv/.installed-*
	$(call make_environment,.venv,-r requirements/dev.txt -r requirements/fbgemm-$(DEVICE).txt,torch fbgemm_gpu torchrec)
	@touch $@

$(SERVE_STAMP): requirements/serve.txt $(INSTALL_TORCH)
	$(call make_environment,.venv-serve,-r requirements/serve.txt,torch)
	@touch $@

$(SBOM_STAMP): requirements/sbom.txt
	$(call make_environment,.venv-sbom,-r requirements/sbom.txt)
	@touch $@

# For `make bench-serving ARGS=--peers`, which asks for it.
$(MLSERVER_STAMP): requirements/mlserver.txt $(INSTALL_TORCH)
	$(call make_environment,.venv-mlserver,-r requirements/mlserver.txt,torch)
	@touch $@

# On top of .venv: Spark's packages alone, and a path to all others.
SITE_PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(SPARK_STAMP): requirements/spark.txt $(STAMP)
	@echo "installing into .venv-spark (450 MB are fetched)"
	@$(PY) -m venv .venv-spark
	@.venv-spark/bin/python -m pip install $(PIP_FLAGS) --no-deps -r requirements/spark.txt
	@$(PY) $(SITE_PACKAGES) > "$$(.venv-spark/bin/python $(SITE_PACKAGES))/training.pth"
	@touch $@

# Without npm there are no types of TypeScript, and their test skips.
$(TYPES_STAMP): requirements/types.txt requirements/types/package-lock.json
	$(call make_environment,.venv-types,-r requirements/types.txt)
	@cp requirements/types/package.json requirements/types/package-lock.json .venv-types/
	@if command -v npm >/dev/null; then npm ci --prefix .venv-types --no-audit --no-fund --loglevel error; fi
	@touch $@

# Without npm there is no driver of Chromium, and the tests of the page skip.
$(PAGE_STAMP): requirements/page/package-lock.json
	@mkdir -p .node-page
	@cp requirements/page/package.json requirements/page/package-lock.json .node-page/
	@if command -v npm >/dev/null; then npm ci --prefix .node-page --no-audit --no-fund --loglevel error; fi
	@touch $@

$(S3_STAMP): requirements/s3.txt
	$(call make_environment,.venv-s3,-r requirements/s3.txt)
	@touch $@

# exec: Ctrl-C then reaches the program itself and nothing stands between.
demo: $(STAMP) ## simulate, train, export, serve and ask once (PORT=, DATA=DIR, ONCE=1)
	@exec $(PY) -m deploy.demo $(if $(PORT),--port $(PORT)) $(if $(DATA),--data "$(DATA)") \
		$(if $(filter-out 0,$(ONCE)),--once) $(ARGS)

demo-loop: $(STAMP) ## a simulated town whose tastes shift, and the loop that follows (OUT=DIR, ARGS=--fast)
	@exec $(PY) -m deploy.loop --out "$(or $(OUT),runs/demo-loop)" $(ARGS)

# A file's tests stay in one process, as they share its fixtures.
test: $(STAMP) ## the whole test suite (FEEDRANK_DATA=DIR in the environment adds the real data; ARGS=, PROCESSES=2)
	@exec $(PY) -m pytest -n $(PROCESSES) --dist loadfile $(ARGS)

test-reliability: $(STAMP) ## reloads, overload, killed workers, damage, fuzzing, soak: the long form (an hour)
	@exec env FEEDRANK_RELIABILITY=long $(PY) -m pytest tests/reliability -o timeout=3600 $(ARGS)

test-serve-only: $(STAMP) $(SERVE_STAMP) ## the service in an environment without torchrec
	@tests/serve_only.sh $(PY) $(SERVE_PY)

test-spark: $(SPARK_STAMP) ## the join on Spark, against DuckDB (needs Java 17)
	@exec .venv-spark/bin/python -m pytest -n 0 tests/training/join/test_spark.py $(ARGS)

test-types: $(STAMP) $(TYPES_STAMP) ## clients that generators make of /openapi.json, and types of clients/typescript (TypeScript needs npm)
	@exec $(PY) -m pytest -n 0 tests/service/rank/test_types_page.py tests/clients/test_typescript_client.py $(ARGS)

test-page: $(STAMP) $(PAGE_STAMP) ## the page at /play in a real Chromium, its accessibility by axe-core (needs npm and chromium)
	@exec $(PY) -m pytest -n 0 tests/service/play $(ARGS)

test-ship: $(STAMP) $(S3_STAMP) ## logs shipped to an S3 store, which runs here
	@exec $(PY) -m pytest -n 0 tests/service/ship/test_ship_to_s3.py $(ARGS)

test-image: $(STAMP) ## build both images and run them (FEEDRANK_BUILD_IMAGE="COMMAND", for example "buildah build --network host")
	@exec $(PY) -m pytest tests/deploy/test_image.py tests/deploy/test_image_torch.py $(ARGS)

lint: $(STAMP) ## ruff and mypy, nothing is changed
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy $(TYPED)

format: $(STAMP) ## let ruff fix and format what it can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

check: lint test ## lint and test

train: $(STAMP) ## train a ranker (CONFIG=FILE, ARGS="--set key=value")
	@[ -n "$(CONFIG)" ] || { echo "make train CONFIG=FILE: names the training configuration, see configs/" >&2; exit 2; }
	@exec $(PY) -m training train "$(CONFIG)" $(ARGS)

export: $(STAMP) ## publish a training run as the next artifact version (RUN=DIR, ARGS=)
	@[ -n "$(RUN)" ] || { echo "make export RUN=DIR: names the folder of a training run, see runs/" >&2; exit 2; }
	@exec $(PY) -m training export "$(RUN)" $(ARGS)

serve: $(STAMP) ## serve the published models (MODELS=models, PORT=, ARGS=)
	@exec $(PY) -m service --models "$(MODELS)" $(if $(PORT),--port $(PORT)) $(ARGS)

# $(1) the target of the Dockerfile. Only docker's own format has health checks.
define build_image
	@[ -n "$(ENGINE)" ] || { echo "make image needs docker, podman or buildah, or ENGINE=COMMAND" >&2; exit 2; }
	@exec $(ENGINE) build $(if $(filter %docker,$(ENGINE)),,--format docker) --target $(1) \
		--tag feedrank-$(1):$(VERSION)$(if $(filter gpu,$(DEVICE)),-gpu) --build-arg DEVICE=$(DEVICE) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git describe --always --dirty --abbrev=40 --match=) \
		$(if $(TORCH_INDEX),--build-arg TORCH_INDEX="$(TORCH_INDEX)") $(ARGS) .
endef

image: ## build the image that serves (DEVICE=cpu|gpu, TORCH_INDEX=URL, ENGINE=, ARGS=)
	$(call build_image,serve)

image-train: ## build the image that trains, exports and puts load on a service
	$(call build_image,train)

image-layers: ## sizes of the serving image's layers
	@$(if $(filter %buildah,$(ENGINE)),$(ENGINE) push -q feedrank-serve:$(VERSION) docker-archive:/dev/stdout, \
		$(ENGINE) save feedrank-serve:$(VERSION)) | $(PYTHON) -m deploy.image_layers -

manifests: $(STAMP) ## the PrometheusRule in deploy/kubernetes, and the runbook's page, from deploy/prometheus and docs
	@$(PY) -m deploy.prometheus_rule
	@$(PY) -m deploy.runbook_page

sbom: $(SERVE_STAMP) $(SBOM_STAMP) ## CycloneDX of what the images install, in sbom/
	@mkdir -p sbom
	@.venv-sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
		-o sbom/serve.cdx.json $(SERVE_PY)
	@.venv-sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --validate \
		-o sbom/train.cdx.json requirements/train.txt
	@ls sbom/*.cdx.json

bench-quality: $(STAMP) ## quality on KuaiRand-Pure, three seeds
	@exec $(PY) -m benchmarks.kuairand_quality $(ARGS)

bench-census: $(STAMP) ## quality on Census-Income, five seeds
	@exec $(PY) -m benchmarks.census_quality $(ARGS)

bench-next-day: $(STAMP) ## learning rates for a next day on KuaiRand-Pure, five days, three seeds
	@exec $(PY) -m benchmarks.next_day $(ARGS)

bench-first-demo: $(STAMP) ## what a first `make demo` fetches and takes, in a fresh clone
	@exec $(PY) -m benchmarks.first_demo $(ARGS)

bench-training: $(STAMP) ## training rows per CPU second, peak memory, the loops people write beside it
	@exec $(PY) -m benchmarks.training_speed $(ARGS)

bench-checkpoints: $(STAMP) ## what a checkpoint costs training: CPU time, seconds, memory
	@exec $(PY) -m benchmarks.checkpoint_cost $(ARGS)

bench-input: $(STAMP) ## rows per CPU second of input alone, memory of a stream (ARGS="--rows 100000000")
	@exec $(PY) -m benchmarks.input_speed $(ARGS)

bench-distributed: $(STAMP) ## two processes beside one: losses, rows per second
	@exec $(PY) -m benchmarks.distributed $(ARGS)

bench-loop-kills: $(STAMP) ## kill -9 at a hundred random moments of the daily cycle (ARGS="--kills 20")
	@exec $(PY) -m benchmarks.loop_kills $(ARGS)

bench-kills: $(STAMP) ## kill -9 at twenty random moments of training, and what is left (ARGS="--processes 2")
	@exec $(PY) -m benchmarks.kills $(ARGS)

bench-tables: $(STAMP) ## step time and peak memory from 1M to 100M rows of tables (ARGS="--rows 1 10")
	@exec $(PY) -m benchmarks.table_sizes $(ARGS)

bench-slots: $(STAMP) ## what tables with slots cost a training step, and a turn of evictions
	@exec $(PY) -m benchmarks.slot_cost $(ARGS)

bench-networks: $(STAMP) ## CPU time of a training step of AdaTT-sp, against a module per expert
	@exec $(PY) -m benchmarks.network_speed $(ARGS)

bench-balancing: $(STAMP) ## CPU time of a training step with every balancing method
	@exec $(PY) -m benchmarks.balancing_cost $(ARGS)

bench-serving: $(STAMP) ## what a request costs, against other services around the same network (ARGS="--against DIR": another checkout)
	@exec $(PY) -m benchmarks.serving $(ARGS)

bench-equal-rows: $(STAMP) ## what it costs a request to find equal candidates where there are none
	@exec $(PY) -m benchmarks.equal_rows $(ARGS)

bench-precision: $(STAMP) ## precisions that trained networks survive, by emulation (ARGS="models/NAME/VERSION ...": versions with kept rows)
	@exec $(PY) -m benchmarks.precision $(ARGS)

bench-attention: $(STAMP) ## what a list that each candidate weighs costs a request
	@exec $(PY) -m benchmarks.attention $(ARGS)

bench-private-copy: $(STAMP) ## tables mapped by two workers, and one private copy of them for both
	@exec $(PY) -m benchmarks.private_copy $(ARGS)

bench-workers: $(STAMP) ## threads and workers: CPU time, growth, memory, what batches could save
	@exec $(PY) -m benchmarks.workers $(ARGS)

bench-state: $(STAMP) ## what users by id cost a request, and requests while their store fails
	@exec $(PY) -m benchmarks.state $(ARGS)

bench-start: $(STAMP) ## seconds from exec to ready, memory of one and of each further worker
	@exec $(PY) -m benchmarks.start $(ARGS)

bench-append: $(STAMP) ## appends to a catalogue of a million items: cost, time until they are ranked, look-ups
	@exec $(PY) -m benchmarks.append $(ARGS)

bench-freshness: $(STAMP) ## value regained after a shift by how often a model is retrained
	@exec $(PY) -m benchmarks.freshness $(ARGS)

bench-score: $(STAMP) ## batch scoring and placing, rows per CPU second against the loop people write
	@exec $(PY) -m benchmarks.batch_scoring $(ARGS)

bench-label-means: $(STAMP) ## means of play time in its own unit, by several estimates, on KuaiRand-Pure and simulated
	@exec $(PY) -m benchmarks.label_means $(ARGS)

bench-judge: $(STAMP) ## false promotions and withdrawals, and users until a verdict, of 1,000 simulated canaries judged every hour
	@exec $(PY) -m benchmarks.judge_simulation $(ARGS)

bench-experiments: $(STAMP) ## evenness of arms over a million units, coverage and calls of an analysis in 1,000 simulated experiments
	@exec $(PY) -m benchmarks.experiments_simulation $(ARGS)

bench-gates: $(STAMP) ## nights that the data gate and the quality gate refuse, of 200 good ones and of 200 of each kind of bad one
	@exec $(PY) -m benchmarks.gates_simulation $(ARGS)

bench-drift: $(STAMP) ## how far features drift on the day after a promotion, which changes what is shown
	@exec $(PY) -m benchmarks.promotion_drift $(ARGS)

bench-policies: $(STAMP) ## CPU time of a ranking policy with all stages, for 500 candidates, and of requests without one
	@exec $(PY) -m benchmarks.policies $(ARGS)

bench-parity: $(STAMP) ## scores as served against training's own evaluation, on KuaiRand-Pure
	@exec $(PY) -m benchmarks.score_parity $(ARGS)

bench-reliability: $(STAMP) ## a service under load: new versions, slow clients, three times its capacity
	@exec $(PY) -m benchmarks.reliability $(ARGS)

bench-events: $(STAMP) ## events a CPU second, and what rankings cost beside them
	@exec $(PY) -m benchmarks.events $(ARGS)

bench-event-kills: $(STAMP) ## kill -9 of workers and of the parent twenty times while events come
	@exec $(PY) -m benchmarks.event_kills $(ARGS)

bench-join: $(STAMP) ## joined rows against a slow loop, and candidates a CPU minute
	@exec $(PY) -m benchmarks.join $(ARGS)

bench-loop: $(STAMP) ## the share of a shift that the loop regains, and what it calls rightly, in ten small towns
	@exec $(PY) -m benchmarks.loop $(ARGS)

bench-after-shift: $(STAMP) ## what versions of several recipes know two days after the cold start, in the towns of bench-loop
	@exec $(PY) -m benchmarks.after_shift $(ARGS)

bench-routing-learners: $(STAMP) ## what each learner of routing policies decides on a bandit, with and without a better module
	@exec $(PY) -m benchmarks.routing_learners $(ARGS)

bench-off-policy: $(STAMP) ## how often intervals of a policy's estimated value cover the true one, and a million explored orders
	@exec $(PY) -m benchmarks.off_policy $(ARGS)

bench-wires: $(STAMP) ## the same request as columns of /v1 and as bytes of /v2
	@exec $(PY) -m benchmarks.wires $(ARGS)

bench-batch: $(STAMP) ## requests of several users one by one and as POST /v1/rank:batch (ARGS="--turns 11")
	@exec $(PY) -m benchmarks.batch $(ARGS)

bench-clients: $(STAMP) ## CPU time of a ranking in each client beside a bare call (needs node)
	@exec env PYTHONPATH=clients/python $(PY) -m benchmarks.client_overhead $(ARGS)

bench-page: $(STAMP) $(PAGE_STAMP) ## the page at /play in Chromium: first paint, and a slider's ranking of 500 candidates
	@exec $(PY) -m benchmarks.page $(ARGS)

bench-client-faults: $(STAMP) ## the share of rankings that a failing service answers, by each client (needs node and haproxy)
	@exec env PYTHONPATH=clients/python $(PY) -m benchmarks.client_faults $(ARGS)

# Without an environment of this checkout: what $(PYTHON) has, and the wheels of benchmarks/gpu_bundle.py.
check-gpu: ## what this project does on a GPU, in eight minutes (PYTHON=python3 WHEELS=DIR: on a machine without an index)
	@site=$$(mktemp -d); trap 'rm -rf "$$site"' EXIT; \
	python="$(if $(wildcard $(PY)),$(PY),$(PYTHON))"; \
	if [ -n "$(WHEELS)" ]; then \
		"$$python" -m pip install $(PIP_FLAGS) --no-index --no-deps --no-compile --target "$$site" "$(WHEELS)"/*.whl || exit; \
	fi; \
	PYTHONPATH="$$site" "$$python" -m benchmarks.check_gpu $(ARGS)

bench-fuzz: $(STAMP) ## a million requests that are nearly right, framing included (ARGS="--requests 20000 --seed 7")
	@exec $(PY) -m benchmarks.fuzz $(ARGS)

bench-images: $(STAMP) ## routing networks on images, methods x seeds of an experiment file (EXPERIMENT=FILE, ARGS="--data DIR")
	@[ -n "$(EXPERIMENT)" ] || { echo "make bench-images EXPERIMENT=FILE: see configs/images/" >&2; exit 2; }
	@exec $(PY) -m benchmarks.image_routing "$(EXPERIMENT)" $(ARGS)

bench-compare: $(STAMP) ## networks x seeds of an experiment file, with paired tests (EXPERIMENT=FILE)
	@[ -n "$(EXPERIMENT)" ] || { echo "make bench-compare EXPERIMENT=FILE: see configs/experiments/" >&2; exit 2; }
	@exec $(PY) -m benchmarks.comparison "$(EXPERIMENT)" $(ARGS)

bench-rolling: $(STAMP) ## methods chosen on rolling days, and the test day read once (ROLLING=FILE, ARGS="--frozen FILE")
	@[ -n "$(ROLLING)" ] || { echo "make bench-rolling ROLLING=FILE: see configs/rolling/" >&2; exit 2; }
	@exec $(PY) -m benchmarks.rolling "$(ROLLING)" $(ARGS)

clean: ## remove environments and caches; data, runs and models stay
	@rm -rf .venv .venv-serve .venv-mlserver .venv-sbom .venv-spark .venv-types .venv-s3 .node-page sbom .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

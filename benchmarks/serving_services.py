"""The services that `make bench-serving` compares, running, and the ways to ask each of them.

In: a folder for models, request bodies and logs. Out: `Way`s: a service, a shape of request, how its answer is read.
All run the same random weights of the reference feed. Answers are compared before anything is timed.

Shapes: N candidates, O outputs.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks import as_trained
from benchmarks.reference_feed import SCHEMA, TASKS, as_rows, columnar_request
from benchmarks.reference_items import write_items
from benchmarks.serving_processes import SERVER_CORES, Server, free_port, serve
from model.features.kinds import IdFeature, IdListFeature
from model.scorer.golden import disagreement
from model.scorer.scorer import COMPILED_TOLERANCE

USUAL = "usual service, rows"
TUNED = "hand-tuned ASGI, columns"
MLSERVER = "MLServer, columns"
TORCHSCRIPT, TORCHSCRIPT_ROWS = "feedrank TorchScript, columns", "feedrank TorchScript, rows"
COMPILED, COMPILED_ROWS = "feedrank compiled, columns", "feedrank compiled, rows"
TORCHSCRIPT_IDS, COMPILED_IDS = "feedrank TorchScript, catalogue ids", "feedrank compiled, catalogue ids"
# Not a service that scores: what a request costs before and after all that.
FRAME = {"columns": "feedrank's frame, columns", "rows": "feedrank's frame, rows"}
BARE = {"columns": "the HTTP server alone, columns", "rows": "the HTTP server alone, rows"}
MLSERVER_ENVIRONMENT = Path(".venv-mlserver")
REQUESTS = 4  # different ones of each size, so that no cache of values answers
# float32 sums in another order: whole rows against the request's part and the candidate's.
TOLERANCE = 1e-5

Request = dict[str, Any]
Answers = dict[str, list[float]]


@dataclass(frozen=True)
class Way:
    """One way to ask: `encode` makes its body from a columnar request, `read` takes the answers by candidate."""

    server: Server
    path: str
    encode: Callable[[Request], Request]
    read: Callable[[Any, Request], Answers]
    tolerance: float = TOLERANCE

    def send_request(self, request: Request) -> NDArray[np.float32]:
        """answers_NO in request order. Raises RuntimeError where it is refused."""
        url = self.server.url + self.path
        answer = httpx.post(url, json=self.encode(request), trust_env=False, timeout=60)
        if answer.status_code != 200:
            raise RuntimeError(f"{self.path} answered with {answer.status_code}: {answer.text[:300]}")
        by_id = self.read(answer.json(), request)
        return np.array([by_id[one] for one in request["candidates"]["id"]], np.float32)


class Services:
    """Started by `start`, ended with the stack they were given."""

    def __init__(self, stack: ExitStack, folder: Path, sizes: Sequence[int]) -> None:
        self._stack, self._folder, self._sizes = stack, folder, sizes
        self._models = folder / "models"
        self._models.mkdir()
        self.as_trained = folder / "as_trained.pt"
        self.artifact = as_trained.publish(self._models, columnar_request(100, 0), self.as_trained)
        self.ways: dict[str, Way] = {}
        self.left_out: dict[str, str] = {}

    def start(self, say: Callable[[str], None], *, with_mlserver: bool) -> None:
        """Start them all. Raises RuntimeError where one does not start. A package that cannot be compiled on this
        machine is left out, with the reason in `left_out`."""
        say("the usual service and the hand-tuned application")
        self.ways[USUAL] = Way(self._uvicorn("usual_service"), "/rank", usual_body, _read_rows)
        self.ways[TUNED] = Way(self._uvicorn("columnar_service"), "/v1/rank", dict, _read_columns)
        if with_mlserver:
            say("MLServer, in an environment of its own (made once)")
            self.ways[MLSERVER] = Way(self._mlserver(), "/v2/models/reference/infer", v2_body, _read_v2)
        say("feedrank")
        server = self._feedrank("torchscript", self._models)
        self.ways[TORCHSCRIPT] = Way(server, "/v1/rank", dict, _read_columns)
        self.ways[TORCHSCRIPT_ROWS] = Way(server, "/v1/rank", as_rows, _read_rows)
        for names, part in ((FRAME, "frame"), (BARE, "server")):
            server = self._frame(part)
            self.ways[names["columns"]] = Way(server, "/v1/rank", dict, _read_columns)
            self.ways[names["rows"]] = Way(server, "/v1/rank", as_rows, _read_rows)
        say("compiling the artifact for this CPU (a minute)")
        # As `python -m training compile` does it, but where TorchScript is faster: the table then shows by how much.
        imports = "import sys; from pathlib import Path; from training.publish.compile import compile_version"
        anyway = f"{imports}; compile_version(Path(sys.argv[1]), even_if_slower=True)"
        compiling = subprocess.run(
            [sys.executable, "-c", anyway, str(self.artifact)],
            capture_output=True,
            text=True,
        )
        if compiling.returncode:
            reason = (compiling.stderr.strip() or f"status {compiling.returncode}").splitlines()[-1]
            # Where the artifact lay for these minutes is of no interest.
            self.left_out["feedrank compiled"] = reason.removeprefix("error: ").replace(f"{self.artifact}: ", "")
        else:
            server = self._feedrank("compiled", self._models)
            self.ways[COMPILED] = Way(server, "/v1/rank", dict, _read_columns, COMPILED_TOLERANCE)
            self.ways[COMPILED_ROWS] = Way(server, "/v1/rank", as_rows, _read_rows, COMPILED_TOLERANCE)
        say("a candidate catalogue")
        models = self._catalogued()
        for engine, name in (("torchscript", TORCHSCRIPT_IDS), ("compiled", COMPILED_IDS)):
            if engine == "torchscript" or COMPILED in self.ways:
                server = self._feedrank(engine, models)
                # Its sums are bfloat16.
                self.ways[name] = Way(server, "/v1/rank", ids_body, _read_columns, COMPILED_TOLERANCE)

    def bodies(self, candidates: int) -> dict[str, Path]:
        """For each way a file with the bodies of a few requests for so many candidates."""
        requests = _requests(candidates)
        files: dict[str, Path] = {}
        for number, (name, way) in enumerate(self.ways.items()):
            files[name] = self._folder / f"bodies-{candidates}-{number}.json"
            files[name].write_text(json.dumps([json.dumps(way.encode(request)) for request in requests]))
        return files

    def check(self, candidates: int) -> float:
        """The largest difference of any way's answers from the usual service's. Raises RuntimeError where one answers
        otherwise: there is nothing to compare then."""
        request = columnar_request(candidates, 0)
        expected_NO = self.ways[USUAL].send_request(request)
        largest = 0.0
        for name, way in self.ways.items():
            answers_NO = way.send_request(request)
            fault = disagreement(expected_NO, answers_NO, way.tolerance)
            if fault is not None:
                raise RuntimeError(f"{name} answers {candidates} candidates otherwise than {USUAL}: {fault}")
            largest = max(largest, float(np.abs(answers_NO - expected_NO).max()))
        return largest

    def _uvicorn(self, app: str) -> Server:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--factory", f"benchmarks.{app}:make_app", "--port", str(port)]
        command += ["--log-level", "warning"]
        return self._serve(app, command, "/ready", port, AS_TRAINED=str(self.as_trained))

    def _catalogued(self) -> Path:
        """A models folder with the same artifact and a catalogue: without one, no request is looked up in it."""
        models = self._folder / "models-with-catalogue"
        shutil.copytree(self._models, models)
        items = self._folder / "items.parquet"
        write_items(items, [request for size in self._sizes for request in _requests(size)])
        version = models / self.artifact.relative_to(self._models)
        command = [sys.executable, "-m", "training", "catalogue", str(version), str(items)]
        building = subprocess.run(command, capture_output=True, text=True)
        if building.returncode:
            raise RuntimeError(f"the catalogue cannot be built: {building.stderr.strip()[-500:]}")
        return models

    def _feedrank(self, engine: str, models: Path) -> Server:
        port = free_port()
        command = [sys.executable, "-m", "service", "--models", str(models), "--port", str(port)]
        command += ["--threads", "1", "--engine", engine, "--log-level", "warning", "--queue-seconds", "60"]
        return self._serve(f"{models.name}-{engine}", command, "/readyz", port)

    def _frame(self, part: str) -> Server:
        port = free_port()
        script = str(Path(__file__).with_name("frame_service.py"))
        command = [sys.executable, script, part, "--models", str(self._models), "--port", str(port), "--threads", "1"]
        command += ["--log-level", "warning", "--queue-seconds", "60"]
        return self._serve(part, command, "/readyz", port)

    def _mlserver(self) -> Server:
        # The Makefile knows how an environment is made from a lock file, and from which index torch comes.
        making = subprocess.run(["make", "-s", str(MLSERVER_ENVIRONMENT / ".installed")])
        if making.returncode:
            raise RuntimeError("MLServer's environment cannot be made, as make says above; leave out --peers")
        folder = self._folder / "mlserver" / "reference"
        folder.mkdir(parents=True)
        port = free_port()
        # No worker processes: on one core they only add a queue between two processes. No log line for each request.
        settings = {"debug": False, "parallel_workers": 0, "host": "127.0.0.1", "http_port": port}
        settings |= {"grpc_port": free_port(), "metrics_port": free_port()}
        (folder.parent / "settings.json").write_text(json.dumps(settings))
        model = {
            "name": "reference",
            "implementation": "benchmarks.mlserver_runtime.AsTrainedRuntime",
            "parameters": {"uri": str(self.as_trained)},
        }
        (folder / "model-settings.json").write_text(json.dumps(model))
        command = [str(MLSERVER_ENVIRONMENT / "bin" / "mlserver"), "start", str(folder.parent)]
        metrics = str(folder.parent / "metrics")
        ready = "/v2/models/reference/ready"
        return self._serve("mlserver", command, ready, port, PYTHONPATH=".", MLSERVER_METRICS_DIR=metrics)

    def _serve(self, name: str, command: list[str], ready: str, port: int, **environment: str) -> Server:
        log = self._folder / f"{name}.log"
        return self._stack.enter_context(serve(command, ready, port, log, SERVER_CORES, None, **environment))


def _requests(candidates: int) -> list[Request]:
    return [columnar_request(candidates, seed) for seed in range(REQUESTS)]


def usual_body(request: Request) -> Request:
    """Candidates as flat rows, each with its id."""
    rows = as_rows(request)["candidates"]
    return {"user": request["user"], "candidates": [{"id": row["id"], **row["features"]} for row in rows]}


def ids_body(request: Request) -> Request:
    """Candidates by id alone."""
    return {"user": request["user"], "candidates": {"id": request["candidates"]["id"]}}


def v2_body(request: Request) -> Request:
    """The same request in the Open Inference Protocol."""
    inputs: list[Request] = []

    def add(name: str, datatype: str, data: list[Any]) -> None:
        inputs.append({"name": name, "datatype": datatype, "shape": [len(data)], "data": data})

    user = {name: [value] for name, value in request["user"].items()}
    columns = {**user, **request["candidates"]["features"]}
    for feature in (*SCHEMA.requested("request"), *SCHEMA.requested("candidate")):
        column = columns[feature.name]
        if isinstance(feature, IdListFeature):
            add(f"{feature.name}.values", "INT64", [value for values in column for value in values])
            add(f"{feature.name}.lengths", "INT64", [len(values) for values in column])
        else:
            add(feature.name, "INT64" if isinstance(feature, IdFeature) else "FP32", column)
    return {"inputs": inputs}


def _read_columns(answer: Any, _: Request) -> Answers:
    candidates = answer["candidates"]
    by_task = zip(*(candidates["tasks"][task] for task in TASKS), strict=True)
    return dict(zip(candidates["id"], map(list, by_task), strict=True))


def _read_rows(answer: Any, _: Request) -> Answers:
    return {row["id"]: [row["tasks"][task] for task in TASKS] for row in answer["candidates"]}


def _read_v2(answer: Any, request: Request) -> Answers:
    outputs: Mapping[str, Any] = {output["name"]: output["data"] for output in answer["outputs"]}
    by_task = zip(*(outputs[task] for task in TASKS), strict=True)
    return dict(zip(request["candidates"]["id"], map(list, by_task), strict=True))

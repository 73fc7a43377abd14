"""Validations as DSPy's evaluate callbacks see them, and what a real MLflow store holds after a compile."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from dspy_ace import ACE
from dspy_ace.program import rollouts
from dspy_ace.testing import OfflineLM
from dspy_ace.training.validation import FULL, Evaluation
from paths import HELPERS, ROOT
from tasks import Route, desk_metric, messages

TRAIN, VAL = messages(16, 1), messages(8, 2)


class Watcher(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Keeps what the evaluate callbacks are told."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, dict[str, Any]]] = []
        self.ended: list[tuple[Any, BaseException | None]] = []

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.started.append((instance, inputs))

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.ended.append((outputs, exception))


class Picky(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Fails on every message about a parcel."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(Route)

    def forward(self, message: str) -> Any:
        if "parcel" in message:
            raise ValueError("no parcels")
        return self.route(message=message)


@pytest.mark.compat
def test_an_evaluation_fires_the_callbacks_of_evaluate(offline: OfflineLM) -> None:
    """Callbacks see an Evaluate, the program, the name of the evaluation, and DSPy's own kind of result."""
    watcher, program = Watcher(), dspy.Predict(Route)
    evaluate = Evaluation(rollouts(program, VAL, desk_metric), metric=desk_metric)
    with dspy.context(callbacks=[watcher]):
        result = evaluate(program, callback_metadata=FULL)
    ((instance, inputs),) = watcher.started
    assert isinstance(instance, dspy.Evaluate)
    assert instance.metric is desk_metric
    assert inputs["program"] is program
    assert inputs["callback_metadata"] == {"metric_key": "eval_full"}
    assert watcher.ended == [(result, None)]
    with dspy.context(lm=OfflineLM()):
        usual = dspy.Evaluate(devset=VAL, metric=lambda *given: desk_metric(*given).score, num_threads=1)(program)
    assert result.score == usual.score
    assert [(e, dict(p), s) for e, p, s in result.results] == [(e, dict(p), s) for e, p, s in usual.results]


@pytest.mark.compat
def test_a_failed_rollout_has_an_empty_prediction_and_the_failure_score(offline: OfflineLM) -> None:
    """A rollout that fails stays in the results and in the mean, as with DSPy's own evaluation."""
    devset = [dspy.Example(message=m, desk="Summit").with_inputs("message") for m in ("my parcel", "my invoice")]
    evaluate = Evaluation(rollouts(Picky(), devset, desk_metric, failure_score=-1.0))
    result = evaluate(Picky())
    assert result.results[0][0] is devset[0]
    assert dict(result.results[0][1]) == {}
    assert result.results[0][2] == -1.0
    assert "desk" in result.results[1][1]
    assert result.score == 100 * sum(score for *_, score in result.results) / 2


@pytest.mark.compat
def test_each_validation_of_a_compile_is_an_evaluation() -> None:
    """Callbacks see one evaluation for each validated step, the seed's first, with the scores of the journal."""
    watcher = Watcher()
    with dspy.context(lm=OfflineLM(), callbacks=[watcher]):
        program = ACE(desk_metric, batch_size=4, validate="along").compile(
            dspy.ChainOfThought(Route), TRAIN, valset=VAL
        )
    records = program.detailed_results.records
    validated = [record.validation.scores for record in records if record.validation is not None]
    assert len(validated) >= 2
    assert [tuple(score for *_, score in result.results) for result, _ in watcher.ended] == validated
    assert all(inputs["callback_metadata"] == FULL for _, inputs in watcher.started)
    playbooks = [inputs["program"].playbook for _, inputs in watcher.started]
    assert len(playbooks[0]) == 0
    assert len(playbooks[-1]) > 0


@pytest.mark.compat
def test_params_given_out_are_a_copy() -> None:
    """A tracker that adds to get_params(), as MLflow does, adds nothing to the optimizer."""
    optimizer = ACE(desk_metric)
    optimizer.get_params()["trainset"] = TRAIN
    assert "trainset" not in vars(optimizer)
    assert optimizer.get_params()["max_playbook_tokens"] == 10_000


SCRIPT = """
import json, socket, sys
from pathlib import Path

def refuse(self, address):
    raise OSError(f"tests do not use the network: {address!r}")
socket.socket.connect = refuse

import dspy, mlflow
from dspy_ace import ACE
from dspy_ace.errors import RunError
from dspy_ace.testing import OfflineLM
from tasks import Route, desk_metric, messages

folder = Path(sys.argv[1])
train, val = messages(16, 1), messages(8, 2)

def compiled(name, lm=None):
    optimizer = ACE(desk_metric, epochs=1, num_threads=2, log_dir=folder / name)
    settings = set(vars(optimizer))
    with dspy.context(lm=lm or OfflineLM()):
        program = optimizer.compile(dspy.ChainOfThought(Route), train, valset=val)
    results = program.detailed_results
    return {
        "validations": [100 * v.mean for r in results.records for v in (r.baseline, r.validation) if v],
        "spent": [[role, u.calls, u.prompt_tokens, u.completion_tokens] for role, u in results.usage.items()],
        "rollouts": results.rollouts,
        "journal": (folder / name / "journal.jsonl").read_text(),
        "added": sorted(set(vars(optimizer)) - settings),
        "playbook": program.playbook.render(),
    }

class Dead(OfflineLM):
    def forward(self, *args, **kwargs):
        raise dspy.utils.exceptions.LMError("no such model")

def runs(experiment):
    client = mlflow.MlflowClient()
    return [
        {
            "id": run.info.run_id, "name": run.info.run_name, "status": run.info.status,
            "parent": run.data.tags.get("mlflow.parentRunId"), "params": run.data.params, "metrics": run.data.metrics,
            "history": {m: [[h.step, h.value] for h in client.get_metric_history(run.info.run_id, m)]
                        for m in run.data.metrics},
            "artifacts": {a.path: mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{a.path}")
                          for a in client.list_artifacts(run.info.run_id)},
        }
        for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    ]

mlflow.set_tracking_uri((folder / "store").as_uri())
told = {"plain": compiled("plain")}
experiment = mlflow.set_experiment("defaults")
mlflow.dspy.autolog()
told["defaults"] = compiled("defaults")
told["defaults"]["runs"] = runs(experiment)
experiment = mlflow.set_experiment("full")
mlflow.dspy.autolog(log_compiles=True, log_evals=True, log_traces_from_compile=False)
told["full"] = compiled("full")
told["full"]["runs"] = runs(experiment)
experiment = mlflow.set_experiment("own run")
with mlflow.start_run(run_name="mine") as mine:
    compiled("own")
told["own"] = {"runs": runs(experiment), "mine": mine.info.run_id}
experiment = mlflow.set_experiment("dead")
try:
    compiled("dead", Dead())
except RunError as error:
    told["dead"] = {"error": str(error), "runs": runs(experiment), "active": str(mlflow.active_run())}
(folder / "told.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a process with MLflow's file store in a folder of its own tells of its compiles."""
    for name in ("mlflow", "pandas"):  # the small mlflow-skinny does, with pandas beside it
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; pip install 'dspy-ace[mlflow]'")
    folder = tmp_path_factory.mktemp("mlflow")
    own = [str(HELPERS), str(ROOT), *filter(None, sys.path)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(own),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
        timeout=300,
    )  # autologging patches DSPy for good: not in this process
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Error when" not in done.stderr
    return json.loads((folder / "told.json").read_text())


@pytest.mark.slow
def test_mlflow_shows_a_compile_as_a_run_with_nested_evaluations(told: Any) -> None:
    """The compile's run holds the best program, the data and a curve of validation scores; each validation is nested.

    By default these are two, side by side: the seed and what was learned. Rows that are also trained on are left out.
    """
    trained = [example.toDict() for example in TRAIN]
    rows = [example for example in VAL if example.toDict() not in trained]
    parent, *nested = told["full"]["runs"]
    validations = told["full"]["validations"]
    assert parent["parent"] is None
    assert parent["status"] == "FINISHED"
    assert set(parent["artifacts"]) == {"best_model.json", "trainset.json", "valset.json"}
    assert json.loads(parent["artifacts"]["best_model.json"])["predict"]["signature"]["instructions"].endswith(
        told["full"]["playbook"]
    )
    assert parent["history"]["eval_full"] == [[step, pytest.approx(score)] for step, score in enumerate(validations)]
    assert len(nested) == len(validations) == 2
    for step, (run, score) in enumerate(zip(nested, validations, strict=True)):
        assert run["name"] == f"eval_full_{step}"
        assert run["parent"] == parent["id"]
        assert run["status"] == "FINISHED"
        assert run["metrics"] == {"eval": pytest.approx(score)}
        assert set(run["artifacts"]) == {"model.json", "result_table.json"}
        table = json.loads(run["artifacts"]["result_table.json"])
        assert len(table["data"]) == len(rows)
        assert {"example_message", "example_desk", "pred_desk", "score"} <= set(table["columns"])


@pytest.mark.slow
def test_mlflow_changes_nothing_of_a_run(told: Any) -> None:
    """Journal, calls and tokens are the same with autologging, and the optimizer is as it was."""
    for name in ("defaults", "full"):
        for what in ("journal", "spent", "rollouts", "playbook"):
            assert told[name][what] == told["plain"][what]
        assert told[name]["added"] == []


@pytest.mark.slow
def test_mlflow_by_default_logs_no_run(told: Any) -> None:
    """autolog() without log_compiles and log_evals makes no run of a compile."""
    assert told["defaults"]["runs"] == []


@pytest.mark.slow
def test_mlflow_uses_a_run_that_is_open(told: Any) -> None:
    """Inside mlflow.start_run() the evaluations are nested in that run, so that it may hold the settings as well."""
    mine, *nested = told["own"]["runs"]
    assert mine["id"] == told["own"]["mine"]
    assert "best_model.json" in mine["artifacts"]
    assert len(nested) >= 2
    assert {run["parent"] for run in nested} == {mine["id"]}


@pytest.mark.slow
def test_mlflow_shows_a_run_that_failed_as_failed(told: Any) -> None:
    """With a dead LM the compile is FAILED, no run stays open, and the error is ACE's."""
    assert "The LM failed" in told["dead"]["error"]
    assert [run["status"] for run in told["dead"]["runs"]] == ["FAILED"]
    assert told["dead"]["active"] == "None"

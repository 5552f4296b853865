"""MLflow: the server or database that MLFLOW_TRACKING_URI names, else a folder in the run's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

for name, value in {
    # Of a server that does not answer the training learns in seconds; by default it is asked for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # The folder is the one store that mlflow-skinny can write by itself, and newer versions want it asked for.
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(name, value)

from mlflow.entities import Metric, Param  # noqa: E402  # after the variables, which it reads
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

from fewstep.train.tracking import TrackedRun  # noqa: E402

_LONGEST = 500
"""Letters of a setting that every version of MLflow takes."""


class MlflowRun:
    """Goes on in the run whose identity stands in the run folder; figures are its metrics, pictures its artifacts."""

    def __init__(self, run: TrackedRun) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder.absolute() / "mlruns").as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fewstep")
        self._id = run.recall("mlflow", lambda: self._create(experiment, run.name))
        try:
            self._client.update_run(self._id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._id = run.recall("mlflow", lambda: self._create(experiment, run.name), anew=True)
        told = self._client.get_run(self._id).data.params  # a setting is told once: MLflow takes no other value
        said = {name: str(value)[:_LONGEST] for name, value in run.settings.items() if name not in told}
        self._client.log_batch(self._id, params=[Param(*each) for each in list(said.items())[:100]])

    def _create(self, experiment: str, name: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self._client.create_experiment(experiment)
        return str(self._client.create_run(place, run_name=name).info.run_id)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self._client.log_batch(self._id, [Metric(name, value, 0, step) for name, value in values.items()])

    def show(self, step: int, picture: Path) -> None:  # noqa: ARG002  # the file is named after it
        self._client.log_artifact(self._id, str(picture), "samples")

    def close(self, done: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")


open_tracker = MlflowRun

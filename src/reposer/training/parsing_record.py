"""What a training of maps writes besides its metrics: the task's figures on people who are only watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reposer.runtime import Runtime
from reposer.training.map_task import MapTask
from reposer.training.parsing_state import ParsingState
from reposer.training.record import TrainingRecord


class ParsingRecord(TrainingRecord):
    """The run folder of a training of maps.

    Args:
        task: its configuration must be that of the run, if there is one in ``folder``.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        state: is put back to the newest good checkpoint of the folder.

    Raises:
        UserError: as TrainingRecord's.
    """

    def __init__(self, task: MapTask, folder: Path, runtime: Runtime, state: ParsingState) -> None:
        self._task, self._state = task, state
        config = task.config
        super().__init__(config, config.output, task.total_steps, folder, runtime, state, state.notes)

    def validate(self) -> None:
        """Write the task's figures."""
        if self._run is None:
            return
        figures = self._task.validate(self._state.network.eval(), self._runtime)
        self._state.network.train()
        if figures:
            self.write(figures)

    def inputs(self) -> dict[str, str]:
        """What the task says."""
        return self._task.inputs()

    def facts(self) -> dict[str, Any]:
        """What the task says."""
        return self._task.facts()

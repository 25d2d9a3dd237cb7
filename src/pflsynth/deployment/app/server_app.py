"""Flower's ServerApp of a federation: it calls the pflsynth that is installed here."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pflsynth.deployment.events import EventLog
from pflsynth.deployment.server import run_server
from pflsynth.deployment.settings import CoordinatorSettings, log_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    settings = CoordinatorSettings.from_environment()
    run_server(grid, settings, EventLog(log_of(settings.run)))

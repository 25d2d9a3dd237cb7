"""Flower's ServerApp of a federation: it calls the pflsynth that is installed here."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pflsynth.deployment.server import run_server
from pflsynth.deployment.settings import CoordinatorSettings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    run_server(grid, CoordinatorSettings.from_environment())

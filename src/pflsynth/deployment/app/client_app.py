"""Flower's ClientApp of a site: it calls the pflsynth that is installed here."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from pflsynth.deployment.client import answer_here

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a message of the coordinator."""
    return answer_here(message)

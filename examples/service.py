"""A web service that learns from what its users say of its answers, in several processes on one store.

    pip install fastapi uvicorn
    python examples/service.py --workers 2        # offline, no key; MODEL=openai/gpt-5-mini: with a real model

    curl localhost:8000/route -H 'content-type: application/json' -d '{"message": "My badge does not open the gate"}'
    curl localhost:8000/feedback -H 'content-type: application/json' -d '{"id": "…", "message": "…", "desk": "…",
         "right_desk": "Harbor", "user": "user-17"}'
    curl localhost:8000/playbook

Feedback comes later, and to any of the workers. So it brings the id of the answer, and what was asked and answered: a
worker that did not give the answer knows nothing of it. All workers learn, and all use what one of them has learned.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dspy
import uvicorn
from common import remote
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from routing_task import RouteMessage

from dspy_ace import OnlineACE, PlaybookStore
from dspy_ace.errors import SettingsError
from dspy_ace.testing import OfflineLM


class Message(BaseModel):
    """A question to the service."""

    message: str


class Feedback(BaseModel):
    """What a user says of an answer: the right desk, words, or both."""

    id: str
    message: str
    desk: str
    right_desk: str | None = None
    words: str | None = None
    user: str | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the store when a worker starts, and close it when the worker ends."""
    model = os.environ.get("MODEL", "offline")
    dspy.configure(lm=OfflineLM() if model == "offline" else remote(model))
    with (
        PlaybookStore(os.environ.get("STORE", "memory.db")) as store,
        OnlineACE(dspy.ChainOfThought(RouteMessage), store=store, batch_size=4, poll_seconds=1) as app.state.online,
    ):
        yield


app = FastAPI(title="Routing that learns", lifespan=lifespan)


@app.post("/route")
async def route(asked: Message) -> dict[str, Any]:
    """Answer, and give the answer an id."""
    prediction = await app.state.online.acall(message=asked.message)
    return {"desk": prediction.desk, "id": prediction.dspy_ace_id, "worker": os.getpid()}


@app.post("/feedback")
def feedback(given: Feedback) -> dict[str, str]:
    """Keep what a user says. It is on disk when this returns, and learned from in the background."""
    expected = None if given.right_desk is None else {"desk": given.right_desk}
    logged: dict[str, Any] = {"inputs": {"message": given.message}, "outputs": {"desk": given.desk}}
    try:
        source = app.state.online.tell(given.id, given.words, expected=expected, source=given.user, **logged)
    except SettingsError as error:  # told before, or not to be understood
        raise HTTPException(409, str(error)) from error
    return {"source": source}


@app.get("/playbook")
def playbook() -> dict[str, Any]:
    """Return what was learned, as this worker uses it."""
    online = app.state.online
    return {"bullets": online.playbook.to_text(), "waiting": online.pending, "worker": os.getpid()}


def main() -> None:
    """Run the service."""
    parser = argparse.ArgumentParser(description="Serve a program that learns from its users' feedback.")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1 (default: 8000)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    args = parser.parse_args()
    uvicorn.run("service:app", host="127.0.0.1", port=args.port, workers=args.workers)


if __name__ == "__main__":
    main()

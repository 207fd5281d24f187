"""Puts the doors of inference into the worker's HTTP application."""

from collections.abc import Callable

from fastapi import FastAPI

from gpu_worker.edges.http import generate_door
from gpu_worker.edges.http.openai_door import openai_app
from gpu_worker.edges.http.openai_gate import OpenAiPaths
from gpu_worker.edges.http.paid_door import PaidDoor
from gpu_worker.inference.text.report import with_inference
from gpu_worker.inference.text.service import Service
from wire.vendor import WorkerHealth


def include_inference(app: FastAPI, service: Service, paid: PaidDoor | None = None) -> None:
    """
    Serve `service` in `app`, which has not begun to serve: the OpenAI API, `/api/v1/generate` and its kind, `/readyz`,
    `/metrics`. What `app.state.health` answers, the worker's health, tells of the model besides.
    """
    app.state.inference = service
    own: Callable[[], WorkerHealth] = app.state.health
    app.state.health = lambda: with_inference(own(), service)
    app.include_router(generate_door.closed)
    app.include_router(generate_door.free)
    app.add_middleware(OpenAiPaths, openai=openai_app(service, paid))

"""Vectors of texts, or scores of a reranker, over HTTP: README.md beside this file has the commands.

A call of the model blocks its thread, so requests are computed in a pool of threads while the event loop goes on. The
model computes the texts of all threads that wait in one pass: nothing here gathers them.
"""

import asyncio
import base64
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

import kaoken

MOST = 1024  # texts of a request
REQUESTS = 64  # that are computed at a time; others wait in the pool's queue

model = kaoken.load(os.environ.get("KAOKEN_MODEL"))  # None: the model in this wheel
pool = ThreadPoolExecutor(REQUESTS)
app = FastAPI(title=f"Kaoken: {model.info.name}")


class Texts(BaseModel):
    """What /encode reads."""

    texts: Annotated[list[str], Field(min_length=1, max_length=MOST)]
    encoding: Literal["float", "base64"] = "float"


class Pairs(BaseModel):
    """What /score reads."""

    query: str
    documents: Annotated[list[str], Field(min_length=1, max_length=MOST)]


async def in_thread(call: Callable[[Any], Any], argument: Any) -> Any:
    """What a call returns, made in a thread of the pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, call, argument)


def reply(status: int = 200, **fields: Any) -> Response:
    """JSON. orjson writes NumPy arrays; FastAPI's own responses would make Python objects of every number."""
    content = orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, media_type="application/json")


async def encode(body: Texts) -> Response:
    """{"vectors": [[...], ...]}, one for each text, or each as base64 of little-endian float32."""
    vectors = await in_thread(model.encode, body.texts)
    if body.encoding == "base64":
        return reply(vectors=[base64.b64encode(vector).decode() for vector in vectors])
    return reply(vectors=vectors)


async def score(body: Pairs) -> Response:
    """{"scores": [...]}: how well each document fits the query."""
    scores = await in_thread(model.score, [(body.query, document) for document in body.documents])
    return reply(scores=scores.tolist())


if model.config.task == "text-classification":
    app.post("/score")(score)
else:
    app.post("/encode")(encode)


@app.get("/health")
async def health() -> dict[str, str]:
    """That the model is loaded, and which."""
    return {"model": model.info.name, "task": model.config.task, "dtype": model.info.dtype}


@app.exception_handler(kaoken.InputError)
async def refuse(_: Request, error: kaoken.InputError) -> Response:
    """What the model does not take is the client's mistake."""
    return reply(422, detail=str(error))

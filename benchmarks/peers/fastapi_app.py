"""The tiny model in FastAPI, in the server's own process. Arguments: port."""

import sys

import uvicorn
from fastapi import FastAPI
from tiny import Tiny

app = FastAPI()
model = Tiny()


@app.post("/predict")
async def predict(row: list[float]) -> list[float]:
    """One input."""
    return model.predict([row])[0]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)

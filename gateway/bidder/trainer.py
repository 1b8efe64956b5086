"""Training in a process of its own: one thread, no environment, no memory of this one.

Started as `python -m gateway.bidder.trainer FOLDER KEY_FILE SEED`; examples come as MessagePack on standard input, the
name of the model that was written is the answer. A gateway that trained in its own process would stall its calls, and
one that forked would hang in OpenMP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from contracts.errors import FareboxError
from gateway.bidder.limits import TRAIN_TIMEOUT_S
from gateway.bidder.model import Example, Forest
from gateway.bidder.model_file import Manifest, ModelRefused, install_key, load, save

__all__ = ["TrainingFailed", "newest", "train_elsewhere"]

# A child that trains needs a path to its libraries and nothing else that this process knows.
_KEPT_VARIABLES = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "TMPDIR")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_NICE = 10
_REASON_LENGTH_MAX = 300


class TrainingFailed(FareboxError):
    """No model came of a training. Decisions go on as before."""

    code = "training_failed"
    remedy = "install farebox[bidder], or choose `policy: rule`"


async def train_elsewhere(examples: Sequence[Example], folder: Path, key_path: Path, seed: int) -> tuple[str, Forest]:
    """Return name and model of a training in another process. Raises `TrainingFailed` or `ModelRefused`."""
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        str(folder),
        str(key_path),
        str(seed),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment, **_ONE_THREAD},
    )
    try:
        async with asyncio.timeout(TRAIN_TIMEOUT_S):
            answer, trouble = await process.communicate(msgspec.msgpack.encode(_packed(examples)))
    except TimeoutError:
        raise TrainingFailed(f"no model in {TRAIN_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        last = trouble.decode(errors="replace").strip().rpartition("\n")[2]
        raise TrainingFailed(f"the training process ended with {process.returncode}: {last[:_REASON_LENGTH_MAX]}")
    name = answer.decode(errors="replace").strip()
    if not name.isalnum():
        raise TrainingFailed("the training process named no model")
    forest, _ = load(folder / name, install_key(key_path))
    return name, forest


def newest(folder: Path, key_path: Path) -> tuple[str, Forest, Manifest] | None:
    """Return the newest model in a folder that can be read, or None."""
    if not folder.is_dir():
        return None
    models = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(models, key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(ModelRefused):
            forest, manifest = load(path, install_key(key_path))
            return path.name, forest, manifest
    return None


def main(arguments: Sequence[str]) -> None:
    """Train on what comes on standard input and print the model's name."""
    from importlib.metadata import version

    from gateway.bidder.model import train

    with contextlib.suppress(OSError):
        os.nice(_NICE)
    folder, key_path, seed = arguments
    examples = [
        Example(tuple(row), latency_s, is_ok, is_censored)
        for row, latency_s, is_ok, is_censored in msgspec.msgpack.decode(
            sys.stdin.buffer.read(), type=list[tuple[list[float], float, bool, bool]]
        )
    ]
    started = time.perf_counter()
    forest = train(examples, int(seed))
    manifest = Manifest(
        rows=len(examples),
        created_s=int(time.time()),
        metrics={"took_s": round(time.perf_counter() - started, 3)},
        library=version("lightgbm"),
    )
    sys.stdout.write(save(forest, manifest, Path(folder), install_key(Path(key_path))) + "\n")


def _packed(examples: Sequence[Example]) -> list[tuple[Sequence[float], float, bool, bool]]:
    return [(example.row, example.latency_s, example.is_ok, example.is_censored) for example in examples]


if __name__ == "__main__":
    main(sys.argv[1:])

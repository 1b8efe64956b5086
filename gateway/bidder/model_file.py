"""Models on disk: LightGBM's text, and a manifest that says what they are and that this install made them.

No pickle anywhere. LightGBM's own reader trusts the text it is given, so a file is read only when its manifest carries
the HMAC of this install's key, and after every index in it was checked here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path
from typing import Any

from contracts.errors import ConfigInvalid
from contracts.nesting import check_nesting
from gateway.bidder.calibration import Line
from gateway.bidder.features import FEATURE_SCHEMA, FEATURES
from gateway.bidder.limits import MODEL_BYTES_MAX, MODEL_TREES_MAX, MODELS_KEPT
from gateway.bidder.model import Forest

__all__ = ["Manifest", "ModelRefused", "check_text", "install_key", "load", "save"]

_PARTS = ("on_time", "quality")
_MANIFEST = "manifest.json"
_KEY_BYTES = 32
# A row and the rule's word.
_INPUTS = len(FEATURES) + 1
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?", re.ASCII)


class ModelRefused(ConfigInvalid):
    """A model file is not what this install wrote, or does not fit. The rule decides instead."""

    code = "model_refused"
    remedy = "remove the folder; a new model is made from the event log"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model is: made of `rows` outcomes at `created_s` (unix), with what metrics, for which schema."""

    rows: int
    created_s: int
    metrics: Mapping[str, float]
    library: str
    schema: int = FEATURE_SCHEMA


def install_key(path: Path) -> bytes:
    """Return this install's key, made on first use (mode 0600)."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise ModelRefused(
                f"{path}: expected {_KEY_BYTES} bytes", remedy="remove the file and the models"
            ) from None
        return key
    with os.fdopen(descriptor, "wb") as file:
        key = secrets.token_bytes(_KEY_BYTES)
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


def save(forest: Forest, manifest: Manifest, folder: Path, key: bytes) -> str:
    """Write a model under `folder` and return its name, a hash of what it is. Older models are removed."""
    texts = {"on_time": forest.on_time.model_to_string(), "quality": forest.quality.model_to_string()}
    stated: dict[str, Any] = {
        "schema": manifest.schema,
        "features": list(FEATURES),
        "rows": manifest.rows,
        "created_s": manifest.created_s,
        "metrics": dict(manifest.metrics),
        "library": manifest.library,
        "lines": {
            "on_time": [forest.on_time_line.offset, forest.on_time_line.slope],
            "quality": [forest.quality_line.offset, forest.quality_line.slope],
        },
        "sha256": {part: hashlib.sha256(texts[part].encode()).hexdigest() for part in _PARTS},
    }
    name = hashlib.sha256(_canonical(stated)).hexdigest()[:16]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = folder / f".{name}.{secrets.token_hex(4)}"
    unfinished.mkdir(mode=0o700)
    files = {f"{part}.txt": texts[part] for part in _PARTS}
    files[_MANIFEST] = json.dumps({**stated, "hmac": _sign(stated, key)}, indent=1)
    for file_name, text in files.items():
        _write(unfinished / file_name, text)
    target = folder / name
    if target.exists():
        shutil.rmtree(unfinished)
    else:
        unfinished.rename(target)
    _forget_older(folder, keep=name)
    return name


def load(path: Path, key: bytes) -> tuple[Forest, Manifest]:
    """Return the model in a folder. Raises `ModelRefused` for anything that this install did not write just so."""
    stated = _read_manifest(path, key)
    texts = {part: _read(path / f"{part}.txt") for part in _PARTS}
    hashes = stated["sha256"]
    for part, text in texts.items():
        if not hmac.compare_digest(hashlib.sha256(text.encode()).hexdigest(), str(hashes[part])):
            raise ModelRefused(f"{path}/{part}.txt: is not the file its manifest names")
        check_text(text, f"{path}/{part}.txt")
    import lightgbm as lgb

    on_time, quality = (lgb.Booster(model_str=texts[part]) for part in _PARTS)
    on_time_line, quality_line = (_line(stated, part, path) for part in _PARTS)
    manifest = Manifest(stated["rows"], stated["created_s"], stated["metrics"], stated["library"], stated["schema"])
    return Forest(on_time, quality, on_time_line, quality_line), manifest


def _line(stated: Mapping[str, Any], part: str, path: Path) -> Line:
    try:
        offset, slope = (float(number) for number in stated["lines"][part])
    except (KeyError, TypeError, ValueError):
        raise ModelRefused(f"{path}: lines.{part}: expected an offset and a slope") from None
    if not (isfinite(offset) and 0 < slope < inf):
        raise ModelRefused(f"{path}: lines.{part}: expected a finite offset and a slope above 0")
    return Line(offset, slope)


def check_text(text: str, where: str) -> None:
    """Raise `ModelRefused` unless every tree's children, features and categories stay inside its own tables."""
    header, *trees = text.split("\nTree=")
    stated = _fields(header)
    if _integer(stated, "max_feature_idx", where) != _INPUTS - 1:
        raise ModelRefused(f"{where}: expected {_INPUTS} features")
    if not 0 < len(trees) <= MODEL_TREES_MAX:
        raise ModelRefused(f"{where}: expected 1 to {MODEL_TREES_MAX} trees, got {len(trees)}")
    for number, tree in enumerate(trees):
        _check_tree(_fields(tree.partition("\nend of trees")[0]), f"{where}, tree {number}")


def _check_tree(fields: Mapping[str, str], where: str) -> None:
    leaves, categories = _integer(fields, "num_leaves", where), _integer(fields, "num_cat", where)
    if leaves < 1 or leaves > MODEL_BYTES_MAX or categories < 0:
        raise ModelRefused(f"{where}: {leaves} leaves, {categories} categories")
    _numbers(fields, "leaf_value", leaves, where)
    splits = leaves - 1
    if splits == 0:
        return
    _within(_integers(fields, "split_feature", splits, where), 0, _INPUTS, f"{where}: split_feature")
    decisions = _integers(fields, "decision_type", splits, where)
    thresholds = _numbers(fields, "threshold", splits, where)
    reached = []
    for name in ("left_child", "right_child"):
        children = _integers(fields, name, splits, where)
        _within(children, -leaves, splits, f"{where}: {name}")
        # A child further up would be a circle, and walking it would never end.
        if any(0 <= child <= node for node, child in enumerate(children)):
            raise ModelRefused(f"{where}: {name} goes back")
        reached += children
    if sorted(reached) != [*range(-leaves, 0), *range(1, splits)]:
        raise ModelRefused(f"{where}: is not one tree")
    used = [int(threshold) for threshold, kind in zip(thresholds, decisions, strict=True) if kind & 1]
    _within(used, 0, categories, f"{where}: categories")
    if categories:
        bounds = _integers(fields, "cat_boundaries", categories + 1, where)
        words = _integers(fields, "cat_threshold", bounds[-1] if 0 <= bounds[-1] <= MODEL_BYTES_MAX else -1, where)
        if bounds[0] != 0 or any(a > b for a, b in pairwise(bounds)):
            raise ModelRefused(f"{where}: cat_boundaries do not rise")
        _within(words, 0, 2**32, f"{where}: cat_threshold")


def _fields(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.split("\n") if "=" in line)


def _integer(fields: Mapping[str, str], name: str, where: str) -> int:
    return _integers(fields, name, 1, where)[0]


def _integers(fields: Mapping[str, str], name: str, count: int, where: str) -> list[int]:
    values = _numbers(fields, name, count, where)
    if any(value != int(value) for value in values):
        raise ModelRefused(f"{where}: {name} is no list of integers")
    return [int(value) for value in values]


def _numbers(fields: Mapping[str, str], name: str, count: int, where: str) -> list[float]:
    words = fields.get(name, "").split()
    if len(words) != count or not all(_NUMBER.fullmatch(word) and len(word) < 40 for word in words):
        raise ModelRefused(f"{where}: {name}: expected {count} numbers")
    values = [float(word) for word in words]
    if any(abs(value) == float("inf") for value in values):
        raise ModelRefused(f"{where}: {name}: expected finite numbers")
    return values


def _within(values: list[int], low: int, high: int, where: str) -> None:
    if any(not low <= value < high for value in values):
        raise ModelRefused(f"{where}: points outside of its table")


def _read_manifest(path: Path, key: bytes) -> dict[str, Any]:
    try:
        text = _read(path / _MANIFEST)
        check_nesting(text.encode())
        stated = json.loads(text)
        signature = stated.pop("hmac")
        if not hmac.compare_digest(str(signature), _sign(stated, key)):
            raise ModelRefused(f"{path}: was not made by this install")
        if stated["schema"] != FEATURE_SCHEMA or stated["features"] != list(FEATURES):
            raise ModelRefused(f"{path}: is of another schema of features")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelRefused(f"{path}/{_MANIFEST}: is no manifest") from None
    return dict(stated)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MODEL_BYTES_MAX + 1)
        if len(data) > MODEL_BYTES_MAX:
            raise ModelRefused(f"{path}: is larger than {MODEL_BYTES_MAX} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError):
        raise ModelRefused(f"{path}: cannot be read") from None


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _canonical(stated: Mapping[str, Any]) -> bytes:
    return json.dumps(stated, sort_keys=True, separators=(",", ":")).encode()


def _sign(stated: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, _canonical(stated), hashlib.sha256).hexdigest()


def _forget_older(folder: Path, keep: str) -> None:
    models = [
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and path.name != keep
    ]
    models.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in models[MODELS_KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)

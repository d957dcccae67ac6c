"""States of tokens -> one embedding, for models that do not pool in their own graph."""

from __future__ import annotations

import numpy as np

from headrace.tasks.text_options import Pooling

_SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize


def pool(states: np.ndarray, tokens: int, pooling: Pooling) -> np.ndarray:
    """FP32 ``[1, width]`` from ``[1, tokens or more, width]``; what is more is padding."""
    if pooling == "cls":
        pooled = states[:, 0]
    elif pooling == "last":
        pooled = states[:, tokens - 1]
    elif pooling == "max":
        pooled = states[:, :tokens].max(axis=1)
    else:
        pooled = states[:, :tokens].mean(axis=1, dtype=np.float32)
    return pooled.astype(np.float32, copy=False)


def normalized(rows: np.ndarray) -> np.ndarray:
    """``[rows, width]`` scaled to length 1 (L2); a row of zeros stays one."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    scaled: np.ndarray = rows / np.maximum(norms, _SMALLEST_NORM)[:, None]
    return scaled


def probabilities(logits: np.ndarray, function: str) -> np.ndarray:
    """``[rows, labels]`` logits by ``softmax``, ``sigmoid`` or ``none`` (as they are)."""
    if function == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return softmax
    if function == "sigmoid":
        # exp() of a negative number only: no overflow on either side.
        small = np.exp(-np.abs(logits))
        sigmoid: np.ndarray = np.where(logits >= 0, 1, small) / (1 + small)
        return sigmoid
    return logits

"""Near-duplicates among the contents of bullets: cosine first, then the guard (ACE §3.3).

Two texts are duplicates when their vectors are close *and* `differences.difference` finds nothing that
sets them apart; exact repeats (case, punctuation and space aside) need no vectors, but pass the guard as
well. Vectors are computed once a text. scikit-learn is imported on first use only.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .differences import content_words, difference
from .errors import EmbedderError

Embedder = Callable[[list[str]], Any]
"""`list[str]` of length n → array-like of shape (n, d), finite numbers; a `dspy.Embedder` is one."""

FEATURES = 2**20  # columns of the lexical vectors; sparse, so they cost nothing
BLOCK = 256  # rows compared at a time: bounds the memory of a comparison at BLOCK × n floats


class Pair(NamedTuple):
    """Two texts by their places in the sequence asked about, `first < second`, and their cosine."""

    first: int
    second: int
    cosine: float


class Vectors:
    """Unit vectors of texts, each computed once and kept under a hash of its text.

    Args:
        embedder: `list[str]` → array-like (n, d); None: lexical vectors (hashed stems of
            content words; no download, nothing fitted, the same in every process).

    Attributes:
        computed: how many vectors were computed so far.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self.embedder = embedder
        self.computed = 0
        self._rows: dict[bytes, int] = {}
        self._matrix: Any = None  # (kept vectors, d): scipy CSR without an embedder, else a dense array

    def rows(self, texts: Sequence[str]) -> Any:
        """The vectors of `texts`, float32 of shape (len(texts), d), rows of length 1 (or 0 for no content).

        Raises:
            EmbedderError: the embedder did not return one finite vector a text, or changed its width.
        """
        keys = [_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        if missing:
            self._append(list(missing), list(missing.values()))
        return self._matrix[[self._rows[key] for key in keys]]

    def forget_all_but(self, texts: Sequence[str]) -> None:
        """Drop the vectors of other texts, once they are the larger part: memory follows the playbook."""
        wanted = {key: None for key in map(_key, texts) if key in self._rows}
        if len(self._rows) > 2 * len(wanted) + BLOCK:
            self._matrix = self._matrix[[self._rows[key] for key in wanted]]
            self._rows = {key: row for row, key in enumerate(wanted)}

    def _append(self, keys: list[bytes], texts: list[str]) -> None:
        new = lexical(texts) if self.embedder is None else embedded(self.embedder, texts)
        if self._matrix is None:
            matrix = new
        elif self._matrix.shape[1] != new.shape[1]:
            raise EmbedderError(
                f"The embedder returned vectors of width {new.shape[1]} after vectors of width {self._matrix.shape[1]}; "
                "one embedder must keep one width."
            )
        elif self.embedder is None:
            from scipy.sparse import vstack

            matrix = vstack([self._matrix, new], format="csr")
        else:
            matrix = np.concatenate([self._matrix, new])
        start = len(self._rows)
        self._matrix = matrix
        self._rows.update({key: start + at for at, key in enumerate(keys)})
        self.computed += len(texts)


def lexical(texts: Sequence[str]) -> Any:
    """Sparse unit vectors of the content words of `texts`: float32 CSR of shape (len(texts), FEATURES)."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        analyzer=content_words, n_features=FEATURES, alternate_sign=False, norm="l2", dtype=np.float32
    )
    return hashing.transform(texts)


def embedded(embedder: Embedder, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The unit vectors that `embedder` gives `texts`: float32 of shape (len(texts), d).

    Raises:
        EmbedderError: not an array of shape (len(texts), d) of finite numbers.
    """
    expected = f"The embedder must return an array of shape ({len(texts)}, d) for {len(texts)} texts"
    try:
        vectors = np.asarray(embedder(list(texts)), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EmbedderError(f"{expected}; what it returned is no array of numbers ({error}).") from error
    if vectors.ndim != 2 or vectors.shape[0] != len(texts) or vectors.shape[1] == 0:
        raise EmbedderError(f"{expected}; got shape {vectors.shape}.")
    if not np.isfinite(vectors).all():
        raise EmbedderError(f"{expected} of finite numbers; got NaN or infinity.")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def close(vectors: Vectors, texts: Sequence[str], new: Sequence[int], threshold: float) -> list[Pair]:
    """The pairs of `texts` with at least one of the places `new` whose cosine is at least `threshold`, in order."""
    everything = vectors.rows(texts)
    is_new = np.zeros(len(texts), dtype=bool)
    is_new[list(new)] = True
    found = []
    for start in range(0, len(new), BLOCK):
        block = list(new[start : start + BLOCK])
        for row, column in zip(*_hits(everything[block] @ everything.T, threshold - 1e-4), strict=True):
            one, other = block[int(row)], int(column)
            if one != other and not (is_new[other] and other < one):
                cosine = _cosine(everything[one], everything[other])
                if cosine >= threshold:
                    found.append(Pair(min(one, other), max(one, other), cosine))
    return sorted(found)


def _hits(product: Any, least: float) -> tuple[Any, Any]:
    """Rows and columns of the entries of a product, dense or sparse, that are at least `least`."""
    if isinstance(product, np.ndarray):
        rows, columns = np.nonzero(product >= least)
        return rows, columns
    entries = product.tocoo()
    if least <= 0:
        return _hits(entries.toarray(), least)
    kept = entries.data >= least
    return entries.row[kept], entries.col[kept]


def _cosine(a: Any, b: Any) -> float:
    """The cosine of two unit rows, summed exactly: the same whatever else was compared in one go."""
    if not isinstance(a, np.ndarray):
        return round(math.fsum(a.multiply(b).data.tolist()), 6)
    return round(math.fsum((a.astype(np.float64) * b).tolist()), 6)


def duplicates(vectors: Vectors, texts: Sequence[str], new: Sequence[int], threshold: float) -> list[Pair]:
    """The pairs of `texts` that say the same: close or exact repeats, and no difference found by the guard.

    Args:
        vectors: where vectors come from and are kept.
        texts: the contents, any number.
        new: places in `texts` that were not compared before; pairs without one of them are left out.
        threshold: cosine in 0…1 from which a pair is looked at.

    Returns:
        Pairs in order of place. The same in every process, whatever `vectors` has seen before.

    Raises:
        EmbedderError: see `Vectors.rows`.
    """
    if not new:
        return []
    candidates = {(pair.first, pair.second): pair for pair in close(vectors, texts, new, threshold)}
    for pair in repeats(texts, new):
        candidates.setdefault((pair.first, pair.second), pair)
    return [
        pair for (first, second), pair in sorted(candidates.items()) if difference(texts[first], texts[second]) is None
    ]


def repeats(texts: Sequence[str], new: Sequence[int]) -> list[Pair]:
    """The pairs with at least one of the places `new` that are equal but for case, punctuation and space."""
    places: dict[str, list[int]] = {}
    for at, text in enumerate(texts):
        places.setdefault(folded(text), []).append(at)
    wanted = set(new)
    found = []
    for same in places.values():
        for first_at, first in enumerate(same):
            found += [Pair(first, second, 1.0) for second in same[first_at + 1 :] if {first, second} & wanted]
    return sorted(found)


def folded(text: str) -> str:
    """`text` without case, punctuation and extra space."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

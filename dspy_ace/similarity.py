"""Near-duplicates among the contents of bullets: cosine first, then the guard (ACE §3.3).

Two texts are duplicates when their vectors are close *and* `differences.difference` finds nothing that
sets them apart; exact repeats (case, punctuation and space aside) need no vectors, but pass the guard as
well. Vectors are computed once a text. scikit-learn is imported on first use only.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .differences import difference
from .errors import EmbedderError
from .wording import content_words

Embedder = Callable[[list[str]], Any]
"""`list[str]` of length n → array-like of shape (n, d), finite numbers. A `dspy.Embedder` is one."""

FEATURES = 2**20  # columns of the lexical vectors; sparse, so they cost nothing
LEXICAL_THRESHOLD = 0.65  # nearly all rewordings that the guard lets pass lie above it
EMBEDDED_THRESHOLD = 0.8
EDGE = 1e-4  # a cosine this near the threshold is computed once more, exactly
BLOCK = 256  # rows compared at a time: bounds the memory of a comparison at BLOCK × n floats


class Pair(NamedTuple):
    """Two texts by their places in the sequence asked about, `first < second`, and their cosine."""

    first: int
    second: int
    cosine: float


class Vectors:
    """Unit vectors of texts, each computed once and kept under a hash of its text.

    Args:
        embedder: `list[str]` → array-like (n, d); None: lexical vectors (hashed stems of content words; no
            download, nothing fitted, the same in every process).

    Attributes:
        computed: how many vectors were computed so far.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self.embedder = embedder
        self.computed = 0
        self._places: dict[bytes, int] = {}
        self._kept: Any = None  # rows in the order of _places: scipy CSR, or a dense array with room to grow

    def places(self, texts: Sequence[str]) -> list[int]:
        """The rows of `matrix` that hold the vectors of `texts`; those not known yet are computed, in one go.

        Raises:
            EmbedderError: the embedder did not return one finite vector a text, or changed its width.
        """
        keys = [_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._places}
        if missing:
            new = (
                lexical(list(missing.values()))
                if self.embedder is None
                else embedded(self.embedder, list(missing.values()))
            )
            self._append(new)
            self._places.update({key: len(self._places) + at for at, key in enumerate(missing)})
            self.computed += len(missing)
        return [self._places[key] for key in keys]

    @property
    def matrix(self) -> Any:
        """All vectors kept: float32 of shape (n, d), rows of length 1, or 0 for a text without content words."""
        if self._kept is None:
            return np.zeros((0, 1), dtype=np.float32)
        return self._kept[: len(self._places)] if isinstance(self._kept, np.ndarray) else self._kept

    def forget_all_but(self, texts: Sequence[str]) -> None:
        """Drop the vectors of other texts once they are the larger part: memory follows the playbook."""
        wanted = [key for key in dict.fromkeys(map(_key, texts)) if key in self._places]
        if len(self._places) > 2 * len(wanted) + BLOCK:
            self._kept = self._kept[[self._places[key] for key in wanted]]
            self._places = {key: at for at, key in enumerate(wanted)}

    def _append(self, new: Any) -> None:
        old, count = self.matrix, len(self._places)
        if self._kept is None:
            self._kept = new
        elif old.shape[1] != new.shape[1]:
            raise EmbedderError(
                f"The embedder returned vectors of width {new.shape[1]} after vectors of width {old.shape[1]}; "
                "one embedder must keep one width."
            )
        elif not isinstance(new, np.ndarray):
            from scipy.sparse import vstack  # noqa: PLC0415  (comes with scikit-learn: on first use only)

            self._kept = vstack([old, new], format="csr")
        else:
            if count + len(new) > len(self._kept):
                self._kept = np.empty((count + len(new) + count // 4, new.shape[1]), dtype=np.float32)
                self._kept[:count] = old
            self._kept[count : count + len(new)] = new


def lexical(texts: Sequence[str]) -> Any:
    """Sparse unit vectors of the content words of `texts`: float32 CSR of shape (len(texts), FEATURES)."""
    from sklearn.feature_extraction.text import HashingVectorizer  # noqa: PLC0415  (slow to import: on first use only)

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
    returned = embedder(list(texts))
    try:
        vectors = np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EmbedderError(f"{expected}; got {type(returned).__name__}, no array of numbers ({error}).") from error
    if vectors.ndim != 2 or vectors.shape[0] != len(texts) or vectors.shape[1] == 0:
        raise EmbedderError(f"{expected}; got shape {vectors.shape}.")
    if not np.isfinite(vectors).all():
        raise EmbedderError(f"{expected} of finite numbers; got NaN or infinity.")
    peaks = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = vectors / np.where(peaks > 0, peaks, 1)  # so that no square overflows
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def close(vectors: Vectors, texts: Sequence[str], new: Sequence[int], threshold: float) -> list[Pair]:
    """The pairs of `texts` with at least one of the places `new` whose cosine is at least `threshold`, in order."""
    rows = vectors.places(texts)
    matrix = vectors.matrix
    holders: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        holders.setdefault(row, []).append(at)
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(new), BLOCK):
        block = list(new[start : start + BLOCK])
        for row, one, cosine in _hits(matrix @ matrix[[rows[at] for at in block]].T, threshold - EDGE):
            at = block[one]
            if row not in holders:
                continue
            # a product of floats depends on what is multiplied in one go: near the threshold, sum exactly
            exact = cosine if cosine >= threshold + EDGE else _cosine(matrix[rows[at]], matrix[row])
            if exact >= threshold:
                found.update({(min(at, to), max(at, to)): round(exact, 4) for to in holders[row] if to != at})
    return [Pair(first, second, cosine) for (first, second), cosine in sorted(found.items())]


def _hits(product: Any, least: float) -> Iterator[tuple[int, int, float]]:
    """Row, column and value of the entries of a product, dense or sparse, that are at least `least`."""
    if not isinstance(product, np.ndarray) and least > 0:
        entries = product.tocoo()
        kept = entries.data >= least
        rows, columns, values = entries.row[kept], entries.col[kept], entries.data[kept]
    else:
        dense = product if isinstance(product, np.ndarray) else product.toarray()
        rows, columns = np.nonzero(dense >= least)
        values = dense[rows, columns]
    return zip(rows.tolist(), columns.tolist(), values.tolist(), strict=True)


def _cosine(a: Any, b: Any) -> float:
    """The cosine of two unit rows, summed without rounding on the way."""
    products = a.astype(np.float64) * b if isinstance(a, np.ndarray) else a.multiply(b).data
    return math.fsum(products.tolist())


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
    places: dict[bytes, list[int]] = {}
    for at, text in enumerate(texts):
        places.setdefault(_fold(text), []).append(at)
    wanted = set(new)
    found = []
    for same in places.values():
        for first_at, first in enumerate(same):
            found += [Pair(first, second, 1.0) for second in same[first_at + 1 :] if {first, second} & wanted]
    return sorted(found)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@lru_cache(maxsize=65536)
def _fold(text: str) -> bytes:
    """A key that texts share if they are equal but for case, punctuation and space."""
    return _key(" ".join(re.findall(r"\w+", text.casefold())))

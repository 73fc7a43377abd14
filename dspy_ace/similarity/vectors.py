"""Vectors of texts, each computed once and kept under its text, and which of them are close.

Lexical vectors are sparse: a product by columns reads only the rows that share a word, so that one text meets a
hundred thousand others in milliseconds, and exactly. Those of an embedder are dense: one matrix product. NumPy and
scikit-learn are imported on first use only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import EmbedderError

if TYPE_CHECKING:
    import numpy as np

Embedder = Callable[[list[str]], Any]
"""`list[str]` of length n → array-like of shape (n, d), finite numbers. A `dspy.Embedder` is one."""

FEATURES = 2**20  # columns of the lexical vectors; sparse, so they cost nothing
EDGE = 1e-4  # a cosine this near the threshold is computed once more, exactly
SLACK = 256  # vectors of texts gone that are kept however few texts there are
ENTRIES = 2**20  # cosines computed at a time: bounds the memory of a comparison …
ROWS = 64  # … but no fewer rows at a time: a product of few reads all vectors for little


class Vectors:
    """Unit vectors of texts, each computed once and kept under its text.

    Args:
        embedder: `list[str]` → array-like (n, d); None: lexical vectors (hashed stems of content words; no
            download, nothing fitted, the same in every process).

    Attributes:
        computed: how many vectors were computed so far.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self.embedder = embedder
        self.computed = 0
        self._places: dict[str, int] = {}
        self._kept: _Sparse | _Dense | None = None

    def places(self, texts: Sequence[str]) -> list[int]:
        """The rows that hold the vectors of `texts`; those not known yet are computed, in one go.

        Raises:
            EmbedderError: the embedder did not return one finite vector a text, or changed its width.
        """
        missing = list(dict.fromkeys([text for text in texts if text not in self._places]))
        if missing:
            new = self.embed(missing)
            if self._kept is None:
                self._kept = _Sparse(new) if self.embedder is None else _Dense(new)
            else:
                self._kept.append(new)
            self._places.update({text: len(self._places) + at for at, text in enumerate(missing)})
            self.computed += len(missing)
        return [self._places[text] for text in texts]

    def embed(self, texts: list[str]) -> Any:
        """The unit vectors of `texts`, computed and not kept: float32 of shape (len(texts), d), sparse or dense.

        Raises:
            EmbedderError: the embedder did not return one finite vector a text.
        """
        return lexical(texts) if self.embedder is None else embedded(self.embedder, texts)

    @property
    def matrix(self) -> Any:
        """All vectors kept: float32 of shape (n, d), rows of length 1, or 0 for a text without content words."""
        import numpy as np  # noqa: PLC0415  (on first use only)

        return np.zeros((0, 1), dtype=np.float32) if self._kept is None else self._kept.matrix

    def cosines(self, vector: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The cosines of all vectors kept with one, as `embed([text])` gives it: shape (n,)."""
        import numpy as np  # noqa: PLC0415  (on first use only)

        parts = [] if self._kept is None else self._kept.products(vector)
        rows = [part if isinstance(part, np.ndarray) else part.toarray() for _, part in parts]
        return np.concatenate([np.zeros(0, dtype=np.float32), *(row[0] for row in rows)])

    def close(self, rows: Collection[int], threshold: float) -> list[tuple[int, int, float]]:
        """Each of `rows` with each row kept (itself left out) whose cosine with it is at least `threshold`.

        Returns:
            (row, other row, cosine) in order. The same whatever else is kept.
        """
        if self._kept is None:
            return []
        asked = sorted(set(rows))
        size = max(ROWS, ENTRIES // len(self._places))
        found = []
        for start in range(0, len(asked), size):
            some = asked[start : start + size]
            for offset, product in self._kept.products(self._kept.rows(some)):
                for at, place, rounded in _entries(product, threshold - EDGE):
                    row, other = some[at], offset + place
                    if row == other:
                        continue
                    # a product of floats depends on what is multiplied in one go: near the threshold, sum exactly
                    cosine = rounded if rounded >= threshold + EDGE else self._kept.cosine(row, other)
                    if cosine >= threshold:
                        found.append((row, other, round(cosine, 4)))
        return sorted(found)

    def forget_all_but(self, texts: Collection[str]) -> bool:
        """Drop the vectors of other texts once they are the larger part: memory follows the playbook.

        Returns:
            Whether any were dropped; the rows of all others are new then.
        """
        if len(self._places) <= 2 * len(texts) + SLACK or self._kept is None:
            return False
        wanted = sorted({text for text in texts if text in self._places}, key=self._places.__getitem__)
        self._kept = type(self._kept)(self._kept.rows([self._places[text] for text in wanted]))
        self._places = {text: at for at, text in enumerate(wanted)}
        return True


class _Dense:
    """Rows of numbers in one array with room to grow."""

    def __init__(self, rows: Any) -> None:
        self._array = rows
        self._count = len(rows)

    @property
    def matrix(self) -> Any:
        return self._array[: self._count]

    def append(self, new: Any) -> None:
        import numpy as np  # noqa: PLC0415  (on first use only)

        width, total = self._array.shape[1], self._count + len(new)
        if new.shape[1] != width:
            raise EmbedderError(
                f"The embedder returned vectors of width {new.shape[1]} after vectors of width {width}; "
                "one embedder must keep one width."
            )
        if total > len(self._array):
            array = np.empty((total + total // 4, width), dtype=np.float32)
            array[: self._count] = self.matrix
            self._array = array
        self._array[self._count : total] = new
        self._count = total

    def rows(self, places: Sequence[int]) -> Any:
        return self._array[list(places)]

    def products(self, block: Any) -> list[tuple[int, Any]]:
        """The cosines of each row of `block` with all kept, in parts: (the first row of the part, (b, m))."""
        return [(0, block @ self.matrix.T)]

    def cosine(self, row: int, other: int) -> float:
        """Summed without rounding on the way."""
        import numpy as np  # noqa: PLC0415  (on first use only)

        return math.fsum((self._array[row].astype(np.float64) * self._array[other]).tolist())


class _Sparse:
    """Rows of hashed words: most of them by column as well (an inverted index), the latest in a short tail.

    A product by columns touches only the rows that share a word with the new text. To add a row to the index is to
    copy it, so new rows wait in the tail until they are a sixteenth of all.
    """

    def __init__(self, rows: Any) -> None:
        self._settle(rows)

    def _settle(self, rows: Any) -> None:
        self._settled = rows
        self._columns = rows.T.tocsr()
        self._tail = rows[:0]

    @property
    def matrix(self) -> Any:
        from scipy.sparse import vstack  # noqa: PLC0415  (comes with scikit-learn: on first use only)

        return vstack([self._settled, self._tail], format="csr")

    def append(self, new: Any) -> None:
        from scipy.sparse import vstack  # noqa: PLC0415  (comes with scikit-learn: on first use only)

        self._tail = vstack([self._tail, new], format="csr")
        if self._tail.shape[0] > max(SLACK, self._settled.shape[0] // 16):
            self._settle(self.matrix)

    def rows(self, places: Sequence[int]) -> Any:
        """The rows at `places`, which rise."""
        from scipy.sparse import vstack  # noqa: PLC0415  (comes with scikit-learn: on first use only)

        border = self._settled.shape[0]
        old, new = [at for at in places if at < border], [at - border for at in places if at >= border]
        if not old or not new:
            return self._settled[old] if old else self._tail[new]
        return vstack([self._settled[old], self._tail[new]], format="csr")

    def products(self, block: Any) -> list[tuple[int, Any]]:
        """The cosines of each row of `block` with all kept, in parts: (the first row of the part, (b, m))."""
        return [(0, block @ self._columns), (self._settled.shape[0], block @ self._tail.T)]

    def cosine(self, row: int, other: int) -> float:
        """Summed without rounding on the way."""
        one, two = self.rows([row]), self.rows([other])
        return math.fsum(one.multiply(two).data.tolist())


def _entries(product: Any, least: float) -> Any:
    """(row, column, value) of the entries of a product, dense or sparse, that are at least `least`."""
    import numpy as np  # noqa: PLC0415  (on first use only)

    if not isinstance(product, np.ndarray) and least > 0:
        kept = np.flatnonzero(product.data >= least)
        rows = np.searchsorted(product.indptr, kept, side="right") - 1
        columns, values = product.indices[kept], product.data[kept]
    else:
        dense = product if isinstance(product, np.ndarray) else product.toarray()
        rows, columns = np.nonzero(dense >= least)
        values = dense[rows, columns]
    return zip(rows.tolist(), columns.tolist(), values.tolist(), strict=True)


def lexical(texts: Sequence[str]) -> Any:
    """Sparse unit vectors of the content words of `texts`: float32 CSR of shape (len(texts), FEATURES)."""
    import numpy as np  # noqa: PLC0415  (on first use only)
    from sklearn.feature_extraction.text import HashingVectorizer  # noqa: PLC0415  (slow to import: on first use only)

    from .wording import content_words  # noqa: PLC0415  (its tables are built on import: on first use only)

    hashing = HashingVectorizer(
        analyzer=content_words, n_features=FEATURES, alternate_sign=False, norm="l2", dtype=np.float32
    )
    return hashing.transform(texts)


def embedded(embedder: Embedder, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The unit vectors that `embedder` gives `texts`: float32 of shape (len(texts), d).

    Raises:
        EmbedderError: not an array of shape (len(texts), d) of finite numbers.
    """
    import numpy as np  # noqa: PLC0415  (on first use only)

    expected = f"The embedder must return an array of shape ({len(texts)}, d) for {len(texts)} texts"
    returned = embedder(list(texts))
    try:
        vectors = np.array(returned, dtype=np.float64)  # a copy: it is scaled in place
    except (TypeError, ValueError) as error:
        raise EmbedderError(f"{expected}; got {type(returned).__name__}, no array of numbers ({error}).") from error
    if vectors.ndim != 2 or vectors.shape[0] != len(texts) or vectors.shape[1] == 0:
        raise EmbedderError(f"{expected}; got shape {vectors.shape}.")
    if not np.isfinite(vectors).all():
        raise EmbedderError(f"{expected} of finite numbers; got NaN or infinity.")
    peaks = np.maximum(vectors.max(axis=1), -vectors.min(axis=1))[:, None]
    vectors /= np.where(peaks > 0, peaks, 1)  # so that no square overflows
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    vectors /= np.where(lengths > 0, lengths, 1)
    return vectors.astype(np.float32)

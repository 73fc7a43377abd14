"""Vectors of texts, each computed once, and the bullets nearest to a text.

All vectors hold whole numbers that are small enough for float32 to add and multiply exactly. So a cosine is the same
number in every process, whatever else is multiplied in one go. NumPy and scikit-learn are imported on first use.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..errors import Count, EmbedderError, checked
from ..playbook import Bullet, Playbook

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]

Embedder = Callable[[list[str]], Any]
"""`list[str]` of length n → array-like of shape (n, d), finite numbers. A `dspy.Embedder` is one."""

UNSPACED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0003ffff]"  # characters of Thai, Chinese, Korean …
_LENGTH = 4000  # of an embedder's vectors: a product of two stays below 2**24, where float32 is exact
_SLACK = 1000  # vectors of texts gone that are kept at least


class Vectors:
    """Vectors of texts, each computed once and kept under its text. Threads may share it; a copy starts empty.

    Args:
        embedder: `list[str]` → array-like (n, d); None: lexical vectors, which need no download and fit nothing.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self.embedder = embedder
        self._places: dict[str, int] = {}
        self._matrix: Any = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.embedder,)

    def embed(self, texts: Sequence[str]) -> Any:
        """Compute the vectors of `texts`, and keep none: float32 of shape (len(texts), d), sparse or dense."""
        return _lexical(texts) if self.embedder is None else _embedded(self.embedder, list(texts))

    def of(self, texts: Sequence[str]) -> Any:
        """Return the vectors of `texts`, in order. Those that are missing are computed in one call of the embedder.

        Raises:
            EmbedderError: the embedder did not return one finite vector a text, all of one width.
        """
        with self._lock:
            missing = list(dict.fromkeys(text for text in texts if text not in self._places))
            if missing or self._matrix is None:
                new = self.embed(missing)
                self._matrix = new if self._matrix is None else _stacked(self._matrix, new)
                self._places.update({text: at for at, text in enumerate(missing, len(self._places))})
            found = self._matrix[[self._places[text] for text in texts]]
            if len(self._places) > 2 * len(texts) + _SLACK:  # memory follows the playbook
                self._matrix, self._places = found, {text: at for at, text in enumerate(texts)}
            return found


def cosines(some: Any, others: Any) -> Floats:
    """Return the cosine of each of n vectors with each of m: shape (n, m). A text without words is near nothing."""
    import numpy as np  # noqa: PLC0415  (on first use only)

    _check_width(some, others)
    product = some @ others.T
    dense = product if isinstance(product, np.ndarray) else product.toarray()
    lengths = np.sqrt(np.outer(_squares(some), _squares(others)))
    return np.asarray(dense / np.where(lengths > 0, lengths, 1), dtype=np.float64)


def _squares(matrix: Any) -> Floats:
    """Return the squared length of each row."""
    import numpy as np  # noqa: PLC0415  (on first use only)

    squares = matrix * matrix if isinstance(matrix, np.ndarray) else matrix.multiply(matrix)
    return np.asarray(squares.sum(axis=1), dtype=np.float64).ravel()


def _stacked(above: Any, below: Any) -> Any:
    import numpy as np  # noqa: PLC0415  (on first use only)

    _check_width(below, above)
    if isinstance(above, np.ndarray):
        return np.vstack([above, below])
    from scipy.sparse import vstack  # noqa: PLC0415  (comes with scikit-learn: on first use only)

    return vstack([above, below], format="csr")


def _check_width(new: Any, known: Any) -> None:
    if new.shape[1] != known.shape[1]:
        raise EmbedderError(
            f"The embedder returned vectors of width {new.shape[1]} after width {known.shape[1]}; it must keep one."
        )


def pieces(text: str) -> set[str]:
    """Return what the lexical vector of a text counts, each once, in any language.

    Words give their first five characters. Where words are not set apart by spaces, or are built of many endings
    (Chinese, Japanese, Korean, Thai …), single characters and pairs of neighbours are taken.
    """
    found: set[str] = set()
    for word in re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()):
        if re.search(UNSPACED, word):
            found.update(word, (one + other for one, other in pairwise(word)))
        else:
            found.add(word[:5])  # its ending is grammar in many languages
    return found


def _lexical(texts: Sequence[str]) -> Any:
    """Return sparse vectors of `pieces`: float32 CSR of shape (len(texts), 2**18)."""
    import numpy as np  # noqa: PLC0415  (on first use only)
    from sklearn.feature_extraction.text import HashingVectorizer  # noqa: PLC0415  (slow to import)

    hashing = HashingVectorizer(analyzer=pieces, n_features=2**18, alternate_sign=False, norm=None, dtype=np.float32)
    return hashing.transform(texts)


def _embedded(embedder: Embedder, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what `embedder` says of `texts`, as whole numbers: that moves a cosine by some 0.0001."""
    import numpy as np  # noqa: PLC0415  (on first use only)

    expected = f"The embedder must return an array of shape ({len(texts)}, d) for {len(texts)} texts"
    returned = embedder(texts)
    try:
        vectors = np.array(returned, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EmbedderError(f"{expected}; got {type(returned).__name__}, no array of numbers ({error}).") from error
    if vectors.ndim != 2 or vectors.shape[0] != len(texts) or vectors.shape[1] == 0:
        raise EmbedderError(f"{expected}; got shape {vectors.shape}.")
    if not np.isfinite(vectors).all():
        raise EmbedderError(f"{expected} of finite numbers; got NaN or infinity.")
    peaks = np.abs(vectors).max(axis=1, keepdims=True)
    vectors /= np.where(peaks > 0, peaks, 1)  # so that no square overflows
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.rint(vectors * (_LENGTH / np.where(lengths > 0, lengths, 1))).astype(np.float32)


_shared = Vectors()


def nearest(playbook: Playbook, text: str, k: int, *, predictor: str | None = None) -> list[Bullet]:
    """Return the `k` bullets that matter most for a text, in the order of the playbook; all if there are no more.

    A bullet counts by the lexical cosine of its content with `text`, plus a tenth of its record:
    (helpful − harmful) / (helpful + harmful + 2). So of bullets that fit alike the more useful one is taken. Where
    nothing fits, those that helped most are. Of equals the oldest comes first.

    Args:
        playbook: any. Its vectors are kept for this process, so its next version costs what is new in it.
        text: the case, for instance the inputs of a program.
        k: how many, 1 or more.
        predictor: only the bullets that its prompt shows; None: all.

    Raises:
        SettingsError: k is no whole number of 1 or more.
    """
    checked("k", k, Count)
    bullets = playbook.bullets if predictor is None else playbook.for_predictor(predictor)
    if len(bullets) <= k:
        return list(bullets)
    import numpy as np  # noqa: PLC0415  (on first use only)
    from sklearn.feature_extraction.text import TfidfTransformer  # noqa: PLC0415  (slow to import)

    matrix = _shared.of([bullet.content for bullet in bullets])
    weighted = TfidfTransformer(norm=None).fit(matrix).transform  # words that all bullets have tell nothing
    relevance = cosines(weighted(_shared.embed([text])), weighted(matrix))[0]
    helpful, harmful = np.array([(bullet.helpful, bullet.harmful) for bullet in bullets], dtype=np.float64).T
    merit = relevance + 0.1 * (helpful - harmful) / (helpful + harmful + 2)  # 2: a few votes are not trusted
    return [bullets[at] for at in sorted(np.argsort(-merit, kind="stable")[:k])]

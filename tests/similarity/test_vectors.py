"""Vectors: computed once, checked, the same in every process; and what two texts have in common."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from typing import Any

import dspy
import numpy as np
import pytest

from dspy_ace.errors import AceError, EmbedderError
from dspy_ace.similarity.vectors import _SLACK, Vectors, cosines, pieces
from paths import ROOT


def near(one: str, other: str, embedder: Any = None) -> float:
    """The cosine of two texts."""
    vectors = Vectors(embedder)
    return float(cosines(vectors.of([one]), vectors.of([other]))[0, 0])


def test_each_text_is_embedded_once() -> None:
    """An embedder is handed a list of str with each new text once, and nothing it has seen before."""
    asked: list[list[str]] = []

    def embedder(batch: list[str]) -> list[list[float]]:
        asked.append(batch)
        return [[1.0, float(len(text))] for text in batch]

    vectors = Vectors(embedder)
    assert vectors.of(["a", "b", "a"]).shape == (3, 2)
    vectors.of(["b", "c"])
    assert asked == [["a", "b"], ["c"]]


def test_words_are_compared_by_their_beginnings_and_others_by_characters() -> None:
    """Endings do not count; a script without spaces gives characters and pairs of them."""
    assert pieces("Rounding rounded ROUNDS") == {"round"}
    assert pieces("付款前") == {"付", "款", "前", "付款", "款前"}
    assert pieces("１２ Ⅳ, x_y") == {"12", "iv", "x", "y"}
    assert pieces("… !") == set()


def test_cosines() -> None:
    """1 for the same pieces, 0 for none in common; a text without words is near nothing, itself included."""
    assert near("Round the totals.", "the totals round!") == 1
    assert near("Round the totals.", "Ask first.") == 0
    assert near("…", "…") == 0
    assert near("a b c d", "a b c x") == 0.75


def test_a_dspy_embedder_is_an_embedder() -> None:
    """A `dspy.Embedder` over a function goes in as it is."""
    embedder = dspy.Embedder(lambda batch: [[float(len(text)), 1.0] for text in batch], caching=False)
    assert Vectors(embedder).of(["one", "three"]).shape == (2, 2)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([[1.0, 2.0]], "shape \\(1, 2\\)"),
        ([1.0, 2.0], "shape \\(2,\\)"),
        ([[[1.0]], [[2.0]]], "shape \\(2, 1, 1\\)"),
        ([[], []], "shape \\(2, 0\\)"),
        ([[1.0], [float("nan")]], "finite"),
        ([[1.0], [float("inf")]], "finite"),
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
        ([["a"], ["b"]], "no array of numbers"),
        (None, "shape \\(\\)"),
    ],
)
def test_what_an_embedder_may_not_return(returned: Any, message: str) -> None:
    """Anything but one finite vector a text is refused; the error tells what was expected and what came."""
    with pytest.raises(EmbedderError, match=message) as caught:
        Vectors(lambda batch: returned).of(["a", "b"])
    assert "(2, d)" in str(caught.value)
    assert isinstance(caught.value, AceError)


def test_an_embedder_that_changes_its_width_is_refused() -> None:
    """Vectors of two widths cannot be compared; what was known before stays."""
    vectors = Vectors(lambda batch: [[1.0] * (3 if "long" in batch[0] else 2) for _ in batch])
    kept = vectors.of(["short"])
    with pytest.raises(EmbedderError, match="width 3 after width 2"):
        vectors.of(["long"])
    with pytest.raises(EmbedderError, match="width 3 after width 2"):
        cosines(vectors.embed(["long"]), kept)
    assert (vectors.of(["short"]) == kept).all()


def test_what_an_embedder_raises_passes_through() -> None:
    """A provider's own error is not dressed up as a contract error."""

    def embedder(batch: list[str]) -> Any:
        raise TypeError("no such model")

    with pytest.raises(TypeError, match="no such model"):
        Vectors(embedder).of(["a"])


def test_huge_and_zero_vectors() -> None:
    """Vectors of any finite size are compared by angle alone; a zero vector is near nothing."""
    sizes = {"a": [1e200, 1e200], "b": [1e-200, 1e-200], "c": [0.0, 0.0]}
    embedder = lambda batch: [sizes[text] for text in batch]  # noqa: E731 - three vectors, at hand below
    assert near("a", "b", embedder) == 1
    assert near("a", "c", embedder) == near("c", "c", embedder) == 0


def test_a_cosine_does_not_depend_on_what_is_multiplied_in_one_go() -> None:
    """One by one or all at once, in any order: the very same numbers, equal ones for equal angles."""
    chance = np.random.default_rng(0)
    rows = {str(at): chance.standard_normal(768) for at in range(300)}
    vectors = Vectors(lambda batch: np.array([rows[text] for text in batch]))
    matrix = vectors.of(list(rows))
    at_once = cosines(matrix, matrix)
    assert all((cosines(matrix[[at]], matrix)[0] == at_once[at]).all() for at in range(0, 300, 7))
    assert (at_once == at_once.T).all()
    exact = np.array([rows["0"] @ row / np.linalg.norm(rows["0"]) / np.linalg.norm(row) for row in rows.values()])
    assert np.abs(at_once[0] - exact).max() < 0.001


@pytest.mark.parametrize("embedder", [None, lambda batch: [[len(text), 1.0] for text in batch]])
def test_vectors_of_texts_gone_are_dropped_in_time(embedder: Any) -> None:
    """Memory follows the playbook: thousands of texts later only a bounded number of vectors is kept."""
    vectors = Vectors(embedder)
    for step in range(20):
        vectors.of([f"text number {step * 100 + place}" for place in range(200)])
        assert vectors._matrix.shape[0] <= 2 * 200 + _SLACK


def test_a_copy_starts_empty() -> None:
    """Copies and pickles keep the embedder and nothing that was computed."""
    vectors = Vectors(embedder=len)
    for twin in (copy.deepcopy(vectors), pickle.loads(pickle.dumps(vectors))):
        assert twin.embedder is len


def run(code: str, seed: str) -> str:
    """What `code` prints in a Python process of its own, with that hash seed."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_same_result_in_every_process() -> None:
    """Cosines and guards do not depend on the hash seed of the process."""
    code = (
        "from dspy_ace.similarity.vectors import Vectors, cosines\n"
        "from dspy_ace.similarity.alike import _facts\n"
        "texts = ['Round to 2 decimals, not to 3.', 'Round to two.', '付款前先检查余额。']\n"
        "matrix = Vectors().of(texts)\n"
        "print(cosines(matrix, matrix).tolist(), [_facts(text) for text in texts])\n"
    )
    first, second = run(code, "1"), run(code, "2")
    assert first == second != ""


@pytest.mark.slow
def test_numpy_and_scikit_learn_are_imported_on_first_use_only() -> None:
    """Importing the package imports neither, unless DSPy does."""
    code = (
        "import sys, dspy; before = set(sys.modules); import dspy_ace, dspy_ace.similarity\n"
        "print({'numpy', 'sklearn', 'scipy', 'jinja2'} & (set(sys.modules) - before))"
    )
    assert run(code, "0") == "set()"

"""Near-duplicates: vectors computed once, the guard that keeps differences, and what both do on labelled pairs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given, settings

from dspy_ace.errors import AceError, EmbedderError
from dspy_ace.playbook import Playbook
from dspy_ace.similarity.differences import difference
from dspy_ace.similarity.similarity import Duplicates
from dspy_ace.similarity.vectors import SLACK, Vectors
from paths import ROOT, SHARED, TESTS
from strategies import texts

relaxed = settings(deadline=None)

SHARED = SHARED / "data"
LABELS: dict[str, Any] = json.loads((TESTS / "data" / "pairs.json").read_text(encoding="utf-8"))
WRITTEN = ("own", "held_out")
DUPLICATES = [pair for name in WRITTEN for pair in LABELS[name]["duplicate"]]
STEPS = (
    "For refund tasks of the shop, collect all orders and all returns with their dates, match returns to orders by "
    "number, sum the amounts of the matched orders, and report the sum by customer and month."
)
LOOK_ALIKES = [pair[-2:] for name in WRITTEN for pair in LABELS[name]["different"]]


def merged(first: str, second: str) -> bool:
    """Whether the two texts are taken for duplicates, from the vectors to the guard."""
    return first == second or bool(Duplicates().among([first, second]))


def pairs(known: Duplicates, contents: list[str]) -> list[tuple[int, int]]:
    """The pairs of duplicates among different texts, by their places."""
    same = known.among(contents)
    found = [(at, contents.index(other)) for at, text in enumerate(contents) for other in same.get(text, ())]
    return sorted(pair for pair in found if pair[0] < pair[1])


# --- the labelled pairs


@pytest.fixture(scope="module")
def trained() -> Playbook:
    """The trained AppWorld playbook of the shared data."""
    path = SHARED / "playbooks" / "appworld_offline_trained_no_gt_playbook.txt"
    if not path.exists():
        pytest.skip("the shared data folder is not here")
    return Playbook.from_text(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lesson() -> Callable[[tuple[str, int, int]], str]:
    """The text of a lesson in the shared role replies, by file, record, and line or item."""
    folder = SHARED / "llm_outputs"
    if not folder.exists():
        pytest.skip("the shared data folder is not here")

    def read(place: tuple[str, int, int]) -> str:
        file, record, part = place
        reply = json.loads((folder / file).read_text(encoding="utf-8").splitlines()[record])["completion"]
        if file.startswith("finer"):
            return str(reply.split("\n")[part].strip().split(" :: ")[-1])
        items = re.search(r"\[\[ ## (?:insights|operations) ## \]\]\n(.*?)\n\n\[\[", reply, re.DOTALL)
        assert items is not None
        item = json.loads(items[1])[part]
        return str(item if isinstance(item, str) else item["content"])

    return read


def test_labelled_pairs(trained: Playbook, lesson: Callable[[Any], str]) -> None:
    """On real pairs labelled by reading: no look-alike merged, precision of 0.95 or more, recall of 0.75 or more."""
    rows = [(trained[a].content, trained[b].content, label) for a, b, label, _ in LABELS["bullets"]]
    rows += [(lesson(a), lesson(b), label) for a, b, label, _ in LABELS["lessons"]]
    for name, old, new, _ in LABELS["edits"]:
        assert old in trained[name].content, f"{name} no longer holds {old!r}"
        rows.append((trained[name].content, trained[name].content.replace(old, new, 1), "look-alike"))
    found = [label for first, second, label in rows if label != "unclear" and merged(first, second)]
    labels = [label for _, _, label in rows]
    right = found.count("duplicate")
    assert len(labels) - labels.count("unclear") >= 130
    assert found.count("look-alike") == 0
    assert right / len(found) >= 0.95
    assert right / labels.count("duplicate") >= 0.75


def test_pairs_that_readers_disagree_on_are_kept(trained: Playbook) -> None:
    """The same lesson from another angle, in another scope or with another example stays beside the first."""
    unclear = [(a, b) for a, b, label, _ in LABELS["bullets"] if label == "unclear"]
    assert [pair for pair in unclear if merged(trained[pair[0]].content, trained[pair[1]].content)] == []


def test_all_repeats_of_the_trained_playbook_are_found(trained: Playbook) -> None:
    """Six exact repeats, nine after folding case and punctuation: all nine are duplicates."""
    contents = [bullet.content for bullet in trained]
    distinct = list(dict.fromkeys(contents))
    assert len(contents) - len(distinct) == 6
    words = [re.findall(r"\w+", text.casefold()) for text in distinct]
    repeats = {(at, to) for to in range(len(words)) for at in range(to) if words[at] == words[to]}
    assert len(repeats) == 3
    assert repeats <= set(pairs(Duplicates(), distinct))


def test_duplicates_written_for_this_project() -> None:
    """Most rewordings are seen through: all but one in ten of our own, six of ten of those held out."""
    for name, least in (("own", 0.9), ("held_out", 0.6)):
        pairs = LABELS[name]["duplicate"]
        assert sum(merged(*pair) for pair in pairs) / len(pairs) >= least, name


@pytest.mark.parametrize("pair", LOOK_ALIKES, ids=lambda pair: pair[0][:40])
def test_look_alikes_written_for_this_project(pair: list[str]) -> None:
    """One number, negation, name, literal, unit, opposite, order or condition apart: two lessons, both ways round."""
    first, second = pair
    assert difference(first, second)
    assert difference(second, first)


# --- the guard


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("Retry 3 times.", "Retry five times.", "numbers differ: 3 / five"),
        ("Enter 5% as 0.05.", "Enter 5% as 5.00.", "numbers differ: 0.05 / 5.00"),
        ("Sort by `created_at`.", "Sort by `updated_at`.", "literals differ: created_at / updated_at"),
        ("Log in to Spotify first.", "Log in to Venmo first.", "names differ: Spotify / Venmo"),
        ("Trust the cache.", "Do not trust the cache.", "negation differs: – / not"),
        ("Refund goods.", "Refund only damaged goods.", "restriction differs: – / only damaged"),
        ("Ask before paying.", "Ask after paying.", "opposites: before / after"),
        ("Convert euros to dollars.", "Convert dollars to euros.", "order differs: dollars"),
        ("Write it in red.", "Write it in green.", "words differ: red / green"),
        ("Close the ticket.", "Close the ticket, then mail the client.", "only one says: – / mail client"),
        ("Raise the price by 5.", "Raise the price to 5.", "only one says: by / –"),
        ("Check the total.", "Use the total.", "words differ: Check / Use"),
        ("Show rows where a >= 1.", "Show rows where a > 1.", "literals differ: >= / >"),
    ],
)
def test_reason(first: str, second: str, reason: str) -> None:
    """The guard says in words what sets two texts apart, the first text's side first."""
    assert difference(first, second) == reason
    told = difference(second, first)
    assert told is not None
    assert told.partition(":")[0] == reason.partition(":")[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Retry three times.", "Retry 3 times"),
        ("Use 1,000 rows.", "Use 1000 rows."),
        ("Use the 2nd match.", "Use the second match."),
        ("Don't guess.", "Do not guess."),
        ("call show_song() first", "Call `show_song` first."),
        ("Before you pay, check the balance.", "Check the balance before paying."),
        ("Totals must be rounded up.", "Round totals up."),
        ("Use A rather than B.", "Use A instead of B."),
        ("Keep it short, to avoid confusion.", "Keep it short."),
        ("Colours are normalised.", "Colors are normalized"),
        ("Test whether x ≤ 5.", "Test whether x <= 5."),
        (
            "Cache lookups to avoid slow pages at peak times.",
            "Cache lookups, since busy clients were billed twice over last year.",
        ),
        (STEPS, STEPS.replace("report the sum", "report the sum of amounts")),
    ],
)
def test_no_difference(first: str, second: str) -> None:
    """Spelling, inflection, fronted clauses, stated reasons and what is said anyway set nothing apart."""
    assert difference(first, second) is None


@pytest.mark.parametrize("pair", DUPLICATES + LOOK_ALIKES, ids=lambda pair: pair[0][:40])
def test_difference_is_symmetric(pair: list[str]) -> None:
    """Whether two texts differ does not depend on which comes first."""
    assert (difference(pair[0], pair[1]) is None) == (difference(pair[1], pair[0]) is None)


@relaxed
@given(texts())
def test_a_text_does_not_differ_from_itself(text: str) -> None:
    """Any text, whatever it holds, is a duplicate of itself."""
    assert difference(text, text) is None


@relaxed
@given(texts(), texts())
def test_the_guard_is_total_and_symmetric(first: str, second: str) -> None:
    """Any two texts get a verdict, the same both ways round."""
    assert (difference(first, second) is None) == (difference(second, first) is None)


@pytest.mark.parametrize("added", ["not", "only", "unless blocked", "twice"])
def test_an_inserted_negation_or_condition_is_never_lost(added: str) -> None:
    """`not`, `only`, `unless …` or `twice`, put anywhere into any text of ours, makes it another one."""
    lost = []
    for words in {tuple(text.split()) for pair in DUPLICATES + LOOK_ALIKES for text in pair}:
        for at in range(1, len(words)):
            longer = " ".join([*words[:at], added, *words[at:]])
            if difference(" ".join(words), longer) is None:
                lost.append(longer)
    assert lost == []


def edited(content: str) -> Iterator[tuple[str, str]]:
    """Look-alikes of a text: one number, identifier or word of it changed, or one word put in."""
    for found in re.finditer(r"\d+", content):
        yield "number", f"{content[: found.start()]}{int(found[0]) + 1}{content[found.end() :]}"
    for found in re.finditer(r"\b\w+_\w+\b", content):
        yield "identifier", f"{content[: found.start()]}{found[0]}_x{content[found.end() :]}"
    words = list(re.finditer(r"(?<![\w.'`\-/(\[{<])[a-z]{5,}(?![\w('`\-/])", content))
    for found in words[:: max(1, len(words) // 6)]:
        yield "negation", f"{content[: found.start()]}not {content[found.start() :]}"


def test_every_bullet_of_a_real_playbook_with_one_thing_changed(trained: Playbook) -> None:
    """Each number, each identifier and a negation before any sixth word: over 2,500 look-alikes, none let through."""
    made = [(kind, bullet.content, other) for bullet in trained for kind, other in edited(bullet.content)]
    assert len(made) > 2500
    assert [(kind, other) for kind, content, other in made if difference(content, other) is None] == []


def test_texts_without_content_words() -> None:
    """Where only words of grammar stand, the very words decide."""
    assert difference("Do it.", "do it") is None
    assert difference("Do it.", "Be there.") == "words differ"


def test_texts_too_long_to_align_are_kept_apart() -> None:
    """Two texts of thousands of words that differ are not aligned: they stay two; equal ones are one."""
    long = " ".join(f"word{number} step" for number in range(2000))
    assert difference(long, f"other {long}") == "too long to compare word by word"
    assert difference(long, long.upper()) is not None or difference(long, f"{long}.") is None


# --- vectors


def test_each_vector_is_computed_once() -> None:
    """Fifty steps of one new text are fifty vectors, not 1,275."""
    known = Duplicates()
    contents: list[str] = []
    for step in range(50):
        contents.append(f"Lesson {step}: mind the {'a' * (step + 1)} case.")
        known.among(contents)
    assert known.vectors.computed == 50


def test_texts_of_a_call_are_embedded_in_one_go_and_once() -> None:
    """An embedder is handed a list of str with each new text once, and nothing it has seen before."""
    asked: list[list[str]] = []

    def embedder(batch: list[str]) -> list[list[float]]:
        asked.append(batch)
        return [[1.0, float(len(text))] for text in batch]

    vectors = Vectors(embedder)
    vectors.places(["a", "b", "a"])
    vectors.places(["b", "c"])
    assert asked == [["a", "b"], ["c"]]
    assert vectors.computed == 3
    assert vectors.matrix.shape == (3, 2)
    assert np.allclose(np.linalg.norm(vectors.matrix, axis=1), 1)


def test_a_dspy_embedder_is_an_embedder() -> None:
    """A `dspy.Embedder` over a function goes in as it is."""
    embedder = dspy.Embedder(lambda batch: [[float(len(text)), 1.0] for text in batch], caching=False)
    assert Vectors(embedder).places(["one", "three"]) == [0, 1]


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
        Vectors(lambda batch: returned).places(["a", "b"])
    assert "(2, d)" in str(caught.value)
    assert isinstance(caught.value, AceError)


def test_an_embedder_that_changes_its_width_is_refused() -> None:
    """Vectors of two widths cannot be compared; what was known before stays."""
    vectors = Vectors(lambda batch: [[1.0] * (3 if "long" in batch[0] else 2) for _ in batch])
    vectors.places(["short"])
    with pytest.raises(EmbedderError, match="width 3 after vectors of width 2"):
        vectors.places(["long"])
    assert vectors.computed == 1
    assert vectors.places(["short"]) == [0]


def test_what_an_embedder_raises_passes_through() -> None:
    """A provider's own error is not dressed up as a contract error."""

    def embedder(batch: list[str]) -> Any:
        raise TypeError("no such model")

    with pytest.raises(TypeError, match="no such model"):
        Vectors(embedder).places(["a"])


def test_huge_and_zero_vectors() -> None:
    """Vectors of any finite size are compared by angle alone; a zero vector is near nothing."""
    sizes = {"a": [1e200, 1e200], "b": [1e-200, 1e-200], "c": [0.0, 0.0]}
    vectors = Vectors(lambda batch: [sizes[text] for text in batch])
    assert vectors.close(vectors.places(["a", "b", "c"]), 0.9) == [(0, 1, 1.0), (1, 0, 1.0)]


def test_the_embedder_is_asked_but_the_guard_decides() -> None:
    """However near an embedder puts two texts, a difference keeps them apart."""
    known = Duplicates(lambda batch: [[1.0]] * len(batch), 0.99)
    assert pairs(known, ["Retry 3 times.", "Retry 4 times.", "Retry three times"]) == [(0, 2)]


EMBEDDERS = [None, lambda batch: [[len(text), text.count("e"), 1] for text in batch]]


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_every_close_pair_is_found(embedder: Any) -> None:
    """The search is exact: it finds what the product of all vectors with all others holds, in index and tail."""
    contents = [
        f"{text} Case {at % 40}."
        for at, text in enumerate((DUPLICATES + LOOK_ALIKES)[at // 2 % 60][at % 2] for at in range(2 * SLACK))
    ]
    contents = list(dict.fromkeys(contents))
    vectors = Vectors(embedder)
    rows = [row for at in range(0, len(contents), 100) for row in vectors.places(contents[at : at + 100])]
    matrix = vectors.matrix if embedder else vectors.matrix.toarray()
    table = matrix.astype(float) @ matrix.astype(float).T
    expected = {(a, b) for a, b in zip(*np.nonzero(table >= 0.7), strict=True) if a != b}
    assert {pair[:2] for pair in vectors.close(rows, 0.7)} == expected
    assert {pair[:2] for pair in vectors.close(rows[-5:], 0.7)} == {pair for pair in expected if pair[0] in rows[-5:]}


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_the_result_does_not_depend_on_what_was_asked_before(embedder: Any) -> None:
    """Cold or warm, one at a time or at once, after other texts came and went: the same pairs."""
    contents = list(dict.fromkeys(text for pair in DUPLICATES[:20] for text in pair))
    at_once = pairs(Duplicates(embedder, 0.8), contents)
    warm = Duplicates(embedder, 0.8)
    for at in range(len(contents)):
        assert pairs(warm, contents[: at + 1]) == [pair for pair in at_once if pair[1] <= at]
    others = [f"{text} {at}" for at in range(20) for text in contents[:20]]
    assert pairs(warm, others) == pairs(Duplicates(embedder, 0.8), others)
    assert pairs(warm, contents) == at_once


def test_what_stops_halfway_is_compared_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt in the middle of a comparison loses no pair: the next call finds them all, and embeds nothing."""
    known = Duplicates()
    contents = [text for pair in DUPLICATES[:3] for text in pair]
    with monkeypatch.context() as patched:
        patched.setattr(
            "dspy_ace.similarity.differences.difference", lambda a, b: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            known.among(contents)
    assert pairs(known, contents) == pairs(Duplicates(), contents) != []
    assert known.vectors.computed == len(contents)


@pytest.mark.parametrize("embedder", [None, lambda batch: [[len(text), 1.0] for text in batch]])
def test_vectors_of_texts_gone_are_dropped_in_time(embedder: Any) -> None:
    """Memory follows the playbook: thousands of texts later only a bounded number of vectors is kept."""
    vectors = Vectors(embedder)
    for step in range(40):
        contents = [f"text number {step * 25 + place}" for place in range(50)]
        places = vectors.places(contents)
        kept = vectors.matrix[places]
        vectors.forget_all_but(contents)
        assert vectors.matrix.shape[0] < 50 * 2 + SLACK + 50
        assert (vectors.matrix[vectors.places(contents)] != kept).sum() == 0
    assert vectors.computed == 39 * 25 + 50


def test_no_threshold_and_no_texts() -> None:
    """A threshold of 0 lets every pair be looked at; no texts give no pairs."""
    vectors = Vectors()
    assert vectors.close([], 0.5) == []
    assert len(vectors.close(vectors.places(["a dog", "two cats", "one cow"]), 0.0)) == 6
    assert Duplicates().among([]) == {}


def run(code: str, seed: str) -> str:
    """What `code` prints in a Python process of its own, with that hash seed."""
    root = ROOT
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_same_result_in_every_process() -> None:
    """Vectors, pairs and reasons do not depend on the hash seed of the process."""
    code = (
        "import json, sys\n"
        "from dspy_ace.similarity.similarity import Duplicates, Vectors\n"
        "from dspy_ace.similarity.differences import difference\n"
        f"pairs = json.loads({json.dumps(json.dumps(DUPLICATES[:12] + LOOK_ALIKES[:12]))})\n"
        "texts = list(dict.fromkeys(text for pair in pairs for text in pair))\n"
        "vectors, same = Vectors(), Duplicates(threshold=0.5).among(texts)\n"
        "print(vectors.close(vectors.places(texts), 0.3), [sorted(same.get(text, ())) for text in texts])\n"
        "print([difference(*pair) for pair in pairs])\n"
    )
    first, second = run(code, "1"), run(code, "2")
    assert first == second
    assert "(0, 1, 0." in first


def test_numpy_and_scikit_learn_are_imported_on_first_use_only() -> None:
    """Importing the package imports neither, unless DSPy does."""
    code = (
        "import sys, dspy; before = set(sys.modules); import dspy_ace, dspy_ace.similarity\n"
        "print({'numpy', 'sklearn', 'scipy'} & (set(sys.modules) - before))"
    )
    assert run(code, "0") == "set()"

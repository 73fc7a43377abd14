"""The description of data, programs and callables: equal for what is the same, in every process, and never else."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import logging
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import dspy
import numpy as np
import pydantic
import pytest

from dspy_ace import Curator, Executed, GrowAndRefine, Judged, Playbook, Reflector, Validated
from dspy_ace.testing import OfflineLM
from dspy_ace.training import described, example_key, hashed
from paths import ROOT

pytestmark = pytest.mark.compat
LIMIT = 3
SEEN: list[Any] = []
calls = 0


class Doc:
    """A plain object: its repr tells nothing."""

    def __init__(self, text: Any) -> None:
        self.text = text


class Slotted:
    """The same without a dictionary."""

    __slots__ = ("text",)

    def __init__(self, text: Any) -> None:
        self.text = text


@dataclasses.dataclass
class Noted:
    """The same as a dataclass."""

    text: Any


class Desk(pydantic.BaseModel):
    """The same of pydantic."""

    text: Any


class Unreadable:
    """An object of which pickle can keep nothing, with something to see."""

    def __init__(self, text: Any) -> None:
        self.text = text

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot be pickled")


class Colour(enum.Enum):
    """Two of its members."""

    RED, BLUE = 1, 2


def nested(depth: int, end: Any) -> Any:
    """A list in a list in a list …"""
    for _ in range(depth):
        end = [end]
    return end


def looped(end: Any) -> Any:
    """A list that holds itself."""
    made = [end]
    made.append(made)
    return made


def big(value: float) -> np.ndarray[Any, Any]:
    """An array whose repr shows its ends only."""
    made = np.zeros(5000)
    made[2500] = value
    return made


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "numbers": (1, 1.0),
    "number and yes": (1, True),
    "number and text": (1, "1"),
    "signed zeros": (0.0, -0.0),
    "long numbers": (10**5000, 10**5000 + 1),
    "text and bytes": ("a", b"a"),
    "list and tuple": ([1], (1,)),
    "order of a list": ([1, 2], [2, 1]),
    "borders of texts": (["ab", "c"], ["a", "bc"]),
    "borders of lists": ([[1], [2]], [[1, 2]]),
    "sets": ({1, 2}, {1, 3}),
    "tuple keys": ({(0, 1): 3}, {(0, 2): 3}),
    "keys of several types": ({1: "a", "b": 2}, {"1": "a", "b": 2}),
    "key and value": ({"a": "b"}, {"b": "a"}),
    "plain objects": (Doc("a"), Doc("b")),
    "objects with slots": (Slotted("a"), Slotted("b")),
    "dataclasses": (Noted("a"), Noted("b")),
    "models": (Desk(text="a"), Desk(text="b")),
    "objects that refuse to be pickled": (Unreadable("a"), Unreadable("b")),
    "classes": (Doc("a"), Noted("a")),
    "objects deep inside": ({"a": [Doc({"b": Doc(1)})]}, {"a": [Doc({"b": Doc(2)})]}),
    "large arrays": (big(1), big(2)),
    "types of an array": (np.zeros(3), np.zeros(3, dtype=np.float32)),
    "shapes of an array": (np.zeros((2, 3)), np.zeros((3, 2))),
    "arrays of objects": (np.array([Doc(1), None]), np.array([Doc(2), None])),
    "numbers of numpy": (np.float32(1), np.float64(1)),
    "dates": (datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)),
    "decimals": (decimal.Decimal(1), decimal.Decimal("1.0")),
    "paths": (pathlib.Path("a"), pathlib.Path("b")),
    "patterns": (re.compile("a"), re.compile("a", re.IGNORECASE)),
    "members": (Colour.RED, Colour.BLUE),
    "ranges": (range(3), range(4)),
    "queues": (collections.deque([1]), collections.deque([2])),
    "images": (dspy.Image(url="https://a/1.png"), dspy.Image(url="https://a/2.png")),
    "histories": (dspy.History(messages=[{"a": 1}]), dspy.History(messages=[{"a": 2}])),
    "loops": (looped(1), looped(2)),
    "depth": (nested(50, 1), nested(51, 1)),
    "without an end": (nested(5000, 1), nested(5000, 1)),
    "generators": ((n for n in ()), (n for n in ())),
    "sockets and the like": (threading.local(), threading.local()),
    "objects without anything in them": (object(), object()),
}
EQUAL: dict[str, Callable[[], Any]] = {
    "sets": lambda: {"alpha", "beta", "gamma", ("delta", 1)},
    "frozen sets in a set": lambda: {frozenset({"a", "b"}), frozenset({"c"})},
    "dictionaries of any order": lambda: collections.OrderedDict.fromkeys(np.random.permutation(5).tolist()),
    "counters": lambda: collections.Counter("abracadabra"),
    "plain objects": lambda: Doc([Slotted(Noted(Desk(text="a")))]),
    "arrays": lambda: big(3),
    "no number": lambda: float("nan"),
    "loops": lambda: looped(Doc(1)),
    "time zones": lambda: datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
}


def example(value: Any) -> dspy.Example:
    """An example with this value in an input."""
    return dspy.Example(document=value, answer="a").with_inputs("document")


@pytest.mark.parametrize("name", list(DIFFERENT))
def test_examples_that_differ_are_not_taken_for_equal(name: str) -> None:
    """Neither are those that cannot be told apart: each is equal to itself alone."""
    one, other = map(example, DIFFERENT[name])
    assert example_key(one) != example_key(other)
    assert example_key(one) == example_key(one)


@pytest.mark.parametrize("name", list(EQUAL))
def test_examples_with_the_same_content_are_equal(name: str) -> None:
    """Made anew, in any order, with any address."""
    assert example_key(example(EQUAL[name]())) == example_key(example(EQUAL[name]()))


def test_other_inputs_are_another_example() -> None:
    """The same fields, but another one of them is shown to the program."""
    one = dspy.Example(a=1, b=2)
    assert example_key(one.with_inputs("a")) != example_key(one.with_inputs("b"))


@pytest.mark.slow
def test_every_process_describes_the_same_in_the_same_way() -> None:
    """Whatever the hash seed and the addresses: data, callables, a program and the roles."""
    code = """
import test_fingerprint as here
rows = [here.example(make()) for make in here.EQUAL.values() if "random" not in str(make.__code__.co_names)]
print(here.described({"trainset": rows}, metric=here.limited(2), program=here.Agent(1), reflect=here.Reflector()))
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "training")])
    said = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert said.pop().endswith("}, [])\n")


def base(example: Any, prediction: Any, strict: bool = False) -> bool:
    """A metric with a setting."""
    return strict


def limited(limit: Any) -> Callable[..., Any]:
    """A metric that closes over a value."""
    return lambda example, prediction: float(limit)


class Judge:
    """A metric with an attribute."""

    def __init__(self, k: Any) -> None:
        self.k = k

    def __call__(self, example: Any, prediction: Any) -> Any:
        return self.k

    def score(self, example: Any, prediction: Any) -> Any:
        return self.k


def scoring(score: Callable[..., Any], call: Callable[..., Any] = Judge.__call__) -> Any:
    """A metric object whose class has other methods under the same names."""
    return type("Own", (), {"__call__": call, "score": score})()


class Agent(dspy.Module):
    """A program with a setting, a tool and a predictor."""

    def __init__(self, k: int, tool: Callable[..., Any] = base, ask: str = "question -> answer") -> None:
        super().__init__()
        self.k, self.helper = k, Doc(k)
        self.act = dspy.ReAct(ask, tools=[tool])

    def forward(self, question: str) -> Any:
        return self.act(question=question)


class Careful(Agent):
    """The same with another `forward`."""

    def forward(self, question: str) -> Any:
        return self.act(question=f"{question}!")


def with_demo() -> dspy.Module:
    """A predictor with a demonstration."""
    program = dspy.Predict("question -> answer")
    program.demos = [dspy.Example(question="q", answer="a")]
    return program


def with_lm(model: str) -> dspy.Module:
    """A predictor with an LM of its own."""
    program = dspy.Predict("question -> answer")
    program.lm = OfflineLM(model)
    return program


def global_limit(example: Any, prediction: Any) -> bool:
    """A metric that reads a global value."""
    return bool(LIMIT)


def through_a_helper(example: Any, prediction: Any) -> bool:
    """A metric that calls another function."""
    return global_limit(example, prediction)


CHANGED: dict[str, tuple[Any, Any, str]] = {
    "a partial": (functools.partial(base, strict=True), functools.partial(base, strict=False), "part.strict"),
    "a closure": (limited(1), limited(2), "part.limit"),
    "an object in a closure": (limited(Doc(1)), limited(Doc(2)), "part.limit"),
    "an array in a closure": (limited(big(1)), limited(big(2)), "part.limit"),
    "a constant": (lambda e, p: 1.0, lambda e, p: 2.0, "part"),
    "a default": (lambda e, p, k=1: k, lambda e, p, k=2: k, "part"),
    "a method that is called": (lambda e, p: p.a.lower(), lambda e, p: p.a.upper(), "part"),
    "a function within": (lambda e, p: (1 for _ in p), lambda e, p: (2 for _ in p), "part"),
    "an attribute": (Judge(1.0), Judge(2.0), "part.k"),
    "a bound method": (Judge(1.0).score, Judge(2.0).score, "part"),
    "a method of a class": (scoring(lambda s, e, p: 1), scoring(lambda s, e, p: 2), "part"),
    "another callable": (scoring(lambda s: 1), scoring(lambda s: 1, lambda s, e, p: 2), "part"),
    "a cached function": (functools.cache(limited(1)), functools.cache(limited(2)), "part"),
    "a check": (Validated(limited(1)), Validated(limited(2)), "part.check"),
    "a rubric": (Judged("good"), Judged("better"), "part.rubric"),
    "an attribute of a program": (Agent(1), Agent(2), "part.k"),
    "a tool": (Agent(1), Agent(1, limited(2)), "part.act.tools"),
    "a signature": (Agent(1), Agent(1, ask="question -> answer: int"), "part.act.signature"),
    "a forward": (Agent(1), Careful(1), "part"),
    "a demonstration": (dspy.Predict("question -> answer"), with_demo(), "part.demos"),
    "an instruction": (
        dspy.Predict(dspy.Signature("a -> b", "Be brief.")),
        dspy.Predict(dspy.Signature("a -> b", "Be long.")),
        "part.instructions",
    ),
    "a type of a field": (
        dspy.Predict(dspy.Signature({"a": (str, dspy.InputField()), "b": (Literal["x"], dspy.OutputField())})),
        dspy.Predict(dspy.Signature({"a": (str, dspy.InputField()), "b": (Literal["y"], dspy.OutputField())})),
        "part.signature",
    ),
    "a model": (with_lm("one"), with_lm("two"), "part.lm"),
    "a setting of a role": (Reflector(max_images=0), Reflector(max_images=1), "part.max_images"),
    "an embedder": (GrowAndRefine(embedder=limited(1)), GrowAndRefine(embedder=limited(2)), "part.embedder"),
    "an LM": (OfflineLM("one"), OfflineLM("two"), "part"),
}


@pytest.mark.parametrize("name", list(CHANGED))
def test_another_callable_or_program_differs_where_it_was_changed(name: str) -> None:
    """The first difference has the name of what was changed."""
    one, other, where = CHANGED[name]
    (before, unknown), (now, _) = described({}, part=one), described({}, part=other)
    assert next(key for key in now if before.get(key) != now[key]) == where
    assert unknown == []
    assert hashed(part=one) != hashed(part=other)


def test_a_global_value_and_a_helper_belong_to_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that a metric reads, also through another function of its own, is part of the metric."""
    before = hashed(one=global_limit, two=through_a_helper)
    monkeypatch.setitem(globals(), "LIMIT", 4)
    now = hashed(one=global_limit, two=through_a_helper)
    assert before["one"] != now["one"]
    assert before["two"] != now["two"]


def test_bookkeeping_of_a_metric_is_no_other_metric() -> None:
    """What a function counts or collects while it runs does not make it another one."""
    made = 0

    def metric(example: Any, prediction: Any) -> float:
        global calls  # noqa: PLW0603 - a counter, as notebooks have them
        nonlocal made
        calls += 1
        made += 1
        SEEN.append(example)
        return 1.0

    before = hashed(metric=metric)
    metric(example(1), None)
    assert hashed(metric=metric) == before


class Counting:
    """A metric object that counts its calls, keeps a client and a random generator."""

    def __init__(self, limit: int) -> None:
        self.limit, self.calls = limit, 0
        self.lock, self.log = threading.Lock(), logging.getLogger("own")
        self.client, self.random = ThreadPoolExecutor(1), random.Random(0)

    def __call__(self, example: Any, prediction: Any) -> float:
        self.calls += 1
        return self.client.submit(self.random.random).result()


def test_a_metric_object_that_was_called_is_the_same_metric() -> None:
    """What it sets when it is called is no setting; a client of another's package is named as not comparable."""
    metric = Counting(1)
    before, unknown = described({}, metric=metric)
    with metric.client:
        metric(None, None)
    assert described({}, metric=metric) == (before, unknown)
    assert described({}, metric=Counting(2))[0] != before
    assert unknown == [f"the metric holds a value of type {kind}" for kind in ("ThreadPoolExecutor", "Random")]


def test_a_program_that_ran_is_the_same_program() -> None:
    """Its history, traces and the playbook in its prompts are no part of it, nor the key of its LM."""
    program, lm = Agent(1), OfflineLM()
    before = hashed(program=program)
    with dspy.context(lm=lm, trace=[]):
        program(question="q")
    program.playbook = Playbook.from_text("## S\n[s-00001] Be brief.")
    assert hashed(program=program) == before
    keys = [dspy.LM("openai/gpt-4o", api_key=key, cache=False) for key in ("one", "two")]
    assert hashed(lm=keys[0]) == hashed(lm=keys[1])


def test_roles_that_worked_are_the_same_roles() -> None:
    """What they keep to be faster is no part of them."""
    curate, refine = Curator(), GrowAndRefine(embedder=lambda texts: np.eye(8)[: len(texts)])
    before = hashed(curate=curate, refine=refine)
    playbook = Playbook.from_text("## S\n[s-00001] Be brief.\n[s-00002] Be kind.")
    refine(playbook)
    curate.look_alikes.pairs(playbook)
    assert hashed(curate=curate, refine=refine) == before


def test_what_shows_no_content_is_named_once() -> None:
    """Said by part and type, for a warning; two such values are described alike."""
    with socket.socket() as one, socket.socket() as other:
        rows = [example(value) for value in (one, other)]
        before, unknown = described({"trainset": rows}, metric=limited(one), setup=limited(threading.Lock()))
        now, _ = described({"trainset": rows}, metric=limited(other), setup=limited(threading.Lock()))
    assert before == now
    assert unknown == [
        "the metric holds a value of type socket",
        "the trainset holds a value of type socket",
    ]
    assert described({}, metric=Executed())[1] == []


def test_a_row_is_told_by_its_number_and_field() -> None:
    """Plain values are shown, so that a message can name both."""
    rows = [dspy.Example(question=f"q{n}", answer={"b": n}).with_inputs("question") for n in range(3)]
    found, _ = described({"trainset": rows})
    shown = {name: text.rpartition(" #")[0] or text for name, text in found.items()}
    assert shown["trainset"] == "3 rows"
    assert shown["trainset[2].question"] == "'q2'"
    assert shown["trainset[2].answer"] == "{'b': 2}"


def test_an_attribute_named_for_a_secret_is_not_shown() -> None:
    """Whatever its value looks like."""

    class Judge:
        def __init__(self) -> None:
            self.password = "plain words"

        def __call__(self, example: Any, prediction: Any) -> bool:
            return True

    assert described({}, metric=Judge())[0]["metric.password"].startswith("[redacted] #")

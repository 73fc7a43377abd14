"""DSPy's module types on the routing task, each as a user would build it, and a metric that looks at the run alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import dspy
import pydantic
from dspy.primitives.code_interpreter import FinalOutput

from tasks import RULES, Route

DESKS = sorted(RULES)


class Ticket(pydantic.BaseModel):
    """A typed output with parts."""

    desk: Literal["Harbor", "Maple", "Summit", "Lantern"]
    urgent: bool
    numbers: list[int]


class Stub:
    """An interpreter that runs nothing: code that names a desk submits it, other code prints a line.

    It stands for the sandbox alone, which needs Deno; DSPy lets every program bring its own.
    """

    def __init__(self) -> None:
        self.tools: dict[str, Any] = {}

    def start(self) -> None:
        pass

    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        named = [desk for desk in DESKS if desk in code]
        return FinalOutput({"desk": named[0]}) if named else "nothing was submitted"

    def shutdown(self) -> None:
        pass


def look_up(word: str) -> str:
    """Tell what the directory says of a word."""
    return f"The directory has {len(word)} entries for {word}."


async def look_up_later(word: str) -> str:
    """Tell what the directory says of a word."""
    return look_up(word)


def reward(args: Any, prediction: Any) -> float:
    """Of no use for the task: a desk with a long name is liked."""
    return len(str(prediction.desk)) / 10


class Compared(dspy.Module):
    """MultiChainComparison over attempts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attempt = dspy.ChainOfThought(Route)
        self.compare = dspy.MultiChainComparison(Route, M=2)

    def forward(self, message: str) -> Any:
        attempts = [self.attempt(message=message, config={"temperature": 1.0, "rollout_id": n}) for n in (1, 2)]
        return self.compare(attempts, message=message)


class Form(pydantic.BaseModel):
    """A typed input."""

    text: str
    copies: int = 1


class Typed(dspy.Module):
    """A pydantic object in, another one out."""

    def __init__(self) -> None:
        super().__init__()
        signature = dspy.Signature("form, pages: list[int] -> ticket", "Read the form.")
        signature = signature.with_updated_fields("form", Form).with_updated_fields("ticket", Ticket)
        self.read = dspy.Predict(signature)

    def forward(self, message: str) -> Any:
        ticket = self.read(form=Form(text=message), pages=[1, 2]).ticket
        return dspy.Prediction(ticket=ticket, desk=ticket.desk)


class Fanned(dspy.Module):
    """dspy.Parallel inside a program."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict(Route)

    def forward(self, message: str) -> Any:
        pairs = [(self.ask, {"message": message}) for _ in range(2)]
        return dspy.Parallel(num_threads=2, disable_progress_bar=True, timeout=0)(pairs)[0]


class Later(dspy.Module):
    """A program that can only be awaited."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.ChainOfThought(Route)

    async def aforward(self, message: str) -> Any:
        return await self.ask.acall(message=message)


def quiet(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A module that DSPy calls deprecated or experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


# name → (how it is built, the predictors that a run of it calls)
MODULES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "Predict": (lambda: dspy.Predict(Route), {"self"}),
    "ChainOfThought": (lambda: dspy.ChainOfThought(Route), {"predict"}),
    "typed": (Typed, {"read"}),
    "BestOfN": (lambda: dspy.BestOfN(dspy.ChainOfThought(Route), 2, reward, 1.0), {"module.predict"}),
    "Refine": (lambda: dspy.Refine(dspy.ChainOfThought(Route), 2, reward, 1.0), {"module.predict"}),
    "MultiChainComparison": (Compared, {"attempt.predict", "compare.predict"}),
    "ReAct": (lambda: dspy.ReAct(Route, tools=[look_up], max_iters=3), {"react", "extract.predict"}),
    "ReActV2": (lambda: quiet(dspy.ReActV2, Route, tools=[look_up], max_iters=3), {"react"}),
    "RLM": (lambda: quiet(dspy.RLM, Route, max_iters=2, interpreter_factory=Stub), {"generate_action", "extract"}),
    "CodeAct": (
        lambda: quiet(dspy.CodeAct, Route, tools=[look_up], max_iters=2, interpreter_factory=Stub),
        {"codeact", "extractor.predict"},
    ),
    "ProgramOfThought": (
        lambda: quiet(dspy.ProgramOfThought, Route, max_iters=2, interpreter_factory=Stub),
        {"code_generate.predict", "generate_output.predict"},
    ),
    "Parallel": (Fanned, {"ask"}),
    "syncify": (lambda: dspy.syncify(Later()), {"ask.predict"}),
    "syncify, wrapped": (lambda: dspy.syncify(Later(), in_place=False), {"program.ask.predict"}),
}

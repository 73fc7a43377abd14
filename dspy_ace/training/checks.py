"""Checks of programs and examples: user mistakes that can be seen without an LM call."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import Any

import dspy

from ..errors import SettingsError
from ..output import keep_secret
from ..program import carried_playbook

logger = logging.getLogger("dspy.ace")


def check_program(student: Any) -> None:
    """Raise SettingsError unless `student` is a program with at least one predictor."""
    if not isinstance(student, dspy.Module):
        hint = " Give an instance, not the class." if isinstance(student, type) else ""
        if inspect.isroutine(student) and str(student.__module__).startswith("dspy."):  # streamify, asyncify
            hint = " Compile the program itself, then wrap the result: dspy.streamify(ACE(…).compile(program, …))."
        raise SettingsError(f"student must be a dspy.Module; got {_kind(student)}.{hint}")
    if not callable(getattr(type(student), "forward", None)) and "forward" not in vars(student):
        hint = " It has aforward only: give dspy.syncify(student)." if hasattr(student, "aforward") else ""
        raise SettingsError(f"student must have a forward method; {type(student).__name__} has none.{hint}")
    _warn_of_async_tools(student)
    try:
        predictors = student.named_predictors()
    except RecursionError as error:
        raise SettingsError(
            f"The student ({type(student).__name__}) holds a module that leads back to itself, which DSPy cannot list; "
            "keep such a reference outside of the modules' attributes."
        ) from error
    if predictors:
        carried_playbook(student)
        return
    modules = [type(module).__name__ for _, module in student.named_sub_modules()]
    if "Flex" in modules:
        raise SettingsError(
            "The student has no predictor whose instructions could hold a playbook: dspy.Flex writes its own program. "
            "Give a program made of Predict, ChainOfThought, ReAct and the like."
        )
    frozen = any(getattr(module, "_compiled", False) for _, module in student.named_sub_modules())
    why = " Its sub-modules are frozen (_compiled=True), which hides their predictors." if frozen else ""
    raise SettingsError(f"The student ({type(student).__name__}) has no predictor to put a playbook into.{why}")


def _warn_of_async_tools(student: dspy.Module) -> None:
    """Warn of tools that every synchronous call of a program would fail to call; the agent goes on without them."""
    if dspy.settings.allow_tool_async_sync_conversion or "forward" in vars(student):  # as dspy.syncify sets it
        return
    for _, module in student.named_sub_modules():
        tools = vars(module).get("tools")
        for tool in tools.values() if isinstance(tools, dict) else ():
            if isinstance(tool, dspy.Tool) and inspect.iscoroutinefunction(tool.func):
                logger.warning(
                    "ACE: the tool %s is async and is called synchronously, which DSPy refuses unless you set "
                    "dspy.configure(allow_tool_async_sync_conversion=True) or give dspy.syncify(program).",
                    tool.name,
                )


def check_examples(examples: Any, name: str, *, may_be_empty: bool = False) -> list[dspy.Example]:
    """Return the examples as a list. Raises SettingsError unless each is a dspy.Example with inputs set."""
    if isinstance(examples, (str, bytes)) or not isinstance(examples, Iterable):
        raise SettingsError(f"{name} must be a list of dspy.Example; got {_kind(examples)}.")
    listed = list(examples)
    if not listed and not may_be_empty:
        raise SettingsError(f"{name} is empty; give at least one dspy.Example(...).with_inputs(...).")
    for position, example in enumerate(listed):
        if not isinstance(example, dspy.Example):
            raise SettingsError(f"{name}[{position}] must be a dspy.Example; got {_kind(example)}.")
        try:
            inputs = example.inputs()
        except ValueError as error:
            raise SettingsError(
                f"{name}[{position}] does not say which fields are inputs; call .with_inputs('…') on it, as in "
                "dspy.Example(question='…', answer='…').with_inputs('question')."
            ) from error
        if not inputs.keys():
            raise SettingsError(f"{name}[{position}] has no input field; name at least one in .with_inputs('…').")
    return listed


def check_lms(student: dspy.Module, **roles: Any) -> None:
    """Raise SettingsError unless every predictor has an LM, and each LM given for a role is one."""
    for name, lm in roles.items():
        if lm is not None and not isinstance(lm, dspy.BaseLM):
            raise SettingsError(f"{name} must be a dspy.LM, as in dspy.LM('openai/gpt-5'); got {_kind(lm)}.")
    default = dspy.settings.lm
    if default is not None and not isinstance(default, dspy.BaseLM):
        raise SettingsError(
            f"dspy.configure(lm=…) takes a dspy.LM, as in dspy.LM('openai/gpt-5'); got {_kind(default)}."
        )
    for name, predictor in student.named_predictors():
        if isinstance(predictor.lm, str):
            raise SettingsError(
                f"The LM of predictor {name!r} must be a dspy.LM, as in dspy.LM({predictor.lm!r}); got the text."
            )
    bare = [name for name, predictor in student.named_predictors() if predictor.lm is None]
    if bare and default is None:
        raise SettingsError(
            f"No LM for predictor {bare[0]!r}: call dspy.configure(lm=dspy.LM('…')), or student.set_lm(…)."
        )
    for lm in (default, *roles.values(), *(predictor.lm for _, predictor in student.named_predictors())):
        keep_secret(vars(lm) if lm is not None else {})


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {value!r:.80}"

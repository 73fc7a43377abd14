"""Put a playbook into a program, and take it out again.

The student is never changed. A copy shares everything with it but its module tree: tools, demos, LMs, retrievers and
whatever else it holds are the same objects.
"""

from __future__ import annotations

import copy
import functools
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dspy

from ..errors import Count, SettingsError, checked
from ..playbook import Playbook, count_tokens, cut_middle, defuse, playbook_block, take_out
from ..similarity import nearest
from .citation import Predict, ask_for_citations, displayed, mix_in, worded
from .trajectory import Insight
from .transcript import render_value, shortened

Program = TypeVar("Program", bound=dspy.Module)

NOTE_HEADER = """## Reflection on your previous attempt
Your previous answer to this very case was not right. Keep to this now:"""
_NOTE = re.compile(rf"(?:\A|\n\n){re.escape(NOTE_HEADER)}.*\Z", re.DOTALL)
_NOTE_TOKENS = 4_000  # of all insights in a retry's prompt together: a runaway reflection may hold thousands
_SELECTS = "dspy_ace_prompt_bullets"  # the attribute of a program that selects; its copies keep it


def with_playbook(
    student: Program, playbook: Playbook, cite: bool = False, *, prompt_bullets: int | None = None
) -> Program:
    """Return a copy of `student` with the playbook below each predictor's own instructions.

    Args:
        student: any program with predictors; it is not changed. A playbook that stands in its instructions is
            replaced, also if the program was loaded from JSON or edited by hand. Text below that playbook is kept.
        playbook: what to show. Without bullets the instructions are exactly the student's.
        cite: True in training copies: the predictors also name the bullets they relied on. No field is added to a
            signature, a demo or a prediction; `rollouts` collects the ids.
        prompt_bullets: for a playbook that outgrows a prompt: each call shows at most so many bullets, those that
            matter most for its inputs. None: as the student has it; by default the whole playbook, which is better
            and stays in the provider's cache. What is saved holds the whole playbook: to make a loaded program select
            again, call this function.

    Returns:
        A plain DSPy program of the same class. `forward`, tools, demos, LMs and fields are the student's.
        It carries `.playbook`; its JSON state loads where dspy_ace is not installed.

    Raises:
        SettingsError: the student uses the attribute `playbook` for something else, or `prompt_bullets` is below 1.

    Example:
        >>> program = with_playbook(dspy.Predict("question -> answer"), Playbook.load("playbook.json"))
    """
    checked("prompt_bullets", prompt_bullets, Count | None)
    return _instructed(student, playbook, cite, prompt_bullets=prompt_bullets)


def with_reflection(student: Program, playbook: Playbook, insights: Iterable[str | Insight]) -> Program:
    """Return a training copy for a retry: the playbook, and below it the insights of a reflection (ACE §3.2).

    An insight for one predictor stands in its prompt alone.
    """
    given = [Insight(insight) if isinstance(insight, str) else insight for insight in insights]
    return _instructed(student, playbook, True, given)


def showing(student: Program, prompt_bullets: int | None) -> Program:
    """Return a copy of `student` that shows at most so many bullets of any playbook put into it; None: `student`."""
    if prompt_bullets in (None, getattr(student, _SELECTS, None)):
        return student
    program = copy_program(student)
    setattr(program, _SELECTS, prompt_bullets)
    return program


def carried_playbook(program: dspy.Module) -> Playbook:
    """Return the playbook in the prompts of `program`, see `Playbook.from_program`; an empty one if there is none.

    Raises:
        SettingsError: its attribute `playbook` is something else.
    """
    _check_attribute(program)
    return Playbook.from_program(program)


def own_instructions(program: dspy.Module) -> dict[str, str]:
    """Return each predictor's instructions without the playbook and the note that stand in them."""
    return {
        name: take_out(_NOTE.sub("", str(predictor.signature.instructions)))[0]
        for name, predictor in program.named_predictors()
    }


def named(program: dspy.Module) -> str:
    """Return a name for a program: its class, and the fields of its predictor if it has one."""
    predictors = program.named_predictors()
    fields = f"({predictors[0][1].signature.signature})" if len(predictors) == 1 else ""
    return f"{type(program).__name__}{fields}"


def _check_attribute(program: dspy.Module) -> None:
    playbook = getattr(program, "playbook", None)
    if playbook is not None and not isinstance(playbook, Playbook):
        raise SettingsError(
            f"{type(program).__name__}.playbook must be a Playbook or absent: compiled programs carry theirs there; "
            f"got {type(playbook).__name__}. Rename the attribute."
        )


def _instructed(
    student: Program,
    playbook: Playbook,
    cite: bool,
    insights: Sequence[Insight] = (),
    prompt_bullets: int | None = None,
) -> Program:
    _check_attribute(student)
    own = own_instructions(student)
    program = showing(copy_program(student), prompt_bullets)
    for name, predictor in program.named_predictors():
        parts = (own[name], playbook_block(playbook, name), _note(insights, name))
        predictor.signature = worded(predictor.signature, "\n\n".join(part for part in parts if part))
        if hasattr(program, _SELECTS) and playbook.for_predictor(name):
            mix_in(_SelectingPredictor, predictor)
            predictor.__dict__["_dspy_ace_selection"] = (playbook, name, getattr(program, _SELECTS))
        if cite:
            ask_for_citations(predictor, name, playbook)
    for _, part in program.named_sub_modules():  # what a compiled part carries stands in no prompt any more
        if part is not program and isinstance(getattr(part, "playbook", None), Playbook):
            del part.playbook
    program.playbook = playbook
    return program


def _note(insights: Sequence[Insight], predictor: str) -> str:
    """Return what a retry's prompt of `predictor` says below the playbook, or `""`."""
    own = [insight.content for insight in insights if insight.predictor in (None, predictor)]
    lines, left = [], _NOTE_TOKENS
    for number, content in enumerate(own):
        if left <= 0:
            lines.append(f"- (and {len(own) - number} more)")
            break
        shown = cut_middle(shortened(content), left)
        left -= count_tokens(shown)
        lines.append("- " + "\n  ".join(defuse(shown).expandtabs(4).splitlines()))
    return "\n".join([NOTE_HEADER, *lines]) if lines else ""


# --- for use without DSPy


@dataclass(frozen=True)
class Prompt:
    """The prompt of one predictor, for any other framework. `str(prompt)` is its text, with the playbook.

    Args:
        predictor: its path in the program.
        signature, demos: as DSPy has them.
    """

    predictor: str
    signature: Any
    demos: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return str(self.signature.instructions)

    def __repr__(self) -> str:
        return f"Prompt({self.predictor!r}, about {count_tokens(str(self))} tokens)"

    def messages(self, **inputs: Any) -> list[dict[str, Any]]:
        """Return the messages for these inputs, as OpenAI's API takes them and `dspy.ChatAdapter` sends them.

        Raises:
            SettingsError: an input is missing or unknown.
        """
        fields = list(self.signature.input_fields)
        if set(inputs) != set(fields):
            raise SettingsError(f"{self.predictor} takes {', '.join(fields)}; got {', '.join(inputs) or 'nothing'}.")
        return list(dspy.ChatAdapter().format(self.signature, list(self.demos), inputs))

    def template(self) -> list[tuple[str, str]]:
        """Return role and text of each message with `{name}` where an input stands; other braces are doubled.

        Example:
            >>> ChatPromptTemplate.from_messages(prompt_of(program).template())  # LangChain's  # doctest: +SKIP
        """
        marks = {name: f"\ue000{name}\ue001" for name in self.signature.input_fields}
        texts = [(m["role"], m["content"].replace("{", "{{").replace("}", "}}")) for m in self.messages(**marks)]
        return [(role, text.replace("\ue000", "{").replace("\ue001", "}")) for role, text in texts]

    def read(self, reply: str) -> dict[str, Any]:
        """Return the output fields of a model's reply to `messages`; DSPy's AdapterParseError if there are none."""
        return dict(dspy.ChatAdapter().parse(self.signature, reply))


def prompt_of(program: dspy.Module, predictor: str | None = None) -> Prompt:
    """Return the prompt of a program, with the playbook in it, for use without DSPy.

    Args:
        program: any; a compiled one, perhaps.
        predictor: which predictor's; None: the only one.

    Raises:
        SettingsError: `program` is no DSPy program, or it has several predictors or none of that name.

    Example:
        >>> prompt = prompt_of(dspy.Predict("question -> answer"))
        >>> print(prompt)
        Given the fields `question`, produce the fields `answer`.
        >>> [message["role"] for message in prompt.messages(question="What is 2 + 2?")]
        ['system', 'user']
    """
    if not isinstance(program, dspy.Module):
        raise SettingsError(f"Expected a DSPy program (a dspy.Module); got {type(program).__name__}.")
    named = dict(program.named_predictors())
    name = next(iter(named)) if predictor is None and len(named) == 1 else predictor
    if name not in named:
        raise SettingsError(
            f"predictor must be one of {', '.join(map(repr, named)) or 'no predictor, as this program has none'}; "
            f"got {predictor!r}."
        )
    return Prompt(str(name), named[name].signature, tuple(named[name].demos))


# --- playbooks that outgrow a prompt


class _SelectingPredictor(Predict):  # type: ignore[misc]  # dspy is untyped
    """Mixin: each call shows the bullets that matter for its inputs. The predictor's signature holds them all."""

    _dspy_ace_selection: tuple[Playbook, str, int]

    def forward(self, **kwargs: Any) -> Any:
        return super().forward(**self._selected(kwargs))

    async def aforward(self, **kwargs: Any) -> Any:
        return await super().aforward(**self._selected(kwargs))

    def _selected(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        playbook, name, most = self._dspy_ace_selection
        signature = kwargs.get("signature") or self.signature
        whole, instructions = playbook.render(name), str(signature.instructions)
        if whole not in instructions:  # somebody took the playbook out, or edited it
            return dict(kwargs)
        asked = "\n".join(render_value(kwargs[field]) for field in signature.input_fields if field in kwargs)
        chosen = nearest(playbook, asked, most, predictor=name)
        displayed(bullet.id for bullet in chosen)
        part = "\n".join(bullet.block for bullet in chosen)
        return {**kwargs, "signature": signature.with_instructions(instructions.replace(whole, part, 1))}


# --- copies


def copy_program(program: Program) -> Program:
    """Return a copy of the module tree; everything that is not a module or a container is shared, not copied.

    Methods of the tree's own modules (a `forward` set on an instance, a tool) are those of the copy.
    `Module.deepcopy` would clone pinned LMs, tools bound to an object and retrievers, and drop callbacks.
    """
    copied: Program = _Copier(program)(program)
    return copied


def save_state(program: dspy.Module, path: Path) -> None:
    """Write the program's plain DSPy state to `path` (`….json`), without its pinned LMs: some cannot be saved."""
    plain = copy_program(program)
    for _, predictor in plain.named_predictors():
        predictor.lm = None
    path.touch(mode=0o600)  # for its owner alone: it holds prompts
    plain.save(str(path))


def _tree(program: dspy.Module) -> set[int]:
    """Return the ids of the program's modules: those in attributes and containers, not in DSPy's record of calls."""
    modules, seen, left = set(), set(), [program]
    while left:
        value = left.pop()
        if id(value) in seen or not isinstance(value, (dspy.Module, list, tuple, dict)):
            continue
        seen.add(id(value))
        if isinstance(value, dspy.Module):
            modules.add(id(value))
            left.extend(item for name, item in vars(value).items() if name != "history")
        else:
            left.extend(value.values() if isinstance(value, dict) else value)
    return modules


class _Copier:
    """Copies one module tree; what stands in it twice or in a cycle stands so in the copy."""

    def __init__(self, program: dspy.Module) -> None:
        self.tree = _tree(program)
        self.seen: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if id(value) in self.seen:
            return self.seen[id(value)]
        if isinstance(value, dspy.Module):
            if id(value) not in self.tree:  # a tool's or a partial's own module
                return value
            self.seen[id(value)] = clone = object.__new__(type(value))
            clone.__dict__.update({name: self(item) for name, item in vars(value).items() if name != "history"})
            clone.history = []
            return clone
        if isinstance(value, (list, dict)):
            return self._container(value)
        if isinstance(value, tuple):
            items = [self(item) for item in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return self._bound(value)

    def _container(self, value: Any) -> Any:
        plain = type(value) in (list, dict)
        inside = list(value.values()) if isinstance(value, dict) else list(value)
        if not plain and not any(isinstance(item, dspy.Module) for item in inside):
            return value
        self.seen[id(value)] = clone = copy.copy(value)
        keys = list(value) if isinstance(value, dict) else range(len(inside))
        for key, item in zip(keys, inside, strict=True):
            new = self(item)
            if new is not item:
                clone[key] = new
        return clone

    def _bound(self, value: Any) -> Any:
        """Return a method, or a tool made of one, that belongs to the copy of its module."""
        if isinstance(value, types.MethodType) and id(value.__self__) in self.tree:
            return types.MethodType(value.__func__, self(value.__self__))
        if isinstance(value, functools.partial) and (new := self(value.func)) is not value.func:
            return functools.partial(new, *value.args, **value.keywords)
        if isinstance(value, dspy.Tool) and (new := self(value.func)) is not value.func:
            return value.model_copy(update={"func": new})
        return value

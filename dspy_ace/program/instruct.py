"""The boundary to DSPy: put a playbook into a program.

The student is never changed. A copy shares everything with it but its module tree: tools, demos, LMs,
retrievers and whatever else it holds are the same objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import dspy

from ..errors import SettingsError
from ..playbook import Playbook, defuse
from .citation import ask_for_citations
from .copies import Program, copy_program
from .selecting import MARK, Shows, select_by_inputs
from .trajectory import Insight

PLAYBOOK_HEADER = """## Playbook
Lessons learned on earlier cases of this task, one block each: [id] (section) lesson. Before you answer, find
the bullets that apply to the case at hand and follow them; a bullet that fits the case exactly goes before a
general one. Ignore bullets that do not apply."""

NOTE_HEADER = """## Reflection on your previous attempt
Your previous answer to this very case was not right. Keep to this now:"""


def with_playbook(
    student: Program,
    playbook: Playbook,
    cite: bool = False,
    *,
    prompt_bullets: int | None = None,
    prompt_tokens: int | None = None,
) -> Program:
    """A copy of `student` with the playbook below each predictor's own instructions.

    Args:
        student: any program with predictors; it is not changed. A playbook that was put into it before
            (`student.playbook`) is replaced, not repeated.
        playbook: what to show. Without bullets the instructions are exactly the student's.
        cite: for training copies: the predictors also ask for the ids of the bullets they relied on. No
            field is added to a signature, a demo or a prediction; `rollouts` collects the ids.

        prompt_bullets, prompt_tokens: for a playbook that outgrows a prompt: each call shows at most so many bullets,
            or estimated tokens of them, those that matter most for its inputs (`nearest`). None: as the student
            has it; if it has none, the whole playbook, which is better and stays in the provider's cache. What is
            saved holds the whole playbook: of a loaded program, make one that selects with this function.

    Returns:
        A plain DSPy program of the same class. `forward`, tools, demos, LMs and fields are the student's.
        It carries `.playbook`; its JSON state loads where dspy_ace is not installed.

    Raises:
        SettingsError: the student uses the attribute `playbook` for something else, or a number is below 1.
    """
    return _instructed(student, playbook, cite, shows=_shows(student, prompt_bullets, prompt_tokens))


def showing(student: Program, bullets: int | None, tokens: int | None) -> Program:
    """The student; with a number, a copy that shows so much of whatever playbook is put into it."""
    shows = _shows(student, bullets, tokens)
    if shows is None or shows == getattr(student, MARK, None):
        return student
    program = copy_program(student)
    setattr(program, MARK, shows)
    return program


def _shows(student: dspy.Module, bullets: int | None, tokens: int | None) -> Shows | None:
    if bullets is None and tokens is None:
        kept = getattr(student, MARK, None)
        return kept if isinstance(kept, Shows) else None
    for name, value in (("prompt_bullets", bullets), ("prompt_tokens", tokens)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SettingsError(f"{name} must be a whole number, 1 or more; got {value!r}.")
    return Shows(bullets, tokens)


def with_reflection(student: Program, playbook: Playbook, insights: Iterable[str | Insight]) -> Program:
    """A training copy for a retry: the playbook, and below it the insights of a reflection (ACE §3.2).

    An insight for one predictor stands in its prompt alone.
    """
    given = [Insight(insight) if isinstance(insight, str) else insight for insight in insights]
    return _instructed(student, playbook, True, given, _shows(student, None, None))


def _instructed(
    student: Program, playbook: Playbook, cite: bool, insights: Sequence[Insight] = (), shows: Shows | None = None
) -> Program:
    carried_playbook(student)
    own = own_instructions(student)
    program = copy_program(student)
    for name, predictor in program.named_predictors():
        wanted = "\n\n".join(
            part for part in (own[name], playbook_block(playbook, name), _note(insights, name)) if part
        )
        if wanted != predictor.signature.instructions:
            predictor.signature = predictor.signature.with_instructions(wanted)
            if wanted != predictor.signature.instructions:  # DSPy writes a default text where there is none
                predictor.signature.instructions = wanted
        if shows is not None:
            select_by_inputs(predictor, name, playbook, shows)
        if cite:
            ask_for_citations(predictor, name, playbook)
    program.playbook = playbook
    if shows is not None:
        setattr(program, MARK, shows)
    return program


def carried_playbook(program: dspy.Module) -> Playbook | None:
    """The playbook that was put into `program`, or None.

    Raises:
        SettingsError: its attribute `playbook` is something else.
    """
    playbook = getattr(program, "playbook", None)
    if playbook is not None and not isinstance(playbook, Playbook):
        raise SettingsError(
            f"{type(program).__name__}.playbook must be a Playbook or absent: compiled programs carry theirs there; "
            f"got {type(playbook).__name__}. Rename the attribute."
        )
    return playbook


def playbook_block(playbook: Playbook, predictor: str) -> str:
    """What stands below the own instructions of `predictor`: a header and its bullets, or `""`."""
    bullets = playbook.render(predictor)
    return f"{PLAYBOOK_HEADER}\n\n{bullets}" if bullets else ""


def _note(insights: Sequence[Insight], predictor: str) -> str:
    """What a retry's prompt of `predictor` says below the playbook, or `""`."""
    own = [insight.content for insight in insights if insight.predictor in (None, predictor)]
    listed = ["\n  ".join(defuse(insight).expandtabs(4).splitlines()) for insight in own]
    return "\n".join([NOTE_HEADER, *(f"- {insight}" for insight in listed)]) if listed else ""


def own_instructions(program: dspy.Module) -> dict[str, str]:
    """Each predictor's instructions without the playbook (`program.playbook`) and note put below them.

    What someone wrote below the playbook since is kept.
    """
    playbook = getattr(program, "playbook", None)
    own = {}
    for name, predictor in program.named_predictors():
        instructions = str(predictor.signature.instructions)
        block = playbook_block(playbook, name) if isinstance(playbook, Playbook) else ""
        instructions = _without(instructions, NOTE_HEADER, r"(?s:\n.*)?\Z")
        own[name] = _without(instructions, block, r"(?=\n\n\S)|\Z") if block else instructions
    return own


def _without(instructions: str, below: str, after: str) -> str:
    """`instructions` without the last `below`, at the top or under a blank line, and what `after` matches behind it."""
    start = instructions.rfind(below)
    while start >= 0:
        end = re.compile(after).match(instructions, start + len(below))
        if end and (start == 0 or instructions.endswith("\n\n", 0, start)):
            rest = instructions[end.end() :]
            return instructions[: start - 2] + rest if start else rest.removeprefix("\n\n")
        start = instructions.rfind(below, 0, start + len(below) - 1)
    return instructions

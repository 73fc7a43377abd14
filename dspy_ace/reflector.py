"""The Reflector: distils lessons from one trajectory (ACE §3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import dspy

from . import text
from .errors import SettingsError
from .playbook import Playbook
from .replies import ask, read_list, read_mapping
from .roles import Insight, Reflection, Vote
from .trajectory import Trajectory
from .transcript import render_calls, render_fields, render_outcome

_SHOWN_TOKENS = 1500  # of bullets that were shown but not cited


class ReflectOnTrajectory(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """You coach a program made of language model calls. Read one attempt of it and say what should be remembered.

    Find out why the attempt ended as it did, from the evidence in front of you: compare what was answered with
    the feedback and, where given, with the expected outputs; name the exact place where it went wrong (a wrong
    reading of the inputs, a convention the program could not know, a skipped check, a wrong tool or format).
    Then write key insights: lessons that let the program do the *next, different* case right.

    A good insight
    - is conditional and specific: it names the signs in the inputs that call for it, and what to do then
      ("when the inputs show …, answer/do …, not …");
    - carries the convention, rule, format or number behind the right answer, with a small worked pattern made up
      by you where that helps; several sentences are fine;
    - is true beyond this case: no names, figures or wordings that only this case has, never a copy of it;
    - says what to do rather than to be careful; states a rule only as far as the evidence goes.
    Write no insight when there is nothing new: when the attempt was right in a routine way, when a bullet already
    says it, or when the failure is bad luck or noise. A success may hold an insight if it shows a convention or a
    strategy that others would miss. Zero insights is a good answer.

    Judge each bullet that was cited: helpful if it led towards the right outcome, harmful if following it led
    away from it, neutral otherwise. A failure is no reason to call a bullet harmful that was not at fault.
    If this is a retry, the earlier reflection did not suffice: replace it by one that says all that is to be kept.
    """

    task: str = dspy.InputField(desc="the program's own instructions, by predictor")
    task_inputs: str = dspy.InputField(desc="the inputs of this case")
    trajectory: str = dspy.InputField(desc="every call of every predictor in order, with its inputs and outputs")
    outcome: str = dspy.InputField(desc="how the attempt ended")
    feedback: str = dspy.InputField(desc="what the metric or the environment said")
    expected_outputs: str = dspy.InputField(desc="the right outputs, if they are known")
    bullets: str = dspy.InputField(desc="playbook bullets in view: first those the attempt cited, then others")
    earlier_reflection: str = dspy.InputField(desc="the reflection that was in view during this attempt, if any")
    error_identification: str = dspy.OutputField(desc="what exactly went wrong, and where; or what went right")
    root_cause: str = dspy.OutputField(desc="why: the misreading, missing rule or wrong assumption behind it")
    correct_approach: str = dspy.OutputField(desc="what should have been done instead, in general terms")
    key_insights: str = dspy.OutputField(
        desc='a JSON list of lessons, [] if none; each a string, or {"insight": "…", "predictor": "name"} if it is '
        "meant for one predictor of several"
    )
    bullet_tags: str = dspy.OutputField(
        desc='a JSON object: id of each cited bullet → "helpful", "harmful" or "neutral"; {} if none was cited'
    )


class Reflector(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """The default `Reflect`: one LM call a trajectory, one more if the reply cannot be read.

    Args:
        lm: the LM to ask; None: the LM in force where it is called.
        max_prompt_tokens: bound on what it is shown besides its instructions, in estimated tokens
            (`text.count_tokens`); long parts are cut in the middle, visibly.
        perfect_score: the score of a success, told to the LM.
    """

    def __init__(self, lm: Any = None, *, max_prompt_tokens: int = 16_000, perfect_score: float = 1.0) -> None:
        super().__init__()
        if max_prompt_tokens < 500:
            raise SettingsError(f"max_prompt_tokens must be 500 or more; got {max_prompt_tokens}.")
        self.lm, self.max_prompt_tokens, self.perfect_score = lm, max_prompt_tokens, perfect_score
        self.predict = dspy.Predict(ReflectOnTrajectory)

    def forward(self, playbook: Playbook, trajectory: Trajectory) -> Reflection:
        """Reflect on `trajectory`. Raises RoleError if no reply could be read; LM errors pass through."""
        names = set(trajectory.task)

        def read(fields: Mapping[str, Any]) -> Reflection:
            items = read_list(fields["key_insights"], "key_insights")
            insights = [insight for item in items if (insight := _insight(item, names)) is not None]
            return Reflection(
                insights=tuple(insights),
                tags=_tags(read_mapping(fields["bullet_tags"], "bullet_tags"), playbook),
                error_identification=str(fields["error_identification"]),
                root_cause=str(fields["root_cause"]),
                correct_approach=str(fields["correct_approach"]),
            )

        inputs = text.fit(self.parts(playbook, trajectory), self.max_prompt_tokens)
        return ask(self.predict, inputs, ("key_insights",), read, self.lm)

    def parts(self, playbook: Playbook, trajectory: Trajectory) -> dict[str, str]:
        """The input fields, before they are cut to size."""
        several = len(trajectory.task) > 1
        return {
            "task": "\n\n".join(f"[{name}]\n{own}" if several else own for name, own in trajectory.task.items()),
            "task_inputs": render_fields(trajectory.inputs),
            "trajectory": render_calls(trajectory),
            "outcome": render_outcome(trajectory, self.perfect_score),
            "feedback": trajectory.feedback.text or "(none)",
            "expected_outputs": render_fields(trajectory.expected) or "(not available)",
            "bullets": _render_bullets(playbook, trajectory),
            "earlier_reflection": _render_earlier(trajectory.attempt),
        }


def _insight(item: Any, names: set[str]) -> Insight | None:
    predictor = None
    if isinstance(item, Mapping):
        predictor = item.get("predictor")
        item = next((item[key] for key in ("insight", "content", "lesson", "key_insight") if key in item), None)
    if not isinstance(item, str) or not item.strip():
        return None
    return Insight(item.strip(), predictor if predictor in names and len(names) > 1 else None)


def _tags(entries: Mapping[str, Any], playbook: Playbook) -> dict[str, Vote]:
    """Votes by id; ids are matched against the playbook, whatever brackets or capitals the reply gave them."""
    tags: dict[str, Vote] = {}
    for name, vote in entries.items():
        bullet = playbook.get(name)
        word = str(vote).strip().casefold()
        if word in get_args(Vote):
            tags[bullet.id if bullet else name] = word  # type: ignore[assignment]  # checked on the line above
    return tags


def _render_bullets(playbook: Playbook, trajectory: Trajectory) -> str:
    shown = [bullet for name in trajectory.shown if (bullet := playbook.get(name)) is not None]
    cited = [bullet for bullet in shown if bullet.id in trajectory.cited]
    others, left = [], _SHOWN_TOKENS
    for bullet in shown:
        block = text.render_bullet(bullet)
        left -= text.count_tokens(block)
        if bullet not in cited and left > 0:
            others.append(block)
    parts = []
    if cited:
        parts.append("Cited:\n" + text.render_bullets(cited))
    if others:
        parts.append("Shown, not cited:\n" + "\n".join(others))
    hidden = len(shown) - len(cited) - len(others)
    return "\n".join(parts + ([f"(and {hidden} more that were shown)"] if hidden else [])) or "(none)"


def _render_earlier(attempt: Any) -> str:
    if not isinstance(attempt, Reflection):
        return "(none)"
    lines = [f"Root cause: {attempt.root_cause}", *(f"- {insight.content}" for insight in attempt.insights)]
    return "\n".join(lines)

"""The Reflector: its prompt, and how its replies are read (ACE §3.2)."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, get_args

import dspy
from annotated_types import Ge

from ..errors import checked
from ..lm import Broken, UnreadableError, ask, is_nothing, read_list, read_mapping, restored
from ..playbook import Playbook, text
from ..program import Insight, Trajectory, images_of, render_calls, render_fields, render_outcome
from .contracts import Reflection, Vote

logger = logging.getLogger("dspy.ace")

_SHOWN_TOKENS = 1500  # of bullets that were shown but not cited
_WORDS_TOKENS = 1000  # of one insight or finding: later prompts hold no more of it
_IMAGES = "the images of this attempt: (image 1) is the first one, and so on; those beyond the last one are not shown"
_VOTES: dict[str, Vote] = {vote: vote for vote in get_args(Vote)}


class ReflectOnTrajectory(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """You coach a program made of language model calls. You see one attempt of it at one case. Find out why it ended
    as it did, then write down what would help the program with other cases.

    Diagnose from the evidence. Compare what was answered with the feedback and, if given, with the expected outputs;
    follow the trajectory back to the first place where it went wrong: a misread input, a rule or convention that
    the program could not know, a skipped check, a wrong tool or format. If nothing tells the right answer, go by
    what the trajectory itself shows: errors, contradictions, steps without support. Of a success say what it
    rested on.

    Then write the key insights. Each one
    - says when it applies and what to do then: "when the inputs show …, do …, not …";
    - carries the knowledge behind the right answer: the rule, convention, format or number; a small pattern with
      values you made up may show it; several sentences are fine;
    - holds for other cases: leave out names, figures and wordings that only this case has, and never copy the case
      or its answer;
    - stands on its own: the program will read it without this case, the feedback or the expected outputs in view,
      so it cannot look there;
    - claims no more than the evidence shows.
    Advice that fits any task ("read carefully", "check the answer") is no insight. Write none when there is nothing
    new: a routine success, a lesson that a bullet already states, bad luck or noise. A success is worth an insight if
    it shows a convention or strategy that others would miss. No insight at all is a good answer.

    Last, tag each cited bullet that mattered: helpful if it led towards the right outcome, harmful if following it led
    away from it; leave out the others. A failure alone makes no bullet harmful.

    If an earlier reflection is given, this attempt was made with it in view. If it failed again, find what was wrong
    or missing. Your answer replaces that reflection: repeat what is to be kept.
    """

    task: str = dspy.InputField(desc="the program's own instructions, by predictor")
    task_inputs: str = dspy.InputField(desc="the inputs of this case")
    trajectory: str = dspy.InputField(desc="every call of every predictor, in order: its inputs, then its outputs")
    outcome: str = dspy.InputField(desc="how the attempt ended")
    feedback: str = dspy.InputField(desc="what the metric or the environment said")
    expected_outputs: str = dspy.InputField(desc="the right outputs, if they are known")
    bullets: str = dspy.InputField(desc="playbook bullets that were in view: first those the attempt cited")
    earlier_reflection: str = dspy.InputField(desc="the reflection on the attempt before this one, if there was one")
    error_identification: str = dspy.OutputField(desc="what went wrong and where, exactly; or what went right")
    root_cause: str = dspy.OutputField(desc="why: the misreading, missing rule or wrong assumption behind it")
    correct_approach: str = dspy.OutputField(desc="what should have been done instead, in general terms")
    key_insights: str = dspy.OutputField(
        desc="a JSON list of strings, one an insight, [] if none; if the task has several predictors and an insight is "
        'for one of them only: {"insight": "…", "predictor": "name"} instead of the string'
    )
    bullet_tags: str = dspy.OutputField(
        desc='a JSON object: id of each cited bullet that mattered → "helpful" or "harmful"; {} if none did'
    )


class Reflector(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """The default `Reflect`: one LM call a trajectory, and up to two more where a reply cannot be read.

    Args:
        lm: the LM to ask; None: the LM in force where it is called.
        max_prompt_tokens: limit of the input fields together, in estimated tokens (`dspy_ace.playbook.count_tokens`),
            500 or more. Long fields are cut in the middle, visibly.
        max_images: how many images of a trajectory the LM is given, as images, 0 or more; 0 is for an LM that takes
            text only. Their tokens do not count towards `max_prompt_tokens`.

    Raises:
        SettingsError: at construction, for a setting out of range.

    Example:
        >>> ACE(metric, reflect=Reflector(dspy.LM("openai/gpt-5"), max_images=0))  # doctest: +SKIP
    """

    def __init__(self, lm: Any = None, *, max_prompt_tokens: int = 16_000, max_images: int = 4) -> None:
        super().__init__()
        self.lm = lm
        self.max_prompt_tokens = checked("max_prompt_tokens", max_prompt_tokens, Annotated[int, Ge(500)])
        self.max_images = checked("max_images", max_images, Annotated[int, Ge(0)])
        self.predict = dspy.Predict(ReflectOnTrajectory)

    def forward(self, playbook: Playbook, trajectory: Trajectory) -> Reflection:
        """Reflect on `trajectory`.

        Raises:
            RoleError: no reply could be read. LM errors pass through.
        """
        names, ran = set(trajectory.task), {call.predictor for call in trajectory.trace}

        def read(fields: Mapping[str, Any]) -> Reflection:
            items = read_list(fields["key_insights"], "key_insights")
            if any(isinstance(item, Broken) for item in items):
                logger.warning(
                    "The reflection on example %s breaks off; its last insight is left out.", trajectory.source
                )
            insights = [insight for item in items if (insight := _insight(item, names, ran)) is not None]
            return Reflection(
                insights=tuple(insights),
                tags=_tags(fields["bullet_tags"], playbook, trajectory),
                error_identification=_words(fields["error_identification"]),
                root_cause=_words(fields["root_cause"]),
                correct_approach=_words(fields["correct_approach"]),
            )

        parts = self.parts(playbook, trajectory)
        images = images_of(trajectory)[: self.max_images]
        predict = _Seeing(self.predict, images) if images else self.predict
        return ask(predict, parts, ("key_insights",), read, self.lm, max_tokens=self.max_prompt_tokens)

    def parts(self, playbook: Playbook, trajectory: Trajectory) -> dict[str, str]:
        """Return the input fields, before they are cut to size."""
        several, images = len(trajectory.task) > 1, images_of(trajectory)
        return {
            "task": "\n\n".join(f"[{name}]\n{own}" if several else own for name, own in trajectory.task.items()),
            "task_inputs": render_fields(trajectory.inputs, images),
            "trajectory": render_calls(trajectory, images),
            "outcome": render_outcome(trajectory),
            "feedback": trajectory.feedback.text or "(none)",
            "expected_outputs": render_fields(trajectory.expected) or "(not available)",
            "bullets": _render_bullets(playbook, trajectory),
            "earlier_reflection": _render_earlier(trajectory.attempt),
        }


class _Seeing:
    """The Reflector's predictor with the images of one trajectory among its inputs."""

    def __init__(self, predict: dspy.Predict, images: Sequence[dspy.Image]) -> None:
        self.predict, self.images = predict, list(images)
        place = min(2, len(predict.signature.input_fields))  # below the inputs of the case
        self.signature = predict.signature.insert(place, "images", dspy.InputField(desc=_IMAGES), list[dspy.Image])

    def __call__(self, **inputs: Any) -> Any:
        return self.predict(images=self.images, **inputs)


def _insight(item: Any, names: Collection[str], ran: Collection[str]) -> Insight | None:
    """Return the insight that an item of the reply states; None for an empty, a broken or a placeholder item."""
    predictor = None
    if isinstance(item, Mapping):
        predictor = item.get("predictor")
        item = next((item[key] for key in ("insight", "content", "lesson", "key_insight") if key in item), None)
    if not isinstance(item, str) or is_nothing(item):
        return None
    if isinstance(predictor, str):
        predictor = predictor.strip("[]`'\" ")
    return Insight(_words(item), _addressee(predictor, names, ran))


def _addressee(named: Any, names: Collection[str], ran: Collection[str]) -> str | None:
    """Return the predictor an insight is for: the one it names, if it ran; otherwise the only one that ran; None: all.

    A rollout shows nothing of a predictor that did not run. An insight for such a predictor is kept, because it comes
    from what did run; only the name is dropped.
    """
    if len(names) < 2:
        return None
    ran = [name for name in ran if name in names] or list(names)
    if isinstance(named, str) and named in ran:
        return named
    return ran[0] if len(ran) == 1 else None


def _words(said: Any) -> str:
    """Return text of a reply as later prompts may hold it: repaired and bounded."""
    return text.cut_middle(restored(str(said)).strip(), _WORDS_TOKENS)


def _tags(value: Any, playbook: Playbook, trajectory: Trajectory) -> dict[str, Vote]:
    """Return the votes by id. Ids are found in the playbook whatever brackets or capitals the reply gave them.

    A reply that is no JSON object has no votes, unless it names a bullet that was shown.

    Raises:
        UnreadableError: such a reply names one.
    """
    try:
        entries = read_mapping(value, "bullet_tags")
    except UnreadableError:
        if any(name.casefold() in str(value).casefold() for name in trajectory.shown):
            raise
        return {}
    tags: dict[str, Vote] = {}
    for name, entry in entries.items():
        inverted = name.strip().casefold() in _VOTES and isinstance(entry, (list, tuple, str))
        voted = [entry] if isinstance(entry, str) else entry
        for named, vote in [(str(one), name) for one in voted] if inverted else [(name, entry)]:
            word = _vote(vote)
            bullet = playbook.get(named)
            if word is not None:
                tags[bullet.id if bullet else restored(named)[:100]] = word
    return tags


def _vote(said: Any) -> Vote | None:
    """Return `helpful` for `"Helpful."` or `{"tag": "helpful", …}`, and so on; None for any other word."""
    if isinstance(said, Mapping):
        said = said.get("tag", said.get("vote"))
    word = re.match(r"\W*([a-z]+)", str(said).casefold())
    return _VOTES.get(word[1]) if word else None


def _render_bullets(playbook: Playbook, trajectory: Trajectory) -> str:
    shown = [bullet for name in trajectory.shown if (bullet := playbook.get(name)) is not None]
    cited = [bullet for bullet in shown if bullet.id in trajectory.cited]
    others = [bullet for bullet in shown if bullet.id not in trajectory.cited]
    sizes = accumulate(bullet.tokens for bullet in others)
    fitting = [bullet for bullet, size in zip(others, sizes, strict=True) if size < _SHOWN_TOKENS]
    lines = ["Cited:", *(bullet.block for bullet in cited)] if cited else []
    lines += ["Shown, not cited:", *(bullet.block for bullet in fitting)] if fitting else []
    hidden = len(others) - len(fitting)
    return "\n".join(lines + ([f"(and {hidden} more that were shown)"] if hidden else [])) or "(none)"


def _render_earlier(attempt: Any) -> str:
    if not isinstance(attempt, Reflection):
        return "(none)"
    causes = [f"Root cause: {attempt.root_cause}"] if attempt.root_cause else []
    return "\n".join([*causes, *(f"- {insight.content}" for insight in attempt.insights)]) or "(none)"

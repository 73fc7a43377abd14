"""The Reflector: its prompt, and how its replies are read (ACE §3.2)."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Annotated, Any, get_args

import dspy
from annotated_types import Ge
from dspy.utils.exceptions import LMError

from ..errors import RoleError, checked
from ..lm import Broken, LimitReachedError, UnreadableError, ask, is_nothing, read_list, read_mapping, restored
from ..playbook import Playbook, text
from ..program import (
    Insight,
    Trajectory,
    images_of,
    outputs_of,
    render_answer,
    render_calls,
    render_fields,
    render_outcome,
    render_value,
    without_shared,
)
from ..similarity import nearest
from .contracts import Reflection, Vote, fitting

logger = logging.getLogger("dspy.ace")

_BULLET_TOKENS = 3000  # of a playbook that is shown whole; of a larger one the bullets that matter for the case
_CLOSEST = 10  # of these
_WORDS_TOKENS = 1000  # of one insight or diagnosis: later prompts hold no more of it
_ATTEMPT_TOKENS, _OUTPUT_TOKENS = 700, 150  # of a success among others, and of each of its outputs
_MOST_INSIGHTS = 3  # of one call about successes
_IMAGES = "the images of this attempt: (image 1) is the first one, and so on; those beyond the last one are not shown"
_VOTES: dict[str, Vote] = {vote: vote for vote in get_args(Vote)}


class ReflectOnTrajectory(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """You coach an LLM program. Find where this attempt first went wrong: a misread input, an unknown
    rule or convention, a skipped check, a wrong tool or format. If nothing tells the right answer, go by errors,
    contradictions and steps without support.

    Then write what will help with other cases. An insight
    - says "when the inputs show …, do …, not …", with the rule, format or label, and a small made-up pattern;
    - leaves out what only this case has, and never copies it or its answer. Name labels of a fixed set; keep a figure
      that may be the condition, as a bound ("at least 480");
    - stands on its own: the program will not see this case or its feedback;
    - claims no more than is shown; also that a bullet holds more widely or narrowly than it says.
    Write none about bad luck, what a bullet states, or advice for any task: [] is a good answer.

    Tag cited bullets that mattered: helpful, harmful (followed as written, it misled) or misapplied (stretched beyond
    its condition). A failure alone makes none harmful; of a partial score judge the part that used it.
    """

    task: str = dspy.InputField(desc="")
    bullets: str = dspy.InputField(desc="")
    task_inputs: str = dspy.InputField(desc="")
    trajectory: str = dspy.InputField(desc="")
    outcome: str = dspy.InputField(desc="")
    feedback: str = dspy.InputField(desc="")
    expected_outputs: str = dspy.InputField(desc="")
    earlier_reflection: str = dspy.InputField(desc="")
    diagnosis: str = dspy.OutputField(desc="what went wrong and why; empty for a routine success")
    key_insights: str = dspy.OutputField(
        desc='a JSON list of strings; {"insight": "…", "predictor": "name"} for one predictor of several'
    )
    bullet_tags: str = dspy.OutputField(desc='a JSON object: {"id": "helpful"}')


class ReflectOnSuccesses(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """You coach an LLM program. You see attempts of it that succeeded, and its playbook. Which
    conventions, formats, rules or strategies do they show that somebody new to the task would miss?

    Write at most three insights, the most useful first. Each one
    - rules out a plausible other answer: "when the inputs show …, do …, not …", with the rule, format or label, and a
      small pattern with made-up values;
    - names the attempts it rests on, and claims no more than they show. Cases that are alike but for their answers
      show a condition best;
    - stands on its own: the program will not see these attempts. Never copy one.
    Leave out what a bullet states, what nobody would answer otherwise, and advice for any task. [] is a good answer.
    """

    task: str = dspy.InputField(desc="")
    bullets: str = dspy.InputField(desc="")
    attempts: str = dspy.InputField(desc="")
    key_insights: str = dspy.OutputField(
        desc='a JSON list: {"insight": "…", "attempts": [1, 4]}; "predictor": "name" for one predictor of several'
    )


class Reflector(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """The default `Reflect`: one LM call a failure, and one for all successes of a batch.

    A reply that cannot be read is asked for once or twice more. Successes that outgrow the prompt together are shown in
    parts, one after the other.

    Args:
        lm: the LM to ask; None: the LM in force where it is called.
        max_prompt_tokens: limit of the input fields together, in estimated tokens (`dspy_ace.playbook.count_tokens`),
            500 or more. Long fields are cut in the middle, visibly.
        max_images: how many images of a failure the LM is given, as images, 0 or more; 0 is for an LM that takes
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
        self.predict_together = dspy.Predict(ReflectOnSuccesses)

    def forward(self, playbook: Playbook, trajectory: Trajectory) -> Reflection:
        """Reflect on `trajectory`.

        Raises:
            RoleError: no reply could be read. LM errors pass through.
        """

        def read(fields: Mapping[str, Any]) -> Reflection:
            found = _insights(fields["key_insights"], [trajectory])
            return Reflection(
                insights=tuple(insight for insight, _ in found),
                tags=_tags(fields["bullet_tags"], playbook, trajectory),
                diagnosis=_words(fields["diagnosis"]),
            )

        parts = self.parts(playbook, trajectory)
        images = images_of(trajectory)[: self.max_images]
        predict = _Seeing(self.predict, images) if images else self.predict
        return ask(predict, parts, ("key_insights",), read, self.lm, max_tokens=self.max_prompt_tokens)

    def parts(self, playbook: Playbook, trajectory: Trajectory) -> dict[str, str]:
        """Return the input fields, before they are cut to size. What prompts have in common comes first."""
        images = images_of(trajectory)
        case, common = without_shared(render_fields(trajectory.inputs, images), trajectory.shared)
        return {
            "task": _render_task(trajectory, common),
            "bullets": _render_bullets(playbook, trajectory),
            "task_inputs": case,
            "trajectory": render_calls(trajectory, images),
            "outcome": render_outcome(trajectory),
            "feedback": trajectory.feedback.text or "(none)",
            "expected_outputs": render_fields(trajectory.expected) or "(not available)",
            "earlier_reflection": _render_earlier(trajectory.attempt),
        }

    def on_successes(self, playbook: Playbook, trajectories: Sequence[Trajectory]) -> list[Reflection]:
        """Reflect on successes together: one reflection an insight, with the successes that it rests on.

        Raises:
            RoleError: no reply could be read. LM errors pass through.
        """
        found: list[Reflection] = []
        left = list(trajectories)
        while left:
            _, common = without_shared(render_fields(left[0].inputs), left[0].shared)
            fields = {"task": _render_task(left[0], common), "bullets": playbook.render() or "(empty)"}
            attempts = fitting(map(_render_attempt, count(1), left), fields, self.max_prompt_tokens)
            part, left = left[: len(attempts)], left[len(attempts) :]

            def read(reply: Mapping[str, Any], part: Sequence[Trajectory] = part) -> list[Reflection]:
                insights = _insights(reply["key_insights"], part)
                if len(insights) > _MOST_INSIGHTS:
                    logger.info("Of %d insights on successes the first %d are kept.", len(insights), _MOST_INSIGHTS)
                return [
                    Reflection((insight,), trajectory=first, others=tuple(others))
                    for insight, (first, *others) in insights[:_MOST_INSIGHTS]
                ]

            fields["attempts"] = "\n\n".join(attempts)
            limit = self.max_prompt_tokens
            try:
                found += ask(self.predict_together, fields, ("key_insights",), read, self.lm, max_tokens=limit)
            except (LimitReachedError, RoleError, LMError) as error:
                if not found:  # else the calls before are paid for
                    raise
                lost = len(part) + len(left)
                logger.warning("%d of %d successes were not reflected on: %s", lost, len(trajectories), error)
                break
        return found


class _Seeing:
    """The Reflector's predictor with the images of one trajectory among its inputs."""

    def __init__(self, predict: dspy.Predict, images: Sequence[dspy.Image]) -> None:
        self.predict, self.images = predict, list(images)
        place = min(3, len(predict.signature.input_fields))  # below the inputs of the case
        self.signature = predict.signature.insert(place, "images", dspy.InputField(desc=_IMAGES), list[dspy.Image])

    def __call__(self, **inputs: Any) -> Any:
        return self.predict(images=self.images, **inputs)


def _insights(said: Any, attempts: Sequence[Trajectory]) -> list[tuple[Insight, list[Trajectory]]]:
    """Return the insights of a reply, each with the attempts that it names; one that names none rests on all.

    Raises:
        UnreadableError: the reply holds no list.
    """
    items, found = read_list(said, "key_insights"), []
    if any(isinstance(item, Broken) for item in items):
        named = ", ".join(attempt.source for attempt in attempts)
        logger.warning("The reflection on example %s breaks off; its last insight is left out.", named)
    names = set(attempts[0].task)
    for item in items:
        numbers = re.findall(r"\d{1,6}", str(item.get("attempts", ""))) if isinstance(item, Mapping) else []
        basis = [attempts[at] for at in dict.fromkeys(int(n) - 1 for n in numbers) if 0 <= at < len(attempts)]
        ran = {call.predictor for attempt in basis or attempts for call in attempt.trace}
        if (insight := _insight(item, names, ran)) is not None:
            found.append((insight, basis or list(attempts)))
    return found


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


def _render_task(trajectory: Trajectory, common: str) -> str:
    several = len(trajectory.task) > 1
    own = [f"[{name}]\n{words}" if several else words for name, words in trajectory.task.items()]
    return "\n\n".join([*own, *([f"All cases share:\n{common}"] if common else [])])


def _render_bullets(playbook: Playbook, trajectory: Trajectory) -> str:
    """Return the bullets that were shown, all in one order while they are few: so providers can cache the prompt."""
    shown = [bullet for name in trajectory.shown if (bullet := playbook.get(name)) is not None]
    if sum(bullet.tokens for bullet in shown) > _BULLET_TOKENS:
        words = f"{render_fields(trajectory.inputs)}\n{trajectory.feedback.text}"
        view = Playbook(tuple(shown))
        kept = {bullet.id for bullet in nearest(view, words, _CLOSEST)} | set(trajectory.cited)
        hidden = len(shown) - len(kept)
        shown = [bullet for bullet in shown if bullet.id in kept]
        return "\n".join([*(bullet.block for bullet in shown), f"(and {hidden} more, further from this case)"])
    return "\n".join(bullet.block for bullet in shown) or "(none)"


def _render_attempt(number: int, trajectory: Trajectory) -> str:
    """Return a success, short: the case, what was answered, and the bullets it cited."""
    case, _ = without_shared(render_fields(trajectory.inputs), trajectory.shared)
    lines = [f"Attempt {number}", text.cut_middle(case, _ATTEMPT_TOKENS)]
    for name, value in outputs_of(trajectory.prediction).items():
        lines.append(f"  → {name}: {text.cut_middle(render_value(value), _OUTPUT_TOKENS)}")
    if trajectory.feedback.text:
        lines.append(f"  Feedback: {text.cut_middle(trajectory.feedback.text, _OUTPUT_TOKENS)}")
    lines += [f"  Cited: {', '.join(f'[{name}]' for name in trajectory.cited)}"] if trajectory.cited else []
    return "\n".join(lines)


def _render_earlier(attempt: Any) -> str:
    if not isinstance(attempt, Reflection):
        return "(none)"
    earlier = [] if attempt.trajectory is None else [attempt.trajectory, *attempt.retries]
    answers = [f"Before it: {render_answer(made, _OUTPUT_TOKENS)} (score {made.feedback.score:g})" for made in earlier]
    causes = [f"Diagnosis: {attempt.diagnosis}"] if attempt.diagnosis else []
    insights = [f"- {insight.content}" for insight in attempt.insights]
    return "\n".join(["Your answer replaces this one: repeat what is to be kept.", *answers, *causes, *insights])

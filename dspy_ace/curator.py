"""The Curator: turns reflections into operations on the playbook (ACE §3.1). Plain code merges them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from . import text
from .delta import Add, Delete, Delta, Merge, Operation, Rejected, Update, admit
from .errors import SettingsError
from .playbook import DEFAULT_SECTIONS, Playbook
from .replies import ask, read_list
from .roles import Reflection
from .transcript import render_fields

_ECHOED = re.compile(
    rf"^\s*(?:##[^\n]*\n+)?\s*\[{text.ID_PATTERN}\]\s*(?:helpful=\d+\s*harmful=\d+\s*::|\([^)\n]*\))?\s*"
)
_FORMAT_LINE = re.compile(rf"^\s*(?:##+ [^\n]*|\[{text.ID_PATTERN}\].*)$")


class CuratePlaybook(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """You keep the playbook of a program made of language model calls. Turn the reviews of its latest attempts into
    a few precise operations on the playbook. The program sees the playbook in every prompt: a bullet earns its
    place by making future, different cases right.

    - ADD a lesson that the playbook lacks. Keep what makes it useful: the signs that call for it, the rule, the
      convention or number, a small worked pattern; and leave out what only one case had. Several sentences are
      fine. One bullet per lesson; reviews that teach the same lesson make one bullet.
    - UPDATE a bullet that a review shows to be incomplete or too broad: give its whole new content, keep all that
      still holds. Prefer this to adding a bullet that says nearly the same or that contradicts an old one.
    - MERGE bullets that say the same thing: give one content that keeps every difference in numbers, conditions
      and exceptions. Bullets that differ in any of these are not the same.
    - DELETE a bullet only if the counters or the reviews show that it misleads.
    Lessons that a retry confirmed are worth most. A lesson whose retry failed again is unproven: take it only if
    it is plainly right, and say then what is certain. Never copy a case or its answer. Mind the token budget: when
    little is left, rather update, merge and delete. No operation at all is a good answer when the reviews bring
    nothing new.
    """

    playbook: str = dspy.InputField(desc="the bullets in order of birth: [id] (section) content")
    evidence: str = dspy.InputField(desc="how often bullets helped and misled so far; unlisted ones were never used")
    reviews: str = dspy.InputField(desc="reviews of the latest attempts, each with its question")
    sections: str = dspy.InputField(desc="sections to file bullets under; a new one only if none fits")
    budget: str = dspy.InputField(desc="how many tokens the playbook may take, and how many are left")
    reasoning: str = dspy.OutputField(desc="what is new in the reviews, what the playbook has already, briefly")
    operations: str = dspy.OutputField(
        desc="a JSON list of operations, [] if none: "
        '{"type": "ADD", "section": "…", "content": "…", "reviews": [1, 3]}, '
        '{"type": "UPDATE", "id": "…", "content": "…", "reviews": [2]}, '
        '{"type": "MERGE", "ids": ["…", "…"], "content": "…"}, {"type": "DELETE", "id": "…", "reason": "…"}; '
        '"reviews" are the numbers of the reviews it comes from; add "predictor": "name" to an ADD whose insight '
        "is for one predictor only"
    )


class Curator(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """The default `Curate`: one LM call for a group of reflections, one more if the reply cannot be read.

    Args:
        lm: the LM to ask; None: the LM in force where it is called.
        max_tokens: the token budget of the playbook, told to the LM (code keeps it, see `GrowAndRefine`).
        max_prompt_tokens: bound on what it is shown besides its instructions, in estimated tokens.
        max_bullet_chars: an operation with a longer content is rejected, in characters.
    """

    def __init__(
        self,
        lm: Any = None,
        *,
        max_tokens: int = 10_000,
        max_prompt_tokens: int = 32_000,
        max_bullet_chars: int = 4_000,
    ) -> None:
        super().__init__()
        if max_prompt_tokens < 500:
            raise SettingsError(f"max_prompt_tokens must be 500 or more; got {max_prompt_tokens}.")
        self.lm, self.max_tokens, self.max_prompt_tokens = lm, max_tokens, max_prompt_tokens
        self.max_bullet_chars = max_bullet_chars
        self.predict = dspy.Predict(CuratePlaybook)

    def forward(self, playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[Rejected, ...]]:
        """Curate a group. Raises RoleError if no reply could be read; LM errors pass through."""

        def read(fields: Mapping[str, Any]) -> tuple[list[Operation], list[Rejected]]:
            operations: list[Operation] = []
            rejected: list[Rejected] = []
            for item in read_list(fields["operations"], "operations"):
                try:
                    operations.append(_operation(item, playbook, reflections))
                except (ValueError, TypeError, KeyError) as error:
                    rejected.append(Rejected(None, f"{error}; got {_brief(item)}"))
            return operations, rejected

        inputs = text.fit(self.parts(playbook, reflections), self.max_prompt_tokens)
        operations, malformed = ask(self.predict, inputs, ("operations",), read, self.lm)
        delta, misfits = admit(playbook, operations, max_chars=self.max_bullet_chars)
        return delta, (*malformed, *misfits)

    def parts(self, playbook: Playbook, reflections: Sequence[Reflection]) -> dict[str, str]:
        """The input fields, before they are cut to size. What changes least comes first: it stays cached."""
        counted = (f"{b.id} +{b.helpful} -{b.harmful}" for b in playbook if b.helpful or b.harmful)
        used = playbook.tokens()
        return {
            "playbook": playbook.render() or "(empty)",
            "evidence": "; ".join(counted) or "(none yet)",
            "reviews": "\n\n".join(_review(number, item) for number, item in enumerate(reflections, 1)),
            "sections": "; ".join(playbook.sections or DEFAULT_SECTIONS),
            "budget": f"{self.max_tokens} tokens in all, {used} used, {max(0, self.max_tokens - used)} left",
        }


def _review(number: int, reflection: Reflection) -> str:
    """One reflection with its question, as the curator reads it."""
    trajectory = reflection.trajectory
    lines = [f"Review {number} ({_evidence(reflection)})"]
    if trajectory is not None:
        lines.append("Case: " + text.cut_middle(render_fields(trajectory.inputs), 700))
    for title, words in (
        ("What happened", reflection.error_identification),
        ("Root cause", reflection.root_cause),
        ("Correct approach", reflection.correct_approach),
    ):
        if words:
            lines.append(f"{title}: {words}")
    lines.append("Insights:")
    for insight in reflection.insights:
        scope = f" (for predictor {insight.predictor})" if insight.predictor else ""
        lines.append(f"- {insight.content}{scope}")
    return "\n".join(lines)


def _evidence(reflection: Reflection) -> str:
    trajectory = reflection.trajectory
    outcome = "outcome unknown" if trajectory is None else ("success" if trajectory.success else "failure")
    if reflection.verified is None:
        return f"{outcome}; not retried"
    retried = "put it right" if reflection.verified else "failed again"
    scores = " → ".join(f"{score:g}" for score in reflection.scores)
    return f"{outcome}; a retry with these insights {retried}" + (f", scores {scores}" if scores else "")


def _operation(item: Any, playbook: Playbook, reflections: Sequence[Reflection]) -> Operation:
    """The operation that one item of the reply asks for. Raises ValueError with the reason if it asks for none."""
    if not isinstance(item, Mapping):
        raise ValueError('expected an object like {"type": "ADD", …}')
    kind = str(item.get("type", item.get("op", item.get("operation", "")))).strip().upper()
    sources = _sources(item.get("reviews"), reflections)
    if kind == "ADD":
        return Add(str(item.get("section") or ""), _content(item), _predictor(item, reflections), sources)
    if kind == "UPDATE":
        section = item.get("section")
        return Update(_id(item, playbook), _content(item), None if section is None else str(section), sources)
    if kind == "MERGE":
        ids = item.get("ids", item.get("bullet_ids"))
        if not isinstance(ids, (list, tuple)):
            raise ValueError("a MERGE needs a list of ids")
        return Merge(tuple(_known(name, playbook) for name in ids), _content(item), None, sources)
    if kind == "DELETE":
        return Delete(_id(item, playbook), str(item.get("reason") or ""))
    raise ValueError(f"unknown type {kind or '(none)'}: expected ADD, UPDATE, MERGE or DELETE")


def _content(item: Mapping[str, Any]) -> str:
    """The content without an echo of the playbook's own format around it."""
    content = item.get("content")
    if not isinstance(content, str) or not content.strip():
        raise ValueError("the content is empty")
    cleaned = _ECHOED.sub("", content, count=1).strip()
    lines = [line for line in cleaned.splitlines() if line.strip()]
    if (
        not lines
        or all(_FORMAT_LINE.match(line) for line in lines)
        or any("harmful=" in ln and "::" in ln for ln in lines)
    ):
        raise ValueError("the content repeats the playbook's format and holds no lesson of its own")
    return cleaned


def _id(item: Mapping[str, Any], playbook: Playbook) -> str:
    return _known(item.get("id", item.get("bullet_id")), playbook)


def _known(name: Any, playbook: Playbook) -> str:
    bullet = playbook.get(name) if isinstance(name, str) else None
    if bullet is None:
        raise ValueError(f"no bullet {name!r} in the playbook")
    return bullet.id


def _sources(reviews: Any, reflections: Sequence[Reflection]) -> tuple[str, ...]:
    """The examples behind the reviews an operation names; all of the group when it names none."""
    named = reviews if isinstance(reviews, (list, tuple)) else [reviews]
    picked = [reflections[int(n) - 1] for n in named if str(n).isdigit() and 0 < int(n) <= len(reflections)]
    sources = (r.trajectory.source for r in (picked or reflections) if r.trajectory is not None)
    return tuple(dict.fromkeys(sources))


def _predictor(item: Mapping[str, Any], reflections: Sequence[Reflection]) -> str | None:
    """The predictor an ADD is for, if the program has several and one of that name."""
    name = item.get("predictor")
    names = {name for r in reflections if r.trajectory is not None for name in r.trajectory.task}
    return name if isinstance(name, str) and name in names and len(names) > 1 else None


def _brief(item: Any) -> str:
    shown = json.dumps(item, ensure_ascii=False, default=str)
    return shown if len(shown) <= 300 else f"{shown[:297]}..."

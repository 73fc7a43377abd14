"""The Curator: its prompt, and how its replies become operations on the playbook (ACE §3.1)."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Annotated, Any

import dspy
from annotated_types import Ge
from dspy.utils.exceptions import LMError

from ..errors import Count, RoleError, checked
from ..lm import Broken, LimitReachedError, UnreadableError, ask, read_list, restored
from ..playbook import (
    DEFAULT_SECTIONS,
    Add,
    Bullet,
    Delete,
    Delta,
    Merge,
    Operation,
    Playbook,
    Rejected,
    Update,
    admit,
    apply,
    text,
)
from ..program import render_answer, render_baseline, render_expected, render_fields, without_shared
from ..similarity import Embedder, LookAlikes, Pair
from .contracts import Reflection, fitting

_LEXICAL, _EMBEDDED = 0.5, 0.7  # cosines from which bullets look alike
_CLOSEST, _NEWEST = 5, 5  # pairs of look-alikes that are shown
_CASE_TOKENS = 700
_ANSWER_TOKENS = 120  # of each output that was answered or expected
_ANSWERS = 3  # of several successes
_SECTION_CHARS = 80
_REASON_CHARS = 500
_BULLET_HEAD = re.compile(
    rf"[ \t]*\[(?P<id>{text.ID_PATTERN})\][ \t]*(?P<counters>helpful=\d+[ \t]*harmful=\d+[ \t]*(?:::)?)?[ \t]*"
)
_GIVEN_ID = re.compile(r"[^\W\d]\w*-\d{5,}")  # as only this package and the paper's code write ids
_SECTION_MARK = re.compile(r"\(([^()\n]{1,80})\)[ \t]*")


class CuratePlaybook(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """You keep the playbook of an LLM program, which pays for each token in every call. Turn reviews of its attempts
    into the few operations that help most with other cases.

    - UPDATE a bullet that is incomplete, too broad or wrong: its whole new content. Prefer this to an ADD that nearly
      repeats or contradicts it.
    - ADD what no bullet says and the program may get wrong.
    - MERGE bullets that say the same; keep each condition that holds. Look-alikes may differ for a reason.
    - DELETE what misleads or is trivial.
    A bullet says when, what to do, what not, and one small pattern, on its own: no id, votes or copy of a case.
    Rules that tell labels apart share one.

    Several examples count more than one. A retry confirms a lesson for its own case; of an unproven one take what
    others support, and none that its case contradicts. Misapplied bullets need a sharper condition. Of contradictions
    keep the better one, or say when each holds. [] is a good answer.
    """

    task: str = dspy.InputField(desc="")
    playbook: str = dspy.InputField(desc="")
    sections: str = dspy.InputField(desc="")
    evidence: str = dspy.InputField(desc="")
    budget: str = dspy.InputField(desc="")
    look_alikes: str = dspy.InputField(desc="")
    reviews: str = dspy.InputField(desc="")
    reasoning: str = dspy.OutputField(desc="what is new, briefly")
    operations: str = dspy.OutputField(
        desc='a JSON list: {"type": "ADD", "section": "…", "content": "…", "reviews": [1, 3]}; UPDATE also has "id", '
        'MERGE "ids"; DELETE has "id" and "reason"; "predictor" if its insight is for one'
    )


class Curator(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """The default `Curate`: one LM call for all reflections, and up to two more where a reply cannot be read.

    Reviews that outgrow the prompt together are curated in parts, one after the other. Each part sees the playbook as
    the part before left it; "review 1" is the first one of its part.

    Bullets that look alike are shown to the LM in pairs, until it merges them: the closest ones and some of the newest.
    Plain code cannot judge them, since one word in any language may make the difference.

    Args:
        lm: the LM to ask; None: the LM in force where it is called.
        max_tokens: token limit of the playbook, told to the LM; `GrowAndRefine` keeps it. None: ACE's
            `max_playbook_tokens`, or no limit where there is no ACE.
        max_prompt_tokens: limit of the input fields together, in estimated tokens (`dspy_ace.playbook.count_tokens`),
            500 or more. Long fields are cut in the middle, visibly; so is a review that outgrows a prompt alone.
        max_bullet_chars: an operation whose content has more characters is rejected.
        embedder: `list[str]` → array-like (n, d), for instance a `dspy.Embedder`, to find look-alikes by meaning.
            None: by their words, in any language. If it fails, that is logged and no pairs are shown.

    Raises:
        SettingsError: at construction, for a setting out of range.

    Example:
        >>> ACE(metric, curate=Curator(dspy.LM("openai/gpt-5"), max_bullet_chars=1000))  # doctest: +SKIP
    """

    def __init__(
        self,
        lm: Any = None,
        *,
        max_tokens: int | None = None,
        max_prompt_tokens: int = 32_000,
        max_bullet_chars: int = 4_000,
        embedder: Embedder | None = None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.max_tokens = checked("max_tokens", max_tokens, Count | None)
        self.max_prompt_tokens = checked("max_prompt_tokens", max_prompt_tokens, Annotated[int, Ge(500)])
        self.max_bullet_chars = checked("max_bullet_chars", max_bullet_chars, Count)
        checked("embedder", embedder, Callable | None)
        self.look_alikes = LookAlikes(embedder, _LEXICAL if embedder is None else _EMBEDDED)
        self.predict = dspy.Predict(CuratePlaybook)

    def limited_to(self, max_tokens: int) -> Curator:
        """Return this curator if it has a token limit of its own, else a copy with this one. ACE asks for it."""
        if self.max_tokens is not None:
            return self
        fitted = copy.copy(self)
        fitted.max_tokens = max_tokens
        return fitted

    def forward(self, playbook: Playbook, reflections: Sequence[Reflection]) -> tuple[Delta, tuple[Rejected, ...]]:
        """Turn reflections into a delta, and say what was left out of it and why.

        A part that fails costs its own reviews only: they are among what was left out.

        Raises:
            RoleError: no reply could be read. LM errors and LimitReachedError pass through if every part failed.
        """
        delta, rejected, failures = Delta(), list[Rejected](), list[BaseException]()
        parts, at = 0, 0
        while at < len(reflections):
            fields = self._fields(playbook, reflections)
            reviews = fitting(map(_review, count(1), reflections[at:]), fields, self.max_prompt_tokens)
            part = reflections[at : at + len(reviews)]
            parts, at = parts + 1, at + len(reviews)
            try:
                operations, malformed = self._ask(playbook, part, {**fields, "reviews": "\n\n".join(reviews)})
            except (RoleError, LMError, LimitReachedError) as error:
                failures.append(error)
                rejected.append(Rejected(None, f"{len(part)} of {len(reflections)} reviews were not curated: {error}"))
                continue
            admitted, misfits = admit(playbook, operations, max_chars=self.max_bullet_chars)
            playbook, delta = apply(playbook, admitted), delta + admitted
            rejected += [*malformed, *misfits]
        if failures and len(failures) == parts:
            raise failures[-1]
        return delta, tuple(rejected)

    def _ask(
        self, playbook: Playbook, reflections: Sequence[Reflection], inputs: Mapping[str, str]
    ) -> tuple[list[Operation], list[Rejected]]:
        """Ask for operations; return them, and the items of the reply that are none."""

        def read(fields: Mapping[str, Any]) -> tuple[list[Operation], list[Rejected]]:
            operations: list[Operation] = []
            rejected: list[Rejected] = []
            items = [_object(item) for item in read_list(fields["operations"], "operations")]
            if items and not any(isinstance(item, Mapping) for item in items):
                raise UnreadableError(f"operations must be a JSON list of objects; got {_brief(items)}")
            for item in items:
                try:
                    operations.append(_operation(item, playbook, reflections))
                except ValueError as error:
                    rejected.append(Rejected(None, f"{error}; got {_brief(item)}"))
            return operations, rejected

        return ask(self.predict, inputs, ("operations",), read, self.lm, max_tokens=self.max_prompt_tokens)

    def _fields(self, playbook: Playbook, reflections: Sequence[Reflection]) -> dict[str, str]:
        """Return the input fields but the reviews.

        What changes least comes first: providers cache what prompts have in common at their beginning.
        """
        alike = _chosen(self.look_alikes.pairs(playbook), playbook)
        task = next((r.trajectory.task for r in reflections if r.trajectory is not None), {})
        several = len(task) > 1
        known = [bullet for bullet in playbook if bullet.helpful or bullet.harmful or len(bullet.sources) > 1]
        used, limit = playbook.tokens(), self.max_tokens
        left = "no limit" if limit is None else f"{max(0, limit - used)} of {limit} are left"
        return {
            "task": "\n\n".join(f"[{name}]\n{own}" if several else own for name, own in task.items()) or "(not known)",
            "playbook": playbook.render() or "(empty)",
            "sections": "; ".join(_sections(playbook)),
            "evidence": "\n".join(
                ["Votes, also of this batch:", *map(_standing, known)] if known else ["(no votes yet)"]
            ),
            "budget": f"The playbook costs each call {used} tokens; {left}.",
            "look_alikes": "\n".join(f"[{pair.older.id}] ~ [{pair.newer.id}]" for pair in alike) or "(none)",
        }


def _standing(bullet: Bullet) -> str:
    """Return the votes on a bullet, and how many examples it comes from."""
    examples = f", from {len(bullet.sources)} examples" if len(bullet.sources) > 1 else ""
    return f"{bullet.id}: helpful {bullet.helpful}, harmful {bullet.harmful}{examples}"


def _chosen(pairs: Sequence[Pair], playbook: Playbook) -> list[Pair]:
    """Return the closest pairs, then pairs of the newest bullets, so that pairs judged before do not hide new ones."""
    places = {bullet.id: at for at, bullet in enumerate(playbook)}
    newest = sorted(pairs[_CLOSEST:], key=lambda pair: -places[pair.newer.id])
    return [*pairs[:_CLOSEST], *newest[:_NEWEST]]


def _sections(playbook: Playbook) -> Sequence[str]:
    """Return the playbook's sections; if it uses default ones, all of these first."""
    own = {text.section_key(name): name for name in reversed(playbook.sections)}
    default = {text.section_key(name): name for name in DEFAULT_SECTIONS}
    if own and not (own.keys() & default.keys()) - {text.section_key(text.OTHERS)}:
        return playbook.sections
    return tuple(
        {**default, **{text.section_key(name): own[text.section_key(name)] for name in playbook.sections}}.values()
    )


def _review(number: int, reflection: Reflection) -> str:
    """Return one reflection with its case, as the Curator reads it."""
    trajectory = reflection.trajectory
    lines = [f"Review {number} ({_evidence(reflection)})"]
    if trajectory is not None:
        case, _ = without_shared(render_fields(trajectory.inputs), trajectory.shared)
        lines.append(f"Case: {text.cut_middle(case, _CASE_TOKENS)}")
        cited = dict.fromkeys(trajectory.cited, "cited") | dict(reflection.tags)
        lines += [f"Bullets: {', '.join(f'[{name}] {vote}' for name, vote in cited.items())}"] if cited else []
        lines += [baseline] if (baseline := render_baseline(trajectory)) else []
        lines.append(f"Answers: {_answers(reflection)}")
        solved = trajectory.success or reflection.verified  # then the last answer is the right one
        if not solved and (expected := render_expected(trajectory, _ANSWER_TOKENS)):
            lines.append(f"Expected: {expected}")
    if reflection.diagnosis:
        lines.append(f"Diagnosis: {reflection.diagnosis}")
    lines.append("Insights:")
    for insight in reflection.insights:
        scope = f" (for predictor {insight.predictor})" if insight.predictor else ""
        lines.append(f"- {insight.content}{scope}")
    return "\n".join(lines)


def _answers(reflection: Reflection) -> str:
    """Return what its attempts answered: retries one after the other, several successes beside each other."""
    if reflection.retries:
        tried = (*reflection.trajectories[:1], *reflection.retries)
        return " → ".join(render_answer(attempt, _ANSWER_TOKENS) for attempt in tried)
    distinct = list(dict.fromkeys(render_answer(attempt, _ANSWER_TOKENS) for attempt in reflection.trajectories))
    return " | ".join([*distinct[:_ANSWERS], *(["…"] if len(distinct) > _ANSWERS else [])])


def _evidence(reflection: Reflection) -> str:
    made = reflection.trajectories
    if made and made[0].success:
        return "success" if len(made) == 1 else f"{len(made)} successes; this is one of them"
    outcome = "failure" if made else "outcome unknown"
    if reflection.verified is None:
        return f"{outcome}; not retried"
    scores = [attempt.feedback.score for attempt in (*made[:1], *reflection.retries)]
    if reflection.verified:
        retried = "confirmed for this case by a retry"
    elif len(scores) > 1 and scores[-1] > scores[0]:  # of a graded metric
        retried = "confirmed in part for this case: the retry scored higher"
    else:
        retried = "unproven: each retry failed again"
    return f"{outcome}; {retried}" + (f", scores {' → '.join(f'{score:g}' for score in scores)}" if scores else "")


def _object(item: Any) -> Any:
    """Return the object that an item holds as JSON within a string; any other item as it is."""
    if isinstance(item, str) and item.lstrip().startswith("{"):
        try:
            found = read_list(item, "operation")
        except UnreadableError:
            return item
        return found[0] if len(found) == 1 else item
    return item


def _operation(item: Any, playbook: Playbook, reflections: Sequence[Reflection]) -> Operation:
    """Return the operation that one item of the reply asks for.

    Raises:
        ValueError: it asks for none; the message says why.
    """
    if isinstance(item, Broken):
        raise ValueError(item.reason)
    if not isinstance(item, Mapping):
        raise ValueError('expected an object like {"type": "ADD", …}')
    kind = str(_first(item, "type", "op", "operation", "action") or "").strip().upper()
    sources = _sources(item.get("reviews"), reflections)
    section = _section(item.get("section"))
    if kind == "ADD":
        return Add(section or "", _content(item, playbook), _predictor(item, reflections), sources)
    if kind == "UPDATE":
        return Update(_known(_first(item, "id", "bullet_id"), playbook), _content(item, playbook), section, sources)
    if kind == "MERGE":
        ids = _first(item, "ids", "bullet_ids")
        ids = re.split(r"[,;]", ids) if isinstance(ids, str) else ids
        if not isinstance(ids, (list, tuple)):
            raise ValueError("a MERGE needs a list of ids")
        return Merge(tuple(_known(name, playbook) for name in ids), _content(item, playbook), section, sources)
    if kind in ("DELETE", "REMOVE"):
        reason = item.get("reason")
        return Delete(
            _known(_first(item, "id", "bullet_id"), playbook),
            restored(reason)[:_REASON_CHARS] if isinstance(reason, str) else "",
        )
    raise ValueError(f"unknown type {kind[:40] or '(none)'}: expected ADD, UPDATE, MERGE or DELETE")


def _first(item: Mapping[str, Any], *names: str) -> Any:
    """Return the value under the first of the names that has one."""
    return next((item[name] for name in names if item.get(name) is not None), None)


def _section(name: Any) -> str | None:
    """Return a section as named; None for anything that is no name, such as a whole paragraph."""
    if not isinstance(name, str) or "�" in restored(name):
        return None
    cleaned = " ".join(name.strip("#[]() \t\n").split())
    return cleaned if 0 < len(cleaned) <= _SECTION_CHARS else None


def _content(item: Mapping[str, Any], playbook: Playbook) -> str:
    """Return the content, without the playbook's own format if the reply repeats that before it."""
    content = _first(item, "content", "new_content", "text")
    if not isinstance(content, str) or not content.strip():
        raise ValueError("the content is empty")
    try:
        content.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise ValueError("the content is not valid Unicode (a lone surrogate)") from error
    rest = _without_echo(restored(content).strip(), playbook)
    lines = [line for line in rest.splitlines() if line.strip()]
    if not any(re.search(r"\w", line) for line in lines) or all(line.startswith("##") for line in lines):
        raise ValueError("the content repeats the playbook's format and holds no lesson of its own")
    if any(_bullet_head(line, playbook) for line in lines):
        raise ValueError("the content repeats several bullets in the playbook's format; one lesson a bullet is taken")
    return rest


def _without_echo(content: str, playbook: Playbook) -> str:
    """Return `content` without a section header, an id, counters and a section that stand before the lesson."""
    known = {text.section_key(name) for name in (*playbook.sections, *DEFAULT_SECTIONS, "playbook")}
    first, _, rest = content.partition("\n")
    if first.startswith("##"):
        name, _, lesson = first.lstrip("# ").partition(" :: ")
        if lesson.strip():  # "## NAME :: lesson"
            content = f"{lesson.strip()}\n{rest}"
        elif text.section_key(name) in known or _bullet_head(rest.lstrip(), playbook):
            content = rest.lstrip()
    head = _bullet_head(content, playbook)
    content = content[head:]
    section = _SECTION_MARK.match(content)
    if section and ((head and section[1].isupper()) or text.section_key(section[1]) in known):
        content = content[section.end() :]
    return content.strip()


def _bullet_head(line: str, playbook: Playbook) -> int:
    """Return the length of the id (and counters) that `line` begins with; 0 if it does not."""
    head = _BULLET_HEAD.match(line)
    given = head and (head["counters"] or head["id"] in playbook or _GIVEN_ID.fullmatch(head["id"]))
    return head.end() if head and given else 0


def _known(name: Any, playbook: Playbook) -> str:
    bullet = playbook.get(name) if isinstance(name, str) else None
    if bullet is None:
        raise ValueError(f"no bullet {_brief(name)} in the playbook")
    return bullet.id


def _sources(reviews: Any, reflections: Sequence[Reflection]) -> tuple[str, ...]:
    """Return the examples behind the reviews that an operation names; all of them if it names none."""
    named = [int(number) for number in re.findall(r"(?<![\d.-])\d{1,6}(?!\d)", str(reviews), re.ASCII)]
    picked = [reflections[number - 1] for number in named if 0 < number <= len(reflections)]
    sources = (trajectory.source for r in (picked or reflections) for trajectory in r.trajectories)
    return tuple(dict.fromkeys(sources))


def _predictor(item: Mapping[str, Any], reflections: Sequence[Reflection]) -> str | None:
    """Return the predictor an ADD is for, if the program has several and one of that name."""
    names = {name for r in reflections if r.trajectory is not None for name in r.trajectory.task}
    name = item.get("predictor")
    name = name.strip("[]`'\" ") if isinstance(name, str) else None
    return name if name in names and len(names) > 1 else None


def _brief(item: Any) -> str:
    """Return an item of a reply as a reason quotes it: valid Unicode, 300 characters at most."""
    item = item.text if isinstance(item, Broken) else item
    try:
        shown = json.dumps(item, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # keys that are no text
        shown = repr(item)
    shown = restored(shown)
    return shown if len(shown) <= 300 else f"{shown[:297]}..."

"""A run as one page: how it went, what was learned when and from what, and the prompts before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lm import Usage
from ..pages import Chart, Grid, Line, render
from ..playbook import Bullet, Delta, Operation, Playbook, Tag, apply, counted, playbook_block
from .state import Record, Validation, most_often, troubles

if TYPE_CHECKING:
    from .results import Results

_DONE = {"add": "added", "update": "changed", "merge": "merged", "delete": "removed", "tag": "voted on"}
_COUNTS = ("calls", "cached_calls", "failed_calls", "retries", "prompt_tokens", "cached_tokens", "completion_tokens")


def page_of(results: Results) -> str:
    """Return the page of a run as HTML: one file, no request, light and dark."""
    return render(Path(__file__).with_name("page.html.jinja"), **_content(results))


def _content(results: Results) -> dict[str, Any]:
    seed, records = results.seed_playbook, _united(results.records)
    steps, born = _history(seed, records)
    prompts = {
        title: {name: _prompt(own, playbook, name) for name, own in results.about["prompts"].items()}
        for title, playbook in (("before", seed), ("after", results.playbook))
    }
    return {
        "title": f"What ACE learned: {results.about['program'].replace('->', '→')}",
        "label": "",
        "results": facts_of(results),
        "charts": _charts(results, records),
        "scores": _scores(records),
        "returned": results.playbook == results.learned_playbook,
        "cards": [_card(bullet, born.get(bullet.id, ["the start"])) for bullet in results.learned_playbook],
        "steps": steps,
        "failures": _failures(records),
        "usage": usage_grid(results.usage),
        "prompts": prompts,
        "facts": list(_facts(results.about)),
    }


def facts_of(results: Results) -> list[tuple[str, str]]:
    """Return what a reader wants to know first, by name."""
    used, size = sum(results.usage.values(), Usage()), counted(len(results.playbook), "bullet")
    facts = {
        "score before": _score(results.seed_score, f"on {counted(results.validated_on, 'row')}"),
        "score after": _score(results.best_score, f"step {results.best_step}"),
        "verdict": str(results.verdict or ""),
        "failures": str(results.repairs) if results.repairs.failures else "",
        "stopped": results.stopped,
        "playbook": f"{size}, about {results.playbook.tokens():,} tokens in a prompt",
        "rollouts": f"{results.rollouts:,}",
        "LM calls": f"{used.calls:,}",
        "dollars": "unknown" if used.dollars is None else f"${used.dollars:.4f}",
    }
    return [(name, value) for name, value in facts.items() if value]


def _score(mean: float | None, where: str) -> str:
    return "" if mean is None else f"{mean:.3f} ({where})"


def _united(records: Sequence[Record]) -> list[Record]:
    """Return the records; where a validation goes on in parts, each holds all rows so far."""
    united: list[Record] = []
    for record in records:
        last = united[-1] if united else record
        if record.validation and record.baseline and last.validation and last.baseline and last.step == record.step:
            both = (last.validation, record.validation), (last.baseline, record.baseline)
            validation, baseline = (Validation(first.scores + second.scores) for first, second in both)
            united.append(replace(record, validation=validation, baseline=baseline))
        else:
            united.append(record)
    return united


def _prompt(own: str, playbook: Playbook, name: str) -> str:
    return "\n\n".join(part for part in (own, playbook_block(playbook, name)) if part)


def _card(bullet: Bullet, steps: Sequence[str]) -> dict[str, Any]:
    """Return a bullet for readers; `steps` are those that wrote it."""
    first, *later = steps
    examples = f"{counted(len(bullet.sources), 'example')}: {', '.join(bullet.sources)}"
    facts = {
        "section": bullet.section,
        "votes": f"{bullet.helpful} helpful, {bullet.harmful} harmful",
        "tokens": f"{bullet.tokens} in each prompt",
        "written": first,
        "changed": ", ".join(dict.fromkeys(later)),
        "learned from": examples if bullet.sources else "",
        "for": bullet.predictor or "",
    }
    return {
        "id": bullet.id,
        "content": bullet.content,
        "facts": [(key, value) for key, value in facts.items() if value],
    }


# --- the history


def _history(seed: Playbook, records: Sequence[Record]) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Return each step for readers, and by bullet the steps that wrote it."""
    steps: list[dict[str, Any]] = []
    born: dict[str, list[str]] = {}
    playbook = seed
    for record in records:
        changes = []
        for operation in record.delta.operations:
            before, playbook = playbook, apply(playbook, Delta((operation,)))
            if operation.op != "tag":
                change, written = _change(operation, before, playbook)
                changes.append(change)
                for name in written:
                    born.setdefault(name, [] if name not in seed else ["the start"]).append(f"step {record.step}")
        steps.append({"title": _title(record), "changes": changes, "notes": list(_notes(record))})
    return steps, born


def _change(operation: Operation, before: Playbook, after: Playbook) -> tuple[dict[str, Any], list[str]]:
    """Return what an operation removed and added, line by line, and the bullets it wrote."""
    touched = [*operation.ids, *([after.bullets[-1].id] if len(after) > len(before) else [])]
    gone = [b for name in touched if (b := before.get(name)) is not None and after.get(name) != b]
    new = [b for name in touched if (b := after.get(name)) is not None and before.get(name) != b]
    lines = [("removed", line) for bullet in gone for line in bullet.content.split("\n")]
    lines += [("added", line) for bullet in new for line in bullet.content.split("\n")]
    title = f"{operation.op} {', '.join(touched)}{f' ({new[0].section})' if new else ''}"
    title = ": ".join(filter(None, (title, getattr(operation, "reason", ""))))
    return {"title": title, "lines": lines}, [bullet.id for bullet in new]


def _votes(record: Record) -> list[Tag]:
    """Return the votes of a step, those of all its examples together for each bullet."""
    votes: dict[str, Tag] = {}
    for tag in record.delta.operations:
        if isinstance(tag, Tag):
            votes[tag.id] = votes[tag.id].united(tag) if tag.id in votes else tag
    return list(votes.values())


def _title(record: Record) -> str:
    if record.validation is not None:
        start = f" (start: {record.baseline.mean:.3f})" if record.baseline else ""
        rows = counted(len(record.validation.scores), "row")
        return f"Validation after step {record.step}: {record.validation.mean:.3f}{start} on {rows}"
    if record.again:
        return f"{counted(len(record.again), 'failure')} of the batches again, with what was learned"
    kinds = Counter(operation.op for operation in record.delta.operations)
    kinds.update(tag=len(_votes(record)) - kinds["tag"])  # bullets, not votes
    parts = [f"score {sum(record.scores) / len(record.scores):.2f} before it was learned from"] if record.scores else []
    parts += [f"{times} {_DONE.get(kind, kind)}" for kind, times in kinds.items() if times]
    parts += [f"{len(record.rejected)} rejected"] if record.rejected else []
    parts += [f"{len(record.failures)} failed"] if record.failures else []
    return f"Step {record.step}: {', '.join(parts) or 'nothing'}"


def _notes(record: Record) -> Iterator[str]:
    for position, score in record.again:
        yield f"Example {position}: {'nothing is known' if score is None else f'{score:.2f}'}."
    if record.batch:
        yield f"Epoch {record.epoch}, examples {', '.join(map(str, record.batch))}."
    if votes := _votes(record):
        yield f"Votes: {'; '.join(f'{tag.id} {tag.helpful} helpful, {tag.harmful} harmful' for tag in votes)}."
    for item in record.rejected:
        yield ": ".join(["Rejected", item["reason"], *map(str, (item["operation"] or {}).values())])
    for failed in record.failures:
        yield f"Failed ({failed.kind}), example {failed.rollout}: {failed.message:.500}"
    for reflection in record.reflections:
        named = ", ".join(reflection["examples"])
        if "error" in reflection:
            yield f"Reflection on {named} failed: {reflection['error']:.500}"
        elif reflection["verified"] is False:
            yield f"Example {named} stayed a failure: its retries failed."
    if record.curation:
        yield f"The curation failed: {record.curation:.500}"


# --- numbers


def _charts(results: Results, records: Sequence[Record]) -> list[Chart]:
    """Return the scores over rollouts; over dollars as well, where they are known."""
    charts = [_chart("Score by rollouts", "rollouts so far", records, [record.rollouts for record in records])]
    dollars = sum(results.usage.values(), Usage()).dollars
    tokens = [_tokens(record) for record in records]
    if dollars and sum(tokens):  # records hold tokens: dollars are shared out by them
        spent = [dollars * each / sum(tokens) for each in tokens]
        charts.append(_chart("Score by dollars", "dollars so far", records, spent))
    return charts


def _chart(title: str, x: str, records: Sequence[Record], spent: Sequence[float]) -> Chart:
    so_far = list(zip(accumulate(spent), records, strict=True))
    return Chart(
        title,
        x,
        "Score",
        [
            Line("batch, before it was learned from", [(at, _mean(r.scores)) for at, r in so_far if r.scores], "first"),
            Line("validation", [(at, r.validation.mean) for at, r in so_far if r.validation], "second"),
            Line("start, on the same rows", [(at, r.baseline.mean) for at, r in so_far if r.baseline], "third"),
        ],
        money=x.startswith("dollars"),
    )


def _scores(records: Sequence[Record]) -> Grid:
    rows = [["step", "batch", "validation", "start", "rollouts", "tokens"]]
    for record in records:
        means = [_mean(record.scores) if record.scores else None]
        means += [found.mean if found else None for found in (record.validation, record.baseline)]
        shown = ["–" if mean is None else f"{mean:.3f}" for mean in means]
        rows.append([str(record.step), *shown, str(record.rollouts), f"{_tokens(record):,}"])
    return rows


def _failures(records: Sequence[Record]) -> Grid:
    found = sorted(troubles(records).items(), key=lambda item: -len(item[1]))
    rows = [[kind, str(len(reasons)), most_often(reasons)[0][:500]] for kind, reasons in found]
    return [["kind", "times", "most often"], *rows]


def usage_grid(usage: Mapping[str, Usage]) -> Grid:
    """Return what each role used, and all of them together, as a table."""
    rows = [["role", *(name.replace("_", " ") for name in _COUNTS), "dollars", "seconds"]]
    for role, used in [*usage.items(), ("all", sum(usage.values(), Usage()))]:
        dollars = "unknown" if used.dollars is None else f"${used.dollars:.4f}"
        rows.append([role, *(f"{getattr(used, name):,}" for name in _COUNTS), dollars, f"{used.seconds:,.1f}"])
    return rows


def _facts(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for group in ("settings", "sizes", "versions"):
        for name, value in sorted(about.get(group, {}).items()):
            if value is not None:
                yield name, str(value)


def _tokens(record: Record) -> int:
    return sum(used.get("prompt_tokens", 0) + used.get("completion_tokens", 0) for used in record.usage.values())


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)

"""The share of the prompts that a provider's prompt cache serves: `python -m comparisons.performance.cache`.

Whole compiles of the quickstart's task, then its held-out messages through the compiled program. Each LM call is kept
with the moments it began and ended, and the run is gone through again beside a simulated prompt cache, one a model: it
holds every earlier prompt, for ever, and serves what a new one shares with any of them from its start. Of each prompt
the part that grows is looked at: the system prompt; the curator's and the playbook in its user message.

* *exact*: the longest common prefix, whatever its length. *blocks*: as OpenAI's cache has it, from 1,024 tokens on and
  in whole blocks of 128.
* *one after the other*: one thread. With threads a prompt serves others as soon as its call has *begun*, or only when
  it has *ended*: a provider's cache lies between, it holds a prompt once it is read.
* A token is one of `dspy_ace.testing.backend` with the white space before it, so that no difference goes unseen.

Beside it stand the same task prompts with each version of the playbook in the paper's text format instead: by section,
and with the counters that change with each vote, as public implementations show it.
"""

from __future__ import annotations

import argparse
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from dspy_ace import ACE, Curator, Playbook
from dspy_ace.playbook import PLAYBOOK_HEADER, Add, Delta
from dspy_ace.program.instruct import NOTE_HEADER
from dspy_ace.testing import OfflineLM

from ..ratios import FIXED, PER_COMPLETION_TOKEN, PER_PROMPT_TOKEN
from ..tasks import Task, load_task
from .lessons import lessons, playbook_of
from .prefixes import MINIMUM, Held, Request, Share, served, total
from .settings import NOISE
from .timing import machine

BEHIND_PLAYBOOK = "\n\n[[ ## sections ## ]]"  # what follows the playbook in the curator's prompt
CASES: Mapping[str, dict[str, Any]] = {
    "the default": {},
    "5 epochs": {"epochs": 5},
    "5 epochs, ADD alone": {"epochs": 5, "adds_only": True},  # as the paper's code has it
    "5 epochs, a noisy model": {"epochs": 5, "noise": NOISE},
    "5 epochs from 200 bullets": {"epochs": 5, "bullets": 200},
    "batches of one from 200 bullets": {"batch_size": 1, "bullets": 200},
}
AIMS = {"task": 0.90, "curator": 0.80, "inference": 0.98}
TITLES = {
    "first": "of these, the first with a playbook",
    "retries": "of these, retries",
    "cold": "inference, cold cache",
}


class Requests:
    """The LM calls of a run, as they come from any thread."""

    def __init__(self) -> None:
        self.made: list[Request] = []
        self.steps = 0
        self._moment = 0
        self._lock = threading.Lock()

    def begin(self, role: str, messages: Sequence[tuple[str, str]]) -> int:
        """Note a call; returns its number."""
        part, rest = parted(role, messages)
        with self._lock:
            self.made.append(Request(role, part, rest, self._moment, version=self.steps))
            self._moment += 1
            return len(self.made) - 1

    def end(self, number: int) -> None:
        """Note that a call has ended."""
        with self._lock:
            self.made[number] = replace(self.made[number], ended=self._moment)
            self._moment += 1


def parted(role: str, messages: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """A prompt in two: up to the end of the system prompt, the curator's up to the end of the playbook; the rest."""
    (first, system), *others = messages
    part, rest = f"<{first}>\n{system}", "".join(f"\n<{name}>\n{content}" for name, content in others)
    if role == "curator":
        playbook, behind, others_too = rest.partition(BEHIND_PLAYBOOK)
        if not behind:
            raise ValueError(f"expected {BEHIND_PLAYBOOK.strip()!r} behind the playbook in the curator's prompt")
        part, rest = part + playbook, behind + others_too
    return part, rest


def overheard(role: str, requests: Requests, scale: float, noise: Mapping[str, Any]) -> OfflineLM:
    """The offline model with a provider's latency, scaled; its requests are kept."""
    lm = OfflineLM(
        latency=FIXED * scale,
        latency_per_prompt_token=PER_PROMPT_TOKEN * scale,
        latency_per_completion_token=PER_COMPLETION_TOKEN * scale,
        prefix_cache=True,
        **noise,
    )
    answer = lm.backend.serve

    def serve(request: Any, *settings: Any) -> Any:
        number = requests.begin(role, request.messages)
        try:
            return answer(request, *settings)
        finally:
            requests.end(number)

    lm.backend.serve = serve  # type: ignore[method-assign, assignment]  # copies of the model are the same machine
    return lm


def rewritten(request: Request, versions: Sequence[Playbook], *, counters: bool) -> Request:
    """A request of the task with the playbook it met in the paper's text format instead.

    Most meet the playbook of the step before; a validation meets that of the step it closes. Raises ValueError if a
    request shows a playbook that is none of the versions.
    """
    if PLAYBOOK_HEADER.split("\n", 1)[0] not in request.part:
        return request
    at = request.version
    for playbook in (*versions[at:], *reversed(versions[:at])):
        shown = _indented(playbook.render())
        if shown and re.search(rf"\n{re.escape(shown)}(?:\n\s*\n|\Z)", request.part):
            instead = _indented(playbook.to_text(counters=counters))
            return replace(request, part=request.part.replace(shown, instead, 1))
    raise ValueError(f"the prompt of call {request.began} shows a playbook that no step made: {request.part[-300:]!r}")


def _indented(text: str) -> str:
    """`text` as instructions stand in DSPy's system message."""
    return "\n".join(" " * 8 + line for line in text.splitlines())


class AddsOnly(Curator):
    """A curator whose ADDs alone count."""

    def forward(self, playbook: Playbook, reflections: Any) -> Any:
        """Curate a group."""
        delta, rejected = super().forward(playbook, reflections)
        return Delta(tuple(operation for operation in delta.operations if isinstance(operation, Add))), rejected


@dataclass(frozen=True)
class Run:
    """A compile and the held-out messages through what came out.

    Args:
        requests: in the order they began.
        versions: the playbook before the first step and after each.
        operations: how many of each kind were applied.
    """

    requests: tuple[Request, ...]
    versions: tuple[Playbook, ...]
    operations: Mapping[str, int]

    def of(self, role: str) -> list[Request]:
        """The requests of a role."""
        return [request for request in self.requests if request.role == role]

    def in_the_papers_format(self, *, counters: bool) -> list[Request]:
        """The requests of the task as they would be with the playbook in the paper's text format."""
        return [rewritten(request, self.versions, counters=counters) for request in self.of("task")]


def run(
    task: Task,
    *,
    threads: int,
    scale: float = 0.0,
    bullets: int = 0,
    noise: Mapping[str, float] | None = None,
    adds_only: bool = False,
    **settings: Any,
) -> Run:
    """Compile, then answer the held-out messages.

    Args:
        task: program, metric and sets.
        threads: of both.
        scale: latencies are a provider's times this.
        bullets: of a playbook to start from, lessons in made-up words.
        noise: knobs of the offline model.
        adds_only: whether the curator's other operations are left out.
        **settings: of `ACE`.
    """
    requests, seed = Requests(), playbook_of(lessons(), bullets)
    versions = [seed]

    def on_step(record: Any, playbook: Playbook) -> None:
        if record.batch:
            versions.append(playbook)
            requests.steps += 1

    roles = ("task", "reflector", "curator", "inference")
    lms = {role: overheard(role, requests, scale, noise or {}) for role in roles}
    optimizer = ACE(
        task.metric, reflection_lm=lms["reflector"], playbook=seed, on_step=on_step,
        curate=AddsOnly(lms["curator"]) if adds_only else Curator(lms["curator"]), num_threads=threads, progress=False,
        max_playbook_tokens=20_000 if bullets else 10_000, **settings,
    )  # fmt: skip
    with dspy.context(lm=lms["task"]):
        program = optimizer.compile(task.program, list(task.train), valset=list(task.val))
    with dspy.context(lm=lms["inference"]):
        dspy.Evaluate(devset=list(task.test), metric=task.metric, num_threads=threads, display_progress=False)(program)
    operations = Counter(
        operation.op for record in program.detailed_results.records for operation in record.delta.operations
    )
    return Run(tuple(requests.made), tuple(versions), operations)


def shares(made: Run, *, begun: bool = False) -> dict[str, Share]:
    """Return what is served, by role and part of a role; inference goes on with the task's cache, `cold` without it."""
    held, found = Held(), {}
    for role in ("task", "curator", "reflector", "inference"):
        each = served(made.of(role), held if role in ("task", "inference") else Held(), begun=begun)
        found[role] = total(each)
        if role == "task":
            found |= parts(made.of(role), each)
    return {**found, "cold": total(served(made.of("inference"), Held(), begun=begun))}


def parts(requests: Sequence[Request], each: Sequence[Share]) -> dict[str, Share]:
    """Of the task's: the first prompt of each playbook (not a retry's), and the retries."""
    note, header = (text.split("\n", 1)[0] for text in (NOTE_HEADER, PLAYBOOK_HEADER))
    seen: set[str] = set()
    first, retries = [], []
    for request, share in zip(requests, each, strict=True):
        if note in request.part:
            retries.append(share)
        elif header in request.part and request.part not in seen:
            first.append(share)
        seen.add(request.part)
    return {"first": total(first), "retries": total(retries)}


def rows(case: str, threads: int, scale: float) -> Iterator[str]:
    """The lines of the table for one case: compiled with one thread, and with several."""
    alone, crowd = (
        run(load_task("quickstart"), threads=count, scale=scale * (count > 1), **CASES[case]) for count in (1, threads)
    )
    one, ended, begun = shares(alone), shares(crowd), shares(crowd, begun=True)
    for role, share in one.items():
        title = TITLES.get(role, role)
        yield f"| {case} | {title} | {_cells(share, AIMS.get(role))} | {_threaded(begun[role], ended[role])} |"
    for counters in (False, True):
        name = "task, by section" + " and with counters" * counters
        first, *others = (_straightforward(made, counters) for made in (alone, crowd))
        for part, title in (("task", name), ("first", TITLES["first"])):
            yield f"| {case} | {title} | {_cells(first[part])} | – | {_ratio(others[0][part])} | |"


def _straightforward(made: Run, counters: bool) -> dict[str, Share]:
    requests = made.in_the_papers_format(counters=counters)
    each = served(requests, Held())
    return {"task": total(each), **parts(requests, each)}


def _cells(share: Share, aim: float | None = None) -> str:
    missed = aim is not None and share.exact < aim * share.tokens
    return " | ".join((
        f"{share.calls:,}",
        f"{share.tokens / max(1, share.calls):,.0f}",
        _ratio(share),
        f"{aim:.2f}{' ✗' if missed else ''}" if aim is not None else "",
        _ratio(share, "blocks"),
        f"{share.short:,}",
        _ratio(share, "long_blocks", "long_tokens"),
    ))  # fmt: skip


def _threaded(begun: Share, ended: Share) -> str:
    return f"{_ratio(begun)} | {_ratio(ended)} | {_ratio(ended, 'blocks')}"


def _ratio(share: Share, part: str = "exact", whole: str = "tokens") -> str:
    tokens = getattr(share, whole)
    return f"{getattr(share, part) / tokens:.3f}" if tokens else "–"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=int, default=16, help="of the second compile of each (default: 16)")
    parser.add_argument("--scale", type=float, default=0.02, help="of a provider's latency (default: 0.02)")
    args = parser.parse_args(argv)
    dspy.disable_logging()
    print(f"{machine()}; with {args.threads} threads latencies × {args.scale:g}\n")
    columns = (
        "run", "prompts of", "calls", "tokens looked at, each", "exact", "aim", "blocks",
        f"calls below {MINIMUM:,} tokens", "blocks without these",
        f"{args.threads} threads: exact, begun", "exact, ended", "blocks, ended",
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for case in args.cases:
        for row in rows(case, args.threads, args.scale):
            print(row, flush=True)


if __name__ == "__main__":
    main()

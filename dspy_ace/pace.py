"""When a run looks at the valset, and when it ends: pure functions of what was done."""

from __future__ import annotations

from .history import Record, State
from .schedule import Batch


def time_to_validate(state: State, record: Record, valset: int, every: int | None) -> bool:
    """Whether the playbook after `record` is to be validated now: it reads differently, and it is time.

    Args:
        state: before `record`.
        record: the step just made.
        valset: examples in the valset.
        every: steps between two looks; None: it is time when as many examples were rolled out for learning as
            the valset holds, so that choosing never costs more than learning.
    """
    if not (record.learned or state.unvalidated):
        return False
    since = [record]
    for earlier in reversed(state.records):
        if earlier.validation is not None:
            break
        since.append(earlier)
    if every is not None:
        return len(since) >= every
    return sum(len(each.batch) for each in since) >= valset


def reason_to_stop(state: State, batch: Batch, perfect_score: float, patience: int | None) -> str | None:
    """Why the run ends before `batch`; None: it goes on."""
    validated = [record.validation.mean for record in state.records if record.validation is not None]
    learned = any(record.learned for record in state.records)
    if validated and learned and validated[-1] >= perfect_score:
        return "a perfect validation score"
    waited = patience or len(validated)
    if len(validated) > waited and max(validated[-waited:]) <= max(validated[:-waited]):
        return f"no better validation score in the last {waited}"
    epoch = [record for record in state.records if record.epoch == batch.epoch - 1 and record.batch]
    if not epoch or state.step != epoch[-1].step:
        return None
    if any(r.learned or r.rejected or min(r.scores) < perfect_score for r in epoch):
        return None
    return "nothing left to learn: an epoch without a failure or a new lesson"

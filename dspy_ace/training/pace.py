"""When a run looks at the valset, and when it ends: pure functions of what was done."""

from __future__ import annotations

import itertools

from .history import State
from .schedule import Batch


def time_to_validate(state: State, valset: int, every: int | None, left: int) -> bool:
    """Whether the latest playbook is to be validated now: it reads differently, and it is time.

    Args:
        state: after the last step.
        valset: examples in the valset.
        every: steps between two looks; None: it is time when as many examples were rolled out for learning as
            the valset holds, and as many are to come: the last playbook is looked at anyway.
        left: examples to come.
    """
    if not state.unvalidated:
        return False
    since = list(itertools.takewhile(lambda record: record.validation is None, reversed(state.records)))
    if every is not None:
        return len(since) >= every
    return left >= valset <= sum(len(each.batch) for each in since)


def reason_to_stop(
    state: State, batch: Batch, perfect_score: float, patience: int | None, judged: bool = True
) -> str | None:
    """Why the run ends before `batch`; None: it goes on.

    Args:
        state: after the last step.
        batch: the next one.
        perfect_score: the score of a success.
        patience: validations without a better score that end the run; None: none do.
        judged: whether a metric tells failures: an epoch without one leaves nothing to learn then. Else a lesson
            may be hidden in any rollout, and an epoch must bring none.
    """
    looks = [record.validation for record in state.records if record.validation is not None]
    validated = [look.mean for look in looks]
    learned = any(record.learned for record in state.records)
    if looks and learned and looks[-1].perfect(perfect_score):
        return "a perfect validation score"
    waited = patience or len(validated)
    if len(validated) > waited and max(validated[-waited:]) <= max(validated[:-waited]):
        return f"no better validation score in the last {waited}"
    epoch = [record for record in state.records if record.epoch == batch.epoch - 1 and record.batch]
    if not epoch or state.step != epoch[-1].step:
        return None
    failed = any(min(record.scores) < perfect_score for record in epoch)
    if failed or (not judged and any(record.learned or record.rejected for record in epoch)):
        return None
    return f"nothing left to learn: an epoch without a failure{'' if judged else ' or a new lesson'}"


def a_look_may_end(state: State, patience: int | None) -> tuple[bool, bool]:
    """Whether the next validation may end the run: by being perfect, and whatever it shows.

    Args:
        state: before it.
        patience: see `reason_to_stop`.
    """
    looks = sum(record.validation is not None for record in state.records)
    return any(record.learned for record in state.records), patience is not None and looks >= patience

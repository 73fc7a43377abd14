"""A delta made for one version of a playbook, carried over to a later one by plain code."""

from __future__ import annotations

from dataclasses import replace

from ..errors import DeltaError
from .delta import Add, Delete, Delta, Merge, Operation, Rejected, Update, admit, apply, check_operation, rejected_as
from .playbook import Playbook


def rebase(delta: Delta, base: Playbook, now: Playbook) -> tuple[Delta, tuple[Rejected, ...]]:
    """The operations of `delta` that still hold on `now`, and the others with their reasons.

    Bullets that the delta itself adds get new numbers, and what it does with them follows. An update, merge or delete
    of a bullet whose text has changed since `base` is left out: its author has not seen that text. What touches a
    bullet that is gone is left out by `admit`.

    Args:
        delta: made for `base`.
        base: an earlier state of the same playbook.
        now: the state it is to be applied to.
    """
    if base == now:
        return admit(now, delta.operations)
    names: dict[str, str] = {}  # ids that the delta's own bullets had on `base` → those they get now
    good: list[Operation] = []
    rejected: list[Rejected] = []
    before, after = base, now
    for operation in delta.operations:
        try:
            check_operation(operation)
            moved = _renamed(operation, names)
            _check_fresh(moved, base, now)
            step, misfits = admit(after, (moved,))
            rejected += [Rejected(operation, misfit.reason) for misfit in misfits]
        except DeltaError as error:
            step = Delta()
            rejected.append(rejected_as(operation, str(error)))
        made, _ = admit(before, (operation,))
        before, after = apply(before, made), apply(after, step)
        good += step.operations
        if isinstance(operation, Add) and made.operations:
            names[before.bullets[-1].id] = after.bullets[-1].id if step.operations else "(left out)"
    return Delta(tuple(good)), tuple(rejected)


def _renamed(operation: Operation, names: dict[str, str]) -> Operation:
    if isinstance(operation, Add):
        return operation
    if isinstance(operation, Merge):
        return replace(operation, ids=tuple(names.get(name, name) for name in operation.ids))
    return replace(operation, id=names.get(operation.id, operation.id))


def _check_fresh(operation: Operation, base: Playbook, now: Playbook) -> None:
    """Raises DeltaError if the operation edits a bullet whose text is another one now than it was on `base`."""
    if not isinstance(operation, (Update, Merge, Delete)):
        return
    for name in operation.ids if isinstance(operation, Merge) else (operation.id,):
        old, new = base.get(name), now.get(name)
        if old and new and (old.content, old.section) != (new.content, new.section):
            raise DeltaError(f"{operation.op} {name}: the bullet was changed since this was made")

"""Contract tests for custom roles, to call from your own test suite.

    from dspy_ace.testing import OfflineLM
    from dspy_ace.testing.contracts import check_reflect

    def test_my_reflector():
        with dspy.context(lm=OfflineLM()):
            check_reflect(my_reflect)

Each test calls the role on a few made-up examples, in two threads as well. It raises AssertionError that says what was
expected and what came. A role that asks an LM gets the LM of the context.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import dspy

from ..playbook import Delta, Playbook, Rejected, admit, apply
from ..program import Call, Feedback, Trajectory
from ..roles import Curate, Insight, Refine, Reflect, Reflection

PLAYBOOK = Playbook.from_text(
    "## STRATEGIES & INSIGHTS\n"
    "[str-00001] helpful=2 harmful=0 :: Read the whole message before choosing a desk.\n"
    "[str-00002] helpful=0 harmful=4 :: Every message about money goes to the front desk.\n"
    "## OTHERS\n"
    "[misc-00003] helpful=0 harmful=0 :: read the whole message, before choosing a desk"
)


def trajectories() -> list[Trajectory]:
    """Return a success, a failure and a retry of the failure, on made-up messages."""

    def made(message: str, answered: str, right: str, source: str) -> Trajectory:
        call = Call("route", {"message": message}, {"desk": answered})
        return Trajectory(
            example=dspy.Example(message=message, desk=right).with_inputs("message"),
            prediction=dspy.Prediction(desk=answered),
            trace=(call,),
            feedback=Feedback(float(answered == right), "" if answered == right else f"The right desk is {right}."),
            source=source,
            task={"route": "Route the message to a desk."},
            shown=("str-00001", "str-00002", "misc-00003"),
            cited=("str-00002",),
            success=answered == right,
        )

    failure = made("I want a refund for the broken kettle.", "front", "claims", "1")
    earlier = Reflection((Insight("Refunds for broken goods go to claims."),), diagnosis="No rule for refunds.")
    return [made("The lamp is too bright.", "front", "front", "0"), failure, replace(failure, attempt=earlier)]


def check_reflect(reflect: Reflect) -> None:
    """Assert that `reflect` keeps the contract of `dspy_ace.roles.Reflect`.

    It returns a `Reflection` of `Insight`s with tags for bullets that were shown, changes nothing, and returns the same
    for the same arguments in any thread. So does `on_successes`, if it has one, about successes together.
    """
    for trajectory in trajectories():
        before = repr(trajectory)
        reflection = _same_in_threads(reflect, PLAYBOOK, trajectory)
        _expect(isinstance(reflection, Reflection), "a Reflection", reflection)
        _expect(all(isinstance(insight, Insight) for insight in reflection.insights), "Insights", reflection.insights)
        votes = {PLAYBOOK.get(name) for name in reflection.tags}
        _expect(None not in votes, f"tags for bullets that were shown ({', '.join(trajectory.shown)})", reflection.tags)
        _expect(repr(trajectory) == before, "the trajectory unchanged", trajectory)
    together = getattr(reflect, "on_successes", None)
    if together is not None:
        first = trajectories()[0]
        successes = (first, replace(first, source="3"))
        before = repr(successes)
        for reflection in _same_in_threads(together, PLAYBOOK, successes):
            _expect(isinstance(reflection, Reflection), "Reflections", reflection)
            named = {trajectory.source for trajectory in reflection.trajectories}
            _expect(bool(named) and named <= {"0", "3"}, "reflections that name successes they rest on", named)
        _expect(repr(successes) == before, "the successes unchanged", successes)


def check_curate(curate: Curate) -> None:
    """Assert that `curate` keeps the contract of `dspy_ace.roles.Curate`.

    It returns a `Delta` that fits the playbook, with the sources of the reviews, and the rejected operations.
    """
    first, second, _ = trajectories()
    reviews = (
        Reflection((Insight("Refunds for broken goods go to claims, not to the front desk."),), trajectory=second),
        Reflection((Insight("Remarks without a wish go to the front desk."),), trajectory=first),
    )
    before = repr(reviews)
    delta, rejected = _same_in_threads(curate, PLAYBOOK, reviews)
    _expect(isinstance(delta, Delta), "a Delta first", delta)
    _expect(all(isinstance(item, Rejected) for item in rejected), "Rejected items second", rejected)
    misfits = admit(PLAYBOOK, delta.operations)[1]
    _expect(not misfits, "operations that fit the playbook", misfits)
    sources = {source for operation in delta.operations for source in getattr(operation, "sources", ())}
    _expect(sources <= {"0", "1"}, "sources among those of the reviews", sources)
    _expect(repr(reviews) == before, "the reflections unchanged", reviews)


def check_refine(refine: Refine) -> None:
    """Assert that `refine` keeps the contract of `dspy_ace.roles.Refine`.

    It returns a `Delta` that fits the playbook, and an empty one for the refined playbook.
    """
    delta = _same_in_threads(refine, PLAYBOOK)
    _expect(isinstance(delta, Delta), "a Delta", delta)
    misfits = admit(PLAYBOOK, delta.operations)[1]
    _expect(not misfits, "operations that fit the playbook", misfits)
    again = refine(apply(PLAYBOOK, delta))
    _expect(not len(again), "nothing left to do on the refined playbook", again)
    _expect(not len(refine(Playbook())), "nothing to do on an empty playbook", refine(Playbook()))


def _same_in_threads(role: Any, *arguments: Any) -> Any:
    """Return the role's result, if it is the same here and in two threads at once."""
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(copy_context().run, role, *arguments) for _ in range(2)]
        results = [role(*arguments), *(future.result() for future in futures)]
    _expect(results[0] == results[1] == results[2], "the same result for the same arguments, in any thread", results)
    return results[0]


def _expect(kept: bool, wanted: str, came: Any) -> None:
    if not kept:
        raise AssertionError(f"expected {wanted}; got {came!r:.300}")

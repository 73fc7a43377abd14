"""The rows of a comparison: for each method its mean test score, how sure that is, and its mean costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # at run time numpy and scipy are imported on first use: `import dspy_ace` stays fast
    import numpy as np
    from numpy.typing import NDArray

    Table: TypeAlias = NDArray[np.float64]

STUDENT = "student"
RESAMPLES = 5_000

Interval: TypeAlias = tuple[float, float, float]
"""A mean, or a difference of two, with its 95 % interval: (value, low, high), in units of the metric."""


class Intervals:
    """The intervals of a comparison, by a bootstrap over examples and seeds (`scipy.stats.bootstrap`).

    A run of an optimizer is one draw, and so is a test example. Each resample draws both anew (the crossed bootstrap
    of Owen, 2007, which errs on the wide side). Differences are paired by example: both methods get the same draw of
    examples. Their seeds are drawn apart, because runs of two methods have no pairing.

    Args:
        scores: by method an array of shape (seeds, examples) of finite numbers. The examples are the same and in
            the same order for all; the number of seeds may differ.
        resamples: how many are drawn. The same scores always give the same intervals.

    Raises:
        ValueError: no scores, another number of examples, or a score that is not finite.
    """

    def __init__(self, scores: Mapping[str, Any], resamples: int = RESAMPLES) -> None:
        import numpy as np  # noqa: PLC0415 - on first use only

        self.scores: dict[str, Table] = {name: np.atleast_2d(np.asarray(s, dtype=float)) for name, s in scores.items()}
        sizes = {table.shape[1] for table in self.scores.values()}
        if len(sizes) > 1 or 0 in sizes or any(not len(table) for table in self.scores.values()):
            raise ValueError(f"expected the same number of examples, one or more, for every method; got {sizes}")
        if not all(np.isfinite(table).all() for table in self.scores.values()):
            raise ValueError("expected finite scores; got NaN or an infinity")
        self.resamples = resamples
        self.scale = scale_of([float(score) for table in self.scores.values() for score in table.flat])

    def score(self, name: str) -> Interval:
        """Mean score of a method."""
        return self._interval([(1, self.scores[name])], self.scale)

    def difference(self, name: str, other: str) -> Interval:
        """Mean score of `name` minus that of `other`."""
        width = self.scale[1] - self.scale[0]
        return self._interval([(1, self.scores[name]), (-1, self.scores[other])], (-width, width))

    def _interval(self, tables: Sequence[tuple[int, Table]], bounds: tuple[float, float]) -> Interval:
        """The sum of the means of signed tables, with an interval that stays within `bounds`."""
        mean = sum(sign * float(table.mean()) for sign, table in tables)
        examples = tables[0][1].shape[1]
        factor = math.sqrt(examples / max(1, examples - 1))  # as `_spread` has it for seeds
        low, high = (mean + factor * (end - mean) for end in self._resampled(tables, mean))
        if high - low <= 1e-12:
            # all agree, which a bootstrap takes for certainty: the rule of three, 3/n of the scale's width
            unseen = (self.scale[1] - self.scale[0]) * min(1.0, 3 / examples)
            low, high = mean - unseen, mean + unseen
        return mean, max(low, bounds[0]), min(high, bounds[1])

    def _resampled(self, tables: Sequence[tuple[int, Table]], mean: float) -> tuple[float, float]:
        """The middle 95 % of the resamples. Examples and the seeds of each table are drawn as indices."""
        import numpy as np  # noqa: PLC0415 - on first use only
        from scipy.stats import bootstrap  # noqa: PLC0415

        sizes = [tables[0][1].shape[1], *(len(table) for _, table in tables)]
        spread = [sign * _spread(table) for sign, table in tables]
        several = [np.arange(size) for size in sizes if size > 1]  # scipy draws from two or more
        if not several:
            return mean, mean

        def statistic(*drawn: Any, axis: int = -1) -> Any:  # noqa: ARG001 - scipy's
            rest = iter(drawn)
            columns, *rows = (next(rest) if size > 1 else np.zeros((1, 1), dtype=int) for size in sizes)
            return sum(
                table[row[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
                for table, row in zip(spread, rows, strict=True)
            )

        settings: Any = {"method": "percentile", "random_state": np.random.default_rng(0), "vectorized": True}
        made = bootstrap(several, statistic, n_resamples=self.resamples, batch=500, axis=-1, **settings)
        return float(made.confidence_interval.low), float(made.confidence_interval.high)


def scale_of(scores: Sequence[float]) -> tuple[float, float]:
    """Guess the scale of a metric from the scores that it gave: no mean can lie outside.

    Returns:
        0 and the lowest of 1, 5, 10 and 100 that no score is above; the lowest and highest score where these do not
        fit, as for losses.
    """
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    if high <= 0.0 > low:
        return low, 0.0
    return min(low, 0.0), next((top for top in (1.0, 5.0, 10.0, 100.0) if high <= top), high)


def _spread(table: Table) -> Table:
    """The runs, set apart about their mean by √(S/(S-1)): a bootstrap of few makes their spread too small."""
    seeds = len(table)
    centre = table.mean(axis=0)
    spread: Table = centre + math.sqrt(seeds / max(1, seeds - 1)) * (table - centre)
    return spread


@dataclass(frozen=True)
class Row:
    """One method of a comparison, over its seeds. Costs are means over the runs that ended well; None: there is none.

    Args:
        name: of the method; `student` is the program before.
        seeds_ok, seeds_failed: how many runs ended well, and how many did not.
        reasons: why runs failed, each reason once.
        score, low, high: mean test score over seeds and examples, and its 95 % interval.
        vs_student, vs_best: score minus that of the student, of the best method, with interval; paired by example.
        metric_calls: rollouts of one compile.
        lm_calls: LM calls of one compile, all roles.
        usage, test_usage: by role what one compile, one pass over the test set used: `calls`, `cached_calls`,
            `failed_calls`, `prompt_tokens`, `cached_tokens`, `completion_tokens`, `dollars`, `seconds`.
        dollars, seconds: of one compile; dollars None: a model without a price.
        test_size: number of test examples.
        prompt_tokens: estimated tokens of the compiled program's instructions and demos.
        bullets: of its playbook.
        test_failures: rollouts on the test set that failed and count as 0, over all seeds.
        dead_roles: sentences about roles whose LM calls all failed, so that the method ran without them.
    """

    name: str
    seeds_ok: int
    seeds_failed: int
    reasons: tuple[str, ...]
    score: float | None
    low: float | None
    high: float | None
    vs_student: Interval | None
    vs_best: Interval | None
    metric_calls: float | None
    lm_calls: float | None
    usage: Mapping[str, Mapping[str, float | None]]
    test_usage: Mapping[str, Mapping[str, float | None]]
    dollars: float | None
    seconds: float | None
    test_size: int
    prompt_tokens: float | None
    bullets: float | None
    test_failures: int = 0
    dead_roles: tuple[str, ...] = ()


def rows_of(header: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a method that has cells, in the header's order."""
    by_method = {name: [cell for cell in cells if cell["method"] == name] for name in header["methods"]}
    good = {name: [cell for cell in several if cell["status"] == "ok"] for name, several in by_method.items()}
    intervals = Intervals({name: [c["test_scores"] for c in several] for name, several in good.items() if several})
    best = max(intervals.scores, key=lambda name: float(intervals.scores[name].mean()), default=None)
    return [_row(name, several, good[name], intervals, best) for name, several in by_method.items() if several]


def _row(
    name: str,
    cells: Sequence[Mapping[str, Any]],
    good: Sequence[Mapping[str, Any]],
    intervals: Intervals,
    best: str | None,
) -> Row:
    def against(other: str | None) -> Interval | None:
        known = good and other is not None and other != name and other in intervals.scores
        return intervals.difference(name, str(other)) if known else None

    score, low, high = intervals.score(name) if good else (None, None, None)
    usage = _mean_usage(good, "compile")
    return Row(
        name=name,
        seeds_ok=len(good),
        seeds_failed=len(cells) - len(good),
        reasons=tuple(dict.fromkeys(str(cell["reason"]) for cell in cells if cell["status"] != "ok")),
        score=score,
        low=low,
        high=high,
        vs_student=against(STUDENT),
        vs_best=against(best),
        metric_calls=_mean([cell["metric_calls"]["compile"] for cell in good]),
        lm_calls=total(usage, "calls") if good else None,
        usage=usage,
        test_usage=_mean_usage(good, "test"),
        dollars=total(usage, "dollars") if good else None,
        seconds=_mean([cell["seconds"]["compile"] for cell in good]),
        test_size=len(good[0]["test_scores"]) if good else 0,
        prompt_tokens=_mean([cell["prompt_tokens"] for cell in good]),
        bullets=_mean([cell["bullets"] for cell in good]),
        test_failures=sum(sum(cell.get("failures", {}).values()) for cell in good),
        dead_roles=tuple(sentence for cell in cells for sentence in _dead_roles(cell)),
    )


def _dead_roles(cell: Mapping[str, Any]) -> list[str]:
    """A sentence for each role of a compile whose LM calls all failed: a score alone would not tell."""
    said = []
    for role, used in cell["usage"].get("compile", {}).items():
        if used["calls"] and used["failed_calls"] == used["calls"]:
            why = cell.get("call_errors", {}).get(role, "no reason is known")
            said.append(
                f"{cell['method']}, seed {cell['seed']}: all {used['calls']} LM calls of the role {role!r} failed in "
                f"the compile ({why}); its score is that of a run without them."
            )
    return said


def _mean_usage(cells: Sequence[Mapping[str, Any]], phase: str) -> dict[str, dict[str, float | None]]:
    """By role the mean over runs; a run without calls of a role had none."""
    roles = sorted({role for cell in cells for role in cell["usage"][phase]})
    kinds = {kind for cell in cells for used in cell["usage"][phase].values() for kind in used}
    return {
        role: {kind: _mean([cell["usage"][phase].get(role, {}).get(kind, 0) for cell in cells]) for kind in kinds}
        for role in roles
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None if there are no values, or one is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def total(usage: Mapping[str, Mapping[str, float | None]], name: str) -> float | None:
    """The sum of `name` over roles; None if it is unknown for one of them."""
    values = [counts.get(name) for counts in usage.values()]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None

"""Compare any optimizers on one program: same data, same metric, same LMs; test scores with intervals, and costs.

result = compare(program, metric=metric, trainset=train, valset=val, testset=test, optimizers={"ACE": ACE(metric)})
print(result)

Optimizers are known as Teleprompters and nothing else.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import dspy
from annotated_types import Ge
from dspy.teleprompt import Teleprompter
from pydantic import InstanceOf

from ..errors import Location, SettingsError, checked
from ..output import printable, redacted
from ..pages import fragment
from ..program import Metric, named
from ..training import check_lms, example_key, hashed, versions
from . import table
from .cell import Cell, Conditions, accepts, lms_within, required, run_cell, run_on, seeded, settings_within
from .folder import VERSION, Cells
from .rows import STUDENT, Row, rows_of

logger = logging.getLogger("dspy.ace")

Optimizer: TypeAlias = Teleprompter | Callable[[int], Teleprompter]
_CACHE = "DSPy's response cache was off for every LM: each method paid for all of its calls."
_ORDER = "{}; what the provider's own prompt cache kept from earlier cells is not under control."


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of a comparison. `print(comparison)` shows the table.

    Args:
        header: what was compared, under which conditions (`comparison.json`).
        cells: one a method and seed (`cells.jsonl`), plain data.
        rows: one a method, the student first.
    """

    header: Mapping[str, Any]
    cells: tuple[Mapping[str, Any], ...]
    rows: tuple[Row, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(rows_of(self.header, self.cells)))

    @classmethod
    def load(cls, out: str | Path) -> Comparison:
        """Load the comparison in a folder, finished or not. Raises JournalError if there is none to be read."""
        found = Cells.read(out)
        return cls(found.header, found.cells)

    def __str__(self) -> str:
        return printable(table.to_text(self.header, self.rows))

    def __repr__(self) -> str:
        return f"Comparison({', '.join(row.name for row in self.rows)}; {len(self.cells)} cells)"

    def _repr_html_(self) -> str:
        grid = [list(table.COLUMNS), *table.lines(self.rows)]
        return fragment(table.title(self.header), grid, table.notes(self.header, self.rows))

    def to_markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        return table.to_markdown(self.header, self.rows)

    def save_report(self, path: str | Path) -> Path:
        """Write the comparison as a page of its own: `.html`, which opens offline, or `.md`.

        Raises:
            SettingsError: another suffix.
        """
        from .page import save_page  # noqa: PLC0415 - templates and figures, only where they are wanted

        return save_page(self.header, self.cells, self.rows, path)


def compare(
    program: dspy.Module,
    *,
    metric: Metric,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None = None,
    testset: Sequence[dspy.Example],
    optimizers: Mapping[str, Optimizer],
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    num_threads: int | None = None,
    executor: Executor | None = None,
    retry_failed: bool = False,
    label: str | None = None,
    task: str | None = None,
    command: str | None = None,
    budget: int | None = None,
) -> Comparison:
    """Compile `program` with each optimizer and seed, and test what comes out, the student as it is first.

    DSPy's response cache is off for the whole process while a cell runs.

    Args:
        program: the student; it is not changed.
        metric: 2, 3 or 5 arguments, as DSPy's optimizers take it; it scores the test. An optimizer that holds this
            very object is given a wrapper of the same signature, by which rollouts are seen.
        trainset, valset: handed to `compile` where its signature has them; a valset of None is not handed on.
        testset: used once per cell, after the compile.
        optimizers: by name a Teleprompter, or a callable that makes one from a seed. Each cell takes a copy of a
            Teleprompter and sets its `seed` (the attribute, or the argument of `compile`).
        seeds: one run of each method for each.
        out: a folder that keeps the comparison. Cells that are there are not run again; more methods and seeds can
            be added later. None: in memory.
        num_threads: of the tests, and of optimizers that leave it to DSPy; None: DSPy's setting.
        executor: runs the cells in other processes or on other machines, several at a time: any
            `concurrent.futures.Executor`, see `ACE`. None: one after the other, here.
        retry_failed: run cells that failed before once more.
        label, task, command, budget: shown to the reader: what kind of result this is ("offline model"), the task's
            name, the command it was made by, the metric calls each method was allowed.

    Returns:
        The comparison. A method that fails is a row with its reason. After Ctrl-C: what is finished so far.

    Raises:
        SettingsError: a mistake in the arguments, found before the first LM call.
        JournalError: `out` cannot be used, or holds another comparison.
        RunError: the executor works no longer. With the same `out` and a new one the comparison goes on.
        KeyboardInterrupt: Ctrl-C before the first cell was finished.
    """
    conditions = Conditions(program, metric, trainset, () if valset is None else valset, testset, num_threads).checked()
    _check_plan(optimizers, seeds)
    checked("out", out, Location | None)
    checked("executor", executor, InstanceOf[Executor] | None)
    made = {
        (name, seed): _made(name, optimizer, seed, bool(conditions.valset))
        for name, optimizer in optimizers.items()
        for seed in seeds
    }
    held = {f"{name}.{path}": lm for (name, _), o in made.items() for path, lm in lms_within(o).items()}
    check_lms(program, **held)
    about = redacted({"label": label, "task": task, "command": command, "budget": budget})
    header = _header(conditions, optimizers, made, seeds) | {k: v for k, v in about.items() if v is not None}
    header["notes"].insert(
        1, _ORDER.format("One cell after the other" if executor is None else "Cells ran side by side on an executor")
    )
    plan = [(method, seed) for seed in seeds for method in (STUDENT, *optimizers)]
    with Cells.open(out, header) as cells:
        missing = (place for place in plan if not _is_done(cells.get(*place), retry_failed))
        todo = [(conditions, *place, made.get(place)) for place in missing]
        try:
            for cell in map(_run, todo) if executor is None else run_on(executor, todo):
                cells.add(cell)
                method, seed, finished = cell["method"], cell["seed"], len(cells.cells)
                logger.info(
                    "compare: %s, seed %s: %s; %d of %d cells", method, seed, _outcome(cell), finished, len(plan)
                )
        except KeyboardInterrupt:
            if not cells.cells:
                raise
            logger.warning("compare: interrupted; %d of %d cells are finished.", len(cells.cells), len(plan))
        return Comparison(cells.header, cells.cells)


def _is_done(cell: Mapping[str, Any] | None, retry_failed: bool) -> bool:
    return cell is not None and (cell["status"] == "ok" or not retry_failed)


def _run(cell: Cell) -> dict[str, Any]:
    logger.info("compare: %s, seed %s", *cell[1:3])
    return run_cell(*cell)


def _check_plan(optimizers: Any, seeds: Any) -> None:
    """Check names and seeds."""
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Sequence) or not seeds:
        raise SettingsError(f"seeds must be a list of whole numbers, one or more; got {seeds!r}.")
    for position, seed in enumerate(seeds):
        checked(f"seeds[{position}]", seed, Annotated[int, Ge(0)])
    if len(set(seeds)) < len(seeds):
        raise SettingsError(f"seeds must differ: one run of each method for each seed; got {list(seeds)}.")
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise SettingsError("optimizers must be a mapping of names to optimizers, one or more: {'ACE': ACE(metric)}.")
    for name in optimizers:
        if not isinstance(name, str) or not name.strip() or name == STUDENT:
            raise SettingsError(
                f"A method needs a name other than {STUDENT!r}, which is the program before; got {name!r}."
            )


def _made(name: str, optimizer: Any, seed: int, valset: bool) -> Teleprompter:
    """Return the optimizer of one cell. Raises SettingsError if it is none, or cannot be called."""
    given = optimizer
    if not isinstance(optimizer, Teleprompter) and callable(optimizer) and not isinstance(optimizer, type):
        try:
            given = optimizer(seed)
        except Exception as error:  # a user's function may raise anything
            raise SettingsError(f"optimizers[{name!r}]({seed}) raised {type(error).__name__}: {error}") from error
    if not isinstance(given, Teleprompter):
        kind = f"the class {given.__name__}; give an instance" if isinstance(given, type) else type(given).__name__
        raise SettingsError(
            f"optimizers[{name!r}] must be a Teleprompter, or a callable that makes one from a seed; got {kind}."
        )
    missing = sorted(required(given) - {"trainset", "seed", *(["valset"] if valset else [])})
    if missing:
        raise SettingsError(
            f"optimizers[{name!r}]: {type(given).__name__}.compile also needs {', '.join(missing)}, which compare "
            "does not have; wrap it in a Teleprompter of your own that fills it in."
        )
    return given


def _header(
    conditions: Conditions,
    optimizers: Mapping[str, Any],
    made: Mapping[tuple[str, int], Teleprompter],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Return what `comparison.json` says: what is compared, and under which conditions."""
    program, first = conditions.program, {name: made[name, seeds[0]] for name in optimizers}
    sets = {"train": conditions.trainset, "val": conditions.valset, "test": conditions.testset}
    tasks = sorted({_model(predictor.lm or dspy.settings.lm) for _, predictor in program.named_predictors()})
    held = {f"{name}.{path}": _model(lm) for name, o in first.items() for path, lm in lms_within(o).items()}
    parts = {
        "program": program,
        **{f"{name}set": examples for name, examples in sets.items()},
        "metric": conditions.metric,
        "model": tasks,
        **{f"optimizer {name}": _described(optimizer) for name, optimizer in first.items()},
    }
    return {
        "version": VERSION,
        "program": named(program),
        "fingerprint": hashed(**parts),
        "methods": [STUDENT, *optimizers],
        "seeds": list(seeds),
        "sizes": {name: len(examples) for name, examples in sets.items()},
        "metric": getattr(conditions.metric, "__name__", type(conditions.metric).__name__),
        "models": {"task": ", ".join(tasks), **held},
        "environment": {**versions(), "platform": platform.platform(), "cpus": os.cpu_count()},
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "notes": [_CACHE, *_notes(conditions, first)],
    }


def _notes(conditions: Conditions, optimizers: Mapping[str, Teleprompter]) -> list[str]:
    """Return sentences on conditions that a reader has to know; shared examples are warned of as well."""
    said = []
    tested = [example_key(example) for example in conditions.testset]
    for name, examples in (("trainset", conditions.trainset), ("valset", conditions.valset)):
        known = {example_key(example) for example in examples}
        twice = sum(key in known for key in tested)
        if twice:
            said.append(f"{twice} of {len(tested)} test examples also stand in the {name}: scores are too high.")
            logger.warning("compare: %s", said[-1])
    for name, optimizer in optimizers.items():
        if not seeded(optimizer) and not accepts(optimizer, "seed"):
            said.append(f"{name} takes no seed: its runs differ by the chance of its LM calls alone.")
        if conditions.valset and not accepts(optimizer, "valset"):
            said.append(f"{name} takes no valset: it had the trainset alone.")
    return said


def _described(optimizer: Teleprompter) -> list[Any]:
    lms = {path: _model(lm) for path, lm in lms_within(optimizer).items()}
    return [type(optimizer).__qualname__, settings_within(optimizer), lms]


def _model(lm: Any) -> str:
    return str(getattr(lm, "model", type(lm).__name__))


def _outcome(cell: Mapping[str, Any]) -> str:
    if cell["status"] != "ok":
        return f"failed: {cell['reason']}"
    scores = cell["test_scores"]
    return f"test score {sum(scores) / len(scores):.3f}, {cell['metric_calls']['compile']} metric calls"

"""How much a run does: what `auto` stands for, and what the settings beside it change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from .adapt import ReflectOn
from .checks import check_alone, check_choice

Validate = Literal["along", "end"]


@dataclass(frozen=True)
class Effort:
    """The settings that decide what a run costs.

    Args:
        epochs: passes over the trainset.
        rounds: reflections, each with a retry, that a failure gets at most; 0: one reflection and no retry.
        reflect_on: every rollout, or failures only.
        validate: "along": the seed first, then as learning goes on; "end": seed and last playbook side by side.
        batch_size: examples that share one snapshot of the playbook.
        curation_group: reflections curated in one call.
    """

    epochs: int = 1
    rounds: int = 1
    reflect_on: ReflectOn = "all"
    validate: Validate = "along"
    batch_size: int = 16
    curation_group: int = 4


AUTO = {
    "light": Effort(1, 0, "failures", "end", 25, 3),
    "medium": Effort(2, 1),
    "heavy": Effort(5, 5),  # the paper's own setting (ACE §4)
}


def effort(ace: Any) -> Effort:
    """What `auto` stands for, or the default, with the settings given beside it.

    Raises:
        SettingsError: a setting that `auto` decides is given as well, or one that contradicts another.
    """
    if ace.auto is not None:
        check_choice("auto", ace.auto, tuple(AUTO))
        check_alone("auto", epochs=ace.epochs, max_reflection_rounds=ace.max_reflection_rounds)
    preset = AUTO[ace.auto] if ace.auto is not None else Effort()
    for name, choices in (("reflect_on", ("all", "failures")), ("validate", ("along", "end"))):
        if getattr(ace, name) is not None:
            check_choice(name, getattr(ace, name), choices)
    resolved = Effort(
        epochs=preset.epochs if ace.epochs is None else ace.epochs,
        rounds=preset.rounds if ace.max_reflection_rounds is None else ace.max_reflection_rounds,
        reflect_on=ace.reflect_on or preset.reflect_on,
        validate=ace.validate or preset.validate,
        batch_size=preset.batch_size if ace.batch_size is None else ace.batch_size,
        curation_group=preset.curation_group if ace.curation_group is None else ace.curation_group,
    )
    if ace.reflect_on is None and ace.metric is None:  # without a metric hardly a rollout is a failure
        resolved = replace(resolved, reflect_on="all")
    if resolved.validate == "end":
        check_alone("validate='end'", validate_every=ace.validate_every, patience=ace.patience)
    return resolved

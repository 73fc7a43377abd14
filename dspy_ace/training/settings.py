"""The settings of a run: typed and frozen, every user mistake found before the first LM call."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import dspy
import pydantic
from annotated_types import Ge

from ..errors import Count, Finite, Location, Positive, SettingsError, brief, expected
from ..lm import check_cost
from ..playbook import Playbook
from ..program import Metric, Scorer, Setup
from ..roles import Curate, Refine, Reflect
from .checks import check_lms
from .verdict import Scale

ReflectOn = Literal["all", "failures"]
Validate = Literal["end", "along"]
Auto = Literal["light", "medium", "heavy"]


def _callable(value: Any) -> Any:
    if value is None or callable(value):
        return value
    raise ValueError("Input should be a callable")


def _lm(value: Any) -> Any:
    if value is None or isinstance(value, dspy.BaseLM):
        return value
    raise ValueError("Input should be a dspy.LM, as in dspy.LM('openai/gpt-5')")


def _playbook(value: Any) -> Any:
    if value is None or isinstance(value, Playbook):
        return value
    raise ValueError("Input should be a Playbook, as in Playbook.load(path)")


def _executor(value: Any) -> Any:
    if value is None or isinstance(value, Executor):
        return value
    raise ValueError("Input should be a concurrent.futures.Executor, as Client(…).get_executor() of Dask")


CALLABLE = pydantic.PlainValidator(_callable)
AnyLM = Annotated[Any, pydantic.PlainValidator(_lm)]
Model = TypeVar("Model", bound="LearningSettings")


class LearningSettings(pydantic.BaseModel):
    """Settings that learning needs, in a compile and online. `ACE` and `OnlineACE` document them."""

    model_config = pydantic.ConfigDict(
        frozen=True, strict=True, arbitrary_types_allowed=True, extra="forbid", defer_build=True
    )

    metric: Annotated[Metric | None, CALLABLE] = None
    labels: bool | None = None
    setup: Annotated[Setup | None, CALLABLE] = None
    failure_score: Finite = 0.0
    perfect_score: Finite = 1.0
    reflection_lm: AnyLM = None
    reflect: Annotated[Reflect | None, CALLABLE] = None
    curate: Annotated[Curate | None, CALLABLE] = None
    refine: Annotated[Refine | None, CALLABLE] = None
    max_reflection_rounds: Annotated[int, Ge(0)] = 1
    reflect_on: ReflectOn = "all"
    batch_size: Count = 16
    max_lm_calls: Count | None = None
    max_cost: Annotated[float, Ge(0), pydantic.AllowInfNan(False)] | None = None
    max_seconds: Annotated[float, Ge(0), pydantic.AllowInfNan(False)] | None = None
    rollout_timeout: Positive | None = None
    num_threads: Count | None = None
    playbook: Annotated[Playbook | None, pydantic.PlainValidator(_playbook)] = None
    max_playbook_tokens: Annotated[int, Ge(100)] = 10_000
    prompt_bullets: Count | None = None
    redact: Annotated[Callable[[str], str] | None, CALLABLE] = None
    on_step: Annotated[Callable[..., Any] | None, CALLABLE] = None

    @classmethod
    def of(cls: type[Model], **given: Any) -> Model:
        """Return the settings.

        Raises:
            SettingsError: a value is of another type or out of range; the first one is named with what came.
        """
        try:
            settings = cls(**given)
        except pydantic.ValidationError as error:
            raise expected(error) from None
        if not settings.failure_score < settings.perfect_score:
            raise SettingsError(
                f"failure_score must be below perfect_score; got {settings.failure_score:g} and "
                f"{settings.perfect_score:g}. Set both to the scale of your metric, as in failure_score=0, "
                "perfect_score=100."
            )
        Scorer(settings.metric)
        if settings.redact is not None and not isinstance(said := settings.redact("text"), str):
            raise SettingsError(f"redact must return a text; redact('text') returned {brief(said)}.")
        return settings

    @property
    def uses_labels(self) -> bool:
        """True if roles and metric may see the expected outputs."""
        return self.metric is not None if self.labels is None else self.labels

    @property
    def scale(self) -> Scale:
        """The scale of the metric."""
        return Scale(self.failure_score, self.perfect_score)

    def check_lms(self, student: dspy.Module) -> None:
        """Check that every predictor and every role has an LM, and every LM a price where dollars are limited.

        Raises:
            SettingsError: an LM is missing, is no dspy.LM, or has no price.
        """
        check_lms(student)
        if self.max_cost is None:
            return
        asked = [*(p.lm or dspy.settings.lm for _, p in student.named_predictors()), self.reflection_lm]
        for lm in {id(lm): lm for lm in asked if lm is not None}.values():
            check_cost(lm, self.max_cost)


class Settings(LearningSettings):
    """The settings of one `ACE.compile`. `ACE` documents them."""

    max_metric_calls: Count | None = None
    auto: Auto | None = None
    epochs: Count = 1
    validate_when: Validate = "end"
    seed: int = 0
    log_dir: Location | None = None
    executor: Annotated[Executor | None, pydantic.PlainValidator(_executor)] = None
    progress: bool | None = None

    # what a stopped run may be continued with another value of
    FREE: ClassVar[frozenset[str]] = frozenset(
        {"auto", "num_threads", "log_dir", "executor", "progress", "on_step"}
        | {"max_metric_calls", "max_lm_calls", "max_cost", "max_seconds"}
    )
    AUTO: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {"epochs": 1, "max_reflection_rounds": 0, "batch_size": 25},
        "medium": {"epochs": 2, "max_reflection_rounds": 1},
        "heavy": {"epochs": 5, "max_reflection_rounds": 5},  # the paper's own setting (ACE §4)
    }

    @classmethod
    def of_arguments(cls, arguments: dict[str, Any]) -> Settings:
        """Return the settings that the arguments of `ACE` stand for; an argument that is None has its default.

        Raises:
            SettingsError: an argument that `auto` decides is given as well, or a value is wrong.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        auto = given.get("auto")
        preset = cls.AUTO.get(auto, {}) if isinstance(auto, str) else {}
        if preset and (twice := [name for name in ("epochs", "max_reflection_rounds") if name in given]):
            raise SettingsError(
                f"auto={auto!r} decides {', '.join(twice)}; give auto, or {' and '.join(twice)}, not both."
            )
        given = {**preset, **given}
        if "validate" in given:
            given["validate_when"] = given.pop("validate")  # pydantic has a method of that name
        return cls.of(**given)

    def described(self) -> dict[str, Any]:
        """Return the plain settings by name, as `run.json` keeps them."""
        plain = (str, int, float, bool, type(None))
        names = {"validate_when": "validate"}
        return {names.get(name, name): value for name, value in self if isinstance(value, plain)}

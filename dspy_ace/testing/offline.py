"""`OfflineLM`: the offline model as a DSPy language model, on both generations of DSPy.

From DSPy 3.4 on it is a `dspy.LM` with an engine of its own, so DSPy's cache, retries, usage and history work as with
any provider. On DSPy 3.3 it is a `dspy.BaseLM` with `forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dspy

from .backend import Answerer, Backend, Record
from .noise import Knobs

if hasattr(dspy, "lm15"):
    from ._engine import OfflineBase
elif not TYPE_CHECKING:
    from ._legacy import OfflineBase

_KNOBS = frozenset(Knobs.__dataclass_fields__)


class OfflineLM(OfflineBase):
    """A language model that needs no key and no network: a deterministic reader of its prompt.

    Every reply is computed from the text of the request: options are scored by the words that they share with the
    input, and by the sentences in the prompt that name them. It knows no data set, keeps no table of answers and has
    no word list for a task. So it measures the mechanics and the cost of a program or an optimizer. **It does not
    measure how good a method is with a real model.**

    Same request, same seed: same reply, in every process and thread order. Samples of one request (other `rollout_id`)
    differ only where the evidence leaves the answer open, or where an imperfection such as `slips` asks for chance.

    Args:
        model: the name in DSPy's usage and history.
        cache: True to use DSPy's response cache (DSPy 3.4 on). Off by default, so that the log has every call.
        answerers: functions that answer requests of a sort that the model itself does not know, such as the prompts of
            another optimizer. Each gets the request as read and dice for it, and returns `(role, values)` or None; the
            first answer counts.
        **settings: any field of `Knobs` (`seed`, `slips`, `unparsable`, `faults`, `latency`, `prefix_cache`, …), and
            what `dspy.LM` takes besides (`temperature`, `max_tokens`, `num_retries`, `callbacks`).

    Raises:
        SettingsError: a knob out of its range; also a `ValueError`.

    Example:
        >>> lm = OfflineLM(slips=0.1, seed=1)
        >>> with dspy.context(lm=lm):
        ...     dspy.Predict("question -> answer: int")(question="What is 3 + 4?").answer
        7
        >>> lm.calls
        1
    """

    def __init__(
        self,
        model: str = "offline/reader",
        *,
        cache: bool = False,
        answerers: Sequence[Answerer] = (),
        **settings: Any,
    ) -> None:
        knobs = Knobs(**{name: settings.pop(name) for name in list(settings) if name in _KNOBS})
        super().__init__(model, Backend(knobs, answerers), cache=cache, **settings)

    @property
    def calls(self) -> int:
        """Number of requests received by this model and its copies, failed ones included."""
        return len(self.backend.log)

    @property
    def log(self) -> list[Record]:
        """Records of these requests, oldest first (a copy of the list)."""
        return list(self.backend.log)

    def reset_log(self) -> None:
        """Empty the log, for all copies."""
        self.backend.log.clear()

    def dump_state(self) -> dict[str, Any]:
        """Return the state for `load_state`: model, settings and knobs; the answerers are not in it."""
        state: dict[str, Any] = dspy.BaseLM.dump_state(self)  # not that of `dspy.LM`: it would save the engine too
        return state | asdict(self.backend.knobs)

    @classmethod
    def load_state(cls, state: dict[str, Any], **_: Any) -> OfflineLM:
        """Make a model from the state that `dump_state` returned. Its log is empty."""
        kept = {k: v for k, v in state.items() if not k.startswith("_dspy") and k != "rollout_id"}
        return cls(**kept)

    def copy(self, **changes: Any) -> OfflineLM:
        """Return a copy that writes to the same log. Knobs may be changed like any other setting."""
        knobs = {name: changes.pop(name) for name in list(changes) if name in _KNOBS}
        backend = self.backend.with_knobs(**knobs) if knobs else self.backend
        copied: OfflineLM = super().copy(**changes, **self._engines(backend))
        copied.backend = backend
        return copied

    def launch(self, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Do nothing; `dspy.BetterTogether` calls it before a step."""

    def kill(self, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Do nothing; `dspy.BetterTogether` calls it after a step."""

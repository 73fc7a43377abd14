"""What tests, examples and measurements need: a language model that works offline.

`OfflineLM` is a reader. Every reply is computed from the text of the request alone, by code that can be read here: it
knows no data set, keeps no table of answers and has no word list for a task, only English function words. So it
measures mechanics and cost: what is called, in which order, what it costs, what survives faults and noise. **It does
not measure the quality of a method.** Its lessons are short, its reading is literal, and a real model does better and
worse in other places.

How a request becomes a reply, one job per file:

| file | job |
|---|---|
| `words` · `tokens` · `passage` | stems, sentences · token counts, prompt cache · a text as phrases near its focus |
| `reader` · `shape` · `wire` | a chat request as fields and values · typed values and reply formats · OpenAI messages |
| `options` · `statements` · `evidence` | the possible answers · sentences that speak for or against one · the score |
| `desk` · `answer` · `agent` | the task model: a request laid out · a value per field · an agent's next step |
| `arithmetic` · `formula` | sums and written formulas, worked out without running code |
| `case` · `cues` · `reflect` · `curate` | the reflector and the curator |
| `apprentice`, `apprentice_*` | an agent with bad habits, which follows advice |
| `propose` | instructions, rules and advice for other optimizers |
| `roles` · `brain` · `noise` | which role is asked for · request → reply · the knobs |
| `machine` · `offline` · `server` | faults, latency, usage, log · the DSPy model · an OpenAI-compatible endpoint |
| `contracts` | beside the model: contract tests for custom roles, to call from your own suite |

`from dspy_ace.testing.server import serve` gives the model over HTTP on the loopback, for true clients.
"""

from __future__ import annotations

from .apprentice import Apprentice
from .brain import Answerer
from .machine import Record
from .noise import Knobs
from .offline import OfflineLM

__all__ = ["Answerer", "Apprentice", "Knobs", "OfflineLM", "Record"]

"""What tests, examples and measurements need: a language model that works offline, and contract tests for roles.

`OfflineLM` reads its prompt and nothing else. Every reply is computed from the text of the request, by code that can be
read here: it knows no data set, keeps no table of answers and has no word list for a task. So it measures mechanics and
cost: what is called, in which order, what it costs, what survives faults and noise. **It does not measure the quality
of a method.** Its lessons are short, its reading is literal, and a real model does better and worse in other places.

How a request becomes a reply:

| file | job |
|---|---|
| `request` · `reply` | a chat request as fields and values · values in the types and format that it asks for |
| `words` · `calculate` | stems and sentences · numbers and written formulas, worked out without running code |
| `statements` · `evidence` | possible answers and the sentences that name them · a score for each answer |
| `answer` · `agent` | the task model: a value for each field · the next step of an agent |
| `reflect` · `curate` | the Reflector and the Curator |
| `noise` · `backend` | deliberate imperfections · which role answers, faults, latency, usage, log |
| `offline` · `server` | the DSPy model · the same model as an OpenAI-compatible HTTP server |
| `contracts` | contract tests for custom roles, to call from your own test suite |

A function given as `OfflineLM(answerers=[…])` answers requests of other sorts; it may use all of the above.
"""

from __future__ import annotations

from .backend import Answerer, Record
from .noise import Knobs
from .offline import OfflineLM

__all__ = ["Answerer", "Knobs", "OfflineLM", "Record"]

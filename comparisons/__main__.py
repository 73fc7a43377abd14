"""`python -m comparisons run | reproduce | report | ratios | methods`. See comparisons/README.md."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

from dspy_ace import AceError
from dspy_ace.output import SPELLED

from .arguments import parse
from .methods import METHODS
from .ratios import CACHED_SHARE, FIXED, PER_COMPLETION_TOKEN, PER_PROMPT_TOKEN, Bench, compare_costs, table
from .reproduce import reproduce
from .runner import progress, report, run


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked for; a mistake ends with one line on stderr and the code 2."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parse(given)
    logging.getLogger("dspy").setLevel(logging.ERROR)
    logging.getLogger("dspy.ace").setLevel(logging.INFO if args.command in ("run", "reproduce") else logging.ERROR)
    out = sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors=SPELLED)  # a terminal of any encoding shows the tables

    def say(line: str) -> None:
        print(line, file=out, flush=True)

    try:
        with redirect_stdout(sys.stderr):  # some optimizers print
            if args.command == "run":
                run(args, given, say)
            elif args.command == "reproduce":
                reproduce(args, given, say)
            elif args.command == "report":
                report(args.folder, say)
            elif args.command == "ratios":
                _ratios(args, say)
            else:
                say("\n".join(f"{m.name:<10} {m.title:<22} {m.source}" for m in METHODS.values()))
    except (AceError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is finished is kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def _ratios(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """The ratios, a row as soon as a pair is measured."""
    bench = Bench(args.scale, args.num_threads, args.data, args.stream, progress)
    say(
        f"Offline model over HTTP, {args.num_threads} threads, seeds {' '.join(map(str, args.seeds))}; latency "
        f"{FIXED:g} s + {PER_PROMPT_TOKEN:.5f} s a prompt token not cached + {PER_COMPLETION_TOKEN:.4f} s a token "
        f"written, all times {args.scale:g}; a cached prompt token is billed as {CACHED_SHARE:g}.\n"
        "Mechanics and cost, not the quality of a method. Scores: test set; online: over the stream.\n"
    )
    rows = []
    for row in compare_costs(bench, args.against, args.seeds):
        rows.append(row)
        progress(table(rows))
    say(table(rows))


if __name__ == "__main__":
    sys.exit(main())

"""ACE online: a program that is in use goes on learning from what people say of its answers.

    python examples/online.py                                 # offline, no key, some seconds
    python examples/online.py --store memory.db               # what is told and learned is kept, also for others
    python examples/online.py --model openai/gpt-4o-mini      # the same with a real model

First a warm start: ACE on a few examples. Then messages come one by one; the program answers each, and where the answer
is wrong somebody says so. At last the paper's protocol over a stream: predict, then learn, in order.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import dspy
from common import add_model_arguments, connect, fail, positive, probe, run, score, show_mean
from routing_task import RouteMessage, make_split, metric

from dspy_ace import ACE, AceError, OnlineACE, PlaybookStore


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Let a program learn while it is in use, with ACE online.")
    add_model_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the messages drawn (default: 0)")
    parser.add_argument("--warm", type=positive, default=10, help="examples to learn from beforehand (default: 10)")
    parser.add_argument("--batch-size", type=positive, default=4, help="told answers per step (default: 4)")
    parser.add_argument("--store", type=Path, help="a file (SQLite) that keeps what is told and learned")
    return parser.parse_args(argv)


def warm_start(split: Any, args: argparse.Namespace) -> dspy.Module:
    """A program that has seen a few examples."""
    optimizer = ACE(metric, batch_size=args.batch_size, num_threads=args.threads, seed=args.seed, progress=False)
    return optimizer.compile(dspy.ChainOfThought(RouteMessage), split.train[: args.warm])


def serve(online: OnlineACE, examples: list[dspy.Example]) -> None:
    """Messages come in; of each answer somebody says whether it is right, and if not, what is."""
    for example in examples:
        prediction = online(message=example.message)
        if prediction.desk == example.desk:
            online.tell(prediction, True)
        else:
            online.tell(prediction, f"It belongs to {example.desk}.", expected={"desk": example.desk})


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    args = parse(argv)
    split = make_split(args.seed)
    connect(args.model, args.api_base)
    probe(dspy.ChainOfThought(RouteMessage), split.train[0])
    try:
        compiled = warm_start(split, args)
        show_mean("warm:", score(compiled, split.test, metric, args.threads))

        store = None if args.store is None else PlaybookStore(args.store, seed=compiled.playbook)
        # learns in the background, a batch at a time; at the end of the block from what is left
        settings = {"batch_size": args.batch_size, "num_threads": args.threads}
        with OnlineACE(compiled, metric=metric, store=store, **settings) as online:
            serve(online, split.train[args.warm :])
            print(f"\nTold {len(split.train) - args.warm} answers; {online.pending} not learned from yet.")
            while online.learn() is not None:
                pass
            show_mean("told:", score(online, split.test, metric, args.threads))

            curve = online.run(split.val)
            print(f"\nA stream: {curve}")
            print(f"\nThe playbook ({len(online.playbook)} bullets):\n{online.playbook.to_text()}\n")
            print(f"The account:\n{online.results}")
        if store is not None:
            store.close()
            print(f"\nKept: {args.store}")
    except AceError as error:
        fail(str(error))


if __name__ == "__main__":
    run(main)

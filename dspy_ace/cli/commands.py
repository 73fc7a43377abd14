"""The commands of `dspy-ace`. What a command makes goes to stdout or to `--out`; what it says goes to stderr."""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import shorten
from typing import Any

import click
import dspy

from ..ace import ACE
from ..errors import AceError, SettingsError
from ..lm import missing_keys, price_of
from ..output import SPELLED
from ..playbook import Playbook, counted, take_out, write_whole
from ..playbook import merge as merged
from ..program import Judged
from ..store import PlaybookStore
from ..training import Plan, Results, Settings, facts_of
from .cases import METRICS, Cases, Compared, cases_of, read_rows, read_text, usual_metric
from .sources import Source, save

RUBRIC = "The output gives the same answer as the expected output. Other words for the same answer are as good."
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUT = click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
AUTO = ("light", "medium", "heavy")
INTERRUPTED = 130


class _Commands(click.Group):
    """Commands whose errors are one sentence each."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (AceError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(shorten(str(error), 600, placeholder=" …")) from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='\b\nCompletion in bash: eval "$(_DSPY_ACE_COMPLETE=bash_source dspy-ace)"',
)
@click.version_option(package_name="dspy-ace")
def main() -> None:
    """Make a prompt better from examples, by a playbook of short rules that you can read and edit.

    A PLAYBOOK is a playbook file (JSON or text), a prompt that holds one, a saved program, the folder of a run, or
    the path or URL of a store.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=SPELLED)  # a terminal of any encoding shows any text
    logging.getLogger("dspy.ace").setLevel(logging.WARNING)


def say(*lines: str) -> None:
    """Print lines for people: to stderr."""
    for line in lines:
        click.echo(line, err=True)


# --- optimize


@main.command()
@click.option("--data", type=FILE, required=True, help="The cases: JSON lines, or CSV with a line of column names.")
@click.option("--model", required=True, help="The model that answers, as openai/gpt-5-mini; 'offline' needs no key.")
@click.option("--prompt", type=FILE, help="The prompt to make better. It stays as it is, above the playbook.")
@click.option("--input", "inputs", multiple=True, help="A column that is given. Repeat it for several columns.")
@click.option("--expected", help="The column that holds the expected answer.")
@click.option("--metric", help=f"{', '.join(METRICS)}, judge, or module:function. Default: what fits the answers.")
@click.option("--reflection-model", help="The model that learns from mistakes. Default: the same.")
@click.option("--api-base", help="The address of an OpenAI-compatible server.")
@click.option("--program", "program_name", help="module:function that returns your own DSPy program.")
@click.option("--auto", type=click.Choice(AUTO), help="How much effort: default is between light and medium.")
@click.option("--max-cost", type=click.FloatRange(0, min_open=True), help="The most dollars to spend.")
@click.option("--rows", type=click.IntRange(4), default=300, show_default=True, help="The most rows to use.")
@click.option("--threads", type=click.IntRange(1), help="Calls at the same time.  [default: 8]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the order of rows.")
@click.option("--encoding", help="The encoding of the data, if it is not UTF-8.")
@click.option(
    "--log-dir", type=click.Path(file_okay=False, path_type=Path), help="Keep the run; give it again to go on."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done and what it costs, and stop.")
@OUT
def optimize(out: Path | None, dry_run: bool, **given: Any) -> None:
    """Make a prompt better from a file of cases.

    \b
    dspy-ace optimize --data cases.csv --prompt prompt.txt --model offline --out better.txt
    """  # noqa: D301 - click's mark for a paragraph that is not wrapped
    if out is not None and not out.absolute().parent.is_dir():
        raise SettingsError(f"--out {out}: there is no folder {out.parent}.")
    prompt = read_text(given["prompt"]) if given["prompt"] else ""
    if given["prompt"] and not prompt.strip():
        raise SettingsError(f"{given['prompt']} is empty; there is no prompt to make better.")
    cases = cases_of(read_rows(given["data"], given["encoding"]), given["inputs"], given["expected"])
    train, val = _split(cases, given["rows"], given["seed"])
    lm = _model(given["model"], given["api_base"], given["max_cost"])
    reflection = _model(given["reflection_model"], given["api_base"], given["max_cost"], lm)
    student = _student(given["program_name"], cases, prompt)
    how = given["metric"] or usual_metric(cases)
    metric = _metric(how, cases, reflection)
    say(*cases.notes, f"{len(train)} rows to learn from, {len(val)} to check on. Metric: {how}.")
    optimizer = ACE(
        metric,
        reflection_lm=reflection,
        auto=given["auto"],
        max_cost=given["max_cost"],
        num_threads=given["threads"],
        seed=given["seed"],
        log_dir=given["log_dir"],
    )
    with dspy.context(lm=lm):
        if dry_run:
            settings = Settings.of_arguments(optimizer.get_params())
            settings.check_lms(student)
            say(f"Planned: {Plan.of(settings, student, train, val)}.")
            if how == "judge":
                say("The judge's calls, one for each rollout, come on top of it.")
            return
        if not given["api_base"]:
            _check_keys([given["model"], given["reflection_model"]])
        program, failure = _compiled(optimizer, student, train, val)
    results: Results = program.detailed_results
    say(*(f"{name:<13} {value}" for name, value in facts_of(results)))
    if not len(results.playbook):
        say("The prompt is as it was: nothing was learned that is worth its place.")
    text = _prompts(program, student, prompt)
    if out is None:
        click.echo(text)
    elif out.suffix.lower() == ".json":
        program.save(str(out))
    else:
        write_whole(out, text + "\n")
    say(*([f"Written: {out}"] if out else []), *([f"The run is in {optimizer.log_dir}."] if optimizer.log_dir else []))
    if failure:
        raise failure
    if results.stopped.startswith("interrupted"):
        raise click.exceptions.Exit(INTERRUPTED)


def _compiled(
    optimizer: ACE, student: dspy.Module, train: list[dspy.Example], val: list[dspy.Example]
) -> tuple[Any, AceError | None]:
    """Return the program, and the error that ended the run after something was learned."""
    try:
        return optimizer.compile(student, train, valset=val), None
    except AceError as error:
        program = getattr(error, "program", None)
        if program is None or not program.detailed_results.records:
            raise
        return program, error
    except KeyboardInterrupt:
        kept = f"The steps done are in {optimizer.log_dir}; the same command goes on."
        say(f"Stopped. {kept if optimizer.log_dir else 'Nothing was learned yet; with --log-dir a run goes on later.'}")
        raise click.exceptions.Exit(INTERRUPTED) from None


def _split(cases: Cases, most: int, seed: int) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Shuffle the rows and part them: two thirds to learn from, at most 60 to check on."""
    rows = list(cases.examples)
    random.Random(seed).shuffle(rows)  # noqa: S311 - a seeded order, not a secret
    if len(rows) > most:
        say(f"{most} of {len(rows)} rows are used; --rows sets the number.")
    rows = rows[:most]
    cut = max(1, min(60, len(rows) // 3))
    return rows[cut:], rows[:cut]


def _model(name: str | None, api_base: str | None, max_cost: float | None, default: Any = None) -> Any:
    """Return the LM of that name. Raises SettingsError if there is none."""
    if name is None:
        return default
    if name == "offline":
        from ..testing import OfflineLM  # noqa: PLC0415 - for tests and first steps

        say("The offline model only reads words: it shows how things work, not how good they are.")
        return OfflineLM()
    given: dict[str, Any] = {}
    if api_base:
        given["api_base"] = api_base
        if not os.environ.get("OPENAI_API_KEY"):
            given["api_key"] = "no-key-needed"
    if max_cost is not None and (price := price_of(name)) is not None:  # else the longest answer would be reserved
        given["max_tokens"] = min(16_000, price.longest or 4_000)
    try:
        return dspy.LM(name, **given)
    except Exception as error:  # noqa: BLE001 - whatever a wrong name leads to is a wrong name
        raise SettingsError(f"{name!r} is no model: {error}") from None


def _check_keys(models: Iterable[str | None]) -> None:
    """Raise SettingsError if the environment has no key for a model: else the first calls would be made in vain."""
    for name in models:
        if name not in (None, "offline") and (keys := missing_keys(str(name))):
            raise SettingsError(f"{name!r} needs a key: set {' or '.join(keys)} in the environment.")


def _student(name: str | None, cases: Cases, prompt: str) -> dspy.Module:
    """Return the user's program, or one call with the prompt as its instructions."""
    if name is None:
        signature = f"{', '.join(cases.inputs)} -> {cases.expected}"
        return dspy.Predict(dspy.Signature(signature, prompt or None))
    if prompt:
        raise SettingsError("--prompt and --program exclude each other: the prompts are in the program.")
    made = _imported(name, "--program")
    try:
        program = made if isinstance(made, dspy.Module) else made()
    except Exception as error:  # noqa: BLE001 - a user's function may fail with anything
        raise SettingsError(f"--program {name} failed: {type(error).__name__}: {error}") from None
    if not isinstance(program, dspy.Module):
        raise SettingsError(f"--program {name} returned {type(program).__name__}; expected a DSPy program.")
    return program


def _metric(how: str, cases: Cases, judge: Any) -> Callable[..., Any]:
    """Return the metric of that name."""
    if how == "judge":
        return Judged(RUBRIC, judge, labels=True)
    if how in METRICS:
        return Compared(how, cases.expected)
    if ":" in how:
        found: Callable[..., Any] = _imported(how, "--metric")
        return found
    raise SettingsError(f"--metric {how} is unknown; use {', '.join(METRICS)}, judge, or module:function.")


def _imported(name: str, option: str) -> Any:
    """Return what `module:name` stands for; modules of the current folder are found."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # noqa: BLE001 - a module may fail with anything when it is imported
        raise SettingsError(f"{option} {name} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise SettingsError(f"{option} {name} is {type(found).__name__}; expected a function.")
    return found


def _prompts(program: Any, student: dspy.Module, prompt: str) -> str:
    """Return the better prompt; of a program with several, each below its name."""
    found = {name: str(each.signature.instructions) for name, each in program.named_predictors()}
    if prompt:  # as it stands in the file, and below it what is new
        (own,), (new,) = (take_out(str(each.signature.instructions)) for each in student.predictors()), found.values()
        return take_out(prompt)[0].rstrip("\n") + new.removeprefix(own[0])
    return next(iter(found.values())) if len(found) == 1 else "\n\n".join(f"# {k}\n{v}" for k, v in found.items())


# --- playbooks


@main.command()
@click.argument("playbook")
def show(playbook: str) -> None:
    """Print a playbook: its bullets by section, with votes."""
    found = Source.open(playbook).playbook
    say(f"{counted(len(found), 'bullet')}, about {found.tokens()} tokens in each prompt.")
    click.echo(found.to_text())


@main.command()
@click.argument("first")
@click.argument("second")
def diff(first: str, second: str) -> None:
    """Print what changed from one playbook to another."""
    click.echo(str(Source.open(first).playbook.diff(Source.open(second).playbook)))


@main.command()
@click.argument("first")
@click.argument("second")
@OUT
def merge(first: str, second: str, out: Path | None) -> None:
    """Make one playbook of two; what both know stands once."""
    both = merged(Source.open(first).playbook, Source.open(second).playbook)
    if out is None:
        click.echo(both.to_text())
    else:
        save(both, out)
        say(f"Written: {out}")


@main.command()
@click.argument("playbook")
@click.option("--text", "given", type=FILE, help="A file with the edited text. Default: your editor opens.")
@OUT
def edit(playbook: str, given: Path | None, out: Path | None) -> None:
    """Edit a playbook as text, in the editor that $EDITOR names; it is checked and put back.

    A line `- text` below a section is a new bullet. A bullet that you delete is gone.
    """
    source = Source.open(playbook)
    source.check_writable(out)
    kept = given or _edited(source.playbook.to_text())
    try:
        after = Playbook.from_text(read_text(kept), base=source.playbook)
    except AceError as error:
        raise SettingsError(f"{error} Nothing was changed; your text is in {kept}.") from None
    if given is None:
        kept.unlink()
    if after == source.playbook and out is None:
        say("Nothing was changed.")
        return
    source.put(after, out)
    say(f"Written: {out or playbook}")


def _edited(text: str) -> Path:
    """Let the user edit a text; returns the file it is in."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", prefix="playbook-", delete=False, encoding="utf-8") as file:
        file.write(text + "\n")
    click.edit(filename=file.name)
    return Path(file.name)


@main.command()
@click.argument("playbook")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "markdown", "prompt", "openai"]), default="text",
    show_default=True, help="prompt: as a model reads it; openai: the system message of a request. Of several "
    "predictors, each stands below its name.",
)  # fmt: skip
@OUT
def export(playbook: str, form: str, out: Path | None) -> None:
    """Print a playbook in another format."""
    source = Source.open(playbook)
    found, names = source.playbook, list(source.prompts) or ["prompt"]
    prompts = {name: source.with_prompt(found, name) for name in names}
    if form == "openai":
        messages = {name: [{"role": "system", "content": each}] for name, each in prompts.items()}
        text = json.dumps(messages if len(names) > 1 else messages[names[0]], indent=1)
    elif form == "prompt":
        text = "\n\n".join(f"# {n}\n{each}" if len(names) > 1 else each for n, each in prompts.items())
    elif form == "json":
        text = json.dumps(found.to_json(), indent=1)
    else:
        text = found.to_text() if form == "text" else found.to_markdown()
    if out is None:
        click.echo(text)
    else:
        write_whole(out, text + "\n")
        say(f"Written: {out}")


@main.command()
@click.argument("playbook")
@click.option("--source", "sources", multiple=True, help="An example or a person that it was learned from.")
@click.option("--matching", help="A regular expression: bullets with such a text go.")
@OUT
def forget(playbook: str, sources: tuple[str, ...], matching: str | None, out: Path | None) -> None:
    """Remove what some sources taught, or bullets with some text."""
    source = Source.open(playbook)
    source.check_writable(out)
    if source.kind == "store" and out is None:  # its history is rewritten
        with PlaybookStore(playbook) as store:
            account = store.forget(sources=sources, matching=matching)
    else:
        left, account = source.playbook.forget(sources=sources, matching=matching)
        source.put(left, out)
    say(str(account), f"Written: {out or playbook}")


@main.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: run.html in RUN]")
def report(run: Path, out: Path | None) -> None:
    """Write the page of the run in the folder RUN, finished or not."""
    say(f"Written: {Results.load(run).save_report(out or run / 'run.html')}")

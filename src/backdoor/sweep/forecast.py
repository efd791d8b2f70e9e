"""`python -m backdoor.plan -m ...`: what a sweep would do: jobs, distinct victims, what is done, the time; no training.

Nothing is read but configs and what lies beside the artifacts of the store; torch is not imported. Two stages count
as one if all that ran before them has the same config, so the counts are upper bounds: a stage that looks at less than
that (a detector's that needs no victim) may turn out to be shared by more jobs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from backdoor.configs.adopt import run_words
from backdoor.configs.command import Command, Job, check_job, read_command
from backdoor.configs.composer import Composer
from backdoor.configs.explain import explain
from backdoor.errors import UserError
from backdoor.store.store import META, store_root
from backdoor.sweep.jobs import all_words
from backdoor.sweep.reuse import find, stamp
from backdoor.sweep.stage_keys import Part, parts_of
from backdoor.sweep.workers import slots_of

TOLD_EVERY = 500


@dataclass(frozen=True)
class Past:
    """What the store knows of stages that ran.

    Attributes:
        keys: of the parts whose artifacts are there.
        seconds: `Part.like` -> how long such stages took.
    """

    keys: frozenset[str] = frozenset()
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @staticmethod
    def of(root: Path) -> Past:
        """Read beside every artifact; what cannot be read does not count."""
        keys, seconds = set(), dict[str, list[float]]()
        for kind in ("victim", "stage"):
            for path in root.glob(f"{kind}/*/{META}"):
                if "." in path.parent.name:  # half-made, or set aside
                    continue
                try:
                    mark = json.loads(path.read_text())["of"]["mark"]
                    spent = float(json.loads((path.parent / "outcome.json").read_text())["seconds"])
                    keys.add(str(mark["key"]))
                    seconds.setdefault(str(mark["like"]), []).append(spent)
                except (OSError, ValueError, KeyError, TypeError, RecursionError):
                    continue
        return Past(frozenset(keys), seconds)


@dataclass(frozen=True)
class Group:
    """The distinct stages of one kind.

    Attributes:
        uses: how often the jobs use them.
        todo: how many of them are to be trained.
        seconds: the time of those, as far as it is known.
        unknown: how many of those have no like in the past.
    """

    name: str
    distinct: int
    uses: int
    todo: int
    seconds: float
    unknown: int


def grouped(parts: Iterable[Part], needed: Collection[str], past: Past) -> list[Group]:
    """The parts of all jobs by group, in the order attack, victim, defense; `needed`: keys, of jobs that will run."""
    uses: dict[str, dict[str, tuple[Part, int]]] = {"attack": {}, "victim": {}, "defense": {}}
    for part in parts:
        _, count = uses[part.group].get(part.key, (part, 0))
        uses[part.group][part.key] = (part, count + 1)
    groups = []
    for name, found in uses.items():
        missing = [part for key, (part, _) in found.items() if key in needed and key not in past.keys]
        known = [mean(past.seconds[part.like]) for part in missing if part.like in past.seconds]
        total = sum(count for _, count in found.values())
        unknown = len(missing) - len(known)
        groups.append(Group(name, len(found), total, len(missing), sum(known), unknown))
    return groups


def plan_lines(jobs: int, done: int, groups: Sequence[Group], workers: int) -> list[str]:
    """What is printed; `done`: jobs whose result the store has."""
    lines = [f"jobs            {jobs:>7,}  {done:,} finished (skipped), {jobs - done:,} to run"]
    titles = {"attack": "attack stages", "victim": "victims", "defense": "defense stages"}
    for group in groups:
        if group.distinct:
            uses = f"used {group.uses:,} times, {group.todo:,} to train{_time(group)}"
            lines.append(f"{titles[group.name]:<15} {group.distinct:>7,}  {uses}")
    seconds, unknown = sum(group.seconds for group in groups), sum(group.unknown for group in groups)
    if unknown and not seconds:
        return [*lines, f"training time   not known: {unknown:,} stages are like none in the store"]
    at_least = "at least " if unknown else ""
    several = f", {shown_time(seconds / workers)} on {workers} workers" if workers > 1 else ""
    lines.append(f"training time   {at_least}{shown_time(seconds)}{several}, by what such stages took before")
    if unknown:
        lines.append(f"                {unknown:,} stages are like none in the store: their time is not known")
    return lines


def _time(group: Group) -> str:
    return f" ({shown_time(group.seconds)})" if group.seconds else ""


def shown_time(seconds: float) -> str:
    """For reading: 12 s, 3 min, 4.5 h, 2.1 days."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def jobs_of(command: Command, checked: list[Command]) -> Iterator[Job]:
    """All jobs of the command, composed; says on stderr how far it is."""
    words = all_words(command)
    composer = Composer(command)
    for number, one in enumerate(words, start=1):
        checked.append(replace(command, overrides=one, sweep=False))
        yield check_job(checked[-1], composer.compose)
        if number % TOLD_EVERY == 0:
            print(f"composed {number:,} of {len(words):,} jobs", file=sys.stderr, flush=True)


def workers_of(launcher: Mapping[str, Any]) -> int:
    """How many jobs the launcher's config runs at once; 1 where only the cluster knows."""
    if "devices" in launcher:
        return len(slots_of(launcher.get("workers"), launcher["devices"]))
    return int(launcher.get("array_parallelism", 1))


def plan(command: Command, checked: list[Command]) -> list[str]:
    """The lines of the plan; raises what composing raises."""
    once, done, jobs, parts, needed = cache(stamp), 0, 0, list[Part](), set[str]()
    for job in jobs_of(command, checked):
        if not jobs:
            past = Past.of(store_root(OmegaConf.select(job.cfg, "store.dir")))
            workers = workers_of(OmegaConf.to_container(job.whole.hydra.launcher, resolve=True))  # type: ignore[arg-type]
        own = parts_of(job.cfg, once)
        jobs += 1
        parts += own
        if find(job.cfg, once) is not None:
            done += 1
        else:
            needed |= {part.key for part in own}
    return plan_lines(jobs, done, grouped(parts, needed, past), min(workers, max(1, jobs - done)))


def run(argv: Sequence[str]) -> int:
    """Print the plan of a command line; the exit status."""
    checked: list[Command] = []
    try:
        command = read_command(argv)
        command = replace(command, overrides=(*command.overrides, *run_words(command.overrides)))
        if not command.composable:
            raise UserError("--config-path: expected an absolute path, and no hydra.searchpath beside --config-dir")
        checked.append(replace(command, sweep=False))
        print("\n".join(plan(command, checked)))
    except Exception as error:
        line = explain(error, checked[-1] if checked else None)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0

"""How often an audit cries wolf, and what it finds: on clean and on backdoored networks made here.

  python benchmarks/audit.py --network wideresnet-10-1 --clean 30 --attacks badnets,blended,adba:3
  python benchmarks/audit.py --runs runs/quickstart-01234567 --students kd:20

Digits, as the quickstart has them. Clean teachers are the references; each of them is also audited
by the others, which measures the rate of false alarms. Teachers with each of --attacks are audited
by all of them, and so are the students of --runs that are of this architecture; with --students
also by students of the same method of clean teachers, as the command does it. Every network is
measured once and written down at once: a second start goes on. Writes <out>/<network>.json with all
statistics, from which every p-value can be computed again (--again).
"""

import argparse
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from configs import quickstart
from rkd_jax import config as configs
from rkd_jax import experiment, given, manifest, recipes, subjects, workdir
from rkd_jax.audit import calibrate, measure
from rkd_jax.desk import Desk, images, plain
from rkd_jax.errors import UserError
from rkd_jax.finished import Run
from rkd_jax.reporting.files import read_json, write_json
from rkd_jax.reporting.progress import Reporter
from rkd_jax.runner import Runner
from rkd_jax.setup import Setup
from rkd_jax.training.loop import StopSignal

ALPHA = 0.05
OF_CLEAN = " of a clean teacher"
SMALL = 20  # references that the command trains by default


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--network", default="wideresnet-10-1")
  parser.add_argument("--clean", type=int, default=30, help="clean teachers")
  parser.add_argument("--first", type=int, default=110, help="the first of their seeds")
  parser.add_argument("--attacked", type=int, default=10, help="teachers for each attack")
  parser.add_argument("--attacks", default="badnets,blended", help="as badnets,adba:3 (of 3 seeds)")
  parser.add_argument("--runs", nargs="*", default=[], help="workdirs whose students are audited")
  parser.add_argument("--students", default="", help="of clean teachers, as kd:20,agreement:20")
  parser.add_argument("--teacher", default="wideresnet-16-2", help="of these students")
  parser.add_argument("--tests", default=",".join(t for t in measure.TESTS if t != "strip"))
  parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/benchmark-audit"))
  parser.add_argument("--teachers", default="", help="where they are kept; <work>/teachers")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/audit"))
  parser.add_argument("--again", action="store_true", help="only count again what is in the file")
  return parser.parse_args()


def main() -> None:
  options = arguments()
  path = options.out / f"{options.network}.json"
  made = read_json(path) if options.again else measured(options, path)
  made["counts"] = counts(made["networks"])
  write_json(path, made)
  print(json.dumps(made["counts"], indent=1))


def measured(options: argparse.Namespace, path: pathlib.Path) -> dict[str, Any]:
  """Trains and measures; writes the file after every network."""
  settings = measure.Settings(tests=tuple(options.tests.split(",")))
  found: dict[str, Any] = {"schema": 1, "network": options.network, "git": manifest.git_revision()}
  found |= {"versions": manifest.versions(), "settings": plain(settings), "networks": []}
  with StopSignal() as stop:
    workdir.make(options.work)
    for kind, seed, desk, where in networks(options, settings, stop):
      record, _ = desk.record(f"{kind} {seed}", where)
      found["data"] = {"name": desk.dataset.name, "fingerprint": desk.dataset.fingerprint}
      found["networks"].append({"kind": kind, "seed": seed, **record})
      write_json(path, found)
  return found


def networks(
  options: argparse.Namespace, settings: measure.Settings, stop: StopSignal
) -> Iterator[tuple[str, int, Desk, given.Given]]:
  """(kind, seed, who measures it, the network) of everything that is asked for."""
  attacks = many(options.attacks, options.attacked)
  desks = {name: desk_of(options, name, settings, stop) for name in (attacks or {"badnets": 0})}
  first = next(iter(desks.values()))
  for number in range(max([options.clean, *attacks.values()])):
    if number < options.clean:
      seed = options.first + number
      phase = Setup(first.runner.config, first.dataset, seed).benign
      yield "clean", seed, first, given.read(str(first.runner.finish(phase).directory))
    for name in [name for name, count in attacks.items() if number < count]:
      desk = desks[name]
      phase = Setup(desk.runner.config, desk.dataset, number).planted.phase
      yield name, number, desk, given.read(str(desk.runner.finish(phase).directory))
  yield from students(options, settings, stop)
  for run in map(pathlib.Path, options.runs):
    for subject in of_run(run, options.network):
      yield f"{run.name}: {subject.name.partition('/')[2]}", subject.seed or 0, first, subject.given


def many(text: str, otherwise: int) -> dict[str, int]:
  """ "badnets,adba:3" as {name: how many}."""
  found = (part.partition(":") for part in text.split(",") if part)
  return {name: int(count or otherwise) for name, _, count in found}


def students(
  options: argparse.Namespace, settings: measure.Settings, stop: StopSignal
) -> Iterator[tuple[str, int, Desk, given.Given]]:
  """The students of clean teachers that are asked for."""
  wanted = many(options.students, SMALL)
  if not wanted:
    return
  desk = desk_of(options, "badnets", settings, stop, options.teacher)
  specs = recipes.specs(desk.runner.config)
  for method, count in wanted.items():
    for seed in range(options.first, options.first + count):
      setup = Setup(desk.runner.config, desk.dataset, seed, clean_teacher=True)
      phase = recipes.phases(setup, specs[method])["student"]
      where = given.read(str(desk.runner.finish(phase).directory))
      yield f"{method}{OF_CLEAN}", seed, desk, where


def of_run(run: pathlib.Path, network: str) -> list[subjects.Subject]:
  """The networks of that architecture, of every seed."""
  opened = Run(run)
  found = subjects.of_run(opened, opened.seeds, [], controls=True)
  return [subject for subject in found if subject.given.network == network]


def desk_of(
  options: argparse.Namespace, attack: str, settings: measure.Settings, stop: StopSignal,
  network: str = "",
) -> Desk:  # fmt: skip
  config = quickstart.get_config()
  config.update({"backdoor": attack, "contamination": 0.0})
  config.teacher.network = network or options.network
  config.teachers_dir = options.teachers or str(options.work / "teachers")
  configs.normalise(config)
  say = Reporter()
  dataset = experiment.load(config, say)
  runner = Runner(config, dataset, options.work / attack, say, stop)
  folder = options.work / "records"
  return Desk(runner, images(dataset, settings), settings, folder)


def counts(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """False alarms and findings, of each test alone and of their combination, at p <= .05."""
  clean = [one for one in found if one["kind"] == "clean"]
  tests = [t for t in measure.VERDICT if all(t in one["tests"] for one in found)]
  families = {"together": tests} | {
    test: [test] for test in measure.TESTS if test in clean[0]["tests"]
  }
  result: dict[str, Any] = {"references": len(clean), "family": tests, "usual": usual(found)}
  result["students"] = kin(found, tests)
  result["mixed"] = mixed(found, tests)
  for name, family in families.items():
    result[name] = {
      "false_alarms": line(calibrate.false_alarms(clean, family)),
      f"false_alarms_of_{SMALL}": line(held_out(clean, family)),
    }
    for kind in dict.fromkeys(one["kind"] for one in found if one["kind"] != "clean"):
      own = [one for one in found if one["kind"] == kind]
      judged = [calibrate.judge(clean, one, family) for one in own]
      few = [calibrate.judge(clean[:SMALL], one, family).p for one in own]
      suspects = [j.opinions[j.test].suspect for j in judged]
      result[name][kind] = line([j.p for j in judged]) | {"suspects": suspects}
      result[name][kind] |= {f"found_of_{SMALL}": int(np.sum(np.array(few) <= ALPHA))}
  return result


def kin(found: Sequence[dict[str, Any]], family: Sequence[str]) -> dict[str, Any]:
  """Students of runs, among students of their own method of clean teachers."""
  result = {}
  for method in dict.fromkeys(one["kind"].removesuffix(OF_CLEAN) for one in found):
    own = [one for one in found if one["kind"] == method + OF_CLEAN]
    if len(own) <= calibrate.FEWEST:
      continue
    result[method] = {"false_alarms": line(calibrate.false_alarms(own, family))}
    for name in (method, f"{method}-clean"):
      audited = [one for one in found if one["kind"].endswith(f": {name}")]
      judged = [calibrate.judge(own, one, family) for one in audited]
      suspects = [j.opinions[j.test].suspect for j in judged]
      result[method][name] = line([j.p for j in judged]) | {
        "suspects": suspects,
        "tests": [j.test for j in judged],
      }
  return result


def mixed(found: Sequence[dict[str, Any]], family: Sequence[str]) -> dict[str, Any]:
  """Everybody else among `SMALL` networks of which half were taught labels and half by kd, which is
  how the command judges a file."""
  half = SMALL // 2
  kinds = ("clean", f"kd{OF_CLEAN}")
  own = [[one for one in found if one["kind"] == kind] for kind in kinds]
  if min(map(len, own)) < half:
    return {}
  references = [one for part in own for one in part[:half]]
  rest = [one for part in own for one in part[half:]]
  rest += [one for one in found if one["kind"] not in kinds]
  result: dict[str, Any] = {}
  for kind in dict.fromkeys(one["kind"] for one in rest):
    judged = [calibrate.judge(references, one, family) for one in rest if one["kind"] == kind]
    suspects = [j.opinions[j.test].suspect for j in judged]
    result[kind] = line([j.p for j in judged]) | {"suspects": suspects}
  return result


def usual(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """What the papers' own rules say: {rule: {kind: [flagged, of]}}.

  Neural Cleanse: (median - smallest) / (1.4826 MAD) of the masks' norms is above 2; MM-BD: its
  nominal p-value is at most .05.
  """
  rules = {"neural_cleanse_above_2": neural_cleanse, "mmbd_nominal": margins}
  result: dict[str, Any] = {}
  for rule, flagged in rules.items():
    result[rule] = {}
    for kind in dict.fromkeys(one["kind"] for one in found):
      own = [flagged(one["tests"]) for one in found if one["kind"] == kind]
      result[rule][kind] = [sum(own), len(own)]
  return result


def neural_cleanse(tests: dict[str, Any]) -> bool:
  sizes = np.array(tests["patch"]["sizes"])
  middle = np.median(sizes)
  spread = 1.4826 * np.median(np.abs(sizes - middle))
  return bool((middle - sizes.min()) / max(spread, 1e-12) > 2)


def margins(tests: dict[str, Any]) -> bool:
  nominal = tests["mmbd"]["nominal"]
  return nominal is not None and nominal <= ALPHA


def held_out(clean: Sequence[dict[str, Any]], family: Sequence[str]) -> list[float]:
  """p-values of the clean networks behind the first `SMALL`, among these."""
  if len(clean) <= SMALL:
    return []
  return [calibrate.judge(clean[:SMALL], one, family).p for one in clean[SMALL:]]


def line(found: Sequence[float]) -> dict[str, Any]:
  return {
    "n": len(found),
    "found": int(np.sum(np.array(found) <= ALPHA)),
    "p": [round(float(p), 4) for p in found],
  }


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    raise SystemExit(f"error: {error}") from error

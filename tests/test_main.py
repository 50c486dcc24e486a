"""The command line: every mistake gets status 2 and a message that names it, before any work."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from configs import quickstart
from rkd_jax import config as configs
from rkd_jax import experiment, main, workdir
from rkd_jax.errors import UserError
from rkd_jax.training.loop import Preempted

# Of ml_collections, when it loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
  """Calls main in this process: (status, stderr); the workdir is tmp_path/run."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(experiment.Story, "run", lambda self: pytest.fail("work was begun"))
  known = set(flags.FLAGS)

  def call(*arguments, config=f"{CONFIG}:smoke", workdir=tmp_path / "run"):
    argv = ["rkd", "--config", config, *arguments]
    argv += ["--workdir", str(workdir)] if workdir else []
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks there for overrides
    try:
      return main.main(argv), capsys.readouterr().err
    finally:
      reset(known)

  return call


def reset(known: set[str]) -> None:
  """absl's flags as they were before a command line was parsed."""
  for name in set(flags.FLAGS) - known:  # overrides become flags
    delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()
  for name in ("config", "workdir", "quiet"):
    flags.FLAGS[name].unparse()
  flags.FLAGS.mark_as_parsed()


def refused(result, *words) -> str:
  status, text = result
  assert status == 2, text
  assert text.startswith("error: ") and "Traceback" not in text
  assert len(text) < 1500, "a page of it"
  for word in words:
    assert re.search(word, text), text
  return text


WRONG = {
  # the command line
  "unknown key": (["--config.lables=0.1"], [r"'lables'", r"labels"]),
  "unknown key above": (
    ["--config.epochs=3"],
    [r"'epochs'", r"--config.student.epochs= or --config.teacher"],
  ),
  "unknown key inside": (["--config.student.epoch=3"], [r"'epoch'", r"epochs"]),
  "wrong type": (["--config.labels=5%"], [r"--config\.labels is '5%'; give a number"]),
  "wrong type of a whole number": (
    ["--config.data.size=32x32"],
    [r"--config\.data\.size is '32x32'; give a whole number"],
  ),
  "a half where only a whole number fits": (
    ["--config.student.epochs=1.5"],
    [r"epochs is '1\.5'; give a whole number"],
  ),
  "neither true nor false": (
    ["--config.data.skip_corrupt=perhaps"],
    [r"skip_corrupt is 'perhaps'; give true or false"],
  ),
  "unknown flag": (["--wokdir=x"], [r"wokdir", r"workdir"]),
  "something left over": (["train"], [r"train", r"--config"]),
  # names
  "unknown method": (["--config.methods=kd,agrement"], [r"'agrement'", r"'agreement'"]),
  "unknown base": (
    ["--config.methods=agreement", "--config.method.agreement.base=kdd"],
    [r"'kdd'", r"'kd'"],
  ),
  "unknown network": (
    ["--config.student.network=wideresnt-10-1"],
    [r"'wideresnt'", r"'wideresnet'"],
  ),
  "unknown depth": (["--config.student.network=wideresnet-11-1"], [r"depth 11", r"16"]),
  "unreadable network": (["--config.teacher.network=wideresnet-a"], [r"wideresnet-a", r"depth"]),
  "unknown data set": (["--config.data.name=digit"], [r"'digit'", r"'digits'"]),
  "unknown backdoor": (["--config.backdoor=badnet"], [r"'badnet'", r"'badnets'"]),
  "method for a backdoor": (["--config.backdoor=kd"], [r"'kd'", r"badnets"]),
  "unknown optimizer": (["--config.student.optimizer.name=sdg"], [r"'sdg'", r"'sgd'"]),
  "unknown schedule": (["--config.student.optimizer.schedule=cosin"], [r"'cosin'", r"'cosine'"]),
  "unknown padding": (["--config.student.augment.pad=zero"], [r"'zero'", r"constant"]),
  "unknown type": (["--config.dtype=flot32"], [r"flot32", r"float32"]),
  # numbers
  "target": (["--config.target=10"], [r"class 10", r"0\.\.9"]),
  "negative target": (["--config.target=-1"], [r"class -1", r"0\.\.9"]),
  "poison": (["--config.teacher.poison=1.5"], [r"teacher\.poison is 1\.5"]),
  "labels": (["--config.labels=-0.1"], [r"labels is -0\.1"]),
  "labels that are no number": (["--config.labels=nan"], [r"labels is nan"]),
  "contamination": (["--config.contamination=2"], [r"contamination is 2"]),
  "classes without a label": (["--config.labels=0.005"], [r"labels: none for class", r"0\.0\d+"]),
  "no labels but a method that needs them": (["--config.labels=0"], [r"config\.labels is 0"]),
  "too much contamination": (["--config.contamination=0.99"], [r"contamination=0\.99", r"1045"]),
  "empty hold-out": (["--config.data.holdout=0.0"], [r"holdout", r"empty"]),
  "empty test": (["--config.data.test=0.0"], [r"test part", r"empty"]),
  "half an example": (["--config.data.test=10.5"], [r"test part", r"10\.5"]),
  "more test than data": (["--config.data.test=5000.0"], [r"config\.data\.test", r"1797"]),
  "rounds": (
    ["--config.methods=agreement", "--config.method.agreement.rounds=0"],
    [r"rounds is 0"],
  ),
  "epochs": (["--config.student.epochs=0"], [r"config\.student", r"epochs"]),
  "batch": (["--config.teacher.batch_size=0"], [r"config\.teacher", r"batch_size"]),
  "groups": (["--config.bn_group=48"], [r"48", r"bn_group"]),
  "rate": (["--config.student.optimizer.learning_rate=-1"], [r"learning_rate is -1"]),
  "crop": (["--config.student.augment.crop=-1"], [r"crop is -1"]),
  "kd's own": (["--config.method.kd.alpha=1.2"], [r"kd\.alpha is 1\.2"]),
  "the trigger's own": (["--config.trigger.badnets.size=17"], [r"badnets\.size is 17"]),
  "devices": (["--config.devices=64"], [r"devices is 64", r"sees 8"]),
  "fewer than no devices": (["--config.devices=-1"], [r"devices"]),
  "save_every": (["--config.save_every=0"], [r"save_every"]),
  "eval_batch": (["--config.eval_batch=0"], [r"eval_batch"]),
  "rounds of an epoch": (["--config.student.rounds_per_epoch=0"], [r"rounds_per_epoch is 0"]),
  "clip": (["--config.student.optimizer.clip=-1"], [r"optimizer\.clip is -1"]),
  "no seeds": (["--config.seeds=()"], [r"seeds"]),
  "seeds twice": (["--config.seeds=1,1"], [r"seeds is \(1, 1\)"]),
  "no methods": (["--config.methods=,"], [r"methods"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_says_what_is_wrong_and_leaves_nothing_behind(command, tmp_path, name):
  arguments, words = WRONG[name]
  refused(command(*arguments), *words)
  left = [p for p in tmp_path.rglob("*") if p.is_file()]
  assert not left, left


def test_a_missing_config(command, tmp_path):
  refused(command(config="nowhere/quick.py"), "nowhere/quick.py")
  (tmp_path / "broken.py").write_text("def get_config():\n  retrun 3\n")
  refused(command(config="broken.py"), "broken.py")


def test_a_config_without_get_config(tmp_path):
  (tmp_path / "empty.py").write_text("x = 1\n")
  command = [sys.executable, "-m", "rkd_jax.main", "--config", str(tmp_path / "empty.py")]
  ran = subprocess.run(command, cwd=CONFIG.parents[1], capture_output=True, text=True, check=False)
  refused((ran.returncode, ran.stderr), "empty.py", "get_config")


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ("c.lables = 0.5", [r"config\.lables is no key", r"'labels'"]),
    ("c.student.optimizer.lr = 0.1", [r"config\.student\.optimizer\.lr is no key"]),
    ("del c['method']", [r"lacks config\.method", r"default\(\)"]),
    ("del c.student['epochs']", [r"lacks config\.student\.epochs"]),
    ("c.student.optimizers.studnet = {}", [r"student\.optimizers: no phase trains 'studnet'"]),
    ("c.student.optimizers.student = {'lr': 0.1}", [r"optimizer of 'student' has no 'lr'"]),
  ],
)
def test_a_config_file_with_other_keys(command, tmp_path, line, words):
  text = "from configs import quickstart\ndef get_config(arg=None):\n"
  text += f"  c = quickstart.get_config('smoke')\n  c.unlock()\n  {line}\n  return c\n"
  (tmp_path / "mine.py").write_text(text)
  refused(command(config=str(tmp_path / "mine.py")), *words)
  assert not (tmp_path / "run").exists()


def test_an_unknown_argument_of_the_config(command):
  refused(command(config=f"{CONFIG}:smok"), "'smok'", "smoke")


@pytest.mark.parametrize("arguments", [[], ["configs/quickstart.py"]])
def test_no_config_at_all(arguments):
  # in a process of its own: where nothing was parsed before, absl's flags refuse to be read
  line = [sys.executable, "-m", "rkd_jax.main", *arguments]
  ran = subprocess.run(line, cwd=CONFIG.parents[1], capture_output=True, text=True, check=False)
  refused((ran.returncode, ran.stderr), "Usage: .*--config", *arguments)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_flags_and_the_commands(capsys, flag):
  assert main.main(["rkd", flag]) == 0
  said = capsys.readouterr().out
  for word in ("--config FILE", "--workdir", "--verbosity", "docs/config.md", "verify"):
    assert word in said


def test_a_workdir_below_a_file(command, tmp_path):
  (tmp_path / "file").write_text("x")
  refused(command(workdir=tmp_path / "file" / "run"), "file/run", "--workdir")
  assert (tmp_path / "file").read_text() == "x"


def test_a_buckets_address_is_no_workdir(command, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  refused(command(workdir="gs://bucket/run"), "gs://bucket/run is an address", "--workdir")
  refused(command("--config.teachers_dir=gs://bucket/t"), "gs://bucket/t is an address")
  assert not list(tmp_path.glob("gs*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_may_not_be_written(command, tmp_path):
  (tmp_path / "locked").mkdir(mode=0o500)
  refused(command(workdir=tmp_path / "locked" / "run"), "locked/run", "--workdir")


def smoke(**changes):
  found = quickstart.get_config("smoke")
  found.update(changes)
  return found


def test_another_configs_workdir_is_refused_by_what_differs(command, tmp_path):
  workdir.claim(tmp_path / "run", smoke(labels=0.1, target=3), "f")
  text = refused(command(), r"config\.labels: 0\.1 there, 0\.05 now", r"config\.target: 3 there, 0")
  assert "config.contamination" not in text
  assert "teachers" not in {p.name for p in tmp_path.iterdir()}


def test_two_runs_in_one_workdir_are_refused(command, tmp_path):
  (tmp_path / "run").mkdir()
  with workdir.only_run(tmp_path / "run"):
    refused(command(), "Another run is at work", str(tmp_path / "run"))


def test_a_run_that_ended_leaves_the_workdir_free(tmp_path):
  for _ in range(2):
    with workdir.only_run(tmp_path):
      pass


def test_other_endings_have_their_own_status(command, monkeypatch):
  def ending(error):
    def run(*_):
      raise error

    monkeypatch.setattr(experiment, "run", run)
    return command()

  status, text = ending(Preempted("SIGTERM came at step 3 of 9; the state is saved."))
  assert status == 75 and "step 3" in text and "same command" in text
  status, text = ending(KeyboardInterrupt())
  assert status == 130 and "same command" in text
  refused(ending(OSError(28, "No space left on device", "/x/y")), "No space left", "/x/y")
  with pytest.raises(ZeroDivisionError):  # our own mistakes keep their traceback
    ending(ZeroDivisionError())


@pytest.mark.parametrize(
  "arguments, said",
  [
    ([], (False, False)),
    (["--quiet"], (True, False)),
    (["--verbosity=quiet"], (True, False)),
    (["--verbosity", "debug"], (False, True)),
    (["--verbosity=normal"], (False, False)),
  ],
)
def test_how_much_is_said(command, monkeypatch, arguments, said):
  seen = []
  monkeypatch.setattr(experiment, "run", lambda *given: seen.append(given[3:]))
  assert command(*arguments)[0] == 0 and seen == [said]


def test_a_verbosity_that_is_none(command):
  refused(command("--verbosity=loud"), "'loud'", "quiet, normal, debug")


def test_debug_shows_where_it_went_wrong(command):
  status, text = command("--verbosity=debug", "--config.labels=-1")
  assert status == 2 and "Traceback" in text
  assert text.splitlines()[-1].startswith("error: config.labels is -1")


def test_the_default_workdir_is_named_after_the_config(command, monkeypatch):
  seen = []
  monkeypatch.setattr(experiment, "run", lambda config, path, name, *_: seen.append((path, name)))
  for arguments in ([], ["--config.labels=0.1"], ["--config.methods=none,kd,rkd"]):
    assert command(*arguments, workdir=None)[0] == 0
  (a, name), (b, _), (c, _) = seen
  assert name == "quickstart" and re.fullmatch(r"runs/quickstart-[0-9a-f]{8}", str(a))
  assert a != b and a == c  # said twice is the same


def test_overrides_arrive(command, monkeypatch):
  seen = []
  monkeypatch.setattr(experiment, "run", lambda config, *_: seen.append(config))
  flags = ["--config.seeds=3,4", "--config.methods=none,kd", "--config.method.kd.alpha=0.5"]
  flags.append("--config.eval.adversarial.attacks=pgd-20,autoattack")
  assert command(*flags)[0] == 0
  configs.normalise(seen[0])
  assert seen[0].seeds == (3, 4) and seen[0].methods == ("none", "kd")
  assert seen[0].eval.adversarial.attacks == ("pgd-20", "autoattack")
  assert seen[0].method.kd.alpha == 0.5 and seen[0].is_locked


@pytest.mark.parametrize(
  ("argv", "status", "said"),
  [
    (["verify", "nowhere"], 2, "nowhere"),
    (["inspect", "nowhere"], 1, "nowhere"),
    (["verfy", "x"], 2, "Did you mean 'verify'?"),
    (["--confg"], 2, "confg"),
  ],
)
def test_the_script_runs_commands_by_name(monkeypatch, capsys, argv, status, said):
  monkeypatch.setattr(sys, "argv", ["rkd", *argv])
  with pytest.raises(SystemExit) as left:
    main.cli()
  assert left.value.code == status and said in capsys.readouterr().err


def test_a_workdir_of_other_images_is_refused(tmp_path):
  workdir.claim(tmp_path, smoke(), "these")
  workdir.claim(tmp_path, smoke(), "these")
  with pytest.raises(UserError, match="was made from other images: 'digits'"):
    workdir.claim(tmp_path, smoke(), "those")

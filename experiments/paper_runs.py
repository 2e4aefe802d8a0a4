"""Finds the results folders that a table reads, or runs what fills them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import pathlib
import shlex
import subprocess
import sys
from typing import Any

from experiments.bags import cohort as cohorts, options
from experiments.bags.ablation import SETTINGS
from experiments.bags.options import Data, External, Folds, Model, Training
from experiments.evaluation import predictions
from experiments.evaluation.predictions import Predictions
from experiments.run.options import decisive, to_json
from experiments.run.results import Folder
from experiments.run.start import Cache, Output, lines

_STDERR = 2  # Its number: standard output is for the tables.
_DECIDE = Model, Data, Folds, Training, Output


@dataclasses.dataclass(frozen=True)
class Job:
  """A command, and the results folders that it fills."""

  command: tuple[str, ...]  # what follows `python -m`
  task: str
  folders: Mapping[pathlib.Path, Model]
  external: bool = False  # whether every fold is tested on a second cohort

  @property
  def folder(self) -> pathlib.Path:
    """The first of the folders."""
    return next(iter(self.folders))


@dataclasses.dataclass(frozen=True)
class Runs:
  """The options that the jobs of a table share."""

  data: Data
  external: External
  folds: Folds
  training: Training
  output: Output
  cache: Cache

  def cross_validation(
    self, model: str, task: str, external: bool = False
  ) -> Job:
    """Returns what trains a model on a task, and a test on a second cohort."""
    code = f'{model}_{task}'
    command = (
      'experiments.kmil',
      f'--model={model}',
      f'--task={task}',
      '--heat_maps=0',
      *self._code_flag(code),
    )
    folders = {self.output_dir(code): Model(model=model)}
    return Job(command, task, folders, external)

  def ablations(self) -> Job:
    """Returns what trains KMIL under every setting of Tables 4 and 5."""
    code = 'ablations_origin'
    root = self.output_dir(code)
    folders = {root / name: model for name, model in SETTINGS.items()}
    command = ('experiments.ablations', *self._code_flag(code))
    return Job(command, 'origin', folders)

  def output_dir(self, code: str) -> pathlib.Path:
    """Folder of an experiment; --exp_code goes before its name."""
    named = dataclasses.replace(self.output, exp_code=self._prefixed(code))
    return named.folder(code)

  def given(self) -> list[str]:
    """Returns the flags that every command gets: those that are not default."""
    output = dataclasses.replace(self.output, exp_code=None)
    mine = [self.data, self.external, self.folds, self.training]
    mine += [output, self.cache]
    usual = lines([type(one)() for one in mine]).splitlines()
    return [line for line in lines(mine).splitlines() if line not in usual]

  def complete(self, jobs: Iterable[Job]) -> None:
    """Runs the jobs that are not done, one after the other.

    What is done with the same options on the same data is left alone. All else
    is run: the command itself refuses a folder of other settings, and trains no
    fold twice. Each command is printed before it runs, on standard error as all
    that it prints.

    Raises:
      SystemExit: with the status of a job that fails.
    """
    inputs_of = functools.cache(self._inputs)
    for job in jobs:
      if self._is_complete(job) and self._is_unchanged(job, inputs_of):
        continue
      code = self._run(job)
      if code:
        sys.exit(code if code > 0 else 128 - code)

  def check(self, jobs: Iterable[Job]) -> int:
    """Runs all jobs with --check; returns 1 if any has problems."""
    return int(any([self._run(job, '--check') for job in jobs]))

  def _run(self, job: Job, *more: str) -> int:
    """Runs a command; returns its status, of a signal its negative number."""
    command = ['-m', *job.command, *self.given(), *more]
    shown = shlex.join(['python', *command])
    print(f'$ {shown}', file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *command], stdout=_STDERR)
    if done.returncode:
      print(f'error: this command failed: {shown}', file=sys.stderr)
    return done.returncode

  def _prefixed(self, code: str) -> str | None:
    prefix = self.output.exp_code
    return f'{prefix}_{code}' if prefix else None

  def _code_flag(self, code: str) -> list[str]:
    name = self._prefixed(code)
    return [f'--exp_code={name}'] if name else []

  def _is_complete(self, job: Job) -> bool:
    folds = list(range(self.folds.k))
    for folder in job.folders:
      if not (folder / 'summary.json').exists():
        return False
      found = summary(folder)
      parts = {predictions.TEST: found}
      if job.external:
        parts[predictions.EXTERNAL] = found.get('external', {})
      for name, part in parts.items():
        paths = [folder / f'fold_{fold}' / name for fold in folds]
        if part.get('folds') != folds or not all(p.exists() for p in paths):
          return False
    return True

  def _is_unchanged(self, job: Job, inputs_of: Callable) -> bool:
    """Whether the folders are of these options and data."""
    inputs, second = inputs_of(job.task, job.external)
    data = dataclasses.replace(self.data, task=job.task)
    for path, model in job.folders.items():
      config = Folder(path).config()
      training = self.training.resolved(model.model)
      now = to_json([model, data, self.folds, training, self.output])
      before = to_json(options.read(config, *_DECIDE))
      if any(now[name] != before[name] for name in decisive(_DECIDE)):
        return False
      if config.inputs != inputs:
        return False
      if job.external and _read_json(path / 'external.json') != second:
        return False
    return True

  def _inputs(self, task: str, external: bool) -> tuple[dict, dict | None]:
    """Hashes of the cohort under a task, and of the second if it is asked."""
    with contextlib.redirect_stdout(sys.stderr):
      material = cohorts.load(
        dataclasses.replace(self.data, task=task),
        self.folds,
        self.output.seed,
        self.cache.cache_dir,
        self.external if external else None,
      )
      material.check()
    second = material.second.fingerprint() if external else None
    return material.inputs(), second


def summary(folder: pathlib.Path) -> dict:
  """Returns what `summary.summarise` wrote of a folder."""
  return _read_json(folder / 'summary.json')


def test_parts(folder: pathlib.Path, classes: Sequence[str]) -> Predictions:
  """Returns the test parts of all folds as one."""
  folds = predictions.read_folds(Folder(folder), classes)
  return predictions.pool([parts['test'] for parts in folds.values()])


def both_cohorts(
  folder: pathlib.Path, classes: Sequence[str]
) -> dict[str, Predictions]:
  """Returns the test parts, and the mean probabilities of the second cohort."""
  return {
    'internal': test_parts(folder, classes),
    'external': predictions.mean(
      predictions.read_external(Folder(folder), classes)
    ),
  }


def _read_json(path: pathlib.Path) -> Any:
  return json.loads(path.read_text(encoding='utf-8'))

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

from data import splits as split_files
from experiments import (
  ablation_settings,
  common,
  predictions,
  settings as setting_flags,
  start,
)
from experiments.predictions import Predictions
from kmil_jax.models.dtfd import DTFD
from kmil_jax.models.kmil import Choice

_STDERR = 2  # Its number: standard output is for the tables.


@dataclasses.dataclass(frozen=True)
class Job:
  """A command, and the results folders that it fills."""

  command: tuple[str, ...]  # what follows `python -m`
  model: str
  task: str
  # By folder, the flags that its command alone has or sets.
  folders: Mapping[pathlib.Path, Mapping[str, Any]]
  external: bool = False  # whether every fold is tried on a second cohort

  @property
  def folder(self) -> pathlib.Path:
    """The first of the folders."""
    return next(iter(self.folders))


def cross_validation(model: str, task: str, external: bool = False) -> Job:
  """Returns what trains a model on a task, and tries it on a second cohort."""
  code = f'{model}_{task}'
  own = _choice_flags(Choice()) | {
    'model': model,
    'combine': False,
    'distill': DTFD.distill,
    'pseudo_bags': DTFD.pseudo_bags,
    'total_instances': DTFD.total_instances,
    'instance_score': DTFD.score,
  }
  command = (
    'experiments.kmil',
    f'--model={model}',
    f'--task={task}',
    '--heat_maps=0',
    *_code_flag(code),
  )
  return Job(
    command,
    model,
    task,
    {output_dir(code): own | _named(code, task)},
    external,
  )


def ablations() -> Job:
  """Returns what trains KMIL under every setting of Tables 4 and 5."""
  code = 'ablations_origin'
  folders = {
    output_dir(code) / name: _choice_flags(choice)
    | {'model': 'kmil'}
    | _named(code, 'origin')
    for name, choice in ablation_settings.SETTINGS.items()
  }
  command = ('experiments.ablations', *_code_flag(code))
  return Job(command, 'kmil', 'origin', folders)


def output_dir(code: str) -> pathlib.Path:
  """Folder of an experiment; --exp_code goes before its name."""
  name = _prefixed(code) or code
  return pathlib.Path(start.RESULTS_DIR.value) / f'{name}_s{start.SEED.value}'


def complete(
  jobs: Iterable[Job], values: Mapping[str, Any], given: Sequence[str]
) -> None:
  """Runs the jobs that are not done, one after the other.

  What is done with the same flags on the same data is left alone. All else is
  run: the command itself refuses a folder of other settings, and trains no
  fold twice. Each command is printed before it runs, on standard error as all
  it says.

  Args:
    jobs: in the order they run.
    values: of all flags that the jobs share, by name.
    given: flags for every job.

  Raises:
    SystemExit: with the status of a job that fails.
  """
  inputs_of = functools.cache(_inputs)
  for job in jobs:
    if _is_complete(job) and _is_unchanged(job, values, inputs_of):
      continue
    code = _run(job, given)
    if code:
      sys.exit(code if code > 0 else 128 - code)


def check(jobs: Iterable[Job], given: Sequence[str]) -> int:
  """Runs all jobs, to which --check is given; returns 1 if any has problems."""
  return int(any([_run(job, given) for job in jobs]))


def _run(job: Job, given: Sequence[str]) -> int:
  """Runs a command; returns its status, of a signal its negative number."""
  command = ['-m', *job.command, *given]
  shown = shlex.join(['python', *command])
  print(f'$ {shown}', file=sys.stderr, flush=True)
  done = subprocess.run([sys.executable, *command], stdout=_STDERR)
  if done.returncode:
    print(f'error: this command failed: {shown}', file=sys.stderr)
  return done.returncode


def summary(folder: pathlib.Path) -> dict:
  """Returns what `summaries.summarise` wrote of a folder."""
  return _read_json(folder / 'summary.json')


def test_parts(folder: pathlib.Path, classes: Sequence[str]) -> Predictions:
  """Returns the test parts of all folds as one."""
  folds = predictions.read_folds(folder, classes)
  return predictions.pool([parts['test'] for parts in folds.values()])


def both_cohorts(
  folder: pathlib.Path, classes: Sequence[str]
) -> dict[str, Predictions]:
  """Returns the test parts, and the mean probabilities of the second cohort."""
  return {
    'internal': test_parts(folder, classes),
    'external': predictions.mean(predictions.read_external(folder, classes)),
  }


def _is_complete(job: Job) -> bool:
  folds = list(range(common.K.value))
  for folder in job.folders:
    if not (folder / 'summary.json').exists():
      return False
    found = summary(folder)
    parts = {'predictions.csv': found}
    if job.external:
      parts['external.csv'] = found.get('external', {})
    for name, part in parts.items():
      paths = [folder / f'fold_{fold}' / name for fold in folds]
      if part.get('folds') != folds or not all(p.exists() for p in paths):
        return False
  return True


def _is_unchanged(
  job: Job, values: Mapping[str, Any], inputs_of: Callable
) -> bool:
  """Whether the folders are of these flags and data.

  False also where that is unknown, as of a flag that is new to this file.
  """
  settings = setting_flags.resolved(setting_flags.resolve(job.model))
  inputs, second = inputs_of(job.task, job.external)
  for folder, own in job.folders.items():
    config = _read_json(folder / 'config.json')
    now = {**values, **settings, **own}
    known = [config['flags'].get(name) for name in config['decides']]
    if known != [now.get(name) for name in config['decides']]:
      return False
    if config['inputs'] != inputs:
      return False
    if job.external and _read_json(folder / 'external.json') != second:
      return False
  return True


def _inputs(task: str, external: bool) -> tuple[dict, dict | None]:
  """Hashes of the cohort under a task, and of the second one if it is asked."""
  with contextlib.redirect_stdout(sys.stderr):
    cohort, _ = common.cohort(task)
    marks = cohort.fingerprint() | {
      'splits_sha256': split_files.fingerprint(
        cohort.manifest, common.splits(cohort)
      )
    }
    if not external:
      return marks, None
    return marks, common.external_cohort(cohort, task).fingerprint()


def _read_json(path: pathlib.Path) -> Any:
  return json.loads(path.read_text(encoding='utf-8'))


def _choice_flags(choice: Choice) -> dict[str, Any]:
  return {
    'score': choice.score,
    'drop': choice.drop,
    'drop_fraction': choice.drop_per_mille / 1000,
  }


def _named(code: str, task: str) -> dict[str, Any]:
  return {'task': task, 'exp_code': _prefixed(code)}


def _prefixed(code: str) -> str | None:
  prefix = start.EXP_CODE.value
  return f'{prefix}_{code}' if prefix else None


def _code_flag(code: str) -> list[str]:
  name = _prefixed(code)
  return [f'--exp_code={name}'] if name else []

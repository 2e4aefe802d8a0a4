"""Runs what fills the results folders that a table reads."""

from collections.abc import Iterable, Mapping
import dataclasses
import pathlib
import shlex
import subprocess
import sys

from data.files import counted
from experiments.bags.ablation import SETTINGS
from experiments.bags.options import Data, External, Folds, Training
from experiments.evaluation import comparison
from experiments.evaluation.comparison import Run
from experiments.run import start
from experiments.run.start import Cache, Output

_STDERR = 2  # Its number: standard output is for the tables.


@dataclasses.dataclass(frozen=True)
class Job:
  """A results folder, and the command that fills it, and maybe others."""

  name: str  # model, task or setting
  folder: pathlib.Path
  command: tuple[str, ...]  # what follows `python -m`


@dataclasses.dataclass(frozen=True)
class Runs:
  """The options that the jobs of a table share."""

  data: Data
  external: External  # every fold is tested on the second cohort, if any
  folds: Folds
  training: Training
  output: Output  # --exp_code stands before the names of the folders
  cache: Cache

  def of_models(self, models: Iterable[str]) -> list[Job]:
    """Returns what trains models on all five classes."""
    return [self._cross_validation(m, m, 'origin') for m in models]

  def of_tasks(self) -> list[Job]:
    """Returns what trains KMIL on Tasks A, B and C."""
    return [self._cross_validation(task, 'kmil', task) for task in 'abc']

  def of_settings(self) -> list[Job]:
    """Returns what trains KMIL under every setting of Tables 4 and 5."""
    root, flags = self.folder('ablations_origin')
    command = 'experiments.ablations', *flags
    return [Job(name, root / name, command) for name in SETTINGS]

  def folder(self, code: str) -> tuple[pathlib.Path, list[str]]:
    """Returns the folder of an experiment, and the flag that names it."""
    if self.output.exp_code is None:
      return self.output.folder(code), []
    code = f'{self.output.exp_code}_{code}'
    output = dataclasses.replace(self.output, exp_code=code)
    return output.folder(code), [f'--exp_code={code}']

  def run(self, jobs: Iterable[Job]) -> dict[str, Run]:
    """Runs the commands of jobs, one after the other.

    What is done they do not repeat, and a folder of other settings they refuse.
    Each is printed before it runs, on standard error as all that it prints.

    Returns:
      The results by the names of the jobs.

    Raises:
      SystemExit: with the status of a command that fails.
    """
    for command in dict.fromkeys(job.command for job in jobs):
      if code := self._run(command):
        sys.exit(code if code > 0 else 128 - code)
    return {job.name: comparison.read(job.folder, job.name) for job in jobs}

  def check(self, jobs: Iterable[Job]) -> None:
    """Runs all jobs with --check, and ends; with 1 if any has problems."""
    commands = dict.fromkeys(job.command for job in jobs)
    sys.exit(int(any([self._run((*c, '--check')) for c in commands])))

  def about(self, runs: Mapping[str, Run]) -> str:
    """Says on which data results were made, and with which flags."""
    counts = {}
    for name, run in runs.items():
      test, second = run.test(), run.summary.get('external')
      count = (
        f'{counted(len(test), "slide")} of'
        f' {counted(len(set(test.case)), "case")}'
      )
      if second:
        count += (
          f' (external: {counted(second["slides"], "slide")} of'
          f' {counted(second["cases"], "case")})'
        )
      counts.setdefault(count, []).append(name)
    text = '; '.join(
      count + f' in {", ".join(names)}' * (len(counts) > 1)
      for count, names in counts.items()
    )
    if flags := self._flags():
      text += f'; {" ".join(flags)}'
    if self.data.csv_path:
      return f'Data: {text}.'
    return (
      f'Data: the phantom cohort, {text}. Phantom slides are rendered: they say'
      ' nothing about the accuracy of these models on patients.'
    )

  def _cross_validation(self, name: str, model: str, task: str) -> Job:
    folder, flags = self.folder(f'{model}_{task}')
    flags = f'--model={model}', f'--task={task}', '--heat_maps=0', *flags
    return Job(name, folder, ('experiments.kmil', *flags))

  def _flags(self) -> list[str]:
    """Returns the flags that every command gets."""
    output = dataclasses.replace(self.output, exp_code=None)
    options = [self.data, self.external, self.folds, self.training]
    options += [output, self.cache]
    return start.flags(options)

  def _run(self, command: tuple[str, ...]) -> int:
    """Runs a command; returns its status, of a signal its negative number."""
    command = '-m', *command, *self._flags()
    shown = shlex.join(['python', *command])
    print(f'$ {shown}', file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *command], stdout=_STDERR)
    if done.returncode:
      print(f'error: this command failed: {shown}', file=sys.stderr)
    return done.returncode

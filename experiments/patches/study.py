"""Runs a study of a paper: its material, and a generator of what it yields.

  def stages(study, material, networks):
    for name in networks:
      trained = training.train(study.folder, name, ...)
    yield tables.Table(...)
    yield File('figures/roc.png', figure)

  study.run(PAPER, material, options, lambda s: stages(s, material, networks))

Stages print nothing: they yield texts, files and tables, which the runner
prints, writes and puts into report.html.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

from data.labelled_tiles import TileError
from data.weights import WeightsError
from experiments.evaluation.tables import Table
from experiments.run import progress, results, start
from experiments.run.start import Findings, Output, gathered, show
from kmil_jax import parallel
from kmil_jax.models import CLASSIFIERS

_FOUND = 'equal_tiles.json'  # What `Material.search` found.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
  """What a study works on; every study has a kind of its own.

  Attributes:
    note: what a reader needs to know of it.
    is_phantom: whether it was rendered.
    warnings: what may be wrong with it.
    search: finds more of that, and takes its time: done once for a folder.
  """

  note: str = ''
  is_phantom: bool = False
  warnings: Sequence[str] = ()
  search: Callable[[], Sequence[str]] | None = None

  @property
  def inputs(self) -> Mapping[str, Any]:
    """Hashes of what it holds, by name."""
    raise NotImplementedError

  def check(self, findings: Findings) -> None:
    """Adds what is wrong with it, for --check, beyond what opening it finds."""

  def tables(self) -> Iterator[Table]:
    """Yields what there is, before anything is trained."""
    yield from ()


def gathers_warnings(open_material: Callable) -> Callable:
  """Returns the function with what it warns of in its material's warnings."""

  @functools.wraps(open_material)
  def opened(*args: Any, **kwargs: Any) -> Material:
    caught = []
    with gathered(caught):
      material = open_material(*args, **kwargs)
    caught += material.warnings
    return dataclasses.replace(material, warnings=caught)

  return opened


@dataclasses.dataclass(frozen=True)
class File:
  """A file of the results folder.

  Attributes:
    name: in the folder.
    content: as `results.Folder.write` takes it.
  """

  name: str
  content: Any


@dataclasses.dataclass(frozen=True)
class Paper:
  """A published study.

  Attributes:
    name: of its results folder.
    source: who published it, and where.
    recipe: the paper's, a dataclass for each kind of training.
    about: what is done, for the report; the docstring of the script.
    phantom: what is changed of it on the phantom, by kind of training.
    own: what is changed of it otherwise, likewise.
    inputs: flags of images of your own.
  """

  name: str
  source: str
  recipe: Mapping[str, Any]
  about: str = ''
  phantom: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  own: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def here(self, options: Sequence[Any], is_phantom: bool) -> dict[str, Any]:
    """Returns the recipes as they are used: changed by the phantom, by flags.

    Args:
      options: a field that a recipe has, too, changes it unless it is None.
      is_phantom: whether the phantom's changes apply.
    """
    given = {}
    for one in options:
      given |= {k: v for k, v in vars(one).items() if v is not None}
    used = {}
    for kind, recipe in self.recipe.items():
      changes = dict((self.phantom if is_phantom else self.own).get(kind, {}))
      changes |= {k: v for k, v in given.items() if k in vars(recipe)}
      used[kind] = dataclasses.replace(recipe, **changes)
    return used

  def differences(self, here: Mapping[str, Any]) -> str:
    """Returns 'here (paper): epochs 4 (30) of resnet50'."""
    kinds: dict[tuple, list[str]] = {}
    for kind, recipe in here.items():
      for name, value in vars(recipe).items():
        if value != (published := getattr(self.recipe[kind], name)):
          kinds.setdefault((name, value, published), []).append(kind)
    text = lambda v: ', '.join(map(str, v)) if isinstance(v, tuple) else v
    kinds_with = lambda name: sum(name in vars(one) for one in here.values())
    parts = [
      f'{name.replace("_", " ")} {text(value)} ({text(published)})'
      + f' of {", ".join(some)}' * (len(some) < kinds_with(name))
      for (name, value, published), some in kinds.items()
    ]
    return 'here (paper): ' + (', '.join(parts) or 'the same recipe')


@dataclasses.dataclass(frozen=True)
class Study:
  """A paper at work."""

  folder: results.Folder
  recipe: Mapping[str, Any]  # by kind of training, as used
  seed: int


def run(
  paper: Paper,
  material: Material,
  options: Sequence[Any],
  stages: Callable[[Study], Iterator[Table | File | str | Exception]],
  *,
  check: bool = False,
) -> start.Next:
  """Runs a study, or goes on with one that was stopped.

  Args:
    paper: what is reproduced.
    material: what it works on.
    options: all of the script, an `Output` among them.
    stages: yields what is printed and written, in this order. What took long
      and is there already, it does not do again. An error that it yields is
      raised at the end.
    check: only says what is wrong with the material.

  Returns:
    The command that may come next: images of your own, then another seed.

  Raises:
    results.ResultsError: if the folder is in use, or of other options.
    FloatingPointError: if a training diverged; everything else is done first.
  """
  (output,) = (one for one in options if isinstance(one, Output))
  recipe = paper.here(options, material.is_phantom)
  counts, here = list(material.tables()), paper.differences(recipe)
  show('\n\n'.join([material.note, *(t.terminal() for t in counts), here]))
  findings = Findings(warnings=[*material.warnings])
  path, faults = output.folder(paper.name), []
  for file in _weights(options):  # The last of several trainings may need it.
    try:
      results.read_weights(file)
    except WeightsError as e:
      faults.append(str(e))
  if check:
    material.check(findings)
    with contextlib.suppress(TileError):  # It is among the problems by now.
      findings.warnings += material.search() if material.search else ()
    findings.add_folder(path)
    findings.problems += faults
    findings.close()
  if faults:
    raise WeightsError('\n'.join(faults))
  if parallel.is_first():
    findings.warn()
  with results.opened(path, options, material.inputs) as folder:
    if material.search and parallel.is_first():
      if not folder.at(_FOUND).exists():
        folder.write(_FOUND, material.search())
      found = Findings(warnings=folder.read(_FOUND, [str]))
      found.warn()
      findings.warnings += found.warnings
    parallel.wait_for_all('search')
    faults, shown = [], []
    for item in stages(Study(folder, recipe, output.seed)):
      match item:
        case File():
          folder.write(item.name, item.content)
          shown += [item] * item.name.startswith('figures/')
        case Exception():
          faults.append(item)
        case Table():
          folder.write(f'{item.name}.md', item.markdown())
          folder.write(f'{item.name}.csv', item.csv())
          shown.append(item)
          show('\n' + item.terminal())
        case note:
          shown.append(note)
          show(note)
    if parallel.is_first():
      _report(
        folder,
        material.is_phantom,
        [*findings.warnings, *map(str, faults)],
        paper=paper,
        note=material.note,
        counts=counts,
        here=here,
        shown=shown,
        options=[type(one) for one in options],
      )
    parallel.wait_for_all('study')
    show(f'results in {path}, on one page in {path / "report.html"}')
    progress.raise_if_diverged(progress.below(path))
    for fault in faults:
      raise fault
  if material.is_phantom:
    return None, {'exp_code': 'own', **paper.inputs}
  return None, {'seed': output.seed + 1}


def _weights(options: Sequence[Any]) -> Iterator[pathlib.Path]:
  """Yields the files that networks start from."""
  for given in filter(None, (vars(one).get('weights') for one in options)):
    pairs = [part.partition('=') for part in str(given).split(',')]
    are_named = all(name in CLASSIFIERS for name, *_ in pairs)
    files = [file for *_, file in pairs] if are_named else [given]
    yield from (pathlib.Path(file).expanduser() for file in files)


def _report(
  folder: results.Folder, phantom: bool, warnings: Sequence[str], **about: Any
) -> None:
  """Writes report.html."""
  # They import matplotlib, which takes half a second.
  from experiments.reporting import cautions, page, pictures

  config, found = folder.config(), [cautions.PHANTOM] * phantom
  found += [cautions.Caution('Found in the inputs', w, True) for w in warnings]
  page.fill(
    folder,
    'study.html.jinja',
    cautions=[*found, *cautions.software(folder, config)],
    config=config,
    uri=lambda name: pictures.shrunk(folder.at(name)),
    **about,
  )

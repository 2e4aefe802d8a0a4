"""The features of slides beside those that models take."""

from collections.abc import Sequence
import contextlib
import pathlib
from typing import NamedTuple

from data import files, inspection, labels, packed
from data.cohort import Match, compare, differences
from data.features import FeatureError
from experiments.prediction.models import Card, PredictionError
from experiments.run import progress
from kmil_jax import parallel
from kmil_jax.export import ExportError, Predictor


class Bags(NamedTuple):
  """The slides of a folder of features."""

  source: packed.Folder | packed.Packed
  ids: list[str]  # whether their files can be read or not
  differences: list[str]  # in what features are not those that the models take

  def check(self) -> None:
    """Raises if no prediction of the folder can be trusted.

    Raises:
      PredictionError: if features were made otherwise than those of the models.
    """
    if self.differences:
      raise PredictionError('\n'.join(self.differences))

  def check_memory(self, slide: str, models: Predictor) -> None:
    """Raises if a slide's bag does not fit in memory, before it is read.

    Raises:
      FeatureError: saying what it needs and what there is.
    """
    header, memory = self.source.header(slide), files.memory()
    if parallel.platform() != 'cpu':
      memory = parallel.memory_bytes(memory)
    needed = models.peak_bytes(header.length, header.width)
    if needed > memory:
      raise FeatureError(
        f'{slide}: the prediction of its {header.length} instances of'
        f' {header.width} features takes {needed / 2**30:.1f} GiB of memory;'
        f' there are {memory / 2**30:.1f} GiB. Predict fewer folds at once with'
        ' --fold, or extract larger tiles.'
      )

  def problems(self, models: Predictor) -> list[str]:
    """Returns all that keeps models from predicting the slides."""
    faults = [one.fault for one in self.source.seen.values() if one.fault]
    return [*self.differences, *faults, *self.too_large(models)]

  def too_large(self, models: Predictor) -> list[str]:
    """Returns of which slides the bags do not fit in memory, and why."""
    faults, lengths = [], {}
    for slide in self.ids:
      with contextlib.suppress(FeatureError):  # It is named otherwise.
        lengths[slide] = self.source.header(slide).length
    for slide in sorted(lengths, key=lengths.get, reverse=True):
      try:
        self.check_memory(slide, models)
      except (ExportError, FeatureError) as e:
        faults.append(str(e))
      else:
        break
    return faults


def cases(
  csv_path: pathlib.Path | None, slide_ids: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
  """Returns the case of each slide, none without a table, and what is wrong.

  Args:
    csv_path: table with the columns case_id and slide_id.
    slide_ids: whose; of others in the table it is not asked.
  """
  if not csv_path:
    return {}, []
  try:
    table, faults = labels.scan(csv_path, ('case_id', 'slide_id'))
  except labels.ManifestError as error:
    return {}, [str(error)]
  of = dict(zip(table.slide.tolist(), table.case.tolist(), strict=True))
  if missing := [slide for slide in slide_ids if slide not in of]:
    spare = sorted(of.keys() - set(slide_ids))
    faults.append(
      f'no row of {len(missing)} of {files.counted(len(slide_ids), "slide")}:'
      f' {files.first_of(missing)}. Add them, or leave --csv_path out.'
      + labels.hints(missing, spare, '{} among the slides, {} in the CSV')
    )
  known = {slide: of[slide] for slide in slide_ids if slide in of}
  warnings, cases = labels.leaks(known.values()), set(known.values())
  if without := sorted(s for s in of if s not in known and of[s] in cases):
    warnings.append(
      'other slides of these cases are not there:'
      f' {files.first_of(without)}. Their cases are predicted without them.'
    )
  if not missing:  # What is wrong is of other slides, but two rows of one.
    slide_of = lambda fault: fault.removeprefix('slide ').rpartition(': ')[0]
    ours = [fault for fault in faults if slide_of(fault) in known]
    warnings += [fault for fault in faults if fault not in ours]
    faults = ours
  for warning in warnings:
    print(f'warning: {csv_path}: {warning}')
  return known, [f'{csv_path}: {fault}' for fault in faults]


def find(
  features_dir: pathlib.Path,
  card: Card,
  requested: Sequence[str] | None = None,
  cache_dir: pathlib.Path | None = None,
) -> Bags:
  """Compares features with those that models take; warns of what is unstated.

  Args:
    features_dir: of any kind that `data.packed` opens.
    card: of the models.
    requested: slides; by default all that are there.
    cache_dir: where it is kept what is in feature files.

  Raises:
    PredictionError: if there are none.
  """
  source = packed.find(features_dir)
  ids = source.ids() if requested is None else list(requested)
  if not ids and requested is None:
    raise PredictionError(
      f'{features_dir}: no feature files, <slide_id>.h5. Give another folder.'
    )
  reads = inspection.inspect(source, ids, cache_dir, keep=parallel.is_first())
  for _ in progress.over(reads, 'reading features', len(ids)):
    pass  # What was read is in `source.seen`.
  match, theirs = Match({}, {}, [], []), {'dimensions': str(card.width)}
  for slide in ids:
    with contextlib.suppress(FeatureError):  # It is named when it is predicted.
      match.headers[slide] = source.header(slide)
  compare(source.path, match)
  theirs |= card.features
  here = match.attributes
  if differ := differences(here, theirs):
    match.problems.append(
      f'{source.path}: these features and those of the models differ:'
      f' {"; ".join(differ)}. Make them as those of the training.'
    )
  unlike = set()  # What may differ from slide to slide.
  for header in match.headers.values():
    stated = {k: str(v) for k, v in header.attributes.items() if k not in here}
    unlike.update(differences(stated, theirs))
  if unlike:
    match.warnings.append(
      f'{source.path}: tiles were chosen otherwise than those of the models:'
      f' {files.first_of(sorted(unlike))}. Make sure that it does not matter.'
    )
  unknown = {'encoder', 'mpp', 'patch_size'} - (here.keys() & theirs)
  if unknown and match.headers:
    match.warnings.append(
      f'{", ".join(sorted(unknown))} of these features, or of those of the'
      ' models, is not stated. Make sure that they are alike.'
    )
  _, odd = inspection.report(source.path, source.seen)
  for warning in match.warnings + odd:
    print(f'warning: {warning}')
  return Bags(source, ids, match.problems)

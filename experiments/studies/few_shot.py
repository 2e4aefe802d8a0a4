"""Stages and tables of He and Li's study: patches, then slides."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data.camelyon16.slides import KnownSlide
from data.files import counted
from data.labelled_tiles import TileError
from data.slides import Slide, SlideError
from experiments.evaluation import froc as froc_tables
from experiments.evaluation.tables import HERE, INTERVAL, Row, Table
from experiments.maps.scale_bar import known_mpp
from experiments.patches import pictures
from experiments.patches.study import File, Study
from experiments.run import progress
from experiments.run.results import Folder
from experiments.studies import few_shot_training as training, slide_scores
from experiments.studies.few_shot_data import PUBLISHED, PatchesAndSlides, Scale
from experiments.studies.few_shot_training import FW_RD, RD, Scores, Setting
from experiments.studies.node_images import outlines
from experiments.studies.slide_scores import ScoreError
from kmil_jax import checksums, froc, intervals, metrics, parallel
from kmil_jax.tasks.distill import DistillTask, Patches
from kmil_jax.train import Variables

# What the test patches say of a training.
METRICS = (
  'accuracy',
  'accuracy, threshold 2',
  "accuracy, test's best F1",
  'AUROC',
)
_STD = 'std over seeds'
_FIXED = 2.0  # The paper's threshold.
_SLIDE_FIXED = 2.01  # Of slides, in the released code.
_HIGH = 99  # Percentile of validation patches whose score has the full colour.
# In lines: a slide three times as wide as high is a low picture.
_COLOURS = '\n'.join(
  (
    'anomaly score',
    '0: as normal tissue',
    f'1: highest {100 - _HIGH} % of validation',
  )
)
_PICTURE = 700  # Pixels of a slide's longer side.
_RESAMPLES = 1000
_NOTES = (
  'accuracy: at the threshold of the highest F1 on the validation patches.'
  " threshold 2: the paper's, fixed. test's best F1: at the threshold that the"
  ' test patches choose, as in the released code, which is optimistic.',
  'here: mean over the seeds; its interval: over slides drawn with their'
  ' patches.',
)


def stages(
  study: Study, material: PatchesAndSlides
) -> Iterator[Table | File | str | Exception]:
  """Trains students, and yields what they see in patches and in slides."""
  students = study.recipe['students']
  trainings = training.settings(material, students, study.seed)
  sizes = (len(trainings[0]), 'setting'), (len(trainings), 'seed')
  yield ', '.join(counted(*size) for size in sizes)
  training.train(study, material, list(itertools.chain(*trainings)))
  if parallel.is_first():  # The rest is work for one process.
    yield from _patches(study, trainings)
    if material.slides:
      yield from _slides(study, material, trainings[0])


def measure(scores: Mapping[str, Scores]) -> np.ndarray:
  """Measures a training on its test patches, and on resampled slides of them.

  Returns:
    Its accuracy at the threshold that validation chose, at the paper's fixed 2,
    and at that of the highest F1 on the test patches themselves; its AUROC; [4,
    1 + W], of the W resamples last. Those of all trainings on the same patches
    are paired.
  """
  test, rows = scores['test'], []
  for limit in (scores['val'].threshold, _FIXED, test.threshold):
    called = (test.mean >= limit).astype(float)
    drawn = _replicates(test, 1 - called, called)['accuracy']
    rows.append([(called == test.tumour).mean(), *drawn])
  drawn = _replicates(test, -test.mean, test.mean)['auroc']
  rows.append([metrics.auroc(test.tumour, test.mean), *drawn])
  return np.array(rows)


def _replicates(test: Scores, *prob: np.ndarray) -> dict[str, np.ndarray]:
  label, prob = test.tumour.astype(int), np.stack(prob, 1)
  return intervals.replicates(label, prob, test.slide, resamples=_RESAMPLES)


def _patches(
  study: Study, trainings: Sequence[Sequence[Setting]]
) -> Iterator[Table | File]:
  """Yields Tables 2 and 3, the ablations and the figures of patches."""
  settings, measured, curves = trainings[0], {}, {}
  for setting, *others in zip(*trainings, strict=True):
    of_seeds = [training.scores(study.folder, s) for s in (setting, *others)]
    measured[setting.name] = np.array([*map(measure, of_seeds)])
    if setting.name in (RD, FW_RD):
      test = of_seeds[0]['test']
      curves[setting.name] = test.tumour, test.mean, test.slide
  methods = {name: measured[name] for name in (RD, FW_RD)}
  methods[f'{FW_RD} minus {RD}'] = measured[FW_RD] - measured[RD]
  others = sorted(name for (name,) in PUBLISHED['table_2'].values)
  methods |= dict.fromkeys(name for name in others if name not in methods)
  yield _table(
    'table_2',
    'Table 2. Patches: reverse distillation without and with tumour patches',
    ('method',),
    [(name, (name,), values) for name, values in methods.items()],
    f'Networks of width {study.recipe["students"].width}, the same of both'
    f' methods. {FW_RD} learned from {settings[1].tumour} tumour patches and'
    f' {settings[1].normal} normal ones, in the paper from 500 and 5000.',
  )
  rows = []
  for setting in sorted(settings, key=lambda setting: setting.tumour):
    if (counterpart := setting.counterpart) is not None:
      known = (counterpart,) in PUBLISHED['table_3'].values
      named = counterpart if known else 'none'
      labels = setting.tumour, named, f'{setting.alpha:.3g}'
      rows.append((counterpart, labels, measured[setting.name]))
  yield _table(
    'table_3',
    'Table 3. Patches: number of tumour patches in training',
    ('tumour patches', 'in the paper', 'alpha'),
    rows,
    f'{settings[0].normal} normal patches in all rows. alpha 0 is the loss of'
    ' RD.',
    'The tumour patches of a row are among those of the rows below it; each'
    ' seed draws others.',
  )
  rows, supervised = [], Setting('supervised', 100_000, 100_000, 0.5)
  for setting in (*settings, supervised):
    if (setting.name,) in PUBLISHED['ablations'].values:
      weights = f'{setting.alpha:g}', f'{setting.gamma:g}'
      title = setting.name.replace('_', ', ')
      labels = title, setting.normal, setting.tumour, *weights
      rows.append((setting.name, labels, measured.get(setting.name)))
  yield _table(
    'ablations',
    'Ablations: weights of the loss, balance of the classes',
    ('training', 'normal', 'tumour', 'alpha', 'gamma'),
    rows,
    'The paper does not define its unweighted loss: both rows have its number'
    ' beside them. Supervised training is not repeated here.',
    'Balanced classes are fewer patches; they are trained for'
    f' {settings[-1].longer} time(s) the epochs.',
  )
  # It imports matplotlib, which takes half a second.
  from experiments.evaluation import figures

  roc = figures.roc('Test patches, one training each', curves)
  yield File('figures/patch_roc.png', roc)


def _table(
  name: str,
  title: str,
  labels: Sequence[str],
  rows: Sequence[tuple[Any, Sequence[Any], np.ndarray | None]],
  *notes: str,
) -> Table:
  """Returns a table of patches.

  Args:
    name: of it, here and among the published ones.
    title: stands above it.
    labels: columns of labels.
    rows: of each its label in the paper, its labels here, and what `measure`
      returns, of every seed, or None.
    *notes: its own.
  """
  columns, lines = dict.fromkeys(METRICS, '.3f'), []
  for published, here, measured in rows:
    line = {}
    if measured is not None:
      mean = measured.mean(0)
      ends = intervals.percentile(mean[:, 1:].T).T
      line = {HERE: mean[:, 0].tolist()}
      if len(measured) > 1:
        line[_STD] = measured[:, :, 0].std(0, ddof=1).tolist()
      line[INTERVAL] = [*map(tuple, ends)]
    line |= PUBLISHED[name].line((published,), columns)
    lines.append(Row(here, line))
  notes = *_NOTES, *PUBLISHED[name].notes, *notes
  return Table(name, title, labels, columns, lines, notes)


class Result(NamedTuple):
  """A slide's scores and detections against the truth."""

  values: tuple[float, float]  # at the threshold of validation, and a fixed one
  case: froc.Case


# A map [H, W] as it is drawn, NaN where there is no tissue; its detections,
# (score, x, y), [K, 3]; and what they come to.
_Scored = tuple[np.ndarray, np.ndarray, Result]


def _slides(
  study: Study, material: PatchesAndSlides, settings: Sequence[Setting]
) -> Iterator[Table | File | Exception]:
  """Scores all tissue of the test slides by RD and FW-RD of the first seed.

  Writes slides/<training>/maps and slides/<training>/detections, and
  slides/masks, which `experiments.froc` reads. Maps that are there are read: a
  killed run goes on with the slide that it was at.

  Yields:
    What it makes of the slides that can be read; last an error that names the
    others.
  """
  teacher, faults = training.teacher(study, material), []
  scorers = {
    setting.name: _scorer(study, material, setting, teacher)
    for setting in settings
    if setting.name in (RD, FW_RD)
  }
  results: dict[str, list[Result]] = {name: [] for name in scorers}
  rows, tumour, example = [['slide', 'tumour', *scorers]], [], None
  for slide in progress.bar(material.slides, unit='slide', desc='slides'):
    try:
      with Slide(slide.path, material.scale.mpp) as opened:
        mask = _mask(study.folder, material, slide, opened)
        scored = {
          name: score(slide.id, opened, mask) for name, score in scorers.items()
        }
        drawing = _draw(slide.id, opened, mask, scored, material.scale)
    except (SlideError, TileError) as e:
      faults.append(f'\n  {e}')
      continue
    yield File(f'slides/maps/{slide.id}.png', drawing)
    if mask is not None and not any(tumour):
      example = drawing
    tumour.append(mask is not None)
    for name, (_, _, one) in scored.items():
      results[name].append(one)
    values = [f'{some[-1].values[0]:.6g}' for some in results.values()]
    rows.append([slide.id, int(tumour[-1]), *values])
  if tumour:
    yield File('slides/scores.csv', rows)
    yield from _table_of_slides(study, np.array(tumour), results)
  if example:
    yield File('figures/localisation.png', example)
  if faults:
    yield ScoreError(f'{len(faults)} slide(s) not scored:{"".join(faults)}')


def _table_of_slides(
  study: Study, tumour: np.ndarray, results: Mapping[str, Sequence[Result]]
) -> Iterator[Table | File]:
  """Yields slide AUROC and lesion-level score, as the paper's Figure 2."""
  rows, curves, rocs = [], {}, {}
  each = np.arange(len(tumour)).astype(str)  # Slides are what varies.
  for name, some in results.items():
    cases = [one.case for one in some]
    curve = curves[name] = froc.froc(cases)
    scores = np.array([one.values for one in some]).T
    rocs[name] = tumour, scores[0], each
    aurocs = [float(metrics.auroc(tumour, score)) for score in scores]
    draws = [
      intervals.auroc_replicates(tumour, s[None], each, resamples=_RESAMPLES)
      for s in scores
    ]
    ends = [*map(intervals.percentile, draws), froc.interval(cases)]
    pairs = [tuple(e.tolist()) for e in ends]
    lines = {
      HERE: [*aurocs, *froc_tables.values(curve)],
      INTERVAL: pairs + [None] * len(froc.RATES),
    }
    rows.append(Row((name,), lines))
  columns = dict.fromkeys(('AUROC', f'AUROC, threshold {_SLIDE_FIXED}'), '.3f')
  yield Table(
    'slides',
    f'Slides: {tumour.sum()} with tumour, {counted(curve.lesions, "lesion")}'
    f' to find; {(~tumour).sum()} without',
    ('method',),
    columns | froc_tables.COLUMNS,
    rows,
    (
      "The score of a slide is the mean of its map's values that reach a"
      " threshold: that of validation patches, or the released code's fixed"
      f' {_SLIDE_FIXED}. 0 if none does.',
      froc_tables.NOTE + ' Detections reach the threshold of validation'
      ' patches.',
      'Intervals over slides. One training of each method, of the first seed.',
    ),
    PUBLISHED['slides'],
  )
  yield File('figures/froc.png', froc_tables.draw(curves))
  # It imports matplotlib, which takes half a second.
  from experiments.evaluation import figures

  roc = figures.roc(counted(len(tumour), 'test slide'), rocs)
  yield File('figures/slide_roc.png', roc)


def pmap_score(
  task: DistillTask, teacher: Variables, student: Variables
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a trained pair as a function of patches, spread over devices.

  Returns:
    A function of patches, uint8 [T, S, S, 3], returning the means [T] of their
    anomaly maps, float32. It compiles once per shape of its argument.
  """

  def score(networks, image):
    teacher, student = networks
    shared = Patches(teacher=teacher, image=None, label=None)
    return task.predict(student, (shared, image), None)['mean']

  networks = parallel.replicate((teacher, student))
  return functools.partial(parallel.pmap_local(score), networks)


def _scorer(
  study: Study, material: PatchesAndSlides, setting: Setting, teacher: Variables
) -> Callable[[str, Slide, np.ndarray | None], _Scored]:
  """Returns a student of the first seed as a function of slides."""
  folder, scale = study.folder, material.scale
  model = folder.at(f'{setting.folder}/{training.MODEL}')
  task = study.recipe['students'].task
  on_patches = pmap_score(task, teacher, training.student(model))
  val = training.scores(folder, setting)['val']
  threshold, low = val.threshold, np.median(val.mean[~val.tumour])
  high = max(np.percentile(val.mean, _HIGH), low + 0.01)
  place = f'slides/{setting.name}_s{setting.seed}'

  def score(slide: str, opened: Slide, mask: np.ndarray | None) -> _Scored:
    scores = slide_scores.score(
      opened,
      on_patches,
      folder.at(f'{place}/maps/{slide}.npz'),
      stride=scale.stride,
      patch=scale.size,
      model=checksums.of_file(model)[:16],
    )
    peaks = slide_scores.detections(
      scores,
      radius=scale.radius,
      # Above it is what reaches the threshold, in float32 as maps are.
      stop=float(np.nextafter(np.float32(threshold), np.float32(0))),
      stride=scale.stride,
    )
    drawn = np.where(scores > 0, (scores - low) / (high - low), np.nan)
    slide_scores.write_tiff(
      folder.at(f'{place}/maps/{slide}.tiff'),
      np.nan_to_num(drawn),
      mpp=opened.mpp * scale.stride,
      most=1.0,
    )
    lines = [(value, int(x), int(y)) for value, x, y in peaks.tolist()]
    folder.write(f'{place}/detections/{slide}.csv', lines)
    truth = None
    if mask is not None:
      truth = froc.lesions(mask, mpp=scale.mpp, level=scale.level)
    case = froc.judge(truth, peaks[:, 0], peaks[:, 1:], level=scale.level)
    limits = threshold, _SLIDE_FIXED
    values = tuple(slide_scores.slide_score(scores, limit) for limit in limits)
    return drawn, peaks, Result(values, case)

  return score


def _mask(
  folder: Folder, material: PatchesAndSlides, slide: KnownSlide, opened: Slide
) -> np.ndarray | None:
  """Returns and writes the mask of a slide's tumour; None of a normal slide."""
  if (mask := material.mask(slide, opened)) is not None:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    folder.save(
      f'slides/masks/{slide.id}_mask_level{material.scale.level}.png',
      lambda path: image.save(path, format='PNG'),
    )
  return mask


def _draw(
  title: str,
  opened: Slide,
  mask: np.ndarray | None,
  scored: Mapping[str, _Scored],
  scale: Scale,
) -> Any:
  """Draws a slide and its maps with their detections, as Figure 3."""
  longer = max(opened.width, opened.height)
  image = opened.thumbnail(opened.mpp * longer / _PICTURE)
  ratio = image.shape[1] / opened.width
  truth, shown = [], {}
  if mask is not None:
    pixel = 2**scale.level * ratio
    truth = [[ring * pixel for ring in area] for area in outlines(mask)]
  angle = np.linspace(0, 2 * np.pi, 17)
  circle = _PICTURE / 90 * np.stack([np.cos(angle), np.sin(angle)], 1)
  for name, (drawn, peaks, _) in scored.items():
    circles = [[xy * ratio + circle] for xy in peaks[:, 1:]]
    shown[f'{name}: {counted(len(circles), "detection")}'] = drawn, circles
  title += f' | truth: {"no tumour" if mask is None else "tumour"}'
  mpp = known_mpp(opened)
  about = {'label': _COLOURS, 'truth': truth, 'mpp': mpp and mpp / ratio}
  return pictures.overlay(title, image, shown, **about)

"""Scores the test slides by the students of Table 2."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import pathlib

import numpy as np
from PIL import Image

from data.files import replacing
from data.slides import Slide
from experiments.few_shot_parts import paper, scores, training
from experiments.few_shot_parts.cohort import Cohort
from experiments.few_shot_parts.settings import FW_RD, RD, Setting
from experiments.few_shot_parts.training import Job, Options
from experiments.paper_text import Entry, Table
from experiments.run import progress
from experiments.slide_scores import cohort as scorer, detections
from kmil_jax import froc, intervals, metrics, parallel
from kmil_jax.tasks.distill import DistillTask, Patches

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Found:
  """What a student says of the test slides, n of them.

  Attributes:
    slide: ids, [n].
    tumour: bool, [n].
    score: of slides, by rule of the threshold: 'validation' and 'paper', [n].
    cases: of the lesion-level score, [n].
    faults: why slides could not be scored, by id.
    folder: holds maps and detections.
  """

  slide: list[str]
  tumour: np.ndarray
  score: dict[str, np.ndarray]
  cases: list[froc.Case]
  faults: dict[str, str]
  folder: pathlib.Path


def run(
  folder: pathlib.Path,
  cohort: Cohort,
  study: Sequence[Setting],
  options: Options,
) -> dict[str, Found]:
  """Scores all tissue of the test slides; a killed run goes on.

  Writes slides/<training>/maps and slides/<training>/detections, and
  slides/masks, which `experiments.froc` reads.

  Args:
    folder: of the results, with trained students.
    cohort: with slides.
    study: settings, of which RD and FW-RD of the first seed are used.
    options: of the training.

  Returns:
    By name of the setting.
  """
  teacher = training.open_teacher(folder, cohort, options)
  truth = _truth(folder / 'slides' / 'masks', cohort)
  return {
    setting.name: _score(
      folder, cohort, Job(setting, options.seed), options, teacher, truth
    )
    for setting in study
    if setting.name in (RD, FW_RD)
  }


def pmap_score(
  teacher: training.Variables, student: training.Variables, options: Options
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a trained pair as a function of patches, spread over devices.

  Returns:
    A function of patches, uint8 [T, S, S, 3], returning the means [T] of their
    anomaly maps, float32. It compiles once per shape of its argument.
  """
  task = DistillTask(
    options.width, options.shortcut, precision=options.precision
  )

  def score(networks, image):
    teacher, student = networks
    shared = Patches(teacher=teacher, image=None, label=None)
    return task.predict(student, (shared, image), None)['mean']

  networks = parallel.replicate((teacher, student))
  return functools.partial(parallel.pmap_local(score), networks)


def _score(
  folder: pathlib.Path,
  cohort: Cohort,
  job: Job,
  options: Options,
  teacher: training.Variables,
  truth: Mapping[str, froc.Lesions],
) -> Found:
  student = training.load_student(folder, job)
  on_patches = pmap_score(teacher, student, options)
  chosen = scores.threshold(scores.read(job.folder(folder))['val'])
  target = folder / 'slides' / job.name
  files = {slide.id: slide.path for slide in cohort.slides}
  with progress.bar(total=len(files), unit='slide', desc=job.name) as bar:

    def show(name: str, done: int, total: int) -> None:
      if done == total:
        bar.update()

    scored = scorer.run(
      target,
      files,
      on_patches,
      model=_digest(folder, job, options),
      batch=_BATCH,
      patch=cohort.scale.size,
      stride=cohort.scale.stride,
      threshold=chosen,
      # Above it is what reaches the threshold, in float32 as maps are.
      stop=float(np.nextafter(np.float32(chosen), np.float32(0))),
      radius=cohort.scale.radius,
      default_mpp=cohort.scale.mpp,
      outlines=lambda name: _outlines(cohort, name),
      progress=show,
    )
  slides = [s for s in cohort.slides if s.id not in scored.faults]
  fixed = [
    detections.slide_score(load_map(target, s.id), detections.THRESHOLD)
    for s in slides
  ]
  return Found(
    slide=[s.id for s in slides],
    tumour=np.array([s.label == 'tumor' for s in slides]),
    score={
      'validation': np.array([scored.score[s.id] for s in slides]),
      'paper': np.array(fixed),
    },
    cases=[
      froc.judge(
        truth.get(s.id),
        scored.found[s.id][:, 0],
        scored.found[s.id][:, 1:],
        level=cohort.scale.level,
      )
      for s in slides
    ],
    faults=scored.faults,
    folder=target,
  )


def load_map(folder: pathlib.Path, slide: str) -> np.ndarray:
  """Returns the scores of a slide, [H, W], 0 where it holds no tissue."""
  with np.load(folder / 'maps' / f'{slide}.npz', allow_pickle=False) as file:
    return file['scores']


def table(found: Mapping[str, Found]) -> Table:
  """Returns slide AUROC and lesion-level score, beside the paper's Figure 2."""
  entries = []
  for name, some in found.items():
    values, ends = [], []
    for rule in ('validation', 'paper'):
      values.append(float(metrics.auroc(some.tumour, some.score[rule])))
      ends.append(_auroc_interval(some.tumour, some.score[rule]))
    curve = froc.froc(some.cases)
    values.append(curve.score)
    ends.append(tuple(froc.interval(some.cases).tolist()))
    values += curve.sensitivity.tolist()
    ends += [(None, None)] * len(curve.sensitivity)
    lines = {
      'here': [None if np.isnan(v) else v for v in values],
      'interval': [
        (None, None) if None in e or np.isnan(e[0]) else e for e in ends
      ],
    }
    if name == FW_RD:
      lines['paper'] = [None, paper.SLIDE_AUROC] + [None] * 7
    entries.append(Entry((name,), lines))
  some = next(iter(found.values()))
  lesions = sum(case.targets for case in some.cases)
  return Table(
    'slides',
    f'Slides: {int(some.tumour.sum())} with tumour, {lesions} lesions that'
    f' count; {int((~some.tumour).sum())} without',
    ('method',),
    (
      'AUROC',
      f'AUROC, threshold {detections.THRESHOLD:g}',
      'FROC',
      *(f'at {rate:g}' for rate in froc.RATES),
    ),
    tuple(entries),
    (3,) * 9,
    (
      "The score of a slide is the mean of its map's values that reach a"
      " threshold: that of validation patches, or the code's fixed"
      f' {detections.THRESHOLD:g}. 0 if none does.',
      'FROC: mean sensitivity at 1/4 to 8 false positives per slide, of'
      ' detections that reach the threshold of validation patches, by the'
      ' definition of CAMELYON16. Its number is not in the text of the paper.',
      '95 % intervals over slides. One training of each method, of the first'
      ' seed.',
    ),
    paper.SOURCE,
  )


def _auroc_interval(
  tumour: np.ndarray, score: np.ndarray
) -> tuple[float, float]:
  drawn = intervals.auroc_replicates(
    tumour,
    score[None],
    np.arange(len(score)).astype(str),
    resamples=scores.RESAMPLES,
  )
  low, high = intervals.percentile(drawn)
  return float(low), float(high)


def _truth(folder: pathlib.Path, cohort: Cohort) -> dict[str, froc.Lesions]:
  """Returns the lesions of slides with tumour, and writes their masks."""
  level, found = cohort.scale.level, {}
  for slide in cohort.slides:
    if slide.label != 'tumor':
      continue
    with Slide(slide.path, default_mpp=cohort.scale.mpp) as opened:
      # One more: the middle of a map's last pixel may be the slide's very end.
      shape = tuple(n // 2**level + 1 for n in (opened.height, opened.width))
    mask = cohort.annotations.mask(slide.id, shape, 2**level)
    found[slide.id] = froc.lesions(mask, mpp=cohort.scale.mpp, level=level)
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    path = folder / f'{slide.id}_mask_level{level}.png'
    with replacing(path) as part:
      image.save(part, format='PNG')
  return found


def _outlines(cohort: Cohort, slide: str) -> list[np.ndarray]:
  """Returns what pictures show of a slide's tumour; nothing of masks."""
  file = cohort.annotations.files.get(slide)
  if file is None or (not isinstance(file, dict) and 'tif' in file.suffix):
    return []
  return [ring.corners for ring in cohort.annotations.rings(slide)]


def _digest(folder: pathlib.Path, job: Job, options: Options) -> str:
  """Returns a hash of both networks."""
  digest = hashlib.sha256()
  for path in (
    pathlib.Path(options.weights or folder / training.TEACHER),
    job.folder(folder) / training.MODEL,
  ):
    with path.open('rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()[:16]

"""Scores detections of tumour on slides as CAMELYON16 did: FROC.

  python -m experiments.froc --masks_dir=masks --detections_dir=detections

Every slide, tumour or normal, has a file of detections, <case>.csv, with lines
`probability,x,y` in level-0 pixels. A first line of these words, in any order,
is a header; an empty file says that nothing was found. Slides with tumour have
a mask, <case>_mask_level5.png, 255 on tumour and 0 elsewhere.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys

import numpy as np

from data.files import counted, replacing
from experiments.evaluation import froc as files
from experiments.evaluation.froc import DetectionError
from experiments.evaluation.tables import HERE, INTERVAL, Row, Table
from experiments.run import start
from experiments.run.options import OptionError, field
from experiments.run.start import Findings
from kmil_jax import froc


@dataclasses.dataclass(frozen=True)
class Scoring:
  """What is scored, and how it is shown."""

  masks_dir: pathlib.Path | None = field(
    None, 'Folder of <case>_mask_level<level>.png of the slides with tumour.'
  )
  detections_dir: pathlib.Path | None = field(
    None, 'Folder of <case>.csv of all slides.'
  )
  slide_mpp: float = field(
    froc.MPP, 'Micrometres per level-0 pixel of the slides.', least=1e-3
  )
  level: int = field(
    froc.LEVEL,
    'Level of the masks, whose pixels are 2^level level-0 pixels wide.',
    least=0,
    most=12,
  )
  format: str = field(
    'text', 'Print a table, or JSON.', choices=('text', 'json')
  )
  figure: pathlib.Path | None = field(None, 'PNG to draw the curve into.')
  resamples: int = field(
    0,
    'Number of resamples of slides for a 95 % interval of the score; 0: no'
    ' interval.',
    least=0,
  )
  seed: int = field(2023, 'Seed of the resamples.', least=0)

  def __post_init__(self):
    if not self.masks_dir or not self.detections_dir:
      raise OptionError('Give --masks_dir and --detections_dir.')


def run(scoring: Scoring) -> start.Next:
  """Prints the score, and the sensitivity at six rates of false positives."""
  findings = Findings()
  cases = files.read(
    scoring.masks_dir,
    scoring.detections_dir,
    mpp=scoring.slide_mpp,
    level=scoring.level,
    findings=findings,
  )
  curve = froc.froc(list(cases.values()))
  if curve.lesions and (lost := files.never_counted(cases.values(), curve)):
    findings.warnings.append(
      f'lesions hit with the lowest score alone: {lost} of {curve.lesions},'
      ' which by the definition of CAMELYON16 is no threshold: they'
      ' never count.'
    )
  with contextlib.redirect_stdout(sys.stderr):  # JSON is alone.
    findings.warn()
  if not curve.lesions:
    raise DetectionError(
      f'{scoring.masks_dir}: no lesion to be found on'
      f' {counted(curve.slides, "slide")}: no mask, or none with more than'
      ' isolated tumour cells (275 um with their surroundings), so there is no'
      ' score. Add slides with lesions.'
    )
  lines, interval = {HERE: files.values(curve)}, {}
  if scoring.resamples:
    ends = froc.interval(
      list(cases.values()), resamples=scoring.resamples, seed=scoring.seed
    )
    # Undefined if fewer than two slides hold lesions, or nothing varies.
    low_high = tuple(ends.tolist()) if np.isfinite(ends).all() else None
    interval = {'interval': low_high}
    lines[INTERVAL] = [low_high, *[None] * len(froc.RATES)]
  if scoring.figure:
    with replacing(scoring.figure) as part:
      files.draw({'': curve}).savefig(part, dpi=120, format='png')
  if scoring.format == 'json':
    content = {
      'froc': curve.score,
      'sensitivity': curve.sensitivity.tolist(),
      'lesions': curve.lesions,
      'slides': curve.slides,
    }
    print(json.dumps(content | interval))
  else:
    title = f'slides: {curve.slides}, lesions: {curve.lesions}'
    columns = files.COLUMNS | {'FROC': '.4f'}
    rows = [Row((), lines)]
    print(Table('froc', title, (), columns, rows, [files.NOTE]).terminal())
  if not scoring.resamples:
    return 'froc', {'resamples': 1000}
  return 'froc', {'detections_dir': 'other_detections', 'figure': None}


main = start.script(run)

if __name__ == '__main__':
  main()

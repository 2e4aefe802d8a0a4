"""Scores detections of tumour on slides as CAMELYON16 did: FROC.

  python -m experiments.froc --masks_dir=... --detections_dir=... \
      [--format=json] [--figure=froc.png] [--resamples=1000]

Every slide, tumour or normal, has a file of detections, <case>.csv, with lines
`probability,x,y` in level-0 pixels; a first line of just these words is a
header, an empty file says that nothing was found. Slides with tumour have a
mask, <case>_mask_level5.png, 255 on tumour and 0 elsewhere.
"""

import json
import pathlib

from absl import app, flags
import numpy as np

from experiments import start
from experiments.slide_scores import froc_figure, froc_files
from experiments.slide_scores.froc_files import DetectionError
from kmil_jax import froc

_MASKS_DIR = flags.DEFINE_string(
  'masks_dir',
  None,
  'Folder of <case>_mask_level<level>.png, slides with tumour.',
  required=True,
)
_DETECTIONS_DIR = flags.DEFINE_string(
  'detections_dir', None, 'Folder of <case>.csv, all slides.', required=True
)
_MPP = flags.DEFINE_float(
  'mpp', froc.MPP, 'Micrometres per level-0 pixel.', 1e-3
)
_LEVEL = flags.DEFINE_integer(
  'level', froc.LEVEL, 'Of the masks: pixels are 2^level wide.', 0, 12
)
_FORMAT = flags.DEFINE_enum('format', 'text', ['text', 'json'], 'How to print.')
_FIGURE = flags.DEFINE_string('figure', None, 'Where to draw the curve (PNG).')
_RESAMPLES = flags.DEFINE_integer(
  'resamples',
  0,
  'Resamples of slides for a 95 % interval of the score; 0: none.',
  0,
)
flags.adopt_module_key_flags(start)


def _run() -> None:
  cases = froc_files.read(
    pathlib.Path(_MASKS_DIR.value),
    pathlib.Path(_DETECTIONS_DIR.value),
    mpp=_MPP.value,
    level=_LEVEL.value,
  )
  found = froc.froc(list(cases.values()))
  if not found.lesions:
    raise DetectionError(
      f'{_MASKS_DIR.value}: no lesion to be found on {found.slides} slide(s):'
      ' no mask, or none with more than isolated tumour cells (275 um with'
      ' their surroundings); the score is not defined'
    )
  ends = None
  if _RESAMPLES.value:
    ends = froc.interval(
      list(cases.values()), resamples=_RESAMPLES.value, seed=start.SEED.value
    )
  if _FIGURE.value:
    froc_figure.draw(pathlib.Path(_FIGURE.value), {'': found})
  print(_json(found, ends) if _FORMAT.value == 'json' else _text(found, ends))


def _json(found: froc.Froc, ends: np.ndarray | None) -> str:
  values = {
    'froc': found.score,
    'sensitivity': found.sensitivity.tolist(),
    'lesions': found.lesions,
    'slides': found.slides,
  }
  if ends is not None:
    defined = np.isfinite(ends).all()
    values['interval'] = ends.tolist() if defined else None
  return json.dumps(values)


def _text(found: froc.Froc, ends: np.ndarray | None) -> str:
  lines = [
    f'{found.slides} slides, {found.lesions} lesions',
    'false positives per slide  '
    + ''.join(f'{rate:>7g}' for rate in froc.RATES),
    'sensitivity                '
    + ''.join(f'{value:7.3f}' for value in found.sensitivity),
    f'FROC {found.score:.4f}',
  ]
  if ends is not None:
    lines[-1] += (
      f' [{ends[0]:.4f}, {ends[1]:.4f}], 95 % interval over slides'
      if np.isfinite(ends).all()
      else ', no interval: fewer than two slides hold lesions'
    )
  return '\n'.join(lines)


main = start.script(_run, (DetectionError,))

if __name__ == '__main__':
  app.run(main)

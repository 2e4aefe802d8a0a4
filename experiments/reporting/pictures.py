"""Pictures of a results folder as data URIs, small enough for one page."""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import io
import pathlib
import warnings

import numpy as np
from PIL import Image

from experiments.evaluation.predictions import Predictions
from experiments.reporting.record import Record

_WIDTH = 1100  # Pixels of a heat map in the page.
_QUALITY = 80  # Of WebP.
_MOST = 24  # Heat maps in the page,
_BYTES = 5_000_000  # and what they may take, before base64.


@dataclasses.dataclass(frozen=True)
class HeatMap:
  """The heat map of one test slide, as it is shown."""

  anchor: str  # its id in the page
  slide: str
  fold: int
  label: str
  pred: str
  prob: float  # of the predicted class
  uri: str
  width: int
  height: int

  @property
  def correct(self) -> bool:
    return self.label == self.pred


@dataclasses.dataclass(frozen=True)
class HeatMaps:
  """The heat maps of a run, and what became of the others."""

  shown: Sequence[HeatMap]
  more: int  # in the folder only
  unmapped: list[str]  # test slides that should have one and have none
  damaged: list[str]  # names of files


def figure(path: pathlib.Path) -> str | None:
  """Returns a PNG as it is; None where there is none or it is damaged."""
  try:
    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=['PNG']) as image:
      image.verify()
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
    return None
  return _uri('png', content)


def heat_maps(record: Record, first: Sequence[tuple[int, str]]) -> HeatMaps:
  """Returns the heat maps for the page.

  Args:
    record: the run.
    first: folds and their test slides that come before others.
  """
  folder = record.folder / 'figures' / 'heat_maps'
  files = {path.stem: path for path in sorted(folder.glob('*.png'))}
  shown, there, damaged, unmapped, spent = [], 0, [], [], 0
  limit = record.flags.get('heat_maps')
  for fold, parts in record.folds.items() if files else ():
    # In the order in which they are drawn.
    slides = sorted(parts['test'].slide.tolist(), key=lambda s: f'{s}.h5')
    unmapped += [s for s in slides[:limit] if f'fold_{fold}_{s}' not in files]
  for fold, p, i in _order(record.folds, first):
    path = files.get(f'fold_{fold}_{p.slide[i]}')
    if path is None:
      continue
    there += 1
    if len(shown) == _MOST or spent > _BYTES:
      continue
    small = _small(path)
    if small is None:
      damaged.append(path.name)
      continue
    content, width, height = small
    spent += len(content)
    pred = int(p.prob[i].argmax())
    shown.append(
      HeatMap(
        anchor=f'heat-map-{len(shown) + 1}',
        slide=str(p.slide[i]),
        fold=fold,
        label=record.classes[p.label[i]],
        pred=record.classes[pred],
        prob=float(p.prob[i, pred]),
        uri=_uri('webp', content),
        width=width,
        height=height,
      )
    )
  more = there - len(shown) - len(damaged)
  return HeatMaps(shown, more, unmapped, damaged)


def _order(
  folds: Mapping[int, Mapping[str, Predictions]],
  first: Sequence[tuple[int, str]],
) -> list[tuple[int, Predictions, int]]:
  """Test slides: those that come first, then the classes in turn."""
  rest, ahead = {}, {}
  for fold, parts in folds.items():
    p = parts['test']
    for i in np.argsort(p.slide, kind='stable'):
      if (fold, p.slide[i]) in first:
        ahead[fold, p.slide[i]] = (fold, p, i)
      else:
        rest.setdefault(int(p.label[i]), []).append((fold, p, i))
  turns = [
    (place, label, slide)
    for label, of_class in rest.items()
    for place, slide in enumerate(of_class)
  ]
  turns.sort(key=lambda turn: turn[:2])
  return [ahead[f] for f in first if f in ahead] + [t[2] for t in turns]


def _small(path: pathlib.Path) -> tuple[bytes, int, int] | None:
  """Returns a picture as WebP, its width and its height."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      with Image.open(path, formats=['PNG']) as image:
        picture = image.convert('RGB')
  except (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
  ):
    return None
  if picture.width > _WIDTH:
    height = round(_WIDTH * picture.height / picture.width)
    picture = picture.resize((_WIDTH, max(height, 1)), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  picture.save(file, 'webp', quality=_QUALITY)
  return file.getvalue(), picture.width, picture.height


def _uri(kind: str, content: bytes) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'

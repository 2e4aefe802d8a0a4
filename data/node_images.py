"""Reads images of lymph nodes with masks of their tumour."""

import collections
import dataclasses
import pathlib
import warnings

import numpy as np
from PIL import Image

from data import files
from data.labelled_tiles import TileError
from data.tile_sources import on_white

MPP = 1.0  # Micrometres per pixel of what `NodeImages.read` returns.
COLUMNS = ('image_id', 'patient_id', 'part')
PARTS = ('development', 'test')
LABELS = ('negative', 'positive')
_LEAST_SIDE = 40  # Pixels at `MPP` that both sides must have.
_SUFFIXES = ('.png', '.tif', '.tiff')
_COLOURS = ('RGB', 'RGBA', 'L', 'P')
_MASKS = ('1', 'L', 'P', 'I', 'I;16', 'RGB')


class ImageError(TileError):
  """Images that cannot be used; names the file or row and what to do."""


@dataclasses.dataclass(frozen=True)
class NodeImages:
  """Images of nodes in the order of their ids.

  Attributes:
    id: unique, str [n].
    patient: str [n]; no patient is in both parts.
    test: True in the test part, False in development, bool [n].
    positive: True where there is tumour, bool [n].
    mpp: um per pixel of the files.
  """

  id: np.ndarray
  patient: np.ndarray
  test: np.ndarray
  positive: np.ndarray
  image_paths: tuple[pathlib.Path, ...]
  mask_paths: tuple[pathlib.Path | None, ...]
  mpp: float

  def __len__(self) -> int:
    return len(self.id)

  def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image, uint8 [H, W, 3], and its mask, bool [H, W].

    Both are at `MPP` um per pixel: images are resampled bicubically, masks to
    the nearest pixel. The mask of a negative image is empty.

    Raises:
      ImageError: if a file cannot be decoded.
    """
    image = on_white(_decode(self.image_paths[row], _COLOURS)).convert('RGB')
    shape = _shape(image.size, self.mpp)
    if shape[::-1] != image.size:
      image = image.resize(shape[::-1], Image.Resampling.BICUBIC)
    path = self.mask_paths[row]
    if path is None:
      return np.asarray(image), np.zeros(shape, bool)
    return np.asarray(image), _resampled(_decode(path, _MASKS), shape)


def load(
  images_dir: str | pathlib.Path,
  masks_dir: str | pathlib.Path,
  images_csv: str | pathlib.Path,
  *,
  mpp: float = MPP,
) -> NodeImages:
  """Reads the table of images and checks every image and mask of it.

  The CSV has the columns image_id, patient_id and part (development or test),
  and may have label (negative or positive). An image is <image_id>.png, .tif
  or .tiff, 8 bits a channel; its mask has the same name and size and is not 0
  on tumour. An image may go without a mask only where its label is negative.

  Args:
    images_dir: folder of images.
    masks_dir: folder of masks.
    images_csv: the table.
    mpp: um per pixel of the files.

  Raises:
    ImageError: naming all rows and files at fault.
  """
  rows = _rows(images_csv)
  images_dir, masks_dir = pathlib.Path(images_dir), pathlib.Path(masks_dir)
  faults, checked = [], []
  for row in rows:
    try:
      checked.append(_check(row, images_dir, masks_dir, mpp))
    except ImageError as e:
      faults.append(str(e))
  if faults:
    raise ImageError.listing(faults, str(images_csv))
  positive, image_paths, mask_paths = zip(*checked, strict=True)
  column = lambda name: np.array([row[name] for row in rows])
  images = NodeImages(
    column('image_id'),
    column('patient_id'),
    column('part') == 'test',
    np.array(positive),
    image_paths,
    mask_paths,
    mpp,
  )
  faults = [
    f'the {part} part has no {label} image; both need both'
    for test, part in enumerate(PARTS)
    for positive, label in enumerate(LABELS)
    if not np.any((images.test == test) & (images.positive == positive))
  ]
  if faults:
    raise ImageError.listing(faults, str(images_csv))
  return images


def _rows(path: str | pathlib.Path) -> list[dict[str, str]]:
  """Returns the rows of the table by id."""
  faults, rows = [], []
  parts = collections.defaultdict(set)
  for line, row in files.read_csv(path, COLUMNS, ImageError):
    rows.append(row)
    name, part, label = row['image_id'], row['part'], row.get('label', '')
    faults += [f'row {line}: empty {c}' for c in COLUMNS if not row[c]]
    if set(name) & set('/\\') or name in ('.', '..'):
      faults.append(f'row {line}: image_id {name!r} is no file name')
    if part in PARTS:
      parts[row['patient_id']].add(part)
    elif part:
      faults.append(f'row {line}: part {part!r} is not {" or ".join(PARTS)}')
    if label and label not in LABELS:
      faults.append(f'row {line}: label {label!r} is not {" or ".join(LABELS)}')
  if not rows:
    faults.append('no rows')
  count = collections.Counter(row['image_id'] for row in rows)
  faults += [f'image {i}: {k} rows' for i, k in count.items() if k > 1]
  faults += [
    f'patient {p} is in both parts' for p, of in parts.items() if len(of) > 1
  ]
  if faults:
    raise ImageError.listing(faults, str(path))
  return sorted(rows, key=lambda row: row['image_id'])


def _check(
  row: dict[str, str],
  images_dir: pathlib.Path,
  masks_dir: pathlib.Path,
  mpp: float,
) -> tuple[bool, pathlib.Path, pathlib.Path | None]:
  """Returns whether there is tumour, and the files."""
  name, label = row['image_id'], row.get('label', '')
  image_path, mask_path = _find(images_dir, name), _find(masks_dir, name)
  if image_path is None:
    raise ImageError(f'{images_dir / name}.png or .tif is missing')
  width, height = _decode(image_path, _COLOURS).size
  shape = _shape((width, height), mpp)
  if min(shape) < _LEAST_SIDE:
    raise ImageError(
      f'{image_path}: {width} x {height} pixels of {mpp:g} um hold no window'
      f' of {_LEAST_SIDE} um'
    )
  if mask_path is None:
    if label == 'negative':
      return False, image_path, None
    raise ImageError(
      f'{image_path} has no mask in {masks_dir}: add one, or say in a column'
      ' label that the image is negative'
    )
  mask = _decode(mask_path, _MASKS)
  if mask.size != (width, height):
    raise ImageError(
      f'{mask_path}: {mask.size[0]} x {mask.size[1]} pixels; its image has'
      f' {width} x {height}'
    )
  positive = bool(_resampled(mask, shape).any())
  if label and label != LABELS[positive]:
    content = 'marks tumour' if positive else 'is empty'
    raise ImageError(f'{mask_path} {content}, but the label is {label}')
  return positive, image_path, mask_path


def _find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  paths = [folder / f'{name}{suffix}' for suffix in _SUFFIXES]
  paths = [path for path in paths if path.exists()]
  if len(paths) > 1:
    raise ImageError(f'{paths[0]} and {paths[1]}: which of them is it?')
  return paths[0] if paths else None


def _decode(path: pathlib.Path, modes: tuple[str, ...]) -> Image.Image:
  try:
    with warnings.catch_warnings():
      # Pillow warns of, and refuses, what nodes at full resolution have.
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      image = Image.open(path)
      image.load()
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
    raise ImageError(
      f'{path}: too large ({e}); save it at a coarser scale, patches are cut at'
      ' 1 um per pixel, or cut it into images of single nodes'
    ) from e
  except (OSError, SyntaxError, ValueError) as e:
    raise ImageError(f'{path}: cannot be read as an image: {e}') from e
  if image.mode not in modes:
    raise ImageError(
      f'{path}: found pixels of kind {image.mode}; {", ".join(modes)} can be'
      ' used'
    )
  return image


def _resampled(mask: Image.Image, shape: tuple[int, int]) -> np.ndarray:
  """Returns where a mask is not 0, to the nearest pixel, bool of a shape."""
  marked = np.asarray(mask) != 0
  marked = Image.fromarray(marked.any(2) if marked.ndim == 3 else marked)
  return np.asarray(marked.resize(shape[::-1], Image.Resampling.NEAREST))


def _shape(size: tuple[int, int], mpp: float) -> tuple[int, int]:
  """Rows and columns at `MPP` of an image of (width, height) pixels."""
  return round(size[1] * mpp / MPP), round(size[0] * mpp / MPP)

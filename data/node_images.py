"""Reads images of lymph nodes with masks of their tumour."""

import collections
import csv
import dataclasses
import pathlib
import warnings

import numpy as np
from PIL import Image

MPP = 1.0  # Micrometres per pixel of what `NodeImages.read` returns.
COLUMNS = ('image_id', 'patient_id', 'part')
PARTS = ('development', 'test')
LABELS = ('negative', 'positive')
_SUFFIXES = ('.png', '.tif', '.tiff')
_COLOURS = ('RGB', 'RGBA', 'L', 'P')
_MASKS = ('1', 'L', 'P', 'I', 'I;16', 'RGB')
_NAMED = 10  # Faults that an error lists.


class ImageError(ValueError):
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
    image = _decode(self.image_paths[row], _COLOURS)
    if image.mode == 'RGBA':  # What is transparent is glass.
      white = Image.new('RGBA', image.size, 'white')
      image = Image.alpha_composite(white, image)
    image = image.convert('RGB')
    shape = _shape(image.size, self.mpp)
    if shape[::-1] != image.size:
      image = image.resize(shape[::-1], Image.Resampling.BICUBIC)
    path = self.mask_paths[row]
    if path is None:
      return np.asarray(image), np.zeros(shape, bool)
    return np.asarray(image), _mask(path, shape)


def load(
  images_dir: str | pathlib.Path,
  masks_dir: str | pathlib.Path,
  images_csv: str | pathlib.Path,
  *,
  mpp: float = MPP,
  least_side: int = 40,
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
    least_side: pixels at `MPP` that both sides must have.

  Raises:
    ImageError: naming all rows and files at fault.
  """
  rows = _rows(pathlib.Path(images_csv))
  images_dir, masks_dir = pathlib.Path(images_dir), pathlib.Path(masks_dir)
  faults, positive, image_paths, mask_paths = [], [], [], []
  for row in rows:
    try:
      found = _check(row, images_dir, masks_dir, mpp, least_side)
    except ImageError as e:
      faults.append(str(e))
      continue
    for column, value in zip(
      (positive, image_paths, mask_paths), found, strict=True
    ):
      column.append(value)
  _raise(images_csv, faults)
  column = lambda name: np.array([row[name] for row in rows])
  images = NodeImages(
    column('image_id'),
    column('patient_id'),
    column('part') == 'test',
    np.array(positive),
    tuple(image_paths),
    tuple(mask_paths),
    mpp,
  )
  for part, test in zip(PARTS, (False, True), strict=True):
    for label, wanted in zip(LABELS, (False, True), strict=True):
      if not np.any((images.test == test) & (images.positive == wanted)):
        faults.append(f'the {part} part has no {label} image; both need both')
  _raise(images_csv, faults)
  return images


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the rows of the table by id."""
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.DictReader(f)
      rows = [{k: (v or '').strip() for k, v in r.items() if k} for r in reader]
      columns = reader.fieldnames or []
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise ImageError(f'{path}: cannot be read as CSV: {e}') from e
  if missing := [c for c in COLUMNS if c not in columns]:
    raise ImageError(
      f'{path}: no column {", ".join(missing)}; found {", ".join(columns)};'
      f' a header {",".join(COLUMNS)} is needed'
    )
  faults = [] if rows else ['no rows']
  for i, row in enumerate(rows, 2):
    faults += [f'row {i}: empty {c}' for c in COLUMNS if not row[c]]
    if set(row['image_id']) & set('/\\') or row['image_id'] in ('.', '..'):
      faults.append(f'row {i}: image_id {row["image_id"]!r} is no file name')
    if row['part'] and row['part'] not in PARTS:
      faults.append(
        f'row {i}: part {row["part"]!r} is not {" or ".join(PARTS)}'
      )
    if row.get('label', '') not in ('', *LABELS):
      faults.append(
        f'row {i}: label {row["label"]!r} is not {" or ".join(LABELS)}'
      )
  count = collections.Counter(row['image_id'] for row in rows)
  faults += [f'image {i}: {k} rows' for i, k in count.items() if k > 1]
  parts = collections.defaultdict(set)
  for row in rows:
    parts[row['patient_id']] |= {row['part']} & set(PARTS)
  faults += [
    f'patient {p} is in both parts' for p, of in parts.items() if len(of) > 1
  ]
  _raise(path, faults)
  return sorted(rows, key=lambda row: row['image_id'])


def _check(
  row: dict[str, str],
  images_dir: pathlib.Path,
  masks_dir: pathlib.Path,
  mpp: float,
  least_side: int,
) -> tuple[bool, pathlib.Path, pathlib.Path | None]:
  """Returns whether there is tumour, and the files."""
  name, label = row['image_id'], row.get('label', '')
  image_path = _find(images_dir, name)
  if image_path is None:
    raise ImageError(f'{images_dir / name}.png or .tif is missing')
  size = _decode(image_path, _COLOURS).size
  if min(_shape(size, mpp)) < least_side:
    raise ImageError(
      f'{image_path}: {size[0]} x {size[1]} pixels of {mpp:g} um hold no window'
      f' of {least_side} um'
    )
  mask_path = _find(masks_dir, name)
  if mask_path is None:
    if label == 'negative':
      return False, image_path, None
    raise ImageError(
      f'{image_path} has no mask in {masks_dir}: add one, or say in a column'
      ' label that the image is negative'
    )
  mask = _decode(mask_path, _MASKS)
  if mask.size != size:
    raise ImageError(
      f'{mask_path}: {mask.size[0]} x {mask.size[1]} pixels; its image has'
      f' {size[0]} x {size[1]}'
    )
  positive = bool(_mask(mask_path, _shape(size, mpp)).any())
  if label and label != LABELS[positive]:
    held = 'marks tumour' if positive else 'is empty'
    raise ImageError(f'{mask_path} {held}, but the label is {label}')
  return positive, image_path, mask_path


def _find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  found = [folder / f'{name}{suffix}' for suffix in _SUFFIXES]
  found = [path for path in found if path.exists()]
  if len(found) > 1:
    raise ImageError(f'{found[0]} and {found[1]}: which of them is it?')
  return found[0] if found else None


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


def _mask(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
  mask = np.asarray(_decode(path, _MASKS)) != 0
  mask = mask.any(2) if mask.ndim == 3 else mask
  resized = Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST)
  return np.asarray(resized)


def _shape(size: tuple[int, int], mpp: float) -> tuple[int, int]:
  """Rows and columns at `MPP` of an image of (width, height) pixels."""
  return round(size[1] * mpp / MPP), round(size[0] * mpp / MPP)


def _raise(where: str | pathlib.Path, faults: list[str]) -> None:
  if faults:
    more = len(faults) - _NAMED
    named = faults[:_NAMED] + ([f'and {more} more'] if more > 0 else [])
    raise ImageError(f'{where}:\n  ' + '\n  '.join(named))

"""Reads images of lymph nodes with masks of their tumour."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import pathlib
import warnings

import numpy as np
from PIL import Image

from data import files, images
from data.labelled_tiles import TileError
from data.labels import leaks

MPP = 1.0  # Micrometres per pixel of what `NodeImages.read` returns.
COLUMNS = ('image_id', 'patient_id', 'part')
PARTS = ('development', 'test')
LABELS = ('negative', 'positive')
_LEAST_SIDE = 40  # Pixels at `MPP` that both sides must have.
_SUFFIXES = ('.png', '.tif', '.tiff')  # Or in capitals.
_COLOURS = ('RGB', 'RGBA', 'L', 'LA', 'P')
_MASKS = ('1', 'L', 'LA', 'P', 'I', 'I;16', 'RGB', 'RGBA')


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
      ImageError: if a file cannot be decoded, the mask has another size, or
        either side is below 40 um, or the image is too large.
    """
    return _read(self.image_paths[row], self.mask_paths[row], self.mpp)


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
  on tumour, nor transparent. An image may go without a mask only where its
  label is negative.

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
  # By path without the extension, and without capitals in its name.
  there = collections.defaultdict(list)
  for folder in {images_dir, masks_dir}:
    for path in files.listed(folder, pattern='*'):
      there[folder / files.clean(path.stem).casefold()].append(path)
  faults, checked = [], []
  for row in rows:
    try:
      checked.append(_check(row, images_dir, masks_dir, mpp, there))
    except ImageError as e:
      faults.append(str(e))
  if not faults:
    id_, patient, part = (np.array([r[c] for r in rows]) for c in COLUMNS)
    test = part == 'test'
    positive, image_paths, mask_paths, content = zip(*checked, strict=True)
    faults = [
      f'the {part} part has no {label} image. Both parts need both.'
      for place, part in enumerate(PARTS)
      for value, label in enumerate(LABELS)
      if value not in np.array(positive)[test == place]
    ]
    same = collections.defaultdict(dict)
    for digest, path, owner in zip(content, image_paths, patient, strict=True):
      same[digest][str(path)] = str(owner)
    faults += [
      f'{files.first_of(list(of))}: one image of several patients, a leak'
      ' between parts. Take all but one out of the table.'
      for of in same.values()
      if len(set(of.values())) > 1
    ]
  if faults:
    raise ImageError.listing(faults, str(images_csv))
  return NodeImages(
    id_, patient, test, np.array(positive), image_paths, mask_paths, mpp
  )


def _rows(path: str | pathlib.Path) -> list[dict[str, str]]:
  """Returns the rows of the table by id."""
  rows = files.read_csv(path, COLUMNS, ImageError)
  faults = [] if rows else ['no rows']
  for line, row in rows:
    faults += [f'row {line}: empty {c}' for c in COLUMNS if not row[c]]
    name = row['image_id']
    if pathlib.PureWindowsPath(name).name != name:
      faults.append(f'row {line}: image_id {name!r} is no file name')
    for column, allowed in (('part', PARTS), ('label', LABELS)):
      if (value := row.get(column)) and value not in allowed:
        faults.append(
          f'row {line}: {column} {value!r} is not {" or ".join(allowed)}'
        )
  rows = [row for _, row in rows]
  count = collections.Counter(row['image_id'] for row in rows)
  faults += [f'image {i}: {k} rows' for i, k in count.items() if k > 1]
  one, other = (
    {row['patient_id'] for row in rows if row['part'] == part} for part in PARTS
  )
  faults += [f'patient {p} is in both parts' for p in sorted(one & other)]
  if faults:
    raise ImageError.listing(faults, str(path))
  for line in leaks(row['patient_id'] for row in rows):
    warnings.warn(f'{path}: {line}', stacklevel=3)
  return sorted(rows, key=lambda row: row['image_id'])


def _find(name: str, paths: Sequence[pathlib.Path]) -> pathlib.Path | None:
  """Returns the one of some files that has the name and can be read, if any."""
  found = [
    path
    for path in paths
    if path.suffix.lower() in _SUFFIXES and files.clean(path.stem) == name
  ]
  if len(found) > 1:
    raise ImageError(f'{found[0]} and {found[1]}: which of them is it?')
  return found[0] if found else None


def _check(
  row: dict[str, str],
  images_dir: pathlib.Path,
  masks_dir: pathlib.Path,
  mpp: float,
  there: Mapping[pathlib.Path, Sequence[pathlib.Path]],
) -> tuple[bool, pathlib.Path, pathlib.Path | None, bytes]:
  """Returns whether there is tumour, the files, and a hash of the image."""
  name, label = row['image_id'], row.get('label', '')
  folders = images_dir, masks_dir
  some = [there[folder / name.casefold()] for folder in folders]
  image_path, mask_path = (_find(name, paths) for paths in some)
  other = [f'. There is {files.first_of(s)}' * bool(s) for s in some]
  if image_path is None:
    path = images_dir / name
    raise ImageError(f'{path}.png or .tif is missing{other[0]}')
  if mask_path is None and label != 'negative':
    raise ImageError(
      f'{image_path} has no mask in {masks_dir}: add one, or say in a column'
      f' label that the image is negative{other[1]}'
    )
  image, mask = _read(image_path, mask_path, mpp)
  positive, content = bool(mask.any()), hashlib.sha256(image.tobytes()).digest()
  if label and label != LABELS[positive]:
    content = 'marks tumour' if positive else 'is empty'
    raise ImageError(f'{mask_path} {content}, but the label is {label}')
  return positive, image_path, mask_path, content


def _read(
  image_path: pathlib.Path, mask_path: pathlib.Path | None, mpp: float
) -> tuple[np.ndarray, np.ndarray]:
  """See `NodeImages.read`."""
  image = _decode(image_path, _COLOURS)
  size = tuple(round(side * mpp / MPP) for side in image.size)
  if min(size) < _LEAST_SIDE:
    raise ImageError(
      f'{image_path}: {size[0]} x {size[1]} pixels of {MPP:g} um hold no window'
      f' of {_LEAST_SIDE} um'
    )
  if size[0] * size[1] > images.MOST:
    raise ImageError(
      f'{image_path}: {size[0]} x {size[1]} pixels of {MPP:g} um are more than'
      f' {images.MOST}. Its pixels are said to be {mpp:g} um wide: is that so?'
    )
  pixels = images.on_white(image).convert('RGB')
  pixels = pixels.resize(size, Image.Resampling.BICUBIC)
  if mask_path is None:
    return np.asarray(pixels), np.zeros(size[::-1], bool)
  mask = _decode(mask_path, _MASKS)
  if mask.size != image.size:
    raise ImageError(
      f'{mask_path}: {mask.width} x {mask.height} pixels, but its image has'
      f' {image.width} x {image.height}. Scale one to the other.'
    )
  marked = images.mask_values(mask_path, mask, ImageError) != 0
  marked = Image.fromarray(marked.any(2) if marked.ndim == 3 else marked)
  marked = marked.resize(size, Image.Resampling.NEAREST)
  return np.asarray(pixels), np.asarray(marked)


def _decode(path: pathlib.Path, modes: tuple[str, ...]) -> Image.Image:
  image = images.read(path, ImageError)
  if image.mode not in modes:
    raise ImageError(
      f'{path}: found pixels of kind {image.mode}. Use {", ".join(modes)}.'
    )
  return image

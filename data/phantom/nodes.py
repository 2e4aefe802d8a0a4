"""Renders the phantom of node images: regions of nodes, lesions with masks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data import files
from data.phantom import slide, stain
from data.phantom.slide import Spec

# Micrometres per pixel as in Tang et al. 2022; one scanner, well focused.
_LOOK = stain.Appearance(mpp=1.0, focus=0.1)
_SIDE = 70  # Of an image on the anatomy's maps, 280 um.
# Keratinising and poorly differentiated carcinoma, as drawn for the slides.
_TUMOURS = ('squamous', 'breast')
_MIMICS = ('lymphoma',)  # Reactive follicles.


def specs(patients: int, seed: int) -> dict[str, Spec]:
  """Returns the images by id: three per patient, one or two with tumour."""
  images = {}
  for patient in range(patients):
    positives = 1 + patient // 2 % 2
    order = np.random.default_rng([seed, patient, 7]).permutation(3)
    for number in range(3):
      name = f'node_{patient + 1:02d}{"abc"[number]}'
      label = slide.LABELS[0]
      if order[number] < positives:
        label = _TUMOURS[patient % len(_TUMOURS)]
      images[name] = Spec(seed, patient, number, label, _LOOK, _SIDE, _MIMICS)
  return images


def make(
  root: Path,
  *,
  development: int = 10,
  test: int = 8,
  seed: int = 0,
  progress: Callable[[int, int], None] | None = None,
) -> Path:
  """Writes images of lymph nodes at 1 um per pixel whose truth is known.

  A positive image holds a metastasis with its own stroma, a negative one what
  is mistaken for tumour. Images that are there are kept, which makes an
  interrupted call resumable.

  Args:
    root: the folder to fill: images/<image_id>.png, masks/<image_id>.png (of
      images with tumour; 255 on the lesion) and images.csv, in the layout of
      `data.node_images`.
    development: patients of the development part.
    test: patients of the test part.
    seed: another seed is another set.
    progress: called with (images done, images in all) after every image.

  Returns:
    `root`.
  """
  root = Path(root)
  for folder in ('images', 'masks'):
    (root / folder).mkdir(parents=True, exist_ok=True)
  wanted = specs(development + test, seed)
  rows = [('image_id', 'patient_id', 'part', 'label')]
  for done, (name, spec) in enumerate(wanted.items(), 1):
    positive = spec.label in _TUMOURS
    target = root / 'images' / f'{name}.png'
    if not target.exists():
      image, truth = slide.render(spec)
      if positive:  # The mask first: an image there is complete.
        _save(root / 'masks' / f'{name}.png', truth.mask(image.shape[:2]))
      _save(target, image)
    part = 'development' if spec.case < development else 'test'
    label = 'positive' if positive else 'negative'
    rows.append((name, f'patient_{spec.case + 1:02d}', part, label))
    if progress is not None:
      progress(done, len(wanted))
  files.write_csv(root / 'images.csv', rows)
  return root


def _save(path: Path, pixels: np.ndarray) -> None:
  with files.replacing(path) as part:
    Image.fromarray(pixels).save(part, format='PNG')

"""Renders the phantom of node images: regions of nodes, lesions with masks."""

from pathlib import Path

import numpy as np
from PIL import Image

from data import files
from data.phantom import cohort, slide, stain
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
  progress: cohort.Progress = cohort.no_progress,
) -> None:
  """Writes images of lymph nodes at 1 um per pixel whose truth is known.

  A positive image holds a metastasis with its own stroma, a negative one what
  is mistaken for tumour.

  Args:
    root: the folder to fill: images/<image_id>.png, masks/<image_id>.png (of
      images with tumour; 255 on the lesion) and images.csv, in the layout of
      `data.node_images`.
    development: patients of the development part.
    test: patients of the test part.
    seed: another seed is another set.
    progress: called with (images done, images in all) after every image.
  """
  wanted = specs(development + test, seed)

  def render(name: str) -> tuple[str, ...]:
    spec = wanted[name]
    image, truth = slide.render(spec)
    shown = {'images': image}
    if truth.outlines:
      shown['masks'] = truth.mask(image.shape[:2])
    for folder, pixels in shown.items():
      with files.replacing(root / folder / f'{name}.png') as part:
        Image.fromarray(pixels).save(part, format='PNG')
    part = 'development' if spec.case < development else 'test'
    label = 'positive' if truth.outlines else 'negative'
    return name, f'patient_{spec.case + 1:02d}', part, label

  rows = cohort.in_threads(render, wanted, progress)
  header = ('image_id', 'patient_id', 'part', 'label')
  # Last: its presence says that all is there.
  files.write_csv(root / 'images.csv', [header, *rows])

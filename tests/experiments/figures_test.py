"""Every figure is drawn, also where classes are perfect or missing."""

from drawn_results import CLASSES, part, write, write_external
import numpy as np
from PIL import Image
import pytest
from shapely import geometry

from experiments.evaluation import figures, predictions
from experiments.evaluation.predictions import Predictions
from experiments.run.results import Folder


def lines_of(drawing):
  """Curves with a legend entry: [(label, width, colour)]."""
  return [
    (line.get_label(), line.get_linewidth(), line.get_color())
    for line in drawing.axes[0].lines
    if not line.get_label().startswith('_')
  ]


def test_all_pictures_of_a_folder(tmp_path):
  for fold in range(2):
    write(tmp_path, fold)
    write_external(tmp_path, fold, part(50, 9))
  figures.draw(Folder(tmp_path), CLASSES)
  cohort = {'roc.png', 'pr.png', 'confusion.png'}
  names = cohort | {'reliability.png'} | {f'external_{name}' for name in cohort}
  assert {path.name for path in (tmp_path / 'figures').iterdir()} == names
  for path in (tmp_path / 'figures').iterdir():
    picture = np.asarray(Image.open(path).convert('RGB'))
    assert min(picture.shape[:2]) > 400 and picture.std() > 10


@pytest.mark.parametrize('name', ['_roc', '_precision_recall'])
def test_curves_that_coincide_are_all_seen(name):
  """Drawn in this order, each leaves a pixel of the one below on both sides."""
  p = part(0, 30)
  perfect = Predictions(p.case, p.slide, p.label, np.eye(3)[p.label])
  lines = lines_of(getattr(figures, name)(perfect, CLASSES, 'title'))
  labels, widths, colors = zip(*lines, strict=True)
  assert len(set(colors)) == 3 and all('1.000' in label for label in labels)
  assert min(-np.diff(widths)) * 120 / 72 >= 1.9


def test_roc_curves_have_their_areas():
  truth = np.array([0, 0, 1, 1], bool)
  case, scores = np.array(list('ppqr')), np.arange(4.0)
  found = {'a': (truth, scores, case), 'b': (truth, -scores, case)}
  drawing = figures.roc('t', found)
  ax = drawing.axes[0]
  texts = [text.get_text() for text in drawing.legends[0].texts]
  assert texts == [
    f'{name}; n 2 of 4, patients 2'
    for name in ('a, AUROC 1.000', 'b, AUROC 0.000')
  ]
  assert not ax.collections  # The other class is of one patient.
  x, y = ax.lines[1].get_data()
  assert np.trapezoid(y, x) == 1


def test_long_names_of_classes_fit_below_a_curve():
  name = 'squamous cell carcinoma of the oropharynx'
  truth, case = np.arange(99) % 2 == 0, np.arange(99).astype(str)
  drawing = figures.roc('t', {name: (truth, np.arange(99.0), case)})
  drawing.draw_without_rendering()
  (legend,) = drawing.legends
  place = legend.get_window_extent()
  assert 0 <= place.x0 and place.x1 <= drawing.bbox.width
  (text,) = legend.get_texts()
  shown = ' '.join(text.get_text().split())
  assert shown.startswith(name) and shown.endswith('n 50 of 99, patients 50')


@pytest.mark.parametrize('name', ['_roc', '_precision_recall'])
def test_a_missing_class_has_no_curve_and_two_classes_have_one(name):
  draw = getattr(figures, name)
  *_, (label, *_) = lines_of(draw(part(0, 20, labels=(0, 1)), CLASSES, ''))
  assert label.startswith('breast') and 'n/a; n 0 of 20' in label
  p = part(0, 20, labels=(0, 1), classes=CLASSES[:2])
  ((label, *_),) = lines_of(draw(p, CLASSES[:2], ''))
  assert label.startswith('lymphoma')


def test_the_picture_of_calibration_shows_both():
  p = predictions.pool([part(seed, 40) for seed in range(3)])
  # Unknown temperatures leave one curve, not an error.
  drawing = figures._reliability(p, np.full_like(p.prob, np.nan), 'test')
  entries = [t.get_text() for t in drawing.legends[0].get_texts()]
  assert [e.split(',')[0] for e in entries] == ['as is', 'at the temperatures']
  assert 'ECE n/a' in entries[1] and 'ECE n/a' not in entries[0]
  # Points are not joined, and each has a bar; 120 slides are not few.
  assert not [
    x for x in drawing.axes[0].lines[1:] if x.get_linestyle() != 'None'
  ]
  points, _, (bars,) = drawing.axes[0].containers[0]
  for (_, y), ((_, low), (_, high)) in zip(
    points.get_xydata(), bars.get_segments(), strict=True
  ):
    assert 0 <= low <= y <= high <= 1 and high > low
  assert 'too few' not in drawing.axes[0].get_title()
  drawing.canvas.draw()
  few = figures._reliability(part(0, 49), part(0, 49).prob, 'test')
  assert 'Under 50 slides: too few' in few.axes[0].get_title()


@pytest.mark.parametrize('name', ['_roc', '_precision_recall'])
def test_bands_are_of_resampled_patients(name):
  """Copies of slides tell nothing new; copies of patients do."""
  one = part(3, 60)
  case = np.array([f'{case} again' for case in one.case])
  same = predictions.pool([one] * 4)
  more = [
    one,
    *(
      Predictions(
        np.char.add(case, str(i)),
        *[getattr(one, n) for n in ('slide', 'label', 'prob')],
      )
      for i in range(3)
    ),
  ]
  widths = []
  for p in (one, same, predictions.pool(more)):
    band = getattr(figures, name)(p, CLASSES, '').axes[0].collections[0]
    (path,) = band.get_paths()
    widths.append(geometry.Polygon(path.vertices).area)
  assert abs(widths[1] / widths[0] - 1) < 1e-6
  assert widths[2] < 0.7 * widths[0]


def test_twelve_classes_of_long_names_are_told_apart():
  names = [
    f'metastasis of squamous cell carcinoma, type {i}' for i in range(12)
  ]
  rng = np.random.default_rng(0)
  label, case = np.arange(96) % 12, np.arange(96).astype(str)
  p = Predictions(case, case, label, rng.dirichlet(np.ones(12), 96))
  curves = figures._roc(p, names, 'title')
  drawn = [one for one in curves.axes[0].lines if one.get_label()[0] != '_']
  assert len({(one.get_color(), one.get_linestyle()) for one in drawn}) == 12
  assert max(one.get_linewidth() for one in drawn) < 8
  confusion = figures._confusion(p, names, 'title')
  for drawing in curves, confusion:
    drawing.draw_without_rendering()
    # In inches: no names take the room of what they name.
    sides = drawing.axes[0].get_window_extent().size / drawing.dpi
    assert min(sides) > 4
  ax = confusion.axes[0]
  for marks in ax.get_xticklabels(), ax.get_yticklabels():
    places = [mark.get_window_extent().padded(-1) for mark in marks]
    assert not places[0].count_overlaps(places[1:])
    assert not places[5].count_overlaps(places[:5] + places[6:])

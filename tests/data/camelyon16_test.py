"""CAMELYON16: its slides, annotations in every format, patches and rules.

Any bytes in the place of its files are in reader_fuzz_test.
"""

import gzip
import json

import numpy as np
import pytest
from samples import picture
import shapely
import tifffile

from data import outlines, tiff
from data.camelyon16 import annotations, patches, slides
from data.camelyon16.patches import Patches, tissue_map, tissue_mask
from data.camelyon16.slides import EXCLUDED
from data.labelled_tiles import TileError
from data.slides import Slide

# Slides.
OFFICIAL = frozenset(
  f'{kind}_{i:03d}'
  for kind, count in (('normal', 160), ('tumor', 110), ('test', 130))
  for i in range(1, count + 1)
)


@pytest.fixture
def folder(tmp_path):
  """The official slides, empty files, under the names of two releases."""
  for name in OFFICIAL:
    kind = name.partition('_')[0]
    name = name.capitalize() if kind == 'test' else name
    path = tmp_path / kind / f'{name}.tif'
    path.parent.mkdir(exist_ok=True)
    path.touch()
  return tmp_path


@pytest.fixture
def reference(tmp_path):
  path = tmp_path / 'test_reference.csv'
  path.write_text(
    '\n'.join(
      f'Test_{i:03d},{"Tumor,IDC,Macro" if i % 3 else "Normal,IDC,None"}'
      for i in range(1, 131)
    )
  )
  return path


def ids(cohort, **values):
  return {
    s.id for s in cohort if all(getattr(s, k) == v for k, v in values.items())
  }


def test_labels_are_the_organisers(folder, reference):
  for name in ('tumor_001_mask.tif', 'CMU-1.tif'):  # They may lie there, too.
    (folder / name).touch()
  cohort = slides.find(folder, reference, OFFICIAL)
  assert ids(cohort) == OFFICIAL - set(EXCLUDED)
  assert [s.id for s in cohort] == sorted(s.id for s in cohort)
  assert cohort[-1].path.stem == 'tumor_110'
  assert ids(cohort, label='tumor') == {
    'normal_086',
    *(f'tumor_{i:03d}' for i in range(1, 111)),
    *(f'test_{i:03d}' for i in range(1, 131) if i % 3 and i != 49),
  }
  few = slides.find(folder, reference, ['test_049', 'tumor_001', 'Test_001'])
  assert ids(few) == {'tumor_001', 'test_001'}


@pytest.mark.parametrize(
  'wanted, words',
  [
    (
      ['normal_007', 'test_012', 'tumor_110', 'tumor_001'],
      r'3 slide\(s\) missing: normal_007, test_012, tumor_110$',
    ),
    (['test_001', 'test_130'], r'no label in .*csv: test_130'),
    (['test_1'], r'not slides of CAMELYON16: test_1'),
    (['tumor_002'], 'the same slide'),
  ],
)
def test_all_slides_that_cannot_be_used_are_named(
  folder, reference, wanted, words
):
  for name in ('normal/normal_007', 'tumor/tumor_110', 'test/Test_012'):
    (folder / f'{name}.tif').unlink()
  (folder / 'Tumor_002.svs').touch()
  lines = reference.read_text().splitlines()
  reference.write_text('\n'.join(lines[:-1]))
  with pytest.raises(TileError, match=words):
    slides.find(folder, reference, wanted)


def test_the_real_reference_has_49_tumour_slides(real_data):
  labels = slides.read_reference(real_data / 'camelyon16/test_reference.csv')
  assert set(labels) == {n for n in OFFICIAL if n.startswith('test')}
  tumour = {n for n, label in labels.items() if label == 'tumor'}
  assert len(tumour - {'test_049'}) == 49 and set(EXCLUDED) <= tumour
  assert (labels['test_001'], labels['test_003']) == ('tumor', 'normal')


def test_cells_of_the_reference_may_be_in_quotes(tmp_path):
  path = tmp_path / 'reference.csv'
  path.write_text('"Test_001", "Tumor" ,"IDC, DCIS",Micro\n,,,\n')
  assert slides.read_reference(path) == {'test_001': 'tumor'}


@pytest.mark.parametrize(
  'name, read, lines',
  [
    (
      'reference.csv',
      slides.read_reference,
      'Test_001,Normal,DCIS,None Test_002,Tumour,IDC,Macro Test_002,Tumor,IDC'
      ' Test_002,Normal,IDC,Macro tumor_002,Tumor,IDC,Micro'
      ' Test_001,Tumor,IDC,Micro',
    ),
    (
      'list.txt',
      patches.read,
      'tumor_001,64,64 tumor_001,64 cmu,1,2 tumor_001,64,64 tumor_001,-64,64'
      ' tumor_001,1.5,64',
    ),
  ],
)
def test_all_lines_but_the_first_are_bad(tmp_path, name, read, lines):
  path = tmp_path / name
  path.write_text(lines.replace(' ', '\n'))
  with pytest.raises(TileError) as error:
    read(path)
  for line in range(1, 7):
    assert (f'line {line}: ' in str(error.value)) == (line > 1)


# Annotations.
SQUARE = [[64, 64], [512, 64], [512, 448], [64, 448]]
HOLE = [[128, 128], [256, 128], [256, 256], [128, 256]]
FAR = [[640, 640], [704, 640], [704, 706]]  # The middle of a pixel is inside.


def xml(*shapes):
  """ASAP's XML of (group, corners)."""
  annotations = ''.join(
    f'<Annotation Name="{i}" Type="Polygon" PartOfGroup="{group}">'
    + ''.join(
      f'<Coordinate Order="{k}" X="{x}" Y="{y}" />'
      for k, (x, y) in enumerate(corners)
    )
    + '</Annotation>'
    for i, (group, corners) in enumerate(shapes)
  )
  return f'<ASAP_Annotations>{annotations}</ASAP_Annotations>'


def write_mask(path, *levels):
  """Writes a pyramid of grey pixels [H, W], uncompressed, tiles of 256.

  Tiles that are 0 throughout are not in the file, as ASAP leaves them out.
  """
  with tifffile.TiffWriter(path) as file:
    for k, level in enumerate(levels):
      height, width = level.shape
      padded = np.pad(level, ((0, -height % 256), (0, -width % 256)))
      tiles = [
        padded[y : y + 256, x : x + 256]
        for y in range(0, height, 256)
        for x in range(0, width, 256)
      ]
      file.write(
        (tile if tile.any() else None for tile in tiles),
        shape=level.shape,
        dtype=np.uint8,
        tile=(256, 256),
        photometric='minisblack',
        subfiletype=int(k > 0),
        metadata=None,
      )


def test_all_formats_hold_the_same_tumour(tmp_path):
  truth = np.zeros((12, 12), bool)  # At level 6.
  truth[1:7, 1:8] = truth[10, 10] = True
  filled = truth.copy()
  truth[2:4, 2:4] = False
  entry = {'positive': [SQUARE, FAR], 'negative': [HOLE]}
  named = {
    key: [{'name': 'Annotation', 'vertices': ring} for ring in rings]
    for key, rings in entry.items()
  }
  (tmp_path / 'Tumor_001.xml').write_text(
    xml(('Tumor', SQUARE), ('_1', FAR), ('_2', HOLE))
  )
  (tmp_path / 'tumor_002.json').write_text(json.dumps(named))
  fine = np.kron(truth + 2 * (filled ^ truth), np.ones((64, 64), int))
  levels = [fine[::step, ::step].astype(np.uint8) for step in (1, 32, 64)]
  write_mask(tmp_path / 'tumor_004_mask.tiff', *levels)  # 2 is a hole.
  write_mask(
    tmp_path / 'Tumor_003_Mask.tif', *((v == 1) * np.uint8(255) for v in levels)
  )
  (tmp_path / 'tumor_004.tif').touch()  # The slide itself.
  found = annotations.find(tmp_path)
  names = [f'tumor_00{i}' for i in range(1, 5)]
  assert sorted(found.files) == names
  bundle = tmp_path / 'all.json.gz'
  bundle.write_bytes(gzip.compress(json.dumps({'Tumor_001': entry}).encode()))
  sources = [(found, name) for name in names]
  for source, name in [*sources, (annotations.find(bundle), 'tumor_001')]:
    np.testing.assert_array_equal(source.mask(name, (12, 12), 64), truth)
  double = np.kron(truth, np.ones((2, 2))).astype(bool)
  np.testing.assert_array_equal(found.mask('tumor_004', (24, 24), 32), double)
  # Holes are left in where asked; masks have them cut out already.
  for name, expected in (('tumor_001', filled), ('tumor_004', truth)):
    mask = found.mask(name, (12, 12), 64, holes=False)
    np.testing.assert_array_equal(mask, expected)
  wide = found.mask('tumor_003', (13, 11), 64)
  np.testing.assert_array_equal(wide[:12], truth[:, :11])
  assert not wide[12:].any()


def test_no_annotation_and_two_are_refused(tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(TileError, match=r'no <slide>\.xml'):
    annotations.find(tmp_path / 'empty')
  with pytest.raises(TileError, match=r'absent: cannot be read'):
    annotations.find(tmp_path / 'absent')
  (tmp_path / 'tumor_001.json').write_text('{}')
  found = annotations.find(tmp_path)
  found.require(['tumor_001'])
  with pytest.raises(TileError, match=r'2 tumour .*: normal_086, tumor_002\.'):
    found.require(['tumor_002', 'tumor_001', 'normal_086'])
  with pytest.raises(TileError, match='tumor_002'):
    found.mask('tumor_002', (12, 12), 64)
  (tmp_path / 'Tumor_001.xml').touch()
  with pytest.raises(TileError, match='tumor_001: both'):
    annotations.find(tmp_path)


@pytest.mark.parametrize('kind', ['json', 'xml'])
def test_outlines_without_an_area_are_left_out_aloud(tmp_path, kind):
  line = [[1, 2], [3, 4], [1, 2]]
  text = xml(('Tumor', line), ('Tumor', SQUARE))
  if kind == 'json':
    text = json.dumps({'positive': [line, SQUARE], 'negative': []})
  (tmp_path / f'tumor_054.{kind}').write_text(text)
  with pytest.warns(UserWarning, match=r'tumor_054.* no area'):
    (ring,) = annotations.find(tmp_path).rings('tumor_054')
  np.testing.assert_array_equal(ring.corners, SQUARE)


def test_levels_of_masks_leave_out_what_is_no_whole_pixel(tmp_path):
  truth = np.zeros((37, 48), bool)  # At level 5.
  truth[5:20, 3:30] = True
  fine = np.kron(truth, np.ones((32, 32)))
  fine = np.pad(fine, ((0, 17), (0, 19))).astype(np.uint8)
  write_mask(tmp_path / 'a_mask.tif', fine, fine[::32, ::32][:37, :48])
  found = annotations.find(tmp_path)
  mask = found.mask('a', (38, 49), 32)  # Of 1201 x 1555 pixels.
  np.testing.assert_array_equal(mask, np.pad(truth, ((0, 1), (0, 1))))
  with pytest.warns(UserWarning, match='1184 x 1536 level-0 pixels .* 2432 x'):
    found.mask('a', (76, 98), 32)


@pytest.mark.parametrize(
  'values, fault', [([0, 7], r'value.* 7\.'), ([1, 255], 'both 1 and 255')]
)
def test_masks_of_unknown_values_are_refused(tmp_path, values, fault):
  level = np.zeros((300, 300), np.uint8)
  level[:2, 0] = values
  write_mask(tmp_path / 'tumor_001_mask.tif', level)
  found = annotations.find(tmp_path)
  with pytest.raises(TileError, match=fault):
    found.mask('tumor_001', (300, 300), 1)
  with pytest.raises(TileError, match='no level is 32 times'):
    found.mask('tumor_001', (10, 10), 32)


# Patches.
def of(listed, slide):
  """Centres of a list in one slide."""
  return listed.xy[listed.slide == slide]


def apart(xy):
  """Smallest distance, in the direction where it is larger, of any two."""
  away = np.abs(xy[:, None] - xy).max(-1).astype(float)
  return away[~np.eye(len(xy), dtype=bool)].min(initial=np.inf)


@pytest.fixture(scope='module')
def known(real_data):
  return annotations.find(real_data / 'camelyon16/tumor_polygons.json.gz')


@pytest.mark.parametrize(
  'name, count, slide_count, in_outlines, filled',
  [
    ('train_good', 5000, 10, 0, 0),
    # The code that drew them fills holes.
    ('train_bad', 1001, 10, 966, 991),
    ('test_good', 9856, 128, None, None),
    ('test_bad', 10842, 45, None, None),
  ],
)
def test_released_lists_keep_the_rule_that_drew_them(
  real_data, known, name, count, slide_count, in_outlines, filled
):
  folder = real_data / 'camelyon16/few_shot_patches'
  listed = patches.read(folder / f'{name}.txt')
  names = set(listed.slide.tolist())
  assert (len(listed), len(names)) == (count, slide_count)
  assert not names & set(EXCLUDED)
  assert {n.startswith('test_') for n in names} == {name.startswith('test_')}
  assert not (listed.xy % 64).any()
  assert all(apart(of(listed, n)) >= patches.APART for n in names)
  if in_outlines is None:
    return
  for holes, expected in ((True, in_outlines), (False, filled)):
    inside = sum(
      shapely.contains_xy(
        outlines.region(known.rings(n), holes=holes), of(listed, n)
      ).sum()
      for n in names
    )
    assert inside == expected


SIZE = (80 * 64, 60 * 64)  # Of a slide whose map is [60, 80].


def test_patches_are_drawn_by_the_rule_from_seed_and_slide_alone():
  mask = np.random.default_rng(0).random((60, 80)) < 0.8
  drawn = patches.sample(
    {'b': mask, 'a': mask}, {'a': SIZE, 'b': SIZE}, 25, seed=3
  )
  assert drawn.slide.tolist() == ['a'] * 25 + ['b'] * 25
  for slide in 'ab':
    xy = of(drawn, slide)
    assert apart(xy) >= 128
    column, row = xy.T // 64
    for dy, dx in ((0, 0), (2, 2), (2, -2), (-2, 2), (-2, -2)):
      assert mask[row + dy, column + dx].all()
    assert (xy >= 128).all() and (xy <= np.array(SIZE) - 128).all()
  assert (of(drawn, 'a') != of(drawn, 'b')).any()
  alone = patches.sample({'b': mask}, {'b': SIZE}, 30, 3)
  np.testing.assert_array_equal(of(drawn, 'b'), alone.xy[:25])
  other = patches.sample({'b': mask}, {'b': SIZE}, 30, 4)
  assert (alone.xy != other.xy).any()


def test_where_no_more_fit_fewer_are_drawn_and_written(tmp_path):
  name = 'tumor_001'
  drawn = patches.sample(
    {name: np.ones((20, 20))}, {name: (1280, 1280)}, 500, 0
  )
  assert apart(drawn.xy) == patches.APART
  # None fits in between: every inner pixel is close to one that was taken.
  y, x = np.mgrid[2:18, 2:18] * 64
  inner = np.stack([x, y], -1).reshape(-1, 1, 2)
  assert (np.abs(inner - drawn.xy).max(-1) < patches.APART).any(1).all()
  patches.write(tmp_path / 'list.txt', drawn)
  listed = patches.read(tmp_path / 'list.txt')
  np.testing.assert_array_equal(listed.slide, drawn.slide)
  np.testing.assert_array_equal(listed.xy, drawn.xy)
  none = patches.sample({name: np.zeros((9, 9))}, {name: (576, 576)}, 50, 0)
  assert len(none) == 0 and none.xy.shape == (0, 2)


def test_listed_patches_are_read_around_their_centres_or_named(tmp_path):
  path = tmp_path / 'tumor_001.tiff'
  tiff.write(path, picture(0, (700, 900, 3)), mpp=0.243, levels=2)
  listed = lambda name, *xy: Patches(np.array([name] * len(xy)), np.array(xy))
  tumour = listed('tumor_001', [192, 320])
  normal = listed('tumor_001', [128, 128], [772, 572])
  tiles = patches.from_lists({'tumor_001': path}, tumour, normal)
  labels = [tiles.classes[i] for i in tiles.label]
  assert labels == ['tumor', 'normal', 'normal']
  with Slide(path) as slide:
    for tile, (x, y) in zip(tiles.pixels, tiles.xy, strict=True):
      np.testing.assert_array_equal(tile, slide.read(x, y, 0, 256, 256))
  np.testing.assert_array_equal(tiles.xy[1:] + 128, normal.xy)
  with pytest.raises(TileError, match='tumor_001/x64_y192: 2 tiles'):
    patches.from_lists({'tumor_001': path}, tumour, tumour)
  with pytest.raises(TileError) as error:
    patches.from_lists(
      {'tumor_001': path, 'tumor_002': path.with_name('absent.tiff')},
      listed('tumor_002', (200, 200)),
      listed('tumor_001', (127, 200), (773, 300)),
    )
  for words in ('absent.tiff', '(127, 200)', '(773, 300)'):
    assert words in str(error.value)


def test_tissue_is_saturated_and_neither_bright_nor_dark(tmp_path):
  image = np.full((40, 40, 3), 240, np.uint8)
  image[10:30, 10:30] = (180, 120, 130)  # Stained.
  image[0:4, 36:] = (255, 255, 190)  # Bright.
  image[0:4, 0:4] = (120, 120, 120)  # Grey.
  image[36:, 36:] = (70, 10, 60)  # Too dark in green.
  expected = np.zeros((40, 40), bool)
  expected[10:30, 10:30] = True
  np.testing.assert_array_equal(tissue_mask(image), expected)
  image[30:] = 0  # Not scanned: black is grey, not the most vivid of colours.
  np.testing.assert_array_equal(tissue_mask(image), expected)
  image = np.full((640, 1000, 3), 240, np.uint8)
  image[128:320, 256:512] = (180, 100, 170)
  tiff.write(tmp_path / 'a.tiff', image, mpp=0.25, levels=3)
  expected = np.zeros((10, 16), bool)
  expected[2:5, 4:8] = True
  with Slide(tmp_path / 'a.tiff') as slide:
    np.testing.assert_array_equal(tissue_map(slide), expected)

"""Builders of tile datasets, and datasets opened as labelled tiles."""

import pathlib
import tempfile
import zipfile

import numpy as np
from PIL import Image
import pytest
from samples import encoded, picture, write_rows
import tensorflow_datasets as tfds

from data.dataset_tiles import from_tfds
from data.idc_breast import idc_breast_dataset_builder as idc_breast
from data.labelled_tiles import TileError
from data.lymphatic_invasion import (
  lymphatic_invasion_dataset_builder as lymphatic_invasion,
)
from data.tile_sources import COLUMNS, from_zip


def tile(seed, size, kind='PNG'):
  """An image file of four colours."""
  small = picture(seed, (2, 2, 3))
  return encoded(small.repeat(size // 2, 0).repeat(size // 2, 1), kind)


def write_idc(root, n=5, size=50):
  rows = [
    [f'p{i // 2}', 50 * i + 1, i, i % 2, f'{i % 2}/t{i}.png'] for i in range(n)
  ]
  with zipfile.ZipFile(root / 'idc_tiles.zip', 'w') as archive:
    for i, row in enumerate(rows):
      archive.writestr(row[-1], tile(i, size))
  write_rows(root / 'index.csv', [COLUMNS, *rows])
  return root


def write_lymphatic(root):
  (root / 'weak').mkdir()
  (root / 'hard/deep').mkdir(parents=True)
  for i, name in enumerate(
    ('pos_p1_s1_0', 'pos_p1_s2_a_1', 'neg_p2_s1', 'deep/neg_p3_s1_2')
  ):
    (root / f'hard/{name}.png').write_bytes(tile(i, 512))
  for i in range(3):
    (root / f'weak/n{i}_s1_{i}.jpg').write_bytes(tile(i, 512, 'JPEG'))
  return root


def prepare(builder, manual_dir):
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
  )
  return pathlib.Path(builder.data_dir)


class _Builder:
  """What TFDS asks of every dataset."""

  SKIP_TF1_GRAPH_MODE = True
  MOCK_OUT_FORBIDDEN_OS_FUNCTIONS = False  # Pillow's and zipfile's own.

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.EXAMPLE_DIR = cls.write(pathlib.Path(root))


class IdcBreastTest(_Builder, tfds.testing.DatasetBuilderTestCase):
  """Of tiles that a table labels."""

  DATASET_CLASS = idc_breast.Builder
  SPLITS = {'train': 5}  # noqa: RUF012
  write = staticmethod(write_idc)


class LymphaticInvasionTest(_Builder, tfds.testing.DatasetBuilderTestCase):
  """Of tiles that their names label."""

  DATASET_CLASS = lymphatic_invasion.Builder
  BUILDER_CONFIG_NAMES_TO_TEST = ['hard']  # noqa: RUF012
  SPLITS = {'train': 4}  # noqa: RUF012
  write = staticmethod(write_lymphatic)


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_a_prepared_dataset_holds_what_the_zip_does(file_format, tmp_path):
  write_idc(tmp_path, 9)
  made = idc_breast.Builder(data_dir=tmp_path, file_format=file_format)
  folder = prepare(made, tmp_path)
  source = from_zip(tmp_path / 'idc_tiles.zip', tmp_path / 'index.csv')
  tiles = from_tfds(folder, 'train')
  assert sorted(tiles.id) == source.id.tolist()
  assert tiles.classes == source.classes == ('0', '1')
  part = from_tfds(str(folder), 'train[3:7]')
  assert part.id.tolist() == tiles.id[3:7].tolist()
  np.testing.assert_array_equal(part.pixels, tiles.pixels[3:7])
  tiles = tiles.take(np.argsort(tiles.id))
  for name in ('label', 'group', 'pixels'):
    np.testing.assert_array_equal(getattr(tiles, name), getattr(source, name))
  with pytest.raises(
    TileError, match=r"split 'test' .*It has the splits train"
  ):
    from_tfds(folder, 'test')


def test_patch_camelyon_is_read_as_tfds_prepares_it(tmp_path, monkeypatch):
  images = picture(0, (7, 96, 96, 3))
  builder = tfds.builder('patch_camelyon', data_dir=tmp_path)

  def examples():
    for i, image in enumerate(images):
      yield i, {'id': f'train_{i}', 'image': image, 'label': i % 2}

  monkeypatch.setattr(
    type(builder), '_split_generators', lambda *_: {'train': examples()}
  )
  folder = prepare(builder, None)
  tiles = from_tfds(folder, 'train')
  assert (len(tiles), tiles.size, set(tiles.group)) == (7, 96, {''})
  number = [int(i.split('_')[1]) for i in tiles.id]
  np.testing.assert_array_equal(tiles.label, np.array(number) % 2)
  np.testing.assert_array_equal(tiles.pixels, images[number])
  (path,) = folder.glob('*.tfrecord*')
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(TileError, match='DataLossError'):
    from_tfds(folder, 'train')


def test_what_is_no_set_of_tiles_is_refused(tmp_path):
  folder = prepare(tfds.testing.DummyDataset(data_dir=tmp_path), None)
  with pytest.raises(TileError, match='0 features are an Image'):
    from_tfds(folder, 'train')
  folder = prepare(idc_breast.Builder(data_dir=tmp_path), write_idc(tmp_path))
  features = folder / 'features.json'
  features.write_text(features.read_text().replace('"50"', '"-1"'))
  with pytest.raises(TileError, match=r'shape \(None, None, 3\). Squares'):
    from_tfds(folder, 'train')


def test_lymphatic_invasion_reads_its_names(tmp_path):
  root = write_lymphatic(tmp_path)
  hard, weak = (
    from_tfds(
      prepare(lymphatic_invasion.Builder(data_dir=tmp_path, config=kind), root),
      'train',
    )
    for kind in ('hard', 'weak')
  )
  labels = [hard.classes[c] for c in hard.label]
  assert sorted(zip(hard.id, labels, hard.group, strict=True)) == [
    ('deep/neg_p3_s1_2.png', 'negative', 'p3'),
    ('neg_p2_s1.png', 'negative', 'p2'),
    ('pos_p1_s1_0.png', 'positive', 'p1'),
    ('pos_p1_s2_a_1.png', 'positive', 'p1'),
  ]
  assert set(weak.label) == {0} and set(weak.group) == {'n0', 'n1', 'n2'}
  for tiles, folder in ((hard, root / 'hard'), (weak, root / 'weak')):
    with Image.open(folder / tiles.id[0]) as image:  # Not encoded anew.
      np.testing.assert_array_equal(tiles.read(0), image)


def test_builders_refuse_other_layouts_by_name(tmp_path):
  root, out = write_lymphatic(tmp_path), tmp_path / 'out'
  for name in ('p1_s1_3.png', 'pos_p1.png', 'labels.csv'):
    (root / 'hard' / name).write_bytes(tile(0, 512))
  (root / 'hard/neg_p4_s1.png').write_bytes(tile(0, 256))
  (root / 'weak/n1_s1.jpg').write_bytes(tile(0, 512, 'JPEG')[:3000])
  hard, weak = (
    lymphatic_invasion.Builder(data_dir=out, config=kind)
    for kind in ('hard', 'weak')
  )
  with pytest.raises(TileError, match='4 problem') as error:
    prepare(hard, root)
  for name in ('p1_s1_3.png', 'pos_p1.png', 'labels.csv', 'neg_p4_s1.png'):
    assert name in str(error.value)
  with pytest.raises(TileError, match=r'n1_s1\.jpg: cannot be decoded'):
    prepare(weak, root)
  with pytest.raises(TileError, match='weak: no file in it'):
    prepare(weak, root / 'hard')
  breast = idc_breast.Builder(data_dir=out)
  with pytest.raises(TileError, match=r'index\.csv: cannot be read'):
    prepare(breast, tmp_path)
  with pytest.raises(TileError, match='tiles of 40 px'):
    prepare(breast, write_idc(tmp_path, size=40))
  assert not list(out.rglob('*record*'))

"""Builders of tile datasets, and datasets opened as labelled tiles."""

import csv
import io
import pathlib
import tempfile
import zipfile

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from data.dataset_tiles import from_tfds
from data.idc_breast import idc_breast_dataset_builder as idc_breast
from data.labelled_tiles import TileError
from data.lymphatic_invasion import (
  lymphatic_invasion_dataset_builder as lymphatic_invasion,
)
from data.tile_sources import COLUMNS, from_zip


def encoded(seed, size, kind='PNG'):
  file = io.BytesIO()
  small = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
  image = small.repeat(size // 2, 0).repeat(size // 2, 1)
  Image.fromarray(image).save(file, kind)
  return file.getvalue()


def write_idc(root, n=5, size=50):
  with zipfile.ZipFile(root / 'idc_tiles.zip', 'w') as archive:
    for i in range(n):
      archive.writestr(f'{i % 2}/t{i}.png', encoded(i, size))
  rows = [
    [f'p{i // 2}', 50 * i + 1, i, i % 2, f'{i % 2}/t{i}.png'] for i in range(n)
  ]
  with (root / 'index.csv').open('w', newline='') as f:
    csv.writer(f).writerows([COLUMNS, *rows])
  return root


def write_lymphatic(root, size=512):
  hard = ('pos_p1_s1_0', 'pos_p1_s2_a_1', 'neg_p2_s1', 'neg_p3_s1_2')
  for i, name in enumerate(hard):
    path = root / 'hard' / ('deep' if i == 3 else '') / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(i, size))
  (root / 'weak').mkdir()
  for i in range(3):
    content = encoded(i, size, 'JPEG')
    (root / 'weak' / f'n{i}_s1_{i}.jpg').write_bytes(content)
  return root


def prepare(builder, manual_dir):
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
  )
  return builder


class IdcBreastTest(tfds.testing.DatasetBuilderTestCase):
  """What TFDS asks of every dataset."""

  DATASET_CLASS = idc_breast.Builder
  SPLITS = {'train': 5}  # noqa: RUF012
  SKIP_TF1_GRAPH_MODE = True
  MOCK_OUT_FORBIDDEN_OS_FUNCTIONS = False  # Pillow's and zipfile's own.

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.EXAMPLE_DIR = write_idc(pathlib.Path(root))


class LymphaticInvasionTest(tfds.testing.DatasetBuilderTestCase):
  """What TFDS asks of every dataset."""

  DATASET_CLASS = lymphatic_invasion.Builder
  BUILDER_CONFIG_NAMES_TO_TEST = ['hard']  # noqa: RUF012
  SPLITS = {'train': 4}  # noqa: RUF012
  SKIP_TF1_GRAPH_MODE = True
  MOCK_OUT_FORBIDDEN_OS_FUNCTIONS = False

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.EXAMPLE_DIR = write_lymphatic(pathlib.Path(root))


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_a_prepared_dataset_holds_what_the_zip_does(file_format, tmp_path):
  write_idc(tmp_path, 9)
  made = idc_breast.Builder(data_dir=tmp_path, file_format=file_format)
  prepare(made, tmp_path)
  source = from_zip(tmp_path / 'idc_tiles.zip', tmp_path / 'index.csv')
  tiles = from_tfds(made.data_dir, 'train')
  assert sorted(tiles.id) == source.id.tolist()
  assert tiles.classes == source.classes == ('0', '1')
  tiles = tiles.take(np.argsort(tiles.id))
  for name in ('label', 'group', 'xy', 'pixels'):
    np.testing.assert_array_equal(getattr(tiles, name), getattr(source, name))
  folder = from_tfds(str(made.data_dir), 'train[3:7]')
  everything = from_tfds(str(made.data_dir), 'train')
  assert folder.id.tolist() == everything.id[3:7].tolist()
  np.testing.assert_array_equal(folder.pixels, everything.pixels[3:7])
  with pytest.raises(
    TileError, match=r"split 'test' .*it has the splits train"
  ):
    from_tfds(made.data_dir, 'test')


def test_patch_camelyon_is_read_as_tfds_prepares_it(tmp_path, monkeypatch):
  images = np.random.default_rng(0).integers(0, 256, (7, 96, 96, 3), np.uint8)
  builder = tfds.builder('patch_camelyon', data_dir=tmp_path)

  def examples():
    for i, image in enumerate(images):
      yield i, {'id': f'train_{i}', 'image': image, 'label': i % 2}

  monkeypatch.setattr(
    type(builder), '_split_generators', lambda *_: {'train': examples()}
  )
  builder.download_and_prepare()
  tiles = from_tfds(builder.data_dir, 'train')
  assert (len(tiles), tiles.size, set(tiles.group)) == (7, 96, {''})
  number = [int(i.split('_')[1]) for i in tiles.id]
  np.testing.assert_array_equal(tiles.label, np.array(number) % 2)
  np.testing.assert_array_equal(tiles.pixels, images[number])
  (path,) = pathlib.Path(builder.data_dir).glob('*.tfrecord*')
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(TileError, match='DataLossError'):
    from_tfds(builder.data_dir, 'train')


def test_what_is_no_set_of_tiles_is_refused(tmp_path):
  for features, found in (
    ({}, '0 features are a ClassLabel'),
    (
      {'label': tfds.features.ClassLabel(num_classes=2)},
      r'images of the shape \(None, None, 3\)',
    ),
  ):
    made = prepare(toy(features)(data_dir=tmp_path / str(len(features))), None)
    with pytest.raises(TileError, match=found):
      from_tfds(str(made.data_dir), 'train')


def toy(features):
  """A builder of one image of no fixed size, and zeros for other features."""
  with tfds.core.registered.skip_registration():

    class Toy(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        image = tfds.features.Image(shape=(None, None, 3))
        return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict({'image': image} | features),
        )

      def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

      def _generate_examples(self):
        image = np.zeros((2, 2, 3), np.uint8)
        yield 0, {'image': image} | dict.fromkeys(features, 0)

  return Toy


def test_lymphatic_invasion_reads_its_names(tmp_path):
  root = write_lymphatic(tmp_path)
  for kind in ('hard', 'weak'):
    prepare(lymphatic_invasion.Builder(data_dir=tmp_path, config=kind), root)
  hard = from_tfds(tmp_path / 'lymphatic_invasion/hard/1.0.0', 'train')
  found = {
    i: (hard.classes[c], g)
    for i, c, g in zip(hard.id, hard.label, hard.group, strict=True)
  }
  assert found == {
    'pos_p1_s1_0.png': ('positive', 'p1'),
    'pos_p1_s2_a_1.png': ('positive', 'p1'),
    'neg_p2_s1.png': ('negative', 'p2'),
    'deep/neg_p3_s1_2.png': ('negative', 'p3'),
  }
  at = hard.id.tolist().index('deep/neg_p3_s1_2.png')
  with Image.open(root / 'hard/deep/neg_p3_s1_2.png') as image:
    np.testing.assert_array_equal(hard.read(at), image)
  weak = from_tfds(tmp_path / 'lymphatic_invasion/weak/1.0.0', 'train')
  assert set(weak.label) == {0} and set(weak.group) == {'n0', 'n1', 'n2'}
  with Image.open(root / 'weak' / weak.id[0]) as image:  # Not encoded anew.
    np.testing.assert_array_equal(weak.read(0), image)


def test_lymphatic_invasion_refuses_another_layout_by_name(tmp_path):
  root = write_lymphatic(tmp_path)
  (root / 'hard/p1_s1_3.png').write_bytes(encoded(0, 512))
  (root / 'hard/pos_p1.png').write_bytes(encoded(0, 512))
  (root / 'hard/labels.csv').write_text('x')
  (root / 'hard/neg_p4_s1.png').write_bytes(encoded(0, 256))
  made = lymphatic_invasion.Builder(data_dir=tmp_path / 'out', config='hard')
  with pytest.raises(TileError, match='4 problem') as error:
    prepare(made, root)
  for name in ('p1_s1_3.png', 'pos_p1.png', 'labels.csv', 'neg_p4_s1.png'):
    assert name in str(error.value)
  assert not pathlib.Path(made.data_dir).exists()
  (root / 'weak').rename(root / 'Weak')
  made = lymphatic_invasion.Builder(data_dir=tmp_path / 'out', config='weak')
  with pytest.raises(TileError, match='weak: no file in it'):
    prepare(made, root)
  (root / 'weak').mkdir()
  whole = encoded(0, 512, 'JPEG')
  (root / 'weak/n1_s1.jpg').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(TileError, match=r'n1_s1\.jpg: cannot be decoded'):
    prepare(made, root)


def test_idc_breast_refuses_other_tiles(tmp_path):
  made = idc_breast.Builder(data_dir=tmp_path / 'out')
  with pytest.raises(TileError, match=r'index\.csv: cannot be read'):
    prepare(made, tmp_path)
  with pytest.raises(TileError, match='tiles of 40 px'):
    prepare(made, write_idc(tmp_path, size=40))


def test_real_tiles_become_a_dataset(real_data, tmp_path):
  """Every twentieth row: TFDS encodes all images anew, which takes its time."""
  folder = real_data / 'idc_breast'
  header, *lines = (folder / 'index.csv').read_text().splitlines()
  lines = lines[::20]
  (tmp_path / 'index.csv').write_text('\n'.join([header, *lines]))
  with (
    zipfile.ZipFile(folder / 'idc_tiles.zip') as archive,
    zipfile.ZipFile(tmp_path / 'idc_tiles.zip', 'w') as part,
  ):
    for line in lines:
      name = line.split(',')[-1]
      part.writestr(name, archive.read(name))
  with pytest.warns(UserWarning, match='2 of 169 tiles are left out'):
    prepare(idc_breast.Builder(data_dir=tmp_path), tmp_path)
  tiles = from_tfds(tmp_path / 'idc_breast/1.0.0', 'train')
  assert len(tiles) == 167 and set(tiles.label) == {0, 1}
  for i in (0, 50, 100):
    assert tiles.id[i].endswith(
      '/{}_idx5_x{}_y{}_class{}.png'.format(
        tiles.group[i], *tiles.xy[i], tiles.label[i]
      )
    )
    with (
      zipfile.ZipFile(folder / 'idc_tiles.zip') as archive,
      archive.open(tiles.id[i]) as file,
    ):
      np.testing.assert_array_equal(tiles.read(i), Image.open(file))

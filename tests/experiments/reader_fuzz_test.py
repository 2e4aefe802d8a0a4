"""Any bytes in the place of weights, outlines, volumes, tables: a named error.

Those of features, labels and splits are in tests/data, in features_test.py,
labels_test.py and splits_test.py; of tiles in tile_sources_test.py.
"""

import dataclasses
import functools
import gzip
import io
import itertools
import json
import operator
import shutil
import struct

import hypothesis
from hypothesis import given, settings, strategies as st
import numpy as np
from PIL import Image
import pytest
import safetensors.numpy
import torch
import torch_files_test as tensors

from data import features, outlines, slides, weights
from data.camelyon16 import annotations, patches, slides as camelyon16
from data.ct import VolumeError, nifti, table as ct_table
from data.features import FeatureError
from data.labelled_tiles import TileError
from data.slides import SlideError
from experiments.evaluation import comparison, froc, predictions
from experiments.prediction import models
from experiments.prediction.models import Card, PredictionError
from experiments.reporting import record as records
from experiments.run.options import OptionError
from experiments.run.results import Folder, ResultsError
from kmil_jax import export
from kmil_jax.export import ExportError

CLASSES = ('a', 'b')


def volume():
  header = bytearray(352)
  struct.pack_into('<i', header, 0, 348)
  struct.pack_into('<8h', header, 40, 3, 4, 4, 4, 1, 1, 1, 1)
  struct.pack_into('<2h', header, 70, 4, 16)
  struct.pack_into('<8f', header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
  struct.pack_into('<3f', header, 108, 352, 1, 0)
  struct.pack_into('<2h', header, 252, 1, 1)
  header[344:348] = b'n+1\0'
  return bytes(header) + bytes(128)


def torchs():
  file = io.BytesIO()
  torch.save({'conv1.weight': torch.ones(3, 4)}, file)
  return file.getvalue()


def polygon():
  ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
  shape = {'type': 'Polygon', 'coordinates': [ring]}
  feature = {'type': 'Feature', 'geometry': shape, 'properties': {}}
  return json.dumps(
    {'type': 'FeatureCollection', 'features': [feature]}
  ).encode()


def asap():
  places = ''.join(
    f'<Coordinate Order="{x}" X="{x}" Y="{x * x}"/>' for x in range(4)
  )
  return (
    '<ASAP_Annotations><Annotations><Annotation Type="Polygon" PartOfGroup="a">'
    f'<Coordinates>{places}</Coordinates></Annotation></Annotations>'
    '</ASAP_Annotations>'
  ).encode()


def bomb():
  """A thousand million characters, had each entity its ten."""
  names = 'abcdefghi'
  text = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
  for before, name in itertools.pairwise(names):
    text += f'<!ENTITY {name} "{f"&{before};" * 10}">'
  return (
    text + f']><ASAP_Annotations>&{names[-1]};</ASAP_Annotations>'
  ).encode()


def model():
  card = dataclasses.asdict(CARD) | {'format': 1}
  return export.pack(
    export.Archive(card, {'w': np.ones(3, np.float32)}, {export.ANY: b'mlir'})
  )


def open_model(path):
  """Reads a model's file but for its programs."""
  return Card.from_json(path, export.read(path).card)


def mask():
  file = io.BytesIO()
  Image.fromarray(np.eye(30, dtype=np.uint8) * 255).save(file, 'png')
  return file.getvalue()


def table():
  header = ','.join(predictions.rows({}, 'test', CLASSES)[0])
  return f'{header}\nc,s,0,test,a,a,0.7,0.3\nc,t,0,val,b,a,0.6,0.4\n'.encode()


def read_tensor(path):
  assert features.read(path).features.size <= 24


def read_reference(path):
  assert set(camelyon16.read_reference(path).values()) <= {'normal', 'tumor'}


def read_patches(path):
  assert (patches.read(path).xy >= 0).all()


def read_annotations(path):
  source = path if path.suffix == '.gz' else path.parent
  found = annotations.find(source)
  found.require(['tumor_001'])
  for ring in found.rings('tumor_001'):
    assert ring.corners.shape[1] == 2 and len(ring.corners) > 2
    assert np.isfinite(ring.corners).all()


RING = [[64, 64], [512, 64], [512, 448], [64, 448]]
ENTRY = {'positive': [{'vertices': RING}], 'negative': [RING]}
CARD = Card(
  model='dsmil',
  task='origin',
  classes=('a', 'b'),
  width=3,
  folds=(0, 2),
  temperature=(1.5, None),
  sha256=('0', '1'),
  settings={},
  features={'encoder': 'e'},
  training={},
  made_by=({}, {}),
)
READERS = {
  'model.kmil': (model(), open_model, (ExportError, PredictionError)),
  'scales.csv': (
    b'slide_id,mpp\na,0.5\nb,0.25\n',
    slides.read_mpp_csv,
    SlideError,
  ),
  'weights.safetensors': (
    safetensors.numpy.save({'w': np.ones((3, 4), np.float32)}),
    weights.read,
    weights.WeightsError,
  ),
  'weights.pth': (torchs(), weights.read, weights.WeightsError),
  'outlines.geojson': (polygon(), outlines.read, TileError),
  'outlines.xml': (asap(), outlines.read, TileError),
  'volume.nii': (volume(), nifti.check, VolumeError),
  'volume.nii.gz': (gzip.compress(volume()), nifti.check, VolumeError),
  'nodes.csv': (
    b'patient_id,image_path,mask_path,label\np,x.nii,y.nii,a\n',
    lambda path: ct_table.read(path, CLASSES),
    VolumeError,
  ),
  'mask.png': (mask(), froc.read_mask, froc.DetectionError),
  'detections.csv': (
    b'probability,x,y\n0.9,1600,1600\n',
    froc.read_detections,
    froc.DetectionError,
  ),
  'predictions.csv': (
    table(),
    lambda path: predictions.read(Folder(path.parent), 'test', CLASSES),
    ResultsError,
  ),
  'a.pt': (tensors.archive(tensors.tensor()), read_tensor, FeatureError),
  'reference.csv': (
    b'Test_001,Tumor,IDC,Macro\nTest_003,Normal,DCIS,None\n',
    read_reference,
    TileError,
  ),
  'list.txt': (b'tumor_001,64,128\ntumor_002,64,1\n', read_patches, TileError),
  'tumor_001.json': (json.dumps(ENTRY).encode(), read_annotations, TileError),
  'tumor_001.xml': (asap(), read_annotations, TileError),
  'all.json.gz': (
    gzip.compress(json.dumps({'tumor_001': ENTRY}).encode(), mtime=0),
    read_annotations,
    TileError,
  ),
}


@pytest.mark.filterwarnings('ignore:.* no area')
@pytest.mark.parametrize('name', READERS)
@settings(
  max_examples=20,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_bytes_are_read_or_named(tmp_path, name, data):
  whole, read, error = READERS[name]
  path = tmp_path / name
  if name != 'nodes.csv':  # It names volumes that are not there.
    path.write_bytes(whole)
    read(path)
  cut = st.integers(0, len(whole) - 1)
  changed = st.tuples(cut, st.integers(0, 255))
  content = data.draw(
    st.one_of(
      st.binary(max_size=100),
      st.text('[]{}<>"/:,.-0123456789 \n\0aeinpstuvx_TN').map(str.encode),
      cut.map(lambda n: whole[:n]),
      changed.map(lambda c: whole[: c[0]] + bytes([c[1]]) + whole[c[0] + 1 :]),
    )
  )
  path.write_bytes(content)
  try:
    read(path)
  except error as e:
    assert name in str(e)
  assert [p.name for p in tmp_path.iterdir()] == [name]


ANYTHING = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=9), inner, max_size=3)
  ),
  max_leaves=4,
)


@settings(max_examples=100)
@given(
  name=st.sampled_from([f.name for f in dataclasses.fields(Card)]),
  value=ANYTHING,
)
def test_a_card_with_anything_in_it_is_sound_or_named(name, value):
  written = json.loads(json.dumps(dataclasses.asdict(CARD))) | {'format': 1}
  try:
    found = Card.from_json('m.kmil', written | {name: value})
  except PredictionError as e:
    assert 'm.kmil: ' in str(e)
  else:
    assert found.summary()
    assert all(t is None or t > 0 for t in found.temperature)
    assert len(found.folds) == len(found.temperature) == len(found.sha256)
    assert all(isinstance(c, str) for c in found.classes)


def places(value, place=()):
  """The places of all values in one of JSON."""
  yield place
  inner = value.items() if isinstance(value, dict) else ()
  for key, one in enumerate(value) if isinstance(value, list) else inner:
    yield from places(one, (*place, key))


@settings(max_examples=10)
@given(
  name=st.sampled_from(['config.json', 'summary.json']),
  value=ANYTHING,
  data=st.data(),
)
def test_a_record_with_anything_in_it_is_sound_or_named(
  finished, tmp_path_factory, name, value, data
):
  folder = Folder(tmp_path_factory.mktemp('run'))
  pictures = shutil.ignore_patterns('figures')
  shutil.copytree(finished[0], folder.path, ignore=pictures, dirs_exist_ok=True)
  content = json.loads(folder.at(name).read_text())
  *outer, last = data.draw(st.sampled_from([*places(content)][1:]))
  inner = functools.reduce(operator.getitem, outer, content)
  if data.draw(st.booleans()):
    inner[last] = value
  else:
    del inner[last]
  folder.at(name).write_text(json.dumps(content))
  for read in (
    records.read,
    lambda folder: models.read(folder, None),
    lambda folder: comparison.other_options(
      [comparison.read(folder.path, 'a')] * 2
    ),
  ):
    try:
      read(folder)
    except (ResultsError, OptionError) as e:
      assert str(folder.path) in str(e)


@pytest.mark.parametrize('offset', [-1.0, float('nan'), float('inf'), 1e30])
def test_a_volume_that_begins_nowhere_is_named(tmp_path, offset):
  content = bytearray(volume())
  struct.pack_into('<f', content, 108, offset)
  (tmp_path / 'a.nii').write_bytes(content)
  with pytest.raises(VolumeError, match=r'a\.nii: its voxels begin at byte'):
    nifti.check(tmp_path / 'a.nii')


def test_an_xml_of_entities_in_entities_is_refused(tmp_path):
  (tmp_path / 'a.xml').write_bytes(bomb())
  with pytest.raises(TileError, match=r'a\.xml: no outlines in the layout'):
    outlines.read(tmp_path / 'a.xml')

"""Slides become the features that trained models take."""

import numpy as np
import pytest

from data import features
from data.phantom import tiff
from data.slides import SlideError
from experiments.encoding import extraction
from experiments.encoding.encoder import Encoder, WeightsError
from experiments.encoding.tiles import Scale
from experiments.prediction import bags, encode
from experiments.prediction.models import Card, PredictionError
from experiments.run.results import Folder

MADE = {
  'encoder': 'resnet50-conv4-colours',
  'mpp': '1.0',
  'patch_size': '32',
  'min_tissue': '0.0',
  'precision': 'bfloat16',
}


def card(**made):
  return Card(
    model='abmil',
    task='origin',
    classes=('a', 'b'),
    width=6,
    folds=(0,),
    temperature=(1.0,),
    sha256=('0',),
    settings={},
    features={k: v for k, v in (MADE | made).items() if v is not None},
    training={},
    made_by=(),
  )


@pytest.fixture
def slides_dir(tmp_path):
  """Two slides of 0.5 um per pixel, and a file that is none."""
  folder = tmp_path / 'slides'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name, (height, width) in {'a': (64, 192), 'b.1': (128, 320)}.items():
    coarse = rng.integers(0, 256, (height // 32, width // 32, 3), np.uint8)
    image = np.kron(coarse, np.ones((32, 32, 1), np.uint8))
    tiff.write(folder / f'{name}.tiff', image, mpp=0.5, levels=1)
  (folder / 'broken.svs').write_bytes(b'no slide')
  (tmp_path / 'mpp.csv').write_text('slide_id,mpp\na,0.5\n')
  return folder


@pytest.fixture
def asked(monkeypatch):
  """What encoders were asked for; each tile's colours stand for a network."""
  found = []

  def make_encoder(weights, *, precision, **others):
    found.append((weights, precision))
    if weights == 'absent':
      raise WeightsError('no such file')
    encode = lambda x: np.concatenate([x.mean((1, 2)), x.std((1, 2))], 1)
    name = weights if ':' in weights else f'resnet50-conv4-{weights}'
    return Encoder(name, encode, 'a test', precision)

  monkeypatch.setattr(encode.encoders, 'make_encoder', make_encoder)
  return found


def plan(slides_dir, card, weights='colours', run=None):
  scale = Scale(slide_mpp_csv=slides_dir.parent / 'mpp.csv')
  return encode.plan(slides_dir, card, weights, run, None, scale)


def test_features_are_made_as_those_of_the_training(
  slides_dir, asked, tmp_path
):
  cohort, encoder = plan(slides_dir, card())
  assert asked == [('colours', 'bfloat16')]
  (failure,) = extraction.extract(cohort, tmp_path / 'features', encoder)
  assert failure.slide_id == 'broken' and 'cannot open' in failure.reason
  found = bags.find(tmp_path / 'features', card())
  assert found.ids == ['a', 'b.1'] and found.unlike == []
  # 64 level-0 pixels to a tile.
  counts = [len(found.source.read(slide).features) for slide in found.ids]
  assert counts == [3, 10]
  attributes = features.header(tmp_path / 'features' / 'a.h5').attributes
  assert {k: str(attributes[k]) for k in MADE} == MADE
  assert attributes['level0_mpp_source'] == 'mpp_csv'


def test_an_encoder_of_ones_own_encodes_new_slides(slides_dir, asked):
  name = 'my_encoder:encode'
  assert plan(slides_dir, card(encoder=name), name)[1].name == name


@pytest.mark.parametrize(
  'made,weights,message',
  [
    ({'encoder': 'uni_v1'}, 'colours', 'take features of encoder uni_v1,'),
    ({'encoder': None}, 'colours', 'encoder unknown'),
    ({'mpp': None}, 'colours', 'tiles of 32 px at unknown um/px'),
    ({}, None, 'Give its weights by --weights'),
    ({}, 'absent', 'no such file'),
    ({}, 'grey', '--weights=grey is resnet50-conv4-grey'),
  ],
)
def test_features_that_cannot_be_made_alike_are_refused(
  slides_dir, asked, made, weights, message
):
  with pytest.raises(PredictionError) as error:
    plan(slides_dir, card(**made), weights)
  assert message in str(error.value)


def test_empty_folders_are_refused_unless_no_slide_has_features(
  tmp_path, asked
):
  with pytest.raises(SlideError, match='holds no slides'):
    plan(tmp_path, card())
  assert bags.find(tmp_path, card(), []).ids == []


def test_a_random_encoder_is_found_beside_the_features_of_the_training(
  slides_dir, asked, tmp_path
):
  (tmp_path / 'config.json').write_text(
    f'{{"cohort": {{"features_dir": "{tmp_path}"}}, "version": 2,'
    ' "options": {}, "inputs": {}, "made_by": []}'
  )
  (tmp_path / 'encoder.safetensors').write_bytes(b'')
  with pytest.raises(PredictionError, match=r'--weights=/.* is resnet50'):
    plan(slides_dir, card(), None, Folder(tmp_path))
  assert asked == [(f'{tmp_path / "encoder.safetensors"}', 'bfloat16')]

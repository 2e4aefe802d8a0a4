"""A lab's first hour: from two real slides to a file that predicts alone."""

import contextlib
import io
import re
import threading

import browser
import jax_alone
import next_command
import numpy as np
import pytest

from data import features, tiff
from data.slides import Slide
from experiments import export, extract, kmil, predict
from experiments.encoding import encoder
from experiments.maps.source import Slides
from experiments.run.results import Folder
from experiments.viewer import server

pytestmark = pytest.mark.slow

EXACT = 1e-5


def probabilities(folder):
  """By slide, of the classes in order."""
  return {
    row['slide_id']: [float(row['prob_benign']), float(row['prob_tumour'])]
    for row in Folder(folder).read('predictions.csv')
  }


@pytest.fixture(scope='module')
def hour(real_data, tmp_path_factory):
  """Two parts of a real slide, and what the commands leave."""
  hour = tmp_path_factory.mktemp('hour')
  (hour / 'slides').mkdir()
  with Slide(real_data / 'wsi' / 'CMU-1-Small-Region.svs') as slide:
    mpp, width, height = slide.mpp, slide.width // 3, slide.height // 2
    for name, y in ('left', 0), ('right', height):
      image = slide.read(width, y, 0, width, height)
      tiff.write(hour / f'slides/{name}.tiff', image, mpp=mpp, levels=2)
  labels = 'case_id,slide_id,label\n1,left,benign\n2,right,tumour\n'
  (hour / 'labels.csv').write_text(labels)
  slides, results = f'--slides_dir={hour / "slides"}', f'--results_dir={hour}'
  run = f'--run={hour / "first_s2023"}'
  printed = io.StringIO()
  with (
    pytest.MonkeyPatch.context() as patch,
    contextlib.redirect_stderr(printed),
  ):
    patch.setattr(encoder, 'default_batch', lambda: 8)
    extract.main(['', slides, f'--features_dir={hour / "features"}'])
    kmil.main(
      [
        *('', f'--csv_path={hour / "labels.csv"}', slides, results, '--k=1'),
        *(f'--features_dir={hour / "features"}', '--epochs=2'),
        '--exp_code=first',
      ]
    )
    predict.main(['', run, slides, results, '--exp_code=of_run'])
    model = f'{hour / "model.kmil"}'
    export.main(['', run, f'--out={model}', '--with_encoder'])
    predict.main(
      ['', f'--model={model}', slides, results, '--exp_code=of_file']
    )
  (hour / 'printed').write_text(printed.getvalue())
  return hour


def test_each_command_ends_with_the_next_one(hour):
  text = (hour / 'printed').read_text()
  following = re.findall(r'^next.*?: .*', text, re.M)
  run, commands = f'--run={hour}', map(next_command.read, following)
  assert [' '.join([script, *flags]) for script, flags in commands] == [
    f'kmil --slides_dir={hour}/slides --features_dir={hour}/features'
    ' --csv_path=labels.csv --exp_code=mine',
    f'view {run}/first_s2023',
    f'view {run}/of_run',
    f'predict --model={hour}/model.kmil --slides_dir=new_slides',
    f'view {run}/of_file',
  ]
  for line in following:
    named = re.findall('labels.csv|new_slides', line.partition(': ')[2])
    assert line.startswith(f'next, with {named[0]} of' if named else 'next: ')


def test_two_slides_give_a_model_pictures_and_what_is_not_known(hour):
  run = Folder(hour / 'first_s2023')
  assert {
    row['slide_id'] for row in run.read('validation_predictions.csv')
  } == {
    'left',
    'right',
  }
  maps = run.at('figures/heat_maps').glob('fold_0_*.png')
  assert {path.stem for path in maps} == {'fold_0_left', 'fold_0_right'}
  report = run.read('report.html')
  for words in ('No test part', 'no class has two cases', 'Not shown to beat'):
    assert words in report


def test_run_and_file_predict_alike_from_slides(hour):
  of_run, of_file = map(probabilities, (hour / 'of_run', hour / 'of_file'))
  assert of_run.keys() == of_file.keys() == {'left', 'right'}
  for slide, prob in of_run.items():
    np.testing.assert_allclose(of_file[slide], prob, atol=EXACT)


def test_the_file_predicts_where_only_jax_is(hour):
  for slide, prob in probabilities(hour / 'of_run').items():
    bag = features.read(hour / f'features/{slide}.h5').features
    np.save(hour / f'{slide}.npy', bag)
    whole = (*jax_alone.NEEDED, jax_alone.READER)
    done = jax_alone.alone(hour, whole, 'model.kmil', f'{slide}.npy')
    said = dict(line.split() for line in done.stdout.splitlines())
    assert list(said) == ['benign', 'tumour'], done.stderr
    np.testing.assert_allclose(list(map(float, said.values())), prob, atol=1e-3)


def test_the_viewer_shows_both_slides(hour):
  slides = Slides(hour / 'first_s2023')
  tables = slides.tables()
  with server.Server(slides.files(), slides.scores(), tables) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
      with browser.Page(running.url) as page:
        page.wait_for("document.querySelectorAll('#cards b').length === 2")
        text = page.evaluate("document.querySelector('#cards').textContent")
        assert 'left' in text and 'tumour' in text
        assert 'validation slide, not a test' in text
    finally:
      running.shutdown()

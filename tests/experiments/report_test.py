"""report.html: complete, honest, escaped, and of itself alone."""

import dataclasses
import itertools
import json

import browser
import numpy as np
from PIL import Image
import pytest
import report_folder
from report_folder import CLASSES, HOSTILE, SCRIPT, Page

from experiments.reporting import (
  cautions,
  mistakes,
  page,
  pictures,
  protocol,
  record as records,
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished folder, its test parts and its page."""
  folder = tmp_path_factory.mktemp('results') / 'kmil_x_s7'
  tests = report_folder.write(folder)
  return folder, tests, page.write(folder)


@pytest.fixture(scope='module')
def record(run):
  return records.read(run[0])


@pytest.fixture(scope='module')
def parsed(run):
  return Page(run[2].read_text(encoding='utf-8'))


def test_the_page_refers_to_nothing_outside(parsed):
  ids = {attrs['id'] for _, attrs in parsed.elements if 'id' in attrs}
  for tag, attrs in parsed.elements:
    assert not [name for name in attrs if name.startswith('on')]
    for name in ('src', 'href', 'srcset', 'action', 'data', 'xlink:href'):
      if name in attrs:
        value = attrs[name]
        inside = value.startswith('data:') or value[1:] in ids
        assert inside, f'{tag} {name}={value[:40]}'
  (policy,) = [a['content'] for a in parsed.all('meta') if 'http-equiv' in a]
  assert "default-src 'none'" in policy


def test_ids_and_flags_are_text_and_never_markup(run, parsed):
  source = run[2].read_text(encoding='utf-8')
  assert HOSTILE not in source and SCRIPT not in source
  assert '<b>lymph' not in source
  assert HOSTILE in parsed.text and SCRIPT in parsed.text
  assert CLASSES[1] in parsed.text
  assert len(parsed.all('script')) == 1


def test_the_page_can_be_heard(parsed):
  levels = [int(t[1]) for t, _ in parsed.elements if t in ('h1', 'h2', 'h3')]
  assert levels[0] == 1 and levels.count(1) == 1
  assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
  assert all(len(image['alt']) > 20 for image in parsed.all('img'))
  assert all(th['scope'] in ('col', 'row') for th in parsed.all('th'))
  for svg in parsed.all('svg'):
    assert 'aria-hidden' in svg or svg.get('aria-label') or 'viewbox' in svg
  assert parsed.all('html')[0]['lang'] == 'en'


def test_every_number_of_the_summary_is_there_and_none_is_nan(run, parsed):
  summary = json.loads((run[0] / 'summary.json').read_text())
  for table, whole in ((summary, 'pooled'), (summary['external'], 'ensemble')):
    for metric in table['metrics'].values():
      for key in (whole, 'mean', 'std'):
        assert f'{metric[key]:.3f}' in parsed.text
      assert f'{metric["ci_low"]:.3f} to {metric["ci_high"]:.3f}' in parsed.text
    for of_class in table['per_class'].values():
      assert f'{of_class["recall"]:.3f}' in parsed.text
  words = parsed.text.split()
  assert not {'nan', 'NaN', 'None', 'null'} & set(words)
  assert 'all 36 21 10 65 120' in parsed.text  # Slides, cases, sizes.
  assert "python -m experiments.kmil '--exp_code=" in parsed.text
  assert 'Adam' in parsed.text and '10 % of a slide' in parsed.text


def test_the_worst_mistakes_are_the_surest(run, record):
  found, count = mistakes.worst(record)
  every = [
    (p.prob[i].max(), p.slide[i])
    for p in run[1].values()
    for i in range(len(p))
    if p.prob[i].argmax() != p.label[i]
  ]
  every.sort(key=lambda pair: (-pair[0], pair[1]))
  assert count == len(every) > len(found)
  assert [m.slide for m in found] == [slide for _, slide in every[: len(found)]]


def test_heat_maps_begin_with_mistakes_and_are_limited(
  run, record, monkeypatch
):
  monkeypatch.setattr(pictures, '_MOST', 4)
  monkeypatch.setattr(pictures, '_WIDTH', 30)
  wrong = [(m.fold, m.slide) for m in mistakes.worst(record)[0][:2]]
  maps = pictures.heat_maps(record, wrong)
  assert [(m.fold, m.slide) for m in maps.shown][:2] == wrong
  assert len(maps.shown) == 4 and maps.more == 32
  assert {m.label for m in maps.shown[2:]} == set(CLASSES[:2])
  assert {(m.width, m.height) for m in maps.shown} == {(30, 10)}
  monkeypatch.setattr(pictures, '_BYTES', 0)
  assert len(pictures.heat_maps(record, wrong).shown) == 1


def test_a_slide_of_two_folds_is_shown_with_the_fold_that_was_wrong(
  run, record
):
  fold, (name, *_) = 1, record.folds[0]['test'].slide
  parts = record.folds[fold]
  test = dataclasses.replace(parts['test'], slide=parts['test'].slide.copy())
  test.slide[0] = name  # Repeated random splits test slides again.
  folder = run[0] / 'figures/heat_maps'
  copy = folder / f'fold_{fold}_{name}.png'
  copy.write_bytes((folder / f'fold_0_{name}.png').read_bytes())
  folds = record.folds | {fold: parts | {'test': test}}
  try:
    again = dataclasses.replace(record, folds=folds)
    shown = pictures.heat_maps(again, [(fold, name)]).shown
  finally:
    copy.unlink()
  places = [(m.fold, m.slide) for m in shown]
  assert places[0] == (fold, name) and places.count((0, name)) == 1


def of(record, **changes):
  """Titles of the cautions of a record, and of the serious ones."""
  found = cautions.of(dataclasses.replace(record, **changes), [])
  return {c.title for c in found}, {c.title for c in found if c.serious}


def with_flags(record, **changes):
  return {**record.config, 'flags': report_folder.FLAGS | changes}


def test_cautions_say_what_must_be_known(record):
  assert of(record) == ({'No temperature'}, set())
  config = with_flags(record, csv_path=None, features_dir=None)
  assert 'Phantom data' in of(record, config=config)[1]
  config = with_flags(record, shuffle_labels=True)
  assert 'Shuffled labels' in of(record, config=config)[1]
  cohort = {'features': {'encoder': 'x-random-seed0'}, 'left_out': ['a', 'b']}
  config = {**record.config, 'cohort': cohort}
  assert 'Random encoder weights' in of(record, config=config)[1]
  assert '2 listed slides left out' in of(record, config=config)[0]
  cohort = {'features': {}, 'warnings': ['2 cases have slides of a and b']}
  config = {**record.config, 'cohort': cohort}
  assert 'Found while checking the inputs' in of(record, config=config)[0]
  made_by = [{'versions': {}, 'commit': c} for c in ('a', 'b-dirty')]
  config = {**record.config, 'made_by': made_by}
  assert {'Changed code', 'Several versions'} <= of(record, config=config)[0]
  parts = [{'train': ['0_0é'], 'val': [], 'test': ['0_0é']}]
  assert 'Fold 0 shares cases between its parts' in of(record, splits=parts)[1]
  history = {0: [{'epoch': 7, 'best_epoch': 7}]}
  assert 'Best at the last epoch' in of(record, history=history)[0]
  for last, improves in ((0.7, False), (0.8, True)):  # A tie is no gain.
    lines = [
      {'epoch': epoch, 'best_epoch': 7, 'val_f1_macro': f1}
      for epoch, f1 in ((6, 0.7), (7, last))
    ]
    found = of(record, history={0: lines})[0]
    assert ('Best at the last epoch' in found) == improves
  external = dataclasses.replace(
    record.external, case=np.repeat(record.slides.case[:1], 15)
  )
  titles = of(record, external=external)[1]
  assert 'Cases of one name in both cohorts' in titles
  folds = {0: record.folds[0]}
  assert 'Few patients' in of(record, folds=folds)[0]
  assert cautions.of(record, ['x'])[-1].title == '1 slide without a heat map'


def test_slides_tested_in_several_folds_are_told(record):
  words = lambda r: dict(protocol.paragraphs(r))['What selects, what reports']
  assert 'No slide is in the test part of two folds' in words(record)
  twice = {0: record.folds[0], 1: record.folds[0]}
  again = dataclasses.replace(record, folds=twice)
  count = len(record.folds[0]['test'])
  assert f'{count} slides are in the test parts of several' in words(again)
  assert 'No slide is in' not in words(again)


_IS_OPEN = "document.getElementById('contents').open"
# What a browser says of a page; it waits for what scrolls.
_LOOK = """
(async () => {
  document.documentElement.style.scrollBehavior = 'auto';
  const frame = () => new Promise((go) => requestAnimationFrame(go));
  const links = [...document.querySelectorAll('nav a')];
  const tops = [];
  for (const link of links) {
    link.click();
    await frame();
    await frame();
    const section = document.querySelector(link.hash);
    tops.push([link.hash, section && section.getBoundingClientRect().top,
               link.getAttribute('aria-current')]);
  }
  return {
    tops,
    end: scrollY + innerHeight - document.documentElement.scrollHeight,
    wide: document.documentElement.scrollWidth,
    images: [...document.images].map((i) => i.complete && i.naturalWidth),
    hacked: typeof hacked,
    open: document.getElementById('contents').open,
  };
})()
"""


def test_a_browser_shows_it(run, tmp_path):
  path = run[2]
  with browser.Browser() as chromium:
    shown = chromium.open(path.as_uri(), width=1280, height=800)
    seen = shown.evaluate(_LOOK)
    assert shown.requests == [path.as_uri()]
    assert shown.problems == []
    assert seen['hacked'] == 'undefined'
    assert len(seen['images']) == 7 + 24 and min(seen['images']) > 10
    assert seen['open'] and seen['wide'] == 1280
    assert len(seen['tops']) > 12
    for name, top, current in seen['tops']:
      assert 0 <= top < 800, name
      assert current == 'true' or top > 100, name
    shown.resize(800, 1000)
    assert not shown.evaluate(_IS_OPEN)
    narrow = shown.evaluate(_LOOK)
    assert not narrow['open'] and narrow['wide'] == 800
    assert all(0 <= top < 1000 for _, top, _ in narrow['tops'])
    assert shown.problems == []
    shown.screenshot(tmp_path / 'page.png')
    shown.pdf(tmp_path / 'page.pdf')
  with Image.open(tmp_path / 'page.png') as image:
    assert image.size == (800, 1000)
    assert len(image.convert('RGB').getcolors(1 << 20)) > 20
  paper = (tmp_path / 'page.pdf').read_bytes()
  assert paper.startswith(b'%PDF') and paper.count(b'/Type /Page\n') > 4

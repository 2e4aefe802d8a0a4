"""report.html: complete, honest, escaped, and of itself alone."""

import dataclasses
import html.parser
import itertools
import json
import shutil

import browser
from drawn_results import part
import hypothesis
from hypothesis import given, strategies as st
import numpy as np
from PIL import Image
import pytest

from experiments import report
from experiments.evaluation import figures, predictions, summary as summaries
from experiments.reporting import (
  cautions,
  page,
  pictures,
  record as records,
  tables,
)
from experiments.run.results import Folder, ResultsError

CLASSES = ('non-tumor', '<b>lymph</b>oma', 'breast')
# Ids are the users' own: of slides, which are file names, and of cases.
HOSTILE = '"><img src=x onerror=hacked=1>'
SCRIPT = '</script><script>hacked=2</script>'
K = 3
FLAGS = {
  'csv_path': 'labels.csv',
  'features_dir': 'features',
  'exp_code': SCRIPT,
  'k': K,
  'model': 'kmil',
  'seed': 7,
}
INPUTS = {'labels_sha256': 'abc', 'features_sha256': 'd', 'splits_sha256': 'e'}
MADE_BY = {
  'versions': {'python': '3.11.0', 'jax': '0.10.2'},
  'commit': 'c0ffee',
  'command': f"python -m experiments.kmil '--exp_code={SCRIPT}'",
}
CONFIG = {
  'flags': FLAGS,
  'inputs': INPUTS,
  'made_by': [MADE_BY],
  'cohort': {'width': 16, 'features': {'encoder': 'uni', 'mpp': '0.5'}},
}
COLUMNS = 'val_loss', 'val_accuracy', 'val_f1_macro', 'val_auroc'


class Page(html.parser.HTMLParser):
  """The elements of a page and its text."""

  def __init__(self, path):
    super().__init__()
    self.elements, self.words = [], []
    self.source = path.read_text(encoding='utf-8')
    self.feed(self.source)
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.words.append(data)

  def all(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]


def named(seed, n):
  """Drawn predictions, some under names that a page must not take for HTML."""
  drawn = part(seed, n)
  slide = np.array([f'{seed}_{i}é' for i in range(n)], dtype='U40')
  slide[1] = f'{seed}_{HOSTILE}'
  case = drawn.case.astype('U40')
  case[1] = f'{seed} {SCRIPT}'
  return dataclasses.replace(drawn, case=case, slide=slide)


def write(path, folds=(0, 1, 2), external=True):
  """Writes a folder as experiments.kmil leaves it."""
  folder, tests = Folder(path), {}
  for fold in folds:
    val, tests[fold] = named(50 + fold, 6), named(fold, 12)
    at, parts = Folder(path / f'fold_{fold}'), {'val': val, 'test': tests[fold]}
    predictions.write(at, fold, parts, CLASSES)
    if external:
      prob = part(90 + fold, 15).prob
      second = dataclasses.replace(named(90, 15), prob=prob)
      predictions.write(at, fold, {'external': second}, CLASSES)
    lines = [
      dict.fromkeys(COLUMNS, 0.4)
      | {'stage': stage, 'epoch': i, 'best_epoch': min(i, 20)}
      | {'train_loss': 1 / (1 + i) + fold}
      for stage, epochs in (('chooser', 5), ('model', 40))
      for i in range(epochs)
    ]
    at.write('metrics.jsonl', lines)
    for slide in tests[fold].slide:
      name = f'figures/heat_maps/fold_{fold}_{slide}.png'
      image = Image.new('RGB', (60, 20), (10 * fold, 90, 40))
      folder.save(name, lambda part, image=image: image.save(part, 'png'))
  summaries.summarise(folder, 'kmil', 'origin', K, CLASSES)
  figures.draw(folder, CLASSES)
  rows = [['case_id', 'slide_id', 'label', 'instances']]
  for p in tests.values():
    for i in range(len(p)):
      label = CLASSES[p.label[i]]
      rows.append([p.case[i], p.slide[i], label, 10 * (i + 1)])
  folder.write('cohort.csv', rows)
  groups = [tests[f].slide if f in tests else [] for f in range(K)]
  for fold in range(K):  # One fold is tested after the other.
    columns = [groups[(fold + i) % K] for i in (2, 1, 0)]
    rows = itertools.zip_longest(*columns, fillvalue='')
    folder.write(f'splits/splits_{fold}.csv', [['train', 'val', 'test'], *rows])
  folder.write('config.json', CONFIG)


def change(path, name, **changes):
  """Overwrites keys of a JSON file of the folder."""
  value = Folder(path).read(name)
  Folder(path).write(name, value | changes)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished folder and its page."""
  folder = tmp_path_factory.mktemp('results') / 'kmil_x_s7'
  write(folder)
  return folder, page.write(Folder(folder))


@pytest.fixture(scope='module')
def record(run):
  return records.read(Folder(run[0]))


@pytest.fixture(scope='module')
def parsed(run):
  return Page(run[1])


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A folder of one finished fold of three."""
  folder = tmp_path_factory.mktemp('small')
  write(folder, folds=(0,), external=False)
  return folder


@pytest.fixture
def copy(small, tmp_path):
  """A copy of it, to be changed."""
  return shutil.copytree(small, tmp_path / 'kmil_x_s7')


def words_of(folder):
  return Page(page.write(Folder(folder))).text


def test_the_page_refers_to_nothing_outside_and_can_be_heard(parsed):
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
  assert not parsed.all('script')
  levels = [int(t[1]) for t, _ in parsed.elements if t in ('h1', 'h2', 'h3')]
  assert levels[0] == 1 and levels.count(1) == 1
  assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
  assert all(len(image['alt']) > 20 for image in parsed.all('img'))
  assert all(th['scope'] in ('col', 'row') for th in parsed.all('th'))
  assert parsed.all('html')[0]['lang'] == 'en'
  sections = [section['id'] for section in parsed.all('section')]
  links = [a['href'][1:] for a in parsed.all('a')]
  assert len(sections) > 9 and links[1 : 1 + len(sections)] == sections


def test_ids_and_flags_are_text_and_never_markup(parsed):
  for text in (HOSTILE, SCRIPT, CLASSES[1]):
    assert text not in parsed.source and text in parsed.text


def test_every_number_of_the_summary_is_there_and_none_is_nan(run, parsed):
  summary = json.loads((run[0] / 'summary.json').read_text())
  for results, whole in (
    (summary, 'pooled'),
    (summary['external'], 'ensemble'),
  ):
    for metric in results['metrics'].values():
      for key in (whole, 'mean', 'std'):
        assert f'{metric[key]:.3f}' in parsed.text
      assert f'{metric["ci_low"]:.3f} to {metric["ci_high"]:.3f}' in parsed.text
    for of_class in results['per_class'].values():
      assert f'{of_class["recall"]:.3f}' in parsed.text
  assert not {'nan', 'NaN', 'null'} & set(parsed.text.split())
  assert 'all classes 36 21 10 65 120 2,340' in parsed.text
  assert "python -m experiments.kmil '--exp_code=" in parsed.text
  assert 'KMIL: 3-fold cross-validation' in parsed.text
  assert 'optimizer adam' in parsed.text and '10 % of a slide' in parsed.text


def test_heat_maps_begin_with_the_surest_mistakes_and_are_limited(
  record, monkeypatch
):
  every = pictures.heat_maps(record)
  assert len(every.shown) == 24 and every.more == 12 and not every.missing
  wrong = [t for t, _ in every.shown if t.is_wrong]
  assert [t for t, _ in every.shown[: len(wrong)]] == wrong
  assert sorted(wrong, key=lambda t: (-t.prob, t.label)) == wrong
  assert set(wrong) == {t for t in record.tested if t.is_wrong}
  monkeypatch.setattr(pictures, '_MOST', 4)
  assert [t for t, _ in pictures.heat_maps(record).shown] == wrong[:4]


def test_the_names_of_ten_folds_fit_below_their_curves(record, monkeypatch):
  monkeypatch.setattr(pictures, '_drawn', lambda _, drawing: drawing)
  history = dict.fromkeys(range(10), record.history[0])
  drawing = pictures.curves(dataclasses.replace(record, history=history))
  drawing.draw_without_rendering()
  (legend,) = drawing.legends
  assert len(legend.get_texts()) == 10
  place = legend.get_window_extent()
  assert 0 <= place.x0 and place.x1 <= drawing.bbox.width


def test_what_is_right_is_shown_class_by_class():
  t = records.Tested(0, 'case', '', 'a', 'a', 0.9, 0.9)
  slides = [dataclasses.replace(t, slide=name) for name in ('1', '2')]
  other = dataclasses.replace(t, slide='3', label='b', pred='b')
  shown = pictures._ordered([*slides, other])
  assert [t.slide for t in shown] == ['1', '3', '2']


def test_cautions_say_what_must_be_known(record):
  def of(**changes):
    """Titles of the cautions of a record, and of the serious ones."""
    changed = dataclasses.replace(record, **changes)
    found = cautions.find(changed, pictures.HeatMaps((), 0, (), ()))
    return {c.title for c in found}, {c.title for c in found if c.serious}

  def of_config(**changes):
    return of(config=dataclasses.replace(record.config, **changes))

  assert of() == ({'No temperature'}, set())
  splits = [dict(parts, val=parts['val'][:9]) for parts in record.splits]
  few = 'Epoch chosen on few slides'
  assert few in of(splits=splits)[0]
  flags = record.flags | {'select': 'last'}
  assert few not in of(splits=splits, flags=flags)[0]
  flags = record.flags | {'csv_path': None, 'features_dir': None}
  assert 'Phantom data' in of(flags=flags)[1]
  flags = record.flags | {'shuffle_labels': True}
  assert 'Shuffled labels' in of(flags=flags)[1]
  cohort = {
    'features': {'encoder': 'x-random-seed0'},
    'left_out': ['a', 'b'],
    'warnings': ['2 cases have slides of a and b'],
  }
  titles, serious = of_config(cohort=cohort)
  assert 'Random encoder weights' in serious
  assert 'Listed slides left out: 2' in titles
  assert 'Found while checking the inputs' in titles
  made_by = [{'versions': {}, 'commit': c} for c in ('a', 'b-dirty')]
  titles, _ = of_config(made_by=made_by)
  assert {'Changed code', 'Several versions'} <= titles
  parts = [{'train': ['0_0é'], 'val': [], 'test': ['0_0é']}]
  assert 'Fold 0 shares cases between its parts' in of(splits=parts)[1]
  for select, last, improves in (
    ('f1_macro', {'f1_macro': 0.7}, False),  # A tie is no gain.
    ('f1_macro', {'f1_macro': 0.8}, True),
    ('loss', {'loss': 0.4, 'f1_macro': 0.1}, True),
    ('loss_or_accuracy', {'loss': 0.4, 'accuracy': 0.1}, True),
    ('loss_or_accuracy', {'f1_macro': 0.8}, False),
    ('accuracy_then_auroc', {'auroc': 0.8, 'f1_macro': 0.1}, True),
    ('accuracy_then_auroc', {'auroc': 0.8, 'accuracy': 0.6}, False),
    ('auroc_accuracy', {'auroc': 0.9, 'accuracy': 0.6}, True),
    ('auroc_accuracy', {'auroc': 0.8, 'accuracy': 0.6, 'f1_macro': 1}, False),
    ('late_auroc', {'auroc': 0.8, 'f1_macro': 0.1}, True),
  ):
    before = dict.fromkeys(('f1_macro', 'accuracy', 'auroc'), 0.7) | {'loss': 1}
    lines = [
      {'epoch': epoch, 'best_epoch': 7}
      | {f'val_{name}': value for name, value in values.items()}
      for epoch, values in ((6, before), (7, before | last))
    ]
    flags = record.flags | {'select': select}
    found = of(history={0: lines}, flags=flags)[0]
    assert ('Best at the last epoch' in found) == improves, (select, last)
  case = np.repeat(record.slides.case[:1], 15)
  external = dataclasses.replace(record.external, case=case)
  assert 'Cases of one name in both cohorts' in of(external=external)[1]
  titles, serious = of(folds={0: record.folds[0]})
  assert 'Few patients' in titles and 'Folds missing: 2 of 3' in serious
  # Slides tested in several folds are known.
  assert not record.tested_again
  twice = dataclasses.replace(
    record, folds=dict.fromkeys((0, 1), record.folds[0])
  )
  assert len(twice.tested_again) == len(record.folds[0]['test'])


def test_what_is_undefined_is_na(small):
  summary = json.loads((small / 'summary.json').read_text())
  assert summary['metrics']['auroc']['std'] is None
  words = words_of(small)
  assert 'Second cohort' not in words
  assert 'Warning: Folds missing: 2 of 3' in words and ' n/a ' in words


def test_pictures_that_lack_or_are_damaged_are_named(copy):
  folder = copy / 'figures' / 'heat_maps'
  (folder / 'fold_0_0_3é.png').unlink()
  (folder / 'fold_0_0_4é.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  (copy / 'figures' / 'roc.png').unlink()
  words = words_of(copy)
  assert 'Slides without a heat map: 1' in words and '0_3é.' in words
  assert 'that cannot be read: 0_4é.' in words
  assert 'ROC curves' not in words and 'Confusion matrix' in words
  change(copy, 'config.json', flags=FLAGS | {'heat_maps': 3})
  # What is beyond, nobody requested.
  assert not pictures.heat_maps(records.read(Folder(copy))).missing


def test_validation_chose_no_epoch_where_the_last_is_kept(copy):
  for model, select, chose in (
    ('abmil', 'last', 'chose the temperature, and'),
    ('abmil', 'loss', 'Validation parts chose the epoch and the temperature,'),
    ('kmil', 'last', 'chose the epoch and the'),  # Of its first stage.
  ):
    flags = FLAGS | {'model': model, 'select': select}
    change(copy, 'config.json', flags=flags)
    assert chose in words_of(copy)
  change(copy, 'summary.json', part='val')
  for select, chose in ('last', 'temperature'), ('loss', 'epoch'):
    flags = FLAGS | {'model': 'abmil', 'select': select}
    change(copy, 'config.json', flags=flags)
    assert f'slides, which chose the {chose}, and flatter' in words_of(copy)


def test_the_page_of_kmil_says_that_probabilities_are_averaged(copy):
  averaged = 'of the bag and of its highest instance are averaged'
  assert averaged not in words_of(copy)
  flags = FLAGS | {'average_with_top_instance': True}
  change(copy, 'config.json', flags=flags)
  assert averaged in words_of(copy)


def test_a_model_without_epochs_has_a_page_without_them(copy):
  change(copy, 'summary.json', model='mean_pooling')
  flags = {k: v for k, v in FLAGS.items() if k != 'model'}
  change(copy, 'config.json', flags=flags)
  assert 'epoch kept, from 1' in words_of(copy)
  (copy / 'fold_0' / 'metrics.jsonl').unlink()
  words = words_of(copy)
  assert 'epoch kept' not in words
  title = 'mean pooling: 1 of the 3 folds of a cross-validation'
  assert title in words
  assert 'chose the temperature, and nothing else' in words
  assert 'optimizer' not in words and 'Training, one curve' not in words


def test_what_lies_beside_is_shown(copy):
  """Ablation, costs and groups of the same material."""
  other = {'features_sha256': 'of others'}
  for name, changed in (
    ('all', {'flags': FLAGS | {'drop_fraction': 0.0}}),
    ('lowest_0.10', {}),
    ('lowest_0.15', {'flags': FLAGS | {'epochs': 2}}),
    ('lowest_0.20', {'flags': FLAGS | {'recipe': 'own'}}),
    ('highest_0.10', {'inputs': other}),
  ):
    at = Folder(copy.parent / 'mine_s7' / name)
    at.write('config.json', CONFIG | changed)
    at.write('summary.json', Folder(copy).read('summary.json'))
  cost = {'kmil': {'params': 178442, 'macs': 5, 'flops_xla': None}}
  (copy.parent / 'cost.json').write_text(json.dumps(cost))
  change(copy, 'config.json', flags=FLAGS | {'group_col': 'site'})
  (copy / 'groups.csv').write_text('group,fold,auroc\nnorth,0,0.12345\neast,1,')
  found = tables.ablation(records.read(Folder(copy)))
  assert [row.labels for row in found.rows] == [('all',), ('lowest_0.10',)]
  assert 'test parts' in found.title and 'all: of fold 0 alone.' in found.notes
  untested = Folder(copy).read('summary.json') | {'part': 'val'}
  assert 'validation part' in tables.of_settings({'all': untested}).title
  words = words_of(copy)
  assert '178,442' in words and 'north 0 0.123 east 1 n/a' in words


@pytest.mark.parametrize(
  'name,content,message',
  [
    ('summary.json', '{}', 'not that of a cross-validation'),
    ('config.json', '[]', 'is no record of a run'),
    ('cohort.csv', 'case_id,slide_id\na,b\n', 'is damaged'),
    ('fold_0/metrics.jsonl', '{"epoch": 1', 'is damaged'),
    ('fold_0/predictions.csv', None, 'summary.json is of the folds [0]'),
  ],
)
def test_a_folder_that_cannot_be_read_gets_one_clear_message(
  copy, name, content, message
):
  path = copy / name
  path.unlink()
  if content is not None:
    path.write_text(content)
  with pytest.raises(ResultsError, match=name.split('/')[-1][:7]) as error:
    page.write(Folder(copy))
  assert message in str(error.value)


@pytest.mark.parametrize(
  'name',
  [
    'config.json',
    'summary.json',
    'cohort.csv',
    'fold_0/predictions.csv',
    'fold_0/metrics.jsonl',
  ],
)
@hypothesis.settings(max_examples=5)
@given(share=st.floats(0, 1))
def test_a_file_cut_short_ends_in_a_page_or_a_message(small, name, share):
  path = small / name
  whole = path.read_bytes()
  path.write_bytes(whole[: int(share * (len(whole) - 1))])
  try:
    report.main(['report', f'--run={small}'])
  except SystemExit as e:
    assert e.code.startswith('error: ') and str(small) in e.code
  finally:
    path.write_bytes(whole)


def test_a_browser_shows_it(run):
  address = run[1].as_uri()
  with browser.Page(address) as shown:
    images = shown.evaluate('[...document.images].map((i) => i.naturalWidth)')
    # Figures of both cohorts, four charts, heat maps.
    assert len(images) == 7 + 4 + 24 and min(images) > 10
    assert shown.evaluate('typeof hacked') == 'undefined'
    for width in (1280, 800, 390):
      shown.resize(width, 800)
      assert shown.evaluate('document.documentElement.scrollWidth') == width
    assert shown.requests == [address] and shown.problems == []

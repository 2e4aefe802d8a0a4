"""Commands, flags and links of the documentation are those that there are."""

import dataclasses
import importlib
import pathlib
import re
import runpy
import shlex
import sys

import numpy as np
from PIL import Image
import pytest

from data import features
from experiments.run import options

ROOT = pathlib.Path(__file__).parents[2]
NOTES = ROOT / 'BUILD_NOTES.md'
PAGES = (ROOT / 'README.md', NOTES, *sorted((ROOT / 'docs').glob('*.md')))
SCRIPTS = sorted(
  path.stem
  for path in (ROOT / 'experiments').glob('*.py')
  if not path.stem.startswith('__')
)
# A line without backticks, or within them, where it may be broken.
COMMANDS = (
  re.compile(r'^(?!.*`).*python -m experiments\.(\w+)([^#"|&;>\n]*)', re.M),
  re.compile(r'`[^`\n]*python -m experiments\.(\w+)([^`]*)`'),
)
FLAG = re.compile(r'`--(?:no)?([a-z]\w*)[^`]*`')
LINK = re.compile(r'\]\((?!https?:)([^)\s]+)\)')


def classes(script):
  return importlib.import_module(f'experiments.{script}').main.options


def text_of(page):
  return page.read_text(encoding='utf-8')


def commands(page):
  """Returns script and arguments of each command of a page."""
  return [
    (script, [arg for arg in shlex.split(rest) if arg != '...'])
    for pattern in COMMANDS
    for script, rest in pattern.findall(text_of(page).replace('\\\n', ' '))
  ]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_have_flags_and_values_of_their_scripts(page):
  for script, args in commands(page):
    if any(arg.startswith('--plugin=') for arg in args):
      # The reader's own, which registers a model.
      args = [arg for arg in args if not arg.startswith('--model=')]
    if f'# experiments/{script}.py\n' not in text_of(page):  # Of the reader.
      options.parse([script, *args], classes(script))


def test_every_script_and_flag_is_in_the_documentation():
  text = ' '.join(text_of(page) for page in PAGES if page != NOTES)
  assert [s for s in SCRIPTS if f'experiments.{s}' not in text] == []
  named = set(re.findall(r'--(?:no(?=\w))?(\w+)', text))
  named |= set(re.findall(r'--(\w+)', text))
  assert flags() - {'help'} - named == set()


def flags():
  """The flags of all scripts."""
  return {'help'} | {
    field.metadata.get('flag') or field.name
    for script in SCRIPTS
    for one in classes(script)
    for field in dataclasses.fields(one)
    if not field.metadata.get('positional')
  }


def test_flags_named_in_text_are_those_of_a_script():
  known = flags()
  for page in set(PAGES) - {NOTES}:  # These name former flags, too.
    assert set(FLAG.findall(text_of(page))) <= known, page.name


def test_a_folder_of_tiles_becomes_bags(tmp_path, monkeypatch):
  page = text_of(ROOT / 'docs' / 'encoders.md')
  scripts = {
    name: script
    for name, script in re.findall(
      r'^```python\n# (\w+\.py)\n(.*?)^```', page, re.S | re.M
    )
  }

  def run(name, *args):
    (tmp_path / name).write_text(scripts[name], encoding='utf-8')
    monkeypatch.setattr(sys, 'argv', [name, *args])
    runpy.run_path(str(tmp_path / name))

  rng = np.random.default_rng(0)
  counts = {'a/0': 4, 'a/1': 3, 'b/0': 2}
  for folder, count in counts.items():
    (tmp_path / 'published' / folder).mkdir(parents=True)
    for i in range(count + 1):
      side = 50 if i else 49  # That is left out.
      pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
      path = tmp_path / f'published/{folder}/{i}.png'
      Image.fromarray(pixels).save(path)
  monkeypatch.chdir(tmp_path)
  run('deal_tiles.py', 'published', 'tiles')
  table = (tmp_path / 'labels.csv').read_text().splitlines()
  assert table[1:] == [
    'a,a_clear,clear',
    'a,a_tumour,tumour',
    'b,b_clear,clear',
  ]
  sizes = {'a_clear': 2, 'a_tumour': 5, 'b_clear': 2}
  for name, width in (('efficientnet_lite0', 1280), ('colours', 6)):
    run('encode_tiles.py', 'tiles', name, name)
    bags = [features.read(tmp_path / name / f'{bag}.h5') for bag in sizes]
    shapes = [bag.features.shape for bag in bags]
    assert shapes == [(size, width) for size in sizes.values()]
    rows = np.concatenate([bag.features.sum(1) for bag in bags])
    assert len(np.unique(rows)) == 9


def test_links_lead_to_files_and_headings():
  heading = re.compile(r'^#+ (.*)$', re.M)
  for page in PAGES:
    for link in LINK.findall(text_of(page)):
      file, _, anchor = link.partition('#')
      target = page.parent / file if file else page
      assert target.exists(), f'{page.name}: {link}'
      names = [
        re.sub(r'[^\w\- ]', '', name).lower().replace(' ', '-')
        for name in heading.findall(text_of(target) if anchor else '')
      ]
      assert not anchor or anchor in names, f'{page.name}: {link}'

"""Any bytes in the place of a results folder's files: a page or a message."""

import json

from absl import flags
from absl.testing import flagsaver
import hypothesis
from hypothesis import given, strategies as st
import pytest

from experiments import report

NAMES = (
  'config.json',
  'summary.json',
  'cohort.csv',
  'splits/splits_0.csv',
  'fold_0/predictions.csv',
  'fold_0/metrics.jsonl',
)
JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.text(max_size=5),
  lambda some: (
    st.lists(some, max_size=2)
    | st.dictionaries(st.text(max_size=5), some, max_size=2)
  ),
  max_leaves=4,
)


def written(folder):
  """Writes the page, or returns the one message that says why not."""
  with flagsaver.flagsaver():
    try:
      report.main(flags.FLAGS(['report', f'--run={folder}']))
    except SystemExit as e:
      return e.code
  return None


def held(folder, path, content):
  """As `written`, while a file holds `content`; nothing else is changed."""
  before = path.read_bytes()
  path.write_bytes(content)
  try:
    message = written(folder)
    assert message is None or message.startswith('error: '), message
    assert message is None or str(folder) in message, message
  finally:
    path.write_bytes(before)
  return message


@pytest.mark.parametrize('name', NAMES)
@hypothesis.settings(max_examples=8)
@given(data=st.data())
def test_damaged_bytes_end_in_a_page_or_a_message(small, name, data):
  path = small / name
  whole = path.read_bytes()
  cut = data.draw(st.integers(0, len(whole) - 1))
  noise = data.draw(st.binary(max_size=6))
  held(
    small,
    path,
    whole[:cut] + noise + data.draw(st.sampled_from([b'', whole[cut + 1 :]])),
  )


@pytest.mark.parametrize('name', NAMES[:2])
@hypothesis.settings(max_examples=20)
@given(data=st.data())
def test_other_values_in_a_record_end_in_a_page_or_a_message(small, name, data):
  """A value anywhere in the tree is replaced by another of any kind."""
  path = small / name
  tree = json.loads(path.read_text())
  at, keys = tree, []
  while isinstance(at, dict | list) and at:
    places = sorted(at) if isinstance(at, dict) else range(len(at))
    keys.append(data.draw(st.sampled_from(list(places))))
    inner = at[keys[-1]]
    if (
      not inner
      or not isinstance(inner, dict | list)
      or data.draw(st.booleans())
    ):
      break
    at = inner
  at[keys[-1]] = data.draw(JSON)
  held(small, path, json.dumps(tree).encode())


def test_a_record_of_other_values_names_the_folder(small):
  summary = json.loads((small / 'summary.json').read_text())
  summary['metrics']['auroc'] = 7
  message = held(small, small / 'summary.json', json.dumps(summary).encode())
  assert 'something other than a training writes' in message
  assert written(small) is None

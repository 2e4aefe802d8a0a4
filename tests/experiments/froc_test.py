"""The script that scores detections, and the files it reads.

Any bytes in the place of these are in reader_fuzz_test.
"""

import importlib.resources
import json

import numpy as np
from PIL import Image
import pytest

from experiments import froc as script
from experiments.evaluation import froc as files
from experiments.evaluation.froc import DetectionError
from kmil_jax import froc


def write(root, masks, tables):
  """Writes masks, bool arrays, and tables of detections, texts, by case."""
  for name in ('masks', 'detections'):
    (root / name).mkdir(parents=True)
  for name, mask in masks.items():
    pixels = mask.astype(np.uint8) * 255
    Image.fromarray(pixels).save(root / f'masks/{name}_mask_level5.png')
  for name, text in tables.items():
    (root / f'detections/{name}.csv').write_text(text)
  return root / 'masks', root / 'detections'


def block(shape, *boxes):
  mask = np.zeros(shape, bool)
  for y, x, side in boxes:
    mask[y : y + side, x : x + side] = True
  return mask


@pytest.fixture
def folders(tmp_path):
  """Three lesions, a cluster of cells, a normal and an empty slide."""
  masks = {
    'test_001': block((200, 300), (20, 20, 60), (150, 250, 8)),
    'test_002': block((150, 300), (20, 20, 60), (20, 200, 60)),
  }
  tables = {
    # The lesion twice, the cells, and beside it.
    'test_001': '0.9,1600,1600\n0.8,1616,1632\n0.95,8100,4900\n0.7,6400,640\n',
    'test_002': 'probability,x,y\n0.6,7360.5,1600\n',
    'test_003': '0.5,1,1\n\n0.3,99999,99999',
    'test_004': '',
  }
  return write(tmp_path, masks, tables)


def test_the_script_prints_a_table(folders, capsys):
  """JSON and the picture are in tests/golden."""
  flags = [f'--masks_dir={folders[0]}', f'--detections_dir={folders[1]}']
  script.main(['froc', *flags, '--resamples=50'])
  table = capsys.readouterr().out
  for text in ('slides: 4, lesions: 3', '0.6667', '95 % interval'):
    assert text in table
  (folders[1] / 'test_003.csv').rename(folders[1] / 'test_003.txt')
  script.main(['froc', *flags])
  printed = capsys.readouterr()
  assert 'slides: 3, lesions: 3' in printed.out
  assert 'do not end in .csv: test_003.txt. Convert' in printed.err


def test_all_faults_are_named_at_once(folders):
  masks, tables = folders
  (masks / 'test_003_mask_level6.png').write_bytes(b'of another level')
  (masks / '.hidden.png').touch()
  cases = files.read(masks, tables)
  assert [case.targets for case in cases.values()] == [1, 2, 0, 0]
  (tables / 'test_001.csv').unlink()
  (tables / 'test_002.csv').write_text('0.6,7360.5,1600\n0.6;1;2\n')
  (tables / 'test_003.csv').write_text('nan,1,2\n')
  (masks / 'test_004_mask.png').touch()
  with pytest.raises(DetectionError) as fault:
    files.read(masks, tables)
  for text in (
    'test_001_mask_level5.png: no detections test_001.csv',
    "test_002.csv, line 2: found '0.6;1;2'",
    'test_003.csv: detection 0: found the score nan at (1, 2)',
    'no mask. Call it <case>_mask_level5',
  ):
    assert text in str(fault.value)


def test_folders_that_hold_nothing_are_named(folders, tmp_path):
  masks, tables = folders
  (tmp_path / 'empty').mkdir()
  with pytest.raises(DetectionError, match=r'absent: no such folder'):
    files.read(tmp_path / 'absent', tables)
  with pytest.raises(DetectionError, match=r'empty: no <case>\.csv'):
    files.read(masks, tmp_path / 'empty')
  (tmp_path / 'empty/a.txt').touch()
  with pytest.raises(DetectionError, match=r'left out, .* a\.txt'):
    files.read(masks, tmp_path / 'empty')


@pytest.mark.parametrize(
  'line,fault',
  [
    ('0.5,1', "line 2: found '0.5,1'"),
    ('0.5,1,2,3', 'line 2'),
    ('0.5,x,2', 'line 2'),
    ('probability,x,y', 'line 2'),
    ('4800,1280,0.9', 'line 2: a probability of 4800'),
    ('0.5,9600,2', r'\(9600, 2\)\. .* within 9600 x 6400'),
  ],
)
def test_lines_that_are_no_detection_are_named(tmp_path, line, fault):
  masks = {'a': block((200, 300), (20, 20, 60))}
  folders = write(tmp_path, masks, {'a': f'0.5,9599,6399\n{line}\n'})
  with pytest.raises(DetectionError, match=rf'a\.csv.*{fault}'):
    files.read(*folders)


def test_columns_in_another_order_are_taken_by_name_or_told(
  folders, tmp_path, capsys
):
  masks, tables = folders
  expected = files.read(masks, tables)
  path, lines = tables / 'test_002.csv', ['7360.5,0.6,1600', '1,0.2,2']
  path.write_text('\n'.join(['x, Probability,y', *lines]))
  hits = files.read(masks, tables)['test_002'].hits
  np.testing.assert_array_equal(hits, expected['test_002'].hits)
  for encoding, text in (
    ('utf-8', '\n"x";"probability";"y"\n' + '\n'.join(lines).replace(',', ';')),
    ('utf-16', '0.6\t7360.5\t1600\n\n0.2\t1\t2\n'),
  ):
    path.write_text(text, encoding=encoding)
    hits = files.read(masks, tables)['test_002'].hits
    np.testing.assert_array_equal(hits, expected['test_002'].hits)
  mask = block((300, 300), (20, 200, 60))
  folders = write(tmp_path / 'b', {'a': mask}, {'a': '0.9,1600,7360\n'})
  flags = [f'--masks_dir={folders[0]}', f'--detections_dir={folders[1]}']
  script.main(['froc', *flags, '--format=json'])
  printed = capsys.readouterr()
  assert json.loads(printed.out)['lesions'] == 1
  assert 'hit 0 lesions, and 1 with x for y' in printed.err
  folders = write(tmp_path / 'd', {'a': mask}, {'a': '0.9,230,50\n'})
  flags = [f'--masks_dir={folders[0]}', f'--detections_dir={folders[1]}']
  script.main(['froc', *flags])
  assert 'and 1 with pixels of the masks' in capsys.readouterr().err
  (folders[1] / 'a.csv').write_text('7360,1600,1\n')
  with pytest.raises(DetectionError, match='a probability of 7360'):
    files.read(*folders)
  mask = mask[:220]  # Lower than the place is far to the right.
  folders = write(tmp_path / 'c', {'a': mask}, {'a': '0.9,1600,7360\n'})
  with pytest.raises(DetectionError, match='Perhaps x and y are swapped'):
    files.read(*folders)


def test_masks_are_0_and_255_in_any_mode(tmp_path):
  mask, path = block((40, 50), (5, 5, 20)), tmp_path / 'mask.png'
  grey = Image.fromarray(mask.astype(np.uint8) * 255)
  for mode in ('1', 'L', 'P', 'RGB', 'RGBA'):
    grey.convert(mode).save(path)
    np.testing.assert_array_equal(files.read_mask(path), mask)
  green = np.zeros((*mask.shape, 3), np.uint8)
  green[..., 1] = grey
  Image.fromarray(green).save(path)
  with pytest.raises(DetectionError, match='nothing in its first channel'):
    files.read_mask(path)
  Image.fromarray(mask.astype(np.uint16) * 65535).save(path)
  with pytest.raises(DetectionError, match=r'holds 65535\. Masks are 255'):
    files.read_mask(path)


def test_a_hit_that_never_counts_is_explained(tmp_path, capsys):
  """The lowest of all scores is no threshold."""
  masks = {'a': block((200, 300), (20, 20, 60))}
  for name, table, lost in (
    ('one', '0.9,1600,1600\n', True),
    ('two', '0.9,1600,1600\n0.1,6400,640\n', False),
  ):
    folders = write(tmp_path / name, masks, {'a': table})
    flags = [f'--masks_dir={folders[0]}', f'--detections_dir={folders[1]}']
    script.main(['froc', *flags])
    printed = capsys.readouterr()
    assert (
      'lesions hit with the lowest score alone: 1 of 1' in printed.err
    ) == lost
    assert ('0.0000' in printed.out) == lost


def test_masks_of_other_formats_are_named(folders):
  masks, _ = folders
  for name in ('test_001_mask_level5.tif', 'README.txt'):
    (masks / name).write_bytes(b'')
  with pytest.raises(DetectionError, match=r'level5\.tif: no mask') as error:
    files.read(*folders)
  assert 'README' not in str(error.value)


def test_a_report_names_what_is_counted_as_the_picture_does():
  """Detections on slides with tumour count, too, in shares of all slides."""
  case = froc.judge(None, [0.5, 0.9], [(1, 2), (3, 4)])
  (ax,) = files.draw({'': froc.froc([case])}).axes
  folder = importlib.resources.files('experiments.reporting')
  page = folder.joinpath('study.html.jinja').read_text(encoding='utf-8')
  (caption,) = [line for line in page.splitlines() if "'FROC: " in line]
  assert f'found, by {ax.get_xlabel()}. ' in caption

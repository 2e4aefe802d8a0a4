"""Features and labels are read from URLs; what cannot be, says what to do."""

import functools
import http.server
import io
import re
import threading

import feature_folder
import numpy as np
import pytest
import torch
import upath

import data
from data import features, files, inspection, packed
from data.features import FeatureError
from data.labels import ManifestError
from experiments import kmil, pack

LABELS = ['a', 'b'] * 6


class Server(http.server.SimpleHTTPRequestHandler):
  """Serves a folder and parts of its files."""

  def log_message(self, *_):
    pass

  def do_GET(self):
    asked = re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range') or '')
    if not asked:
      super().do_GET()
      return
    with open(self.translate_path(self.path), 'rb') as file:
      content = file.read()
    first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
    self.send_response(206)
    self.send_header('Content-Range', f'bytes {first}-{last}/{len(content)}')
    self.send_header('Content-Length', str(last + 1 - first))
    self.end_headers()
    self.wfile.write(content[first : last + 1])


@pytest.fixture(scope='module')
def served(tmp_path_factory):
  """A folder with a cohort, and its URL."""
  folder = tmp_path_factory.mktemp('served')
  rng = np.random.default_rng(0)
  bags = [rng.normal(size=(n, 8)) for n in range(5, 17)]
  feature_folder.write(folder / 'cohort', bags, LABELS)
  handler = functools.partial(Server, directory=folder)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder / 'cohort', f'http://127.0.0.1:{server.server_port}/cohort'
    server.shutdown()


@pytest.fixture
def memory(served):
  """The same features in a store of this process."""
  store = upath.UPath('memory://bucket/features')
  store.mkdir(parents=True, exist_ok=True)
  for path in (served[0] / 'features').iterdir():
    (store / path.name).write_bytes(path.read_bytes())
  yield store
  store.rmdir(recursive=True)


def assert_same(one, other):
  np.testing.assert_array_equal(one.features, other.features)
  np.testing.assert_array_equal(one.coords, other.coords)
  assert one.attributes == other.attributes


@pytest.mark.parametrize('kind', ['http', 'memory'])
def test_features_of_a_url_are_those_of_the_folder(served, memory, kind):
  folder, url = served[0] / 'features', f'{served[1]}/features'
  here = packed.find(folder)
  there = packed.find(url if kind == 'http' else str(memory))
  assert there.ids() == here.ids() and len(here.ids()) == 12
  assert str(there.path) == (url if kind == 'http' else str(memory))
  for slide in here.ids()[::5]:
    assert there.header(slide) == here.header(slide)
    assert there.digest(slide) == here.digest(slide)
    assert_same(there.read(slide), here.read(slide))


def test_a_cohort_of_a_url_is_that_of_the_folder(served):
  folder, url = served
  here = data.read_cohort(folder / 'labels.csv', folder / 'features')
  there = data.read_cohort(f'{url}/labels.csv', f'{url}/features')
  assert there.labels.tolist() == here.labels.tolist() == LABELS
  for one, other in zip(there.bags, here.bags, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('old', [False, True])
def test_tensors_of_a_url_are_read(memory, old):
  rows = np.random.default_rng(1).normal(size=(7, 8)).astype(np.float32)
  content = io.BytesIO()
  tensor = torch.tensor(rows)
  torch.save(tensor, content, _use_new_zipfile_serialization=not old)
  (memory / 'tensor.pt').write_bytes(content.getvalue())
  found = features.read(f'{memory}/tensor.pt')
  np.testing.assert_array_equal(found.features, rows)


def test_a_check_reads_labels_and_features_of_a_url(served, tmp_path, capsys):
  flags = f'--csv_path={served[1]}/labels.csv', f'--cache_dir={tmp_path}'
  source = f'--features_dir={served[1]}/features'
  with pytest.raises(SystemExit) as ended:
    kmil.main(['kmil', *flags, source, '--k=3', '--check'])
  printed = capsys.readouterr().out
  assert ended.value.code == 0 and 'check: 0 problems' in printed
  assert f'features: {served[1]}/features, dimensions 8' in printed


def test_features_of_a_url_are_packed_on_this_machine(served, tmp_path):
  flags = f'--csv_path={served[1]}/labels.csv', f'--out_dir={tmp_path}'
  pack.main(['pack', *flags, f'--features_dir={served[1]}/features'])
  found = packed.find(tmp_path / 'slide_bags/cohort/1.0.0')
  here = packed.find(served[0] / 'features')
  assert found.ids() == here.ids()
  for slide in here.ids()[::5]:
    assert found.digest(slide) == here.digest(slide)
    bag = found.read(slide)
    np.testing.assert_array_equal(bag.features, here.read(slide).features)


def test_a_file_that_may_have_changed_is_read_again(served, tmp_path):
  """A server of files tells no times: the size alone proves nothing."""
  path = served[0] / 'features/slide_000.h5'
  content, digests = path.read_bytes(), []
  for change in (0, 1):
    bag = features.read(path)
    features.write(path, bag.features + change, bag.coords, bag.attributes)
    source = packed.find(f'{served[1]}/features')
    assert list(inspection.inspect(source, ['slide_000'], tmp_path))
    assert not source.seen['slide_000'].fault
    digests.append(source.seen['slide_000'].content)
  path.write_bytes(content)
  assert len(set(digests)) == 2


def test_what_cannot_be_read_of_a_url_is_named(served, memory, monkeypatch):
  url = served[1]
  with pytest.raises(FeatureError, match=f'{url}/absent: no such folder'):
    packed.find(f'{url}/absent')
  with pytest.raises(ManifestError, match=rf'{url}/absent\.csv: cannot be'):
    data.read_cohort(f'{url}/absent.csv', f'{url}/features')
  damaged = memory / 'damaged.h5'
  damaged.write_bytes((memory / 'slide_003.h5').read_bytes()[:3000])
  with pytest.raises(FeatureError, match=f'{damaged}: cannot be read .*mount'):
    features.read(str(damaged))
  with features.h5py.File(served[0] / 'gap.h5', 'w') as file:
    file['features'] = features.h5py.ExternalLink('other.h5', 'x')
  with pytest.raises(FeatureError, match=rf'{url}/gap\.h5: features is a link'):
    features.read(f'{url}/gap.h5')
  away = lambda *_: 1 / 0  # Whatever a driver raises.
  monkeypatch.setattr(type(memory), 'is_dir', away)
  reason = f'{memory}: cannot be reached .*division.*Copy or mount the bucket'
  with pytest.raises(FeatureError, match=reason):
    packed.find(str(memory))


def test_paths_of_this_machine_stay_what_they_were(tmp_path):
  for path in (tmp_path, files.Path('a:b'), files.Path('.')):
    assert files.place(path) is path
    assert files.place(str(path)) == path

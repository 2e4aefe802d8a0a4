"""--group_col: folds that keep sites whole, and figures of each."""

import csv

import feature_folder
import numpy as np
import pytest

from experiments import kmil
from experiments.bags import crossval
from experiments.run.results import Folder


def test_a_site_is_whole_and_has_figures_of_its_own(
  tmp_path, monkeypatch, capsys
):
  args = feature_folder.write(tmp_path, *feature_folder.planted(24, width=4))
  site = {f'slide_{i:03d}': 'ABCDEF'[i // 4] for i in range(24)}
  path = tmp_path / 'labels.csv'
  lines = path.read_text().splitlines()
  rows = [f'{line},{site[line.split(",")[1]]}' for line in lines[1:]]
  path.write_text('\n'.join([lines[0] + ',site', *rows]))

  def complete(material, runs, *_, **__):
    rng = np.random.default_rng(0)
    for run, split in zip(runs, material.splits, strict=True):
      prob = {
        part: rng.dirichlet(np.ones(3), getattr(split, part).sum())
        for part in ('val', 'test')
      }
      crossval.write_predictions(Folder(run.folder), run.fold, material, prob)

  monkeypatch.setattr(crossval, 'train_folds', complete)
  args += ['--group_col=site', '--k=3', f'--results_dir={tmp_path}']
  kmil.main(['kmil', *args, '--heat_maps=0'])
  folder = tmp_path / 'kmil_origin_s2023'
  for i in range(3):
    with (folder / f'splits/splits_{i}.csv').open(newline='') as f:
      found = list(csv.DictReader(f))
    sites = [
      {site[row[part]] for row in found if row[part]}
      for part in ('train', 'val', 'test')
    ]
    assert sorted(map(len, sites)) == [2, 2, 2]
    assert set.union(*sites) == set('ABCDEF')
  with (folder / 'predictions.csv').open(newline='') as f:
    tests = list(csv.DictReader(f))
  with (folder / 'groups.csv').open(newline='') as f:
    groups = {row['group']: row for row in csv.DictReader(f)}
  assert list(groups) == list('ABCDEF')
  for name, row in groups.items():
    own = [r for r in tests if site[r['slide_id']] == name]
    own = [r['label'] == r['pred'] for r in own]
    assert float(row['accuracy']) == pytest.approx(np.mean(own), abs=1e-6)
    assert (row['cases'], row['slides']) == ('4', '4')
    tested = {r['fold'] for r in tests if site[r['slide_id']] == name}
    assert tested == {row['fold']}
  page = (folder / 'report.html').read_text('utf-8')
  assert 'Whole groups of slides, by the column “site”' in page
  shown = page.split('<h2>Groups')[1]
  for name, row in groups.items():
    told = f'{float(row["accuracy"]):.3f}'
    assert told in shown.split(f'<th scope="row">{name}<')[1].split('</tr>')[0]
  table = capsys.readouterr().out.split('\ngroup  ')[1]
  assert [line[0] for line in table.splitlines()[1:7]] == list('ABCDEF')


@pytest.mark.parametrize(
  'change,message',
  [
    (('--group_col=town',), 'no column town; found case_id,'),
    (('--split_dir=x',), '--group_col and --split_dir exclude each other'),
    (('--k=7',), '--k=7: 6 groups (A, B, C, D, E): fewer than 7 folds.'),
    (('A', ''), 'column site: 4 empty cells, of slide_000, slide_001'),
    (
      ('case_001', 'case_020'),
      '1 cases have slides of several groups, which must be one: case_020',
    ),
  ],
)
def test_what_is_wrong_with_sites_is_told(tmp_path, change, message):
  args = feature_folder.write(tmp_path, *feature_folder.planted(24, width=4))
  path = tmp_path / 'labels.csv'
  rows = path.read_text().splitlines()
  rows = [f'{row},{"ABCDEF"[i // 4]}' for i, row in enumerate(rows[1:])]
  if len(change) == 2:
    rows = [row.replace(*change) for row in rows]
    change = ()
  path.write_text('\n'.join(['case_id,slide_id,label,site', *rows]))
  args += ['--group_col=site', '--k=3', f'--results_dir={tmp_path}', *change]
  with pytest.raises(SystemExit) as done:
    kmil.main(['kmil', *args])
  assert message in str(done.value)

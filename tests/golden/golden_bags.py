"""Commands that train on bags, and those of the tables made of them."""

from golden_chain import (
  ATTENTION,
  DATA,
  FOLD,
  MINE,
  SHORT,
  Chain,
  Command,
  fails,
  train,
)
import golden_inputs as inputs

COHORT = Chain(
  'cohort',
  inputs.two_cohorts,
  (
    Command('check', f'kmil {DATA} --k=3 --check'),
    train('mine', ''),
    Command('again', f'kmil {SHORT} --exp_code=mine', needs=('mine',)),
    fails(
      'changed_flags',
      f'kmil {SHORT} --exp_code=mine --lr=0.001',
      MINE,
      'lr',
      '0.001',
      '0.0002',
      needs=('mine',),
    ),
    train('abmil', '--model=abmil'),
    train('dsmil', '--model=dsmil --recipe=own'),
    *(
      Command(
        f'compare_{how}',
        f'compare {MINE} results/abmil_s2023 results/dsmil_s2023'
        f' --format={how}',
        printed=True,
        needs=('mine', 'abmil', 'dsmil'),
      )
      for how in ('text', 'markdown', 'csv', 'json')
    ),
    fails(
      'compare_missing',
      f'compare {MINE} results/none_s2023',
      'results/none_s2023',
      needs=('mine',),
    ),
    Command('mean_pooling', f'mean_pooling {DATA} --k=3'),
    Command(
      'predict_run',
      f'predict --run={MINE} --features_dir=other_features --exp_code=others',
      needs=('mine',),
    ),
    Command(
      'predict_fold',
      f'predict --run={MINE} --features_dir=other_features --fold=1'
      ' --exp_code=fold_1',
      needs=('mine',),
    ),
    Command(
      'predict_uncalibrated',
      f'predict --run={MINE} --features_dir=other_features --nocalibrate'
      ' --exp_code=raw',
      needs=('mine',),
    ),
    Command(
      'predict_check',
      f'predict --run={MINE} --features_dir=other_features --check',
      needs=('mine',),
    ),
    Command('export', f'export --run={MINE} --out=model.kmil', needs=('mine',)),
    Command(
      'predict_file',
      'predict --model=model.kmil --features_dir=other_features'
      ' --exp_code=from_file',
      needs=('mine', 'export'),
    ),
    fails(
      'predict_nothing',
      f'predict --run={MINE} --features_dir=nowhere --exp_code=none',
      'nowhere',
      needs=('mine',),
    ),
    Command('report', f'report --run={MINE}', needs=('mine',)),
    fails('report_missing', 'report --run=results/none', 'results/none'),
    Command(
      'external',
      f'kmil {SHORT} --exp_code=mine --external_csv=other.csv'
      ' --external_features_dir=other_features',
      needs=('mine',),
    ),
    Command('pack', f'pack {DATA} --out_dir=packed'),
    Command(
      'pack_tfrecord',
      f'pack {DATA} --out_dir=packed_records --file_format=tfrecord',
    ),
    Command(
      'packed',
      'kmil --csv_path=labels.csv'
      ' --features_dir=packed/slide_bags/cohort/1.0.0 --k=3 --epochs=2'
      ' --exp_code=packed',
      choices=True,
      needs=('pack',),
    ),
    Command(
      'ablations',
      f'ablations {DATA} --k=3 --epochs=1',
      choices=True,
    ),
  ),
)

VARIANTS = Chain(
  'variants',
  inputs.paper_cohorts,
  (
    train('transmil', '--model=transmil', FOLD, width=ATTENTION),
    train('dtfd', '--model=dtfd', FOLD),
    train('dtfd_maxmins', '--model=dtfd --distill=maxmins', FOLD),
    train('ilse', '--model=abmil_ilse', FOLD),
    train('dsmil_value', '--model=dsmil_value', FOLD),
    train('task_b', '--task=b', f'{DATA} --k=3 --epochs=1'),
    train('relabelled', '--labels=non-tumor:no,lymphoma:yes,breast:yes', SHORT),
    train('shuffled', '--shuffle_labels', FOLD),
    train(
      'grouped', '--model=abmil --group_col=site', f'{DATA} --k=3 --epochs=2'
    ),
    train('streamed', '--stream', FOLD),
    train('batch', '--model=abmil --batch_size=2', FOLD),
    train('bfloat16', '--precision=bfloat16', FOLD),
    train('select_loss', '--model=abmil --select=loss', FOLD),
    train('select_accuracy', '--model=abmil --select=accuracy', FOLD),
    train('select_auroc', '--model=abmil --select=auroc', FOLD),
    train('select_last', '--model=abmil --select=last', FOLD),
    train('kmil_own', '--recipe=own', FOLD),
    train(
      'dropped_highest',
      '--drop=highest --drop_fraction=0.3 --score=one_minus_var --combine',
      FOLD,
    ),
    train('tensorboard', '--model=abmil --tensorboard', FOLD),
    Command(
      'mean_pooling_grouped', f'mean_pooling {DATA} --k=3 --group_col=site'
    ),
    Command(
      'cost_json',
      'cost --num_instances=8 --width=16 --format=json',
      printed=True,
    ),
    Command('cost_text', 'cost --num_instances=8 --width=16'),
    Command(
      'benchmark',
      'benchmark --models=abmil --instances=16 --runs=1 --parts=inference'
      ' --repeats=1 --compile_s=0 --format=json',
      names=('abmil', 'inference'),
    ),
  ),
)

_EXTERNAL = '--external_csv=other.csv --external_features_dir=other_features'
_PAPER = f'paper {DATA} --k=3 --epochs=1'

PAPER = Chain(
  'paper',
  inputs.paper_cohorts,
  (
    Command('table_1', f'{_PAPER} --table=1 --models=kmil', choices=True),
    Command(
      'table_2',
      f'{_PAPER} --table=2 --models=kmil {_EXTERNAL}',
      choices=True,
    ),
    Command('table_3', f'{_PAPER} --table=3 --models=kmil'),
    Command('table_4', f'{_PAPER} --table=4', choices=True),
    Command(
      'table_5',
      f'{_PAPER} --table=5',
      choices=True,
      needs=('table_4',),
    ),
    Command('table_6', f'{_PAPER} --table=6', choices=True),
    Command(
      'figure_2',
      f'{_PAPER} --figure=2 --models=kmil',
      choices=True,
    ),
    Command(
      'figure_3',
      f'{_PAPER} --figure=3 --models=kmil {_EXTERNAL}',
      choices=True,
    ),
    Command(
      'figure_4',
      f'{_PAPER} --figure=4 {_EXTERNAL}',
      choices=True,
    ),
    fails('table_7', f'{_PAPER} --table=7', 'table', '7'),
  ),
)

"""Commands on slides and detections, and inputs with a fault."""

from golden_chain import ATTENTION, DATA, MINE, SHORT, Chain, Command, fails
import golden_inputs as inputs
import golden_pictures as pictures

SLIDES = Chain(
  'slides',
  pictures.weighted_slides,
  (
    Command(
      'check', 'extract --slides_dir=slides --features_dir=features --check'
    ),
    Command(
      'extract',
      'extract --slides_dir=slides --features_dir=features --weights=imagenet',
    ),
    Command(
      'again',
      'extract --slides_dir=slides --features_dir=features --weights=imagenet',
      needs=('extract',),
    ),
    Command(
      'random',
      'extract --slides_dir=new_slides --features_dir=random --tile_size=64',
    ),
    Command(
      'kmil',
      f'kmil {SHORT} --slides_dir=slides --exp_code=mine',
      width=ATTENTION,
      choices=True,
      needs=('extract',),
    ),
    Command(
      'maps', f'draw_maps --run={MINE} --geojson', needs=('extract', 'kmil')
    ),
    Command(
      'ranked_maps',
      f'draw_maps --run={MINE} --scale=rank --fold=0 --slide=2024-013_A'
      ' --geojson --top_fraction=0.5',
      needs=('extract', 'kmil'),
    ),
    Command(
      'view',
      f'view --run={MINE} --port=0',
      serves=True,
      needs=('extract', 'kmil'),
    ),
    Command(
      'predict',
      f'predict --run={MINE} --slides_dir=new_slides --weights=imagenet'
      ' --exp_code=new',
      needs=('extract', 'kmil'),
    ),
    Command(
      'predicted_maps',
      'draw_maps --run=results/new --geojson',
      needs=('extract', 'kmil', 'predict'),
    ),
    fails(
      'unlike',
      f'predict --run={MINE} --features_dir=random --exp_code=unlike',
      'random',
      needs=('extract', 'kmil', 'random'),
    ),
  ),
)

SCALES = Chain(
  'scales',
  pictures.faulty_slides,
  (
    fails(
      'check',
      'extract --slides_dir=slides --features_dir=features --check',
      'unscaled',
      'broken',
    ),
    fails(
      'table',
      'extract --slides_dir=slides --features_dir=features --tile_size=64'
      ' --mpp_csv=scales.csv',
      'broken',
    ),
    fails(
      'default',
      'extract --slides_dir=slides --features_dir=default --tile_size=64'
      ' --default_mpp=0.25',
      'broken',
    ),
  ),
)

OUTLINES = Chain(
  'outlines',
  pictures.outlines,
  (
    Command(
      'regions',
      'extract --slides_dir=slides --features_dir=features --tile_size=64'
      ' --regions_dir=outlines --min_tissue=0',
    ),
  ),
)

FROC = Chain(
  'froc',
  inputs.detections,
  (
    Command(
      'json',
      'froc --masks_dir=masks --detections_dir=detections --format=json'
      ' --figure=froc.png --resamples=50',
      printed=True,
    ),
    Command(
      'text', 'froc --masks_dir=masks --detections_dir=detections', printed=True
    ),
  ),
)

BAD_FROC = Chain(
  'bad_froc',
  inputs.faulty_detections,
  (
    fails(
      'line',
      'froc --masks_dir=masks --detections_dir=detections',
      'test_003.csv',
    ),
  ),
)

FAULTS = Chain(
  'faults',
  inputs.faulty_cohorts,
  (
    fails('unknown_model', f'kmil {DATA} --model=nothing', 'model', 'nothing'),
    fails('unknown_flag', f'kmil {DATA} --nosuchflag=1', 'nosuchflag'),
    fails(
      'missing_features',
      'kmil --csv_path=more.csv --features_dir=features --k=3',
      'no-features',
    ),
    Command(
      'allow_missing',
      'kmil --csv_path=more.csv --features_dir=features --k=3 --check'
      ' --allow_missing',
    ),
    fails(
      'no_column',
      'kmil --csv_path=columns.csv --features_dir=features --k=3',
      'columns.csv',
      'label',
    ),
    fails(
      'long_row',
      'kmil --csv_path=long.csv --features_dir=features --k=3',
      'long.csv',
    ),
    fails(
      'slide_twice',
      'kmil --csv_path=twice.csv --features_dir=features --k=3',
      'twice.csv',
      '0-001.x',
    ),
    fails(
      'no_table', 'kmil --csv_path=none.csv --features_dir=features', 'none.csv'
    ),
    fails(
      'no_folder',
      'kmil --csv_path=labels.csv --features_dir=nowhere',
      'nowhere',
    ),
    fails('fold_out_of_range', f'kmil {DATA} --k=3 --fold=3', 'fold', '3'),
    fails('too_many_folds', f'kmil {DATA} --k=10', '--k=10'),
    fails(
      'patient_in_two_parts',
      f'kmil {DATA} --k=3 --split_dir=splits',
      'splits_1.csv',
      'case 0 00',
    ),
    fails(
      'broken_file',
      'kmil --csv_path=labels.csv --features_dir=broken_features --k=3',
      '0-003.x.h5',
    ),
    fails(
      'nan',
      'kmil --csv_path=labels.csv --features_dir=nan_features --k=3 --check',
      '0-003.x',
    ),
    fails(
      'other_width',
      'kmil --csv_path=labels.csv --features_dir=wide_features --k=3',
      '0-003.x',
    ),
    fails(
      'every_problem',
      'kmil --csv_path=more.csv --features_dir=nan_features --k=9 --check',
      'no-features',
      '0-003.x',
      '--k=9',
    ),
    fails('no_group', f'kmil {DATA} --k=3 --group_col=nothing', 'nothing'),
    fails(
      'no_run',
      'predict --run=results/none --features_dir=features',
      'results/none',
    ),
  ),
)

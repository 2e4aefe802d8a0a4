"""The flag --csv_path, which scripts on bags and on CT volumes share."""

from absl import flags

CSV_PATH = flags.DEFINE_string(
  'csv_path',
  None,
  'Labels: a CSV with the columns case_id,slide_id,label; of CT volumes'
  ' patient_id,image_path,mask_path,label and, where one mask holds both'
  ' classes, mask_value.',
)

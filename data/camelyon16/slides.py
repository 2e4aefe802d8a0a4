"""Which slides CAMELYON16 has, and what is known of each.

Litjens et al., "1399 H&E-stained sentinel lymph node sections of breast cancer
patients: the CAMELYON dataset", GigaScience 2018.
"""

from collections.abc import Collection
import dataclasses
import pathlib
import re

from data import files
from data.labelled_tiles import TileError
from data.slides import list_slides, slide_id

# Slides that results are not reported on, and why.
EXCLUDED = {
  'test_049': 'a duplicate of another slide, withdrawn',
  'test_114': 'not all of its tumour is annotated',
}
# Slides whose name tells the wrong label.
RELABELLED = {'normal_086': 'tumor'}

NAME = r'(?:normal|tumor|test)_\d{3}'
# Slide, label, kind of the patient's cancer, size of the largest metastasis.
_REFERENCE = re.compile(
  r'(?P<key>test_\d{3})(\.\w+)?,'
  r'((?P<tumor>tumor),[^,]*,(macro|micro)|normal,[^,]*,none)',
  re.ASCII,
)


@dataclasses.dataclass(frozen=True)
class KnownSlide:
  """A slide of CAMELYON16.

  Attributes:
    id: in lower case, 'tumor_001'.
    label: 'normal' or 'tumor'.
    path: of the slide file.
  """

  id: str
  label: str
  path: pathlib.Path


def read_rows(
  path: pathlib.Path | str, pattern: re.Pattern, example: str
) -> list[re.Match]:
  """Returns the rows of a CSV without header, matched in lower case.

  Args:
    path: the CSV; spaces about cells are no part of them.
    pattern: of a row; its group `key` is what rows must differ in.
    example: a row, for messages.

  Raises:
    TileError: if the file cannot be read or has no rows; or naming every line
      that does not match or repeats another.
  """
  rows, problems = {}, []
  for number, cells in files.read_rows(path, TileError):
    # A comma in quotes separates no cells.
    row = ','.join(cell.strip().replace(',', ' ') for cell in cells)
    match = pattern.fullmatch(row.lower())
    if match is None:
      problems.append(
        f'line {number}: found {row[:80]!r}. Write it as {example}.'
      )
    elif rows.setdefault(match['key'], match) is not match:
      problems.append(f'line {number}: {match["key"]} a second time')
  if not rows and not problems:
    problems = ['no rows']
  if problems:
    raise TileError.listing(problems, str(path))
  return list(rows.values())


def read_reference(path: pathlib.Path | str) -> dict[str, str]:
  """Returns the labels of the test slides, by id in lower case.

  Args:
    path: test_reference.csv as released: slide, Tumor or Normal, the kind of
      cancer of the patient, Macro, Micro or None, without a header.

  Raises:
    TileError: naming every line that is not of this form, and slides named
      twice.
  """
  rows = read_rows(path, _REFERENCE, 'Test_003,Normal,DCIS,None')
  return {row['key']: row['tumor'] or 'normal' for row in rows}


def find(
  slides_dir: pathlib.Path | str,
  reference_csv: pathlib.Path | str,
  wanted: Collection[str],
) -> tuple[KnownSlide, ...]:
  """Returns slides of a folder with their labels, by id.

  Args:
    slides_dir: searched as by `slides.list_slides`; names count in any case.
      Masks, `<slide>_mask.tif`, and other slides may lie there, too.
    reference_csv: labels of test slides, see `read_reference`.
    wanted: ids of slides that must be there; `EXCLUDED` ones are left out.

  Raises:
    SlideError: if there is no slide in the folder.
    TileError: naming every slide that is missing or has no label.
  """
  wanted = {name.lower() for name in wanted} - set(EXCLUDED)
  paths, problems = {}, []
  for path in list_slides(slides_dir):
    name = slide_id(path).lower()
    if (other := paths.setdefault(name, path)) != path and name in wanted:
      problems.append(f'{path}: the same slide as {other}')
  label = {n: n.partition('_')[0] for n in wanted if re.fullmatch(NAME, n)}
  reference = read_reference(reference_csv)
  unlabelled = {n for n in label if label[n] == 'test'} - set(reference)
  for fault, names in (
    ('not slides of CAMELYON16', wanted - set(label)),
    ('slide(s) missing', set(label) - set(paths)),
    (f'no label in {reference_csv}', unlabelled & set(paths)),
  ):
    if names:
      problems.append(f'{len(names)} {fault}: {", ".join(sorted(names))}')
  if problems:
    raise TileError.listing(problems, str(slides_dir))
  label |= reference | RELABELLED
  return tuple(KnownSlide(n, label[n], paths[n]) for n in sorted(wanted))

"""Which slides CAMELYON16 has, and what is known of each.

Litjens et al., "1399 H&E-stained sentinel lymph node sections of breast cancer
patients: the CAMELYON dataset", GigaScience 2018.
"""

from collections.abc import Collection
import csv
import dataclasses
import pathlib
import re

from data.labelled_tiles import TileError
from data.slides import list_slides, slide_id

LABELS = ('normal', 'tumor')

# Slides that results are not reported on, and why.
EXCLUDED = {
  'test_049': 'a duplicate of another slide, withdrawn',
  'test_114': 'not all of its tumour is annotated',
}
# Slides whose name tells the wrong label.
RELABELLED = {'normal_086': 'tumor'}

_NAME = re.compile(r'(normal|tumor|test)_(\d{3})')
_SIZES = {'Normal': ('None',), 'Tumor': ('Macro', 'Micro')}


@dataclasses.dataclass(frozen=True)
class KnownSlide:
  """A slide of CAMELYON16.

  Attributes:
    id: in lower case, 'tumor_001'.
    part: 'train' or 'test', the organisers'.
    label: one of `LABELS`.
    path: of the slide file.
  """

  id: str
  part: str
  label: str
  path: pathlib.Path


def part(slide: str) -> str:
  """Returns the organisers' part of a slide id, 'train' or 'test'.

  Raises:
    TileError: if the id is not one of CAMELYON16.
  """
  found = _NAME.fullmatch(slide)
  if found is None:
    raise TileError(
      f'{slide}: not a slide of CAMELYON16; their ids are normal_001, '
      'tumor_001, test_001 and so on'
    )
  return 'test' if found[1] == 'test' else 'train'


def read_rows(path: pathlib.Path) -> list[tuple[int, list[str]]]:
  """Returns the rows of a CSV without header, stripped, by number of line.

  Raises:
    TileError: if the file cannot be read, or has no rows.
  """
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.reader(f)
      rows = [(reader.line_num, [c.strip() for c in row]) for row in reader]
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise TileError(f'{path}: cannot be read as CSV: {e}') from e
  rows = [(line, cells) for line, cells in rows if any(cells)]
  if not rows:
    raise TileError(f'{path}: no rows')
  return rows


def read_reference(path: pathlib.Path | str) -> dict[str, str]:
  """Returns the labels of the test slides, by id in lower case.

  Args:
    path: test_reference.csv as released: slide, Tumor or Normal, the kind of
      cancer of the patient, Macro, Micro or None, without a header.

  Raises:
    TileError: naming every line that is not of this form, and slides named
      twice.
  """
  path = pathlib.Path(path)
  labels, problems = {}, []
  for line, cells in read_rows(path):
    name = slide_id(cells[0]).lower()
    if (
      len(cells) != 4
      or not name.startswith('test_')
      or not _NAME.fullmatch(name)
      or cells[3] not in _SIZES.get(cells[1], ())
    ):
      problems.append(
        f'line {line}: found {",".join(cells)[:80]!r}; such as '
        'Test_001,Tumor,IDC,Macro or Test_003,Normal,DCIS,None is needed'
      )
    elif name in labels:
      problems.append(f'line {line}: {name} a second time')
    else:
      labels[name] = cells[1].lower()
  if problems:
    raise TileError.listing(problems, str(path))
  return labels


def find(
  slides_dir: pathlib.Path | str,
  reference_csv: pathlib.Path | str,
  wanted: Collection[str],
) -> tuple[KnownSlide, ...]:
  """Returns slides of a folder with their parts and labels, by id.

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
  found, problems = {}, []
  for path in list_slides(slides_dir):
    name = slide_id(path).lower()
    if (other := found.setdefault(name, path)) != path and name in wanted:
      problems.append(f'{path}: the same slide as {other}')
  label = {n: n.partition('_')[0] for n in wanted if _NAME.fullmatch(n)}
  reference = read_reference(reference_csv)
  unlabelled = {n for n in label if part(n) == 'test'} - set(reference)
  for fault, names in (
    ('not slides of CAMELYON16', wanted - set(label)),
    ('slide(s) missing', set(label) - set(found)),
    (f'no label in {reference_csv}', unlabelled & set(found)),
  ):
    if names:
      problems.append(f'{len(names)} {fault}: {", ".join(sorted(names))}')
  if problems:
    raise TileError.listing(problems, str(slides_dir))
  label |= reference | RELABELLED
  return tuple(
    KnownSlide(n, part(n), label[n], found[n]) for n in sorted(wanted)
  )

// Shows a slide with a map over it.
'use strict';

const viewer = OpenSeadragon({
  element: $('#view'),
  drawer: 'canvas',
  showNavigationControl: false,
  showNavigator: true,
  navigatorPosition: 'BOTTOM_RIGHT',
  navigatorBackground: '#fff',
  navigatorOpacity: 1,
  navigatorAutoFade: false,
  maxZoomPixelRatio: 4,
  animationTime: 0.6,
  gestureSettingsMouse: {clickToZoom: false, dblClickToZoom: true},
});
let slide = null;  // What the server says of the slide that is shown.
let picture = null;  // Its image in the viewer,
let heat = null;  // and that of its map.
let marks = [];  // Frames around the top tiles of the map,
let pointed = null;  // and around the tile under the pointer.
const base = () => address('slides', slide.id) + '/';

function choices(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, text]) =>
    new Option(text, value)));
  if (entries.some(([value]) => value === before)) select.value = before;
}

function source(tile, url) {
  return {
    width: slide.width, height: slide.height,
    tileSize: tile.size, tileOverlap: tile.overlap,
    minLevel: slide.min_level, maxLevel: slide.max_level,
    getTileUrl: (level, x, y) => url(`${level}/${x}_${y}`),
  };
}

const add = (tileSource, options) => new Promise((resolve, reject) =>
  viewer.addTiledImage({
    tileSource, ...options,
    success: (event) => resolve(event.item),
    error: (event) => reject(new Error(event.message)),
  }));

// Empties the page before it asks: of a slide that fails nothing is shown.
async function open({id, patient, label, note}, at) {
  if (id !== current) return;  // Another one is asked for.
  viewer.world.removeAll();
  viewer.clearOverlays();
  slide = picture = heat = pointed = null;
  marks = [];
  for (const part of ['#facts', '#classes tbody', '#top', '#tile tbody']) {
    $(part).replaceChildren();
  }
  ruler();
  $('#name').textContent = document.title = id;
  $('#note').textContent = note ?? '';
  const number = found.findIndex((one) => one.id === id) + 1;
  $('#place').textContent = `${number || '–'} of ${found.length}`;
  $('#previous').disabled = !neighbour(-1);
  $('#next').disabled = !neighbour(1);
  slide = await ask(address('slides', id) + '/');
  const tiles = base() + 'tiles/';
  picture = await add(source(slide.tile, (place) => `${tiles}${place}.jpg`),
    {index: 0});
  describe(patient, label);
  choices($('#colours'), Object.keys(slide.colours).map((name) => [name, name]));
  choices($('#layer'), slide.layers.absolute.map(({key, title}) => [key, title]));
  // A probability is that of the class that is predicted for this slide.
  if ($('#layer').value.startsWith('probability')) {
    $('#layer').value = $('#layer [value^=probability]').value;
  }
  set(at);
  outline();
  await overlay();
}

function describe(patient, label) {
  const verdict = label === slide.predicted ? 'right' : 'WRONG';
  const {without} = slide.layers.absolute[0];
  const facts = [
    ...patient ? [['patient', patient]] : [],
    ['true class', label ?? 'not known'],
    ['predicted', slide.predicted],
    ...label ? [['that is', verdict]] : [],
    [slide.folds.length > 1 ? 'folds' : 'fold', slide.folds.join(', ')],
    ['tiles', slide.tiles + (without ? `, ${without} dropped` : '')],
    ['size', `${slide.width} × ${slide.height} px`],
    ['resolution', slide.mpp ? `${+slide.mpp.toPrecision(4)} µm/px` : 'not known'],
  ];
  $('#facts').replaceChildren(...facts.flatMap(([name, value]) => [
    make('dt', {textContent: name}),
    make('dd', {textContent: value, className: value === verdict ? value : ''}),
  ]));
  fill($('#classes tbody'), slide.classes.map(({name, prob, sd}) => [
    name,
    prob.toFixed(3) + (slide.folds.length > 1 ? ` ± ${sd.toFixed(3)}` : ''),
    name === slide.predicted ? 'predicted' : '',
  ]));
}

async function overlay() {
  if (!picture) return;
  const scale = $('#scale').value, colours = $('#colours').value;
  const layer = slide.layers[scale].find(({key}) => key === $('#layer').value);
  const at = `${base()}heat/${address(scale, layer.key, colours)}/`;
  legend(layer, slide.colours[colours]);
  highest(layer);
  adapt();
  const before = heat;
  heat = await add(source(slide.heat_tile, (place) => `${at}${place}.png`),
    {opacity: opacity()});
  if (before) viewer.world.removeItem(before);
  keep();
}

const opacity = () => $('#opacity').value / 100;

// Follows the opacity, and hides what lies above the map.
function adapt() {
  $('#percent').textContent = `${$('#opacity').value} %`;
  if (heat) heat.setOpacity(opacity());
  for (const name of ['outlines', 'marks']) {
    $('#view').classList.toggle(`no-${name}`, !$(`#${name}`).checked);
  }
}

function legend(layer, colours) {
  const canvas = $('#legend canvas'), pen = canvas.getContext('2d');
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const step = canvas.width / colours.length;
  colours.forEach(([r, g, b, a], i) => {
    pen.fillStyle = `rgba(${r}, ${g}, ${b}, ${a / 255})`;
    pen.fillRect(i * step, 0, step, canvas.height);
  });
  const {key, low, high, log, title, without} = layer;
  const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
  const ends = log ? ['≤ ', '', '≥ '] : ['', '', ''];
  [low, middle, high].forEach((value, i) => {
    $('#ticks').children[i].textContent = ends[i] + +value.toPrecision(3);
  });
  const why = key === 'disagreement' ? 'kept by fewer than two folds' : 'dropped';
  $('#legend figcaption').textContent =
    title + (without ? `; hatched: ${without} tiles ${why}` : '');
}

const rectangle = ([left, top, right, bottom], margin = 0) =>
  picture.imageToViewportRectangle(left - margin, top - margin,
    right - left + 2 * margin, bottom - top + 2 * margin);

function frame(box, className, text = '') {
  const mark = make('div', {className}, text && make('span', {}, text));
  viewer.addOverlay(mark, rectangle(box));
  return mark;
}

function highest(layer) {
  for (const mark of marks) viewer.removeOverlay(mark);
  marks = layer.top.map(({box}, i) => frame(box, 'mark', `${i + 1}`));
  $('#top').replaceChildren(...layer.top.map(({tile, box, value}, i) => {
    const look = () => viewer.viewport.fitBounds(
      rectangle(box, box[2] - box[0]));
    const src = `${base()}top/${tile}.jpg`, alt = `tile ${tile}`;
    return make('li', {}, make('button', {onclick: look, title: alt},
      make('img', {src, alt}), `${i + 1}: ${+value.toPrecision(3)}`));
  }));
}

function outline() {
  const none = !slide.outlines.length;
  $('#outlines').parentElement.hidden = none;
  if (none) return;
  const svg = (tag, attributes) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
    Object.entries(attributes).forEach((pair) => element.setAttribute(...pair));
    return element;
  };
  const d = slide.outlines.map((ring) => `M${ring.join(' ')}Z`).join('');
  const drawing = svg('svg', {
    viewBox: `0 0 ${slide.width} ${slide.height}`, class: 'outlines',
  });
  drawing.append(svg('path', {d, class: 'below'}), svg('path', {d}));
  viewer.addOverlay(drawing, picture.getBounds());
}

// Magnification, and a bar of 1, 2 or 5 times a power of ten micrometres.
function ruler() {
  $('#ruler').hidden = !picture;
  if (!picture) return;
  const zoom = zoomed(), bar = $('#bar');
  bar.hidden = !slide.mpp;
  // An objective of 10x gives 1 um/px.
  $('#magnification').textContent = slide.mpp
    ? `${+(10 * zoom / slide.mpp).toPrecision(2)}×`
    : `${+(100 * zoom).toPrecision(2)} %`;
  if (!slide.mpp) return;
  const micrometres = 150 * slide.mpp / zoom;
  const power = 10 ** Math.floor(Math.log10(micrometres));
  const length = [5, 2, 1].find((n) => n * power <= micrometres) * power;
  bar.style.width = `${length * zoom / slide.mpp}px`;
  bar.textContent = length < 1000 ? `${length} µm` : `${length / 1000} mm`;
}

let asked = 0;
async function point(event) {
  if (!picture) return;
  const frameOf = $('#view').getBoundingClientRect();
  const spot = picture.viewerElementToImageCoordinates(new OpenSeadragon.Point(
    event.clientX - frameOf.left, event.clientY - frameOf.top));
  const [x, y] = [Math.floor(spot.x), Math.floor(spot.y)];
  const mine = ++asked;
  await new Promise((resolve) => setTimeout(resolve, 60));
  if (mine !== asked || !picture) return;  // The pointer has moved on.
  const inside = x >= 0 && y >= 0 && x < slide.width && y < slide.height;
  const tile = inside ? await ask(`${base()}at/${x}_${y}`) : null;
  if (mine !== asked || !picture) return;
  if (pointed) viewer.removeOverlay(pointed);
  pointed = tile && frame(tile.box, 'pointed');
  fill($('#tile tbody'), !tile ? [['none', '']] : [
    ['tile', tile.tile],
    ['place', `${tile.box[0]}, ${tile.box[1]}`],
    ['folds that keep it', `${tile.kept} of ${slide.folds.length}`],
    ...Object.entries(tile.scores).map(([title, value]) =>
      [title, value === null ? 'none' : value.toPrecision(3)]),
  ]);
}

for (const name of ['#layer', '#scale', '#colours']) {
  $(name).addEventListener('change', () => inTurn(overlay));
}
for (const name of ['#outlines', '#marks', '#opacity']) {
  $(name).addEventListener('input', adapt);
  $(name).addEventListener('change', keep);
}
$('#in').addEventListener('click', () => viewer.viewport.zoomBy(1.6));
$('#out').addEventListener('click', () => viewer.viewport.zoomBy(1 / 1.6));
$('#home').addEventListener('click', () => viewer.viewport.goHome());
for (const name of ['pointermove', 'pointerdown']) {  // A finger only taps.
  $('#view').addEventListener(name, (event) => point(event).catch(tell));
}
viewer.addHandler('tile-load-failed', ({tiledImage, message}) => {
  if (tiledImage !== picture || /abort/i.test(message)) return;
  tell(new Error(`${slide.id}: parts of the slide cannot be read`));
});
viewer.addHandler('update-viewport', ruler);
viewer.addHandler('resize', ruler);
viewer.addHandler('animation-finish', keep);
inTurn(async () => {
  slides = (await ask('slides')).map(listed);
  list();
  route();
});

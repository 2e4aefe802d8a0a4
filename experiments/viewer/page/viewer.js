// Shows a slide with a map over it. Addresses are relative: the page's own
// holds the token that the server asks for.
'use strict';

const $ = (selector) => document.querySelector(selector);
const viewer = OpenSeadragon({
  element: $('#view'),
  drawer: 'canvas',
  showNavigationControl: false,
  showNavigator: true,
  navigatorPosition: 'BOTTOM_RIGHT',
  navigatorBackground: '#fff',
  navigatorOpacity: 1,
  maxZoomPixelRatio: 4,
  animationTime: 0.6,
  gestureSettingsMouse: {clickToZoom: false, dblClickToZoom: true},
});
let labels = {};  // True classes by slide.
let slide = null;  // What the server says of the slide that is shown.
let picture = null;  // Its image in the viewer,
let heat = null;  // and that of its map.

const address = (...parts) => parts.map(encodeURIComponent).join('/');
const base = () => address('slides', slide.id) + '/';

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function tell(fault) {
  $('#fault').textContent = fault.message;
  $('#fault').hidden = false;
}

// Runs what may fail, one after the other: of two choices in a row the later
// one stays. What failed is told until the next choice.
let turn = Promise.resolve();
function inTurn(work) {
  turn = turn.then(() => {
    $('#fault').hidden = true;
    return work();
  }).catch(tell);
}

function fill(table, rows) {
  table.replaceChildren(...rows.map(([name, value, style]) => {
    const row = document.createElement('tr');
    if (style) row.className = style;
    for (const text of [name, value]) {
      row.append(Object.assign(document.createElement('td'),
        {textContent: text}));
    }
    return row;
  }));
}

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

async function open(id) {
  try {
    slide = await ask(address('slides', id) + '/');
  } catch (fault) {
    if (slide) $('#slide').value = slide.id;  // It is still the one shown.
    throw fault;
  }
  viewer.world.removeAll();
  viewer.clearOverlays();
  heat = null;
  const at = base();
  picture = await add(source(slide.tile, (place) => `${at}tiles/${place}.jpg`),
    {index: 0});
  viewer.viewport.goHome(true);
  const facts = [
    ['true class', labels[slide.id] ?? 'not known'],
    ['predicted', slide.predicted],
    [slide.folds.length > 1 ? 'folds' : 'fold', slide.folds.join(', ')],
    ['tiles', slide.tiles],
    ['size', `${slide.width} × ${slide.height} px`],
    ['resolution', slide.mpp ? `${+slide.mpp.toPrecision(4)} µm/px` : 'not known'],
  ];
  $('#facts').replaceChildren(...facts.flatMap(([name, value]) => [
    Object.assign(document.createElement('dt'), {textContent: name}),
    Object.assign(document.createElement('dd'), {textContent: value}),
  ]));
  fill($('#classes tbody'), slide.classes.map(({name, prob, sd}) => [
    name,
    prob.toFixed(3) + (slide.folds.length > 1 ? ` ± ${sd.toFixed(3)}` : ''),
    name === slide.predicted ? 'predicted' : '',
  ]));
  choices($('#colours'), Object.keys(slide.colours).map((name) => [name, name]));
  choices($('#layer'), slide.layers.absolute.map(({key, title}) => [key, title]));
  $('#layer').selectedIndex = 0;  // The probability of the predicted class.
  fill($('#tile tbody'), []);
  document.title = slide.id;
  history.replaceState(null, '', '#' + encodeURIComponent(slide.id));
  await overlay();
  ruler();
}

async function overlay() {
  const scale = $('#scale').value, colours = $('#colours').value;
  const layer = slide.layers[scale].find(({key}) => key === $('#layer').value);
  const at = `${base()}heat/${address(scale, layer.key, colours)}/`;
  legend(layer, slide.colours[colours]);
  const before = heat;
  heat = await add(source(slide.heat_tile, (place) => `${at}${place}.png`),
    {opacity: opacity()});
  if (before) viewer.world.removeItem(before);
}

const opacity = () => $('#opacity').value / 100;

function fade() {
  $('#percent').textContent = `${$('#opacity').value} %`;
  if (heat) heat.setOpacity(opacity());
}

function legend(layer, colours) {
  const canvas = $('#legend canvas'), pen = canvas.getContext('2d');
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const step = canvas.width / colours.length;
  colours.forEach(([r, g, b, a], i) => {
    pen.fillStyle = `rgba(${r}, ${g}, ${b}, ${a / 255})`;
    pen.fillRect(i * step, 0, step, canvas.height);
  });
  const {low, high, log, title} = layer;
  const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
  const ends = log ? ['≤ ', '', '≥ '] : ['', '', ''];
  [low, middle, high].forEach((value, i) => {
    $('#ticks').children[i].textContent = ends[i] + +value.toPrecision(3);
  });
  $('#legend figcaption').textContent = title;
}

// A bar of 1, 2 or 5 times a power of ten micrometres.
function ruler() {
  const bar = $('#bar');
  bar.hidden = !(slide && slide.mpp && picture);
  if (bar.hidden) return;
  const zoom = picture.viewportToImageZoom(viewer.viewport.getZoom(true));
  const micrometres = 150 * slide.mpp / zoom;
  const power = 10 ** Math.floor(Math.log10(micrometres));
  const length = [5, 2, 1].find((n) => n * power <= micrometres) * power;
  bar.style.width = `${length * zoom / slide.mpp}px`;
  bar.firstElementChild.textContent =
    length < 1000 ? `${length} µm` : `${length / 1000} mm`;
}

let asked = 0;
async function point(event) {
  if (!picture) return;
  const frame = $('#view').getBoundingClientRect();
  const spot = picture.viewerElementToImageCoordinates(new OpenSeadragon.Point(
    event.clientX - frame.left, event.clientY - frame.top));
  const [x, y] = [Math.floor(spot.x), Math.floor(spot.y)];
  const mine = ++asked;
  await new Promise((resolve) => setTimeout(resolve, 60));
  if (mine !== asked) return;  // The pointer has moved on.
  const inside = x >= 0 && y >= 0 && x < slide.width && y < slide.height;
  const tile = inside ? await ask(`${base()}at/${x}_${y}`) : null;
  if (mine !== asked) return;
  viewer.clearOverlays();
  if (!tile) {
    fill($('#tile tbody'), [['none', '']]);
    return;
  }
  const [left, top, right, bottom] = tile.box;
  const mark = document.createElement('div');
  mark.className = 'pointed';
  viewer.addOverlay(mark, picture.imageToViewportRectangle(
    left, top, right - left, bottom - top));
  fill($('#tile tbody'), [
    ['tile', tile.tile],
    ['place', `${left}, ${top}`],
    ['folds that keep it', `${tile.kept} of ${slide.folds.length}`],
    ...Object.entries(tile.scores).map(([title, value]) =>
      [title, value === null ? 'none' : value.toPrecision(3)]),
  ]);
}

async function begin() {
  const slides = await ask('slides');
  labels = Object.fromEntries(slides.map(({id, label}) => [id, label]));
  choices($('#slide'), slides.map(({id, label}) =>
    [id, label ? `${id} (${label})` : id]));
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (slides.some(({id}) => id === wanted)) $('#slide').value = wanted;
  fade();
  await open($('#slide').value);
}

$('#slide').addEventListener('change', (event) =>
  inTurn(() => open(event.target.value)));
for (const name of ['#layer', '#scale', '#colours']) {
  $(name).addEventListener('change', () => inTurn(overlay));
}
$('#opacity').addEventListener('input', fade);
$('#in').addEventListener('click', () => viewer.viewport.zoomBy(1.6));
$('#out').addEventListener('click', () => viewer.viewport.zoomBy(1 / 1.6));
$('#home').addEventListener('click', () => viewer.viewport.goHome());
$('#view').addEventListener('pointermove', (event) =>
  point(event).catch(tell));
viewer.addHandler('tile-load-failed', ({tiledImage, message}) => {
  if (tiledImage !== picture || /abort/i.test(message)) return;
  tell(new Error(`${slide.id}: parts of the slide cannot be read`));
});
viewer.addHandler('update-viewport', ruler);
viewer.addHandler('resize', ruler);
inTurn(begin);

// The list of slides, and the address: #<slide>&<place, zoom and settings>.
// What is asked for is relative: the page's own address holds the token that
// the server wants.
'use strict';

const $ = (selector) => document.querySelector(selector);
const address = (...parts) => parts.map(encodeURIComponent).join('/');
const slideHash = (id) => `#${encodeURIComponent(id)}`;

let slides = [];  // All, with what tables say of them.
let found = [];  // Those that the search finds, in the order chosen.
let current = null;  // Id of the slide that is asked for, if any.

// What the address keeps, besides place and zoom.
const settings = ['layer', 'scale', 'colours', 'opacity', 'outlines', 'marks']
  .map((name) => $(`#${name}`));
// What slides are sorted by, smallest first; equal ones stay as they are.
const SORTS = {
  name: () => 0,
  wrong: ({wrong, sure}) => wrong ? -sure : 1,
  uncertain: ({sure}) => sure ?? 2,
  label: ({label}) => label ?? '\uffff',
};

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function fill(table, rows) {
  table.replaceChildren(...rows.map(([name, value, style]) =>
    make('tr', {className: style ?? ''},
      make('td', {textContent: name}), make('td', {textContent: value}))));
}

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

function listed({id, case: patient, label, prob, note}) {
  const classes = Object.entries(prob ?? {}).sort((a, b) => b[1] - a[1]);
  const [predicted, sure] = classes[0] ?? [];
  const verdict = label && predicted &&
    (label === predicted ? 'right' : 'WRONG') || '';
  const lines = [
    make('b', {textContent: id}),
    make('span', {textContent: patient ? `patient: ${patient}` : ''}),
    make('span', {textContent: `true class: ${label ?? 'not known'}`}),
    make('span', {textContent: predicted
      ? `predicted: ${predicted}, ${sure.toFixed(2)}` : 'no prediction'}),
    make('span', {textContent: verdict, className: verdict}),
    make('span', {textContent: note ?? '', className: 'note'}),
  ];
  const src = `${address('slides', id)}/thumbnail.jpg`;
  const picture = make('img', {src, alt: '', loading: 'lazy'});
  const texts = make('div', {}, ...lines);
  return {
    id, patient, label, note, sure, wrong: verdict === 'WRONG',
    card: make('li', {}, make('a', {href: slideHash(id)}, picture, texts)),
    text: lines.map((line) => line.textContent).join(' ').toLowerCase(),
  };
}

function list() {
  const words = $('#search').value.toLowerCase().split(' ');
  const key = SORTS[$('#sort').value];
  found = slides.filter(({text}) => words.every((word) => text.includes(word)));
  found.sort((a, b) => (key(a) > key(b)) - (key(a) < key(b)));
  $('#cards').replaceChildren(...found.map(({card}) => card));
  $('#count').textContent = `${found.length} of ${slides.length}`;
}

// The slide so many places further on in the list.
function neighbour(step) {
  return found[found.findIndex(({id}) => id === current) + step];
}

function go(step) {
  const slide = neighbour(step);
  if (!slide) return;
  current = slide.id;  // Now, for the next key.
  location.hash = slideHash(slide.id);
}

function route() {
  const at = new URLSearchParams(`slide=${location.hash.slice(1)}`);
  const name = at.get('slide'), slide = slides.find(({id}) => id === name);
  const before = slides.find(({id}) => id === current);
  current = slide?.id ?? null;
  $('#list').hidden = Boolean(slide);
  for (const part of ['aside', 'main']) $(part).inert = !slide;
  if (!slide) {
    document.title = 'Slides and maps';
    before?.card.firstChild.focus();  // The list is again where it was left.
  }
  inTurn(() => {
    if (slide) return open(slide, at);
    if (name) throw new Error(`${name}: no slide of this list`);
  });
}

// Sets place, zoom and settings to those of an address, as far as it has them.
function set(at) {
  for (const control of settings) {
    const value = at.get(control.id);
    if (value === null) continue;
    if (control.type === 'checkbox') control.checked = value === '1';
    else if (control.type === 'range' ||
      [...control.options].some((option) => option.value === value)) {
      control.value = value;
    }
  }
  const [x, y, zoom] = ['x', 'y', 'zoom'].map((name) => parseFloat(at.get(name)));
  viewer.viewport.goHome(true);
  if (!(zoom > 0 && isFinite(x + y))) return;
  viewer.viewport.zoomTo(picture.imageToViewportZoom(zoom), null, true);
  viewer.viewport.panTo(picture.imageToViewportCoordinates(x, y), true);
}

// Puts them into the address; the slide's own pixels outlive any window.
function keep() {
  if (!picture || current !== slide.id) return;  // Another one is asked for.
  const place = picture.viewportToImageCoordinates(viewer.viewport.getCenter());
  const at = new URLSearchParams({
    x: Math.round(place.x), y: Math.round(place.y),
    zoom: +zoomed().toPrecision(4),
  });
  for (const control of settings) {
    at.set(control.id,
      control.type === 'checkbox' ? +control.checked : control.value);
  }
  history.replaceState(null, '', `${slideHash(slide.id)}&${at}`);
}

// Pixels of the screen for one of the slide.
const zoomed = () =>
  picture.viewportToImageZoom(viewer.viewport.getZoom(true));

$('#search').addEventListener('input', list);
$('#sort').addEventListener('change', list);
$('#previous').addEventListener('click', () => go(-1));
$('#next').addEventListener('click', () => go(1));
window.addEventListener('hashchange', route);
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !current) return;
  if (event.target.matches('select')) return;  // Letters choose there.
  if (event.key === 'Escape') location.hash = '';
  if (event.key === 'n') go(1);
  if (event.key === 'p') go(-1);
});

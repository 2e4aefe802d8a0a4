// The contents: folded on narrow windows, marking the section in view.
(() => {
  const contents = document.getElementById('contents');
  const narrow = matchMedia('(max-width: 56rem)');
  const fold = () => { contents.open = !narrow.matches; };
  narrow.addEventListener('change', fold);
  fold();
  const links = [...contents.querySelectorAll('a')];
  for (const link of links) {
    link.addEventListener('click', () => { if (narrow.matches) contents.open = false; });
  }
  const sections = links.map((link) => document.getElementById(link.hash.slice(1)));
  const mark = () => {
    let current = 0;
    sections.forEach((section, i) => {
      if (section.getBoundingClientRect().top < 120) current = i;
    });
    const atEnd = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
    if (atEnd && scrollY > 0) current = links.length - 1;
    links.forEach((link, i) => {
      if (i === current) link.setAttribute('aria-current', 'true');
      else link.removeAttribute('aria-current');
    });
  };
  addEventListener('scroll', mark, { passive: true });
  mark();
})();

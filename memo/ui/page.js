// The page's own behaviour: citations lead to the cited words, passages open and close, one set of them is seen.
// Nothing here talks to the server.
window.memoPassages = (() => {
  let chosen = null;  // the strategy whose passages the person wants to see
  let active = null;  // {strategy, cite} of the citation that was followed
  let origin = null;  // where it was followed from, to go back to
  const open = new Set();

  const calm = () => matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth';
  const root = () => document.getElementById('passages');

  function apply() {  // after every drawing by the server, and after every click
    const element = root();
    if (!element) return;
    const sets = [...element.querySelectorAll('.set')];
    const shown = sets.some((set) => set.dataset.of === chosen) ? chosen : sets[0]?.dataset.of;
    sets.forEach((set) => { set.hidden = set.dataset.of !== shown; });
    element.querySelectorAll('[data-set]').forEach((tab) => {
      tab.setAttribute('aria-pressed', tab.dataset.set === shown);
    });
    element.querySelectorAll('.passage').forEach((card) => {
      const more = card.querySelector('.more');
      const text = card.querySelector('.text');
      const whole = open.has(card.id);
      card.classList.toggle('open', whole);
      more.setAttribute('aria-expanded', whole);
      more.textContent = whole ? more.dataset.less : more.dataset.more;
      text.scrollTop = whole ? 0 : firstLine(text);
      text.classList.toggle('midway', text.scrollTop > 0);
      more.hidden = !whole && !card.parentElement.hidden && text.scrollHeight <= text.clientHeight + 2;
    });
    element.querySelectorAll('mark.active').forEach((mark) => mark.classList.remove('active'));
    if (active) marksOf(active).forEach((mark) => mark.classList.add('active'));
    const back = element.querySelector('.back');
    if (back) back.hidden = !(active && origin && origin.isConnected);
  }

  // Where the short view of a passage begins: further down if nothing is cited or highlighted in its first three lines.
  function firstLine(text) {
    const line = parseFloat(getComputedStyle(text).lineHeight);
    const found = text.querySelector('mark.cited') || text.querySelector('.hit');
    const above = found ? Math.floor(found.offsetTop / line) : 0;
    return above > 2 ? (above - 1) * line : 0;  // one line more: the first is faded
  }

  function marksOf({strategy, cite}) {
    const set = root().querySelector(`.set[data-of="${strategy}"]`);
    return set ? [...set.querySelectorAll('mark.cited')].filter((m) => m.dataset.cites.split(' ').includes(cite)) : [];
  }

  function follow(button) {
    active = {strategy: button.dataset.strategy, cite: button.dataset.cite};
    origin = button;
    chosen = active.strategy;
    open.add(`passage-${active.strategy}-${button.dataset.passage}`);
    apply();
    const target = marksOf(active)[0];
    if (!target) return;
    target.setAttribute('tabindex', '-1');
    target.focus({preventScroll: true});
    target.scrollIntoView({block: 'center', behavior: calm()});
  }

  document.addEventListener('click', (event) => {
    const cite = event.target.closest('button.cite');
    if (cite) return follow(cite);
    const tab = event.target.closest('#passages [data-set]');
    if (tab) { chosen = tab.dataset.set; return apply(); }
    const more = event.target.closest('#passages .more');
    if (more) {
      const card = more.closest('.passage');
      open.has(card.id) ? open.delete(card.id) : open.add(card.id);
      return apply();
    }
    if (event.target.closest('#passages .back') && origin) {
      origin.focus({preventScroll: true});
      origin.scrollIntoView({block: 'center', behavior: calm()});
    }
  });

  let waiting = 0;
  addEventListener('resize', () => { clearTimeout(waiting); waiting = setTimeout(apply, 100); });

  return {
    mount(element, watch) {
      watch('value', () => {
        if (!element.querySelector('.passage')) { active = null; chosen = null; open.clear(); }
        apply();
      });
      apply();
    },
  };
})();

// Tables that scroll inside themselves are reached by keyboard.
new MutationObserver(() => {
  document.querySelectorAll('#results-tables table:not([tabindex])').forEach((table) => { table.tabIndex = 0; });
}).observe(document.documentElement, {childList: true, subtree: true});

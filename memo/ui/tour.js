// The guided tour: a card at the foot of the page, and a frame around what it is about. Esc ends it.
(() => {
  let at = -1;
  const card = document.createElement('section');
  card.id = 'tour-card';
  card.hidden = true;
  card.setAttribute('role', 'dialog');
  card.innerHTML = '<p aria-live="polite"></p><div><span></span><button type="button" data-go="back"></button>' +
    '<button type="button" data-go="next"></button><button type="button" data-go="close"></button></div>';
  const [text, count] = [card.querySelector('p'), card.querySelector('span')];
  const steps = () => [...document.querySelectorAll('#tour-steps li[data-at]')];
  const word = (name) => document.querySelector(`#tour-steps [data-word="${name}"]`).textContent;

  function show(index) {
    document.querySelector('.toured')?.classList.remove('toured');
    const all = steps();
    if (index < 0 || index >= all.length) {
      card.hidden = true;
      if (at >= 0) document.getElementById('tour').focus();
      at = -1;
      return;
    }
    at = index;
    document.querySelector('#tabs [role="tab"]')?.click();  // everything that is shown is on the first tab
    const about = document.getElementById(all[at].dataset.at);
    card.hidden = false;
    card.setAttribute('aria-label', document.getElementById('tour').textContent);
    text.textContent = all[at].textContent;
    count.textContent = `${at + 1} / ${all.length}`;
    card.querySelectorAll('button').forEach((button) => {
      button.textContent = word(button.dataset.go);
      button.disabled = button.dataset.go === 'back' && at === 0;
      button.hidden = button.dataset.go === 'next' && at === all.length - 1;
    });
    about?.classList.add('toured');
    const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    about?.scrollIntoView({block: 'start', behavior: calm ? 'auto' : 'smooth'});
    card.querySelector(at === all.length - 1 ? '[data-go="close"]' : '[data-go="next"]').focus({preventScroll: true});
  }

  document.addEventListener('click', (event) => {
    if (event.target.closest('#tour')) {
      document.body.append(card);
      return show(0);
    }
    const go = event.target.closest('#tour-card [data-go]')?.dataset.go;
    if (go) show(go === 'next' ? at + 1 : go === 'back' ? at - 1 : -1);
  });
  document.addEventListener('keydown', (event) => { if (event.key === 'Escape' && at >= 0) show(-1); });
})();

// Messages on top of the page: gradio's own can not be seen in ModernUI, and know nothing of work that the API or another page has started.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const HIDE_MS = { info: 6000, success: 10000 }; // warnings and errors stay until they are dismissed
  const OFFER_MS = 15000; // what goes by itself, but has a button
  const KEPT = 20; // that come back when the page is reloaded
  const STEPS = ['encoder.looking', 'encoder.loading', 'encoder.waiting', 'encoder.waiting-model', 'encoder.waiting-change', 'packages.installing'];

  const stored = (store, key) => {
    try {
      return JSON.parse(store.getItem(key)) || [];
    } catch {
      return []; // something else has written there
    }
  };
  const quieted = () => stored(localStorage, 'sd3-quiet');
  const open = () => stored(sessionStorage, 'sd3-open');
  const keep = (events) => sessionStorage.setItem('sd3-open', JSON.stringify(events.slice(-KEPT)));
  // Of a job, the latest word counts: a folder has many pictures, and a second press answers the first.
  const same = (event) => (other) => other.id === event.id && (event.job || other.message === event.message);

  const area = () => {
    let el = document.getElementById('sd3-toasts');
    if (!el) {
      el = sd3.element('section');
      el.id = 'sd3-toasts';
      el.setAttribute('aria-label', 'SD3 Deploy');
      el.setAttribute('aria-live', 'polite'); // what a role says is heard only in an element that has been there before
      document.body.prepend(el); // the first that Tab comes to
    }
    return el;
  };

  // On a narrow page, and where there is no room for them, they are one line, which opens.
  const fold = (place = sd3.placeToasts) => {
    const all = area();
    const boxes = [...all.querySelectorAll('.sd3-toast')];
    let line = all.querySelector('.sd3-fold');
    if (!line) {
      line = sd3.button('sd3-fold', '', () => {
        all.classList.toggle('sd3-open');
        fold();
      });
      all.prepend(line);
    }
    const last = boxes[boxes.length - 1];
    line.hidden = !last;
    if (!last) all.classList.remove('sd3-open');
    line.setAttribute('aria-expanded', String(all.classList.contains('sd3-open')));
    const text = last ? sd3.text('page.messages', { count: boxes.length, last: last.querySelector('p').textContent }) : '';
    sd3.fill(line, [boxes.length, text], ([count]) => [sd3.element('b', '', count), sd3.element('span', '', text)]);
    line.setAttribute('aria-label', text);
    place();
  };

  // As near to the lower right corner as they cover nothing that can be pressed: open where there is room for that beside our own panel, else
  // over what that says. A wide page that is full has them open over what is not to be pressed next; another one as one line, else as their
  // number alone.
  const NARROW = matchMedia('(max-width: 36rem)');
  const WIDE = matchMedia('(min-width: 81rem)');
  const PRESSED = 'button, input, textarea, select, label, summary, a[href], [role=button], [role=tab], [role=option], [onclick], .label-wrap';
  const READ = `${PRESSED}, .sd3-panel`;
  const NEXT = '[id$="_generate"], [id$="_skip"], [id$="_interrupt"], [id$="_pause"], #settings_submit, #settings_restart, #settings .tab-nav > button, .sd3-chip-head';
  const OPEN = [[false, false, READ], [false, false, PRESSED]];
  const FOLDED = [[true, false, READ], [true, false, PRESSED], [true, true, PRESSED]];
  const ways = () => (NARROW.matches ? FOLDED : [...OPEN, ...(WIDE.matches ? [[false, false, NEXT]] : []), ...FOLDED]);
  sd3.placeToasts = () => {
    const all = document.getElementById('sd3-toasts');
    if (!all || !all.querySelector('.sd3-toast')) return;
    const room = sd3.room(`${READ}, ${NEXT}`, true);
    const corner = { left: innerWidth, top: innerHeight, right: innerWidth, bottom: innerHeight };
    let place = null;
    for (const [folded, small, covered] of ways()) {
      all.classList.toggle('sd3-narrow', folded);
      all.classList.toggle('sd3-small', small);
      const { width, height } = all.getBoundingClientRect();
      place = room(corner, width, height, covered);
      if (place) break;
    }
    const [left, top] = place || [];
    Object.assign(all.style, place ? { inset: 'auto', left: `${left}px`, top: `${top}px` } : { inset: '' });
  };

  sd3.replaceToasts = () => { // not away from under the mouse
    if (!document.querySelector('#sd3-toasts:is(:hover, :focus-within)')) sd3.placeToasts();
  };

  const remove = (box) => {
    const inside = box.contains(document.activeElement);
    const next = [box.nextElementSibling, box.previousElementSibling].find((el) => el && el.matches('.sd3-toast'));
    keep(open().filter((event) => !same(event)({ id: box.dataset.id, message: box.dataset.message })));
    box.remove();
    fold();
    if (inside && next) next.querySelector('.sd3-dismiss').focus();
  };

  const hideLater = (box, ms) => { // not while somebody reads it or is about to press something in it
    let timer = null;
    const stop = () => clearTimeout(timer);
    const begin = () => { stop(); timer = setTimeout(() => remove(box), ms); };
    for (const name of ['mouseenter', 'focusin']) box.addEventListener(name, stop);
    for (const name of ['mouseleave', 'focusout']) box.addEventListener(name, begin);
    begin();
  };

  const quiet = (event) => {
    localStorage.setItem('sd3-quiet', JSON.stringify([...new Set([...quieted(), event.id])]));
    for (const box of area().querySelectorAll('.sd3-toast')) if (box.dataset.id === event.id) remove(box);
    sd3.showQuieted();
  };

  const toast = (event, age) => {
    const box = sd3.element('div', `sd3-toast sd3-${event.severity}`);
    box.setAttribute('role', event.severity === 'error' ? 'alert' : 'status');
    box.dataset.id = event.id;
    box.dataset.message = event.message;
    box.dataset.seq = event.seq || '';
    box.dataset.server = event.server || '';
    box.dataset.job = event.job || '';
    const close = sd3.button('sd3-dismiss', '×', () => remove(box));
    close.setAttribute('aria-label', sd3.text('page.dismiss'));
    box.append(sd3.element('p', '', event.message), close);
    if (event.remedy) box.append(sd3.element('p', 'sd3-remedy', event.remedy));
    const buttons = sd3.element('div', 'sd3-buttons');
    buttons.append(...sd3.actions(event.buttons || [], undefined, () => remove(box), age).children);
    if (event.severity === 'warning' || event.severity === 'info') buttons.append(sd3.button('sd3-quiet', sd3.text('page.quiet'), () => quiet(event)));
    if (buttons.childElementCount > 0) box.append(buttons);
    box.addEventListener('keydown', (e) => { if (e.key === 'Escape') remove(box); });
    return box;
  };

  // An event of the server, as `GET events` has it.
  sd3.toast = (event, age = 0) => {
    if (event.severity !== 'error' && quieted().includes(event.id)) return;
    if (under && event.severity === 'info' && (STEPS.includes(event.id) || event.message === under.dataset.title)) return; // is said there
    const all = area();
    for (const box of all.querySelectorAll('.sd3-toast')) {
      if (same(event)({ id: box.dataset.id, message: box.dataset.message })) box.remove(); // the same again, of the next image
      else if (event.severity !== 'info' && STEPS.includes(box.dataset.id)) remove(box); // "Loading…" has had its answer
    }
    const box = toast(event, age);
    all.append(box);
    fold(sd3.replaceToasts);
    if (HIDE_MS[event.severity]) hideLater(box, box.querySelector('.sd3-action') ? OFFER_MS : HIDE_MS[event.severity]);
    else keep([...open().filter((other) => !same(event)(other)), event]);
  };

  // Failures that are over, by their numbers, whoever has put them right; and what another process of the server has said of itself. Not from
  // under the mouse: it is asked again.
  sd3.settle = (over, server) => {
    if (document.querySelector('#sd3-toasts:is(:hover, :focus-within)')) return;
    for (const box of document.querySelectorAll('#sd3-toasts .sd3-toast[data-server]')) {
      const same = box.dataset.server === server;
      if (box.dataset.server && (same ? over.includes(Number(box.dataset.seq)) : !box.dataset.job)) remove(box);
    }
  };

  // Work under way that can be ended: it stays as long as that lasts, whatever part of the page is looked at. "" ends it.
  let under = null;
  let put = ''; // away by the user, until something else is under way
  sd3.underWay = (title, text, fraction) => {
    if (title !== put) put = '';
    if (!title || put) {
      if (under) {
        under.remove();
        fold();
      }
      under = null;
      return;
    }
    if (!under) {
      under = sd3.element('div', 'sd3-toast sd3-info sd3-under-way');
      under.setAttribute('aria-live', 'off'); // each second has other numbers
      const close = sd3.button('sd3-dismiss', '×', () => { put = under.dataset.title; sd3.underWay(put); });
      close.setAttribute('aria-label', sd3.text('page.dismiss'));
      const buttons = sd3.element('div', 'sd3-buttons');
      buttons.append(sd3.button('sd3-action sd3-end', sd3.text('page.cancel'), () => sd3.act('cancel')));
      under.append(sd3.element('p'), close, sd3.element('progress'), buttons);
    }
    under.dataset.title = title;
    const words = [title, text].filter(Boolean).join(' ');
    const bar = under.querySelector('progress');
    if (under.firstChild.textContent !== words) under.firstChild.textContent = words;
    if (typeof fraction === 'number') bar.value = fraction; else bar.removeAttribute('value');
    bar.setAttribute('aria-label', words);
    if (!under.isConnected) {
      area().append(under);
      fold();
    }
  };

  // What the page itself has to say about something that was pressed.
  sd3.say = (message, severity = 'success') => sd3.toast({ id: 'page', severity, message, remedy: '', buttons: [] });
  sd3.fail = (error) => sd3.say(error.message, 'error');

  sd3.restoreToasts = () => open().forEach((event) => sd3.toast(event, Date.now() / 1000 - event.time));

  sd3.showQuieted = () => {
    const none = quieted().length === 0;
    for (const el of document.querySelectorAll('.sd3-again')) if (el.hidden !== none) el.hidden = none; // the same again would be a change
  };

  sd3.unquiet = () => {
    localStorage.removeItem('sd3-quiet');
    sd3.showQuieted();
    sd3.say(sd3.text('page.shown-again'));
  };
})();

// What is to be said of the job before Generate is pressed: a small chip with a sign and a few words, and all of it while that is pointed at
// or has the focus. Where all is well there is none. It takes no room of the page: it lies on top of it, where nothing of the host is.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const SIGNS = { refuse: '✗', change: '!', advice: 'i' }; // the worst first
  const GAP_PX = 4; // to the edge of the page
  const REST_MS = 150; // nothing has moved for so long
  const LOOK_MS = 1000; // between two looks whether something has moved of itself
  // What a person reads or presses. An area that holds others of these is not one of them, nor is an empty one.
  const TAKEN = 'button, input, textarea, select, label, a, img, video, canvas, progress, summary, span, p, h1, h2, h3, h4, li, td, th, [role=button], '
    + '[role=tab], .label-wrap, .sd3-panel, #sd3-toasts > *';

  const put = (el, near) => {
    const head = el.firstChild;
    const room = sd3.room(TAKEN);
    for (const small of [false, true]) { // the sign alone where there is no room for words
      el.classList.toggle('sd3-small', small);
      const { width, height } = head.getBoundingClientRect();
      const place = room(near.getBoundingClientRect(), width, height);
      el.classList.toggle('sd3-nowhere', !place); // the panel says it
      if (!place) continue;
      const [left, top] = place;
      Object.assign(el.style, { left: `${left}px`, top: `${top}px` });
      const more = el.lastChild;
      const wide = Math.min(384, innerWidth - 2 * GAP_PX);
      more.style.width = `${wide}px`;
      const beside = near.getBoundingClientRect();
      const over = top < beside.top && left + width > beside.left && left < beside.right; // below the chip is what is to be pressed next
      const sideways = over && left > wide;
      more.style.left = `${sideways ? -wide : Math.min(0, innerWidth - GAP_PX - wide - left)}px`;
      el.classList.toggle('sd3-sideways', sideways);
      el.classList.toggle('sd3-upwards', !sideways && top > innerHeight / 2);
      return;
    }
  };

  const make = (id) => {
    const el = sd3.element('div', 'sd3-chip');
    const head = sd3.button('sd3-chip-head', '', () => el.classList.remove('sd3-closed'));
    const more = sd3.element('div', 'sd3-chip-more');
    el.id = id;
    el.setAttribute('role', 'status');
    more.id = `${id}-more`;
    head.setAttribute('aria-describedby', more.id);
    el.append(head, more);
    el.addEventListener('keydown', (e) => { if (e.key === 'Escape') el.classList.add('sd3-closed'); });
    for (const name of ['focusout', 'mouseenter', 'mouseleave']) el.addEventListener(name, () => el.classList.remove('sd3-closed'));
    return el;
  };

  const rows = (worth, tab) => {
    const offered = new Set(); // what mends two things is offered once
    return worth.map((hint) => {
      const el = sd3.element('div', `sd3-chip-row sd3-${hint.severity}`);
      el.append(sd3.element('p', '', hint.sentence || hint.text));
      const buttons = hint.buttons.filter(({ id, fields }) => {
        const does = JSON.stringify([id, fields]);
        return !offered.has(does) && offered.add(does);
      });
      if (buttons.length > 0) el.append(sd3.actions(buttons, tab));
      return el;
    });
  };

  const shown = {}; // tab → its hints that are no praise

  // hints: of `GET check`.
  sd3.chip = (tab, hints) => {
    const id = `sd3-chip-${tab}`;
    const order = Object.keys(SIGNS);
    const worth = hints.filter((hint) => hint.severity in SIGNS).sort((a, b) => order.indexOf(a.severity) - order.indexOf(b.severity));
    const same = JSON.stringify(shown[tab] || []) === JSON.stringify(worth);
    shown[tab] = worth;
    let el = document.getElementById(id);
    if (worth.length === 0) {
      if (el) el.remove();
      return;
    }
    if (!el) {
      el = make(id);
      document.body.append(el);
    } else if (same) return;
    const [worst, ...others] = worth;
    const state = [...el.classList].filter((name) => ['sd3-small', 'sd3-upwards', 'sd3-sideways', 'sd3-closed', 'sd3-nowhere'].includes(name));
    el.className = ['sd3-chip', `sd3-${worst.severity}`, ...state].join(' ');
    const sign = sd3.element('b', '', SIGNS[worst.severity]);
    sign.setAttribute('aria-hidden', 'true');
    el.firstChild.replaceChildren(sign, sd3.element('span', '', worst.text), ...(others.length > 0 ? [sd3.element('small', '', `+${others.length}`)] : []));
    el.lastChild.replaceChildren(...rows(worth, tab));
    sd3.placeChips();
  };

  const covered = (el) => { // by another panel of the host, in which nobody thinks of Generate; not only scrolled away
    const box = el.getBoundingClientRect();
    if (box.right <= 0 || box.left >= innerWidth) return true;
    const top = sd3.under((Math.max(0, box.left) + Math.min(innerWidth, box.right)) / 2, (box.top + box.bottom) / 2);
    return Boolean(top) && !el.contains(top) && !top.contains(el);
  };

  sd3.placeChips = () => {
    for (const [tab, worth] of Object.entries(shown)) {
      const el = document.getElementById(`sd3-chip-${tab}`);
      const near = document.getElementById(`${tab}_generate`);
      if (!el || worth.length === 0) continue;
      el.hidden = !sd3.visible(near) || covered(near);
      if (!el.hidden && !el.matches(':hover, :focus-within')) put(el, near); // not away from under the mouse
    }
  };

  let resting = null;
  sd3.placeLater = () => { // many small changes are one
    clearTimeout(resting);
    resting = setTimeout(() => { sd3.placeChips(); sd3.replaceToasts(); }, REST_MS);
  };

  // Whether the chip is not where it should be any more: a panel that slides, a picture that comes and a Generate that is back tell nobody.
  const misplaced = (el, near) => {
    if (el.hidden !== (!sd3.visible(near) || covered(near))) return true;
    if (el.hidden || el.matches('.sd3-nowhere')) return false;
    const box = el.firstChild.getBoundingClientRect();
    if (box.right > innerWidth || box.bottom > innerHeight) return true;
    const [xs, ys] = [[box.left, box.left + box.width / 2, box.right - 1], [box.top, box.bottom - 1]];
    return xs.some((x) => ys.some((y) => {
      const under = sd3.under(x, y);
      return Boolean(under && under.closest(TAKEN));
    }));
  };

  sd3.keepPlaces = () => { // once all of ours is there
    let changed = true; // anything of the page: where nothing has, nothing has moved of itself
    const watching = new MutationObserver(() => { changed = true; });
    watching.observe(document.documentElement, { subtree: true, childList: true, attributes: true, attributeFilter: ['class', 'style', 'hidden', 'open'] });
    let next = 0; // a look at a page of SD.Next, of 55,000 elements, may take 0.3 s: no more than a tenth of the time is spent on that
    setInterval(() => {
      const started = performance.now();
      if (document.hidden || !changed || started < next) return;
      const wrong = Object.keys(shown).some((tab) => {
        const [el, near] = [document.getElementById(`sd3-chip-${tab}`), document.getElementById(`${tab}_generate`)];
        return el && near && misplaced(el, near);
      });
      if (wrong) sd3.placeChips();
      sd3.replaceToasts();
      watching.takeRecords(); // it was us
      changed = Boolean(document.querySelector('#sd3-toasts:is(:hover, :focus-within)')); // then it was left for later
      next = performance.now() + 9 * (performance.now() - started);
    }, LOOK_MS);

    window.addEventListener('resize', () => { sd3.placeLater(); sd3.placeToasts(); }); // these at once, or they may be outside
    document.addEventListener('scroll', sd3.placeLater, { capture: true, passive: true });
    document.addEventListener('click', sd3.placeLater, { capture: true, passive: true });
    document.addEventListener('load', sd3.placeLater, { capture: true }); // of a picture
    document.addEventListener('transitionend', sd3.placeLater, { capture: true, passive: true });
  };
})();

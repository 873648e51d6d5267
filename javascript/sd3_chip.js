// What is to be said of the job before Generate is pressed: a small chip with a sign and a few words, and all of it while that is pointed at
// or has the focus. Where all is well there is none. It takes no room of the page: it lies on top of it, where nothing of the host is.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const SIGNS = { refuse: '✗', change: '!', advice: 'i' }; // the worst first
  const GAP_PX = 4; // to whatever is beside it
  const STEP_PX = 6; // between the places that are tried
  const REST_MS = 150; // nothing has moved for so long
  // What a person reads or presses. An area that holds others of these is not one of them, nor is an empty one.
  const TAKEN = 'button, input, textarea, select, label, a, img, video, canvas, progress, summary, span, p, h1, h2, h3, h4, li, td, th, [role=button], '
    + '[role=tab], .label-wrap, #sd3-toasts > *';

  const clipped = (el, box) => { // to what is seen of it: much of SD.Next lies scrolled away in an area of its own
    let { left, top, right, bottom } = box;
    for (let area = el.parentElement; area && area !== document.body; area = area.parentElement) {
      if (getComputedStyle(area).overflow === 'visible') continue;
      const edge = area.getBoundingClientRect();
      left = Math.max(left, edge.left); top = Math.max(top, edge.top);
      right = Math.min(right, edge.right); bottom = Math.min(bottom, edge.bottom);
      if (right <= left || bottom <= top) return null;
    }
    return { left, top, right, bottom };
  };

  const taken = () => {
    const found = [];
    for (const el of document.querySelectorAll(TAKEN)) {
      const box = el.getBoundingClientRect();
      if (box.width < 1 || box.height < 1 || box.right < 0 || box.bottom < 0 || box.left > innerWidth || box.top > innerHeight) continue;
      if (el.closest('.sd3-chip') || !el.checkVisibility({ visibilityProperty: true })) continue;
      const seen = clipped(el, box);
      if (seen) found.push(seen);
    }
    return found;
  };

  const free = (boxes, left, top, width, height) => boxes.every((box) => box.right + GAP_PX <= left || box.left - GAP_PX >= left + width
    || box.bottom + GAP_PX <= top || box.top - GAP_PX >= top + height);

  // The free place that is nearest to something of the host: [left, top], null where there is none.
  const nearest = (boxes, near, width, height) => {
    let best = null;
    let least = Infinity;
    for (let top = GAP_PX; top + height <= innerHeight - GAP_PX; top += STEP_PX) {
      const down = Math.max(near.top - top - height, top - near.bottom, 0);
      if (down >= least) continue;
      for (let left = GAP_PX; left + width <= innerWidth - GAP_PX; left += STEP_PX) {
        const away = Math.hypot(down, Math.max(near.left - left - width, left - near.right, 0)) + Math.abs(left - near.left) / 1000;
        if (away < least && free(boxes, left, top, width, height)) {
          best = [left, top];
          least = away;
        }
      }
    }
    return best;
  };

  const put = (el, near) => {
    const head = el.firstChild;
    const boxes = taken();
    for (const small of [false, true]) { // the sign alone where there is no room for words
      el.classList.toggle('sd3-small', small);
      const { width, height } = head.getBoundingClientRect();
      const place = nearest(boxes, near.getBoundingClientRect(), width, height);
      el.classList.toggle('sd3-nowhere', !place); // the panel says it
      if (!place) continue;
      const [left, top] = place;
      Object.assign(el.style, { left: `${left}px`, top: `${top}px` });
      const more = el.lastChild;
      const room = Math.min(384, innerWidth - 2 * GAP_PX);
      more.style.width = `${room}px`;
      more.style.left = `${Math.min(0, innerWidth - GAP_PX - room - left)}px`;
      el.classList.toggle('sd3-upwards', top > innerHeight / 2);
      return;
    }
  };

  const make = (id) => {
    const el = sd3.element('div', 'sd3-chip');
    const head = sd3.button('sd3-chip-head', '', () => el.classList.remove('sd3-closed'));
    const more = sd3.element('div', 'sd3-chip-more');
    el.id = id;
    head.setAttribute('role', 'status');
    more.id = `${id}-more`;
    head.setAttribute('aria-describedby', more.id);
    el.append(head, more);
    el.addEventListener('keydown', (e) => { if (e.key === 'Escape') el.classList.add('sd3-closed'); });
    for (const name of ['focusout', 'mouseenter', 'mouseleave']) el.addEventListener(name, () => el.classList.remove('sd3-closed'));
    return el;
  };

  const row = (tab) => (hint) => {
    const el = sd3.element('div', `sd3-chip-row sd3-${hint.severity}`);
    el.append(sd3.element('p', '', hint.sentence || hint.text));
    if (hint.buttons.length > 0) el.append(sd3.actions(hint.buttons, tab));
    return el;
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
    const state = [...el.classList].filter((name) => ['sd3-small', 'sd3-upwards', 'sd3-closed', 'sd3-nowhere'].includes(name));
    el.className = ['sd3-chip', `sd3-${worst.severity}`, ...state].join(' ');
    const sign = sd3.element('b', '', SIGNS[worst.severity]);
    sign.setAttribute('aria-hidden', 'true');
    el.firstChild.replaceChildren(sign, sd3.element('span', '', worst.text), ...(others.length > 0 ? [sd3.element('small', '', `+${others.length}`)] : []));
    el.lastChild.replaceChildren(...worth.map(row(tab)));
    sd3.placeChips();
  };

  sd3.placeChips = () => {
    for (const [tab, worth] of Object.entries(shown)) {
      const el = document.getElementById(`sd3-chip-${tab}`);
      const near = document.getElementById(`${tab}_generate`);
      if (!el || worth.length === 0) continue;
      el.hidden = !sd3.visible(near);
      if (!el.hidden && !el.matches(':hover, :focus-within')) put(el, near); // not away from under the mouse
    }
  };

  let resting = null;
  sd3.placeLater = () => { // many small changes are one
    clearTimeout(resting);
    resting = setTimeout(() => { sd3.placeChips(); sd3.placeToasts(); }, REST_MS);
  };

  window.addEventListener('resize', sd3.placeLater);
  document.addEventListener('scroll', sd3.placeLater, { capture: true, passive: true });
  document.addEventListener('click', sd3.placeLater, { capture: true, passive: true });
  document.addEventListener('transitionend', sd3.placeLater, { capture: true, passive: true });
})();

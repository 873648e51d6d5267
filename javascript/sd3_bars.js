// What the next job takes of the memory, a bar for each phase; and the drop-down of the text encoder, whose entries say what they would
// mean here. The bars are those of the entry that is looked at, before it is chosen.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const AS_SET = 'As in Settings';
  const LOOK_MS = 120; // the mouse passes over entries on its way to another one
  const MARKS = { fits: '✓', tight: '!', no: '✗', unknown: '?' };
  const ENTRIES_PX = 80; // of a list: two entries at least, the rest is scrolled to
  const EDGE_PX = 4; // to the edge of the window
  const ROOM = 1.12; // of the width, relative to the line: what is over it has to be seen, too

  const part = (tab, name) => document.querySelector(`#script_${tab}_sd3_deploy_${name}`);

  const segment = (one, whole, unit) => {
    const el = sd3.element('span', `sd3-segment sd3-part-${one.part}`);
    el.style.width = `${100 * one.bytes / whole}%`;
    el.title = `${one.name} ${sd3.size(one.bytes, unit)}`;
    el.dataset.bytes = one.bytes;
    return el;
  };

  const bar = (one, mixed, most, unit) => {
    const el = sd3.element('div', `sd3-bar sd3-${one.answer}`);
    el.dataset.phase = one.phase;
    el.setAttribute('role', 'img');
    el.setAttribute('aria-label', one.sentence);
    const words = sd3.element('div', 'sd3-bar-words');
    const [need, usable] = [one.need, one.usable].map((bytes) => sd3.size(bytes, unit));
    const numbers = one.usable ? sd3.text('page.bars.of', { need: need.replace(` ${unit.name}`, ''), usable }) : need;
    const name = sd3.text(`page.run.${one.phase}`);
    words.append(sd3.element('span', '', mixed ? `${name} (${one.place})` : name), sd3.element('span', '', `${MARKS[one.answer]} ${numbers}`));
    words.lastChild.title = one.short;
    const track = sd3.element('div', 'sd3-track');
    const whole = one.usable ? one.usable * most : most; // bytes of the whole width
    track.append(...one.segments.map((each) => segment(each, whole, unit)));
    if (one.usable) {
      const line = sd3.element('span', 'sd3-limit');
      line.style.insetInlineStart = `${100 / most}%`;
      line.title = sd3.text('page.bars.limit');
      track.append(line);
    }
    el.append(words, track);
    return el;
  };

  const legend = (bars) => {
    const names = new Map(bars.flatMap((one) => one.segments.map((each) => [each.part, each.name])));
    const answers = new Set(bars.map((one) => one.answer)); // where the bars have more colours than one, the patterns alone say what is what
    const list = sd3.element('ul', ['sd3-legend sd3-list', ...(answers.size === 1 ? [`sd3-${bars[0].answer}`] : [])].join(' '));
    list.setAttribute('aria-hidden', 'true'); // each bar says its own
    for (const [id, name] of names) {
      const row = sd3.element('li');
      row.append(sd3.element('span', `sd3-swatch sd3-part-${id}`), name);
      list.append(row);
    }
    if (bars.some((one) => one.usable)) {
      const row = sd3.element('li');
      row.append(sd3.element('span', 'sd3-swatch-limit'), sd3.text('page.bars.limit'));
      list.append(row);
    }
    list.title = sd3.text('page.bars.hint');
    return list;
  };

  const draw = ([bars, encoder, looking]) => {
    const places = new Set(bars.map((one) => one.place));
    const known = bars.filter((one) => one.usable);
    const most = known.length > 0 ? Math.max(ROOM, ...known.map((one) => one.need / one.usable)) : Math.max(1, ...bars.map((one) => one.need));
    const unit = sd3.unit(...bars.flatMap((one) => [one.need, one.usable]));
    const el = sd3.element('div', looking ? 'sd3-bars sd3-looking' : 'sd3-bars');
    const what = { encoder: sd3.shown(encoder), place: [...places].join(', ') };
    const caption = sd3.element('p', 'sd3-caption', sd3.text('page.bars', what));
    if (looking) caption.append(sd3.element('small', '', sd3.text('page.bars.looking')));
    el.append(caption, ...bars.map((one) => bar(one, places.size > 1, most, unit)), legend(bars), sd3.element('p', 'sd3-bars-hint', sd3.text('page.bars.hint')));
    return el;
  };

  const show = (tab, answer, looking) => {
    for (const area of document.querySelectorAll(`#script_${tab}_sd3_deploy_memory .sd3-memory`)) {
      area.style.minHeight = looking ? `${area.offsetHeight}px` : ''; // or the list moves, and another entry is under the mouse
      const { bars = [], encoder, line, advice, change, verdict, recommendation } = answer;
      const why = change && !recommendation ? '' : answer.why; // no encoder fits: that is what makes one fit, as a second sentence
      const said = change ? [change.sentence] : !verdict || ['no', 'unknown'].includes(verdict.answer) ? [line] : []; // the rest is in the bars
      sd3.fill(area, [bars, encoder, looking, said, why], () => {
        const hint = sd3.element('p', 'sd3-why', why);
        hint.title = advice || '';
        return [...(bars.length > 0 ? [draw([bars, encoder, looking])] : []), ...said.map((text) => sd3.element('p', '', text)), ...(why ? [hint] : [])];
      });
    }
    const list = openList(tab);
    if (list) openDownwards(tab, part(tab, 'encoder'), list); // its field may be further down now
  };

  sd3.showMemory = (tab, answer) => {
    entries(tab, answer.choices || {});
    if (!looked[tab]) show(tab, answer, false);
  };

  // The drop-down. gradio has the stored value of an entry as its text, and nothing else of it.

  const looked = {}; // tab → the entry that is looked at
  const chosen = {}; // tab → the one that was chosen when its list was opened
  const known = {}; // tab → the last value that is one of the entries, while somebody types to find another
  const verdicts = {}; // tab → name → what the server said of it

  const lines = (tab) => [...document.querySelectorAll(`#script_${tab}_sd3_deploy_entries .sd3-entries li`)];

  // The stored name of the text encoder that is chosen for this page; null where it is that of the settings.
  sd3.encoder = (tab) => {
    const field = part(tab, 'encoder')?.querySelector('input');
    const found = field && lines(tab).map((el) => el.dataset.name).find((name) => [name, sd3.shown(name)].includes(field.value));
    if (found) known[tab] = found;
    return known[tab] && known[tab] !== AS_SET ? known[tab] : null;
  };

  let answered = 'txt2img'; // the tab of the latest answer, which the settings show as well
  const settings = () => document.querySelectorAll('#setting_sd3_text_encoder');

  // Back to the encoder of the settings, by the events of a press: gradio keeps its value to itself.
  sd3.takeSettings = async (tab) => {
    const el = part(tab, 'encoder');
    const field = el?.querySelector('input');
    if (!field || !sd3.encoder(tab)) return;
    field.dispatchEvent(new FocusEvent('focus'));
    for (let frames = 0; frames < 60 && !el.querySelector(`li[data-value="${AS_SET}"]`); frames += 1) await new Promise(requestAnimationFrame);
    el.querySelector(`li[data-value="${AS_SET}"]`)?.dispatchEvent(new MouseEvent('mousedown', { bubbles: true, cancelable: true }));
    field.dispatchEvent(new FocusEvent('blur'));
  };

  const entries = (tab, choices) => {
    verdicts[tab] = Object.fromEntries(Object.values(choices).map((one) => [one.name, one]));
    answered = tab;
    decorate(tab);
    settings().forEach((el) => decorate(tab, el));
  };

  const decorate = (tab, list = part(tab, 'encoder')) => { // what an entry says is an attribute: gradio reuses its elements for other entries
    const notes = new Map(lines(tab).map((el) => [el.dataset.name, el.textContent]));
    for (const el of list?.querySelectorAll('li[data-value]') || []) {
      const name = el.dataset.value;
      const one = (verdicts[tab] || {})[name];
      const shown = sd3.shown(name);
      const note = (notes.get(name) || '').replace(shown, '');
      const said = `${note}${one ? ` · ${MARKS[one.answer]} ${one.short}` : ''}`;
      if (el.dataset.sd3 !== said) el.dataset.sd3 = said;
      if (el.getAttribute('aria-label') !== shown + said) el.setAttribute('aria-label', shown + said);
      el.classList.toggle('sd3-entry', true); // not add(), which counts as a change each time
      el.classList.toggle('sd3-recommended', Boolean(one && one.recommended));
    }
  };

  let timer = null;
  const look = (tab, name) => {
    if (looked[tab] === name) return;
    looked[tab] = name;
    clearTimeout(timer);
    if (!name || name === chosen[tab]) { // what is chosen is not looked at
      show(tab, sd3.estimate(tab), false);
      return;
    }
    timer = setTimeout(async () => {
      const values = new URLSearchParams(sd3.memoryQuestion(tab));
      const meant = name === AS_SET ? sd3.nextEncoder() : name;
      if (meant) values.set('encoder', meant);
      else values.delete('encoder');
      const answer = await sd3.get(`memory?${values}`).catch((error) => { console.debug(String(error)); });
      if (answer && looked[tab] === name) show(tab, answer, true);
    }, LOOK_MS);
  };

  const scroller = (el) => {
    let found = el.parentElement;
    while (found && !(found.scrollHeight > found.clientHeight && /auto|scroll/.test(getComputedStyle(found).overflowY))) found = found.parentElement;
    return found || document.scrollingElement;
  };

  const openList = (tab) => part(tab, 'encoder')?.querySelector('li[data-value]')?.parentElement;

  // Below the field, as tall as there is room, because the bars above it follow the entry that is looked at. gradio opens its list where there
  // is more room. Once it opens, the page is scrolled as far as the bars stay in sight, and further where nothing of the list would be seen.
  const openDownwards = (tab, el, list) => {
    const input = el.querySelector('input');
    const field = input.closest('.wrap') || input; // as it is drawn
    const seen = sd3.around(list); // ModernUI's column ends above the foot of the page, and cuts a list that is longer
    const end = Math.min(innerHeight, seen.bottom) - EDGE_PX;
    const below = () => end - field.getBoundingClientRect().bottom;
    list.classList.toggle('sd3-scrolled', true);
    if (!el.dataset.sd3Scrolled) {
      el.dataset.sd3Scrolled = 'true';
      const bars = document.querySelector(`#script_${tab}_sd3_deploy_memory .sd3-bars`);
      const spare = bars ? bars.getBoundingClientRect().top - Math.max(0, seen.top) - EDGE_PX : 0;
      scroller(el).scrollTop += Math.ceil(Math.max(0, Math.min(spare, list.scrollHeight - below()), 2 * ENTRIES_PX - below()));
    }
    if (below() < ENTRIES_PX) return; // a very low window
    const top = end - below();
    Object.assign(list.style, { top: `${top}px`, bottom: 'auto' });
    list.style.setProperty('max-height', `${below()}px`, 'important'); // ModernUI has a height of its own
    const away = list.getBoundingClientRect().top - top; // where it is placed within something: in ModernUI
    if (away) list.style.top = `${top - away}px`;
  };

  const watch = (tab) => {
    const el = part(tab, 'encoder');
    if (!el || el.dataset.sd3Watched) return;
    el.dataset.sd3Watched = 'true';
    new MutationObserver(() => {
      decorate(tab);
      const list = openList(tab);
      const active = el.querySelector('li.active, li:hover');
      if (!list) {
        look(tab, null);
        sd3.follow();
        requestAnimationFrame(() => sd3.showHeadline(tab)); // also where the same question has the same answer
      } else {
        requestAnimationFrame(() => openDownwards(tab, el, list)); // gradio has placed it by then
        if (active) look(tab, active.dataset.value);
      }
    }).observe(el, { subtree: true, childList: true, attributes: true, attributeFilter: ['class', 'data-value'] });
    el.addEventListener('focusin', () => {
      delete el.dataset.sd3Scrolled;
      chosen[tab] = sd3.encoder(tab) || AS_SET;
    });
    el.addEventListener('mouseover', (e) => {
      const entry = e.target.closest('li[data-value]');
      if (entry) look(tab, entry.dataset.value);
    });
  };

  const watchSettings = (el) => { // the same entries, without bars beside them
    if (el.dataset.sd3Watched) return;
    el.dataset.sd3Watched = 'true';
    new MutationObserver(() => {
      decorate(answered, el);
      el.querySelector('li[data-value]')?.parentElement.classList.toggle('sd3-scrolled', true);
    }).observe(el, { subtree: true, childList: true, attributes: true, attributeFilter: ['data-value'] });
  };

  sd3.watchEncoders = (tabs) => {
    tabs.forEach(watch);
    settings().forEach(watchSettings);
  };
})();

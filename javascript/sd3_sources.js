// What each source of T5's weights is and what it costs, as the settings are being filled in, before they are applied.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const GAP_MS = 500; // while somebody types: files on the server's disk are opened
  const PAUSE_MS = 1500; // nobody types any more: a repository is asked over the network
  const FIELDS = { encoder: 'text_encoder', weights: 'weights', file: 'weights_file', repository: 'weights_repository', keep: 'weights_keep' };

  const value = (key) => {
    const el = document.querySelector(`#setting_sd3_${key} :is(input, textarea)`);
    return el && (el.type === 'checkbox' ? el.checked : el.value);
  };

  const question = () => { // a field that this page does not have is as it is set
    const found = Object.entries(FIELDS).map(([name, key]) => [name, value(key)]);
    return Object.fromEntries(found.filter(([, one]) => one !== null));
  };

  const row = (one) => {
    const el = sd3.element('li', `sd3-source sd3-${one.id ? 'failed' : one.complete ? 'ok' : 'unknown'}`);
    if (one.chosen) el.setAttribute('aria-current', 'true');
    el.append(sd3.element('b', '', sd3.shown(one.kind)), sd3.element('span', '', one.name), sd3.element('p', '', one.pending ? sd3.text('page.sources.looking') : one.text));
    for (const text of [one.cost, one.chosen ? one.remedy : ''].filter(Boolean)) el.append(sd3.element('p', 'sd3-remedy', text));
    return el;
  };

  const look = (now, ask) => sd3.post('sources', { ...now, ask })
    .catch((error) => (error.status === 422 ? null : Promise.reject(error))); // half a word

  const show = (rows) => {
    const list = sd3.element('ul');
    list.append(...rows.map(row));
    return [list];
  };

  let asked = '';
  let running = false;

  // anew: something has happened on the server, the same question may have another answer.
  sd3.showSources = async (anew = false) => {
    if (anew) asked = '';
    const places = [...document.querySelectorAll('.sd3-sources')];
    if (running || !places.some(sd3.visible)) return; // it looks again when it is done
    running = true;
    try {
      for (let now = question(); JSON.stringify(now) !== asked; now = question()) {
        asked = JSON.stringify(now);
        for (const el of places) {
          el.setAttribute('aria-busy', 'true');
          if (!el.firstChild) el.textContent = sd3.text('page.sources.looking');
        }
        const rows = await look(now, false);
        if (rows) for (const el of places) sd3.fill(el, rows, show);
        const pending = rows && rows.some((one) => one.pending);
        await new Promise((done) => { setTimeout(done, pending ? PAUSE_MS : GAP_MS); });
        if (!pending || JSON.stringify(question()) !== asked) continue;
        const all = await look(now, true);
        if (all && JSON.stringify(question()) === asked) for (const el of places) sd3.fill(el, all, show);
      }
    } catch (error) {
      asked = ''; // the next key asks again
      console.debug(String(error));
    } finally {
      for (const el of places) el.removeAttribute('aria-busy');
      running = false;
    }
  };
})();

// The extension's own API, with the login of the host, and the sentences that the page says by itself.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const base = () => window.api || '/sdapi/v1';
  const send = (path, options) => (window.authFetch || fetch)(`${base()}/${path}`, options);

  // The answer, if it is none of an error. Throws an Error with what the server says, which names the remedy.
  const checked = async (res, path) => {
    if (res && res.ok) return res;
    const body = res ? await res.json().catch(() => ({})) : {};
    const error = new Error(typeof body.detail === 'string' ? body.detail : sd3.text('page.failed', { error: `${path}: ${res ? res.status : '–'}` }));
    error.status = res ? res.status : 0;
    throw error;
  };

  const read = async (res, path) => {
    const found = await checked(res, path);
    return found.status === 204 ? null : found.json();
  };

  const json = (method, body) => ({ method, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body || {}) });

  sd3.get = async (path) => read(await send(`sd3/${path}`), path);
  sd3.post = async (path, body) => read(await send(`sd3/${path}`, json('POST', body)), path);
  sd3.host = async (path) => read(await send(path, json('POST')), path); // a route of the host itself
  sd3.readable = async (path) => (await checked(await send(`sd3/${path}`), path)).text();

  const CHOSEN = '#setting_sd3_text_encoder input, #setting_sd3_weights input, [id$="_sd3_deploy_encoder"] input'; // drop-downs, whose entries have no words of their own
  let texts = {};
  let labels = {};
  let names = {};
  let asked = null;

  sd3.text = (id, values = {}) => {
    const sentence = texts[id] || (values.count === 1 && texts[`${id}.one`]) || texts[`${id}.other`] || id;
    return sentence.replace(/{(\w+)}/g, (all, name) => (name in values ? values[name] : all));
  };

  // Once for a page; when the server was not there, the next one who needs it asks again.
  sd3.language = () => {
    asked = asked || sd3.get('texts').then((answer) => { ({ texts, labels, names } = answer); }).catch((err) => { asked = null; throw err; });
    return asked;
  };

  sd3.shown = (value) => names[value] || value; // of a setting, as the screen calls it

  // gradio builds the page once, in the language of the server: what is ours in it is said again in the one of the browser.
  sd3.translate = () => {
    const known = { ...names, ...labels };
    if (Object.keys(known).length === 0) return;
    for (const area of document.querySelectorAll('.sd3-panel, #settings_section_row_sd3_deploy, [id^="setting_sd3_"], .sd3-choices')) {
      const walker = document.createTreeWalker(area, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const said = known[walker.currentNode.nodeValue.trim()];
        if (said) walker.currentNode.nodeValue = said;
      }
      for (const el of area.querySelectorAll(CHOSEN)) { // gradio keeps the value elsewhere: this is what is read of it
        if (names[el.value] && el !== document.activeElement) el.value = names[el.value];
      }
    }
  };
})();

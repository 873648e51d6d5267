// Elements of the page, made so that nothing in a text is ever taken for HTML: prompts, file names and lines of logs come through here.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};

  sd3.element = (tag, className = '', text = '') => {
    const el = document.createElement(tag);
    if (className) el.className = className;
    el.textContent = text;
    return el;
  };

  sd3.button = (className, text, work) => {
    const el = sd3.element('button', className, text);
    el.type = 'button';
    el.addEventListener('click', work);
    return el;
  };

  // Sizes as the server writes them (sd3deploy/units.py): what stands side by side is in the unit of the largest of it, and what is nothing
  // in a row is a dash.
  const UNITS = [{ name: 'GB', one: 1e9, from: 1e8, digits: 1 }, { name: 'MB', one: 1e6, from: 1e5, digits: 1 }, { name: 'kB', one: 1e3, from: 0, digits: 0 }];
  sd3.unit = (...bytes) => UNITS.find((unit) => Math.max(...bytes) >= unit.from);
  sd3.size = (bytes, unit = sd3.unit(bytes)) => {
    const least = 10 ** -unit.digits;
    const number = bytes / unit.one < least / 2 ? `<${least}` : (bytes / unit.one).toFixed(unit.digits);
    return bytes ? `${number} ${unit.name}` : '–';
  };

  // heads: of the columns, where they need any.
  sd3.table = (rows, heads = []) => {
    const el = sd3.element('table', 'sd3-parts');
    const head = heads.length > 0 ? el.createTHead().insertRow() : null;
    for (const text of heads) {
      const cell = sd3.element('th', '', text);
      cell.scope = 'col';
      head.append(cell);
    }
    const body = el.createTBody();
    for (const cells of rows) {
      const row = body.insertRow();
      for (const text of cells) row.insertCell().textContent = text;
    }
    return el;
  };

  // Replace what is in an element only when it is something else: a screen reader would read it out again, and a selection would be lost.
  sd3.fill = (el, data, make) => {
    const key = JSON.stringify(data);
    if (el.dataset.shown === key) return;
    el.dataset.shown = key;
    el.replaceChildren(...make(data));
  };

  // Scroll to what somebody has asked for, where it is out of sight.
  sd3.reveal = (el) => { if (sd3.visible(el)) el.scrollIntoView({ block: 'nearest' }); };

  sd3.visible = (el) => Boolean(el && el.getClientRects().length > 0); // what is fixed has no offsetParent
})();

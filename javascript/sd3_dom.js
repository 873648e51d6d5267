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

  sd3.gigabytes = (bytes) => (bytes >= 1e8 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`);

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

  sd3.visible = (el) => Boolean(el && el.offsetParent);
})();

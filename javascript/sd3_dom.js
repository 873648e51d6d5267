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

  sd3.table = (rows) => {
    const el = sd3.element('table', 'sd3-parts');
    for (const cells of rows) {
      const row = el.insertRow();
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

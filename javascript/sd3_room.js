// Where something of ours can lie on the page without covering what is there.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const GAP_PX = 4; // to whatever is beside it
  const CELL_PX = 4; // of the raster in which a place is looked for

  const EDGE = { left: -Infinity, top: -Infinity, right: Infinity, bottom: Infinity };
  const within = (a, b) => ({ left: Math.max(a.left, b.left), top: Math.max(a.top, b.top), right: Math.min(a.right, b.right), bottom: Math.min(a.bottom, b.bottom) });

  // What is seen of the inside of an element: much of SD.Next lies scrolled away in an area of its own, and an open list lies over all of them.
  // known: of the elements before.
  const inside = (el, known) => {
    if (!el || el === document.body) return EDGE;
    if (!known.has(el)) {
      const area = around(el, known);
      known.set(el, getComputedStyle(el).overflow === 'visible' ? area : within(area, el.getBoundingClientRect()));
    }
    return known.get(el);
  };

  // Where an element would be seen. What is placed by itself is cut by nothing of what it only lies in: so is a column of ModernUI.
  const around = (el, known) => {
    const { position } = getComputedStyle(el);
    return position === 'fixed' ? EDGE : inside(position === 'absolute' ? el.offsetParent : el.parentElement, known);
  };
  sd3.around = (el) => around(el, new Map());

  // What of the host lies there. What is ours lies over everything; to ask for all that lies there is slow on a page of SD.Next.
  sd3.under = (x, y) => {
    const ours = (el) => el.closest('[id^="sd3-"]');
    const top = document.elementFromPoint(x, y);
    return top && ours(top) ? document.elementsFromPoint(x, y).find((el) => !ours(el)) : top;
  };

  // Whether it is what a press at its middle finds: something else may lie over it.
  const reached = (el, seen) => {
    const top = sd3.under((seen.left + seen.right) / 2, (seen.top + seen.bottom) / 2);
    return !top || el.contains(top) || top.contains(el);
  };

  // What is seen of the elements that match: [element, box]. pressed: of those that can be pressed where they are, and without our own messages.
  const boxes = (selector, pressed) => {
    const known = new Map();
    const found = [];
    const page = { left: 0, top: 0, right: innerWidth, bottom: innerHeight };
    for (const el of document.querySelectorAll(selector)) {
      const box = el.getBoundingClientRect();
      if (box.width < 1 || box.height < 1 || box.right < 0 || box.bottom < 0 || box.left > innerWidth || box.top > innerHeight) continue;
      if (el.closest(pressed ? '#sd3-toasts' : '.sd3-chip') || !el.checkVisibility({ visibilityProperty: true })) continue;
      const seen = within(within(box, page), around(el, known));
      if (seen.right <= seen.left || seen.bottom <= seen.top) continue;
      if (!pressed || el.closest('.sd3-chip') || reached(el, seen)) found.push([el, seen]);
    }
    return found;
  };

  // How many cells of CELL_PX are taken from the corner of the page to each one: so the number in any rectangle is a sum of four.
  const raster = (taken) => {
    const [columns, rows] = [Math.ceil(innerWidth / CELL_PX), Math.ceil(innerHeight / CELL_PX)];
    const wide = columns + 1;
    const cells = new Int32Array(wide * (rows + 1));
    const at = (px, most) => Math.max(0, Math.min(most, px));
    for (const box of taken) { // where each begins and ends; added up, how many lie on each cell
      const left = at(Math.floor((box.left - GAP_PX) / CELL_PX), columns);
      const right = at(Math.ceil((box.right + GAP_PX) / CELL_PX), columns);
      const top = at(Math.floor((box.top - GAP_PX) / CELL_PX), rows);
      const bottom = at(Math.ceil((box.bottom + GAP_PX) / CELL_PX), rows);
      cells[top * wide + left] += 1;
      cells[top * wide + right] -= 1;
      cells[bottom * wide + left] -= 1;
      cells[bottom * wide + right] += 1;
    }
    const total = new Int32Array(wide * (rows + 1));
    for (let y = 0; y < rows; y += 1) {
      for (let x = 0; x < columns; x += 1) {
        const i = y * wide + x;
        cells[i] += (x ? cells[i - 1] : 0) + (y ? cells[i - wide] : 0) - (x && y ? cells[i - wide - 1] : 0);
        total[i + wide + 1] = Number(cells[i] > 0) + total[i + wide] + total[i + 1] - total[i];
      }
    }
    const count = (x, y, w, h) => total[(y + h) * wide + x + w] - total[y * wide + x + w] - total[(y + h) * wide + x] + total[y * wide + x];
    return { columns, rows, taken: count };
  };

  // The free place that is nearest to something of the host: [left, top], null where there is none.
  const nearest = (cells, near, width, height) => {
    const [w, h] = [Math.ceil(width / CELL_PX), Math.ceil(height / CELL_PX)];
    let best = null;
    let least = Infinity;
    for (let y = 1; y + h < cells.rows; y += 1) {
      const top = y * CELL_PX;
      const down = Math.max(near.top - top - height, top - near.bottom, 0);
      if (down >= least) continue;
      for (let x = 1; x + w < cells.columns; x += 1) {
        const left = x * CELL_PX;
        const away = Math.hypot(down, Math.max(near.left - left - width, left - near.right, 0)) + Math.abs(left - near.left) / 1000;
        if (away < least && cells.taken(x, y, w, h) === 0) {
          best = [left, top];
          least = away;
        }
      }
    }
    return best;
  };

  // Nothing of what matches is covered there: a function of (near, width, height), and of a selector where only those of them that match it
  // too are in the way. See `boxes` and `nearest`.
  sd3.room = (selector, pressed = false) => {
    const found = boxes(selector, pressed); // looked for once: SD.Next has ten thousand elements that match
    const cells = {};
    return (near, width, height, those = selector) => {
      cells[those] = cells[those] || raster(found.filter(([el]) => el.matches(those)).map(([, box]) => box));
      return nearest(cells[those], near, width, height);
    };
  };
})();

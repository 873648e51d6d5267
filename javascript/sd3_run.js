// The memory of the last run: a line over time for what was taken, beside what the estimate had said, in the colours of the page.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const HEIGHT = 150; // px, of all of it
  const SPACE = { left: 30, right: 4, top: 16, bottom: 16 }; // px around the lines: numbers, and the names of phases
  const LETTER = 6; // px of one, about
  const LINES = ['allocated', 'reserved', 'used'];

  const svg = (tag, attributes, text = '') => {
    const el = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) el.setAttribute(name, value);
    el.textContent = text;
    return el;
  };

  const phase = (name) => sd3.text(`page.run.${name}`);

  // What of a run is drawn. On a processor it is what the process has taken above what the server itself takes: that is what is estimated.
  const series = (run) => {
    const there = LINES.filter((name) => run.readings[name].some(Boolean));
    if (there.length > 0) return there.map((name) => ({ name, values: run.readings[name] }));
    return [{ name: run.base > 0 ? 'model' : 'ram', values: run.readings.ram.map((bytes) => Math.max(0, bytes - run.base)) }];
  };

  const stretches = (run) => { // of one phase each, in seconds
    const begun = run.marks.filter((mark, n) => n === 0 || run.marks[n - 1].phase !== mark.phase);
    return begun.map((mark, n) => ({ phase: mark.phase, from: mark.at, to: n + 1 < begun.length ? begun[n + 1].at : run.seconds }));
  };

  const step = (top) => { // of the numbers at the side: three or four of them
    const rough = top / 3;
    const ten = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 5, 10].map((n) => n * ten).find((n) => n >= rough);
  };

  const highestOf = (run) => Math.max(1e6, ...series(run).flatMap((one) => one.values), ...Object.values(run.expected || {}));
  const unitOf = (run) => sd3.unit(highestOf(run)); // of all that is drawn and of the table below it
  const isNear = (run) => run.usable && run.usable < 1.6 * highestOf(run); // a limit that is far away would press everything down

  const picture = (run, width, read) => {
    const lines = series(run);
    const expected = run.expected || {};
    const highest = highestOf(run);
    const near = isNear(run);
    const unit = unitOf(run);
    const top = 1.08 * (near ? Math.max(highest, run.usable) : highest);
    const seconds = Math.max(run.seconds, 0.1);
    const x = (at) => SPACE.left + (width - SPACE.left - SPACE.right) * Math.min(1, at / seconds);
    const y = (bytes) => HEIGHT - SPACE.bottom - (HEIGHT - SPACE.top - SPACE.bottom) * bytes / top;
    const el = svg('svg', { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: 'img', tabindex: 0, 'aria-label': sd3.text('page.plot', { run: run.title }) });
    stretches(run).forEach((one, n) => {
      const wide = x(one.to) - x(one.from);
      const band = svg('rect', { x: x(one.from), y: SPACE.top, width: Math.max(0, wide), height: HEIGHT - SPACE.top - SPACE.bottom, class: `sd3-band${n % 2 ? ' sd3-odd' : ''}` });
      el.append(band);
      if (wide > phase(one.phase).length * LETTER) el.append(svg('text', { x: x(one.from) + 2, y: SPACE.top - 5 }, phase(one.phase)));
      if (expected[one.phase]) el.append(svg('line', { x1: x(one.from), x2: x(one.to), y1: y(expected[one.phase]), y2: y(expected[one.phase]), class: 'sd3-expected' }));
    });
    for (let bytes = 0; bytes < top; bytes += step(top)) {
      el.append(svg('line', { x1: SPACE.left, x2: width - SPACE.right, y1: y(bytes), y2: y(bytes), class: 'sd3-grid' }));
      el.append(svg('text', { x: SPACE.left - 3, y: y(bytes) + 3, 'text-anchor': 'end' }, String(Number((bytes / unit.one).toPrecision(2)))));
    }
    el.append(svg('text', { x: 0, y: 10 }, unit.name), svg('text', { x: width - SPACE.right, y: HEIGHT - 3, 'text-anchor': 'end' }, `${run.seconds.toFixed(1)} s`));
    if (near) el.append(svg('line', { x1: SPACE.left, x2: width - SPACE.right, y1: y(run.usable), y2: y(run.usable), class: 'sd3-usable' }));
    for (const one of lines) {
      const points = run.times.map((at, n) => `${x(at).toFixed(1)},${y(one.values[n]).toFixed(1)}`);
      el.append(svg('polyline', { points: points.join(' '), class: `sd3-line sd3-line-${one.name}` }));
    }
    const cursor = svg('line', { y1: SPACE.top, y2: HEIGHT - SPACE.bottom, class: 'sd3-cursor', visibility: 'hidden' });
    el.append(cursor);
    let place = 0;
    const point = (n) => {
      place = Math.max(0, Math.min(run.times.length - 1, n));
      const at = run.times[place];
      for (const name of ['x1', 'x2']) cursor.setAttribute(name, x(at));
      cursor.setAttribute('visibility', 'visible');
      const now = stretches(run).filter((one) => one.from <= at).pop();
      const said = lines.map((one) => `${sd3.text(`page.run.${one.name}`)} ${sd3.size(one.values[place], unit)}`);
      const thought = now && expected[now.phase] ? [`${sd3.text('page.run.expected')} ${sd3.size(expected[now.phase], unit)}`] : [];
      read([`${at.toFixed(1)} s`, ...(now ? [phase(now.phase)] : []), ...said, ...thought].join(' · '));
    };
    el.addEventListener('pointermove', (e) => {
      const box = el.getBoundingClientRect();
      const at = ((e.clientX - box.left) * width / box.width - SPACE.left) / (width - SPACE.left - SPACE.right) * seconds;
      const after = run.times.findIndex((one) => one >= at);
      point(after < 0 ? run.times.length - 1 : after);
    });
    el.addEventListener('keydown', (e) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (!by) return;
      e.preventDefault();
      point(place + by);
    });
    return el;
  };

  const legend = (run) => {
    const list = sd3.element('ul', 'sd3-legend sd3-list');
    const names = series(run).map((one) => [`sd3-line-${one.name}`, sd3.text(`page.run.${one.name}`)]);
    if (run.expected) names.push(['sd3-expected', sd3.text('page.run.expected')]);
    if (run.usable) names.push([isNear(run) ? 'sd3-usable' : '', `${sd3.text('page.run.usable')}: ${sd3.size(run.usable, isNear(run) ? unitOf(run) : undefined)}`]);
    for (const [name, text] of names) {
      const row = sd3.element('li');
      if (name) { // what is drawn
        const sample = svg('svg', { width: 18, height: 8, 'aria-hidden': 'true' });
        sample.append(svg('line', { x1: 0, x2: 18, y1: 4, y2: 4, class: `sd3-line ${name}` }));
        row.append(sample);
      }
      row.append(text);
      list.append(row);
    }
    return list;
  };

  const compared = (run) => {
    const rows = Object.entries(run.compared).map(([name, one]) => [phase(name), ...[one.expected, one.measured].map((bytes) => sd3.size(bytes, unitOf(run)))]);
    return rows.length > 0 ? [sd3.table(rows, ['phase', 'expected', 'measured'].map((name) => sd3.text(`page.run.${name}`)))] : [];
  };

  const draw = (run, width) => {
    const said = sd3.element('p', 'sd3-read', sd3.text('page.run.look'));
    return [sd3.element('p', 'sd3-run-title', run.title), picture(run, width, (text) => { said.textContent = text; }), said, legend(run), ...compared(run)];
  };

  let latest = null; // the summary of the last run that is over
  let drawing = false;
  sd3.showRun = async (run = latest) => {
    latest = run || latest;
    const places = [...document.querySelectorAll('.sd3-run')].filter(sd3.visible);
    if (drawing || places.length === 0) return;
    if (!latest) {
      for (const el of places) sd3.fill(el, sd3.text('page.run.none'), (text) => [sd3.element('p', '', text)]);
      return;
    }
    const key = (el) => JSON.stringify([latest.number, latest.started, el.clientWidth]);
    if (places.every((el) => el.dataset.run === key(el))) return;
    drawing = true;
    try {
      const whole = (await sd3.get('memory/runs')).find((one) => one.number === latest.number);
      if (!whole) return;
      for (const el of places) {
        el.replaceChildren(...draw(whole, Math.max(180, el.clientWidth)));
        el.dataset.run = key(el);
      }
    } catch (error) {
      console.debug(String(error)); // it is tried again with the next change of the page
    } finally {
      drawing = false;
    }
  };
})();

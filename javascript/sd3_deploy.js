// Toasts, the panel's state line, and whether a picture will fit into memory, of SD3 Deploy. gradio's own toasts can not be seen in ModernUI, and know nothing of work
// that the API or another page has started. Asks the server while something is under way or has just been asked for, and once
// a minute otherwise; never while the page is hidden.

(() => {
  const BUSY_MS = 1000;
  const IDLE_MS = 60000;
  const AWAKE_MS = 15000; // after a change of settings or a click on Generate: the server needs a moment to be busy
  const RECENT_S = 60; // a page that is opened later is not told what happened hours ago
  const TOAST_MS = { info: 6000, success: 10000 }; // warnings and errors stay until they are dismissed

  let seen = Number(sessionStorage.getItem('sd3-seen') || 0);
  let server = sessionStorage.getItem('sd3-server');
  let awakeUntil = 0;
  let timer = null;
  let lastRun = -1; // the number of the last load or job of the server
  let verifying = true; // checks are running, or have been since the page last looked

  const get = async (path) => {
    const base = window.api || '/sdapi/v1';
    const res = await (window.authFetch || fetch)(`${base}/sd3/${path}`);
    if (!res || !res.ok) throw new Error(`SD3 Deploy: ${path} answered ${res && res.status}`);
    return res.json();
  };

  const element = (tag, className, text) => {
    const el = document.createElement(tag);
    el.className = className;
    el.textContent = text; // never as HTML: a message may hold a file name or a line of a log
    return el;
  };

  const toast = (event) => {
    let area = document.getElementById('sd3-toasts');
    if (!area) {
      area = element('div', '', '');
      area.id = 'sd3-toasts';
      document.body.appendChild(area);
    }
    const box = element('div', `sd3-toast sd3-${event.severity}`, '');
    box.setAttribute('role', event.severity === 'error' ? 'alert' : 'status');
    box.dataset.id = event.id;
    box.appendChild(element('p', '', event.message));
    const close = element('button', '', '×');
    close.setAttribute('aria-label', 'Dismiss');
    close.addEventListener('click', () => box.remove());
    box.appendChild(close);
    if (event.remedy) box.appendChild(element('p', 'sd3-remedy', event.remedy));
    area.querySelectorAll('.sd3-toast').forEach((el) => { // the same again, of the next image: once is enough
      if (el.dataset.id === event.id && el.firstChild.textContent === event.message) el.remove();
    });
    if (event.severity !== 'info') area.querySelectorAll('.sd3-info').forEach((el) => el.remove()); // "Loading…" has had its answer
    area.appendChild(box);
    if (TOAST_MS[event.severity]) setTimeout(() => box.remove(), TOAST_MS[event.severity]);
  };

  // What the page asks for, in each tab: the fields hold the size, whatever theme has moved them where.
  const TABS = ['txt2img', 'img2img', 'control'];
  const FIELDS = { width: ['width', 'before_resize_width'], height: ['height', 'before_resize_height'], batch: ['batch_size'], guidance: ['cfg_scale'] };
  const field = (tab, names) => names.map((name) => document.querySelector(`#${tab}_${name} input[type=number]`)).find((el) => el && el.value !== '');
  const job = (tab) => Object.entries(FIELDS)
    .map(([name, ids]) => [name, field(tab, ids)])
    .filter(([, el]) => el)
    .map(([name, el]) => `${name}=${encodeURIComponent(el.value)}`)
    .join('&');

  const hint = (tab) => { // the line beside Generate
    const button = document.getElementById(`${tab}_generate`);
    const place = button && (button.closest('[id$="_results_header_panel"]') || button.parentElement); // ModernUI keeps it in a bar of icons
    if (!place) return null;
    let line = document.getElementById(`sd3-fit-${tab}`);
    if (!line) {
      line = element('div', 'sd3-fit', '');
      line.id = `sd3-fit-${tab}`;
      line.setAttribute('role', 'status');
    }
    if (line.previousElementSibling !== place) place.after(line); // ModernUI moves the button when all else is there
    return line;
  };

  const gigabytes = (bytes) => (bytes >= 1e8 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`);

  const table = (rows) => {
    const el = element('table', 'sd3-parts', '');
    for (const cells of rows) {
      const row = el.insertRow();
      for (const text of cells) row.insertCell().textContent = text;
    }
    return el;
  };

  let asked = {}; // tab → the question whose answer is shown
  const showMemory = async (anew) => {
    if (anew) asked = {};
    for (const tab of TABS) {
      const line = hint(tab);
      const question = job(tab);
      if (!line || asked[tab] === question) continue;
      asked[tab] = question;
      const answer = await get(`memory?${question}`);
      const kind = answer.verdict ? answer.verdict.answer : 'unknown';
      line.textContent = kind === 'unknown' ? '' : [answer.line, answer.change ? answer.change.sentence : ''].join(' ').trim();
      line.className = `sd3-fit sd3-${kind}`;
      const panel = document.querySelector(`#script_${tab}_sd3_deploy_memory .sd3-memory`);
      if (panel) {
        panel.replaceChildren(element('p', '', answer.line));
        if (answer.table) panel.append(table(answer.table.map(([name, bytes]) => [name, gigabytes(bytes)])));
        if (answer.advice) panel.append(element('p', '', answer.advice));
      }
      for (const [id, one] of Object.entries(answer.choices || {})) {
        document.querySelectorAll(`.sd3-choices tr[data-choice="${id}"] .sd3-verdict`).forEach((el) => {
          el.textContent = one.short;
          el.title = one.sentence;
        });
      }
      const run = (answer.runs || []).slice(-1)[0];
      if (run && run.number !== shownRun) {
        shownRun = run.number;
        document.querySelectorAll('.sd3-show').forEach((el) => el.click());
      }
    }
  };
  let shownRun = 0;

  const showState = async () => {
    const lines = document.querySelectorAll('.sd3-state');
    if (lines.length === 0) return;
    const { line, findings } = await get('status');
    for (const el of lines) el.textContent = line;
    for (const el of document.querySelectorAll('.sd3-findings')) el.replaceChildren(...findings.map(finding));
  };

  const finding = (found) => { // the sentence and its remedy, the lines that led to them on demand
    const box = element('details', 'sd3-finding', '');
    box.append(element('summary', '', found.message), element('p', 'sd3-remedy', found.remedy));
    if (found.evidence.length > 0) box.append(element('pre', '', found.evidence.join('\n')));
    return box;
  };

  const MARKS = { ok: '✓', warning: '!', failed: '✗', skipped: '–', cancelled: '–' };
  const check = (result) => {
    const row = element('li', `sd3-check sd3-${result.state}`, '');
    row.append(element('span', 'sd3-mark', MARKS[result.state]), element('b', '', result.title));
    row.append(element('span', 'sd3-seconds', result.seconds > 0 ? `${result.seconds.toFixed(1)} s` : ''));
    row.append(element('p', '', result.message));
    if (result.remedy) row.append(element('p', 'sd3-remedy', result.remedy));
    return row;
  };

  const showChecks = async () => {
    const job = await get('verify');
    const areas = document.querySelectorAll('.sd3-checks');
    for (const area of areas) {
      const rows = element('ol', '', '');
      rows.append(...job.results.map(check));
      const parts = [rows];
      if (job.state === 'running') {
        const bar = element('progress', '', '');
        bar.max = 1;
        bar.value = job.fraction;
        bar.setAttribute('aria-label', job.text);
        parts.push(bar, element('p', '', job.text));
      }
      if (area.dataset.shown === JSON.stringify(job)) continue;
      area.dataset.shown = JSON.stringify(job);
      area.replaceChildren(...parts);
    }
  };

  const poll = async () => {
    timer = null;
    if (document.hidden) return; // the visibilitychange below wakes it again
    let busy = false;
    try {
      const answer = await get(`events?since=${seen}&server=${encodeURIComponent(server || '')}`);
      if (answer.server !== server) { // another process numbers its events anew
        server = answer.server;
        sessionStorage.setItem('sd3-server', server);
      }
      for (const event of answer.events) {
        seen = event.seq;
        if (answer.now - event.time < RECENT_S) toast(event);
      }
      if (answer.events.length > 0) await showState();
      if (answer.run !== lastRun || answer.events.length > 0) await showMemory(true);
      lastRun = answer.run;
      if (answer.verifying || verifying) await showChecks();
      verifying = answer.verifying;
      sessionStorage.setItem('sd3-seen', seen);
      busy = Boolean(answer.busy) || verifying;
    } catch (err) {
      console.debug(String(err)); // the server restarts, or the login has run out: try again later
    }
    schedule(busy || Date.now() < awakeUntil ? BUSY_MS : IDLE_MS);
  };

  const schedule = (ms) => {
    if (timer) clearTimeout(timer);
    timer = setTimeout(poll, ms);
  };

  const wake = () => {
    awakeUntil = Date.now() + AWAKE_MS;
    schedule(BUSY_MS / 2);
  };

  const start = () => {
    document.addEventListener('visibilitychange', () => { if (!document.hidden) wake(); });
    document.addEventListener('click', (e) => {
      if (e.target.closest && e.target.closest('#settings_submit, #quicksettings, [id$="_generate"], .sd3-verify')) wake();
    }, true);
    if (window.onAfterUiUpdate) window.onAfterUiUpdate(() => TABS.forEach(hint));
    if (window.onOptionsChanged) window.onOptionsChanged(() => { wake(); showMemory(true).catch(console.debug); });
    let typing = null;
    document.addEventListener('input', (e) => {
      if (!e.target.matches || !e.target.matches('input[type=number], input[type=range]')) return;
      if (typing) clearTimeout(typing);
      typing = setTimeout(() => showMemory(false).catch(console.debug), 300);
    }, true);
    wake();
  };

  if (window.onUiLoaded) window.onUiLoaded(start);
  else document.addEventListener('DOMContentLoaded', start);
})();

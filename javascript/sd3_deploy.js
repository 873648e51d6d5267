// Toasts and the panel's state line of SD3 Deploy. gradio's own toasts can not be seen in ModernUI, and know nothing of work
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

  const showState = async () => {
    const lines = document.querySelectorAll('.sd3-state');
    if (lines.length === 0) return;
    const { line } = await get('status');
    for (const el of lines) el.textContent = line;
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
      sessionStorage.setItem('sd3-seen', seen);
      busy = Boolean(answer.busy);
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
      if (e.target.closest && e.target.closest('#settings_submit, #quicksettings, [id$="_generate"]')) wake();
    }, true);
    if (window.onOptionsChanged) window.onOptionsChanged(wake);
    wake();
  };

  if (window.onUiLoaded) window.onUiLoaded(start);
  else document.addEventListener('DOMContentLoaded', start);
})();

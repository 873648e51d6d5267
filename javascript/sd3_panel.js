// The panel: its one-line state while it is closed, what has failed, and work under way.

(() => {
  const sd3 = window.sd3deploy = window.sd3deploy || {};
  const TABS = ['txt2img', 'img2img', 'control'];
  const MARKS = { ok: '✓', warning: '!', failed: '✗', skipped: '–', cancelled: '–' };

  let status = null;

  sd3.showState = async () => {
    if (document.querySelectorAll('.sd3-state').length === 0) return;
    status = await sd3.get('status');
    const more = status.next !== status.encoder || status.failed.length > 0 || ['busy', 'left', 'last_error', 'encoder_warning', 'quantized_before', 'emulates'].some((name) => status[name]);
    for (const el of document.querySelectorAll('.sd3-state')) {
      if (el.closest('.sd3-panel')) el.dataset.line = more ? status.line : ''; // its head says it
      else el.textContent = status.line;
    }
    for (const el of document.querySelectorAll('.sd3-findings')) sd3.fill(el, status.findings, (found) => found.map(finding));
    TABS.forEach(sd3.showHeadline);
    sd3.showQuieted();
  };

  // The text encoder of the next picture of a page, by its stored name; null where it is the one that is loaded. One that has failed is not
  // tried again, and leaves that.
  sd3.nextEncoder = (own) => {
    if (!status) return own || null;
    if (!own) return status.next === status.encoder ? null : status.next;
    return [status.encoder, ...status.failed].includes(own) ? null : own;
  };

  // What a page has chosen and has failed: its name, and what is made instead; null for what is there, or has not failed.
  sd3.leftEncoder = (own) => {
    if (!status || !own || own === status.encoder || !status.failed.includes(own)) return null;
    return { name: sd3.shown(own), instead: sd3.shown(status.encoder) };
  };

  // What the server says of all pictures; and what this page has chosen for its own.
  const showLine = (tab) => {
    const own = sd3.encoder(tab);
    for (const el of document.querySelectorAll(`#script_${tab}_sd3_deploy_state .sd3-state`)) {
      const chosen = el.dataset.line && own && own !== status.wanted ? sd3.text('page.state.own', { name: sd3.shown(own) }) : '';
      sd3.fill(el, [el.dataset.line, chosen], (parts) => (parts[0] ? [parts.join(' ').trim()] : []));
    }
  };

  // What the next picture is made with, whether it fits, and what has failed: in the head of the panel, so that it says something while it
  // is closed. At length it is on top of the panel, and what the head says when it is pointed at.
  sd3.showHeadline = (tab) => {
    const head = document.querySelector(`#script_${tab}_sd3_deploy_panel .label-wrap`);
    if (!head || !status) return;
    showLine(tab);
    let el = head.querySelector('.sd3-headline');
    if (!el) {
      el = sd3.element('span', 'sd3-headline');
      head.firstElementChild.after(el);
    }
    const { verdict = {}, line } = sd3.estimate(tab); // of the next job of this page
    const next = sd3.nextEncoder(sd3.encoder(tab)) || status.encoder;
    const model = status.model ? [status.model.split('/').pop(), sd3.shown(next), verdict.short] : [sd3.text('page.headline.none')];
    const asked = sd3.encoder(tab) || status.wanted; // what of it failed is named for as long as it is, also after another message
    const failed = status.failed.filter((name) => name !== status.encoder && (status.last_error || name === asked)).map(sd3.shown).join(', ');
    const other = status.last_error ? sd3.text('page.headline.error') : status.left && sd3.text('page.headline.left');
    const error = failed ? sd3.text('page.headline.failed', { name: failed }) : other;
    const found = status.findings.length > 0 && sd3.text('page.findings', { count: status.findings.length });
    const parts = status.busy ? [status.busy] : [...model, error, found];
    el.textContent = parts.filter(Boolean).join(' · ');
    el.title = [status.line, ...status.findings.map((one) => one.message), verdict.answer ? line : ''].filter(Boolean).join('\n');
    el.className = `sd3-headline sd3-${error || found ? 'failed' : verdict.answer || 'unknown'}`;
  };

  const finding = (found) => { // the sentence and its remedy, the lines that led to them on demand
    const box = sd3.element('details', 'sd3-finding');
    box.append(sd3.element('summary', '', found.message), sd3.element('p', 'sd3-remedy', found.remedy));
    if (found.evidence.length > 0) box.append(sd3.element('pre', '', found.evidence.join('\n')));
    return box;
  };

  const check = (result) => {
    const row = sd3.element('li', `sd3-check sd3-${result.state}`);
    row.append(sd3.element('span', 'sd3-mark', MARKS[result.state]), sd3.element('b', '', result.title));
    row.append(sd3.element('span', 'sd3-seconds', result.seconds > 0 ? `${result.seconds.toFixed(1)} s` : ''));
    row.append(sd3.element('p', '', result.message));
    if (result.remedy) row.append(sd3.element('p', 'sd3-remedy', result.remedy));
    return row;
  };

  const bar = (job) => {
    const el = sd3.element('progress');
    el.max = 1;
    if (typeof job.fraction === 'number') el.value = job.fraction; // else it only shows that something is under way
    el.setAttribute('aria-label', job.text || '…');
    const text = sd3.element('p', '', job.text);
    text.setAttribute('role', 'status');
    return [el, text];
  };

  const pressed = new Set(); // the kinds of work that this page has asked for: they come into view where they begin and where they are over
  sd3.expect = (kind) => pressed.add(kind);
  const shown = {}; // kind → its job that was shown last, and how that stood

  const show = (kind, job, make, places = '.sd3-work') => {
    for (const work of document.querySelectorAll(places)) {
      let area = work.querySelector(`.sd3-${kind}-work`);
      if (!area) {
        area = sd3.element('div', `sd3-${kind}-work sd3-checks`);
        work.append(area);
      }
      sd3.fill(area, job, () => [...(job.state === 'running' ? bar(job) : []), ...make(job)]);
      if (pressed.has(kind) && shown[kind] !== `${job.job} ${job.state}`) bring(area);
    }
    if (job.state !== 'running' && shown[kind] !== `${job.job} ${job.state}`) pressed.delete(kind);
    shown[kind] = `${job.job} ${job.state}`;
  };

  // The page with all numbers, as an address of this browser: a link of its own would not bring the password along.
  let opened = { job: 0, address: '' };
  const quality = async (job) => {
    if (opened.job === job.started) return opened.address;
    if (opened.address) URL.revokeObjectURL(opened.address);
    const text = await sd3.readable('quality?format=html');
    opened = { job: job.started, address: URL.createObjectURL(new Blob([text], { type: 'text/html' })) };
    return opened.address;
  };

  const measured = (job, page) => {
    const link = sd3.element('a', 'sd3-link', sd3.text('page.quality.open'));
    Object.assign(link, { href: page, target: '_blank', rel: 'noopener' });
    const heads = [sd3.text('page.quality.choice'), sd3.text('page.quality.size'), sd3.text('page.quality.error')];
    const unit = sd3.unit(...job.rows.map((one) => one.bytes));
    const cells = job.rows.map((one) => [sd3.shown(one.name), sd3.size(one.bytes, unit), one.error.mean.toFixed(4)]);
    return [sd3.element('p', '', job.title), sd3.table(cells, heads), ...job.notes.map((note) => sd3.element('p', 'sd3-remedy', note)), link];
  };

  const failed = ({ state, text, error }) => {
    if (state === 'none' || state === 'running') return [];
    const list = sd3.element('ol');
    const said = error || { message: text };
    list.append(check({ state, title: sd3.text('page.quality'), seconds: 0, message: said.message, remedy: said.remedy }));
    return [list];
  };

  const rows = (kind, make) => async () => show(kind, await sd3.get(kind), make);

  // An encoder is being loaded: in the settings too, where it was chosen.
  sd3.showLoad = ({ busy, loading, progress }) => {
    sd3.underWay(loading && busy ? busy : '', progress ? progress.text : '', progress ? progress.fraction : null);
    const job = { state: busy || loading ? 'running' : 'none', text: progress ? progress.text : busy };
    show('load', progress ? { ...job, fraction: progress.fraction } : job, () => [], '.sd3-work, .sd3-loading');
  };

  sd3.showWork = {
    verify: rows('verify', (job) => {
      const list = sd3.element('ol');
      list.append(...job.results.map(check));
      const encoder = job.encoder && sd3.text('page.verify.encoder', { encoder: sd3.shown(job.encoder) });
      const said = [encoder, job.state === 'running' ? '' : job.text].filter(Boolean).join(' ');
      return said ? [sd3.element('p', 'sd3-outcome', said), list] : [list];
    }),
    install: rows('install', (job) => {
      if (job.state === 'none' || job.state === 'running') return [];
      const list = sd3.element('ol');
      const state = job.state === 'done' ? 'ok' : job.state;
      const error = job.error || {};
      list.append(check({ state, title: sd3.text('page.install.title'), seconds: 0, message: error.message || job.text, remedy: error.remedy }));
      return [list];
    }),
    quality: async () => {
      const job = await sd3.get('quality');
      const page = job.state === 'done' ? await quality(job) : '';
      show('quality', job, () => (page ? measured(job, page) : failed(job)));
    },
  };

  // What each text encoder would mean here, in the settings' table.
  sd3.showChoices = (choices) => {
    for (const [id, one] of choices) {
      document.querySelectorAll(`.sd3-choices tr[data-choice="${id}"] .sd3-verdict`).forEach((el) => {
        el.textContent = one.short;
        el.title = one.sentence;
      });
    }
  };

  // What holds where nothing is chosen for the page: the modes of the settings, as they are now.
  sd3.showDefaults = () => {
    const modes = { size: 'sd3_guard_size', memory: 'sd3_memory', sampling: 'sd3_guard_sampling' };
    const values = Object.fromEntries(Object.entries(modes).map(([name, key]) => [name, sd3.shown((window.opts || {})[key] || '–')]));
    const text = sd3.text('page.defaults', values);
    for (const el of document.querySelectorAll('.sd3-defaults')) if (el.textContent !== text) el.textContent = text;
  };

  sd3.describeButtons = () => { // those of gradio have no words beside their own
    for (const name of ['quality', 'install', 'verify', 'diagnose', 'copy']) {
      const text = sd3.text(`page.hint.${name}`);
      for (const el of document.querySelectorAll(`.sd3-panel button.sd3-${name}`)) if (el.title !== text) el.title = text;
    }
  };

  const ANSWERS = '[id$="_sd3_deploy_found"], [id$="_sd3_deploy_diagnosis_done"], [id$="_sd3_deploy_report_text"], [id$="_sd3_deploy_bundle"]';
  // What a button of the panel has brought stands below it, maybe out of sight. It comes into view, and stays there while the panel grows,
  // unless its reader has moved on.
  let asked = false;
  let brought = null;
  const bring = (el) => {
    if (!asked || !sd3.visible(el)) return; // the panels of the other tabs have it, too
    brought = el;
    sd3.reveal(el);
  };
  for (const kind of ['pointerdown', 'keydown', 'wheel', 'touchmove']) {
    document.addEventListener(kind, (e) => {
      const presses = kind === 'pointerdown' || (kind === 'keydown' && ['Enter', ' '].includes(e.key));
      asked = presses && Boolean(e.target.closest && e.target.closest('.sd3-panel button, .sd3-dialog button'));
      brought = null;
    }, { capture: true, passive: true });
  }
  document.addEventListener('click', (e) => { // the same answer again does not grow
    const button = e.target.closest && e.target.closest('.sd3-panel button.sd3-diagnose');
    if (button) bring(button.closest('.sd3-panel').querySelector('[id$="_sd3_deploy_found"]'));
  }, true);
  const grown = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target.matches(ANSWERS)) bring(target);
    if (brought) bring(brought);
    sd3.showRun(); // where it was unfolded
  });
  sd3.revealAnswers = () => {
    for (const el of document.querySelectorAll(`.sd3-panel, ${ANSWERS}`)) {
      if (el.dataset.sd3Watched) continue; // to observe it again would be a new size
      grown.observe(el);
      el.dataset.sd3Watched = 'true';
    }
  };

  sd3.readFromTop = () => { // gradio scrolls to the end of a text that it shows, with each change anew
    for (const el of document.querySelectorAll('.sd3-report textarea:not([data-sd3-top])')) {
      el.dataset.sd3Top = 'true';
      el.scrollTo = () => {};
      el.scrollTop = 0;
    }
  };

  sd3.addAgain = () => { // the way back from "do not show again"
    for (const el of document.querySelectorAll('.sd3-findings')) {
      const there = el.nextElementSibling;
      if (there && there.classList.contains('sd3-again')) {
        if (there.textContent !== sd3.text('page.again')) there.textContent = sd3.text('page.again'); // the texts may come after the page
        continue;
      }
      el.after(sd3.button('sd3-again', sd3.text('page.again'), () => sd3.act('again')));
    }
    sd3.showQuieted();
  };
})();
